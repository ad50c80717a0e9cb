"""report.html of the task "latent_action": six measures, what codes mean, agreement against the number of labels."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from evals.pages import drawing, page, task_page
from evals.pages.drawing import Chart, Line

_WORDS = (
    "Error: of the next frame's latents, mean absolute. Between: 0 is a model without actions, 1 one with unrestricted "
    "ones. Controllability: share of the error with wrong actions that the right one takes away. Leakage: across a cut "
    "to another video, how much of the new frame the action carries over (lower is better; 1 is a copy). Cycle: error "
    "after A to B and back, over that of one step. Perplexity: how many codes are used, as if evenly."
)


def draw(results: Mapping[str, Any], picture: bytes) -> str:
    """The whole page. ``results``: what results.json holds; ``picture``: latent_actions.png, or b''."""
    rows = results["rows"]
    first = rows[0]
    headline = (
        f"With the actions that it infers (bottleneck {first['bottleneck']}), the model's error is "
        f"{first['inferred'] / first['copy']:.2f} of that of the last frame again; wrong actions "
        f"{'raise' if first['controllability'] > 0 else 'do not raise'} it (controllability "
        f"{first['controllability']:.2f}), and across scene cuts they carry {100 * first['leakage']:.0f} % of what "
        "they cannot know."
    )
    facts = {"clips": f"{first['clips']:,}", "transitions": f"{first['transitions']:,}"}
    if first["perplexity"] is not None:
        facts["codes in use"] = f"{first['perplexity']:.1f} of {len(first['usage'])}"
    body = [_measures(rows), _meaning(picture), _agreement(rows)]
    return task_page.draw(results, "latent actions", headline, facts, body)


def _measures(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["model", "bottleneck", "error", "copy", "action 0", "wrong action", "between", "controllability", "leakage",
            "cycle", "perplexity", "code information"]  # fmt: skip
    lines = []
    for row in rows:
        wrong = row["shuffled"] if row["random"] is None else row["random"]
        errors = [f"{value:.4f}" for value in (row["inferred"], row["copy"], row["zero"], wrong)]
        keys = ("between", "controllability", "leakage", "cycle", "perplexity", "information")
        values = ["" if row[key] is None else f"{row[key]:.3f}" for key in keys]
        lines.append([row["model"], row["bottleneck"], *errors, *values])
    return page.section("Measures", page.text(_WORDS), page.card(page.table(head, lines)))


def _meaning(picture: bytes) -> str:
    if not picture:
        return ""
    uri = "data:image/png;base64," + base64.b64encode(picture).decode()
    return page.section(
        "What actions mean",
        page.text(
            "Codes: of the transitions that have a code, the share that really went in each direction. Continuous "
            "actions: their first two principal components, coloured by the true direction."
        ),
        page.card(page.image(uri, "codes and true directions")),
    )


def _agreement(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        Line(
            f"{row['model']} ({row['bottleneck']})", [part["labels"] for part in row["agreement"]],
            [part["r2"] for part in row["agreement"]], [part["spread"] for part in row["agreement"]],
        )
        for row in rows if row["agreement"] and row["bottleneck"] != "zero"
    ]  # fmt: skip
    if not lines:
        return ""
    chart = Chart("", lines, "labelled transitions", "R2 of true actions", log_x=True)
    return page.section(
        "Agreement with true actions",
        page.text(
            "Ridge regression from inferred to true actions, fitted on so many labelled transitions and scored on all "
            "others; the band is the standard deviation over draws."
        ),
        page.card(page.image(drawing.charts([chart]), "agreement against labels")),
    )
