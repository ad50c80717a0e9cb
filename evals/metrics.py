"""Numbers computed from predictions and labels. Rates are shares in 0..1; K clips, C classes."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of ``predictions`` ``[K]`` that equal ``labels`` ``[K]``."""
    return (predictions == labels).double().mean().item()


def standard_error(rate: float, count: int) -> float:
    """Binomial standard error of a rate measured on ``count`` independent clips."""
    return math.sqrt(rate * (1 - rate) / count)


def chance(train_labels: Tensor, test_labels: Tensor) -> float:
    """What always answering the commonest training class scores on the test clips: the mean over those that are equally
    common, as with so many clips of each class."""
    counts = torch.bincount(train_labels)
    commonest = (counts == counts.max()).nonzero().flatten()
    return torch.isin(test_labels, commonest).double().mean().item() / len(commonest)


def resampled_means(values: Tensor, samples: int = 2000, seed: int = 0) -> NDArray[np.float64]:
    """Means of ``samples`` draws of K from ``values`` ``[K]`` with replacement: the bootstrap.

    The draws depend on K and ``seed`` alone, so that two calls over the same clips are paired.
    Source: B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 6.
    """
    rng, numbers = np.random.default_rng(seed), values.double().cpu().numpy()
    return np.array([numbers[rng.integers(len(numbers), size=len(numbers))].mean() for _ in range(samples)])


def bootstrap_interval(values: Tensor, samples: int = 2000, seed: int = 0, level: float = 0.95) -> list[float]:
    """Percentile interval ``[low, high]`` of the mean of ``values`` ``[K]`` over redrawn clips (chapter 13)."""
    tail = (1 - level) / 2
    return [float(bound) for bound in np.quantile(resampled_means(values, samples, seed), (tail, 1 - tail))]


def mcnemar(first: Tensor, second: Tensor) -> tuple[int, int, float]:
    """How many clips only the ``first`` gets right and only the ``second`` (bool ``[K]`` each), and the two-sided exact
    p-value that both are as good: under that, each such clip is a fair coin.

    Source: Q. McNemar, Psychometrika 12, 1947; exact binomial form.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    count, fewer = only_first + only_second, min(only_first, only_second)
    term = below = 1  # whole numbers of any size: no rounding until the division
    for k in range(fewer):
        term = term * (count - k) // (k + 1)
        below += term
    return only_first, only_second, min(1.0, 2 * below / 2**count)


def confusion(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts int64 ``[C, C]``: row = true class, column = predicted class. Clips without a prediction (-1) are in no
    column."""
    known = predictions >= 0
    cells = labels[known] * num_classes + predictions[known]
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def class_accuracy(predictions: Tensor, labels: Tensor, num_classes: int) -> list[float | None]:
    """Accuracy of every true class; ``None`` for a class without test clips. No prediction (-1) is an error."""
    right, total = (torch.bincount(y, minlength=num_classes) for y in (labels[predictions == labels], labels))
    return [r / n if n else None for r, n in zip(right.tolist(), total.tolist(), strict=True)]


def among_top(probabilities: Tensor, labels: Tensor, count: int) -> Tensor:
    """Whether each label ``[K]`` is among the ``count`` most probable of the classes ``[K, C]``: float64 ``[K]``, 1 or
    0; where several classes share the last of these places, the chance of it when they are drawn at random."""
    own = probabilities.gather(1, labels[:, None])
    better, tied = (found.sum(dim=1).double() for found in (probabilities > own, probabilities == own))
    return ((count - better) / tied).clamp(0, 1)


def class_mean(right: Tensor, labels: Tensor) -> float:
    """Mean over the classes that ``labels`` ``[K]`` hold of each one's mean of ``right`` (``[K]``, 0 to 1).

    Of ``among_top(..., 5)`` it is the mean-class recall at 5 of EPIC-KITCHENS-100 (Damen et al., IJCV 2022).
    """
    total = torch.bincount(labels)
    shares = torch.bincount(labels, weights=right.double(), minlength=len(total)) / total
    return shares[total > 0].mean().item()


def same_label_share(neighbours: Tensor, bank_labels: Tensor, labels: Tensor) -> float:
    """Share of the neighbours ``[K, n]`` (row numbers of the bank) that carry their query's label (precision at n)."""
    return (bank_labels[neighbours] == labels[:, None]).double().mean().item()
