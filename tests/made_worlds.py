"""A small world, recorded on the spot: a bright square that actions move, and settings to train a world model on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def write_worlds(folder: Path, episodes: int = 4, length: int = 10, side: int = 32, seed: int = 0) -> Path:
    """Episodes at 10 frames a second: actions ``[T-1, 2]`` are moves in shares of the side, states ``[T, 3]`` the
    square's centre and the time."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(episodes):
        actions = rng.uniform(-0.15, 0.15, (length - 1, 2)).astype(np.float32)
        places, frames = [rng.uniform(0.3, 0.7, 2)], np.full((length, side, side, 3), 40, np.uint8)
        for action in actions:
            places.append(np.clip(places[-1] + action, 0.1, 0.9))
        for frame, (row, column) in zip(frames, np.stack(places) * side, strict=True):
            top, left = int(row) - side // 8, int(column) - side // 8
            frame[max(top, 0) : top + side // 4, max(left, 0) : left + side // 4] = (230, 200, 60)
        states = np.column_stack((np.stack(places), np.arange(length) / 10)).astype(np.float32)
        np.savez(folder / f"episode_{number:05d}.npz", frames=frames, actions=actions, states=states)
    (folder / "trajectories.json").write_text(json.dumps({"fps": 10}))
    return folder


def world_settings(folder: Path, **objective: Any) -> dict[str, Any]:
    """Plain data for a ``TrainConfig``: 5 frames of 32 px, joint training, a regularizer; ``objective`` laid over."""
    data = folder / "worlds"
    if not data.exists():
        write_worlds(data)
    own = {
        "kind": "world_model", "regularizer": {"kind": "variance_covariance"}, "latent": {"pool": [2, 2], "dim": 8},
        "predictor": {"embed_dim": 24, "depth": 2, "num_heads": 2},
    }  # fmt: skip
    return {
        "run_dir": str(folder / "run"),
        "clip": {"num_frames": 5, "fps": 10, "crop_size": 32},
        "data": {"sources": [{"path": str(data), "trajectory": {}}], "workers": 0},
        "augment": {"scale": [1.0, 1.0], "ratio": [1.0, 1.0], "flip": 0.0},
        "encoder": {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8, "tubelet_size": 1},
        "objective": {**own, **objective},
        "train": {
            "steps": 4, "batch_size": 4, "log_every": 2, "save_every": 100, "progress": "off", "tensorboard": False,
            "device": "cpu", "precision": "fp32",
        },
        "monitor": {"every": 4, "clips": 4},
    }  # fmt: skip
