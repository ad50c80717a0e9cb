"""``jepa plan MODEL --env ENV``: episodes of the model's planner and of other agents, a table, pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from app.output import check_output, write_output
from app.planning.settings import PlanSettings, open_actor, place, read_image
from jepa.config import suggest, to_dict
from jepa.envs.base import GoalTask
from jepa.envs.tasks import open_task
from jepa.models.policy import Policy
from jepa.models.world_model import WorldModel
from jepa.planning import PlanningError
from jepa.planning.agents import Agent, PlanningAgent, RandomAgent, SimulatorAgent, frame_skip_of, task_space
from jepa.planning.episodes import EpisodeResult, Summary, run_episode, summarise
from jepa.planning.landscape import check_axes, moving_axes
from jepa.planning.policy_agent import PolicyAgent

OTHERS = ("random", "simulator")
_SEEN = 16  # episodes of every agent whose frames are kept: what imagined latents are shown by


def act(args: argparse.Namespace, settings: PlanSettings) -> int:
    """Run all agents on the same starts and goals, print the table, write what was asked for."""
    others = read_others(args.against)
    axes = read_axes(args.axes)
    for name in ("episodes", "max_steps"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise PlanningError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    if args.videos < 0:
        raise PlanningError(f"--videos must not be negative, not {args.videos}")
    model = open_actor(args, settings, others)
    task = open_task(args.env, **settings.env)
    try:
        agents = make_agents(args, settings, model, task, others)
        if args.out is not None:
            space = settings.space.narrow(task_space(task))
            if moving_axes(space) > 1:  # else there is none to draw
                check_axes(axes, space)
            check_output(Path(args.out))
        results = run_all(args, task, agents)
        summaries = [summarise(name, found) for name, found in results.items()]
        print("\n".join(table(summaries)))
        if args.out is not None:
            from app.planning.pictures import write_landscape, write_videos

            out = Path(args.out)
            write_results(out, args, settings, summaries, results)
            planner = agents[0]
            assert isinstance(planner, PlanningAgent)
            write_videos(out, planner, task.fps, results, args.videos)
            write_landscape(out, planner, task, args.seed, axes)
    finally:
        task.close()
    return 0


def read_others(text: str) -> list[str]:
    """The agents named by ``--against``."""
    names = [] if text in ("", "none") else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in OTHERS:
            raise PlanningError(f"--against names agent {name!r}{suggest(name, OTHERS)}")
    return list(dict.fromkeys(names))


def read_axes(text: str) -> tuple[int, int]:
    """The two axes of ``--axes``."""
    try:
        first, second = (int(part) for part in text.split(","))
    except ValueError:
        raise PlanningError(f"--axes must be two axis numbers such as 0,1, not {text!r}") from None
    return first, second


def make_agents(
    args: argparse.Namespace, settings: PlanSettings, model: WorldModel | Policy, task: GoalTask, others: Sequence[str]
) -> list[Agent]:
    """The policy or the model's planner, then the others, all holding their actions for equally long."""
    device, precision = place(args)
    observation = task.reset(args.seed)
    height, width = observation.frame.shape[:2]
    goals = [read_image(path, (height, width), args.resize_goal) for path in args.goal]
    space = settings.space.narrow(task_space(task))
    if isinstance(model, Policy):
        agents: list[Agent] = [
            PolicyAgent(
                model, device=device, precision=precision, space=space, subgoals=goals, subgoal=settings.subgoal,
                imagine=args.out is not None,
            )
        ]  # fmt: skip
        clip = model.world.clip
    else:
        agents = [
            PlanningAgent(
                model, settings.planner, settings.energy, device=device, precision=precision, context=args.context,
                space=space, subgoals=goals, subgoal=settings.subgoal,
                imagine=args.out is not None and args.videos > 0, seed=args.seed,
            )
        ]  # fmt: skip
        clip = model.clip
    skip = frame_skip_of(clip, task.fps)
    if "random" in others:
        agents.append(RandomAgent(skip, args.seed, space))
    if "simulator" in others:
        agents.append(SimulatorAgent(settings.planner, skip, args.seed, space))
    return agents


def run_all(args: argparse.Namespace, task: GoalTask, agents: Sequence[Agent]) -> dict[str, list[EpisodeResult]]:
    """Every agent's episodes, with a bar that tells the time left."""
    keep = max(args.videos, _SEEN) if args.out is not None and args.videos > 0 else 0
    results: dict[str, list[EpisodeResult]] = {agent.name: [] for agent in agents}
    with tqdm(total=len(agents) * args.episodes, unit="episode", disable=None) as bar:
        for agent in agents:
            for number in range(args.episodes):
                found = run_episode(task, agent, args.seed + number, args.max_steps, number < keep)
                results[agent.name].append(found)
                reached = sum(result.success for result in results[agent.name])
                bar.set_description(f"{agent.name}: {reached} of {number + 1}")
                bar.update()
    return results


def table(summaries: Sequence[Summary]) -> list[str]:
    """Lines of the table that is printed."""
    lines = [f"{'agent':<12}{'success':>9}{'95 % interval':>16}{'steps':>8}{'ms/action':>11}{'p90':>8}"]
    for row in summaries:
        interval = f"{100 * row.low:.0f} to {100 * row.high:.0f} %"
        cells = (row.mean_steps, row.median_ms, row.p90_ms)
        steps, median, p90 = ("-" if value is None else f"{value:.1f}" for value in cells)
        lines.append(f"{row.agent:<12}{100 * row.success_rate:>7.1f} %{interval:>16}{steps:>8}{median:>11}{p90:>8}")
    return [*lines, "steps: mean of the successful episodes; ms: per planned action, median and 90 % quantile"]


def write_results(
    out: Path, args: argparse.Namespace, settings: PlanSettings, summaries: Sequence[Summary],
    results: dict[str, list[EpisodeResult]],
) -> None:  # fmt: skip
    """``results.json``: the table, the settings, and every episode."""

    def row(agent: str, result: EpisodeResult) -> dict[str, Any]:
        times = [round(ms, 3) for ms in result.ms_per_action]
        return {"agent": agent, "seed": result.seed, "success": result.success, "steps": result.steps, "ms": times}

    episodes = [row(name, result) for name, found in results.items() for result in found]
    about = {"model": str(args.model), "env": args.env, "seed": args.seed, "settings": to_dict(settings)}
    data = {**about, "agents": [asdict(summary) for summary in summaries], "episodes": episodes}
    write_output(out / "results.json", (json.dumps(data, indent=1) + "\n").encode())
