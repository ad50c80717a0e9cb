"""Pictures: the numbers of the video task on held pictures, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from eval_layouts import imagenet, put, video
from support import SMALL_CLIP, small_encoder, write_clips

from evals.main import evaluate, main
from evals.probes import ProbeConfig
from evals.settings import EvalConfig
from evals.task_configs import ClipChanges
from jepa.checkpoint import save_checkpoint
from jepa.config import to_dict
from jepa.data.sources import SourceConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("image")
    imagenet(root / "imagenet")
    encoder = small_encoder()
    state = {"config": {}, "clip": to_dict(SMALL_CLIP), "encoder_config": to_dict(encoder.config)}
    weights = {f"target_encoder.{name}": value for name, value in encoder.state_dict().items()}
    save_checkpoint(root / "run", 1, {**state, "objective": weights})
    return root


def asked(folder: Path, **options: object) -> EvalConfig:
    train, test = (SourceConfig(path=str(folder / "imagenet" / split)) for split in ("train", "val"))
    return EvalConfig(**{  # type: ignore[arg-type]
        "run": str(folder / "run"), "task": "image", "train": train, "test": test, "device": "cpu",
        "probes": (ProbeConfig(kind="knn", neighbours=(1,)),), "out": str(folder / "out"), **options,
    })  # fmt: skip


def test_pictures_are_held_for_the_clip_as_in_the_video_task(folder: Path) -> None:
    image, held = evaluate(asked(folder)), evaluate(asked(folder, task="video"))
    scores = [[(row["encoder"], row["accuracy"]) for row in found["rows"]] for found in (image, held)]
    assert scores[0] == scores[1]
    assert dict(scores[0])["pixels"] == 1.0  # every picture of a class is the same one
    assert (image["grid"], image["clip"]["num_frames"]) == ([2, 2, 2], 4)
    assert image["table"].startswith("| probe | label | trained |")


def test_a_clip_of_one_frame(folder: Path) -> None:
    found = evaluate(asked(folder, clip=ClipChanges(num_frames=1)))
    assert (found["grid"], found["clip"]["num_frames"]) == ([1, 2, 2], 1)


def test_videos_and_segments_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(folder / "videos/a/1.mp4", video(0))
    write_clips(folder / "clips.npz", clips=4)
    pictures = str(folder / "imagenet/train")
    base = [str(folder / "run"), "--task", "image", "--test", str(folder / "imagenet/val"), "--out", str(folder)]
    for words, message in (
        (["--train", str(folder / "videos")], "1.mp4 is no picture: use --task video"),
        (["--train", str(folder / "clips.npz")], "clips.npz holds clips of 4 frames, not pictures"),
        (["--train", pictures, "--segments", "2"], "set segments to 1, not 2, for the task image"),
    ):
        assert main([*base, *words]) == 2
        assert message in capsys.readouterr().err
