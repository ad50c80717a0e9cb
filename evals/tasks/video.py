"""Frozen classification of videos: encoders side by side, a random one and raw pixels, one probe after the other."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

from evals import eval_page
from evals.harness import compute_splits, feature_splits
from evals.labelled import Labelled, choose_sources, open_labelled
from evals.outcome import PREDICTIONS, notes, pack, undecodable, versions
from evals.probing import probe_one
from evals.representations import EncoderRepresentation, Representation, build_representations, encoder_hash
from evals.settings import EvalConfig, TaskResult
from evals.subjects import Subject, facts, home, open_subjects
from jepa.config import ConfigError, to_dict
from jepa.distributed import Run, choose_device, choose_precision


def classify_videos(
    config: EvalConfig, subjects: Sequence[Subject] | None = None, check: Callable[[Labelled], None] | None = None
) -> TaskResult:
    """Probe the encoders and the baselines. ``subjects``: the opened models (default: those of ``config``);
    ``check`` raises ``ConfigError`` for a split that the task cannot use.

    Raises ``ConfigError`` or ``CheckpointError`` for what is missing.
    """
    began = time.perf_counter()
    place = choose_device(config.device)
    run = Run(place, choose_precision(config.precision, place))
    subjects = open_subjects(config) if subjects is None else subjects
    train_config, test_config = choose_sources(config)
    clip = subjects[0].encoder.clip
    train = open_labelled(train_config, config.labels, clip)
    test = open_labelled(test_config, config.labels, clip, train.class_names)
    for side in (train, test) if check is not None else ():
        check(side)
    representations = build_representations(config, {s.name: s.encoder for s in subjects}, run)
    check_grids(config, representations)
    splits = feature_splits(config, train.source, test.source, home(config) / "features")
    features = compute_splits(representations, splits, run)
    seconds = {"features": time.perf_counter() - began}
    began = time.perf_counter()
    outcomes = [
        probe_one(probe, label, name, train, test, features["train"][name], features["test"][name], config, run)
        for probe in config.probes
        for label in train.labels
        for name in features["train"]
    ]
    seconds["probes"] = time.perf_counter() - began
    rows = [outcome.row for outcome in outcomes]
    lists = {split: undecodable(side, features[split]) for split, side in (("train", train), ("test", test))}
    models = {subject.name: facts(subject, encoder_hash(subject.encoder)) for subject in subjects}
    about = {
        **models[subjects[0].name],
        "models": models,
        "train": to_dict(train_config),
        "test": to_dict(test_config),
        "classes": {label: list(names) for label, names in train.class_names.items()},
        "undecodable": lists,
        "missing": {"train": list(train.missing), "test": list(test.missing)},
        "device": str(place),
        "precision": run.precision,
        "versions": versions(),
    }
    report = functools.partial(eval_page.draw, outcomes=outcomes, test=test, clip=clip)
    files = {PREDICTIONS: pack(test.source, outcomes)}
    return TaskResult(rows, seconds, about, files=files, notes=notes(rows, lists), report=report)


def check_grids(config: EvalConfig, representations: list[Representation]) -> None:
    """Raise ``ConfigError`` before anything is encoded, where ``cells`` or a ``token_pool`` does not suit a grid."""
    for representation in representations:
        grid = representation.grid._replace(t=representation.grid.t * config.segments)
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
