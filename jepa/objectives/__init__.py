"""Objectives: one file per method, one line in the registry."""

from __future__ import annotations

from jepa.config import ConfigError
from jepa.models.encoder import EncoderConfig
from jepa.objectives.base import Objective
from jepa.objectives.controller import ControllerConfig, ControllerObjective
from jepa.objectives.decoder import DecoderObjective
from jepa.objectives.decoder_config import DecoderBase, DecoderConfig
from jepa.objectives.latent_action import LatentActionConfig, LatentActionObjective
from jepa.objectives.masked import MaskedConfig, MaskedObjective
from jepa.objectives.pixels import PixelsConfig, PixelsObjective
from jepa.objectives.policy import PolicyObjective
from jepa.objectives.policy_config import PolicyBase, PolicyConfig
from jepa.objectives.regularizers import SigRegConfig, VarianceCovarianceConfig
from jepa.objectives.world_config import WorldModelConfig
from jepa.objectives.world_model import WorldModelObjective
from jepa.types import ClipConfig

ObjectiveConfig = (
    MaskedConfig | PixelsConfig | WorldModelConfig | LatentActionConfig | ControllerConfig | PolicyConfig
    | DecoderConfig
)  # fmt: skip

OBJECTIVES: dict[str, tuple[type[ObjectiveConfig], type[Objective]]] = {
    "masked": (MaskedConfig, MaskedObjective),
    "pixels": (PixelsConfig, PixelsObjective),
    "world_model": (WorldModelConfig, WorldModelObjective),
    "latent_action": (LatentActionConfig, LatentActionObjective),
    "controller": (ControllerConfig, ControllerObjective),
    "policy": (PolicyConfig, PolicyObjective),
    "decoder": (DecoderConfig, DecoderObjective),
}

__all__ = [
    "OBJECTIVES",
    "ControllerConfig",
    "ControllerObjective",
    "DecoderBase",
    "DecoderConfig",
    "DecoderObjective",
    "LatentActionConfig",
    "LatentActionObjective",
    "MaskedConfig",
    "MaskedObjective",
    "Objective",
    "ObjectiveConfig",
    "PixelsConfig",
    "PixelsObjective",
    "PolicyBase",
    "PolicyConfig",
    "PolicyObjective",
    "SigRegConfig",
    "VarianceCovarianceConfig",
    "WorldModelConfig",
    "WorldModelObjective",
    "build_objective",
]


def build_objective(config: ObjectiveConfig, encoder: EncoderConfig, clip: ClipConfig, num_families: int) -> Objective:
    """The objective that ``config`` belongs to, with freshly initialised weights.

    Raises ``ConfigError`` when it needs mask families and there are none, or has no use for them.
    """
    _, objective = OBJECTIVES[config.kind]
    if objective.takes_masks and not num_families:
        raise ConfigError("masks must name at least one mask family, for example {kind: multiblock}")
    if num_families and not objective.takes_masks:
        raise ConfigError(f"masks: objective {config.kind!r} hides nothing: leave masks out")
    return objective(config, encoder, clip, num_families)  # type: ignore[call-arg]  # every method has this signature
