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

_CANDIDATES = 2  # more would favour targets that lie apart, as those leave a context near the wanted size
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
        targets, free, context = self._feasible(seeds, size, count)
        # cells inside the context block come first, then other cells that are no target
        chosen = pick(context + free.astype(np.float64), count, uniforms(seeds, _NOISE, self.lattice.size))
        blocks = ids_of(targets.reshape(-1, self.lattice.size), self.grid)
        return Mask(ids_of(chosen, self.grid), blocks.unflatten(0, (len(seeds), self.config.num_targets)))

    def _feasible(self, seeds: Seeds, size: tuple[int, int], count: int) -> tuple[Bools, Bools, Bools]:
        """Targets ``[B, M, P]``, cells that are no target ``[B, P]`` and context ``[B, P]``, nearest to ``count``."""
        row, cells = np.arange(len(seeds)), self.lattice.size
        found_targets = np.zeros((len(seeds), self.config.num_targets, cells), dtype=bool)
        found_free = np.zeros((len(seeds), cells), dtype=bool)
        found_context = np.zeros((len(seeds), cells), dtype=bool)
        for number in range(_ROUNDS):
            targets, context = _candidates(self.config, self.lattice, seeds, size, _CANDIDATES, number)
            free: Bools = ~np.any(targets, axis=2)
            best = (np.abs(context.sum(axis=2) - count) + cells * (free.sum(axis=2) < count)).argmin(axis=1)
            missing = found_free.sum(axis=1) < count  # rows that no earlier round could fill
            chosen = row[missing], best[missing]
            found_targets[missing], found_free[missing] = targets[chosen], free[chosen]
            found_context[missing] = context[chosen]
            if (found_free.sum(axis=1) >= count).all():
                return found_targets, found_free, found_context
        raise AssertionError(f"no I-JEPA mask with {count} context cells in {_ROUNDS} rounds")


def _target_size(config: IJepaConfig, lattice: TokenGrid, shared: Seeds) -> tuple[int, int]:
    height, width = block_sizes(shared, lattice, config.target_scale, config.aspect_ratio, stream=_TARGET_SIZE)
    return int(height[0]), int(width[0])


def _candidates(
    config: IJepaConfig, lattice: TokenGrid, seeds: Seeds, size: tuple[int, int], candidates: int, number: int
) -> tuple[Bools, Bools]:
    """Target blocks ``[B, K, M, P]`` and contexts ``[B, K, P]`` (context block minus targets)."""
    height, width = size
    place = uniforms(seeds, _PLACE + number, 2, candidates, config.num_targets + 1)
    rows, columns = cover(place[:, 0, :, 1:], height, lattice.h), cover(place[:, 1, :, 1:], width, lattice.w)
    targets = (rows[..., :, None] & columns[..., None, :]).reshape(*rows.shape[:3], -1)
    tall, wide = block_sizes(seeds, lattice, config.context_scale, (1.0, 1.0), stream=_CONTEXT_SIZE)
    rows = cover(place[:, 0, :, 0], tall[:, None], lattice.h)
    columns = cover(place[:, 1, :, 0], wide[:, None], lattice.w)
    block = (rows[..., :, None] & columns[..., None, :]).reshape(*rows.shape[:2], -1)
    return targets, block & ~targets.any(axis=2)


@functools.cache
def _context_count(config: IJepaConfig, lattice: TokenGrid, height: int, width: int) -> int:
    """Lower quartile of the context's size over many draws with a fixed seed: three draws in four have enough."""
    seeds = np.random.default_rng(0).integers(0, 2**64, size=_PILOT_DRAWS, dtype=np.uint64)
    parts = [_candidates(config, lattice, part, (height, width), 1, 0)[1] for part in np.array_split(seeds, 16)]
    count = int(np.quantile(np.concatenate(parts).sum(axis=2), 0.25))
    if count < 1:
        raise ConfigError(
            f"masks: {config.num_targets} target blocks of {height}x{width} patches leave no context on a "
            f"{lattice.h}x{lattice.w} grid; use a larger crop_size, a smaller patch_size, or fewer or smaller targets"
        )
    return count
