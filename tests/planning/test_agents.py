"""Agents in a world whose dynamics the toy model knows exactly: success, context, holding, sub-goals, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from planning.toy import SimulatedTask, ToyModel, ToyTask, picture, walk

from jepa.planning import PlannerConfig, PlanningError, action_space
from jepa.planning.agents import PlanningAgent, RandomAgent, SimulatorAgent, SubgoalConfig, frame_skip_of
from jepa.planning.energy import EnergyConfig
from jepa.planning.episodes import run_episode, run_episodes
from jepa.planning.landscape import landscape
from jepa.types import ClipConfig

QUICK = {"samples": 64, "iterations": 4, "horizon": 4, "elites": 8}


def agent_of(kind: str = "cem", model: ToyModel | None = None, **options: Any) -> PlanningAgent:
    settings = {"kind": kind, **QUICK}
    if kind == "gradient":
        settings = {"kind": kind, "iterations": 20, "horizon": 4}
    return PlanningAgent(model or ToyModel(), PlannerConfig(**settings), EnergyConfig(over="sum"), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["cem", "mppi", "icem", "gradient"])
def test_the_planning_agent_reaches_every_goal(kind: str) -> None:
    results = run_episodes(ToyTask(), agent_of(kind), 3, seed=5)
    assert [result.success for result in results] == [True] * 3
    assert max(result.steps for result in results) <= 20  # the way is 15 steps at most
    assert [result.seed for result in results] == [5, 6, 7]
    assert min(ms for result in results for ms in result.ms_per_action) > 0


def test_random_does_not_and_the_simulator_does() -> None:
    config = PlannerConfig(**QUICK)
    assert not any(result.success for result in run_episodes(SimulatedTask(limit=20), RandomAgent(2), 4))
    assert all(result.success for result in run_episodes(SimulatedTask(), SimulatorAgent(config, 2), 3))
    with pytest.raises(PlanningError, match="ToyTask cannot be simulated from a state"):
        run_episodes(ToyTask(), SimulatorAgent(config, 2), 1)


def test_actions_are_held_for_the_steps_of_the_model() -> None:
    task = ToyTask()
    result = run_episode(task, agent_of(), seed=0, max_steps=7)
    assert (result.steps, result.success) == (7, False)
    assert [decision.step for decision in result.decisions] == [0, 2, 4, 6]
    for first, second in ((0, 1), (2, 3), (4, 5)):
        assert np.array_equal(task.actions[first], task.actions[second])
    assert not np.array_equal(task.actions[1], task.actions[2])
    assert frame_skip_of(ClipConfig(num_frames=2, fps=4.0, crop_size=8), 30.0) == 8
    assert frame_skip_of(ClipConfig(num_frames=2, frame_step=3, crop_size=8), 30.0) == 3


def test_the_model_sees_the_last_frames_and_the_actions_between_them() -> None:
    model, task = ToyModel(state_dim=2), ToyTask()
    result = run_episode(task, agent_of(model=model, context=3), seed=0, max_steps=8, keep_frames=True)
    assert [latents.shape[1] for latents, _, _ in model.begun] == [1, 2, 3, 3]
    latents, actions, states = model.begun[-1]
    assert result.frames is not None
    torch.testing.assert_close(latents[0, :, 0], torch.from_numpy(result.frames[2:8:2, 0, 0, :2]) / 255)
    torch.testing.assert_close(actions[0], torch.from_numpy(np.stack(task.actions[2:6:2])))
    torch.testing.assert_close(states[0], latents[0, :, 0], atol=0.002, rtol=0.0)


def test_the_default_context_leaves_room_for_the_horizon() -> None:
    settings: dict[str, Any] = {"samples": 8, "elites": 2}
    for horizon, context in ((2, 3), (6, 2), (7, 1), (20, 1)):
        agent = PlanningAgent(ToyModel(), PlannerConfig(horizon=horizon, **settings), EnergyConfig())  # type: ignore[arg-type]
        assert agent.context == context


def test_every_plan_begins_where_the_last_one_is_shifted_to() -> None:
    agent, task = agent_of("icem", imagine=True), ToyTask()
    observation = task.reset(0)
    agent.begin(observation.goal, task)
    agent.act(observation)
    assert agent._warm is not None
    planned = torch.from_numpy(agent.decisions[0].actions)
    torch.testing.assert_close(agent._warm.actions, planned[[1, 2, 3, 3]])
    imagined = agent.decisions[0].imagined
    assert imagined is not None
    start = torch.from_numpy(observation.frame[0, 0, :2] / 255).float()
    torch.testing.assert_close(imagined[:, 0], start + 2 * planned.cumsum(dim=0), atol=1e-5, rtol=0.0)
    agent.begin(observation.goal, task)
    assert agent._warm is None, "nothing is left of the last episode"


@pytest.mark.parametrize("options", [{"near": 0.02, "steps": 100}, {"steps": 4}])
def test_subgoals_are_passed_in_turn(options: dict[str, Any]) -> None:
    way = [picture(np.array([0.1, 0.9])), picture(np.array([0.9, 0.9]))]
    agent, task = agent_of(subgoals=way, subgoal=SubgoalConfig(**options)), ToyTask(limit=200)
    numbers, places = walk(agent, task)
    assert sorted(set(numbers)) == [0, 1, 2]
    assert numbers == sorted(numbers)
    near = [min(np.abs(np.array(places) - goal).max(axis=1)) for goal in ([0.1, 0.9], [0.9, 0.9])]
    if "near" in options:
        assert max(near) < 0.05
    else:
        assert numbers[:9] == [0] * 8 + [1]  # four planned actions of two steps


@pytest.mark.parametrize(
    "energy", [EnergyConfig(kind="l2", action_weight=5.0), EnergyConfig(kind="l2", weights=(0.0,) * 7 + (3.0,))]
)
def test_how_near_a_subgoal_is_depends_on_latents_alone(energy: EnergyConfig) -> None:
    agent = PlanningAgent(ToyModel(), PlannerConfig(**QUICK), energy, subgoals=[picture(np.ones(2))])  # type: ignore[arg-type]
    task = ToyTask()
    task.action_low, task.action_high = np.zeros(2, np.float32), np.full(2, 8, np.float32)  # dear actions
    observation = task.reset(0)
    agent.begin(observation.goal, task)
    agent._look(observation)
    expected = float(((observation.frame[0, 0, :2] / 255 - 1) ** 2).mean())
    assert agent._distance() == pytest.approx(expected, rel=1e-5)


def test_runs_repeat_by_their_seed() -> None:
    def actions(seed: int) -> np.ndarray:
        task = ToyTask()
        run_episodes(task, agent_of(seed=seed), 2, max_steps=6)
        return np.stack(task.actions)

    assert np.array_equal(actions(1), actions(1))
    assert not np.array_equal(actions(1), actions(2))


def test_an_environment_in_other_units_is_refused() -> None:
    task = ToyTask()
    task.action_low, task.action_high = np.zeros(2, np.float32), np.full(2, 512, np.float32)
    with pytest.raises(ValueError, match=r"axis 0 of the actions lies in \[0, 512\], but the model was trained on"):
        agent_of().begin(task.reset(0).goal, task)


def test_what_does_not_fit_is_named() -> None:
    config = PlannerConfig(**QUICK)

    def fails(task: ToyTask, agent: Any, message: str) -> None:
        with pytest.raises(PlanningError, match=message):
            run_episodes(task, agent, 1, max_steps=4)

    fails(ToyTask(axes=3), agent_of(), "the environment's actions have 3 axes, the model's 2")
    fails(ToyTask(goal=False), agent_of(), "the environment shows no goal image: give one")
    fails(ToyTask(), agent_of(model=ToyModel(state_dim=5)), "the environment's states have 2 numbers, the model's 5")
    larger, grey = picture(np.zeros(2), 20), np.zeros((16, 16))
    fails(ToyTask(), agent_of(subgoals=[larger]), "the goal image is 20 x 20 pixels, the frames are 16 x 16")
    fails(ToyTask(), agent_of(subgoals=[grey]), r"the goal must be uint8 \[H, W, 3\], not float64 \[16, 16\]")
    with pytest.raises(PlanningError, match="context must be at least 1 frame, not 0"):
        agent_of(context=0)
    with pytest.raises(PlanningError, match="episodes must be at least 1, not 0"):
        run_episodes(ToyTask(), RandomAgent(), 0)
    with pytest.raises(ValueError, match="steps must be at least 1, not 0"):
        SubgoalConfig(steps=0)
    with pytest.raises(ValueError, match="near must be positive, not 0"):
        SubgoalConfig(near=0.0)
    model = ToyModel()
    model.gain.data.fill_(float("nan"))
    broken = PlanningAgent(model, config, EnergyConfig())  # type: ignore[arg-type]
    fails(ToyTask(), broken, "the energy of 257 tried action sequences is not finite")


def test_the_landscape_is_the_energy_of_held_actions() -> None:
    agent, task = agent_of(), ToyTask()
    observation = task.reset(0)
    agent.begin(observation.goal, task)
    agent.act(observation)
    plan = torch.from_numpy(agent.decisions[0].actions)
    space = action_space(task.action_low.tolist(), task.action_high.tolist())
    drawn = landscape(agent.cost, space, plan, size=5)
    np.testing.assert_allclose(drawn.x, [-0.06, -0.03, 0, 0.03, 0.06], atol=1e-7)
    held = torch.tensor([0.03, -0.06]).expand(1, 4, 2)
    np.testing.assert_allclose(drawn.energy[0, 3], float(agent.cost(held)[0].detach()), rtol=1e-5)
    assert drawn.energy.argmin() == 24, "the goal lies up and to the right"
    np.testing.assert_allclose(drawn.plan, plan.mean(dim=0), rtol=1e-6)
    first = landscape(agent.cost, space, plan, size=5, hold="first", axes=(1, 0))
    changed = plan[None].clone()
    changed[0, 0] = torch.tensor([-0.03, 0.06])
    np.testing.assert_allclose(first.energy[1, 4], float(agent.cost(changed)[0].detach()), rtol=1e-5)
    for axes, message in (((0, 2), "axis 2 cannot be drawn: the axes that move are"), ((1, 1), "two different axes")):
        with pytest.raises(PlanningError, match=message):
            landscape(agent.cost, space, plan, axes=axes)
    with pytest.raises(PlanningError, match="hold must be 'horizon' or 'first'"):
        landscape(agent.cost, space, plan, hold="last")  # type: ignore[arg-type]
