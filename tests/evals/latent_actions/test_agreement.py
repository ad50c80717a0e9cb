"""Reading true actions from inferred ones: ridge regression beside a second way, directions, mutual information."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV
from sklearn.metrics import normalized_mutual_info_score, r2_score

from evals.latent_actions.agreement import (
    DIRECTIONS,
    contingency,
    directions,
    few_label_r2,
    mutual_information,
    r2,
    ridge,
)


def test_ridge_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x, asked = rng.normal(2, 3, (30, 5)), rng.normal(2, 3, (10, 5))
    y = x @ rng.normal(size=(5, 2)) + rng.normal(0, 2, (30, 2)) + 7
    mean, std = x.mean(axis=0), x.std(axis=0)
    known = RidgeCV(alphas=10.0 ** np.arange(-6, 7)).fit((x - mean) / std, y)
    np.testing.assert_allclose(ridge(x, y, asked), known.predict((asked - mean) / std), rtol=1e-8)


def test_a_linear_code_needs_few_labels_and_noise_agrees_with_nothing() -> None:
    rng = np.random.default_rng(1)
    true = rng.normal(size=(200, 2))
    inferred = true @ rng.normal(size=(2, 6)) + 3
    found = few_label_r2(inferred, true, labels=10)
    assert found.labels == 10
    assert found.r2 > 0.999
    noise = few_label_r2(rng.normal(size=(200, 6)), true, labels=100)
    assert noise.r2 < 0.05
    with pytest.raises(ValueError, match="labels 200: must be at least 2 and leave some of the 200 transitions"):
        few_label_r2(inferred, true, labels=200)


def test_r2_is_that_of_scikit_learn_over_axes_that_vary() -> None:
    rng = np.random.default_rng(2)
    true, predicted = rng.normal(size=(2, 50, 3))
    assert r2(predicted, true) == pytest.approx(r2_score(true, predicted))
    still = np.concatenate((true, np.full((50, 1), 4.0)), axis=1)
    assert r2(np.concatenate((predicted, predicted[:, :1]), axis=1), still) == pytest.approx(r2_score(true, predicted))
    with pytest.raises(ValueError, match="the true actions never change"):
        r2(predicted, np.zeros((50, 3)))


def test_directions() -> None:
    moves = np.array([[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0.1], [-1, -1], [0, -1], [1, -1], [0.05, 0]], dtype=float)
    found, names = directions(moves)
    assert found.tolist() == list(range(9))
    assert names == DIRECTIONS
    swapped, _ = directions(np.roll(moves, 1, axis=1), (1, 0))
    assert swapped.tolist() == found.tolist()
    along, names = directions(np.array([[1.0], [-1.0], [0.01]]))
    assert [names[k] for k in along] == ["up", "down", "still"]
    with pytest.raises(ValueError, match=r"axes must be two of the 2 axes of actions, not \[0, 2\]"):
        directions(moves, (0, 2))


def test_mutual_information() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 4, 300), rng.integers(0, 3, 300)
    b = np.where(rng.random(300) < 0.5, a % 3, b)
    found = mutual_information(contingency(a, b, (4, 3)))
    assert found == pytest.approx(normalized_mutual_info_score(a, b))
    assert mutual_information(contingency(a, a, (8, 4))) == pytest.approx(1)
    assert mutual_information(contingency(a, np.zeros_like(a), (4, 2))) == 0
    assert mutual_information(np.array([[5, 0], [0, 0]])) == 0
