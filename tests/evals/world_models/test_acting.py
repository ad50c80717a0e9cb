"""Success of planning in the toy world, whose dynamics the model knows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from planning.toy import ToyModel

from evals.task_configs import WorldModelTask
from evals.world_models.acting import open_goal_task, play
from evals.world_models.opening import Seer
from evals.world_models.rows import WorldModelRow, planning_cells, table
from jepa.config import ConfigError
from jepa.distributed import Run
from jepa.planning.config import PlannerConfig
from jepa.planning.energy import EnergyConfig
from jepa.planning.episodes import wilson

PLANNER = PlannerConfig(samples=48, iterations=3, horizon=4, elites=8)


def settings(**changes: Any) -> WorldModelTask:
    own = {"env": "planning.toy:SimulatedTask", "episodes": 3, "max_steps": 25, "planner": PLANNER}
    return WorldModelTask(**{**own, "energy": EnergyConfig(over="sum"), **changes})  # type: ignore[arg-type]


def seers(**changes: Any) -> dict[str, Seer]:
    return {"trained": Seer(ToyModel(**changes), Run(torch.device("cpu"), "fp32"))}  # type: ignore[arg-type]


def test_all_agents_see_the_same_starts_and_goals() -> None:
    own = settings()
    task = open_goal_task(own, seers())
    assert task is not None
    found, notes = play(own, task, seers())
    assert notes == []
    assert [(row.agent, row.successes) for row in found] == [("trained", 3), ("random", 0), ("simulator", 3)]
    assert (found[0].low, found[0].high) == wilson(3, 3)
    head, lines = planning_cells([{"planning": [asdict(row) for row in found]}])
    assert lines[0][:3] == ["trained", "3 of 3", "100.0 [43.9, 100.0]"]
    assert lines[1][3] == "-", "no episode was reached, so there are no steps"
    assert len(head) == len(lines[0])


def test_an_environment_that_cannot_be_simulated_says_so() -> None:
    own = settings(env="planning.toy:ToyTask", episodes=1, agents=("simulator",))
    task = open_goal_task(own, seers())
    assert task is not None
    found, notes = play(own, task, seers())
    assert [row.agent for row in found] == ["trained"]
    assert notes == [
        "planning.toy:ToyTask cannot be simulated from a state: no planner through the true simulator."
    ]  # fmt: skip


def test_environments_that_do_not_fit() -> None:
    assert open_goal_task(WorldModelTask(), seers()) is None
    with pytest.raises(
        ConfigError, match="SimulatedTask has actions of 3 numbers, the model trained of 2: it was train"
    ):
        open_goal_task(settings(env_options={"axes": 3}), seers())
    with pytest.raises(ConfigError, match="SimulatedTask has states of 2 numbers, the model trained takes 5"):
        open_goal_task(settings(), seers(state_dim=5))
    with pytest.raises(ValueError, match="nowhere"):
        open_goal_task(settings(env="nowhere"), seers())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": 0}, "world_model.windows must be at least 1, not 0"),
        ({"test_episodes": 1}, "world_model.test_episodes must be at least 2, not 1"),
        ({"context": 0}, "world_model.context must be at least 1, not 0"),
        ({"episodes": 0}, "world_model.episodes must be at least 1, not 0"),
        ({"horizons": (1, 0)}, r"world_model.horizons must be at least 1 step, not \[1, 0\]"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldModelTask(**changes)


def test_a_table_of_a_model_without_states_has_one_part() -> None:
    part = {"horizon": 8, "beyond": True, "ratio": None, "ratio_interval": None, "ratio_mean": 0.5}
    part |= {"ratio_mean_interval": [0.25, 0.75]}
    part |= {name: 0.5 for name in ("error", "copy", "mean")}
    part |= {f"{name}_interval": [0.25, 0.75] for name in ("error", "copy", "mean")}
    row = WorldModelRow("trained", "l1", 1, 5, 20, 7, [part], [], [], [])
    assert table([row]).splitlines()[2:] == [
        "| trained | 8 * | 0.5000 [0.2500, 0.7500] | 0.5000 [0.2500, 0.7500] | 0.5000 [0.2500, 0.7500] | - | "
        "0.500 [0.250, 0.750] |",
        "",
        "Error of latents (l1), 20 rollouts in 5 episodes; * beyond the clips of training.",
    ]
