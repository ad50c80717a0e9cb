"""Planners on costs whose optimum is known; CEM and MPPI against slower formulations; bounds; warm starts; no syncs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from jepa.planning import PLANNERS, PlannerConfig, PlanningError, action_space, plan
from jepa.planning.mppi import weights
from jepa.planning.noise import coloured
from jepa.planning.search import Search

SPACE = action_space([-1.0, -2.0], [1.0, 2.0])
TARGET = torch.tensor([[0.5, -1.0], [0.2, 0.3], [-0.7, 1.5]])
FINE = {
    "cem": {"samples": 256, "iterations": 8, "elites": 24},
    "icem": {"samples": 256, "iterations": 8, "elites": 24, "noise_beta": 0.5, "min_std": 0.0},
    "mppi": {"samples": 512, "iterations": 12, "temperature": 0.1},
    "gradient": {"iterations": 120, "lr": 0.05},
    "random": {"samples": 20_000, "iterations": 2},
}
TOLERANCE = {"cem": 0.05, "icem": 0.05, "mppi": 0.05, "gradient": 0.01, "random": 0.45}


def quadratic(actions: Tensor) -> Tensor:
    return (actions - TARGET).square().sum(dim=(1, 2))


def config_of(kind: str, **changes: Any) -> PlannerConfig:
    return PlannerConfig(**{"kind": kind, "horizon": 3, **FINE[kind], **changes})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", PLANNERS)
def test_every_planner_finds_the_optimum(kind: str) -> None:
    found = plan(config_of(kind), quadratic, SPACE, generator())
    assert float((found.actions - TARGET).abs().max()) < TOLERANCE[kind]
    torch.testing.assert_close(found.cost, quadratic(found.actions[None])[0])
    assert found.on_host().tolist() == found.actions.tolist()
    assert len(found.history) >= config_of(kind).iterations


@pytest.mark.parametrize("kind", PLANNERS)
def test_an_optimum_outside_the_bounds_is_met_at_the_bounds(kind: str) -> None:
    seen: list[Tensor] = []

    def cost(actions: Tensor) -> Tensor:
        seen.append(actions.detach().clone())
        return (actions - torch.tensor([3.0, -5.0])).square().sum(dim=(1, 2))

    found = plan(config_of(kind), cost, SPACE, generator())
    assert float((found.actions - torch.tensor([1.0, -2.0])).abs().max()) < TOLERANCE[kind]
    tried = torch.cat([*seen, found.actions[None]])
    assert bool(((tried >= SPACE.low) & (tried <= SPACE.high)).all())


@pytest.mark.parametrize("kind", PLANNERS)
def test_frozen_axes_and_the_longest_step_are_kept(kind: str) -> None:
    space = action_space([-1.0] * 4, [1.0] * 4, max_norm=0.5, norm_axes=[0, 1], frozen={2: 0.25})
    seen: list[Tensor] = []

    def cost(actions: Tensor) -> Tensor:
        seen.append(actions.detach().clone())
        return (actions - 0.9).square().sum(dim=(1, 2))

    found = plan(config_of(kind, horizon=2), cost, space, generator())
    tried = torch.cat([*seen, found.actions[None]])
    assert float(tried[..., :2].norm(dim=-1).max()) <= 0.5 + 1e-6
    assert bool((tried[..., 2] == 0.25).all())
    expected = torch.tensor([0.5 / math.sqrt(2), 0.5 / math.sqrt(2), 0.25, 0.9]).expand(2, 4)
    assert float((found.actions - expected).abs().max()) < TOLERANCE[kind]


@pytest.mark.parametrize("kind", PLANNERS)
def test_the_generator_alone_decides(kind: str) -> None:
    config = config_of(kind, iterations=2)
    first = plan(config, quadratic, SPACE, generator(1))
    torch.rand(7)  # the global generator has no part in it
    assert torch.equal(first.actions, plan(config, quadratic, SPACE, generator(1)).actions)
    assert not torch.equal(first.actions, plan(config, quadratic, SPACE, generator(2)).actions)


@pytest.mark.parametrize("kind", PLANNERS)
def test_chunks_change_memory_not_the_plan(kind: str) -> None:
    sizes: list[int] = []

    def cost(actions: Tensor) -> Tensor:
        sizes.append(len(actions))
        return quadratic(actions)

    config = config_of(kind, iterations=3, samples=100)
    whole = plan(config, quadratic, SPACE, generator())
    parts = plan(replace(config, chunk=7), cost, SPACE, generator())
    torch.testing.assert_close(parts.actions, whole.actions)
    assert max(sizes) == 7


# ---- second formulations ---------------------------------------------------------------------------------------------


def test_cem_equals_a_loop_over_samples_and_axes() -> None:
    config = PlannerConfig(kind="cem", samples=20, iterations=3, horizon=3, elites=4, momentum=0.15, std_momentum=0.6)
    found = plan(config, quadratic, SPACE, generator(3))
    noise = generator(3)
    mean = [[0.0, 0.0] for _ in range(3)]
    std = [[config.init_std * 1.0, config.init_std * 2.0] for _ in range(3)]
    for _ in range(3):
        draws = torch.randn(20, 3, 2, generator=noise).tolist()
        tried = []
        for draw in draws:
            actions = [
                [min(max(mean[h][a] + std[h][a] * draw[h][a], -(a + 1.0)), a + 1.0) for a in range(2)] for h in range(3)
            ]
            cost = sum((actions[h][a] - float(TARGET[h, a])) ** 2 for h in range(3) for a in range(2))
            tried.append((cost, actions))
        best = [actions for _, actions in sorted(tried, key=lambda pair: pair[0])[:4]]
        for h in range(3):
            for a in range(2):
                values = [actions[h][a] for actions in best]
                middle = sum(values) / 4
                spread = math.sqrt(sum((value - middle) ** 2 for value in values) / 4)
                mean[h][a] = 0.85 * middle + 0.15 * mean[h][a]
                std[h][a] = max(0.4 * spread + 0.6 * std[h][a], config.min_std * (a + 1.0))
    torch.testing.assert_close(found.actions, torch.tensor(mean), atol=1e-5, rtol=1e-5)


def test_mppi_weights_are_the_formula() -> None:
    costs = torch.tensor([1.0, 2.0, 4.0])
    deviation = math.sqrt(sum((c - 7 / 3) ** 2 for c in (1, 2, 4)) / 3)
    plain = [math.exp(-(c - 1) / (0.5 * deviation)) for c in (1, 2, 4)]
    torch.testing.assert_close(weights(costs, 0.5), torch.tensor([w / sum(plain) for w in plain]))
    torch.testing.assert_close(weights(1000 * costs + 5, 0.5), weights(costs, 0.5))  # any unit of energy
    torch.testing.assert_close(weights(torch.ones(4), 0.5), torch.full((4,), 0.25))


def test_one_round_of_mppi_is_the_weighted_mean() -> None:
    config = PlannerConfig(kind="mppi", samples=30, iterations=1, horizon=3)
    found = plan(config, quadratic, SPACE, generator(5))
    tried = SPACE.clip(torch.randn(30, 3, 2, generator=generator(5)) * config.init_std * SPACE.half_range)
    share = weights(quadratic(tried), config.temperature)
    expected = sum(float(w) * actions for w, actions in zip(share, tried, strict=True))
    torch.testing.assert_close(found.actions, expected)


def test_shooting_takes_the_best_sample() -> None:
    config = PlannerConfig(kind="random", samples=50, iterations=2, horizon=3)
    found = plan(config, quadratic, SPACE, generator(5))
    noise = generator(5)
    tried = torch.cat([SPACE.sample(50, 3, noise) for _ in range(2)])
    torch.testing.assert_close(found.actions, tried[quadratic(tried).argmin()])


def test_the_gradient_planner_is_adam_on_every_start_by_itself() -> None:
    config = PlannerConfig(kind="gradient", starts=3, iterations=4, horizon=3, lr=0.1)
    found = plan(config, quadratic, SPACE, generator(5))
    best = (float("inf"), TARGET)
    for start in torch.cat((torch.zeros(1, 3, 2), SPACE.sample(2, 3, generator(5)))):
        free = (start / SPACE.half_range).clone().requires_grad_()
        optimizer = torch.optim.Adam([free], lr=0.1)
        for _ in range(5):
            actions = free * SPACE.half_range
            cost = quadratic(actions[None]).sum()
            best = min(best, (float(cost.detach()), actions.detach().clone()), key=lambda pair: pair[0])
            optimizer.zero_grad()
            cost.backward()
            optimizer.step()
    torch.testing.assert_close(found.actions, best[1], atol=1e-5, rtol=1e-5)


# ---- iCEM ------------------------------------------------------------------------------------------------------------


def test_coloured_noise_has_unit_variance_and_goes_together() -> None:
    white = torch.randn(20_000, 8, 2, generator=generator())
    assert coloured(white, 0.0) is white
    previous = 0.0
    for beta in (0.5, 1.0, 2.0):
        noise = coloured(white, beta)
        torch.testing.assert_close(noise.var(dim=0), torch.ones(8, 2), atol=0.05, rtol=0.0)
        neighbours = float((noise[:, 1:] * noise[:, :-1]).mean())
        assert neighbours > previous + 0.1
        previous = neighbours
    assert abs(float((noise[..., 0] * noise[..., 1]).mean())) < 0.02  # axes stay independent


def test_the_correlation_of_coloured_noise_is_that_of_its_spectrum() -> None:
    horizon, beta = 4, 2.0
    power = [max(k / 8, 1 / 4) ** -beta for k in range(5)]
    lag = [power[0] + power[4] * (-1) ** d + 2 * sum(power[k] * math.cos(math.pi * k * d / 4) for k in (1, 2, 3))
           for d in range(horizon)]  # fmt: skip
    basis = coloured(torch.eye(horizon)[:, :, None], beta)[..., 0]  # row k: the noise that step k's draw makes
    correlation = basis.T @ basis
    torch.testing.assert_close(correlation[0], torch.tensor([value / lag[0] for value in lag]), atol=1e-5, rtol=1e-5)


def test_icem_keeps_elites_and_tries_fewer_samples() -> None:
    rounds: list[Tensor] = []

    def cost(actions: Tensor) -> Tensor:
        rounds.append(actions.clone())
        return quadratic(actions)

    config = config_of("icem", samples=100, iterations=3, elites=10, keep=0.3, sample_decay=2.0)
    found = plan(config, cost, SPACE, generator())
    assert [len(actions) for actions in rounds] == [100, 50 + 3, 25 + 3 + 1]
    elites = rounds[0][quadratic(rounds[0]).argsort()[:3]]
    torch.testing.assert_close(rounds[1][50:], elites)
    rounds.clear()
    plan(config, cost, SPACE, generator(), warm=found.shifted())
    torch.testing.assert_close(rounds[0][100:103], found.shifted().elites[:3])
    torch.testing.assert_close(rounds[0][103], found.shifted().actions)
    assert [config.samples_in(i) for i in range(5)] == [100, 50, 25, 20, 20]


# ---- warm starts -----------------------------------------------------------------------------------------------------


def test_a_shifted_plan_drops_the_first_action_and_holds_the_last() -> None:
    found = plan(config_of("cem"), quadratic, SPACE, generator())
    later = found.shifted()
    assert torch.equal(later.actions, found.actions[[1, 2, 2]])
    assert torch.equal(later.elites, found.elites[:, [1, 2, 2]])
    assert torch.equal(found.shifted(2).actions, found.actions[[2, 2, 2]])


@pytest.mark.parametrize("kind", PLANNERS)
def test_a_warm_start_at_the_optimum_is_a_better_start(kind: str) -> None:
    config = config_of(kind, iterations=1, samples=40, elites=8)
    cold = plan(config, quadratic, SPACE, generator())
    warm = plan(config, quadratic, SPACE, generator(), warm=TARGET)
    assert float(warm.cost) < float(cold.cost)
    if kind in ("icem", "gradient", "random"):  # these try the warm start itself
        torch.testing.assert_close(warm.actions, TARGET)


# ---- bad input, and no copies to the host ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PLANNERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_cost_that_is_not_finite_is_an_error(kind: str, bad: float) -> None:
    def cost(actions: Tensor) -> Tensor:
        values = quadratic(actions)
        return torch.where(torch.arange(len(values)) == 2, bad, values)

    found = plan(config_of(kind, iterations=1), cost, SPACE, generator())
    assert bool(found.actions.isnan().all()), "a spoiled plan cannot pass for a good one"
    count = 2 if kind == "gradient" else 1  # it evaluates its last step too
    with pytest.raises(PlanningError, match=f"the energy of {count} tried action sequences is not finite"):
        found.on_host()


def test_wrong_shapes_and_costs_are_named() -> None:
    with pytest.raises(PlanningError, match=r"warm start has shape \[2, 2\], but a plan has 3 steps of 2 actions"):
        plan(config_of("cem"), quadratic, SPACE, generator(), warm=torch.zeros(2, 2))
    with pytest.raises(PlanningError, match=r"the cost of 256 action sequences has shape \[\]"):
        plan(config_of("cem"), lambda actions: actions.sum(), SPACE, generator())
    with pytest.raises(PlanningError, match="needs an energy that is differentiable"):
        plan(config_of("gradient"), lambda actions: quadratic(actions.detach()), SPACE, generator())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "cme"}, "planner kind 'cme' is unknown, did you mean 'cem'?"),
        ({"samples": 0}, "samples must be at least 1, not 0"),
        ({"horizon": -1}, "horizon must be at least 1, not -1"),
        ({"elites": 300}, "elites 300 must not be more than samples 256"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, not 1"),
        ({"temperature": 0.0}, "temperature must be positive, not 0"),
        ({"noise_beta": -1.0}, "noise_beta must not be negative, not -1"),
        ({"keep": 1.5}, "keep must be a share between 0 and 1, not 1.5"),
        ({"std_decay": 0.0}, "std_decay must be above 0 and at most 1, not 0"),
        ({"sample_decay": 0.5}, "sample_decay must be at least 1, not 0.5"),
        ({"lr": float("nan")}, "lr must be positive, not nan"),
    ],
)
def test_planner_configs_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        PlannerConfig(**changes)


class NoReading(TorchDispatchMode):
    """Fails when a tensor's value is asked for: on a GPU the host would have to wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        reads = ("aten._local_scalar_dense", "aten.item", "aten.is_nonzero", "aten.nonzero", "aten.equal")
        assert not name.startswith(reads), f"a value was read on the host: {name}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", PLANNERS)
def test_nothing_is_read_on_the_host_while_planning(kind: str) -> None:
    warm = plan(config_of(kind), quadratic, SPACE, generator()).shifted()
    with NoReading():
        found = plan(config_of(kind, iterations=3), quadratic, SPACE, generator(), warm=warm)
        with pytest.raises(AssertionError, match="a value was read"):
            float(found.cost)
        with torch.inference_mode(), pytest.raises(AssertionError, match="a value was read"):
            float(found.cost)


def test_a_search_starts_inside_the_space() -> None:
    search = Search(PlannerConfig(horizon=2), quadratic, action_space([1.0], [3.0]), generator(), None)
    assert search.start.tolist() == [[2.0], [2.0]]
