"""One probe on one representation and one label: on all training clips, layer by layer, and with few labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evals import metrics
from evals.features.harness import FeatureSet
from evals.features.rows import Rows
from evals.labelled import Labelled
from evals.outcome import Outcome, judge
from evals.probes import ProbeConfig, fit_probe
from evals.probes.published import score_published
from evals.probes.shots import Shots
from evals.settings import EvalConfig
from jepa.distributed import Run

log = logging.getLogger("jepa")


class Side(NamedTuple):
    """The labelled clips of a split, their features, and the ``label`` that is probed."""

    labelled: Labelled
    features: FeatureSet
    label: str

    def clips(self, probe: ProbeConfig) -> tuple[Rows, Tensor]:
        """Features of the clips with a label, and their items: tokens or vectors, whatever the probe reads."""
        rows = self.features.tokens if probe.reads_tokens else self.features.vectors
        assert rows is not None
        keep = self.labels[self.features.items] >= 0
        return rows.take(keep), self.features.items[keep]

    @property
    def labels(self) -> Tensor:
        """Class ids ``[N]`` of all items of the source, -1: none."""
        return self.labelled.labels[self.label]

    def level(self, number: int) -> Side:
        """With the output of one block alone."""
        return self._replace(features=self.features.level(number))


def probe_one(
    probe: ProbeConfig, name: str, train: Side | None, test: Side, config: EvalConfig, run: Run
) -> list[Outcome]:
    """Fit one probe on one representation and one label: one outcome for all training clips; with
    ``config.sweep_layers`` one for each block alone; one for each of ``config.few_shot``. ``train`` None: there are no
    training clips, for a published probe only.
    """
    if probe.kind == "published":
        outcomes = [_published(probe, name, train, test, config, run)]
    else:
        assert train is not None, "only published probes go without training clips"
        levels = train.features.levels if config.sweep_layers else None
        plain = train, test
        if levels is not None and config.layers is None:  # the last block is the encoder's own output
            plain = train.level(levels[-1]), test.level(levels[-1])
        outcomes = [_fit(probe, name, *plain, config, run)]
        for number in levels or ():
            outcome = _fit(probe, name, train.level(number), test.level(number), config, run)
            outcomes.append(outcome._replace(row=outcome.row._replace(layer=number)))
        outcomes += [_few(probe, name, *plain, config, run, text) for text in config.few_shot]
    for row in (outcome.row for outcome in outcomes):
        variant = f" {row.variant}" if row.variant else ""
        log.info("%s%s probe, %s, %s: %.3f +- %.3f (chance %.3f)", row.probe, variant, *row[1:5], row.chance)
    return outcomes


def _fit(
    probe: ProbeConfig, name: str, train: Side, test: Side, config: EvalConfig, run: Run, shots: Shots | None = None
) -> Outcome:
    """Fit on all training clips, on ``config.train_limit`` of them, or on ``shots`` of each class."""
    (x, items), (x_test, items_test) = train.clips(probe), test.clips(probe)
    y, y_test = train.labels[items], test.labels[items_test]
    names = train.labelled.class_names[train.label]
    if config.train_limit is not None:
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(probe.seed))
        chosen = order[: config.train_limit].sort().values
        x, y = x.take(chosen), y[chosen]
    if shots is not None:
        chosen = shots.draw(y, probe.seed, names)
        x, y = x.take(chosen), y[chosen]
    result = fit_probe(
        probe, x, y, x_test, y_test, train.features.grid, max(len(names), 2), run.device, config.memory_gb * 1e9
    )
    chance = metrics.chance(y, test.labels[test.labels >= 0])
    return judge(result, test.label, name, test.labels, items_test, names, chance)


def _few(probe: ProbeConfig, name: str, train: Side, test: Side, config: EvalConfig, run: Run, text: str) -> Outcome:
    """Few labels, drawn and fitted with as many seeds as are asked for, from the probe's own upwards.

    Shares are means over the draws, the interval is that of the clips' mean correctness over the draws. What is no
    mean (answers, confusion, the chosen head) is the first draw's.
    """
    shots = Shots.parse(text)
    seeds = range(probe.seed, probe.seed + config.few_shot_seeds)
    draws = [_fit(replace(probe, seed=seed), name, train, test, config, run, shots) for seed in seeds]
    counted = test.labels >= 0
    right = torch.stack([(draw.predictions == draw.labels)[counted] for draw in draws]).double().mean(dim=0)
    rows = [draw.row for draw in draws]
    accuracies = [row.accuracy for row in rows]
    accuracy = float(np.mean(accuracies))
    row = rows[0]._replace(
        accuracy=accuracy, error=metrics.standard_error(accuracy, len(right)),
        interval=metrics.bootstrap_interval(right), shots=text.strip(), seeds=accuracies,
        spread=float(np.std(accuracies, ddof=1)) if len(rows) > 1 else 0.0,
        held_out=_mean([row.held_out for row in rows]), top5=_mean([row.top5 for row in rows]),
        recall_at_5=_mean([row.recall_at_5 for row in rows]), seconds=sum(row.seconds for row in rows),
    )  # fmt: skip
    return draws[0]._replace(row=row)


def _mean(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return float(np.mean(known)) if known else None


def _published(probe: ProbeConfig, name: str, train: Side | None, test: Side, config: EvalConfig, run: Run) -> Outcome:
    """A published probe, as it is, on the test clips."""
    x, items = test.clips(probe)
    names = (train or test).labelled.class_names[test.label]
    result = score_published(probe, x, test.labels[items], test.label, names, test.features.levels, run.device)
    labels = test.labels[test.labels >= 0]
    chance = metrics.chance(labels if train is None else train.labels[train.labels >= 0], labels)
    return judge(result, test.label, name, test.labels, items, names, chance)
