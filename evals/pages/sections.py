"""The parts of a run's report: each turns numbers or clips into a piece of HTML that says what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from evals.features.representations import Representation
from evals.pages import drawing, page, tables
from evals.pages.drawing import Panel
from jepa.config import from_dict
from jepa.logging import duration
from jepa.masks import MaskConfig, build_masks
from jepa.models.encoder import Encoder
from jepa.types import ClipConfig

_TERMS = ("prediction", "variance", "covariance", "sigreg")
PANELS = (
    Panel("Error on held-out clips", (
        ("monitor/error", "predictor"), ("monitor/error_mean_target", "always the mean target"),
        ("monitor/error_context_mean", "mean of the context"),
    )),
    Panel("Effective rank of tokens (RankMe)", (
        ("monitor/rankme", "target encoder"), ("monitor/online_rankme", "context encoder"),
    )),
    Panel("Standard deviation of features", (
        ("monitor/feature_std", "tokens"), ("monitor/pooled_std", "clips (pooled)"),
        ("monitor/online_feature_std", "tokens, context encoder"),
    )),
    Panel("Mean cosine between clips", (("monitor/cosine", "target encoder"),)),
    Panel("Nearest-neighbour accuracy, held-out clips", (("monitor/knn", "kNN"), ("monitor/knn_chance", "chance"))),
)  # fmt: skip


def frame_rate(clip: ClipConfig) -> float:
    """Frames per second at which a clip is shown: its own, where it has one, else 8."""
    if clip.duration_s is not None:
        return clip.num_frames / clip.duration_s
    return clip.fps or 8.0


def headline(results: Mapping[str, Any]) -> str:
    """The outcome in one sentence per label, from the first probe of the results: accuracies, or for anticipation
    mean-class recalls at 5 where classes are many enough for them; what the probes of anticipation saw."""
    plain = tables.plain(results["rows"])
    rows = [row for row in plain if row["probe"] == plain[0]["probe"]]
    ahead = results.get("anticipation")
    sentences = []
    for label in dict.fromkeys(row["label"] for row in rows):
        by_name = {row["encoder"]: row for row in rows if row["label"] == label}
        recall = ahead is not None and by_name["trained"]["recall_at_5"] is not None
        key, words = ("recall_at_5", "mean-class recall at 5") if recall else ("accuracy", "accuracy")
        others = [
            f"{100 * row[key]:.1f} % {_FROM.get(name, f'from {name}')}"
            for name, row in by_name.items()
            if name != "trained"
        ]
        chance = [] if recall else [f"{100 * by_name['trained']['chance']:.1f} % by chance"]
        probe = rows[0]["probe"]
        beside = ", ".join([*others, *chance])
        sentences.append(
            f"{'An' if probe[0] in 'aeiou' else 'A'} {probe} probe reads {label} from the frozen trained encoder with "
            f"{100 * by_name['trained'][key]:.1f} % {words}{f' ({beside})' if beside else ''}."
        )
    if ahead is not None:
        sentences.append(f"Clips end {ahead['anticipation_s']:g} s before the action.")
        sentences += [f"Probes of {name} see {words}." for name, words in ahead["seen"].items()]
    of_ours = results["checkpoint"] is not None  # other models may have been trained with labels
    return " ".join(sentences) + (" Pretraining saw no labels." if of_ours else "")


_FROM = {"random": "from the same network with random weights", "pixels": "from raw pixels"}


def head_facts(
    results: Mapping[str, Any], config: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Size and cost of the run, for the head of the page."""
    rates = [r["time/clips_per_s"] for r in records if isinstance(r.get("time/clips_per_s"), float)]
    ranks = [r["monitor/rankme"] for r in records if isinstance(r.get("monitor/rankme"), float)]
    batch = config.get("train", {}).get("batch_size")
    steps = "" if results["step"] is None else f"{results['step']:,}" + (f" × {batch} clips" if batch else "")
    return {
        "parameters in the encoder": f"{results['parameters'] / 1e6:.2f} M",
        "training steps": steps,
        "clips/s while training": f"{np.median(rates):.0f}" if rates else "",
        "RankMe, first to last": f"{ranks[0]:.0f} → {ranks[-1]:.0f}" if len(ranks) > 1 else "",
        "device": str(results["device"]),
    }


def probe_section(results: Mapping[str, Any]) -> str:
    """Bars and a table: accuracies beside the baselines, with chance; below, other measures that rows have."""
    rows = tables.plain(results["rows"])
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["probe"], row["label"]), []).append(row)
    bars = [
        page.bars(f"{label}, {probe} probe", [(r["encoder"], r["accuracy"], r["error"]) for r in own], own[0]["chance"])
        for (probe, label), own in groups.items()
    ]
    return page.section(
        "Probes",
        page.text(_explained(results)),
        page.card(f'<div class="bars">{"".join(bars)}</div>'),
        page.card(table(tables.main_table(rows))),
        page.card(table(tables.measure_table(rows))),
    )


def _explained(results: Mapping[str, Any]) -> str:
    """What the numbers of the probes are."""
    probes, encoders = results["config"]["probes"], {row["encoder"] for row in results["rows"]}
    words = [
        "Accuracy on test clips in per cent, ± one standard error of so many test clips (not the spread over seeds: "
        "this is one run), and the 95 % bootstrap interval over test clips. The encoder is frozen; only the probe sees "
        "labels."
    ]
    beside = {"random": "the same architecture with fresh weights", "pixels": "no encoder at all"}
    if shown := [f"`{name}` is {what}" for name, what in beside.items() if name in encoders]:
        words.append(f"{', '.join(shown)}; what a probe finds there was not learned.")
    if all(probe["kind"] == "published" for probe in probes):
        words.append("The probe is a published one as it is: nothing was fitted here.")
    else:
        words.append(
            "Every probe standardises features with training statistics, its head is chosen on "
            f"{100 * probes[0]['holdout']:.0f} % of the training clips held out, fitted again on all of them, and "
            "scored on the test clips once."
        )
    words.append("The tick marks chance: always the commonest class.")
    return " ".join(words)


def table(found: tables.Table) -> str:
    """A table as HTML, intervals in one piece; '' without lines."""
    lines = [[cell.replace(", ", ",\u00a0") for cell in line] for line in found.lines]
    return page.table(found.head, lines, found.best) if lines else ""


def curve_section(records: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> str:
    """Loss and collapse curves."""
    lines = [{**record, **loss_terms(record)} for record in records]
    terms = tuple((name, name) for name in _TERMS if any(name in line for line in lines))
    loss = Panel("Training loss", (("loss", "loss"), *(terms if len(terms) > 1 else ())), len(terms) > 1)
    picture = page.image(drawing.curves(lines, (loss, *PANELS)), "loss and collapse curves over the training step")
    if not picture:
        return ""
    return page.section(
        "Did it learn, or did it collapse?",
        page.text(
            "A latent loss can fall because the features die out, so the loss alone says little. The error is "
            "compared with two predictors that know nothing about where they look; spread, effective rank and the "
            "cosine between different clips show whether features stay apart. Measured during training on clips "
            "that are not trained on (horizontally: training steps)."
        ),
        page.text(describe_objective(config.get("objective", {}))),
        page.card(picture),
    )


def loss_terms(record: Mapping[str, Any]) -> dict[str, float]:
    """The mean of every kind of term over mask families and views (``variance_tokens_0`` is a "variance")."""
    found: dict[str, float] = {}
    for kind in _TERMS:
        values = [v for name, v in record.items() if name.startswith(f"{kind}_") and isinstance(v, float)]
        if values:
            found[kind] = float(np.mean(values))
    return found


def describe_objective(objective: Mapping[str, Any]) -> str:
    """What was minimised, in words; says plainly whether something stands beside the EMA target."""
    if objective.get("kind") == "pixels":
        normed = "each channel of a tubelet normalised by itself" if objective.get("norm_pix_loss") else "as they are"
        return (
            f"The objective predicts the pixels of hidden tubelets ({normed}), by mean squared error. There is no "
            "target encoder: the features are the trained encoder's own."
        )
    if objective.get("kind") != "masked":
        return f"Objective: {objective.get('kind', 'unknown')}."
    start, end = objective.get("momentum", (None, None))
    loss = {"l1": "L1", "smooth_l1": "smooth L1"}.get(str(objective.get("loss")), str(objective.get("loss")))
    words = (
        f"The objective predicts the features of hidden tubelets: {loss} between the predictor's output and the "
        f"layer-normed output of an EMA target encoder (momentum {start} to {end})."
    )
    extra = objective.get("regularizer")
    if not extra:
        return words + " Nothing else keeps the features apart: no regulariser is used."
    name = {
        "variance_covariance": "a variance-covariance term (VICReg)", "sigreg": "a SIGReg term (LeJEPA)"
    }.get(extra["kind"], extra["kind"])  # fmt: skip
    weights = ", ".join(f"{k} {v}" for k, v in extra.items() if k != "kind")
    return words + f" This recipe adds {name} on the context encoder's output ({weights}); it is not the EMA alone."


def mask_section(config: Mapping[str, Any], encoder: Encoder, clips: Tensor, seed: int) -> str:
    """What the context encoder sees, for every mask family, on the first of the clips."""
    if not config.get("masks"):
        return ""
    kinds: Any = MaskConfig
    families = build_masks([from_dict(kinds, mask, "masks") for mask in config["masks"]], encoder.grid)
    frames = drawing.to_frames(clips[:1], encoder.clip)[0]
    rng = np.random.default_rng(seed)
    pictures = []
    for number, family in enumerate(families):
        mask = family.draw(rng, 1)
        seen, hidden = mask.context_ids.shape[1], mask.target_ids.shape[1] * mask.target_ids.shape[2]
        settings = ", ".join(
            f"{k} {v}" for k, v in config["masks"][number].items() if k != "kind" and v not in (None, False)
        )
        caption = (
            f"family {number + 1}: {config['masks'][number]['kind']} ({settings}). "
            f"{seen} of {encoder.grid.size} tubelets are context, {hidden} are to be predicted (blue)"
        )
        picture = drawing.mask_picture(frames, mask, encoder.grid)
        pictures.append(page.image(drawing.png(picture), "masks over frames", caption, pixel=True))
    return page.section(
        "What the encoder has to fill in",
        page.text("One clip over time, a picture per tubelet. The context encoder sees the bright patches only."),
        page.card(*pictures),
    )


def map_section(encoders: Sequence[Representation], clips: Tensor, config: ClipConfig, count: int) -> str:
    """Principal components of patch features beside the video, as animations; ``count`` of the clips are shown."""
    frames = drawing.to_frames(clips[:count], config)
    shown = drawing.enlarge(frames, 128)
    maps = []
    for encoder in encoders:
        tokens = torch.cat([encoder(part).tokens.cpu() for part in clips.split(8)])
        tokens = tokens - tokens.mean(dim=0)  # what is usual at this place and time is position, not content
        maps.append(drawing.feature_frames(tokens, encoder.grid, frames.shape[1], shown.shape[2]))
    rows = [drawing.side_by_side([shown[n], *(m[n] for m in maps)]) for n in range(len(frames))]
    rate, names = frame_rate(config) / 2, ["video", *(encoder.name for encoder in encoders)]
    caption = " · ".join(names)
    pictures = [page.image(drawing.gif(row, rate), "video and feature maps", caption, pixel=True) for row in rows]
    return page.section(
        "What patches look like to the encoder",
        page.text(
            f"{len(frames)} test clips drawn at random; from left to right: {', '.join(names)}. Colours are the "
            f"first three principal components of patch features over {len(clips)} clips, after the mean of every "
            "place and time is taken off; one flat cell per patch. Patches of like colour have like features. "
            "Half speed."
        ),
        page.card(f'<div class="grid">{"".join(pictures)}</div>'),
    )


def recipe_section(
    config: Mapping[str, Any], seconds: Mapping[str, float], results: Mapping[str, Any], command: str
) -> str:
    """How to get the same: command, times, full configuration."""
    of = f"checkpoint {results['checkpoint']}" if results["checkpoint"] else f"model {results['model']}"
    times = dict(seconds) or dict(results["seconds"])
    table = page.table(["stage", "time"], [[name, duration(value)] for name, value in times.items()])
    heads = []
    for row in tables.plain(results["rows"]):
        setting = tables.setting_words(row["chosen"])
        heads.append([row["probe"], row["label"], row["encoder"], setting, tables.share(row["held_out"])])
    chosen = page.table(["probe", "label", "encoder", "chosen head", "held-out accuracy"], heads)
    return page.section(
        "Recipe and timings",
        page.card(page.code(command)) if command else "",
        page.card(table),
        page.card(
            page.details("The run's whole configuration", page.code(yaml.safe_dump({**config}, sort_keys=False)))
            if config
            else "",
            page.details("Probe heads chosen on held-out training clips", chosen),
        ),
        page.text(f"Code version {results['code_version']}, {of}.", soft=True),
    )


def run_section(results: Mapping[str, Any]) -> str:
    """Models, times, versions and the whole configuration."""
    models = [
        [name, m["model"], m["checkpoint"] or "", m["encoder_hash"]] for name, m in results["models"].items()
    ]  # fmt: skip
    versions = {"this toolkit": results["code_version"], **results["versions"]}
    return page.section(
        "What was run",
        page.card(page.table(["encoder", "model", "checkpoint", "hash of its weights"], models)),
        page.card(page.table(["stage", "time"], [[k, duration(v)] for k, v in results["seconds"].items()])),
        page.card(page.table(["program", "version"], [list(pair) for pair in versions.items()])),
        page.card(
            page.details("The whole configuration", page.code(yaml.safe_dump(results["config"], sort_keys=False)))
        ),
    )
