"""What makes the latents of a frozen model, for those that are trained on them: an encoder of whole clips, or, of a
world model, the encoder of frames and its latent head.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any, NamedTuple

from torch import Tensor, nn

from jepa.load import load, read_run
from jepa.models.base import ClipEncoder
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.models.latent_head import LatentConfig, LatentHead
from jepa.models.timm_config import TimmConfig
from jepa.objectives import OBJECTIVES, PolicyObjective, WorldModelObjective
from jepa.objectives.decoder_config import DecoderBase
from jepa.objectives.masked import target_levels
from jepa.pretrained.zoo import MODELS
from jepa.tensorfiles import CheckpointError
from jepa.types import ClipConfig
from jepa.world_model import load_world_model

_WORLDS = (WorldModelObjective, PolicyObjective)


class Frozen(NamedTuple):
    """What makes the latents of a model: ``head`` of a world model's (then ``clip`` is the world model's)."""

    encoder: ClipEncoder
    head: LatentHead | None
    clip: ClipConfig

    def state(self) -> dict[str, Tensor]:
        """The weights, under the names that a ``DecoderObjective`` gives them."""
        parts = {"encoder": self.encoder, "head": self.head}
        return {f"{k}.{n}": v for k, part in parts.items() if part is not None for n, v in part.state_dict().items()}


def load_frozen_model(name: str) -> Frozen:
    """The part of ``name`` that makes latents. Raises ``CheckpointError`` for what cannot be loaded, and for the run of
    a decoder."""
    kind = _kind(name)
    if kind == "decoder":
        raise CheckpointError(f"{name} is the run of a decoder: name the model that it was trained on")
    if kind == "world":
        world = load_world_model(name)
        return Frozen(world.encoder, world.head, world.clip)
    encoder = load(name)
    return Frozen(encoder, None, encoder.clip)


def read_base(name: str) -> tuple[DecoderBase, EncoderConfig, ClipConfig]:
    """What ``name`` is, for a run's config, and its clip. Raises ``CheckpointError``."""
    frozen = load_frozen_model(name)
    latent: LatentConfig | None = None if frozen.head is None else frozen.head.config
    if isinstance(frozen.encoder, Encoder):
        levels = None if latent is not None else target_layers(frozen.encoder, _predicted_levels(name))
        base = DecoderBase(clip=frozen.encoder.clip, levels=levels, latent=latent)
        return base, frozen.encoder.config, frozen.clip
    timm = getattr(frozen.encoder, "config", None)
    assert isinstance(timm, TimmConfig), "encoders are ours or timm's"
    return DecoderBase(clip=frozen.encoder.clip, timm=timm, latent=latent), EncoderConfig(), frozen.clip


def _kind(name: str) -> str:
    """How ``name`` is to be read: as "world", "decoder" or "encoder"."""
    if not os.path.exists(name):
        return "world" if name in MODELS and MODELS[name].family == "vjepa2_ac" else "encoder"
    settings = _settings(name)
    if settings is None:
        return "encoder"
    kind = settings["kind"]
    return "decoder" if kind == "decoder" else "world" if issubclass(OBJECTIVES[kind][1], _WORLDS) else "encoder"


def _settings(name: str) -> dict[str, Any] | None:
    """The objective that the run or checkpoint ``name`` was trained with; None for an exported folder."""
    if os.path.isfile(os.path.join(name, "config.json")):
        return None
    settings: dict[str, Any] = read_run(name, "jepa.load_pretrained")[1]["config"]["objective"]
    return settings


def _predicted_levels(name: str) -> int:
    """How many levels of its encoder the predictor of ``name`` predicts; 1 where there is none."""
    if name in MODELS and not os.path.exists(name):
        return int(MODELS[name].architecture.get("n_output_distillation", 1))
    settings = _settings(name)
    return 1 if settings is None or settings["kind"] != "masked" else int(settings["predictor"].get("levels", 1))


def fingerprint(encoder: nn.Module, head: nn.Module | None = None) -> str:
    """16 hexadecimal digits of the names and values of the weights that make latents."""
    digest = hashlib.sha256()
    for part in (encoder, head):
        for name, tensor in sorted({} if part is None else part.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def target_layers(encoder: ClipEncoder, levels: int) -> tuple[int, ...] | None:
    """The blocks that a predictor of so many levels predicts; None: the last one alone."""
    return target_levels(encoder.config.levels, levels) if isinstance(encoder, Encoder) else None
