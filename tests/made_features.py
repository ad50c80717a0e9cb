"""A folder of small videos, a model that never trained, and the features that it makes of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from jepa.checkpoint import save_checkpoint
from jepa.config import to_dict
from jepa.data.prepare import write_video
from jepa.encode import encode
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.types import ClipConfig

CLIP = ClipConfig(num_frames=4, fps=10.0, crop_size=32)


class Made(NamedTuple):
    """``videos``: a/0.mp4, a/1.mp4, b/2.mp4, b/3.mp4, 2 s each. ``table``: a parquet file of 2 clips of each."""

    run: str
    videos: list[str]
    table: str


def write_run(folder: Path, width: int, seed: int, context_seed: int | None = None) -> str:
    config = EncoderConfig(embed_dim=width, depth=2, num_heads=2, patch_size=8, tubelet_size=2)
    weights = {}
    for name, own in (("target_encoder", seed), ("encoder", seed if context_seed is None else context_seed)):
        torch.manual_seed(own)
        weights |= {f"{name}.{k}": v for k, v in Encoder(config, CLIP).state_dict().items()}
    state = {"config": {}, "clip": to_dict(CLIP), "encoder_config": to_dict(config), "objective": weights}
    save_checkpoint(folder, 1, state)
    return str(folder)


def write_videos(folder: Path) -> list[str]:
    paths = []
    for number in range(4):
        small = np.random.default_rng(number).integers(0, 255, (6, 9, 3)).astype(np.uint8)
        wide = np.asarray(Image.fromarray(small).resize((68, 32), Image.Resampling.BICUBIC))
        path = folder / "ab"[number // 2] / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, np.stack([wide[:, t : t + 48] for t in range(20)]), fps=10.0, gop=4)
        paths.append(str(path))
    return paths


def make_features(root: Path) -> Made:
    run, videos = write_run(root / "run", 24, seed=0), write_videos(root / "videos")
    features = encode(videos, run, segments=2, device="cpu")
    metadata = {**features.metadata, "model": run, "weights": "target_encoder"}
    table = root / "features.parquet"
    dataclasses.replace(features, tokens=features.pooled()[:, None], pool="mean", metadata=metadata).save(table)
    return Made(run, videos, str(table))
