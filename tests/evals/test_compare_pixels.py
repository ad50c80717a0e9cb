"""Evals of the task reconstruction side by side: paired clip by clip where the same pixels were judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evals import metrics, pairwise
from evals.compare import compare, markdown, write
from evals.reconstruction.by_clip import ByClip
from jepa.config import ConfigError

CLIP = {"num_frames": 4, "fps": 5.0, "crop_size": 32, "mean": [0.5], "std": [0.5]}
HIDDEN = torch.arange(8)
FIRST = torch.tensor([20.0, 21, 25, 19, 30, 22, 24, 18])
SECOND = FIRST + torch.tensor([1.0, 2, -0.5, 1, 3, 0, 1.5, 1])


def a_row(places: str, what: str, model: str, psnr: torch.Tensor, **more: Any) -> dict[str, Any]:
    known = {"layer": None, "tokens": 8, "moving": None, "ssim": 0.5, "near": 0.25, "clips": len(psnr)}
    own = {"places": places, "what": what, "model": model, "psnr": float(psnr.mean()), "low": 1.0, "high": 2.0}
    return own | known | more


def samples_row(psnr: torch.Tensor) -> dict[str, Any]:
    return a_row("masked", "predicted", "trained", psnr, samples=4, best=[{"k": 4, "psnr": 27.0}], diversity=0.125)


def write_eval(
    folder: Path, psnr: torch.Tensor, hidden: torch.Tensor = HIDDEN, order: list[int] | None = None, **changes: Any
) -> Path:
    """An eval of clips ``v0.mp4``, ``v1.mp4``, ... that lie in the source in ``order``: one row of predictions at
    masked places, one of target latents of a block, a guess, and samples."""
    folder.mkdir(parents=True)
    order = order or list(range(len(psnr)))
    items = torch.tensor([order.index(clip) for clip in range(len(psnr))])
    rows = [
        a_row("all", "target", "trained", psnr), a_row("all", "target", "trained", psnr, layer=1),
        a_row("all", "target", "trained", psnr - 1, tokens=2), a_row("masked", "predicted", "trained", psnr),
        a_row("masked", "guess", "copy last", FIRST[: len(psnr)], tokens=None),
    ]  # fmt: skip
    scores = {0: psnr, 1: psnr, 2: psnr - 1, 3: psnr, 4: FIRST[: len(psnr)]}
    kept, sampled = ByClip(len(psnr)), samples_row(psnr + 1)
    for number, row in enumerate(rows):
        kept.add(row, "psnr", scores[number], hidden if row["places"] == "masked" else torch.zeros_like(hidden), items)
    for kind in ("mean", "best"):
        kept.add(sampled, kind, psnr + 1, hidden, items)
    paths = changes.get("paths", [f"/data/v{clip}.mp4" for clip in range(len(psnr))])
    known = {"path": np.array([paths[clip] for clip in order]), "span_s": np.full((len(psnr), 2), np.nan)}
    if "groups" in changes:
        known["group"] = np.array([changes["groups"][clip] for clip in order])
    (folder / "clips.npz").write_bytes(kept.pack(known))
    own = {"model": f"runs/{folder.name}", "clip": CLIP | changes.get("clip", {})}
    results = {"task": "reconstruction", "rows": rows, "sampled": [sampled], **own, "models": {"trained": own}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def by_measure(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {line["measure"]: line for line in found["lines"]}


def test_differences_are_those_of_the_same_clips_in_any_order(tmp_path: Path) -> None:
    a = write_eval(tmp_path / "a", FIRST)
    b = write_eval(tmp_path / "b", SECOND, order=[7, 3, 1, 0, 2, 6, 5, 4])
    found = compare([a, b])
    lines = by_measure(found)
    one = lines["masked, predicted: PSNR (dB)"]
    assert one["differences"][0] is None
    apart = one["differences"][1]
    assert apart["difference"] == pytest.approx(9 / 8)
    assert apart["interval"] == pytest.approx(metrics.bootstrap_interval((SECOND - FIRST).double()))
    assert one["cells"][1].startswith(f"{float(SECOND.mean()):.2f} [1.00, 2.00]; +1.12 [")
    assert ";" not in one["cells"][0]
    assert lines["masked, copy last: PSNR (dB)"]["differences"][1] == {"difference": 0.0, "interval": [0.0, 0.0]}
    others = ("all, target", "all, target, block 1", "all, target, 2 tokens", "masked, predicted, mean of 4 samples")
    for name in others:
        assert lines[f"{name}: PSNR (dB)"]["differences"][1]["difference"] == pytest.approx(9 / 8)
    assert lines["masked, predicted, best of 4 samples: PSNR (dB)"]["cells"][0] == "27.00"
    assert lines["masked, predicted, 4 samples: diversity"]["cells"] == ["0.1250", "0.1250"]
    assert lines["masked, predicted: near (%)"] == {
        "measure": "masked, predicted: near (%)", "size": "8 clips", "cells": ["25", "25"], "differences": [None, None],
    }  # fmt: skip
    assert not any("moving" in name for name in lines)
    backward = by_measure(compare([b, a]))["masked, predicted: PSNR (dB)"]["differences"][1]
    assert backward["difference"] == pytest.approx(-9 / 8)
    text = markdown(found)
    assert "paired bootstrap interval" in text
    write(found, tmp_path / "out")
    assert "all, target, block 1" in (tmp_path / "out" / "comparison.html").read_text()


def test_clips_of_one_group_are_drawn_together(tmp_path: Path) -> None:
    groups = ["x", "x", "x", "y", "y", "z", "z", "z"]
    a, b = (write_eval(tmp_path / name, psnr, groups=groups) for name, psnr in (("a", FIRST), ("b", SECOND)))
    found = by_measure(compare([a, b]))["masked, predicted: PSNR (dB)"]["differences"][1]
    expected = pairwise.bootstrap_interval((SECOND - FIRST).double().numpy(), groups)
    assert found["interval"] == pytest.approx(list(expected))
    assert found["interval"] != pytest.approx(metrics.bootstrap_interval((SECOND - FIRST).double()))


def test_what_was_not_judged_alike_is_not_paired(tmp_path: Path) -> None:
    a = write_eval(tmp_path / "a", FIRST)
    other = write_eval(tmp_path / "other", SECOND, hidden=HIDDEN.flip(0))
    found = compare([a, other])
    lines = by_measure(found)
    assert lines["masked, predicted: PSNR (dB)"]["differences"] == [None, None]
    assert lines["all, target: PSNR (dB)"]["differences"][1] is not None
    assert found["notes"] == ["runs/other was judged on other pixels than runs/a (masked): they are not paired."]
    fast = write_eval(tmp_path / "fast", SECOND, clip={"fps": 10.0})
    found = compare([a, fast])
    assert all(line["differences"] == [None, None] for line in found["lines"])
    assert "runs/fast sees other clips than runs/a (rate, length or size): nothing is paired." in markdown(found)
    scaled = write_eval(tmp_path / "scaled", SECOND, clip={"mean": [0.0]})
    assert by_measure(compare([a, scaled]))["all, target: PSNR (dB)"]["differences"][1] is not None
    moved = write_eval(tmp_path / "moved", SECOND, paths=[f"/scratch/v{k}.mp4" for k in range(8)])
    found = compare([a, moved])
    assert by_measure(found)["all, target: PSNR (dB)"]["differences"][1]["difference"] == pytest.approx(9 / 8)
    assert len(found["notes"]) == 1
    assert "runs/moved have other absolute paths" in found["notes"][0]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    a = write_eval(tmp_path / "a", FIRST)
    shorter = write_eval(tmp_path / "shorter", FIRST[:6], HIDDEN[:6])
    with pytest.raises(ConfigError, match=r"the test sets differ: all, target: PSNR .* 8 clips .* 6 clips"):
        compare([a, shorter])
    elsewhere = write_eval(tmp_path / "elsewhere", SECOND, paths=[f"/data/w{k}.mp4" for k in range(8)])
    with pytest.raises(ConfigError, match=r"test sets differ: 8 of 8 test clips .*/data/v0.mp4"):
        compare([a, elsewhere])
    old = write_eval(tmp_path / "old", SECOND)
    (old / "clips.npz").unlink()
    with pytest.raises(ConfigError, match=r"old has no clips.npz: run that eval again"):
        compare([a, old])
    torn = write_eval(tmp_path / "torn", SECOND)
    (torn / "clips.npz").write_bytes(b"PK damaged")
    with pytest.raises(ConfigError, match=r"clips.npz cannot be read"):
        compare([a, torn])
    with pytest.raises(ConfigError, match=r"has no encoder 'copy last'"):
        compare([a], ["copy last"])
    lacking = write_eval(tmp_path / "lacking", SECOND)
    (lacking / "clips.npz").write_bytes(ByClip(8).pack({"path": np.array(["x"] * 8), "span_s": np.zeros((8, 2))}))
    with pytest.raises(ConfigError, match=r"clips.npz lacks 'all/target/trained/-/8/psnr': run that eval again"):
        compare([a, lacking])
