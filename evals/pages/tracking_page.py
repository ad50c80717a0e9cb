"""report.html of the task "tracking": scores by encoder and object, and masks over the frames of a few sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evals.pages import drawing, page, task_page

SEQUENCES, FRAMES, HEIGHT = 4, 24, 144  # that are shown: so many, so many frames of each, pixels high
_STILLS = 6
_RATE = 8.0  # frames per second of the animations
TRUTH = "annotated"


class Example(NamedTuple):
    """A sequence to be drawn: numbers of its ``objects``, small ``frames`` uint8 ``[T, H, W, 3]``, the ``true`` masks
    uint8 ``[T, H, W]`` (objects by place, from 1; 0: none) and those of every tracker."""

    name: str
    objects: list[int]
    frames: drawing.Frames
    true: NDArray[np.uint8]
    masks: dict[str, NDArray[np.uint8]]


def evenly(count: int, most: int = SEQUENCES) -> list[int]:
    """At most so many of ``count`` things, evenly spaced from the first to the last: not chosen by their scores."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def draw(results: Mapping[str, Any], examples: Sequence[Example]) -> str:
    """The whole page. ``results``: what results.json holds."""
    rows = results["rows"]
    by_name = {row["encoder"]: row for row in rows}
    others = [f"{name} {100 * row['jf']:.1f}" for name, row in by_name.items() if name != rows[0]["encoder"]]
    headline = (
        f"First masks, carried along by the {rows[0]['encoder']} encoder's patch features alone, reach J&F "
        f"{100 * rows[0]['jf']:.1f} ({', '.join(others)}). `still`: the first frame's masks, never moved."
    )
    facts = {"sequences": str(rows[0]["sequences"]), "objects": str(rows[0]["objects"])}
    body = [_scores(rows), _pictures(examples), _objects(results["objects"])]
    return task_page.draw(results, "tracking", headline, facts, body)


def _scores(rows: Sequence[Mapping[str, Any]]) -> str:
    bars = [(row["encoder"], row["jf"], f"{100 * row['jf']:.1f}") for row in rows]
    keys = ("j_mean", "j_recall", "f_mean", "f_recall")
    lines = [
        [row["encoder"], task_page.interval_words(row["jf"], row["low"], row["high"]),
         *(f"{100 * row[key]:.1f}" for key in keys)]
        for row in rows
    ]  # fmt: skip
    return page.section(
        "Scores",
        page.text(
            "In per cent. J: intersection over union of masks. F: agreement of contours. J&F: their mean, with the "
            "95 % bootstrap interval over sequences. Recall: share of an object's frames above 0.5."
        ),
        page.card(f'<div class="bars">{page.bars("J&F", bars)}</div>'),
        page.card(page.table(["encoder", "J&F", "J mean", "J recall", "F mean", "F recall"], lines)),
    )


def _pictures(examples: Sequence[Example]) -> str:
    cards = []
    for example in examples:
        names = [TRUTH, *example.masks]
        shown = {name: drawing.overlay(example.frames, masks) for name, masks in zip(names, _masks(example))}
        stills = evenly(len(example.frames), _STILLS)
        strips = []
        for name, frames in shown.items():
            strip = drawing.jpeg(drawing.side_by_side([frames[n][None] for n in stills], gap=4)[0])
            strips.append(f'<tr><th>{page.escape(name)}</th><td><img alt="masks by {page.escape(name)}" '
                          f'src="{strip}"></td></tr>')  # fmt: skip
        moving = [TRUTH, next(iter(example.masks)), list(example.masks)[-1]]
        row = drawing.side_by_side([shown[name] for name in moving])
        cards.append(page.card(
            f"<h3>{page.escape(example.name)}</h3>",
            f'<div class="scroll"><table class="strips">{"".join(strips)}</table></div>',
            page.details(f"Moving: {', '.join(moving)}", page.image(drawing.gif(row, _RATE), "masks over the video")),
        ))  # fmt: skip
    return page.section(
        "Masks over the frames",
        page.text(
            f"{len(examples)} sequences, evenly spaced over the list, from the first to the last frame. A colour is an "
            "object; the first frame's masks are given."
        ),
        *cards,
    )


def _masks(example: Example) -> list[NDArray[np.uint8]]:
    return [example.true, *example.masks.values()]


def _objects(objects: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """J&F of every object by every encoder."""
    names = list(objects)
    lines, best = [], []
    for place, one in enumerate(objects[names[0]]):
        means = [(np.mean(objects[name][place]["j"]), np.mean(objects[name][place]["f"])) for name in names]
        whole = [float(j + f) / 2 for j, f in means]
        cells = [f"{100 * all_:.1f} ({100 * j:.0f}, {100 * f:.0f})" for all_, (j, f) in zip(whole, means)]
        lines.append([one["sequence"], one["number"], len(one["j"]), *cells])
        best.append(3 + whole.index(max(whole)))
    return page.section(
        "Every object",
        page.text("J&F in per cent (J, F), means over the judged frames."),
        page.card(page.table(["sequence", "object", "frames", *names], lines, best)),
    )
