"""Rows of probes as tables of text, for the terminal, Markdown and pages: the plain rows, other measures, and variants
(few labels, single layers). Rows are dicts, as results.json holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from evals.settings import Row

Cells = Mapping[str, Any]
MEASURES = {"top5": "top-5 accuracy", "recall_at_5": "mean-class recall at 5"}
LABELS, LAYERS = "Accuracy against labels used", "Accuracy by layer"
OWN_OUTPUT = "output"
DASH = "–"


class Table(NamedTuple):
    """``head`` and ``lines`` of cells as text; ``best``: per line, the column of the highest score (-1: none)."""

    head: list[str]
    lines: list[list[str]]
    best: list[int]

    def markdown(self) -> str:
        """A Markdown table."""
        head, *lines = ("| " + " | ".join(row) + " |" for row in (self.head, *self.lines))
        return "\n".join([head, "|" + "---|" * len(self.head), *lines])


def table(rows: Sequence[Row]) -> str:
    """Markdown: the table of accuracies, and below it those of other measures, few labels and layers that rows have."""
    found = [row._asdict() for row in rows]
    extra = (("", measure_table(found)), (LABELS, label_table(found)), (LAYERS, layer_table(found)))
    parts = [main_table(found).markdown()]
    for title, one in extra:
        if one.lines:
            parts.append((f"{title}\n\n" if title else "") + one.markdown())
    return "\n\n".join(parts)


def plain(rows: Sequence[Cells]) -> list[Cells]:
    """The rows fitted on all labels and on the encoder's own output."""
    return [row for row in rows if row.get("shots", "all") == "all" and row.get("layer") is None]


def few(rows: Sequence[Cells]) -> list[Cells]:
    """The rows of every probe and label that were fitted on few labels, and the plain ones beside them."""
    return _beside(rows, lambda row: row.get("shots", "all") != "all")


def layers(rows: Sequence[Cells]) -> list[Cells]:
    """The rows of every probe and label that read one layer, and the plain ones beside them."""
    return _beside(rows, lambda row: row.get("layer") is not None)


def _beside(rows: Sequence[Cells], wanted: Callable[[Cells], bool]) -> list[Cells]:
    groups = {(row["probe"], row["label"]) for row in rows if wanted(row)}
    own = [row for row in rows if wanted(row)]
    return own + [row for row in plain(rows) if (row["probe"], row["label"]) in groups]


def main_table(rows: Sequence[Cells]) -> Table:
    """A line per probe and label, a column per encoder: accuracies in per cent with errors and intervals."""
    own = plain(rows)
    names = encoders(own)
    found = Table(["probe", "label", *names, "chance", "classes", "train clips", "test clips"], [], [])
    for (probe, label), by_name in _groups(own, lambda row: (row["probe"], row["label"])).items():
        one = next(iter(by_name.values()))
        sizes = [f"{100 * one['chance']:.1f}", *(str(one[key]) for key in ("num_classes", "num_train", "num_test"))]
        _add(found, [probe, label], names, by_name, score_words, sizes)
    return found


def measure_table(rows: Sequence[Cells]) -> Table:
    """Top-5 accuracy and mean-class recall at 5, where classes are many enough for them."""
    own = plain(rows)
    names = encoders(own)
    found = Table(["probe", "label", "measure", *names], [], [])
    for key, words in MEASURES.items():
        known = [{**row, "accuracy": row[key]} for row in own if row.get(key) is not None]
        for (probe, label), by_name in _groups(known, lambda row: (row["probe"], row["label"])).items():
            _add(found, [probe, label, words], names, by_name, lambda row: share(row["accuracy"]), [])
    return found


def label_table(rows: Sequence[Cells]) -> Table:
    """A line per probe, label and amount of labels, fewest first: mean ± standard deviation over seeds."""
    own = sorted(few(rows), key=lambda row: row["num_train"])
    names = encoders(rows)
    found = Table(["probe", "label", "labels used", "train clips", "seeds", *names, "chance"], [], [])
    groups = _groups(own, lambda row: (row["probe"], row["label"], row["shots"]))
    for probe, label in dict.fromkeys((row["probe"], row["label"]) for row in rows):
        for (of, at, shots), by_name in groups.items():
            if (of, at) == (probe, label):
                one = next(iter(by_name.values()))
                seeds = len(one["seeds"]) if one.get("seeds") else 1
                left = [probe, label, shots_words(shots), str(one["num_train"]), str(seeds)]
                _add(found, left, names, by_name, spread_words, [f"{100 * one['chance']:.1f}"])
    return found


def layer_table(rows: Sequence[Cells]) -> Table:
    """A line per probe, label and block, the encoder's own output last: accuracy ± standard error."""
    own = layers(rows)
    names = [name for name in encoders(rows) if any(row["encoder"] == name and row["layer"] is not None for row in own)]
    last = max([row["layer"] for row in own if row["layer"] is not None], default=0) + 1
    own = sorted(own, key=lambda row: last if row["layer"] is None else row["layer"])
    found = Table(["probe", "label", "block", *names, "chance"], [], [])
    groups = _groups(own, lambda row: (row["probe"], row["label"], row["layer"]))
    for probe, label in dict.fromkeys((row["probe"], row["label"]) for row in rows):
        for (of, at, layer), by_name in groups.items():
            if (of, at) == (probe, label):
                one = next(iter(by_name.values()))
                left = [probe, label, OWN_OUTPUT if layer is None else str(layer)]
                _add(found, left, names, by_name, error_words, [f"{100 * one['chance']:.1f}"])
    return found


def encoders(rows: Sequence[Cells]) -> list[str]:
    """Names of the encoders in their order."""
    return list(dict.fromkeys(row["encoder"] for row in rows))


def _groups(rows: Sequence[Cells], key: Callable[[Cells], tuple[Any, ...]]) -> dict[tuple[Any, ...], dict[str, Cells]]:
    groups: dict[tuple[Any, ...], dict[str, Cells]] = {}
    for row in rows:
        groups.setdefault(key(row), {})[row["encoder"]] = row
    return groups


def _add(
    found: Table, left: list[str], names: Sequence[str], by_name: Mapping[str, Cells], words: Callable[[Cells], str],
    right: list[str],
) -> None:  # fmt: skip
    found.lines.append([*left, *(words(by_name[name]) if name in by_name else DASH for name in names), *right])
    scores = [by_name[name]["accuracy"] if name in by_name else -1.0 for name in names]
    found.best.append(len(left) + max(range(len(scores)), key=scores.__getitem__))


def share(value: float | None) -> str:
    """A share in per cent; a dash for None and for NaN (nothing was held out)."""
    return DASH if value is None or value != value else f"{100 * value:.1f}"


def score_words(row: Cells) -> str:
    """An accuracy with its standard error and its bootstrap interval, in per cent."""
    low, high = row["interval"]
    return f"{error_words(row)} [{100 * low:.1f}, {100 * high:.1f}]"


def error_words(row: Cells) -> str:
    """An accuracy with its standard error, in per cent."""
    return f"{100 * row['accuracy']:.1f} ± {100 * row['error']:.1f}"


def spread_words(row: Cells) -> str:
    """A mean over draws of labels with their standard deviation, in per cent; one draw has none."""
    draws = len(row.get("seeds") or [])
    return share(row["accuracy"]) if draws < 2 else f"{share(row['accuracy'])} ± {100 * row['spread']:.1f}"


def shots_words(shots: str) -> str:
    """"1%", "5 per class" or "all"."""
    return f"{shots} per class" if shots.isdecimal() else shots


def setting_words(setting: Mapping[str, float]) -> str:
    """A head's setting, for tables."""
    return ", ".join(f"{name} {value:g}" for name, value in setting.items())
