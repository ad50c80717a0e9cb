"""An agent that acts by a policy, in the world that the toy model knows exactly; ``jepa plan`` with a policy's run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_worlds import world_settings
from PIL import Image
from planning.toy import ToyModel, ToyTask, picture, walk
from support import error_of
from torch import Tensor, nn

from app.cli import main
from jepa.config import from_dict
from jepa.models.policy import Policy, PolicyNet, PolicyNetConfig
from jepa.planning import PlanningError, action_space
from jepa.planning.agents import SubgoalConfig
from jepa.planning.episodes import run_episode, run_episodes
from jepa.planning.policy_agent import PolicyAgent
from jepa.train import TrainConfig, fit


class Straight(nn.Module):
    """Towards the goal as fast as the bounds allow: the toy model moves by twice the action."""

    action_low, action_high = torch.full((2,), -0.06), torch.full((2,), 0.06)

    def forward(self, latents: Tensor, goals: Tensor) -> Tensor:
        return ((goals - latents) / 2)[..., 0, :].clamp(-0.06, 0.06)

    def within(self, actions: Tensor) -> Tensor:
        return actions.clamp(-0.06, 0.06)


def agent_of(model: ToyModel | None = None, net: nn.Module | None = None, **options: Any) -> PolicyAgent:
    policy = Policy(model or ToyModel(), net or Straight(), 4, "l2")  # type: ignore[arg-type]
    return PolicyAgent(policy, **options)


def test_a_good_policy_reaches_every_goal_and_a_fresh_one_none() -> None:
    results = run_episodes(ToyTask(), agent_of(), 3, seed=5)
    assert [result.success for result in results] == [True] * 3
    assert max(result.steps for result in results) <= 20  # the way is 15 steps at most
    assert min(ms for result in results for ms in result.ms_per_action) > 0
    torch.manual_seed(0)
    fresh = PolicyNet(PolicyNetConfig(token_dim=8, hidden_dim=8), 1, 2, 2)
    assert not any(result.success for result in run_episodes(ToyTask(limit=20), agent_of(net=fresh), 3, seed=5))


def test_actions_are_the_policys_held_for_the_models_step() -> None:
    task = ToyTask()
    result = run_episode(task, agent_of(), seed=0, max_steps=5)
    assert [decision.step for decision in result.decisions] == [0, 2, 4]
    assert [decision.actions.shape for decision in result.decisions] == [(1, 2)] * 3
    assert [decision.energy for decision in result.decisions] == [None] * 3
    task.reset(0)
    wanted = np.clip((picture(task.goal) / 255.0 - picture(task.state) / 255.0)[0, 0, :2] / 2, -0.06, 0.06)
    np.testing.assert_allclose(task.actions[0], wanted, atol=1e-6)
    assert np.array_equal(task.actions[0], task.actions[1])
    assert not any(np.abs(action).max() > 0.06 for action in task.actions)


def test_the_action_space_bounds_the_policy() -> None:
    task = ToyTask()
    run_episode(task, agent_of(space=action_space([-0.01, -1.0], [0.02, 1.0], frozen={1: 0.0})), seed=0, max_steps=6)
    np.testing.assert_allclose(np.stack(task.actions), np.tile([0.02, 0.0], (6, 1)), atol=1e-7)


def test_what_it_imagines_and_its_energies() -> None:
    task, agent = ToyTask(), agent_of(imagine=True)
    observation = task.reset(0)
    agent.begin(observation.goal, task)
    action = agent.act(observation)
    decision = agent.decisions[0]
    assert decision.actions.shape == (4, 2)
    assert np.array_equal(decision.actions[0], action)
    assert decision.imagined is not None
    start = torch.from_numpy(observation.frame[0, 0, :2] / 255).float()
    moved = start + 2 * torch.from_numpy(decision.actions).cumsum(dim=0)
    torch.testing.assert_close(decision.imagined[:, 0], moved, atol=1e-6, rtol=0.0)
    goal = torch.from_numpy(task.goal)
    energies = (moved - torch.round(255 * goal) / 255).square().mean(dim=1)
    found = agent.cost(torch.from_numpy(decision.actions)[None])
    torch.testing.assert_close(found, energies.sum()[None], atol=1e-5, rtol=0.0)
    agent.act(observation)
    assert len(agent.decisions) == 1, "held"


def test_subgoals_are_passed_in_turn() -> None:
    way = [picture(np.array([0.1, 0.9])), picture(np.array([0.9, 0.9]))]
    agent, task = agent_of(subgoals=way, subgoal=SubgoalConfig(near=0.0005, steps=100)), ToyTask(limit=200)
    numbers, places = walk(agent, task)
    assert sorted(set(numbers)) == [0, 1, 2]
    for goal in ([0.1, 0.9], [0.9, 0.9]):
        assert min(np.abs(np.array(places) - goal).max(axis=1)) < 0.05


def test_what_does_not_fit_is_named() -> None:
    def fails(task: ToyTask, agent: PolicyAgent, message: str) -> None:
        with pytest.raises(PlanningError, match=message):
            run_episodes(task, agent, 1, max_steps=4)

    fails(ToyTask(axes=3), agent_of(), "the environment's actions have 3 axes, the model's 2")
    fails(ToyTask(goal=False), agent_of(), "the environment shows no goal image: give one")
    fails(ToyTask(), agent_of(model=ToyModel(state_dim=5)), "the environment's states have 2 numbers, the model's 5")
    fails(ToyTask(), agent_of(subgoals=[picture(np.zeros(2), 20)]), "the goal image is 20 x 20 pixels, the frames are")
    torch.manual_seed(0)
    broken = PolicyNet(PolicyNetConfig(token_dim=8, hidden_dim=8), 1, 2, 2)
    broken.choose.weight.data.fill_(float("nan"))
    fails(ToyTask(), agent_of(net=broken), r"the policy's action is \[nan, nan\]: its weights are not finite")


# ---- jepa plan -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy's run over a world model of the moving square's recordings; frames of 32 px at 10 a second."""
    folder = tmp_path_factory.mktemp("policy")
    settings = world_settings(folder, predictor={"embed_dim": 24, "depth": 1, "num_heads": 2, "state_dim": 0})
    fit(from_dict(TrainConfig, settings))
    own = {"kind": "policy", "model": str(folder / "run"), "horizon": 3, "net": {"token_dim": 8, "hidden_dim": 16}}
    del settings["encoder"]
    settings |= {"run_dir": str(folder / "policy"), "objective": own, "clip": {"num_frames": 5, "fps": 10}}
    fit(from_dict(TrainConfig, settings))
    return folder / "policy"


def test_jepa_plan_acts_by_the_policy(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["plan", str(run), "--env", "planning.toy:ToyTask", "--device", "cpu", "--episodes", "2"]
    assert main([*command, "--max-steps", "3", "--out", str(out), "--videos", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["policy", "random"]
    found = json.loads((out / "results.json").read_text())
    assert [(episode["agent"], len(episode["ms"])) for episode in found["episodes"]] == [
        ("policy", 3), ("policy", 3), ("random", 3), ("random", 3),
    ]  # fmt: skip
    assert (out / "episode_000.mp4").stat().st_size > 0
    with Image.open(out / "landscape.png") as drawn:
        assert drawn.width > 1000


@pytest.mark.parametrize(("option", "named"), [
    (["--samples", "4"], "--samples"), (["--energy", "l1"], "--energy"),
    (["--set", "planner.elites=4"], "--set planner.elites=4"),
])  # fmt: skip
def test_a_policy_has_no_search_to_set(
    run: Path, option: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(["plan", str(run), "--env", "planning.toy:ToyTask", *option], capsys)
    assert message.endswith(f"{named}: {run} is a policy, which acts without planning: leave it out")


def test_the_simulator_beside_a_policy_plans(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(run), "--env", "planning.toy:SimulatedTask", "--device", "cpu", "--episodes", "1"]
    assert main([*command, "--against", "simulator", "--samples", "16", "--max-steps", "25"]) == 0
    assert "simulator     100.0 %" in capsys.readouterr().out
