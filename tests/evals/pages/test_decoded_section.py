"""The report's section on decoded predictions: whose numbers stand where, and the pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support import decoded_rows

from evals.pages.decoded_section import compared, decoded_section, near_chart, verdict

NAMES = ("target latents", "predicted, trained", "predicted, random", "truth", "seen", "copy last", "other")


def write(folder: Path, rows: list[dict[str, Any]], clips: int = 5) -> Path:
    """A folder of results as the demo's stage leaves it."""
    config = {"reconstruction": {"steps": 30, "predictor_steps": 50, "batch_size": 8}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"rows": rows, "config": config}))
    strips = [{name: f"data:{number},{name}" for name in NAMES} for number in range(clips)]
    (folder / "pictures.json").write_text(json.dumps({"forecast": strips} if clips else {}))
    return folder


def cells(section: str) -> list[list[str]]:
    lines = re.findall(r"<tr>((?:<td.*?)+)</tr>", section)
    return [re.findall(r"<td[^>]*>([^<]*)</td>", line) for line in lines if "strips" not in line and "<img" not in line]


def test_the_table_holds_each_way_in_forecasts(tmp_path: Path) -> None:
    rows = decoded_rows()
    for row in rows:
        if row["places"] != "forecast":
            row["psnr"] += 7  # of no interest here
    section = decoded_section(write(tmp_path, rows))
    assert [line[1:] for line in cells(section)] == [
        ["20.1", "15.0", "75", "50", "25"],
        ["16.0", "12.0", "75", "50", "25"],
        ["14.0", "9.0", "30", "5", "25"],
        ["13.0", "–", "30", "5", "25"],
        ["25.0", "18.0", "100", "75", "25"],
    ]
    assert cells(section)[0][0] == "predicted by the trained model"
    assert "That predictor had 50 steps of 8 clips, every decoder 30; 6 clips are judged." in section
    assert "image/svg" in section
    assert decoded_section(None) == ""


def test_pictures_are_four_clips_in_one_order(tmp_path: Path) -> None:
    section = decoded_section(write(tmp_path, decoded_rows()))
    names = ("truth", "seen", "copy last", "predicted, random", "predicted, trained", "target latents")
    drawn = re.findall(r'<img alt="([^"]*)" src="data:([^"]*?),', section)
    assert drawn == [(name, number) for number in ("0", "1", "2", "3") for name in names]
    none = decoded_section(write(tmp_path / "none", decoded_rows(), clips=0))
    assert "Grey was hidden" not in none
    assert len(cells(none)) == 5


def test_what_is_not_known_is_not_said(tmp_path: Path) -> None:
    section = decoded_section(write(tmp_path, decoded_rows(tracked=False)))
    assert "object is within" not in section
    assert "image/svg" not in section
    assert [line[3:] for line in cells(section)] == [["–", "–", "–"]] * 5
    alone = [row for row in decoded_rows() if row["what"] != "predicted"]
    section = decoded_section(write(tmp_path / "alone", alone))
    assert "predicts nothing that could be decoded" in section
    assert len(cells(section)) == 3


def test_the_verdict_names_everybody() -> None:
    assert verdict(compared(decoded_rows(), "forecast")) == (
        "At hidden places its decoded predictions reach 20.1 dB (random 16.0, mean frame 14.0, copy last 13.0, ceiling "
        "25.0), where objects move 15.0 dB (random 12.0, mean frame 9.0, copy last –, ceiling 18.0). In decoded "
        "forecasts of 2 frames the object is within one patch of its true place in 75 % of the frames (random 75, mean "
        "frame 30, copy last 30, ceiling 100)."
    )


def test_the_chart_counts_frames_from_the_last_one_seen() -> None:
    chart = near_chart(compared(decoded_rows(), "forecast"))
    assert [line.name for line in chart.lines] == ["trained", "random", "copy last", "ceiling"]
    assert list(chart.lines[0].x) == [1, 2]
    assert list(chart.lines[2].y) == pytest.approx([30.0, 5.0])
