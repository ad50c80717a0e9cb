"""Every config in configs/ loads, and takes one step with its own masks, loss and schedules at a toy size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import write_clips

from jepa.checkpoint import load_checkpoint
from jepa.config import from_dict, load_yaml, merge
from jepa.train import TrainConfig, fit

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
RECIPES = [path for path in FILES if "base" not in path.parts]


def shrink(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe with a toy encoder, predictor, clip and source, and one step of two clips."""
    frames = min(int(settings["clip"].get("num_frames", 16)), 4)
    tubelet = settings.get("encoder", {}).get("tubelet_size", 2)
    predictor = "decoder" if settings["objective"]["kind"] == "pixels" else "predictor"
    toy = {
        "run_dir": str(folder / "run"),
        "init_from": None,
        "clip": {"num_frames": frames, "crop_size": 64, "short_side": None},
        "data": {
            "sources": [{"path": str(write_clips(folder / "clips.npz", clips=6, frames=frames, side=64))}],
            "validation": [], "holdout": 0, "workers": 0,
        },
        "encoder": {
            "embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8, "tubelet_size": min(tubelet, frames),
            "activation_checkpointing": False,
        },
        "objective": {predictor: {"embed_dim": 24, "depth": 1, "num_heads": 2}},
        "train": {
            "steps": 1, "batch_size": 2, "accumulate": 1, "device": "cpu", "precision": "fp32", "compile": False,
            "progress": "off", "tensorboard": False,
        },
    }  # fmt: skip
    return merge(settings, toy)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_config_takes_a_step(path: Path, tmp_path: Path) -> None:
    settings = load_yaml(path)
    from_dict(TrainConfig, settings)  # as it stands, with every check of its values
    state = load_checkpoint(fit(from_dict(TrainConfig, shrink(settings, tmp_path))))
    assert state["step"] == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_config_is_short_and_has_a_header(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 40
    assert lines[0].startswith("# ")
    if path in RECIPES:
        header = "\n".join(line for line in lines if line.startswith("#"))
        for words in ("Command", "Hardware", "Time", "Expected|result"):
            assert any(word in header for word in words.split("|")), f"the header names no {words}"


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 8
