"""What happens to features before a probe sees them: checks, the held-out split, token pooling, standardising."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from evals.features.rows import Rows
from jepa.types import TokenGrid

CHUNK_BYTES = 8 * 2**20  # of features that are worked on at once outside training, in their own type
Arrange = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Inputs:
    """Features as a probe sees them: clips of ``rows`` on ``device``, ``arranged`` (``[B, R, N, D]`` to
    ``[B, R, N', D]``). Nothing is read before it is asked for."""

    rows: Rows
    device: torch.device
    arranged: Arrange | None = None
    name: str = "training"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(K, R, N', D)."""
        clips, *shape = self.rows.shape
        small = self._arrange(torch.empty(1, *shape, device="meta"))
        return clips, *small.shape[1:]  # type: ignore[return-value]

    def chunks(self, rows: Tensor) -> Iterator[Tensor]:
        """All views of clips ``rows``, in order, some ``[B, R, N', D]`` at a time.

        Raises ``ValueError`` where they are not finite.
        """
        _, views, tokens, width = self.rows.shape
        size = CHUNK_BYTES // (self.rows.blocks[0].element_size() * views * tokens * width)
        for part in self.rows.pieces(rows.split(min(256, max(1, size)))):
            x = part.to(self.device)
            if not torch.isfinite(x.sum(dtype=torch.float32 if x.device.type == "mps" else torch.float64)):
                raise ValueError(f"the {self.name} features hold NaN or infinity: the encoder has diverged")
            yield self._arrange(x)

    def batches(self, plan: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """One view ``[B, N', D]`` of each clip, for every pair (rows, view) of ``plan``."""
        for x in self.rows.stream(plan):
            yield self._arrange(x.to(self.device)[:, None])[:, 0]

    def load(self, most_bytes: float) -> Inputs:
        """The same, arranged, in memory on the device, if that takes at most ``most_bytes``; else as it is."""
        clips, *shape = self.shape
        views = self.rows.shape[1]
        if self.rows.draws != views or not clips:
            return self  # views are made anew whenever they are asked for
        dtype = self.rows.blocks[0].dtype if self.arranged is None else torch.float32
        if clips * math.prod(shape) * dtype.itemsize > most_bytes:
            return self
        whole, done = torch.empty(clips, *shape, dtype=dtype, device=self.device), 0
        for x in self.chunks(torch.arange(clips)):
            whole[done : done + len(x)] = x
            done += len(x)
        return replace(self, rows=Rows.of(whole), arranged=None)

    def _arrange(self, x: Tensor) -> Tensor:
        return x if self.arranged is None else self.arranged(x)


def arrangement(
    attentive: bool, shape: tuple[int, int, int, int], pool: tuple[int, int, int], grid: TokenGrid | None
) -> Arrange | None:
    """How features ``(K, R, N, D)`` become what a probe sees: tokens, pooled on their grid when asked, for an attentive
    one, their mean for the others; ``None``: as they are. Raises ``ValueError`` for a pool that does not suit the grid.
    """
    if shape[2] == 1 or (attentive and pool == (1, 1, 1)):
        return None
    if not attentive:
        return _mean_token
    if grid is None or grid.size != shape[2]:
        raise ValueError(f"token_pool {pool} needs the grid of the {shape[2]} tokens, not {grid}")
    if any(size % factor for size, factor in zip(grid, pool, strict=True)):
        raise ValueError(f"token_pool {pool} must divide the token grid {tuple(grid)}")
    t, h, w = (size // factor for size, factor in zip(grid, pool, strict=True))
    return functools.partial(_pooled, grid=grid, cells=(t, h, w))


def _mean_token(x: Tensor) -> Tensor:
    return x.mean(dim=2, keepdim=True, dtype=torch.float32)


def _pooled(x: Tensor, grid: TokenGrid, cells: tuple[int, int, int]) -> Tensor:
    return pool_cells(x.flatten(0, 1), grid, cells).unflatten(0, x.shape[:2])


def split_rows(labels: Tensor, holdout: float, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers to fit on and to choose heads on; class by class, every class keeps at least one row to fit on."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels.cpu()[order]
    fit, held = [], []
    for label in shuffled.unique():
        rows = order[shuffled == label]
        count = min(max(round(holdout * len(rows)), 1), len(rows) - 1)
        held.append(rows[:count])
        fit.append(rows[count:])
    fit_rows, held_rows = torch.cat(fit).sort().values, torch.cat(held).sort().values
    if len(held_rows) == 0:
        raise ValueError("every class has a single training clip: nothing is left to choose a probe head on")
    return fit_rows, held_rows


def standardiser(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation ``[D]`` (float32) of ``parts`` ``[..., D]`` over all axes but the last.

    Dimensions that do not vary get 0, so that noise is never blown up. Summed in float64, part by part.
    """
    total = square = shift = torch.zeros(())
    count = 0
    for part in parts:
        values = (part.cpu() if part.device.type == "mps" else part).flatten(0, -2)  # MPS has no float64
        if not count:
            shift = values.mean(dim=0, dtype=torch.float64)  # near the mean: no cancellation
        values = values - shift  # float64, in a single pass
        total = total.to(values) + values.sum(dim=0)
        square = square.to(values) + values.square_().sum(dim=0)
        count += len(values)
        device = part.device
    assert count, "statistics need at least one part"
    mean = total / count
    std = (square / count - mean.square()).clamp_min(0).sqrt()
    inverse = torch.where(std > 1e-5 * std.max(), 1 / std, torch.zeros_like(std))
    return (mean + shift).float().to(device), inverse.float().to(device)


def pool_cells(tokens: Tensor, grid: TokenGrid, cells: tuple[int, int, int]) -> Tensor:
    """Tokens ``[K, N, D]`` averaged within ``cells`` (time, rows, columns) parts of their grid: ``[K, cells, D]``."""
    if any(count > size for count, size in zip(cells, grid, strict=True)):
        raise ValueError(f"cells {cells} must not exceed the token grid {tuple(grid)}")
    maps = tokens.transpose(1, 2).unflatten(2, tuple(grid))
    return F.adaptive_avg_pool3d(maps, cells).flatten(2).transpose(1, 2)


def check(train: Rows, y: Tensor, test: Rows, y_test: Tensor, num_classes: int | None) -> int:
    """The number of classes, or a ``ValueError`` that says why these features and labels cannot be probed."""
    for name, features, labels, least in (("training", train, y, 2), ("test", test, y_test, 1)):
        if labels.shape != (len(features),) or len(labels) < least:
            raise ValueError(
                f"{name} features must be at least {least} clips with one label each; got features "
                f"{features.shape} (clips, views, tokens, width) and labels {tuple(labels.shape)}"
            )
        if labels.is_floating_point():
            raise ValueError(f"{name} labels are class numbers from 0, int64; got {labels.dtype}")
        if labels.min() < 0:
            raise ValueError(f"a {name} label is negative: drop unlabelled clips before a probe")
    if train.shape[2:] != test.shape[2:]:
        raise ValueError(
            f"training and test features differ in shape: (tokens, width) {train.shape[2:]}, {test.shape[2:]}"
        )
    highest = max(int(y.max()), int(y_test.max()))
    if num_classes is not None and highest >= num_classes:
        raise ValueError(f"a label is {highest}, but there are {num_classes} classes, counted from 0")
    if len(y.unique()) < 2:
        raise ValueError("the training labels hold a single class; a probe needs at least two")
    return num_classes or highest + 1
