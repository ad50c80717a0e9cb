"""``jepa predict``: every output says the same, damaged videos are named, and wrong arguments are refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import error_of, tiny_settings

from app.cli import main
from app.surprise_picture import stills
from jepa.config import from_dict
from jepa.data.prepare import write_video
from jepa.surprise import surprise
from jepa.train import TrainConfig, fit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 frames and tubelets of 2, a video that changes in the middle, and one that is cut off."""
    folder = tmp_path_factory.mktemp("predict")
    fit(from_dict(TrainConfig, tiny_settings(folder, steps=1, device="cpu", precision="fp32")))
    frames = np.full((16, 32, 32, 3), 60, dtype=np.uint8)
    frames[8:, :, :16] = 220
    frames[:8, 16:] = 140
    frames += np.random.default_rng(0).integers(0, 30, frames.shape, dtype=np.uint8)
    (folder / "videos").mkdir()
    write_video(folder / "videos" / "change.mp4", frames, 8.0)
    write_video(folder / "videos" / "cut_off.mp4", frames, 8.0)
    whole = (folder / "videos" / "cut_off.mp4").read_bytes()
    (folder / "videos" / "cut_off.mp4").write_bytes(whole[: len(whole) // 2])
    return folder


def test_outputs_agree_and_the_damaged_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outs = [folder / f"out.{suffix}" for suffix in ("json", "csv", "png", "html")]
    arguments = [word for out in outs for word in ("-o", str(out))]
    status = main(
        ["predict", str(folder / "run"), str(folder / "videos"), *arguments, "--context", "2", "--mask-token", "1",
         "--threshold", "0.7", "--device", "cpu"]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert status == 1
    assert "1 of 2 videos could not be used" in printed
    assert "cut_off.mp4" in printed
    curve = surprise(str(folder / "videos" / "change.mp4"), folder / "run", 1, mask_token=1, device="cpu")
    top = curve.highest()
    assert f"highest surprise {top.surprise:.3g} at {top.start_s:.2f}-{top.end_s:.2f} s" in printed
    assert "above the 0.7 quantile" in printed

    data = json.loads(outs[0].read_text())
    assert [Path(video["source"]).name for video in data["videos"]] == ["change.mp4"]
    assert len(data["failed"]) == 1
    video = data["videos"][0]
    assert video["surprise"][0][0] is None  # nothing is predicted at the first tubelet
    torch.testing.assert_close(torch.tensor(video["surprise"][0][1:]), curve.surprise[0, 1:])
    assert video["score_mean"] == pytest.approx(curve.score())
    assert video["events"][0]["surprise"] == pytest.approx(top.surprise)
    assert video["metadata"]["mask_token"] == 1

    with outs[1].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(curve) == 8
    assert (rows[0]["surprise"], rows[0]["windows"], rows[0]["context_frames"]) == ("", "0", "2")
    assert [float(row["start_s"]) for row in rows] == pytest.approx(curve.start_s.tolist())
    for name in ("surprise", "peak", "copy_last", "context_mean"):
        written = [float(row[name]) for row in rows[1:]]
        assert written == pytest.approx(getattr(curve, name)[0, 1:].tolist(), rel=1e-4)

    with Image.open(outs[2]) as picture:
        assert picture.size == (1100, 385)
    page = outs[3].read_text()
    assert page.count("data:image/png;base64,") == 1
    assert "change.mp4" in page
    assert "cut_off.mp4" in page


def test_stills_run_over_the_video(folder: Path) -> None:
    curve = surprise(str(folder / "videos" / "change.mp4"), folder / "run", 1, device="cpu")
    shown = stills(curve, count=4)
    assert shown.shape == (96, 4 * 98, 3)
    left = [shown[20, 98 * k + 20].mean() for k in range(4)]
    assert [bool(value > 150) for value in left] == [False, False, True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "curve.txt"], "--out must end in one of .json, .csv, .png, .html, not curve.txt"),
        (["--threshold", "2"], "--threshold must be a quantile between 0 and 1"),
        (["--context", "3"], "--context '3 frames' ends inside a tubelet of 2 frames"),
        (["--context", "two"], "--context 'two frames' is not understood"),
        (["--context", "4"], "context_tubelets must lie between 1 and 1 (windows have 2), not 2"),
        (["--stride", "3"], "--stride '3 frames' ends inside a tubelet"),
        (["--mask-token", "5"], "mask_token 5 does not exist: the predictor has 2"),
    ],
)
def test_wrong_arguments(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    video = str(folder / "videos" / "change.mp4")
    assert message in error_of(["predict", str(folder / "run"), video, "--device", "cpu", *arguments], capsys)


def test_no_usable_video_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(folder / "nothing.mp4")
    error = error_of(["predict", str(folder / "run"), missing, "--device", "cpu"], capsys)
    assert "no video could be used; the first: " in error
    assert "nothing.mp4 does not exist" in error
