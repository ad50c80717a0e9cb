"""Models to export: tiny official checkpoints, and random ones of every kind."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa.models import Encoder, EncoderConfig, Predictor, PredictorConfig
from jepa.models.attentive import AttentiveConfig, AttentiveProbe
from jepa.models.rope import RopeConfig
from jepa.pretrained import load_pretrained
from jepa.pretrained.loader import Pretrained
from jepa.types import ClipConfig

GOLDEN = Path(__file__).parent / "golden"
TILED = RopeConfig(frequencies="tiled")


def golden(name: str) -> Pretrained:
    """A tiny official checkpoint of ``tests/golden``."""
    config = json.loads((GOLDEN / name / "config.json").read_text())
    return load_pretrained(GOLDEN / name / "checkpoint.pt", config.pop("family"), **config)


def made(probe: dict[str, Any] | None = None, clip: ClipConfig | None = None, **encoder: Any) -> Pretrained:
    """Random parts, every parameter of them, as ``load_pretrained`` would return them."""
    torch.manual_seed(1)
    clip = clip or ClipConfig(num_frames=4, fps=4.0, crop_size=32, short_side=36)
    config = EncoderConfig(**{"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8, **encoder})
    parts: dict[str, Any] = {"encoder": Encoder(config, clip)}
    grid = parts["encoder"].grid
    shape = PredictorConfig(embed_dim=24, depth=1, num_heads=2)
    parts["predictor"] = Predictor(shape, parts["encoder"].embed_dim, grid, 2, config.position, config.rope)
    if probe is not None:
        parts["probe"] = AttentiveProbe(AttentiveConfig(embed_dim=24, num_heads=2, depth=2, **probe))
    for part in parts.values():
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        part.eval().requires_grad_(False)
    return Pretrained(family="made", path="made", weights="encoder", **parts)


@torch.no_grad()
def predicted_there(model: Any, clip: Tensor, context: Tensor, target: Tensor, mask_token: int) -> Tensor:
    """What the predictor of a ``VJEPA2Model`` predicts; it takes the number of a mask token at its embedding only."""
    embed = model.predictor.embeddings
    embed.forward = functools.partial(type(embed).forward, embed, mask_index=mask_token)
    output = model(clip.transpose(1, 2), context_mask=[context], target_mask=[target])
    return output.predictor_output.last_hidden_state
