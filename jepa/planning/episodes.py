"""Episodes of an agent in an environment, and what is said about many of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jepa.planning.agents import Agent, Decision, Frame
from jepa.planning.search import PlanningError

if TYPE_CHECKING:
    from jepa.envs.base import GoalTask

_Z = 1.959964  # standard normal quantile of 97.5 %


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeResult:
    """``steps`` of the environment that were done, ``decisions`` as the agent made them. ``frames`` uint8
    ``[steps + 1, H, W, 3]`` where they were kept, else None."""

    seed: int
    success: bool
    steps: int
    decisions: list[Decision] = field(default_factory=list)
    frames: NDArray[np.uint8] | None = None
    goal: Frame | None = None

    @property
    def ms_per_action(self) -> list[float]:
        """Milliseconds of every planned action."""
        return [1000 * decision.seconds for decision in self.decisions]


def run_episodes(
    task: GoalTask, agent: Agent, episodes: int, seed: int = 0, max_steps: int | None = None,
    keep_frames: bool = False, on_episode: Callable[[EpisodeResult], None] | None = None,
) -> list[EpisodeResult]:  # fmt: skip
    """``episodes`` of ``agent``, with seeds ``seed``, ``seed + 1``, ...: other agents get the same starts and goals.

    An episode ends with success, when the environment says so, or after ``max_steps``. ``on_episode``: called after
    each. Raises ``PlanningError`` for numbers below 1, and what the agent raises.
    """
    for name, value in (("episodes", episodes), ("max_steps", max_steps)):
        if value is not None and value < 1:
            raise PlanningError(f"{name} must be at least 1, not {value}")
    results = []
    for number in range(episodes):
        results.append(run_episode(task, agent, seed + number, max_steps, keep_frames))
        if on_episode is not None:
            on_episode(results[-1])
    return results


def run_episode(
    task: GoalTask, agent: Agent, seed: int, max_steps: int | None = None, keep_frames: bool = False
) -> EpisodeResult:
    """One episode, see ``run_episodes``."""
    observation = task.reset(seed)
    goal = observation.goal
    agent.begin(goal, task)
    frames, steps = [observation.frame], 0
    while not (observation.success or observation.done) and (max_steps is None or steps < max_steps):
        observation = task.step(agent.act(observation))
        steps += 1
        if keep_frames:
            frames.append(observation.frame)
    return EpisodeResult(
        seed=seed, success=bool(observation.success), steps=steps, decisions=agent.decisions,
        frames=np.stack(frames) if keep_frames else None, goal=goal,
    )  # fmt: skip


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % confidence interval of a success rate (Wilson, JASA 1927); it stays within 0 and 1, also for few trials."""
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} is no success rate")
    rate, square = successes / trials, _Z**2
    centre = (rate + square / (2 * trials)) / (1 + square / trials)
    half = _Z * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials**2)) / (1 + square / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Of one agent's episodes. ``mean_steps`` of the successful ones (None: there are none); milliseconds per planned
    action: ``median_ms`` and ``p90_ms`` (None: none was planned)."""

    agent: str
    episodes: int
    successes: int
    success_rate: float
    low: float
    high: float
    mean_steps: float | None
    median_ms: float | None
    p90_ms: float | None


def summarise(agent: str, results: Sequence[EpisodeResult]) -> Summary:
    """Success rate with its confidence interval, steps and times."""
    successes = [result for result in results if result.success]
    low, high = wilson(len(successes), len(results))
    times = [ms for result in results for ms in result.ms_per_action]
    return Summary(
        agent=agent, episodes=len(results), successes=len(successes), success_rate=len(successes) / len(results),
        low=low, high=high, mean_steps=statistics.fmean(r.steps for r in successes) if successes else None,
        median_ms=statistics.median(times) if times else None,
        p90_ms=float(np.quantile(times, 0.9)) if times else None,
    )  # fmt: skip
