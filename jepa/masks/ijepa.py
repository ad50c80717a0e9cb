"""Multi-block masks of I-JEPA (arXiv 2301.08243, section 3): several target blocks, predicted one by one.

The context is one large block minus all targets, so its size differs between samples; it is brought to a fixed
number without favouring any position (see ``jepa.masks.base``). Targets are never trimmed. On a video every block
lasts for the whole clip.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jepa.config import ConfigError
from jepa.masks.base import Bools, MaskFamily, Seeds, ids_of, pick, uniforms
from jepa.masks.multiblock import block_sizes, check_range, cover
from jepa.types import Mask, TokenGrid

_PILOT_DRAWS = 1024
_PILOT_SIZES = 64
_ROUNDS = 64
_TARGET_SIZE, _CONTEXT_SIZE, _PLACE, _NOISE = 0, 2, 8, 4  # streams of random numbers; _PLACE + round


@dataclass(frozen=True, kw_only=True, slots=True)
class IJepaConfig:
    """``num_targets`` blocks of ``target_scale`` of the image each (height / width within ``aspect_ratio``).

    All targets of a batch have one size, drawn once per batch. The context is a square-ish block that covers
    ``context_scale`` of the image, minus the targets.
    """

    kind: Literal["ijepa"] = "ijepa"
    num_targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    aspect_ratio: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)

    def __post_init__(self) -> None:
        if self.num_targets < 1:
            raise ValueError(f"num_targets must be at least 1, not {self.num_targets}")
        check_range("target_scale", self.target_scale, upper=1.0)
        check_range("context_scale", self.context_scale, upper=1.0)
        check_range("aspect_ratio", self.aspect_ratio)


class IJepa(MaskFamily):
    """Draws I-JEPA masks. The numbers of target and context tokens depend on the grid and the target size alone."""

    def __init__(self, config: IJepaConfig, grid: TokenGrid) -> None:
        super().__init__(grid)
        self.config = config
        self.lattice = TokenGrid(1, grid.h, grid.w)
        # a grid that is too small fails here, not in the middle of a run
        for shared in np.arange(_PILOT_SIZES, dtype=np.uint64)[:, None]:
            _context_count(config, self.lattice, *_target_size(config, self.lattice, shared))

    def build(self, seeds: Seeds, shared: Seeds) -> Mask:
        """Context ``[B, Nc]`` and targets ``[B, M, Nt]``; targets may overlap each other, never the context."""
        size = _target_size(self.config, self.lattice, shared)
        count = _context_count(self.config, self.lattice, *size)
        targets, context = self._draw(seeds, size, count)
        # cells inside the context block come first, then other cells that are no target
        likeness = context + (~np.any(targets, axis=1)).astype(np.float64)
        chosen = pick(likeness, count, uniforms(seeds, _NOISE, self.lattice.size))
        blocks = ids_of(targets.reshape(-1, self.lattice.size), self.grid)
        return Mask(ids_of(chosen, self.grid), blocks.unflatten(0, (len(seeds), self.config.num_targets)))

    def _draw(self, seeds: Seeds, size: tuple[int, int], count: int) -> tuple[Bools, Bools]:
        """Targets ``[B, M, P]`` and context ``[B, P]``; targets that leave fewer than ``count`` cells are redrawn."""
        targets, context = _blocks(self.config, self.lattice, seeds, size, 0)
        for number in range(1, _ROUNDS):
            crowded = np.any(targets, axis=1).sum(axis=1) > self.lattice.size - count
            if not crowded.any():
                return targets, context
            targets[crowded], context[crowded] = _blocks(self.config, self.lattice, seeds[crowded], size, number)
        raise AssertionError(f"no I-JEPA mask with {count} context cells in {_ROUNDS} rounds")


def _target_size(config: IJepaConfig, lattice: TokenGrid, shared: Seeds) -> tuple[int, int]:
    height, width = block_sizes(shared, lattice, config.target_scale, config.aspect_ratio, stream=_TARGET_SIZE)
    return int(height[0]), int(width[0])


def _blocks(
    config: IJepaConfig, lattice: TokenGrid, seeds: Seeds, size: tuple[int, int], number: int
) -> tuple[Bools, Bools]:
    """Target blocks ``[B, M, P]`` and context blocks without them ``[B, P]``, the ``number``-th draw."""
    place = uniforms(seeds, _PLACE + number, 2, config.num_targets + 1)
    rows, columns = cover(place[:, 0, 1:], size[0], lattice.h), cover(place[:, 1, 1:], size[1], lattice.w)
    targets = (rows[..., :, None] & columns[..., None, :]).reshape(*rows.shape[:2], -1)
    height, width = block_sizes(seeds, lattice, config.context_scale, (1.0, 1.0), stream=_CONTEXT_SIZE)
    rows, columns = cover(place[:, 0, 0], height, lattice.h), cover(place[:, 1, 0], width, lattice.w)
    block = (rows[:, :, None] & columns[:, None, :]).reshape(len(seeds), -1)
    return targets, block & ~np.any(targets, axis=1)


@functools.cache
def _context_count(config: IJepaConfig, lattice: TokenGrid, height: int, width: int) -> int:
    """Lowest tenth of the context's size over many draws with a fixed seed.

    So low that targets hardly ever have to be redrawn for leaving too little, which would favour targets that overlap;
    the official cut to the smallest context of the batch is lower still for batches of more than ten.
    """
    seeds = np.random.default_rng(0).integers(0, 2**64, size=_PILOT_DRAWS, dtype=np.uint64)
    parts = [_blocks(config, lattice, part, (height, width), 0)[1] for part in np.array_split(seeds, 16)]
    count = int(np.quantile(np.concatenate(parts).sum(axis=1), 0.1))
    if count < 1:
        raise ConfigError(
            f"masks: {config.num_targets} target blocks of {height}x{width} patches leave no context on a "
            f"{lattice.h}x{lattice.w} grid; use a larger crop_size, a smaller patch_size, or fewer or smaller targets"
        )
    return count
