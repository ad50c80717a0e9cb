"""What tests share: a tiny source of clips, a tiny training config, the message of a command that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest


def write_clips(path: Path, clips: int = 12, frames: int = 4, side: int = 32, seed: int = 0) -> Path:
    """A ``.npz`` source: uint8 clips ``[K, T, H, W, 3]`` of drifting stripes, labels ``[K]`` in two classes."""
    rng = np.random.default_rng(seed)
    time, rows, columns = np.meshgrid(np.arange(frames), np.arange(side), np.arange(side), indexing="ij")
    labels = np.arange(clips) % 2
    speed = np.where(labels == 0, 1.0, -1.0) * rng.uniform(1, 2, clips)
    phase = rng.uniform(0, 6, clips)
    wave = np.sin(0.4 * columns + 0.1 * rows + speed[:, None, None, None] * time + phase[:, None, None, None])
    grey = 127 + 90 * wave + rng.normal(0, 10, wave.shape)
    clip = np.repeat(grey[..., None], 3, axis=-1).clip(0, 255).astype(np.uint8)
    np.savez(path, clips=clip, labels=labels.astype(np.int64))
    return path


def tiny_settings(folder: Path, **train: Any) -> dict[str, Any]:
    """Plain data for a ``TrainConfig``: 4 frames of 32 px, patch 8, two mask families, ``train`` laid over the loop."""
    source = folder / "clips.npz"
    if not source.exists():
        write_clips(source)
    loop = {"steps": 4, "batch_size": 4, "log_every": 2, "save_every": 100, "progress": "off", "tensorboard": False}
    return {
        "run_dir": str(folder / "run"),
        "clip": {"num_frames": 4, "frame_step": 1, "crop_size": 32},
        "data": {"sources": [{"path": str(source)}], "workers": 0},
        "encoder": {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8},
        "masks": [
            {"kind": "multiblock", "num_blocks": 2, "scale": [0.2, 0.2]},
            {"kind": "multiblock", "num_blocks": 1, "scale": [0.5, 0.5]},
        ],
        "objective": {"kind": "masked", "predictor": {"embed_dim": 24, "depth": 1, "num_heads": 2}},
        "optim": {},
        "train": {**loop, **train},
        "monitor": {"every": 1000},
    }


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The single line that a wrong command line prints; checks its exit status and that there is no traceback."""
    from app.cli import main

    status = main(arguments)
    printed = capsys.readouterr().err
    errors = [line for line in printed.splitlines() if line.startswith("jepa: error: ")]
    assert (status, len(errors)) == (2, 1), printed
    assert "Traceback" not in printed
    return errors[0]
