"""Masks that a user names: token ids, cells of the grid, or stretches of time.

Shape legend: B batch, N tokens, t/h/w token grid.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.types import Mask, TokenGrid

Places: TypeAlias = int | str | slice | Sequence[int] | NDArray[Any] | Tensor
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(f|frames?|s|seconds?)")


class Tubelet(NamedTuple):
    """How much time a tubelet covers."""

    frames: int
    seconds: float


def chosen_mask(
    grid: TokenGrid, context: Places | None, target: Places | None, batch_size: int, tubelet: Tubelet
) -> Mask:
    """What is seen and what is predicted, as a ``Mask`` of one block, ids in the order in which they were given.

    Both take: token ids ``[N]`` or ``[B, N]``; a bool mask ``[t, h, w]`` or ``[B, t, h, w]``; a slice of tubelets. A
    number is a count of tubelets: the first ones for ``context``, those that follow the context for ``target``; so is
    a time in words ("6 frames", "0.5 s"), which has to fall on a border between tubelets. ``target="future"`` is all
    that follows the context. What is left out is the rest; with neither given, the first half of the clip is seen.
    Raises ``ValueError`` saying which of the two is wrong, and how.
    """
    timed = target is None or isinstance(target, (int, str))
    if context is None and timed:
        if grid.t < 2:
            raise ValueError("the clip is one tubelet long and has no second half: name context or target places")
        context = grid.t // 2
    target_ids = None
    if not timed:
        assert target is not None
        target_ids = _rows("target", target, grid, batch_size, 0, tubelet)
    if context is None:
        assert target_ids is not None
        return Mask(_rest("target", target_ids, grid), target_ids[:, None])
    context_ids = _rows("context", context, grid, batch_size, 0, tubelet)
    if target is None:
        target_ids = _rest("context", context_ids, grid)
    elif target_ids is None:
        target_ids = _rows("target", target, grid, batch_size, _after(context_ids, grid), tubelet)
    hidden = torch.ones(batch_size, grid.size, dtype=torch.bool).scatter_(1, context_ids, False)
    if not hidden.gather(1, target_ids).all():
        shared = target_ids[~hidden.gather(1, target_ids)]
        raise ValueError(f"context and target overlap, in token {shared[0]} among others: a place is seen or predicted")
    return Mask(context_ids, target_ids[:, None])


def tubelets_of(name: str, time: int | str, tubelet: Tubelet) -> int:
    """A count of tubelets from such a count, or from a time in words. Raises ``ValueError``."""
    if isinstance(time, int):
        return time
    found = _TIME.fullmatch(time.strip())
    if found is None:
        raise ValueError(f"{name} {time!r} is not understood: say, for example, '6 frames' or '0.5 s'")
    amount, in_frames = float(found[1]), found[2].startswith("f")
    unit = tubelet.frames if in_frames else tubelet.seconds
    count = amount / unit
    if abs(count - round(count)) > 1e-6 * max(1.0, count):
        below, above = int(count) * unit, (int(count) + 1) * unit
        word = "frames" if in_frames else "s"
        raise ValueError(
            f"{name} {time!r} ends inside a tubelet of {tubelet.frames} frames ({tubelet.seconds:g} s): use "
            f"{below:g} or {above:g} {word}"
        )
    return round(count)


def _rows(name: str, places: Places, grid: TokenGrid, batch_size: int, first: int, tubelet: Tubelet) -> Tensor:
    """Checked ids ``[B, N]``; ``first``: the tubelet at which counts begin."""
    if isinstance(places, str) and places == "future":
        places = slice(first, None)
    elif isinstance(places, (int, str)):
        count = tubelets_of(name, places, tubelet)
        if count < 1 or first + count > grid.t:
            raise ValueError(f"{name} of {count} tubelets: the clip has {grid.t}, and {grid.t - first} to choose from")
        places = slice(first, first + count)
    if isinstance(places, slice):
        cells = grid.ids().view(grid.t, -1)[places].flatten()
        if not len(cells):
            raise ValueError(f"{name} {places} holds none of the clip's {grid.t} tubelets")
        return cells.repeat(batch_size, 1)
    ids = torch.as_tensor(np.asarray(places) if not isinstance(places, Tensor) else places).cpu()
    if ids.dtype == torch.bool:
        return _cells(name, ids, grid, batch_size)
    if ids.is_floating_point() or ids.dim() not in (1, 2) or not ids.numel():
        raise ValueError(f"{name} must be token ids [N] or [B, N] or a bool mask [t, h, w], not {_described(ids)}")
    ids = ids.long()
    ids = ids.repeat(batch_size, 1) if ids.dim() == 1 else ids
    if len(ids) != batch_size:
        raise ValueError(f"{name} has ids for {len(ids)} clips, there are {batch_size}")
    if ids.min() < 0 or ids.max() >= grid.size:
        wrong = ids[(ids < 0) | (ids >= grid.size)][0]
        raise ValueError(f"{name} has the token id {wrong}; the grid {tuple(grid)} has ids 0 to {grid.size - 1}")
    ordered = ids.sort(dim=1).values
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise ValueError(f"{name} names a token twice in the same clip")
    return ids


def _cells(name: str, mask: Tensor, grid: TokenGrid, batch_size: int) -> Tensor:
    """Ids of the True cells of ``[t, h, w]`` or ``[B, t, h, w]``."""
    rows = mask[None].expand(batch_size, *mask.shape) if mask.dim() == 3 else mask
    if tuple(rows.shape) != (batch_size, *grid):
        shapes = f"{list(grid)} ([t, h, w]) or {[batch_size, *grid]}"
        raise ValueError(f"{name} must be a mask {shapes}, not {_described(mask)}")
    counts = rows.flatten(1).sum(dim=1)
    if counts.min() != counts.max() or not counts.min():
        raise ValueError(f"{name} must choose as many cells in every clip, and at least one, not {counts.tolist()}")
    return rows.flatten(1).nonzero()[:, 1].view(batch_size, -1)


def _rest(name: str, ids: Tensor, grid: TokenGrid) -> Tensor:
    """All other ids ``[B, size - N]``."""
    if ids.shape[1] == grid.size:
        raise ValueError(f"{name} is the whole clip: nothing is left to {'predict' if name == 'context' else 'see'}")
    other = torch.ones(len(ids), grid.size, dtype=torch.bool).scatter_(1, ids, False)
    return other.nonzero()[:, 1].view(len(ids), -1)


def _after(context_ids: Tensor, grid: TokenGrid) -> int:
    """The tubelet after the context's last one."""
    last = (context_ids.max(dim=1).values // (grid.h * grid.w)).unique()
    if len(last) > 1:
        raise ValueError("contexts end at different times in different clips: give target as ids or as a mask")
    if last[0] == grid.t - 1:
        raise ValueError(f"target asks for what follows the context, which reaches the last of {grid.t} tubelets")
    return int(last[0]) + 1


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
