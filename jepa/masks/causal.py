"""Causal masks: the clip's beginning is context, what comes after it is predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from jepa.config import ConfigError
from jepa.masks.base import MaskFamily, Seeds, between, uniforms
from jepa.masks.multiblock import check_range
from jepa.types import Mask, TokenGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class CausalConfig:
    """``context``: smallest and largest share of the clip's tubelets that are seen; drawn once per batch, rounded.

    ``horizon``: how many tubelets after the context are predicted; ``None``: all the rest.
    """

    kind: Literal["causal"] = "causal"
    context: tuple[float, float] = (0.5, 0.5)
    horizon: int | None = None

    def __post_init__(self) -> None:
        check_range("context", self.context, upper=1.0)
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"horizon must be at least 1 tubelet, not {self.horizon}")


class Causal(MaskFamily):
    """Splits every clip of a batch at one time."""

    def __init__(self, config: CausalConfig, grid: TokenGrid) -> None:
        super().__init__(grid)
        self.config = config
        if grid.t < 2:
            raise ConfigError(
                "masks: causal masks need at least 2 tubelets in time, this grid has 1; use a larger num_frames or a "
                "smaller tubelet_size"
            )

    def build(self, seeds: Seeds, shared: Seeds) -> Mask:
        """Context ``[B, seen * h * w]`` and targets ``[B, 1, predicted * h * w]``, the same for every sample."""
        share = float(between(*self.config.context, uniforms(shared, 0))[0])
        seen = min(max(round(share * self.grid.t), 1), self.grid.t - 1)
        end = self.grid.t if self.config.horizon is None else min(seen + self.config.horizon, self.grid.t)
        cells = self.grid.h * self.grid.w
        context, target = torch.arange(seen * cells), torch.arange(seen * cells, end * cells)
        return Mask(context.repeat(len(seeds), 1), target.repeat(len(seeds), 1, 1))
