"""report.html of the task "physics": accuracy by condition, context length and measure, AUROC, surprise over time."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from evals.pages import drawing, page, task_page
from evals.pages.drawing import Chart, Line
from evals.pages.physics_section import score_table, verdict

_WORDS = {"mean": "the mean surprise of a video's windows", "max": "the largest surprise of a video's windows"}


def draw(results: Mapping[str, Any], picture: bytes) -> str:
    """The whole page. ``results``: what results.json holds; ``picture``: physics.png, or b''."""
    rows = results["rows"]
    facts = {
        "pairs": str(len(results["pairs"])), "scenes": str(max(row["scenes"] for row in rows)),
        "measure of surprise": str(results["config"]["watching"]["measure"]),
    }  # fmt: skip
    body = [_scores(rows), _contexts(results["context_rows"]), _picture(picture), _unreadable(results)]
    return task_page.draw(results, "intuitive physics", verdict(rows), facts, body)


def _scores(rows: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for over, words in _WORDS.items():
        parts.append(page.card(f"<h3>Pairs right, by {words}</h3>", score_table(rows, over)))
        parts.append(page.card(page.details(f"AUROC over videos, by {words}", score_table(rows, over, auroc=True))))
    return page.section(
        "Is it surprised when a law is broken?",
        page.text(
            "Pairs of a possible and an impossible video. Windows slide over each; the first part of a window is seen "
            "and the rest is predicted, and surprise is the error. A pair is right when the impossible video surprises "
            "more: share in per cent [95 % bootstrap interval over scenes], 50 is chance. AUROC compares all videos of "
            "a condition, whatever their pair: 0.5 is chance."
        ),
        *parts,
    )


def _contexts(rows: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy over all pairs by context length as curves, and each length's table folded away."""
    lengths = sorted({row["context"] for row in rows})
    last = list(dict.fromkeys(row["condition"] for row in rows))[-1]  # that of all pairs, where there are several
    charts, tables = [], []
    for over, words in _WORDS.items():
        own = [row for row in rows if (row["over"], row["condition"]) == (over, last)]
        lines = []
        for name in dict.fromkeys(row["predictor"] for row in own):
            points = [row for row in own if row["predictor"] == name]
            lines.append(Line(name, [r["context"] for r in points], [100 * r["accuracy"] for r in points]))
        ticks = [(length, str(length)) for length in lengths]
        charts.append(Chart(f"By {words}", lines, "tubelets seen", "pairs right (%)", ticks, level=("chance", 50.0)))
        for length in lengths:
            at = [row for row in rows if row["context"] == length]
            tables.append(page.details(f"{length} tubelets seen, by {words}", score_table(at, over)))
    return page.section(
        "How much has to be seen?",
        page.text("Pairs right by the surprise of one context length alone, over all pairs; below, by condition."),
        page.card(page.image(drawing.charts(charts), "accuracy by context length")),
        page.card(*tables),
    )


def _picture(picture: bytes) -> str:
    if not picture:
        return ""
    uri = "data:image/png;base64," + base64.b64encode(picture).decode()
    words = (
        "The first pair of each condition, and the model's surprise at both videos over time (the mean over context "
        "lengths). It can rise before the event: the target encoder looks at whole windows."
    )
    return page.section("Surprise over time", page.card(page.image(uri, "surprise under frames of both videos", words)))


def _unreadable(results: Mapping[str, Any]) -> str:
    lines = [[reason] for reason in results["unreadable"].values()]
    title = f"{len(lines)} videos cannot be read: their pairs count as wrong"
    return page.section("Videos without surprise", page.card(page.table([title], lines))) if lines else ""
