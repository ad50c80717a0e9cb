"""Objectives: one file per method, one line in the registry."""

from __future__ import annotations

from jepa.models.encoder import EncoderConfig
from jepa.objectives.base import Objective
from jepa.objectives.masked import MaskedConfig, MaskedObjective
from jepa.objectives.regularizers import SigRegConfig, VarianceCovarianceConfig
from jepa.types import ClipConfig

OBJECTIVES: dict[str, tuple[type[MaskedConfig], type[MaskedObjective]]] = {
    "masked": (MaskedConfig, MaskedObjective),
}

ObjectiveConfig = MaskedConfig  # a union of the config classes above, once there are several

__all__ = [
    "OBJECTIVES",
    "MaskedConfig",
    "MaskedObjective",
    "Objective",
    "ObjectiveConfig",
    "SigRegConfig",
    "VarianceCovarianceConfig",
    "build_objective",
]


def build_objective(config: ObjectiveConfig, encoder: EncoderConfig, clip: ClipConfig, num_families: int) -> Objective:
    """The objective that ``config`` belongs to, with freshly initialised weights."""
    _, objective = OBJECTIVES[config.kind]
    return objective(config, encoder, clip, num_families)
