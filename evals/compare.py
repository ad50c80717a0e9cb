"""``jepa eval compare``: runs side by side on the same test clips, with the paired difference to the first.

Two encoders that see the same clips are right and wrong on the same ones more often than chance; a paired test uses
that, and finds differences that two separate error bars hide (T. Dietterich, Neural Computation 10, 1998).
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evals import compare_page, metrics
from evals.outcome import PREDICTIONS, key
from evals.tables import score_words
from jepa.config import ConfigError, suggest

WORDS = (
    "Accuracy on test clips in per cent ± binomial standard error [95 % bootstrap interval]; below, in the same unit, "
    "the difference to the first column with its paired bootstrap interval, and the p-value of McNemar's exact test. "
    "Both speak of the choice of test clips, not of training runs, and p-values are not corrected for their number."
)


class Recorded(NamedTuple):
    """One column: its ``name``, the ``folder`` of an eval, its ``results``, its ``arrays`` and one ``encoder``."""

    name: str
    folder: Path
    encoder: str
    results: Mapping[str, Any]
    arrays: Mapping[str, Any]

    def rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The encoder's rows by probe and label."""
        return {(r["probe"], r["label"]): r for r in self.results["rows"] if r["encoder"] == self.encoder}


Clip = tuple[str, float, float, int]  # path, span in seconds (-1, -1: the whole video), which of equal ones


class Judged(NamedTuple):
    """Test clips of one probe and label, in the order of the file: identity, true class, right or wrong."""

    clips: list[Clip]
    classes: list[str]
    right: Tensor


def compare(folders: Sequence[str | Path], encoders: Sequence[str] = ("trained",)) -> dict[str, Any]:
    """Compare evals: each encoder of ``encoders`` in each of ``folders`` is a column, the first is the reference.

    Returns plain data: ``columns`` (name, folder, encoder, model, encoder_hash), ``rows`` with ``probe``, ``label`` and
    a ``cells`` entry per column (``None`` where an eval lacks that row): ``accuracy``, ``error``, ``interval``; from
    the second column on ``difference`` to the first, its paired bootstrap ``difference_interval``, how many clips
    ``only_this`` and ``only_first`` gets right, and McNemar's exact ``p``. Raises ``ConfigError`` when a folder holds
    no eval of probes, or test sets differ.
    """
    columns = [column for folder in folders for column in _open(Path(folder), encoders)]
    if len(columns) < 2:
        raise ConfigError("compare needs two columns at least: two evals, or --encoders A,B of one")
    first, *others = columns = _named(columns)
    shared = [place for place in first.rows() if any(place in other.rows() for other in others)]
    if not shared:
        known = (f"{c.name}: {', '.join(' of '.join(place) for place in c.rows())}" for c in columns)
        raise ConfigError(f"the evals share no row with the first of them, by probe and label ({'; '.join(known)})")
    return {
        "columns": [_column(column) for column in columns],
        "rows": [{"probe": p, "label": y, "cells": _cells(columns, p, y)} for p, y in shared],
    }


def _column(column: Recorded) -> dict[str, Any]:
    model = column.results["models"].get(column.encoder, {})
    return {
        "name": column.name, "folder": str(column.folder), "encoder": column.encoder,
        "model": model.get("model"), "encoder_hash": model.get("encoder_hash"),
    }  # fmt: skip


def _open(folder: Path, encoders: Sequence[str]) -> list[Recorded]:
    """The columns of one eval. ``folder`` may be the path of results.json itself."""
    folder = folder.parent if folder.name == "results.json" else folder
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder} has no results.json: name folders that jepa eval has written") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    rows = results.get("rows") if isinstance(results, dict) else None
    if not rows or not all(isinstance(row, dict) and {"probe", "label", "encoder"} <= row.keys() for row in rows):
        raise ConfigError(f"{path} holds no rows of probes; only evals that fit probes can be compared")
    if lacking := sorted({"model", "models", "classes"} - results.keys()):
        raise ConfigError(f"{path} has no {lacking[0]!r}: only classification by probes (--task video) can be compared")
    try:
        with np.load(folder / PREDICTIONS) as file:
            arrays = {name: file[name] for name in file.files if not name.endswith("/probabilities")}
    except FileNotFoundError:
        raise ConfigError(f"{folder} has no {PREDICTIONS}: run that eval again, with this version") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{folder / PREDICTIONS} cannot be read: {error}; run that eval again") from None
    known = list(dict.fromkeys(row["encoder"] for row in rows))
    for encoder in encoders:
        if encoder not in known:
            raise ConfigError(f"{folder} has no encoder {encoder!r}{suggest(encoder, known)}")
    return [Recorded("", folder, encoder, results, arrays) for encoder in encoders]


def _named(columns: Sequence[Recorded]) -> list[Recorded]:
    """Columns with the shortest of these names that tells them apart: model, folder, encoder (if several)."""
    several = len({column.encoder for column in columns}) > 1
    behind = [f" {column.encoder}" if several else "" for column in columns]
    for names in (
        [column.results["model"] + more for column, more in zip(columns, behind, strict=True)],
        [str(column.folder) + more for column, more in zip(columns, behind, strict=True)],
    ):
        if max(Counter(names).values()) == 1:
            return [column._replace(name=name) for column, name in zip(columns, names, strict=True)]
    raise ConfigError("the same eval is named twice; each must be named once")


def _judged(column: Recorded, probe: str, label: str) -> Judged:
    """Raises ``ConfigError`` where the file of predictions lacks the row."""
    name = key(probe, label, column.encoder)
    try:
        labels, said = column.arrays[f"labels/{label}"], column.arrays[f"{name}/predictions"]
        paths, spans = column.arrays["path"], np.nan_to_num(column.arrays["span_s"], nan=-1.0)
    except KeyError as error:
        raise ConfigError(f"{column.folder / PREDICTIONS} lacks {error}: run that eval again") from None
    names, counted, seen = column.results["classes"][label], np.flatnonzero(labels >= 0), Counter[Any]()
    clips: list[Clip] = []
    for item in counted:
        start_s, end_s = (round(float(second), 3) for second in spans[item])
        identity = (str(paths[item]), start_s, end_s)
        clips.append((*identity, seen[identity]))  # a list may name one clip twice
        seen[identity] += 1
    right = torch.from_numpy(said[counted] == labels[counted])
    return Judged(clips, [names[labels[item]] for item in counted], right)


def _matched(first: tuple[Recorded, Judged], other: tuple[Recorded, Judged], label: str) -> Tensor:
    """``right`` of the other eval in the order of the first. Raises ``ConfigError`` when their test sets differ."""
    (a, own), (b, theirs) = first, other
    places = {clip: n for n, clip in enumerate(theirs.clips)}
    for x, y, clips, against in ((a, b, own.clips, places), (b, a, theirs.clips, set(own.clips))):
        lacking = [clip for clip in clips if clip not in against]
        if lacking:
            path, start, end, _ = lacking[0]
            span = "" if (start, end) == (-1, -1) else f", {start:g} to {end:g} s"
            raise ConfigError(
                f"the test sets differ: {len(lacking)} of {len(clips)} test clips with {label!r} in {x.folder} are not "
                f"in {y.folder}, the first: {path}{span}; run both evals on the same --test"
            )
    order = [places[clip] for clip in own.clips]
    for clip, n, place in zip(own.clips, range(len(order)), order, strict=True):
        if own.classes[n] != theirs.classes[place]:
            raise ConfigError(
                f"the test sets differ: {clip[0]} has {label!r} {own.classes[n]!r} in {a.folder} and "
                f"{theirs.classes[place]!r} in {b.folder}"
            )
    return theirs.right[torch.tensor(order)]


def _cells(columns: Sequence[Recorded], probe: str, label: str) -> list[dict[str, Any] | None]:
    first, own = columns[0], _judged(columns[0], probe, label)
    cells: list[dict[str, Any] | None] = []
    for column in columns:
        row = column.rows().get((probe, label))
        if row is None:
            cells.append(None)
            continue
        cell = {name: row[name] for name in ("accuracy", "error", "interval", "num_train", "num_test")}
        if column is not first:
            right = _matched((first, own), (column, _judged(column, probe, label)), label)
            only_this, only_first, p = metrics.mcnemar(right, own.right)
            difference = right.double() - own.right.double()
            cell |= {
                "difference": difference.mean().item(), "difference_interval": metrics.bootstrap_interval(difference),
                "only_this": only_this, "only_first": only_first, "p": p,
            }  # fmt: skip
        cells.append(cell)
    return cells


def difference_words(cell: Mapping[str, Any]) -> str:
    """A paired difference with its interval (per cent) and p-value."""
    low, high = (100 * bound for bound in cell["difference_interval"])
    return f"{100 * cell['difference']:+.1f} [{low:+.1f}, {high:+.1f}], {compare_page.p_words(cell['p'])}"


def cell_words(cell: Mapping[str, Any] | None) -> tuple[str, str]:
    """Accuracy and, but for the first column, the difference; a dash where the eval lacks the row."""
    if cell is None:
        return "–", ""
    return score_words(cell), difference_words(cell) if "difference" in cell else ""


def markdown(comparison: Mapping[str, Any]) -> str:
    """The table: a line per probe and label, and one below it with the differences to the first column."""
    head = ["probe", "label", *(column["name"] for column in comparison["columns"]), "test clips"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in comparison["rows"]:
        words = [cell_words(cell) for cell in row["cells"]]
        count = str(row["cells"][0]["num_test"])
        lines.append("| " + " | ".join([row["probe"], row["label"], *(score for score, _ in words), count]) + " |")
        lines.append("| " + " | ".join(["", "difference", *(below for _, below in words), ""]) + " |")
    return "\n".join([*lines, "", WORDS])


def write(comparison: Mapping[str, Any], folder: Path) -> None:
    """comparison.json, comparison.md and comparison.html. Raises ``ConfigError`` when they cannot be written."""
    page = compare_page.draw(comparison, [[cell_words(c) for c in row["cells"]] for row in comparison["rows"]], WORDS)
    texts = {"json": json.dumps(comparison, indent=1), "md": markdown(comparison), "html": page}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for ending, text in texts.items():
            (folder / f"comparison.{ending}").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the comparison cannot be written to {folder}: {error.strerror or error}") from None
