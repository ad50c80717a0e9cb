"""comparison.html of ``jepa eval compare``: differences to the first column as intervals, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.pages import page


def draw(comparison: Mapping[str, Any], words: Sequence[Sequence[tuple[str, str]]], explained: str) -> str:
    """The page. ``words``: accuracy and difference as text, per row and column."""
    columns = comparison["columns"]
    about = [[c["name"], c["encoder"], c["model"] or "", c["encoder_hash"] or "", c["folder"]] for c in columns]
    inside = _lines(comparison, explained) if "lines" in comparison else _rows(comparison, words, explained)
    return page.page(
        "Evals compared",
        [
            "<h1>Evals compared</h1>",
            *inside,
            page.section(
                "What was compared",
                page.card(page.table(["column", "encoder", "model", "hash of its weights", "eval"], about)),
            ),
        ],
    )


def _lines(comparison: Mapping[str, Any], explained: str) -> list[str]:
    """Measures of a task without probes."""
    head = ["measure", *(column["name"] for column in comparison["columns"]), "measured on"]
    rows = [
        [one["measure"], *((cell or "–").replace(", ", ",\u00a0") for cell in one["cells"]), one["size"]]
        for one in comparison["lines"]
    ]  # fmt: skip
    title = f"Scores of the task {comparison['task']}"
    return [page.section(title, page.text(explained, soft=True), page.card(page.table(head, rows)))]


def _rows(
    comparison: Mapping[str, Any], words: Sequence[Sequence[tuple[str, str]]], explained: str
) -> list[str]:  # fmt: skip
    """Accuracies and paired differences of probes; those of few labels have their difference in the table only."""
    columns, rows = comparison["columns"], comparison["rows"]
    head = ["probe", "label", *(column["name"] for column in columns), "test clips"]
    lines, best = [], []
    for row, cells in zip(rows, words, strict=True):
        known = [(-1.0 if cell is None else cell["accuracy"]) for cell in row["cells"]]
        own = [score.replace(", ", ",\u00a0") for score, _ in cells]
        if not _tested(row):
            own = [f"{score} ({below})" if below else score for score, (_, below) in zip(own, cells, strict=True)]
        lines.append([_probe(row), row["label"], *own, row["cells"][0]["num_test"]])
        best.append(2 + max(range(len(known)), key=known.__getitem__))
    return [
        page.text(_headline(columns, rows)),
        page.section("Accuracies", page.text(explained, soft=True), page.card(page.table(head, lines, best))),
        page.section(
            f"Difference to {columns[0]['name']}, on the same test clips",
            page.text(
                "Dot: the difference in percentage points. Bar: its 95 % interval, green for p < 0.05. Line: zero."
            ),
            *(page.card(_differences(row, columns)) for row in rows if _tested(row)),
        ),
    ]


def _probe(row: Mapping[str, Any]) -> str:
    return ", ".join(part for part in (row["probe"], row["variant"]) if part)


def _tested(row: Mapping[str, Any]) -> bool:
    return any(cell is not None and "p" in cell for cell in row["cells"])


def p_words(p: float) -> str:
    """A p-value as text."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.4f}"


def _headline(columns: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    """How many of the differences a 5 % test calls real."""
    found = [cell for row in rows for cell in row["cells"][1:] if cell is not None and "p" in cell]
    sure = [cell for cell in found if cell["p"] < 0.05]
    better = sum(cell["difference"] > 0 for cell in sure)
    return (
        f"Of {len(found)} differences to {columns[0]['name']}, {len(sure)} have a p-value below 0.05: in {better} the "
        f"other is better, in {len(sure) - better} it is worse."
    )


def _differences(row: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> str:
    """One line per column: the interval of its difference on an axis that is the same for all of the row."""
    cells = [(c["name"], cell) for c, cell in zip(columns[1:], row["cells"][1:], strict=True) if cell is not None]
    reach = max([0.01, *(abs(bound) for _, cell in cells for bound in cell["difference_interval"])]) * 1.1
    lines = []
    for name, cell in cells:
        low, middle, high = (
            100 * (0.5 + value / (2 * reach))
            for value in (cell["difference_interval"][0], cell["difference"], cell["difference_interval"][1])
        )
        lines.append(
            f'<div class="bar wide"><span>{page.escape(name)}</span><div class="track"><div class="fill" style="left:'
            f'{low:.1f}%;right:{100 - high:.1f}%;background:var(--{"good" if cell["p"] < 0.05 else "random"})"></div>'
            f'<div class="dot" style="left:{middle:.1f}%"></div><div class="chance" style="left:50%"></div></div>'
            f"<span>{100 * cell['difference']:+.1f}, {page.escape(p_words(cell['p']))}; right alone "
            f"{cell['only_this']}, the first {cell['only_first']}</span></div>"
        )
    width = min(max(66, *(9 * len(name) for name, _ in cells)), 240)
    title = page.escape(f"{row['label']}, {_probe(row)} probe (axis: ± {100 * reach:.1f} %)")
    return f'<div style="--names:{width}px"><h3>{title}</h3>{"".join(lines)}</div>'
