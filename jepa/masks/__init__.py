"""Mask families: how the tokens of a clip are split into context and targets."""

from __future__ import annotations

from collections.abc import Sequence

from jepa.masks.base import MaskFamily
from jepa.masks.causal import Causal, CausalConfig
from jepa.masks.ijepa import IJepa, IJepaConfig
from jepa.masks.multiblock import MultiBlock, MultiBlockConfig, ReferenceMultiBlock
from jepa.masks.tube import Tube, TubeConfig
from jepa.types import TokenGrid

MaskConfig = MultiBlockConfig | IJepaConfig | TubeConfig | CausalConfig

__all__ = [
    "CausalConfig",
    "IJepaConfig",
    "MaskConfig",
    "MaskFamily",
    "MultiBlockConfig",
    "TubeConfig",
    "build_masks",
]


def build_masks(configs: Sequence[MaskConfig], grid: TokenGrid) -> list[MaskFamily]:
    """One ``MaskFamily`` per config, for clips of ``grid``.

    Raises ``ConfigError`` when the grid is too small for one of them.
    """
    return [_build(config, grid) for config in configs]


def _build(config: MaskConfig, grid: TokenGrid) -> MaskFamily:
    match config:
        case MultiBlockConfig():
            return (ReferenceMultiBlock if config.reference else MultiBlock)(config, grid)
        case IJepaConfig():
            return IJepa(config, grid)
        case TubeConfig():
            return Tube(config, grid)
        case CausalConfig():
            return Causal(config, grid)
