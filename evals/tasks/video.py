"""Frozen classification of videos: encoders side by side, a random one and raw pixels, one probe after the other."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence

from evals.features.harness import FeatureSet, compute_splits, feature_splits
from evals.features.live import live_features
from evals.features.representations import EncoderRepresentation, Representation, build_representations, encoder_hash
from evals.labelled import Labelled, choose_sources, open_labelled
from evals.outcome import PREDICTIONS, Outcome, notes, pack, undecodable, versions
from evals.pages import eval_page
from evals.probes.probing import Side, probe_one
from evals.settings import BASELINES, EvalConfig, TaskResult
from evals.split_checks import check_decoded, check_shots, check_splits
from evals.subjects import Subject, facts, home, open_subjects
from jepa.config import ConfigError, to_dict
from jepa.distributed import Run

PATIENCE_S = 24 * 3600.0


def classify_videos(
    config: EvalConfig, subjects: Sequence[Subject] | None = None, check: Callable[[Labelled], None] | None = None
) -> TaskResult:
    """Probe the encoders and the baselines. ``subjects``: the opened models (default: those of ``config``);
    ``check`` raises ``ConfigError`` for a split that the task cannot use. Under torchrun the processes share the
    encoding, the first one probes, and each has all results.

    Raises ``ConfigError`` or ``CheckpointError`` for what is missing.
    """
    began = time.perf_counter()
    # nobody gives up while the first process probes
    with Run.start(config.device, config.precision, timeout_s=PATIENCE_S) as run:
        subjects = open_subjects(config) if subjects is None else subjects
        fits = any(probe.kind != "published" for probe in config.probes)
        train_config, test_config = choose_sources(config, fits)
        clip = subjects[0].encoder.clip
        train = open_labelled(train_config, config.labels, clip) if fits else None
        test = open_labelled(test_config, config.labels, clip, None if train is None else train.class_names)
        sides = {"test": test} if train is None else {"train": train, "test": test}
        for side in sides.values() if check is not None else ():
            check(side)
        if train is not None:
            train = sides["train"] = check_splits(train, test, config.allow)
            check_shots(train, config.few_shot)
        representations = build_representations(config, {s.name: s.encoder for s in subjects}, run)
        check_grids(config, representations)
        splits = feature_splits(config, {n: side.source for n, side in sides.items()}, home(config) / "features")
        features = compute_splits(representations, splits, run)
        if train is not None:
            check_decoded(train, test, [found.items for found in features["train"].values()], config.allow)
        seconds = {"features": time.perf_counter() - began}
        began = time.perf_counter()
        if config.cache:
            outcomes = run.on_main(lambda: probe_all(config, sides, features, run))
        else:  # every process encodes a part of every batch, so all of them probe alike
            drawn = live_features(features, splits, representations, config, run)
            outcomes = probe_all(config, sides, drawn, run)
    seconds["probes"] = time.perf_counter() - began
    rows = [outcome.row for outcome in outcomes]
    lists = {split: undecodable(side, features[split]) for split, side in sides.items()}
    models = {subject.name: facts(subject, encoder_hash(subject.encoder)) for subject in subjects}
    about = {
        **models[subjects[0].name],
        "models": models,
        "train": None if train is None else to_dict(train_config),
        "test": to_dict(test_config),
        "classes": {label: list(names) for label, names in (train or test).class_names.items()},
        "undecodable": {"train": [], **lists},
        "missing": {"train": [], **{split: list(side.missing) for split, side in sides.items()}},
        "device": str(run.device),
        "precision": run.precision,
        "versions": versions(),
    }
    report = functools.partial(eval_page.draw, outcomes=outcomes, test=test, clip=clip)
    files = {PREDICTIONS: pack(test.source, outcomes)}
    return TaskResult(rows, seconds, about, files=files, notes=notes(rows, about["undecodable"]), report=report)


def probe_all(
    config: EvalConfig, sides: Mapping[str, Labelled], features: Mapping[str, Mapping[str, FeatureSet]], run: Run
) -> list[Outcome]:
    """Every probe on every label by every encoder. Published probes have nothing to say about the baselines."""
    test, train = sides["test"], sides.get("train")
    return [
        outcome
        for probe in config.probes
        for label in test.labels
        for name in features["test"]
        if probe.kind != "published" or name not in BASELINES
        for outcome in probe_one(
            probe, name, None if train is None else Side(train, features["train"][name], label),
            Side(test, features["test"][name], label), config, run,
        )
    ]  # fmt: skip


def check_grids(config: EvalConfig, representations: list[Representation]) -> None:
    """Raise ``ConfigError`` before anything is encoded, where ``cells`` or a ``token_pool`` does not suit a grid."""
    for representation in representations:
        joined = config.segments if config.join_segments else 1
        grid = representation.grid._replace(t=representation.grid.t * joined)
        for probe in (probe for probe in config.probes if probe.kind == "attentive"):
            if any(size % pool for size, pool in zip(grid, probe.token_pool, strict=True)):
                raise ConfigError(
                    f"token_pool {probe.token_pool} must divide the token grid {tuple(grid)} of {representation.name}"
                )
        if not isinstance(representation, EncoderRepresentation):  # pixels keep their place without cells
            continue
        if any(count > size for count, size in zip(config.cells, representation.grid, strict=True)):
            raise ConfigError(
                f"cells {config.cells} must not exceed the token grid {tuple(representation.grid)} of "
                f"{representation.name}"
            )
