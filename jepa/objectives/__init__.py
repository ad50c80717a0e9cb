"""Objectives: one file per method, one line in the registry."""

from __future__ import annotations

from collections.abc import Callable

from jepa.models.encoder import EncoderConfig
from jepa.objectives.base import Objective
from jepa.objectives.masked import MaskedConfig, MaskedObjective
from jepa.objectives.pixels import PixelsConfig, PixelsObjective
from jepa.objectives.regularizers import SigRegConfig, VarianceCovarianceConfig
from jepa.types import ClipConfig

ObjectiveConfig = MaskedConfig | PixelsConfig

OBJECTIVES: dict[str, tuple[type[ObjectiveConfig], Callable[..., Objective]]] = {
    "masked": (MaskedConfig, MaskedObjective),
    "pixels": (PixelsConfig, PixelsObjective),
}

__all__ = [
    "OBJECTIVES",
    "MaskedConfig",
    "MaskedObjective",
    "Objective",
    "ObjectiveConfig",
    "PixelsConfig",
    "PixelsObjective",
    "SigRegConfig",
    "VarianceCovarianceConfig",
    "build_objective",
]


def build_objective(config: ObjectiveConfig, encoder: EncoderConfig, clip: ClipConfig, num_families: int) -> Objective:
    """The objective that ``config`` belongs to, with freshly initialised weights."""
    _, objective = OBJECTIVES[config.kind]
    return objective(config, encoder, clip, num_families)
