"""The report of a run: one HTML file with every picture inside, which says what was measured and how.

Everything comes from the run directory (metrics.jsonl, the newest checkpoint) and from the results of
``evals.main.evaluate``; no sentence is fixed that the numbers could contradict. A model without a run (a published one,
one of timm) gets the same page without the parts about its training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from evals.features.harness import Split, compute_splits, feature_splits
from evals.features.representations import build_representations
from evals.labelled import open_labelled
from evals.pages import page, sections
from evals.pages.decoded_section import decoded_section
from evals.pages.neighbours import agreement_table, find_neighbours, gallery
from evals.pages.physics_section import physics_section
from evals.settings import EvalConfig
from evals.subjects import TRAINED, home, open_subjects, run_state
from jepa.config import ConfigError, from_dict
from jepa.data.sources import SourceConfig
from jepa.data.transforms import ClipTransform
from jepa.distributed import Run, choose_device
from jepa.logging import read_metrics
from jepa.precision import choose_precision
from jepa.types import Batch

_MAP_CLIPS = 32  # test clips over which the colours of feature maps are computed


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """``results``: what ``evaluate`` returned (or its results.json). ``out``: the file to write.

    ``seconds``: timings of further stages, by name. ``command``: what a reader types to get the same. ``facts``: more
    for the head of the page (name: value as text). ``clips`` test clips are drawn as feature maps and ``queries`` as
    nearest neighbours, at random with ``seed``: nothing is chosen by hand. ``physics``: the folder with the results of
    the task "physics", which then have their section; ``decoded``: that with those of the task "reconstruction", of
    masked places and of forecasts in folders "masked" and "forecast".
    """

    results: dict[str, Any]
    out: Path
    title: str = "What a tiny V-JEPA learned"
    seconds: Mapping[str, float] = field(default_factory=dict)
    command: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    clips: int = 4
    queries: int = 6
    seed: int = 0
    physics: Path | None = None
    decoded: Path | None = None


def write_report(config: ReportConfig) -> Path:
    """Draw the report and write it; returns its path. Raises ``ConfigError`` when it cannot be written."""
    results = config.results
    asked = from_dict(EvalConfig, results["config"])
    state = run_state(asked.run)
    recipe = {} if state is None else state["config"]
    encoder = open_subjects(replace(asked, against=()))[0].encoder
    place = choose_device(asked.device)
    run = Run(place, choose_precision(asked.precision, place))
    clip = encoder.clip
    train = open_labelled(from_dict(SourceConfig, results["train"]), asked.labels, clip)
    test = open_labelled(from_dict(SourceConfig, results["test"]), asked.labels, clip, train.class_names)
    encoders = [r for r in build_representations(asked, {TRAINED: encoder}, run) if r.name != "pixels"]
    splits = feature_splits(asked, {"train": train.source, "test": test.source}, home(asked) / "features")
    splits = {name: Split(source, replace(options, tokens=False)) for name, (source, options) in splits.items()}
    features = compute_splits(encoders, splits, run)
    neighbours = find_neighbours(features["train"], features["test"])
    order = torch.randperm(len(neighbours.test_items), generator=torch.Generator().manual_seed(config.seed)).tolist()
    shown = [test.source.load_clip(int(neighbours.test_items[i]), clip).frames for i in order[:_MAP_CLIPS]]
    ready = [ClipTransform(clip)(Batch(clip=torch.from_numpy(f).permute(3, 0, 1, 2)[None])).clip for f in shown]
    clips = torch.cat(ready).to(run.device)
    records = [] if state is None else read_metrics(home(asked))
    queries = order[: config.queries]
    body = [
        f"<h1>{page.escape(config.title)}</h1>",
        page.text(sections.headline(results)),
        page.facts({**sections.head_facts(results, recipe, records), **config.facts}),
        sections.probe_section(results),
        sections.curve_section(records, recipe),
        sections.mask_section(recipe, encoder, clips, config.seed),
        sections.map_section(encoders, clips, clip, config.clips),
        page.section(
            "Nearest neighbours",
            page.text(
                f"{len(queries)} test clips drawn at random, and for each the five training clips whose features "
                "are most alike (cosine of mean-pooled, standardised features). A green frame marks the query's "
                f"own {next(iter(train.labels))}; the table counts over all {len(order)} test clips. No label was "
                "used."
            ),
            page.card(
                gallery(neighbours, [r.name for r in encoders], queries, train, test, clip, sections.frame_rate(clip))
            ),
            page.card(agreement_table(neighbours, train, test)),
        ),
        physics_section(config.physics),
        decoded_section(config.decoded),
        sections.recipe_section(recipe, {**config.seconds}, results, config.command),
    ]
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(page.page(config.title, body), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the report cannot be written to {config.out}: {error.strerror or error}") from None
    return config.out
