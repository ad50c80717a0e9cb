"""Random tube masks (VideoMAE, arXiv 2203.12602, section 3.2): random patches, hidden for the whole clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from jepa.config import ConfigError
from jepa.masks.base import MaskFamily, Seeds, ids_of, pick, uniforms
from jepa.types import Mask, TokenGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class TubeConfig:
    """``ratio``: share of the patches of a frame that become targets, the same patches at every time."""

    kind: Literal["tube"] = "tube"
    ratio: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio must lie between 0 and 1, not {self.ratio}")


class Tube(MaskFamily):
    """Draws random tube masks; every patch has exactly the same chance."""

    def __init__(self, config: TubeConfig, grid: TokenGrid) -> None:
        super().__init__(grid)
        self.cells = grid.h * grid.w
        self.count = round(config.ratio * self.cells)
        if not 0 < self.count < self.cells:
            side = "context" if self.count else "targets"
            raise ConfigError(
                f"masks: ratio {config.ratio} of a {grid.h}x{grid.w} grid leaves no {side}; use a larger crop_size, a "
                "smaller patch_size or another ratio"
            )

    def build(self, seeds: Seeds, shared: Seeds) -> Mask:
        """Targets ``[B, 1, Nt]`` and context ``[B, N - Nt]``."""
        nothing = np.zeros((len(seeds), self.cells), dtype=bool)
        target = pick(nothing, self.count, uniforms(seeds, 0, self.cells))
        return Mask(ids_of(~target, self.grid), ids_of(target, self.grid)[:, None])
