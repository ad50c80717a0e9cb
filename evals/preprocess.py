"""What happens to features before a probe sees them: checks, the held-out split, token pooling, standardising."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.distributed import to_float64
from jepa.types import TokenGrid


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


def standardiser(x: Tensor, rows: Tensor, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation ``[D]`` (float32) of ``x[rows]`` over all axes but the last.

    Dimensions that do not vary get 0, so that noise is never blown up. Summed in float64, chunk by chunk.
    """
    total = to_float64(torch.zeros(x.shape[-1], device=x.device))
    square, count = torch.zeros_like(total), 0
    shift = to_float64(x[rows[:chunk].to(x.device)].flatten(0, -2)).mean(dim=0)  # near the mean: no cancellation
    for part in rows.split(chunk):
        values = to_float64(x[part.to(x.device)].flatten(0, -2)) - shift
        total += values.sum(dim=0)
        square += values.square().sum(dim=0)
        count += len(values)
    mean = total / count
    std = (square / count - mean.square()).clamp_min(0).sqrt()
    inverse = torch.where(std > 1e-5 * std.max(), 1 / std, torch.zeros_like(std))
    return (mean + shift).float().to(x.device), inverse.float().to(x.device)


def pool_cells(tokens: Tensor, grid: TokenGrid, cells: tuple[int, int, int]) -> Tensor:
    """Tokens ``[K, N, D]`` averaged within ``cells`` (time, rows, columns) parts of their grid: ``[K, cells, D]``."""
    if any(count > size for count, size in zip(cells, grid, strict=True)):
        raise ValueError(f"cells {cells} must not exceed the token grid {tuple(grid)}")
    maps = tokens.transpose(1, 2).unflatten(2, tuple(grid))
    return F.adaptive_avg_pool3d(maps, cells).flatten(2).transpose(1, 2)


def arrange(x: Tensor, attentive: bool, token_pool: tuple[int, int, int], grid: TokenGrid | None) -> Tensor:
    """Tokens for an attentive probe (pooled on their lattice when asked), their mean for the others."""
    if not attentive:
        return x if x.dim() == 2 else x.mean(dim=1, dtype=torch.float32)
    if x.dim() == 2:
        return x[:, None]
    if token_pool == (1, 1, 1):
        return x
    if grid is None or grid.size != x.shape[1]:
        raise ValueError(f"token_pool {token_pool} needs the grid of the {x.shape[1]} tokens, not {grid}")
    if any(size % pool for size, pool in zip(grid, token_pool, strict=True)):
        raise ValueError(f"token_pool {token_pool} must divide the token grid {tuple(grid)}")
    t, h, w = (size // pool for size, pool in zip(grid, token_pool, strict=True))
    return pool_cells(x, grid, (t, h, w))


def check(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, num_classes: int | None) -> int:
    """The number of classes, or a ``ValueError`` that says why these features and labels cannot be probed."""
    for name, features, labels in (("training", x, y), ("test", x_test, y_test)):
        if features.dim() not in (2, 3) or labels.shape != features.shape[:1] or len(labels) < 2:
            shapes = f"features {tuple(features.shape)}, labels {tuple(labels.shape)}"
            raise ValueError(f"{name} features must be [K, N, D] or [K, D] with K >= 2 labels; got {shapes}")
        if labels.min() < 0:
            raise ValueError(f"a {name} label is negative: drop unlabelled clips before a probe")
        if not torch.isfinite(features.sum(dtype=torch.float64)):
            raise ValueError(f"the {name} features hold NaN or infinity: the encoder has diverged")
    if x.shape[1:] != x_test.shape[1:]:
        raise ValueError(f"training and test features differ in shape: {tuple(x.shape[1:])}, {tuple(x_test.shape[1:])}")
    classes = num_classes or int(torch.maximum(y.max(), y_test.max())) + 1
    if len(y.unique()) < 2:
        raise ValueError("the training labels hold a single class; a probe needs at least two")
    return classes
