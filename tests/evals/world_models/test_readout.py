"""Ridge regression beside scikit-learn's, and R2 on states whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from evals.world_models.readout import STRENGTHS, fit_readout, moves, ridges, score


def noisy(frames: int, features: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 2 + 3 * torch.randn(frames, features, generator=generator)
    states = x[:, :4] @ torch.randn(4, 2, generator=generator) + 5
    states = states + noise * torch.randn(frames, 2, generator=generator)
    return x, states, torch.arange(frames) // 10


@pytest.mark.parametrize("features", [6, 90])  # fewer and more than frames: either Gram matrix
def test_every_strength_is_that_of_scikit_learn(features: int) -> None:
    x, y, _ = noisy(50, features, 1.0)
    standard = (x - x.mean(dim=0)) / x.std(dim=0, correction=0)
    for found, strength in zip(ridges(x, y), STRENGTHS, strict=True):
        if strength < 1e-6:  # scikit-learn's own solver loses digits there
            continue
        known = Ridge(alpha=strength * len(x), solver="svd").fit(standard.double().numpy(), y.double().numpy())
        np.testing.assert_allclose(found(x).numpy(), known.predict(standard.double().numpy()), rtol=1e-4)


def test_linear_states_are_read_exactly_and_noise_asks_for_a_strong_penalty() -> None:
    x, y, episodes = noisy(200, 8, 0.0)
    readout = fit_readout(x[:150], y[:150], episodes[:150])
    found = score(readout(x[150:]), y[150:], episodes[150:])
    assert found.mean == pytest.approx(1, abs=1e-6)
    assert found.interval == pytest.approx([1, 1], abs=1e-6)
    wide, states, numbers = noisy(100, 400, 0.0)
    random = torch.randn(100, 2, generator=torch.Generator().manual_seed(9))
    mixed = fit_readout(wide, torch.cat((states, random), dim=1), numbers)
    assert min(mixed.strengths[2:]) > max(mixed.strengths[:2]), "every coordinate has its own strength"
    shuffled = score(fit_readout(x, y[torch.randperm(200)], episodes)(x), y, episodes)
    assert abs(shuffled.mean) < 0.2


def test_choice_is_made_on_episodes_that_are_held_out() -> None:
    """Features that name the episode explain everything inside episodes, and nothing of others."""
    episodes, generator = torch.arange(400) // 10, torch.Generator().manual_seed(0)
    names = torch.randn(40, 60, generator=generator)[episodes]
    states = torch.randn(40, 1, generator=generator)[episodes]
    assert fit_readout(names, states, episodes).strengths[0] >= 1
    assert fit_readout(names, states, torch.arange(400) % 40).strengths[0] <= 1e-6, "frames of all are on both sides"


def test_score_is_that_of_scikit_learn_and_leaves_out_what_never_moves() -> None:
    _, y, episodes = noisy(60, 4, 1.0)
    read = y + torch.randn(60, 2, generator=torch.Generator().manual_seed(1))
    still = torch.full((60, 1), 3.0)
    found = score(torch.cat((read, still + 1), dim=1), torch.cat((y, still), dim=1), episodes)
    known = r2_score(y.double(), read.double(), multioutput="raw_values")
    assert found.r2[:2] == pytest.approx(known.tolist())
    assert found.r2[2] is None
    assert found.mean == pytest.approx(known.mean())
    assert found.interval[0] < found.mean < found.interval[1]
    assert moves(torch.cat((y, still), dim=1)).tolist() == [True, True, False]


def test_the_interval_redraws_whole_episodes() -> None:
    _, y, episodes = noisy(40, 4, 1.0)
    read = y + torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
    rng = np.random.default_rng(0)
    slow = []
    for _ in range(2000):
        drawn = rng.integers(4, size=4)
        rows = np.concatenate([np.flatnonzero(episodes.numpy() == e) for e in drawn])
        slow.append(r2_score(y.double()[rows], read.double()[rows]))
    assert score(read, y, episodes).interval == pytest.approx(np.quantile(slow, (0.025, 0.975)).tolist(), rel=1e-9)


def test_too_little_to_learn_from() -> None:
    with pytest.raises(ValueError, match="a readout of states needs at least 2 episodes to learn from, not 1"):
        fit_readout(torch.ones(5, 2), torch.ones(5, 1), torch.zeros(5))
    with pytest.raises(ValueError, match="the states of the test episodes never change"):
        score(torch.ones(5, 1), torch.ones(5, 1), torch.zeros(5))
