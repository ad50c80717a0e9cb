import itertools
import math

import numpy as np
import pytest
import torch

from evals import metrics

LABELS = torch.tensor([0, 0, 0, 1, 1, 2])
PREDICTIONS = torch.tensor([0, 0, 1, 1, 0, 2])


def test_accuracy_error_and_chance() -> None:
    assert metrics.accuracy(PREDICTIONS, LABELS) == pytest.approx(4 / 6)
    assert metrics.standard_error(0.5, 100) == pytest.approx(0.05)
    assert metrics.chance(torch.tensor([1, 1, 0]), LABELS) == pytest.approx(2 / 6)  # the commonest TRAINING class
    assert metrics.chance(torch.tensor([2, 2, 1, 1]), torch.tensor([0, 1, 1, 2])) == pytest.approx((2 / 4 + 1 / 4) / 2)


def test_confusion_has_true_classes_in_rows() -> None:
    table = metrics.confusion(PREDICTIONS, LABELS, 4)
    assert table.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert metrics.class_accuracy(PREDICTIONS, LABELS, 4) == [pytest.approx(2 / 3), 0.5, 1.0, None]


def test_same_label_share() -> None:
    neighbours = torch.tensor([[0, 1], [3, 5]])
    assert metrics.same_label_share(neighbours, LABELS, torch.tensor([0, 1])) == pytest.approx(3 / 4)


def test_no_prediction_is_an_error_of_its_class() -> None:
    predictions = torch.tensor([0, -1, 1, -1])
    labels = torch.tensor([0, 0, 1, 2])
    assert metrics.class_accuracy(predictions, labels, 4) == [0.5, 1.0, 0.0, None]
    assert metrics.confusion(predictions, labels, 3).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert metrics.accuracy(predictions, labels) == 0.5


def test_bootstrap_equals_a_slow_loop() -> None:
    values = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    rng = np.random.default_rng(3)
    means = []
    for _ in range(40):
        total = 0.0
        for place in rng.integers(7, size=7):
            total += values[place]
        means.append(total / 7)
    found = metrics.resampled_means(torch.tensor(values), samples=40, seed=3)
    assert found.tolist() == pytest.approx(means, abs=1e-12)
    ordered = sorted(means)  # the q-quantile lies at q * (40 - 1) of the sorted means
    expected = [ordered[3] + 0.9 * (ordered[4] - ordered[3]), ordered[35] + 0.1 * (ordered[36] - ordered[35])]
    assert metrics.bootstrap_interval(torch.tensor(values), 40, 3, level=0.8) == pytest.approx(expected)


def test_bootstrap_interval_is_deterministic_and_close_to_the_normal_one() -> None:
    right = torch.arange(400) % 5 != 0  # 80 %
    low, high = metrics.bootstrap_interval(right)
    error = metrics.standard_error(0.8, 400)
    assert [low, high] == metrics.bootstrap_interval(right)
    assert (low, high) == pytest.approx((0.8 - 1.96 * error, 0.8 + 1.96 * error), abs=0.006)
    assert metrics.bootstrap_interval(torch.ones(9)) == [1.0, 1.0]


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (5, 1), (2, 7), (4, 4), (0, 9)])
def test_mcnemar_equals_enumeration_of_all_coin_throws(only_first: int, only_second: int) -> None:
    first = torch.tensor([True] * only_first + [False] * only_second + [True, False, True])
    second = torch.tensor([False] * only_first + [True] * only_second + [True, False, True])
    count = only_first + only_second
    far = abs(only_first - only_second)
    throws = [sum(throw) for throw in itertools.product((0, 1), repeat=count)]
    as_far = sum(abs(2 * heads - count) >= far for heads in throws) / len(throws)
    assert metrics.mcnemar(first, second) == (only_first, only_second, pytest.approx(as_far))


def test_mcnemar_of_many_clips_is_exact() -> None:
    first, second = torch.arange(5000) < 2600, torch.arange(5000) >= 2600
    tail = sum(math.comb(5000, k) for k in range(2401))
    assert metrics.mcnemar(first, second) == (2600, 2400, 2 * tail / 2**5000)
