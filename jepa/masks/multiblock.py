"""Multi-block masks of V-JEPA (arXiv 2404.08471, section 3.2): the target is a union of blocks, the context the rest.

Two families are usual: 8 short-range blocks of 0.15 of the frame each, and 2 long-range blocks of 0.7 each, all of
them lasting for the whole clip.

The official code makes a batch rectangular by cutting every sample's sorted ids to the smallest number in the batch,
so that the tokens it throws away are always the last ones: late tubelets and bottom rows. ``reference=True``
reproduces that for comparison. Otherwise see ``jepa.masks.base``: rates depend on the block geometry alone.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from jepa.config import ConfigError
from jepa.masks.base import Bools, Floats, Ints, MaskFamily, Seeds, between, ids_of, pick, uniforms
from jepa.types import Mask, TokenGrid

_CANDIDATES = 4  # more would trim less, but would favour unions of typical size over the family's true geometry
_PILOT_DRAWS = 2048
_PILOT_SIZES = 64
_SCALE, _ASPECT, _TIME, _PLACE, _NOISE, _LEVEL = range(6)  # streams of random numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiBlockConfig:
    """``num_blocks`` blocks that may overlap.

    ``scale``: smallest and largest share of the frame's area that one block covers. ``aspect_ratio``: smallest and
    largest height / width of a block. ``duration``: smallest and largest share of the clip's length that a block
    lasts. All blocks of a batch have one size.

    ``levels``: how many numbers of targets the batches alternate between for one block size. Unions differ in size,
    and 4 levels follow their distribution well; 1 gives the fewest distinct shapes (for ``torch.compile``; one shape
    only if ``aspect_ratio`` and ``scale`` are fixed too), at the price of rates that are off by a few per cent more.
    ``reference``: truncate as the official code does (module text).
    """

    kind: Literal["multiblock"] = "multiblock"
    num_blocks: int = 8
    scale: tuple[float, float] = (0.15, 0.15)
    aspect_ratio: tuple[float, float] = (0.75, 1.5)
    duration: tuple[float, float] = (1.0, 1.0)
    levels: int = 4
    reference: bool = False

    def __post_init__(self) -> None:
        for name in ("num_blocks", "levels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        check_range("scale", self.scale, upper=1.0)
        check_range("duration", self.duration, upper=1.0)
        check_range("aspect_ratio", self.aspect_ratio)


def check_range(name: str, value: tuple[float, float], upper: float = float("inf")) -> None:
    """Raise ``ValueError`` unless ``value`` is (smallest, largest), both above 0 and at most ``upper``."""
    if not 0 < value[0] <= value[1] <= upper:
        limit = "" if upper == float("inf") else f" and at most {upper:g}"
        raise ValueError(f"{name} must be [smallest, largest], above 0{limit}, not {list(value)}")


def block_sizes(
    seeds: Seeds, grid: TokenGrid, scale: tuple[float, float], aspect: tuple[float, float], stream: int = 0
) -> tuple[Ints, Ints]:
    """Heights and widths in patches, int64 ``[B]``, of blocks with random area and aspect ratio (height / width)."""
    area = grid.h * grid.w * between(*scale, uniforms(seeds, stream + _SCALE))
    ratio = between(*aspect, uniforms(seeds, stream + _ASPECT))
    height, width = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    return np.clip(height, 1, grid.h).astype(np.int64), np.clip(width, 1, grid.w).astype(np.int64)


def cover(place: Floats, length: int | Ints, total: int) -> Bools:
    """Which of ``total`` positions each interval of ``length`` covers: ``place`` in [0, 1) to ``[*place, total]``.

    ``length`` is one number, or an array of the shape of ``place``; every start that keeps the interval inside has
    the same chance.
    """
    start = (place * (total - length + 1)).astype(np.int64)
    position = np.arange(total)
    return (position >= start[..., None]) & (position < (start + length)[..., None])


class MultiBlock(MaskFamily):
    """Draws multi-block masks. Blocks of full duration are drawn on one time slice and repeated over time."""

    def __init__(self, config: MultiBlockConfig, grid: TokenGrid) -> None:
        super().__init__(grid)
        self.config = config
        full = config.duration == (1.0, 1.0)
        self.lattice = TokenGrid(1 if full else grid.t, grid.h, grid.w)
        # a grid that is too small fails here, not in the middle of a run
        for shared in np.arange(_PILOT_SIZES, dtype=np.uint64)[:, None]:
            self.target_counts(self.block_size(shared))

    def block_size(self, shared: Seeds) -> TokenGrid:
        """Extent of the batch's blocks in cells of the lattice; all blocks of a batch have one size."""
        height, width = block_sizes(shared, self.lattice, self.config.scale, self.config.aspect_ratio)
        length = round(float(between(*self.config.duration, uniforms(shared, _TIME))[0]) * self.lattice.t)
        return TokenGrid(min(max(length, 1), self.lattice.t), int(height[0]), int(width[0]))

    def target_counts(self, block: TokenGrid) -> tuple[int, ...]:
        """The numbers of lattice cells that become targets for blocks of this size, one of which a batch draws."""
        return _target_counts(self.config.num_blocks, self.lattice, block, self.config.levels)

    def build(self, seeds: Seeds, shared: Seeds) -> Mask:
        """Targets ``[B, 1, Nt]`` and context ``[B, N - Nt]``; both sizes depend on ``shared`` alone."""
        block = self.block_size(shared)
        counts = self.target_counts(block)
        count = counts[int(uniforms(shared, _LEVEL)[0] * len(counts))]
        unions = _unions(self.config.num_blocks, self.lattice, block, seeds, _CANDIDATES + 1)
        partner, unions = unions[:, 0], unions[:, 1:]
        sizes = unions.sum(axis=2)
        best, row = np.abs(sizes - count).argmin(axis=1), np.arange(len(seeds))
        # Cells to add come from a second union, cells to drop are those outside of it: as both are draws of the same
        # geometry, what is added somewhere on average equals what is dropped there.
        likeness = 2 * unions[row, best].astype(np.float64) + partner
        target = pick(likeness, count, uniforms(seeds, _NOISE, self.lattice.size))
        drawn = sizes[row, best]
        # a mean over samples: the mean over processes is then that of the whole batch
        discarded = (np.maximum(drawn - count, 0) / np.maximum(drawn, 1)).mean()
        return Mask(ids_of(~target, self.grid), ids_of(target, self.grid)[:, None], float(discarded))


class ReferenceMultiBlock(MultiBlock):
    """The official truncation: ids cut to the smallest number in the batch, the last ones first."""

    def draw(self, rng: np.random.Generator, batch_size: int, rows: slice | list[int] | None = None) -> Mask:
        seeds = rng.integers(0, 2**64, size=batch_size + 1, dtype=np.uint64)
        shared, seeds = seeds[:1], seeds[1:]
        unions = _unions(self.config.num_blocks, self.lattice, self.block_size(shared), seeds, 1)[:, 0]
        # the official sampler redraws a mask that leaves no context; here such a sample frees one random cell
        full = unions.all(axis=1)
        unions[full, (uniforms(seeds, _NOISE)[full] * self.lattice.size).astype(np.int64)] = False
        target, context = self._first(unions), self._first(~unions)
        kept = target.shape[1] * batch_size / (unions.sum() * (self.grid.t // self.lattice.t))
        rows = rows or slice(None)
        return Mask(context[rows], target[rows][:, None], float(1 - kept))

    def _first(self, member: Bools) -> torch.Tensor:
        tokens = np.tile(member, (1, self.grid.t // self.lattice.t))
        count = tokens.sum(axis=1).min()
        return ids_of(tokens & (np.cumsum(tokens, axis=1) <= count), self.grid)


def _unions(num_blocks: int, lattice: TokenGrid, block: TokenGrid, seeds: Seeds, candidates: int) -> Bools:
    """Candidate unions of ``num_blocks`` blocks of size ``block``, bool ``[B, K, P]``."""
    place = uniforms(seeds, _PLACE, 3, candidates, num_blocks)
    rows = cover(place[:, 0], block.h, lattice.h).astype(np.float32)  # [B, K, M, h]
    columns = cover(place[:, 1], block.w, lattice.w).astype(np.float32)
    if block.t == lattice.t:
        union = rows.swapaxes(2, 3) @ columns > 0
        return np.tile(union.reshape(len(seeds), candidates, -1), (1, 1, lattice.t))
    times = cover(place[:, 2], block.t, lattice.t).astype(np.float32)
    slices = (rows[..., :, None] * columns[..., None, :]).reshape(*rows.shape[:3], -1)  # [B, K, M, h*w]
    return (times.swapaxes(2, 3) @ slices > 0).reshape(len(seeds), candidates, -1)


@functools.cache
def _target_counts(num_blocks: int, lattice: TokenGrid, block: TokenGrid, levels: int) -> tuple[int, ...]:
    """Sizes of the union: the means of ``levels`` equally likely slices of its distribution, from draws with a fixed
    seed. Raises ``ConfigError`` where a typical union leaves no context.
    """
    seeds = np.random.default_rng(0).integers(0, 2**64, size=_PILOT_DRAWS, dtype=np.uint64)
    parts = [_unions(num_blocks, lattice, block, part, 1).sum(axis=2) for part in np.array_split(seeds, 16)]
    sizes = np.sort(np.concatenate(parts), axis=None)
    if round(float(sizes.mean())) >= lattice.size:
        raise ConfigError(
            f"masks: {num_blocks} blocks of {block.h}x{block.w} patches usually cover the whole "
            f"{lattice.h}x{lattice.w} grid and leave no context; use a larger crop_size, a smaller patch_size, or "
            "fewer or smaller blocks"
        )
    return tuple(min(round(float(part.mean())), lattice.size - 1) for part in np.array_split(sizes, levels))
