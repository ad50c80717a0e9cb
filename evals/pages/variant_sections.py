"""Sections on variants of probes: accuracy against the labels that were used, and accuracy by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.pages import drawing, page, tables
from evals.pages.drawing import Chart, Line
from evals.pages.sections import table

Rows = Sequence[Mapping[str, Any]]


def label_section(results: Mapping[str, Any]) -> str:
    """Curves over the number of training clips (mean and spread over draws), and the table; '' without such rows."""
    rows = tables.few(results["rows"])
    found = tables.label_table(results["rows"])
    if not found.lines:
        return ""
    return page.section(
        tables.LABELS,
        page.text(
            "Probes fitted on a few of the training clips, drawn class by class. Mean ± standard deviation over draws "
            "(seeds) in per cent, the band in the curves; one draw has none. The last point uses all labels. "
            "Horizontally: training clips used, on a logarithmic scale. Dashed: chance with all labels."
        ),
        page.card(page.image(drawing.charts([_label_chart(own) for own in _by_probe(rows)]), tables.LABELS)),
        page.card(table(found)),
    )


def layer_section(results: Mapping[str, Any]) -> str:
    """Curves over the blocks of every encoder, and the table; '' without such rows."""
    found = tables.layer_table(results["rows"])
    if not found.lines:
        return ""
    own = [row for row in tables.layers(results["rows"]) if row["layer"] is not None]
    return page.section(
        tables.LAYERS,
        page.text(
            "The same probes on the output of every single block. Accuracy on test clips in per cent; band: ± one "
            f"standard error. `{tables.OWN_OUTPUT}` in the table: what the encoder itself gives, with its last norm."
        ),
        page.card(page.image(drawing.charts([_layer_chart(part) for part in _by_probe(own)]), tables.LAYERS)),
        page.card(table(found)),
    )


def _by_probe(rows: Rows) -> list[Rows]:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["probe"], row["label"]), []).append(row)
    return list(groups.values())


def _label_chart(rows: Rows) -> Chart:
    lines = []
    for name in tables.encoders(rows):
        own = sorted((row for row in rows if row["encoder"] == name), key=lambda row: row["num_train"])
        spread = [100 * (row["spread"] or 0.0) for row in own]
        lines.append(Line(name, [r["num_train"] for r in own], [100 * r["accuracy"] for r in own], spread))
    counts = sorted({x for line in lines for x in line.x})
    whole = max(rows, key=lambda row: row["num_train"])
    return Chart(
        f"{rows[0]['label']}, {rows[0]['probe']} probe", lines, "training clips", "accuracy (%)",
        [(count, f"{count:,.0f}") for count in spaced(counts)], log_x=True, level=("chance", 100 * whole["chance"]),
    )  # fmt: skip


def spaced(counts: Sequence[float], ratio: float = 1.35) -> list[float]:
    """The counts that have room for their numbers on a logarithmic axis, the largest always."""
    kept: list[float] = []
    for count in sorted(counts, reverse=True):
        if not kept or count * ratio <= kept[-1]:
            kept.append(count)
    return kept[::-1]


def _layer_chart(rows: Rows) -> Chart:
    lines = []
    for name in tables.encoders(rows):
        own = sorted((row for row in rows if row["encoder"] == name), key=lambda row: row["layer"])
        accuracy, error = ([100 * row[key] for row in own] for key in ("accuracy", "error"))
        lines.append(Line(name, [row["layer"] for row in own], accuracy, error))
    blocks = sorted({int(x) for line in lines for x in line.x})
    ticks = [(block, str(block)) for block in blocks[:: -(-len(blocks) // 16)]]
    title = f"{rows[0]['label']}, {rows[0]['probe']} probe"
    return Chart(title, lines, "block", "accuracy (%)", ticks, level=("chance", 100 * rows[0]["chance"]))
