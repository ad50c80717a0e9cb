"""Evals of the task reconstruction side by side: scores of decoded clips, and their paired differences in dB.

What is hard to decode for one model is so for the others, too: the difference of two on the same clip varies less than
either does. It is taken only where both were judged on the same pixels of the same clips.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evals import metrics, pairwise
from evals.matching import Judged, clips_of, order_of
from evals.reconstruction.by_clip import BEST, FILE, MEAN, PSNR, key
from evals.reconstruction.rows import ALL, GUESS, TARGET
from jepa.config import ConfigError

WORDS = (
    "Scores on test clips, PSNR with its 95 % bootstrap interval; behind it the difference to the first column, clip "
    "by clip, with its paired bootstrap interval. Distances of features are by each model's own encoder and so not "
    "compared. Intervals speak of the choice of test clips, not of training runs."
)
SCALE = ("mean", "std")  # of a clip: how its pixels are given to a model, not which
Cells = Mapping[str, Any]


class Line(NamedTuple):
    """One line: its ``name``, the score as text, how many clips it is over, and the ``key`` of the scores of single
    clips (None: not kept)."""

    name: str
    words: str
    size: str
    key: str | None = None


def owner(row: Cells) -> str | None:
    """The model that a row of the task is of; None for guesses, which are nobody's."""
    return None if row["what"] == GUESS else row["model"]


def lines(rows: Sequence[Cells]) -> list[Line]:
    """Of one model's ``rows``, those of samples among them, and of guesses."""
    own = [row["tokens"] for row in rows if (row["places"], row["what"], row.get("layer")) == (ALL, TARGET, None)]
    found = []
    for row in rows:
        name = f"{row['places']}, {row['model'] if row['what'] == GUESS else row['what']}"
        if row.get("layer") is not None:
            name += f", block {row['layer']}"
        elif row["places"] == ALL and row["what"] == TARGET and row["tokens"] != own[0]:
            name += f", {row['tokens']} tokens"  # averaged: models with other patches have other numbers themselves
        found += _samples(row, name) if "best" in row else _decoded(row, name)
    return found


def _decoded(row: Cells, name: str) -> list[Line]:
    size = f"{row['clips']} clips"
    measures = (("moving PSNR (dB)", "moving", 1, 2), ("SSIM", "ssim", 1, 3), ("near (%)", "near", 100, 0))
    return [
        Line(f"{name}: PSNR (dB)", _interval(row), size, key(row, PSNR)),
        *(Line(f"{name}: {words}", f"{unit * row[field]:.{digits}f}", size)
          for words, field, unit, digits in measures if row[field] is not None),
    ]  # fmt: skip


def _samples(row: Cells, name: str) -> list[Line]:
    size, samples = f"{row['clips']} clips", f"{row['samples']} samples"
    return [
        Line(f"{name}, mean of {samples}: PSNR (dB)", _interval(row), size, key(row, MEAN)),
        Line(f"{name}, best of {samples}: PSNR (dB)", f"{row['best'][-1]['psnr']:.2f}", size, key(row, BEST)),
        Line(f"{name}, {samples}: diversity", f"{row['diversity']:.4f}", size),
    ]


def _interval(row: Cells) -> str:
    return f"{row['psnr']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


class Column(NamedTuple):
    """One side of a comparison: its ``name``, the ``folder`` of the eval, the ``clip`` of the model, its lines by name,
    and the file of scores of single clips."""

    name: str
    folder: Path
    clip: Mapping[str, Any]
    lines: Mapping[str, Line]
    arrays: Mapping[str, Any]

    def judged(self, name: str) -> tuple[Judged, Tensor]:
        """The clips of a line and what was judged of each. Raises ``ConfigError`` where the file lacks the line."""
        line = self.lines[name]
        try:
            psnr, hidden = self.arrays[str(line.key)], self.arrays[f"{line.key}/hidden"]
        except KeyError as error:
            raise ConfigError(f"{self.folder / FILE} lacks {error}: run that eval again") from None
        counted = np.flatnonzero(~np.isnan(psnr))
        known = Judged(self.folder, clips_of(self.arrays, counted), [""] * len(counted),
                       torch.from_numpy(psnr[counted]).double())  # fmt: skip
        return known, torch.from_numpy(hidden[counted])


def column(name: str, folder: Path, clip: Mapping[str, Any], rows: Sequence[Cells]) -> Column:
    """Reads the scores of single clips. Raises ``ConfigError`` where they are missing or damaged."""
    try:
        with np.load(folder / FILE) as file:
            arrays = {array: file[array] for array in file.files}
    except FileNotFoundError:
        raise ConfigError(f"{folder} has no {FILE}: run that eval again, with this version") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{folder / FILE} cannot be read: {error}; run that eval again") from None
    return Column(name, folder, clip, {line.name: line for line in lines(rows)}, arrays)


def pair(found: list[dict[str, Any]], columns: Sequence[Column]) -> list[str]:
    """Put the ``differences`` to the first column into the lines ``found`` of a comparison, and behind the scores that
    they belong to. Returns notes about what could not be paired. Raises ``ConfigError`` for other test clips."""
    first, notes = columns[0], dict[str, None]()
    for one in found:
        name = one["measure"]
        one["differences"] = [None] * len(columns)
        for number, other in enumerate(columns[1:], 1):
            if any(name not in side.lines or side.lines[name].key is None for side in (first, other)):
                continue
            difference, note = _difference(first, other, name)
            notes |= {} if note is None else {note: None}
            if difference is not None:
                one["differences"][number] = difference
                low, high = difference["interval"]
                one["cells"][number] += f"; {difference['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
    return list(notes)


def _difference(first: Column, other: Column, name: str) -> tuple[dict[str, Any] | None, str | None]:
    """The mean ``difference`` in dB with its ``interval``, and a note: why there is none, or how clips were matched."""
    clips = [{field: value for field, value in side.clip.items() if field not in SCALE} for side in (first, other)]
    if clips[0] != clips[1]:
        return None, f"{other.name} sees other clips than {first.name} (rate, length or size): nothing is paired."
    (own, hidden), (theirs, judged) = first.judged(name), other.judged(name)
    order, moved = order_of(own, theirs, name)
    if not torch.equal(judged[order], hidden):
        places = name.split(",")[0]
        return None, f"{other.name} was judged on other pixels than {first.name} ({places}): they are not paired."
    apart = theirs.right[order] - own.right
    if "group" in first.arrays:  # windows of one episode are not independent
        counted = np.flatnonzero(~np.isnan(first.arrays[str(first.lines[name].key)]))
        low, high = pairwise.bootstrap_interval(apart.numpy(), first.arrays["group"][counted].tolist())
    else:
        low, high = metrics.bootstrap_interval(apart)
    note = f"The clips of {other.name} have other absolute paths than those of {first.name}: they were matched by " \
           "their paths relative to the folder that holds all of them."  # fmt: skip
    return {"difference": float(apart.mean()), "interval": [low, high]}, note if moved else None
