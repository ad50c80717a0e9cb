"""Runs of the tasks retrieval, tracking, dense, physics and reconstruction side by side: scores with intervals.

But for the last (see ``evals.compare_pixels``) these tasks keep no answers clip by clip, so nothing is said about the
significance of a difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from evals import compare_pixels
from evals.pages.tables import share
from jepa.config import ConfigError

WORDS = "Scores with their 95 % intervals or standard errors. No test: this task keeps no answers clip by clip."
PIXELS = "reconstruction"
Cells = Mapping[str, Any]


class Measure(NamedTuple):
    """One line of a comparison: its ``name``, the score as text, and how many things it was measured on."""

    name: str
    words: str
    size: str


def measures(task: str, rows: Sequence[Cells], encoder: str) -> list[Measure]:
    """What one encoder (or predictor) of a task scored; of the task reconstruction beside what is guessed."""
    own = [row for row in rows if owner(row) in (encoder, None)]
    if task == PIXELS:
        return [Measure(line.name, line.words, line.size) for line in compare_pixels.lines(own)]
    return [measure for row in own for measure in TASKS[task](row)]


def owner(row: Cells) -> str | None:
    """The encoder or predictor that a row is of; None for guesses."""
    if "what" in row:
        return compare_pixels.owner(row)
    return row.get("encoder", row.get("predictor"))


def _within(score: float, low: float, high: float) -> str:
    return f"{share(score)} [{share(low)}, {share(high)}]"


def _tracking(row: Cells) -> list[Measure]:
    size = f"{row['sequences']} sequences, {row['objects']} objects"
    whole = Measure("J&F (%)", _within(row["jf"], row["low"], row["high"]), size)
    return [whole, Measure("J mean (%)", share(row["j_mean"]), size), Measure("F mean (%)", share(row["f_mean"]), size)]


def _dense(row: Cells) -> list[Measure]:
    size = f"{row['num_test']} images"
    if row["measure"] == "mIoU":
        whole, second = _within(row["score"], row["low"], row["high"]), "pixel accuracy (%)"
    else:
        whole, second = f"{row['score']:.3f} [{row['low']:.3f}, {row['high']:.3f}]", "within a factor of 1.25 (%)"
    name = "mIoU (%)" if row["measure"] == "mIoU" else row["measure"]
    return [Measure(name, whole, size), Measure(second, share(row["second"]), size)]


def _retrieval(row: Cells) -> list[Measure]:
    if "micro_ap" in row:
        size, kind = f"{row['copies']} copies of {row['gallery']}", row["degradation"]
        found = f"{share(row['recall_at_1'])} ± {share(row['error'])}"
        return [
            Measure(f"copies, {kind}: micro-AP (%)", share(row["micro_ap"]), size),
            Measure(f"copies, {kind}: recall@1 (%)", found, size),
        ]
    size, label = f"{row['queries']} queries, {row['gallery']} clips", row["label"]
    whole = Measure(f"{label}: mAP (%)", f"{share(row['map'])} ± {share(row['error'])}", size)
    return [whole, *(Measure(f"{label}: recall@{k} (%)", share(value), size) for k, value in row["recall"].items())]


def _physics(row: Cells) -> list[Measure]:
    name, size = f"{row['condition']}, {row['over']} surprise", f"{row['pairs']} pairs"
    right = Measure(f"{name}: pairs right (%)", _within(row["accuracy"], row["low"], row["high"]), size)
    return [right, Measure(f"{name}: AUROC", f"{row['auroc']:.3f}", size)]


TASKS: dict[str, Callable[[Cells], list[Measure]]] = {
    "tracking": _tracking, "dense": _dense, "retrieval": _retrieval, "physics": _physics,
}  # fmt: skip
KNOWN = (*TASKS, PIXELS)


def lines(task: str, columns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line per measure with a cell per column (None: that eval lacks it). ``columns``: ``folder``, ``encoder`` and
    the eval's ``rows``. Raises ``ConfigError`` where the same measure was taken on so many other things."""
    found = [{m.name: m for m in measures(task, column["rows"], column["encoder"])} for column in columns]
    for column, own in zip(columns, found, strict=True):
        for name, measure in own.items():
            first = next(other[name] for other in found if name in other)
            if measure.size != first.size:
                raise ConfigError(
                    f"the test sets differ: {name} is over {first.size} in {columns[0]['folder']}, over {measure.size} "
                    f"in {column['folder']}; run both evals on the same --test"
                )
    names = list(dict.fromkeys(name for own in found for name in own))
    if not any(all(name in own for own in found) for name in names):
        raise ConfigError(f"the evals of the task {task} share no measure: were their settings the same?")
    return [
        {"measure": name, "size": next(own[name].size for own in found if name in own),
         "cells": [own[name].words if name in own else None for own in found]}
        for name in names
    ]  # fmt: skip
