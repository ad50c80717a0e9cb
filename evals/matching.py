"""Which test clips of two evals are the same, by path and span; in whatever order, and in folders that moved."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evals.outcome import PREDICTIONS, key
from jepa.config import ConfigError

Clip = tuple[str, float, float, int]  # path, span in seconds (-1, -1: the whole video), which of equal ones


class Judged(NamedTuple):
    """Test clips of one probe and label, in the order of the file: identity, true class, right or wrong; or, of the
    task reconstruction, of one row: identity, no class, and the PSNR in dB."""

    folder: Path
    clips: list[Clip]
    classes: list[str]
    right: Tensor


def read_judged(
    folder: Path, arrays: Mapping[str, Any], names: Sequence[str], place: tuple[str, str, str], encoder: str
) -> Judged:
    """The clips of a row ``place`` (probe, label, variant). Raises ``ConfigError`` where the predictions lack it."""
    probe, label, variant = place
    name = key(probe, label, encoder, variant)
    try:
        labels, said = arrays[f"labels/{label}"], arrays[f"{name}/predictions"]
    except KeyError as error:
        raise ConfigError(f"{folder / PREDICTIONS} lacks {error}: run that eval again") from None
    counted = np.flatnonzero(labels >= 0)
    right = torch.from_numpy(said[counted] == labels[counted])
    return Judged(folder, clips_of(arrays, counted), [names[labels[item]] for item in counted], right)


def clips_of(arrays: Mapping[str, Any], items: NDArray[np.integer]) -> list[Clip]:
    """Identities of ``items`` among the N of the file (``path`` ``[N]``, ``span_s`` ``[N, 2]``)."""
    paths, spans, seen = arrays["path"], np.nan_to_num(arrays["span_s"], nan=-1.0), Counter[Any]()
    clips: list[Clip] = []
    for item in items:
        start_s, end_s = (round(float(second), 3) for second in spans[item])
        identity = (str(paths[item]), start_s, end_s)
        clips.append((*identity, seen[identity]))  # a list may name one clip twice
        seen[identity] += 1
    return clips


def matched(first: Judged, other: Judged, label: str) -> tuple[Tensor, bool]:
    """``right`` of the other eval in the order of the first, and whether clips were matched by relative paths only, as
    the folder has moved. Raises ``ConfigError`` when their test sets differ."""
    order, moved = order_of(first, other, label)
    return other.right[order], moved


def order_of(first: Judged, other: Judged, label: str) -> tuple[Tensor, bool]:
    """Where the clips of the first eval, in its order, are in the other one: int64 ``[K]``; the rest as ``matched``."""
    moved = set(first.clips) != set(other.clips)
    own, theirs = first.clips, other.clips
    if moved:
        own, theirs = relative(first.clips), relative(other.clips)
        if set(own) != set(theirs):
            _raise_difference(first, other, label)
    places = {clip: n for n, clip in enumerate(theirs)}
    order = [places[clip] for clip in own]
    for n, place in enumerate(order):
        if first.classes[n] != other.classes[place]:
            raise ConfigError(
                f"the test sets differ: {first.clips[n][0]} has {label!r} {first.classes[n]!r} in {first.folder} and "
                f"{other.classes[place]!r} in {other.folder}"
            )
    return torch.tensor(order, dtype=torch.int64), moved


def relative(clips: Sequence[Clip]) -> list[Clip]:
    """Paths relative to the deepest folder that holds all of them; unchanged where there is none (URLs)."""
    if not all(os.path.isabs(clip[0]) for clip in clips):
        return list(clips)
    folder = os.path.commonpath([os.path.dirname(clip[0]) for clip in clips])
    return [(os.path.relpath(path, folder), *rest) for path, *rest in clips]  # type: ignore[misc]


def _raise_difference(first: Judged, other: Judged, label: str) -> None:
    for x, y in ((first, other), (other, first)):
        known = set(y.clips)
        lacking = [clip for clip in x.clips if clip not in known]
        if lacking:
            path, start, end, _ = lacking[0]
            span = "" if (start, end) == (-1, -1) else f", {start:g} to {end:g} s"
            raise ConfigError(
                f"the test sets differ: {len(lacking)} of {len(x.clips)} test clips with {label!r} in {x.folder} are "
                f"not in {y.folder}, the first: {path}{span}; run both evals on the same --test"
            )
