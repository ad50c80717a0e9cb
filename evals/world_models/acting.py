"""How often a world model's planner reaches goals, beside chance and a planner through the true simulator."""

from __future__ import annotations

from evals.task_configs import WorldModelTask
from evals.world_models.opening import Seer
from jepa.config import ConfigError
from jepa.envs.base import GoalTask, SimulatedTask
from jepa.envs.tasks import open_task
from jepa.planning.agents import Agent, PlanningAgent, RandomAgent, SimulatorAgent, frame_skip_of
from jepa.planning.episodes import Summary, run_episodes, summarise


def open_goal_task(own: WorldModelTask, seers: dict[str, Seer]) -> GoalTask | None:
    """``own.env``. Raises ``ConfigError`` where its actions or states are not those of a model."""
    if own.env is None:
        return None
    task = open_task(own.env, **own.env_options)
    axes, states = len(task.action_low), len(task.state_names)
    for name, seer in seers.items():
        world = seer.world
        if axes != world.action_dim:
            task.close()
            raise ConfigError(
                f"environment {own.env} has actions of {axes} numbers, the model {name} of {world.action_dim}: it was "
                "trained on another action space"
            )
        if world.state_dim and states != world.state_dim:
            task.close()
            raise ConfigError(
                f"environment {own.env} has states of {states} numbers, the model {name} takes {world.state_dim}"
            )
    return task


def play(own: WorldModelTask, task: GoalTask, seers: dict[str, Seer]) -> tuple[list[Summary], list[str]]:
    """Every model's planner and the other agents on the same starts and goals, and notes on what was left out."""
    agents: list[Agent] = []
    for name, seer in seers.items():
        agent = PlanningAgent(
            seer.world, own.planner, own.energy, device=seer.run.device, precision=seer.run.precision, seed=own.seed
        )
        agent.name = name
        agents.append(agent)
    skip, notes = frame_skip_of(next(iter(seers.values())).world.clip, task.fps), list[str]()
    if "random" in own.agents:
        agents.append(RandomAgent(skip, own.seed))
    if "simulator" in own.agents:
        if isinstance(task, SimulatedTask):
            agents.append(SimulatorAgent(own.planner, skip, own.seed))
        else:
            notes.append(f"{own.env} cannot be simulated from a state: no planner through the true simulator.")
    return [
        summarise(agent.name, run_episodes(task, agent, own.episodes, own.seed, own.max_steps)) for agent in agents
    ], notes
