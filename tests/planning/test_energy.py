"""Energies against the formula, step by step and at once; functions of the user; bad settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jepa.planning import PlanningError
from jepa.planning.energy import Energy, EnergyConfig

LATENTS = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(0))
GOAL = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
ACTIONS = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(2))


def last_of_first_token(latents: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
    return (latents[:, -1, 0] - goal[0]).abs().sum(dim=-1) + actions[:, 0, 0]


def one_number(latents: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
    return latents.sum()


def plain(kind: str, latents: Tensor) -> float:
    """The distance of ``[n, D]`` to the goal, in loops."""
    total = 0.0
    for token, wanted in zip(latents.tolist(), GOAL.tolist(), strict=True):
        if kind == "cosine":
            dot = sum(a * b for a, b in zip(token, wanted, strict=True))
            total += 1 - dot / (sum(a * a for a in token) * sum(b * b for b in wanted)) ** 0.5
        else:
            power = 1 if kind == "l1" else 2
            total += sum(abs(a - b) ** power for a, b in zip(token, wanted, strict=True)) / 5
    return total / 2


@pytest.mark.parametrize("kind", ["l1", "l2", "cosine"])
@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, [0, 0, 0, 1]),
        ({"over": "sum"}, [1, 1, 1, 1]),
        ({"over": "sum", "discount": 0.5}, [1, 0.5, 0.25, 0.125]),
        ({"weights": (0.0, 2.0, 0.0, 1.0)}, [0, 2, 0, 1]),
    ],
)
def test_energies_are_the_formula(kind: str, options: dict[str, Any], weights: list[float]) -> None:
    energy = Energy(EnergyConfig(kind=kind, **options))
    expected = [sum(w * plain(kind, step) for w, step in zip(weights, sample, strict=True)) for sample in LATENTS]
    torch.testing.assert_close(energy(LATENTS, GOAL, ACTIONS), torch.tensor(expected))


def test_the_goal_itself_has_no_energy() -> None:
    for kind in ("l1", "l2", "cosine"):
        there = Energy(EnergyConfig(kind=kind, over="sum"))(GOAL.expand(3, 4, 2, 5), GOAL, ACTIONS)
        torch.testing.assert_close(there, torch.zeros(3), atol=1e-6, rtol=0.0)


def test_an_action_cost_counts_in_half_widths_of_the_bounds() -> None:
    free, dear = Energy(EnergyConfig()), Energy(EnergyConfig(action_weight=0.3))
    cost = dear(LATENTS, GOAL, ACTIONS, torch.tensor([0.5, 2.0])) - free(LATENTS, GOAL, ACTIONS)
    torch.testing.assert_close(cost, 0.3 * ((ACTIONS[..., 0] / 0.5) ** 2 + (ACTIONS[..., 1] / 2) ** 2).mean(dim=1) / 2)
    frozen = dear(LATENTS, GOAL, ACTIONS, torch.tensor([0.5, 0.0])) - free(LATENTS, GOAL, ACTIONS)
    torch.testing.assert_close(frozen, 0.3 * ((ACTIONS[..., 0] / 0.5) ** 2).mean(dim=1) / 2)


def test_a_function_of_the_user_gets_everything() -> None:
    energy = Energy(EnergyConfig(kind=f"{__name__}:last_of_first_token"))
    torch.testing.assert_close(energy(LATENTS, GOAL, ACTIONS), last_of_first_token(LATENTS, GOAL, ACTIONS))
    wrong = Energy(EnergyConfig(kind=f"{__name__}:one_number"))
    with pytest.raises(PlanningError, match=r":one_number must give \[3\] values, one per sample, not \[\]"):
        wrong(LATENTS, GOAL, ACTIONS)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no_such_module:fn", "energy 'no_such_module:fn': there is no module 'no_such_module'"),
        ("math:sqart", "energy 'math:sqart': math has no function 'sqart', did you mean 'sqrt'"),
        ("math:pi", "energy 'math:pi': math has no function 'pi'"),
    ],
)
def test_a_function_that_is_not_there(kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Energy(EnergyConfig(kind=kind))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cosin"}, "energy 'cosin' is unknown, did you mean 'cosine'\\?"),
        ({"over": "mean"}, "over must be 'last' or 'sum', not 'mean'"),
        ({"discount": 0.0}, "discount must be positive, not 0"),
        ({"discount": 0.9}, "discount 0.9 has no meaning with over 'last'"),
        ({"weights": (0.0, 0.0)}, r"weights must be finite and not all 0, not \[0.0, 0.0\]"),
        ({"action_weight": -1.0}, "action_weight must not be negative, not -1"),
        ({"kind": "math:sqrt", "over": "sum"}, "energy math:sqrt weighs the steps itself"),
    ],
)
def test_energy_configs_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnergyConfig(**options)


def test_weights_must_be_one_per_step() -> None:
    with pytest.raises(PlanningError, match="energy weights are 2 values, but a plan has 4 steps"):
        Energy(EnergyConfig(weights=(1.0, 1.0)))(LATENTS, GOAL, ACTIONS)
