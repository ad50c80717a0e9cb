"""What tests share: clips and videos made on the spot, a small encoder, a tiny training config, a command's error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jepa.models.encoder import Encoder, EncoderConfig
from jepa.types import ClipConfig


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


def decoded_rows(tracked: bool = True) -> list[dict[str, Any]]:
    """Rows of the task reconstruction, plain data as in results.json: masked places and forecasts of two frames, with
    rows of other places, layers and models in between. ``tracked``: a simulator knows where the object is."""
    ways = [("target", "trained", 25.0), ("predicted", "trained", 20.12346), ("guess", "training mean", 12.0),
            ("guess", "mean frame", 14.0), ("guess", "copy last", 13.0), ("target", "random", 26.0),
            ("predicted", "random", 16.0), ("predicted", "timm:other", 17.0)]  # fmt: skip
    rows = []
    for places in ("all", "masked", "forecast"):
        for what, model, psnr in ways:
            near = {"predicted": 0.75, "target": 1.0, "guess": 0.3}[what] if tracked else None
            frames = [{"frame": k, "psnr": psnr, "near": near if k < 3 or near is None else near - 0.25}
                      for k in (2, 3)] if places == "forecast" else []  # fmt: skip
            rows.append({
                "places": places, "what": what, "model": model, "layer": None, "psnr": psnr, "clips": 6,
                "moving": None if model == "copy last" else psnr // 4 * 3, "near": near, "frames": frames,
                "throughout": 0.25 if frames and tracked else None,
            })  # fmt: skip
            rows.append({**rows[-1], "layer": 1, "psnr": -1.0})
    return rows


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The single line that a wrong command line prints; checks its exit status and that there is no traceback."""
    from app.cli import main

    status = main(arguments)
    printed = capsys.readouterr().err
    errors = [line for line in printed.splitlines() if line.startswith("jepa: error: ")]
    assert (status, len(errors)) == (2, 1), printed
    assert "Traceback" not in printed
    return errors[0]


SMALL_CLIP = ClipConfig(num_frames=4, fps=10.0, crop_size=32)


def small_encoder() -> Encoder:
    """A random encoder of ``SMALL_CLIP``, the same at every call: 2 x 2 x 2 tokens, 24 wide."""
    torch.manual_seed(0)
    config = EncoderConfig(embed_dim=24, depth=2, num_heads=2, patch_size=16, tubelet_size=2)
    return Encoder(config, SMALL_CLIP).eval()


def moving(num_frames: int, height: int = 32, width: int = 48, seed: int = 0) -> np.ndarray:
    """Smooth random frames uint8 ``[T, H, W, 3]`` (so that a codec keeps them) that drift over time."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 9, 3)).astype(np.uint8)
    picture = np.asarray(Image.fromarray(small).resize((width + num_frames, height), Image.Resampling.BICUBIC))
    return np.stack([picture[:, t : t + width] for t in range(num_frames)])
