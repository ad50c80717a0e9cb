"""report.html of the task "reconstruction": scores by places, what every layer keeps, forecasts, decoded clips."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evals.pages import drawing, page, task_page
from evals.pages.drawing import SPREAD_TOP, Chart, Frames, Line
from evals.pixel_metrics import spread
from evals.reconstruction.rows import ALL, FORECAST, HEAD, MASKED, ROLLOUT, TITLES, cells, words
from evals.reconstruction.sampled import sampled_table, sampled_words
from evals.reconstruction.sampling import SHOWN, Drawn

PICTURES = "pictures.json"  # the strips of ``Pictures``, for other pages
_HEIGHT, _STILLS = 72, 8
_ABOUT = {
    ALL: "A decoder is fitted to each kind of frozen latents and judged on clips that it has not seen. That this works "
    "for a random encoder, too, is why this table alone says nothing about a model.",
    MASKED: "Places are hidden by the model's own masks. `predicted`: the predictor's latents, decoded; `target`: "
    "latents of the whole clip, which the model did not have, by the same decoder: the ceiling.",
    FORECAST: "Only the first part of each clip is seen, and every later place is predicted at once.",
    ROLLOUT: "Open-loop: the first frames are given, and then nothing but actions. `target`: the latents of the true "
    "frames, decoded.",
}


class Pictures:
    """The first ``count`` clips as they were, as they were seen and as they were decoded, for the report."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.shown: dict[str, dict[str, Frames]] = {}

    def add(self, places: str, name: str, pixels: Tensor, first: bool = False) -> None:
        """Keep of ``pixels`` uint8 ``[K, T, H, W, 3]`` what is drawn; ``first``: above all others."""
        kept = drawing.shrink(pixels[: self.count].cpu().numpy(), 2 * _HEIGHT)
        own = self.shown.setdefault(places, {})
        self.shown[places] = {name: kept, **own} if first else {**own, name: kept}

    def add_samples(self, places: str, name: str, drawn: Drawn) -> None:
        """Keep the mean of samples, some of them, and their spread: black where all agree."""
        samples = drawn.kept  # [P, S, C, T, H, W]
        self.add(places, f"{name}: mean of {samples.shape[1]}", drawn.mean)
        for number in range(min(SHOWN, samples.shape[1])):
            pixels = (samples[:, number] * 255).round().byte().movedim(1, -1)
            self.add(places, f"{name}: sample {number + 1}", pixels)
        if len(samples):
            self.add(places, f"{name}: spread", torch.from_numpy(drawing.heat(spread(samples)[:, 0], SPREAD_TOP)))

    def strips(self, places: str) -> list[dict[str, str]]:
        """Of every clip that is drawn, its frames side by side: data URIs by the names of the ways."""
        own = self.shown.get(places, {})
        found = [
            {name: drawing.jpeg(drawing.side_by_side([f[None] for f in _stills(clips[number])], gap=4)[0], 90)
             for name, clips in own.items() if number < len(clips)}
            for number in range(self.count)
        ]  # fmt: skip
        return [lines for lines in found if lines]

    def draw(self, places: str) -> str:
        """Strips of frames, a line for each way, a card for each clip."""
        return draw_strips(self.strips(places))

    def pack(self) -> bytes:
        """The file ``PICTURES``: ``strips`` by places, for whoever draws some of them elsewhere."""
        return json.dumps({places: self.strips(places) for places in self.shown}).encode()


def draw_strips(clips: Sequence[Mapping[str, str]]) -> str:
    """A card for each clip, a line for each of its strips (data URIs by name)."""
    cards = []
    for strips in clips:
        lines = [
            f'<tr><th>{page.escape(name)}</th><td><img alt="{page.escape(name)}" src="{strip}"></td></tr>'
            for name, strip in strips.items()
        ]
        cards.append(page.card(f'<div class="scroll"><table class="strips">{"".join(lines)}</table></div>'))
    return "".join(cards)


def _stills(clip: Frames) -> Frames:
    """At most so many frames, evenly, from the first to the last."""
    chosen = np.unique(np.linspace(0, len(clip) - 1, min(len(clip), _STILLS)).round().astype(np.int64))
    return drawing.enlarge(clip[chosen], _HEIGHT)


def draw(results: Mapping[str, Any], pictures: Pictures) -> str:
    """The whole page. ``results``: what results.json holds."""
    rows = results["rows"]
    facts = {
        "test clips": str(rows[0]["clips"]), "training clips": str(results["train_clips"]),
        "parameters in the decoder": f"{rows[0]['parameters'] / 1e6:.2f} M",
    }  # fmt: skip
    sampled = results.get("sampled", [])  # results that are older than samples have none
    body = [_section(rows, sampled, places, pictures, results["floor"]) for places in TITLES]
    notes = results["notes"]
    body.append(page.section("Notes", *(page.text(part) for part in notes.split("\n\n"))) if notes else "")
    return task_page.draw(results, "pixels in latents", headline(rows), facts, body)


def headline(rows: Sequence[Mapping[str, Any]]) -> str:
    """The numbers that matter, in one sentence."""
    said = []
    for places, name in ((MASKED, "at masked places"), (FORECAST, "in forecasts"), (ROLLOUT, "in rollouts")):
        known = {(row["what"], row["model"]): row for row in rows if row["places"] == places}
        own = known.get(("predicted", "trained"))
        if own is None:
            continue
        others = [("random encoder", "predicted", "random"), *((g, "guess", g) for g in ("mean frame", "copy last"))]
        beside = [
            f"{words} {known[what, model]['psnr']:.1f}" for words, what, model in others if (what, model) in known
        ]
        ceiling = known["target", "trained"]["psnr"]
        said.append(f"{name} predictions reach {own['psnr']:.1f} dB of {ceiling:.1f} ({', '.join(beside)})")
    if not said:
        return f"Target latents decode to {rows[0]['psnr']:.1f} dB; there is no predictor to look at."
    return "Decoded, " + "; ".join(said) + "."


def _section(
    rows: Sequence[Mapping[str, Any]], sampled: Sequence[Mapping[str, Any]], places: str, pictures: Pictures,
    floor: Mapping[str, float | None],
) -> str:  # fmt: skip
    lines = cells(rows, places)
    if not lines:
        return ""
    charts = drawing.charts([*_charts(rows, places), *_best(rows, sampled, places)])
    drawn = sampled_table(sampled, places)
    below = []
    if drawn.lines:
        below = [page.card(page.table(drawn.head, drawn.lines)), page.text(sampled_words(sampled), soft=True)]
    return page.section(
        TITLES[places], page.text(_ABOUT[places]), page.card(page.table(HEAD, lines)),
        page.text(words(rows, floor), soft=True), *below, page.card(page.image(charts, "scores")),
        pictures.draw(places),
    )  # fmt: skip


def _best(
    rows: Sequence[Mapping[str, Any]], sampled: Sequence[Mapping[str, Any]], places: str
) -> list[Chart]:  # fmt: skip
    """PSNR of the best of k samples against k; across it the deterministic decoder of the latents that the
    eval's own model predicts, where it predicts any."""
    own = [row for row in sampled if row["places"] == places]
    lines = [
        Line(f"{row['model']}, {row['what']}", [b["k"] for b in row["best"]], [b["psnr"] for b in row["best"]])
        for row in own
    ]  # fmt: skip
    if not lines:
        return []
    known = {row["what"]: row["psnr"] for row in rows
             if row["places"] == places and row["model"] == "trained" and row["layer"] is None}  # fmt: skip
    level = ("deterministic, predicted", known["predicted"]) if "predicted" in known else None
    ticks = [(b["k"], str(b["k"])) for b in own[0]["best"]]
    return [Chart("Best of k samples", lines, "k", "PSNR, dB", ticks, log_x=True, level=level)]


def _charts(rows: Sequence[Mapping[str, Any]], places: str) -> list[Chart]:
    own = [row for row in rows if row["places"] == places]
    if places in (FORECAST, ROLLOUT):
        return _by_frame(own, "frame" if places == FORECAST else "steps ahead")
    return _by_layer(own) if places == ALL else []


def _by_layer(rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    found = []
    for key, title, label in (("layer", "What each layer keeps", "block"), ("tokens", "By number of tokens", "tokens")):
        lines = []
        for model in dict.fromkeys(row["model"] for row in rows if row["what"] == "target"):
            own = [row for row in rows if row["model"] == model and row["what"] == "target"]
            own = [row for row in own if (row["layer"] is not None) == (key == "layer")]
            own.sort(key=lambda row: row[key])
            if len(own) > 1:
                lines.append(Line(model, [row[key] for row in own], [row["psnr"] for row in own]))
        if lines:
            ticks = [(x, str(x)) for x in sorted({x for line in lines for x in line.x})]
            found.append(Chart(title, lines, label, "PSNR, dB", ticks, log_x=key == "tokens"))
    return found


def _by_frame(rows: Sequence[Mapping[str, Any]], along: str) -> list[Chart]:
    found = []
    for key, title, label in (("psnr", "PSNR of every frame", "dB"), ("near", "Object within a patch", "share")):
        lines = [
            Line(f"{row['model']}, {row['what']}", [f["frame"] for f in row["frames"]], [f[key] for f in row["frames"]])
            for row in rows if row["frames"] and row["frames"][0][key] is not None
        ]  # fmt: skip
        if lines:
            found.append(Chart(title, lines, along, label))
    return found
