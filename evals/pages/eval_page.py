"""report.html of an eval: intervals, confusions, classes, the most confident mistakes with pictures, what was run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evals import metrics
from evals.labelled import Labelled
from evals.outcome import MAX_ON_TEST, Outcome
from evals.pages import drawing, page, sections, tables, variant_sections
from evals.settings import variant_words
from jepa.data.sampling import ShortVideoError
from jepa.data.video import VideoError, resize_frames, scaled_size
from jepa.logging import duration
from jepa.types import ClipConfig

MOST_CLASSES = 24  # a confusion matrix of more is a list of its largest cells, and per-class bars show both ends
MOST_MISTAKES = 9
THUMBNAIL = 104  # pixels of the short side


def draw(results: Mapping[str, Any], outcomes: Sequence[Outcome], test: Labelled, clip: ClipConfig) -> str:
    """The whole page. ``results``: what results.json holds; ``clip``: that of the first encoder, for thumbnails."""
    one = outcomes[0].row
    first = [o for o in outcomes if (o.row.probe, o.row.encoder, o.row.variant) == (one.probe, one.encoder, "")]
    body = [
        f"<h1>{page.escape(results['model'])}, frozen</h1>",
        page.text(sections.headline(results)),
        page.facts(_head(results, first)),
        sections.probe_section(results),
        variant_sections.label_section(results),
        variant_sections.layer_section(results),
        *(_label_section(outcome, test, clip) for outcome in first),
        _undecodable_section(results),
        _heads_section(results),
        sections.run_section(results),
    ]
    return page.page(f"Eval of {results['model']}", body)


def _head(results: Mapping[str, Any], first: Sequence[Outcome]) -> dict[str, str]:
    return {
        "test clips": f"{max(o.row.num_test for o in first):,}",
        "training clips": f"{max(o.row.num_train for o in first):,}",
        "classes": ", ".join(str(o.row.num_classes) for o in first),
        "parameters in the encoder": f"{results['parameters'] / 1e6:.2f} M",
        "device": str(results["device"]),
        "time": duration(results["seconds"]["total"]),
    }


def _label_section(outcome: Outcome, test: Labelled, clip: ClipConfig) -> str:
    """Everything about one label, as the first encoder's first probe reads it."""
    row = outcome.row
    return page.section(
        f"{row.label}: where the {row.probe} probe of the {row.encoder} encoder is right and wrong",
        page.card("<h3>Confusion</h3>", _confusion(row.confusion, test.class_names[row.label])),
        page.card(f'<div class="bars">{_classes(row.per_class, outcome)}</div>'),
        page.card("<h3>Most confident mistakes</h3>", _mistakes(outcome, test, clip)),
    )


def _confusion(counts: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> str:
    """A matrix for a few classes; for many, the commonest confusions as a list."""
    if len(names) <= MOST_CLASSES:
        matrix = [[counts.get(true, {}).get(said, 0) for said in names] for true in names]
        how = "Rows: the true class. Columns: what the probe said. A stronger colour: a larger share of the row."
        return page.text(how, soft=True) + page.heat(names, matrix)
    wrong = sorted((-n, true, said) for true, row in counts.items() for said, n in row.items() if true != said)
    lines = [[true, said, -n, sum(counts[true].values())] for n, true, said in wrong[:20]]
    return page.table(["true class", "taken for", "clips", "of"], lines)


def _classes(per_class: Mapping[str, float | None], outcome: Outcome) -> str:
    """Accuracy of every class as bars, best first; of many classes the best and the worst."""
    count = np.bincount(outcome.labels[outcome.labels >= 0].numpy(), minlength=len(per_class))
    values = [
        (name, share, metrics.standard_error(share, int(n)))
        for (name, share), n in zip(per_class.items(), count, strict=True) if share is not None
    ]  # fmt: skip
    values.sort(key=lambda value: (-value[1], value[0]))
    if len(values) <= MOST_CLASSES:
        middle = -(-len(values) // 2)
        parts = [("Accuracy by class", values[:middle]), ("", values[middle:])]
    else:
        parts = [
            ("The best classes", values[: MOST_CLASSES // 2]),
            (f"The worst classes (of {len(values)})", values[-MOST_CLASSES // 2 :]),
        ]
    return "".join(page.bars(title or "\u00a0", part, outcome.row.chance) for title, part in parts if part)


def confident_mistakes(outcome: Outcome, most: int = MOST_MISTAKES) -> list[int]:
    """Items that were decoded and are wrong, the most probable prediction first (ties: in order)."""
    sure = outcome.probabilities.amax(dim=1)
    wrong = ((outcome.predictions >= 0) & (outcome.predictions != outcome.labels)).nonzero().flatten().tolist()
    return sorted(wrong, key=lambda item: (-float(sure[item]), item))[:most]


def _mistakes(outcome: Outcome, test: Labelled, clip: ClipConfig) -> str:
    names, figures = test.class_names[outcome.row.label], []
    for item in confident_mistakes(outcome):
        said = int(outcome.predictions[item])
        share = 100 * float(outcome.probabilities[item, said])
        span = test.source.span_s(item)
        where = "" if span is None else f", {span[0]:.1f} to {span[1]:.1f} s"
        words = (
            f"said {names[said]} ({share:.0f} %), is {names[int(outcome.labels[item])]}. "
            f"{os.path.basename(test.source.paths[item])}{where}"
        )
        figures.append(page.image(_thumbnail(test, item, clip), "first, middle and last frame", words)
                       or page.no_image("the file cannot be read any more", words))  # fmt: skip
    if not figures:
        return page.text("There is none: every test clip that can be decoded is right.")
    return f'<div class="grid three">{"".join(figures)}</div>'


def _thumbnail(test: Labelled, item: int, clip: ClipConfig) -> str:
    """First, middle and last frame of what the encoder saw, side by side, or one where they are the same (a picture);
    '' where the file is gone."""
    try:
        frames = test.source.load_clip(item, clip).frames
    except (VideoError, ShortVideoError):
        return ""
    still = bool((frames == frames[:1]).all())
    shown, side = (frames[:1], 2 * THUMBNAIL) if still else (frames[[0, len(frames) // 2, -1]], THUMBNAIL)
    small = drawing.enlarge(resize_frames(shown, *scaled_size(shown.shape[1], shown.shape[2], side)), side)
    return drawing.jpeg(drawing.side_by_side([frame[None] for frame in small], gap=4)[0])


def _undecodable_section(results: Mapping[str, Any]) -> str:
    parts = []
    for split, what in (("test", "and count as errors"), ("train", "and are left out")):
        if lines := [[clip["reason"]] for clip in results["undecodable"][split]]:
            parts.append(page.card(page.table([f"{len(lines)} {split} clips cannot be decoded {what}"], lines)))
        if absent := [[name] for name in results["missing"][split]]:
            title = f"{len(absent)} {split} videos of the annotations are not on the disk, and are left out"
            parts.append(page.card(page.details(title, page.table(["video"], absent))))
    return page.section("Clips without features", *parts)


def _heads_section(results: Mapping[str, Any]) -> str:
    """Every head of the grid on held-out training clips and, apart, on the test set."""
    lines, grids = [], []
    for row in results["rows"]:
        variant = variant_words(row.get("shots", "all"), row.get("layer"))
        name = ", ".join(part for part in (row["probe"], row["label"], row["encoder"], variant) if part)
        lines.append([
            row["probe"], row["label"], row["encoder"], variant, tables.setting_words(row["chosen"]),
            *(tables.share(row[key]) for key in ("held_out", "accuracy", "max_on_test")),
        ])  # fmt: skip
        grid = [
            [
                tables.setting_words(head["setting"]), tables.share(head["accuracy"]), tables.share(share),
                "reported" if head["setting"] == row["chosen"] else "",
            ]
            for head, share in zip(row["heads"], row["heads_on_test"], strict=True)
        ]  # fmt: skip
        if grid:
            grids.append(page.details(name, page.table(["head", "held out", "test (not used)", ""], grid)))
    head = ["probe", "label", "encoder", "variant", "chosen head", "held out", "test, reported", MAX_ON_TEST]
    if not any(line[3] for line in lines):
        head, *lines = ([*line[:3], *line[4:]] for line in (head, *lines))
    return page.section(
        "Heads",
        page.text(
            "The head with the best accuracy on held-out training clips is reported. What the best head on the test "
            "set would have scored stands beside it for comparison with papers that choose there: it flatters."
        ),
        page.card(page.table(head, lines)),
        page.card(*grids),
    )
