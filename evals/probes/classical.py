"""The probes of scikit-learn, nearest neighbours and logistic regression, as a grid of heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evals.probes import sklearn_bridge
from evals.probes.fitting import Setting, Standard
from evals.probes.preprocess import Inputs

_LEAST_VOTE = 1e-6  # a vote can be unanimous and wrong
_LEAST = 1e-30  # of a model of probabilities, which must keep the order of improbable classes


class ClassicalHeads(NamedTuple):
    """Classifiers of scikit-learn, one per head of the grid, on the means over views of standardised features.
    ``least``: the probability that every class is given at least."""

    classifiers: list[sklearn_bridge.Classifier]
    standard: Standard
    least: float

    @classmethod
    def fit(
        cls, settings: Sequence[Setting], standard: Standard, x: Inputs, y: Tensor, rows: Tensor, classes: int
    ) -> ClassicalHeads:
        bank = torch.cat([_vectors(standard, part) for part in x.chunks(rows)]).numpy()
        labels = y[rows].numpy()
        found = [
            sklearn_bridge.knn(bank, labels, classes, int(s["neighbours"]))
            if "neighbours" in s
            else sklearn_bridge.logistic(bank, labels, classes, s["penalty"])
            for s in settings
        ]
        return cls(found, standard, _LEAST_VOTE if "neighbours" in settings[0] else _LEAST)

    def __call__(self, x: Tensor) -> Tensor:
        """Log-probabilities ``[G, B, C]``."""
        queries = _vectors(self.standard, x).numpy()
        answers = [torch.from_numpy(classifier(queries).probabilities) for classifier in self.classifiers]
        return torch.stack(answers).clamp_min(self.least).log()


def _vectors(standard: Standard, x: Tensor) -> Tensor:
    """Mean over the views of standardised features ``[B, R, 1, D]``: ``[B, D]`` on the CPU."""
    return standard(x[:, :, 0]).mean(dim=1).cpu()
