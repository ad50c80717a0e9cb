"""The report's section on decoded forecasts, from a folder of results that ``--task reconstruction`` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.pages import drawing, page
from evals.pages.drawing import Chart, Line
from evals.pages.reconstruction_page import PICTURES, draw_strips
from evals.reconstruction.models import RANDOM
from evals.reconstruction.predicting import FORECAST
from evals.reconstruction.rows import GUESS, PREDICTED, TARGET, number
from evals.subjects import TRAINED

CEILING, COPY, MEAN = "ceiling", "copy last", "mean frame"
_WAYS = {
    TRAINED: (PREDICTED, TRAINED), RANDOM: (PREDICTED, RANDOM), MEAN: (GUESS, MEAN), COPY: (GUESS, COPY),
    CEILING: (TARGET, TRAINED),
}  # fmt: skip
_NAMES = {
    TRAINED: "predicted by the trained model", RANDOM: "predicted for a random encoder, by its own trained predictor",
    MEAN: "mean of the frames that were seen", COPY: "the last seen value, copied",
    CEILING: "the ceiling: target latents of the whole clip, decoded",
}  # fmt: skip
_LINES = ("truth", "seen", "copy last", f"predicted, {RANDOM}", f"predicted, {TRAINED}", "target latents")
_CLIPS = 4
_HEAD = (
    "", "PSNR at hidden places, dB", "where objects move, dB", "object near, % of hidden frames", "in the last one",
    "clips with it near in all",
)  # fmt: skip
_ABOUT = (
    "A second model is trained with masks that hide the second half of every clip, and predicts its latents from the "
    "first half, all at once. A small decoder, fitted to latents of training clips, turns what it expects of test "
    "clips into pixels; only the hidden ones are judged. A random encoder's latents hold pixels, too: with a predictor "
    "that was trained for them and a decoder of their own they stand beside the model, as do guesses that learn "
    "nothing. {trained}"
)
_NEAR = (
    "The object is near where the tracker finds it in the decoded frame at most one patch from where the simulator had "
    "it. The last two columns say in how many clips that is so in the last frame, and in every hidden frame."
)


def decoded_section(folder: Path | None) -> str:
    """Scores, ``near`` by frame, and strips of pictures of forecast clips; '' without a folder."""
    if folder is None:
        return ""
    results = json.loads((folder / "results.json").read_text())
    strips = json.loads((folder / PICTURES).read_text()).get(FORECAST, [])
    rows, task = compared(results["rows"], FORECAST), results["config"]["reconstruction"]
    trained = (
        f"That predictor had {task['predictor_steps']} steps of {task['batch_size']} clips, every decoder "
        f"{task['steps']}; {results['rows'][0]['clips']} clips are judged."
    )
    tracked = any(row["near"] is not None for row in rows.values())
    return page.section(
        "What do its predictions look like?",
        page.text(_ABOUT.format(trained=trained)),
        page.text(verdict(rows)),
        page.card(_table(rows)),
        page.text(_NEAR, soft=True) if tracked else "",
        page.card(page.image(drawing.charts([near_chart(rows)]), "object near by frame")) if tracked else "",
        *_pictures(strips),
    )  # fmt: skip


def compared(rows: Sequence[Mapping[str, Any]], places: str) -> dict[str, Mapping[str, Any]]:
    """Of the ``rows`` of results of the task, those of ``places`` that are compared: "trained" and "random" (what their
    predictors expect, decoded), "mean frame", "copy last" and "ceiling" (the trained model's target latents)."""
    known = {(row["what"], row["model"]): row for row in rows if row["places"] == places and row["layer"] is None}
    return {name: known[way] for name, way in _WAYS.items() if way in known}


def verdict(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Everything in two sentences, from ``compared`` rows."""
    if TRAINED not in rows:
        return "The model predicts nothing that could be decoded."
    said = [
        f"At hidden places its decoded predictions reach {_decibels(rows, 'psnr')}, where objects move "
        f"{_decibels(rows, 'moving')}."
    ]
    if rows[TRAINED]["near"] is not None:
        frames = len(rows[TRAINED]["frames"])
        others = [f"{name} {_share(row, 'near')}" for name, row in rows.items() if name != TRAINED]
        said.append(
            f"In decoded forecasts of {frames} frames the object is within one patch of its true place in "
            f"{_share(rows[TRAINED], 'near')} % of the frames ({', '.join(others)})."
        )
    return " ".join(said)


def _decibels(rows: Mapping[str, Mapping[str, Any]], key: str) -> str:
    others = [f"{name} {number(row[key], 1)}" for name, row in rows.items() if name != TRAINED]
    return f"{number(rows[TRAINED][key], 1)} dB ({', '.join(others)})"


def _share(row: Mapping[str, Any] | None, key: str) -> str:
    value = None if row is None else row[key]
    return number(None if value is None else 100 * value, 0)


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name, words in _NAMES.items():
        if name in rows:
            row = rows[name]
            decibels = [number(row[key], 1) for key in ("psnr", "moving")]
            last = row["frames"][-1] if row["frames"] else None
            lines.append([words, *decibels, _share(row, "near"), _share(last, "near"), _share(row, "throughout")])
    return page.table(_HEAD, lines)


def near_chart(rows: Mapping[str, Mapping[str, Any]]) -> Chart:
    """Share of clips whose object is near, by the number of frames after the last one seen; of ``compared`` rows."""
    lines = []
    for name in (TRAINED, RANDOM, COPY, CEILING):
        frames = rows[name]["frames"] if name in rows else []
        if frames:
            lines.append(Line(name, [1 + k for k in range(len(frames))], [100 * frame["near"] for frame in frames]))
    return Chart("Object within a patch of its true place", lines, "frames after the last one seen", "% of clips")


def _pictures(clips: Sequence[Mapping[str, str]]) -> list[str]:
    """The first clips, a line for each way; nothing where nothing was drawn."""
    chosen = [{name: strips[name] for name in _LINES if name in strips} for strips in clips[:_CLIPS]]
    if not chosen:
        return []
    words = f"The first {len(chosen)} test clips, time from left to right. Grey was hidden."
    return [page.text(words, soft=True), draw_strips(chosen)]
