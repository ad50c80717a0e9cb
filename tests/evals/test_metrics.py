import pytest
import torch

from evals import metrics

LABELS = torch.tensor([0, 0, 0, 1, 1, 2])
PREDICTIONS = torch.tensor([0, 0, 1, 1, 0, 2])


def test_accuracy_error_and_chance() -> None:
    assert metrics.accuracy(PREDICTIONS, LABELS) == pytest.approx(4 / 6)
    assert metrics.standard_error(0.5, 100) == pytest.approx(0.05)
    assert metrics.chance(torch.tensor([1, 1, 0]), LABELS) == pytest.approx(2 / 6)  # the commonest TRAINING class


def test_confusion_has_true_classes_in_rows() -> None:
    table = metrics.confusion(PREDICTIONS, LABELS, 4)
    assert table.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert metrics.class_accuracy(PREDICTIONS, LABELS, 4) == [pytest.approx(2 / 3), 0.5, 1.0, None]


def test_same_label_share() -> None:
    neighbours = torch.tensor([[0, 1], [3, 5]])
    assert metrics.same_label_share(neighbours, LABELS, torch.tensor([0, 1])) == pytest.approx(3 / 4)
