"""Numbers computed from predictions and labels. Rates are shares in 0..1; K clips, C classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of ``predictions`` ``[K]`` that equal ``labels`` ``[K]``."""
    return (predictions == labels).double().mean().item()


def standard_error(rate: float, count: int) -> float:
    """Binomial standard error of a rate measured on ``count`` independent clips."""
    return math.sqrt(rate * (1 - rate) / count)


def chance(train_labels: Tensor, test_labels: Tensor) -> float:
    """What always answering the commonest training class scores on the test clips."""
    return (test_labels == torch.bincount(train_labels).argmax()).double().mean().item()


def confusion(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts int64 ``[C, C]``: row = true class, column = predicted class."""
    return torch.bincount(labels * num_classes + predictions, minlength=num_classes**2).view(num_classes, num_classes)


def class_accuracy(predictions: Tensor, labels: Tensor, num_classes: int) -> list[float | None]:
    """Accuracy of every true class; ``None`` for a class without test clips."""
    table = confusion(predictions, labels, num_classes)
    return [(table[c, c] / n).item() if (n := int(table[c].sum())) else None for c in range(num_classes)]


def same_label_share(neighbours: Tensor, bank_labels: Tensor, labels: Tensor) -> float:
    """Share of the neighbours ``[K, n]`` (row numbers of the bank) that carry their query's label (precision at n)."""
    return (bank_labels[neighbours] == labels[:, None]).double().mean().item()
