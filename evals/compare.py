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
from torch import Tensor

from evals import compare_pixels, compare_tasks, metrics
from evals.matching import Judged, matched, read_judged
from evals.outcome import PREDICTIONS
from evals.pages import compare_page
from evals.pages.tables import score_words, spread_words
from evals.settings import variant_words
from jepa.config import ConfigError, suggest

WORDS = (
    "Accuracy on test clips in per cent ± binomial standard error [95 % bootstrap interval]; below, in the same unit, "
    "the difference to the first column with its paired bootstrap interval, and the p-value of McNemar's exact test. "
    "Both speak of the choice of test clips, not of training runs, and p-values are not corrected for their number."
)
FEW = (
    "With few labels: mean ± standard deviation over draws of training clips, and the difference of the means; no test."
)
Place = tuple[str, str, str]  # probe, label, variant


class Recorded(NamedTuple):
    """One column: its ``name``, the ``folder`` of an eval, its ``results``, ``arrays`` of predictions (probes only) and
    one ``encoder``."""

    name: str
    folder: Path
    encoder: str
    results: Mapping[str, Any]
    arrays: Mapping[str, Any]

    def rows(self) -> dict[Place, dict[str, Any]]:
        """The encoder's rows by probe, label and variant."""
        return {
            (r["probe"], r["label"], variant_words(r.get("shots", "all"), r.get("layer"))): r
            for r in self.results["rows"] if r["encoder"] == self.encoder
        }  # fmt: skip

    def judged(self, place: Place) -> Judged:
        """The test clips of a row."""
        return read_judged(self.folder, self.arrays, self.results["classes"][place[1]], place, self.encoder)


def compare(folders: Sequence[str | Path], encoders: Sequence[str] = ("trained",)) -> dict[str, Any]:
    """Compare evals: each encoder of ``encoders`` in each of ``folders`` is a column, the first is the reference.

    Returns plain data: ``columns`` (name, folder, encoder, model, encoder_hash), ``notes``, and ``rows`` with
    ``probe``, ``label``, ``variant`` and a ``cells`` entry per column (``None`` where an eval lacks that row):
    ``accuracy``, ``error``, ``interval``; from the second column on ``difference`` to the first, its paired bootstrap
    ``difference_interval``, how many clips ``only_this`` and ``only_first`` gets right, and McNemar's exact ``p`` (few
    labels: the difference of the means alone). Evals of the other tasks (``task``) have ``lines`` instead of rows, see
    ``evals.compare_tasks``, and those of the task reconstruction paired ``differences``, see ``evals.compare_pixels``.
    Raises ``ConfigError`` when folders hold no evals, or test sets differ.
    """
    columns = [column for folder in folders for column in _open(Path(folder), encoders)]
    if len(columns) < 2:
        raise ConfigError("compare needs two columns at least: two evals, or --encoders A,B of one")
    first, *others = columns = _named(columns)
    tasks = [_task(column.results) for column in columns]
    if len(set(tasks)) > 1:
        raise ConfigError(f"{first.folder} is an eval of the task {tasks[0]}, others are not ({', '.join(tasks)})")
    about = [_column(column) for column in columns]
    if tasks[0] in compare_tasks.KNOWN:
        return {"task": tasks[0], "columns": about, **_lines(tasks[0], columns)}
    shared = [place for place in first.rows() if any(place in other.rows() for other in others)]
    if not shared:
        known = (f"{c.name}: {', '.join(_of(place) for place in c.rows())}" for c in columns)
        raise ConfigError(f"the evals share no row with the first of them, by probe and label ({'; '.join(known)})")
    moved: set[str] = set()
    rows = [
        {"probe": place[0], "label": place[1], "variant": place[2], "cells": _cells(columns, place, moved)}
        for place in shared
    ]  # fmt: skip
    notes = [
        f"The clips of {name} have other absolute paths than those of {first.name}: they were matched by their paths "
        "relative to the folder that holds all of them." for name in sorted(moved)
    ]  # fmt: skip
    return {"columns": about, "rows": rows, "notes": notes}


def _lines(task: str, columns: Sequence[Recorded]) -> dict[str, Any]:
    """``lines`` of a task without probes, and ``notes``."""
    rows = [[*c.results["rows"], *c.results.get("sampled", [])] for c in columns]
    given = [{"folder": c.folder, "encoder": c.encoder, "rows": own} for c, own in zip(columns, rows, strict=True)]
    lines = compare_tasks.lines(task, given)
    if task != compare_tasks.PIXELS:
        return {"lines": lines, "notes": []}
    paired = []
    for column, own in zip(columns, rows, strict=True):
        clip = column.results["models"].get(column.encoder, column.results)["clip"]  # random ones see the first's clip
        own = [row for row in own if compare_tasks.owner(row) in (column.encoder, None)]
        paired.append(compare_pixels.column(column.name, column.folder, clip, own))
    return {"lines": lines, "notes": compare_pixels.pair(lines, paired)}


def _of(place: Place) -> str:
    return " of ".join(place[:2]) + (f" ({place[2]})" if place[2] else "")


def _task(results: Mapping[str, Any]) -> str:
    """One of ``compare_tasks.KNOWN``, or "probes"."""
    task = str(results.get("task"))
    return task if task in compare_tasks.KNOWN else "probes"


def _column(column: Recorded) -> dict[str, Any]:
    model = column.results.get("models", {}).get(column.encoder, {})
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
    other = isinstance(results, dict) and _task(results) != "probes"
    needed = set() if other else {"probe", "label", "encoder"}
    if not rows or not all(isinstance(row, dict) and needed <= row.keys() for row in rows):
        raise ConfigError(f"{path} holds no rows of probes; only evals that jepa eval has written can be compared")
    if lacking := sorted(({"model", "models"} if other else {"model", "models", "classes"}) - results.keys()):
        raise ConfigError(f"{path} has no {lacking[0]!r}: run that eval again, with this version")
    arrays = {} if other else _read_predictions(folder)
    known = [name for name in dict.fromkeys(map(compare_tasks.owner, rows)) if name is not None]
    for encoder in encoders:
        if encoder not in known:
            raise ConfigError(f"{folder} has no encoder {encoder!r}{suggest(encoder, known)}")
    return [Recorded("", folder, encoder, results, arrays) for encoder in encoders]


def _read_predictions(folder: Path) -> dict[str, Any]:
    try:
        with np.load(folder / PREDICTIONS) as file:
            return {name: file[name] for name in file.files if not name.endswith("/probabilities")}
    except FileNotFoundError:
        raise ConfigError(f"{folder} has no {PREDICTIONS}: run that eval again, with this version") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{folder / PREDICTIONS} cannot be read: {error}; run that eval again") from None


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


def _cells(columns: Sequence[Recorded], place: Place, moved: set[str]) -> list[dict[str, Any] | None]:
    """A cell per column; names of columns whose clips have other absolute paths are added to ``moved``."""
    first, few = columns[0], columns[0].rows()[place].get("shots", "all") != "all"
    own = first.judged(place)
    cells: list[dict[str, Any] | None] = []
    for column in columns:
        row = column.rows().get(place)
        if row is None:
            cells.append(None)
            continue
        cell = {name: row[name] for name in ("accuracy", "error", "interval", "num_train", "num_test")}
        if few:
            cell |= {name: row[name] for name in ("seeds", "spread")}
        if column is not first:
            right, elsewhere = matched(own, column.judged(place), place[1])
            moved |= {column.name} if elsewhere else set()
            # few labels: the clips' answers are those of one draw of several, and say nothing of the others
            cell |= {"difference": row["accuracy"] - first.rows()[place]["accuracy"]} if few else _paired(right, own)
        cells.append(cell)
    return cells


def _paired(right: Tensor, own: Judged) -> dict[str, Any]:
    """The difference of ``right`` to the first column's, clip by clip."""
    only_this, only_first, p = metrics.mcnemar(right, own.right)
    difference = right.double() - own.right.double()
    return {
        "difference": difference.mean().item(), "difference_interval": metrics.bootstrap_interval(difference),
        "only_this": only_this, "only_first": only_first, "p": p,
    }  # fmt: skip


def difference_words(cell: Mapping[str, Any]) -> str:
    """A paired difference with its interval (per cent) and p-value; of few labels the difference alone."""
    if "p" not in cell:
        return f"{100 * cell['difference']:+.1f}"
    low, high = (100 * bound for bound in cell["difference_interval"])
    return f"{100 * cell['difference']:+.1f} [{low:+.1f}, {high:+.1f}], {compare_page.p_words(cell['p'])}"


def cell_words(cell: Mapping[str, Any] | None) -> tuple[str, str]:
    """Accuracy and, but for the first column, the difference; a dash where the eval lacks the row."""
    if cell is None:
        return "–", ""
    score = spread_words(cell) if "seeds" in cell else score_words(cell)
    return score, difference_words(cell) if "difference" in cell else ""


def explained(comparison: Mapping[str, Any]) -> str:
    """What the numbers are, as far as they occur, and what has to be known about this comparison."""
    if "lines" in comparison:
        words = compare_pixels.WORDS if comparison["task"] == compare_tasks.PIXELS else compare_tasks.WORDS
        return " ".join([words, *comparison["notes"]])
    few = any(cell is not None and "seeds" in cell for row in comparison["rows"] for cell in row["cells"])
    return " ".join([WORDS, *([FEW] if few else []), *comparison["notes"]])


def markdown(comparison: Mapping[str, Any]) -> str:
    """The table: a line per probe and label, and one below it with the differences to the first column."""
    names = [column["name"] for column in comparison["columns"]]
    if "lines" in comparison:
        head = [comparison["task"], *names, "measured on"]
        rows = [[one["measure"], *(cell or "–" for cell in one["cells"]), one["size"]] for one in comparison["lines"]]
    else:
        head, rows = ["probe", "label", *names, "test clips"], []
        for row in comparison["rows"]:
            words = [cell_words(cell) for cell in row["cells"]]
            probe = ", ".join(part for part in (row["probe"], row["variant"]) if part)
            rows.append([probe, row["label"], *(score for score, _ in words), str(row["cells"][0]["num_test"])])
            rows.append(["", "difference", *(below for _, below in words), ""])
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:], "", explained(comparison)])


def write(comparison: Mapping[str, Any], folder: Path) -> None:
    """comparison.json, comparison.md and comparison.html. Raises ``ConfigError`` when they cannot be written."""
    words = [[cell_words(cell) for cell in row["cells"]] for row in comparison.get("rows", [])]
    page = compare_page.draw(comparison, words, explained(comparison))
    texts = {"json": json.dumps(comparison, indent=1), "md": markdown(comparison), "html": page}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for ending, text in texts.items():
            (folder / f"comparison.{ending}").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the comparison cannot be written to {folder}: {error.strerror or error}") from None
