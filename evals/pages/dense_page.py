"""report.html of the task "dense": labels and answers side by side, classes and their confusions, errors by depth."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals.pages import drawing, page, task_page
from evals.pages.dense_look import Picture
from evals.pages.tables import share

SHOWN = 6  # images
_MOST_CLASSES = 24  # a confusion matrix of more is a list of its largest cells


def chosen(count: int) -> list[int]:
    """Rows of the images that are shown, evenly spaced: not chosen by their scores."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, SHOWN))})


def draw(results: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The whole page. ``results``: what results.json holds."""
    rows = results["rows"]
    depth = rows[0]["measure"] != "mIoU"
    others = ", ".join(f"{row['encoder']} {_score(row)}" for row in rows[1:])
    headline = (
        f"One linear layer on frozen patch features of the {rows[0]['encoder']} encoder: {rows[0]['measure']} "
        f"{_score(rows[0])} ({others}). {'Lower is better.' if depth else ''}"
    )
    facts = {"training images": f"{rows[0]['num_train']:,}", "test images": f"{rows[0]['num_test']:,}"}
    inside = _ranges(results) if depth else _classes(rows) + _confusion(results["looks"])
    body = [_scores(rows, depth), _pictures(pictures, depth), inside, _unreadable(results, depth)]
    return task_page.draw(results, "depth" if depth else "segmentation", headline, facts, body)


def _score(row: Mapping[str, Any], key: str = "score") -> str:
    value = row[key]
    if row["measure"] == "mIoU":
        return share(value)
    return "" if value is None else f"{value:.3f}"


def _scores(rows: Sequence[Mapping[str, Any]], depth: bool) -> str:
    lines = [
        [row["encoder"], f"{_score(row)} [{_score(row, 'low')},\u00a0{_score(row, 'high')}]",
         share(row["second"]), _score(row, "held_out"), _score(row, "best_on_test")]
        for row in rows
    ]  # fmt: skip
    head = ["encoder", rows[0]["measure"], "within a factor of 1.25 (%)" if depth else "pixel accuracy (%)",
            "held out", "best head on test (not used)"]  # fmt: skip
    unit = "Metres" if depth else "In per cent"
    bars = "" if depth else page.bars("mIoU", [(row["encoder"], row["score"], _score(row)) for row in rows])
    return page.section(
        "Scores",
        page.text(
            f"{unit}, with the 95 % bootstrap interval over test images. The head is chosen on held-out training "
            f"images. `constant`: always {'the mean depth' if depth else 'the commonest class'}."
        ),
        page.card(f'<div class="bars">{bars}</div>' if bars else ""),
        page.card(page.table(head, lines)),
    )


def _pictures(pictures: Sequence[Picture], depth: bool) -> str:
    if not pictures:
        return ""
    if depth:
        known = np.concatenate([picture.label[~np.isnan(picture.label)] for picture in pictures])
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        legend = _depth_bar(low, high)
    else:
        count = 1 + max(int(maps.max()) for p in pictures for maps in (p.label, *p.answers.values()))
        legend = _legend(pictures, count)
    names = list(pictures[0].answers)
    heads = "".join(f"<th>{page.escape(name)}</th>" for name in ("image", "label", *names))
    lines = [f"<tr>{heads}</tr>"]
    for picture in pictures:
        cells = [picture.pixels]
        for found in (picture.label, *picture.answers.values()):
            cells.append(drawing.depth_colours(found, low, high) if depth else _class_colours(found, count))
        images = (f'<td><img alt="{page.escape(os.path.basename(picture.path))}" src="{drawing.png(c)}"></td>'
                  for c in cells)  # fmt: skip
        lines.append(f"<tr>{''.join(images)}</tr>")
    return page.section(
        "Labels and answers",
        page.text(f"{len(pictures)} test images, evenly spaced over the list: not chosen by their scores."),
        page.card(legend, f'<div class="scroll"><table class="sides">{"".join(lines)}</table></div>'),
    )


def _class_colours(classes: NDArray[Any], count: int) -> drawing.Frames:
    return drawing.palette(count + 1)[classes + 1]  # black: no class


def _legend(pictures: Sequence[Picture], count: int) -> str:
    """The colours of the classes that occur in the pictures."""
    seen = sorted({int(c) for p in pictures for maps in (p.label, *p.answers.values()) for c in np.unique(maps)})
    colours = drawing.palette(count + 1)
    keys = (
        f'<span><i style="background:rgb({",".join(str(v) for v in colours[c + 1])})"></i>'
        f"{'no class' if c < 0 else f'class {c}'}</span>"
        for c in seen
    )
    return f'<div class="legend">{"".join(keys)}</div>'


def _depth_bar(low: float, high: float) -> str:
    bar = drawing.depth_colours(np.linspace(low, high, 256)[None].repeat(10, axis=0), low, high)
    return (
        f'<div class="legend"><span>{low:.2f} m</span><img alt="colours of depths" src="{drawing.png(bar)}">'
        f"<span>{high:.2f} m</span><span><i style=\"background:rgb(128,128,128)\"></i>not measured</span></div>"
    )  # fmt: skip


def _classes(rows: Sequence[Mapping[str, Any]]) -> str:
    """IoU of every class by the first encoder, best first, beside the others in a table."""
    own = [(c, value) for c, value in enumerate(rows[0]["classes"]) if value is not None]
    own.sort(key=lambda pair: -pair[1])
    values = [(f"class {c}", value, share(value)) for c, value in own]
    half = -(-len(values) // 2)
    bars = "".join(page.bars(title, part) for title, part in (
        (f"IoU by class, {rows[0]['encoder']}", values[:half]), ("\u00a0", values[half:])) if part)  # fmt: skip
    lines = [[f"class {c}", *(share(row["classes"][c]) for row in rows)] for c in range(len(rows[0]["classes"]))]
    best = [1 + max(range(len(rows)), key=lambda i: rows[i]["classes"][c] or 0.0) for c in range(len(lines))]
    whole = page.table(["IoU (%)", *(row["encoder"] for row in rows)], lines, best)
    return page.section(
        "Classes", page.card(f'<div class="bars">{bars}</div>'), page.card(page.details("All encoders", whole))
    )


def _confusion(looks: Mapping[str, Sequence[Sequence[int]]]) -> str:
    """What the first encoder's head takes for what: a matrix in per cent, or the commonest mistakes of many classes."""
    name, counts = next((name, np.array(counts)) for name, counts in looks.items())
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    title = f"What the {name} encoder's head takes for what"
    if len(counts) <= _MOST_CLASSES:
        how = "Per cent of a class's labelled pixels. Rows: the true class. Columns: the answer."
        names = [f"class {c}" for c in range(len(counts))]
        return page.section(title, page.card(page.text(how, soft=True), page.heat(names, shares.round().astype(int))))
    wrong = sorted((-int(counts[i, j]), i, j) for i, j in np.argwhere(counts) if i != j)[:20]
    lines = [[f"class {i}", f"class {j}", f"{-n:,}", f"{shares[i, j]:.1f}"] for n, i, j in wrong]
    return page.section(title, page.card(page.table(["true class", "taken for", "pixels", "% of the class"], lines)))


def _ranges(results: Mapping[str, Any]) -> str:
    """Error by range of true depth, a column per encoder."""
    edges, looks = results["depth_edges"], results["looks"]
    lines = []
    for place, (low, high) in enumerate(itertools.pairwise(edges)):
        words = f"{low:.2f} to {high:.2f}"
        words = f"below {high:.2f}" if place == 0 else f"from {low:.2f}" if place == len(edges) - 2 else words
        words = "all" if len(edges) == 2 else words
        sums = [looks[name][place] for name in looks]
        cells = [f"{(s[1] / s[0]) ** 0.5:.3f} ({100 * s[2] / s[0]:.0f} %)" if s[0] else "" for s in sums]
        lines.append([words, f"{int(sums[0][0]):,}", *cells])
    return page.section(
        "Error by depth",
        page.text("RMSE in metres (mean error relative to the depth). Ranges hold about equally many training pixels."),
        page.card(page.table(["true depth (m)", "test pixels", *looks], lines)),
    )


def _unreadable(results: Mapping[str, Any], depth: bool) -> str:
    parts = []
    test = "and are left out" if depth else "and count as errors in every pixel"
    for split, what in (("test", test), ("train", "and are left out")):
        if lines := [[one["reason"]] for one in results["unreadable"][split]]:
            parts.append(page.card(page.table([f"{len(lines)} {split} images cannot be read {what}"], lines)))
    return page.section("Images without features", *parts)
