"""report.html of the task "world_model": error by horizon, decoded states, success of planning."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from evals.pages import drawing, page, task_page
from evals.pages.drawing import Chart, Line
from evals.world_models.rows import decoding_cells, error_cells, planning_cells


def draw(results: Mapping[str, Any], picture: bytes) -> str:
    """The whole page. ``results``: what results.json holds; ``picture``: states.png, or b''."""
    rows = results["rows"]
    first = rows[0]
    facts = {
        "rollouts": f"{first['windows']:,}", "test episodes": f"{first['episodes']:,}",
        "training episodes": f"{first['fit_episodes']:,}",
    }  # fmt: skip
    body = [_errors(rows), _decoding(rows, picture), _planning(rows), _notes(results["notes"])]
    return task_page.draw(results, "a world model", _headline(first), facts, body)


def _headline(row: Mapping[str, Any]) -> str:
    last = row["prediction"][-1]
    steps = "1 step" if last["horizon"] == 1 else f"{last['horizon']} steps"
    said = [f"{steps} ahead the error is {last['error']:.4f}"]
    if last["ratio"] is not None:
        said[0] += f", {last['ratio']:.2f} of that of the last seen latents"
    if row["decoding"]:
        said.append(f"the true state is read from its latents with R2 {row['decoding'][0]['r2']:.3f}")
    if row["planning"]:
        shares = [f"{part['agent']} {100 * part['success_rate']:.0f} %" for part in row["planning"]]
        said.append(f"goals reached: {', '.join(shares)}")
    text = "; ".join(said) + "."
    return text[0].upper() + text[1:]


def _errors(rows: Sequence[Mapping[str, Any]]) -> str:
    lines, shares = [], []
    for row in rows:
        own, suffix = row["prediction"], "" if len(rows) == 1 else f", {row['model']}"
        steps = [part["horizon"] for part in own]
        for key, name in (("error", "model"), ("copy", "last latents again"), ("mean", "mean latents")):
            spread = [(part[f"{key}_interval"][1] - part[f"{key}_interval"][0]) / 2 for part in own]
            lines.append(Line(f"{name}{suffix}", steps, [part[key] for part in own], spread))
        known = [part for part in own if part["ratio"] is not None]
        shares.append(Line(row["model"], [part["horizon"] for part in known], [part["ratio"] for part in known]))
    ticks = [(h, str(h)) for h in sorted({part["horizon"] for row in rows for part in row["prediction"]})]
    charts = [
        Chart("Error of latents", lines, "steps ahead", f"{rows[0]['measure']} error", ticks, log_x=True),
        Chart("Share of copying", shares, "steps ahead", "error / copy", ticks, log_x=True, level=("copy", 1.0)),
    ]
    beyond = any(part["beyond"] for row in rows for part in row["prediction"])
    words = (
        f"Open-loop rollouts with the recorded actions, after {rows[0]['context']} given frame(s); bands and brackets "
        "are 95 % bootstrap intervals over episodes." + (" * beyond the clips of training." if beyond else "")
    )
    return page.section(
        "Error against horizon", page.text(words), page.card(page.image(drawing.charts(charts), "error by horizon")),
        page.card(page.table(*error_cells(rows))),
    )  # fmt: skip


def _decoding(rows: Sequence[Mapping[str, Any]], picture: bytes) -> str:
    head, cells = decoding_cells(rows)
    if not cells:
        return ""
    uri = "data:image/png;base64," + base64.b64encode(picture).decode() if picture else ""
    words = (
        "Ridge regression fitted on frames of training episodes, its strength chosen on some of these that were held "
        "out, scored on test episodes: R2 of every state. Predicted and copied latents are read by the readout of the "
        "encoded ones, against the state at that time. Random: the same architecture with fresh weights."
    )
    return page.section(
        "True states in latents", page.text(words), page.card(page.image(uri, "decoded against true states")),
        page.card(page.table(head, cells)), page.card(page.image(drawing.charts(_by_horizon(rows)), "R2 by horizon")),
    )  # fmt: skip


def _by_horizon(rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    lines = []
    for row in rows:
        steps, suffix = [part["horizon"] for part in row["ahead"]], "" if len(rows) == 1 else f", {row['model']}"
        for side in ("predicted", "encoded", "copied") if steps else ():
            lines.append(Line(f"{side}{suffix}", steps, [part[side]["r2"] for part in row["ahead"]]))
    if not lines:
        return []
    ticks = [(h, str(h)) for h in sorted({part["horizon"] for row in rows for part in row["ahead"]})]
    return [Chart("R2 of the state so many steps ahead", lines, "steps ahead", "R2", ticks, log_x=True)]


def _planning(rows: Sequence[Mapping[str, Any]]) -> str:
    head, cells = planning_cells(rows)
    if not cells:
        return ""
    bars = [
        (part["agent"], part["success_rate"],
         task_page.interval_words(part["success_rate"], part["low"], part["high"]))
        for row in rows for part in row["planning"]
    ]  # fmt: skip
    words = "The same starts and goals for all; brackets are Wilson's 95 % intervals."
    return page.section("Goals reached by planning", page.text(words), page.card(page.bars("", bars)),
                        page.card(page.table(head, cells)))  # fmt: skip


def _notes(notes: str) -> str:
    return page.section("Notes", *(page.text(part) for part in notes.split("\n\n"))) if notes else ""
