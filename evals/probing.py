"""One probe on one representation and one label."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from evals import metrics
from evals.harness import FeatureSet
from evals.labelled import Labelled
from evals.outcome import Outcome, judge
from evals.probes import ProbeConfig, fit_probe
from evals.settings import EvalConfig
from jepa.distributed import Run

log = logging.getLogger("jepa")


def probe_one(
    probe: ProbeConfig, label: str, name: str, train: Labelled, test: Labelled, train_set: FeatureSet,
    test_set: FeatureSet, config: EvalConfig, run: Run,
) -> Outcome:  # fmt: skip
    """Fit one probe on one representation and one label."""
    x, items = _labelled(train_set, train.labels[label], probe)
    y = train.labels[label][items]
    x_test, items_test = _labelled(test_set, test.labels[label], probe)
    y_test = test.labels[label][items_test]
    if config.train_limit is not None:
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(probe.seed))
        chosen = order[: config.train_limit].sort().values
        x, y = x[chosen], y[chosen]
    names = train.class_names[label]
    result = fit_probe(
        probe, x.to(run.device), y.to(run.device), x_test.to(run.device), y_test, train_set.grid, max(len(names), 2)
    )
    chance = metrics.chance(y.cpu(), test.labels[label][test.labels[label] >= 0])
    outcome = judge(result, label, name, test.labels[label], items_test, names, chance)
    row = outcome.row
    log.info("%s probe, %s, %s: %.3f +- %.3f (chance %.3f)", *row[:5], row.chance)
    return outcome


def _labelled(features: FeatureSet, labels: Tensor, probe: ProbeConfig) -> tuple[Tensor, Tensor]:
    """Features of the labelled clips, and their items; tokens for an attentive probe, vectors for the others."""
    rows = features.tokens if probe.kind == "attentive" else features.vectors
    assert rows is not None
    keep = labels[features.items] >= 0
    x = rows.gather(keep.nonzero().flatten()).flatten(1, 2)
    return (x if probe.kind == "attentive" else x[:, 0]), features.items[keep]
