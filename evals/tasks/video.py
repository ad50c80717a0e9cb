"""Frozen classification of videos: encoders side by side, a random one and raw pixels, one probe after the other."""

from __future__ import annotations

import logging
import time

import torch
from torch import Tensor

from evals import metrics
from evals.harness import (
    EncoderRepresentation,
    FeatureOptions,
    FeatureSet,
    Representation,
    build_representations,
    compute_features,
    encoder_hash,
)
from evals.labelled import Labelled, choose_sources, open_labelled
from evals.probes import ProbeConfig, fit_probe
from evals.settings import EvalConfig, Row, TaskResult
from evals.subjects import facts, home, open_subjects
from jepa.config import ConfigError, to_dict
from jepa.distributed import Run, choose_device, choose_precision

log = logging.getLogger("jepa")


def classify_videos(config: EvalConfig) -> TaskResult:
    """Probe the encoders and the baselines. Raises ``ConfigError`` or ``CheckpointError`` for what is missing."""
    began = time.perf_counter()
    place = choose_device(config.device)
    run = Run(place, choose_precision(config.precision, place))
    subjects = open_subjects(config)
    train_config, test_config = choose_sources(config)
    clip = subjects[0].encoder.clip
    train = open_labelled(train_config, config.labels, clip)
    test = open_labelled(test_config, config.labels, clip, train.class_names)
    representations = build_representations(config, {s.name: s.encoder for s in subjects}, run)
    check_grids(config, representations)
    options = FeatureOptions(
        batch_size=config.batch_size, segments=config.segments, workers=config.workers,
        tokens=any(probe.kind == "attentive" for probe in config.probes),
        cache_dir=home(config) / "features" if config.cache_gb else None,
        cache_gb=config.cache_gb,
    )  # fmt: skip
    features = {
        split: compute_features(representations, labelled.source, run, options)
        for split, labelled in (("train", train), ("test", test))
    }
    seconds = {"features": time.perf_counter() - began}
    began = time.perf_counter()
    rows = [
        probe_one(probe, label, name, train, test, features["train"][name], features["test"][name], config, run)
        for probe in config.probes
        for label in train.labels
        for name in features["train"]
    ]
    seconds["probes"] = time.perf_counter() - began
    models = {subject.name: facts(subject, encoder_hash(subject.encoder)) for subject in subjects}
    about = {
        **models[subjects[0].name],
        "models": models,
        "train": to_dict(train_config),
        "test": to_dict(test_config),
        "classes": {label: list(names) for label, names in train.class_names.items()},
        "device": str(place),
        "precision": run.precision,
    }
    return TaskResult(rows, seconds, about)


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


def probe_one(
    probe: ProbeConfig, label: str, name: str, train: Labelled, test: Labelled, train_set: FeatureSet,
    test_set: FeatureSet, config: EvalConfig, run: Run,
) -> Row:  # fmt: skip
    """Fit one probe on one representation and one label."""
    (x, y), (x_test, y_test) = (
        _pairs(features, labelled.labels[label], probe) for features, labelled in ((train_set, train), (test_set, test))
    )
    if config.train_limit is not None:
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(probe.seed))
        chosen = order[: config.train_limit].sort().values
        x, y = x[chosen], y[chosen]
    names = train.class_names[label]
    result = fit_probe(
        probe, x.to(run.device), y.to(run.device), x_test.to(run.device), y_test, train_set.grid, max(len(names), 2)
    )
    log.info("%s probe, %s, %s: %.3f +- %.3f (chance %.3f)", probe.kind, label, name, *result[1:4])
    scores = metrics.class_accuracy(result.predictions, y_test, result.num_classes)
    return Row(
        probe=probe.kind, label=label, encoder=name, accuracy=result.accuracy, error=result.error, chance=result.chance,
        held_out=max(head.accuracy for head in result.heads), chosen=result.chosen,
        per_class=dict(zip(names, scores)), num_train=result.num_train, num_test=result.num_test,
        num_classes=result.num_classes, seconds=result.seconds,
    )  # fmt: skip


def _pairs(features: FeatureSet, labels: Tensor, probe: ProbeConfig) -> tuple[Tensor, Tensor]:
    """Features and labels of the labelled clips; tokens for an attentive probe, vectors for the others."""
    x = features.tokens if probe.kind == "attentive" else features.vectors
    assert x is not None
    y = labels[features.items]
    return (x, y) if (y >= 0).all() else (x[y >= 0], y[y >= 0])
