"""Recording an environment as a folder of episodes (``jepa data record``)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from jepa.config import to_dict
from jepa.data.trajectories.writer import EpisodeWriter
from jepa.envs.base import GoalTask, TaskError, check_action
from jepa.envs.policies import open_policy
from jepa.envs.tasks import open_task


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordConfig:
    """``episodes`` of the environment ``env`` opened with ``options`` under ``policy`` (docs/environments.md), each of
    ``steps`` actions: ``steps + 1`` frames, fewer where the environment ends by itself. An action is held for
    ``hold`` steps of the environment, and a frame is kept after each: the frames' rate is the environment's by
    ``hold``. Episode k is a pure function of ``seed`` and k."""

    env: str
    episodes: int
    policy: str = "random"
    steps: int = 100
    hold: int = 1
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("episodes", "steps", "hold"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, not {self.seed}")


class Recorded(NamedTuple):
    """``written`` episodes now, ``kept`` ones that were there; ``frames`` written, ``short`` episodes that the
    environment ended before all steps were done."""

    folder: Path
    written: int
    kept: int
    frames: int
    short: int


class Arrays(NamedTuple):
    """``frames`` uint8 ``[T, H, W, 3]``, ``actions`` float32 ``[T-1, A]``, ``states`` float32 ``[T, S]`` or None, and
    the seconds ``times`` ``[T]`` where the frames do not come evenly."""

    frames: np.ndarray
    actions: np.ndarray
    states: np.ndarray | None
    times: np.ndarray | None = None


def record_episode(task: GoalTask, config: RecordConfig, number: int) -> Arrays:
    """Episode ``number`` of a recording. Raises ``TaskError`` where the policy's actions do not fit."""
    streams = np.random.SeedSequence([config.seed, number]).spawn(2)
    policy = open_policy(config.policy, task, np.random.default_rng(streams[0]))
    seen = task.reset(int(streams[1].generate_state(1)[0] >> 1))  # below 2^31: some environments take no more
    frames, states, actions = [seen.frame], [seen.state], []
    for _ in range(config.steps):
        action = check_action(policy(seen), task.action_low, task.action_high)  # what is stored is what was done
        held = 0
        for _ in range(config.hold):
            seen, held = task.step(action), held + 1
            if seen.done and not task.goes_on:
                break
        actions.append(action)
        frames.append(seen.frame)
        states.append(seen.state)
        if seen.done and not task.goes_on:
            break
    times = None
    if held < config.hold:  # it ended while an action was held
        times = np.arange(len(frames)) * config.hold / task.fps
        times[-1] = times[-2] + held / task.fps
    return Arrays(np.stack(frames), np.stack(actions), np.stack(states) if len(seen.state) else None, times)


def recording_meta(config: RecordConfig, task: GoalTask) -> dict[str, Any]:
    """What ``trajectories.json`` says: how the episodes were made, and what a reader needs."""
    options = getattr(task, "config", config.options)  # with what is left to defaults, which may change one day
    bounds = {"action_low": task.action_low, "action_high": task.action_high}
    return {
        "env": config.env, "options": to_dict(options), "policy": config.policy, "seed": config.seed,
        "steps": config.steps, "hold": config.hold, "fps": task.fps / config.hold,
        **{name: bound.tolist() for name, bound in bounds.items() if np.isfinite(bound).all()},
        "state_names": list(task.state_names),
    }  # fmt: skip


def record(config: RecordConfig, folder: str | Path, workers: int | None = 1, progress: bool = True) -> Recorded:
    """Record episodes to ``folder``; those that are there are kept, so that an interrupted recording goes on, and more
    can be asked for later. ``workers`` processes (None: one per core).

    Raises ``ValueError`` for an environment, option or policy that cannot be had, and for a folder of other settings.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    task = open_task(config.env, **config.options)
    try:
        open_policy(config.policy, task, np.random.default_rng(0))  # a wrong name is told before anything is written
        writer = EpisodeWriter(folder, recording_meta(config, task))
        done = writer.done
        todo = [number for number in range(config.episodes) if number not in done]
        bar = tqdm(
            total=config.episodes, initial=config.episodes - len(todo), desc=f"recording {config.env}", unit="episode",
            disable=not progress,
        )  # fmt: skip
        frames = short = 0
        with bar:
            for length in _lengths(task, writer, config, todo, os.cpu_count() or 1 if workers is None else workers):
                frames, short = frames + length, short + (length <= config.steps)
                bar.update()
    finally:
        task.close()
    return Recorded(Path(folder), len(todo), config.episodes - len(todo), frames, short)


def _lengths(
    task: GoalTask, writer: EpisodeWriter, config: RecordConfig, todo: list[int], workers: int
) -> Iterator[int]:
    """Record and write the episodes ``todo``; their numbers of frames as they come."""
    if workers == 1 or len(todo) < 2:
        for number in todo:
            yield _write(task, writer, config, number)
        return
    with ProcessPoolExecutor(min(workers, len(todo)), initializer=_begin, initargs=(writer, config)) as pool:
        try:
            yield from pool.map(_work, todo, chunksize=1)
        except BrokenProcessPool:
            raise TaskError("a recording process died (out of memory?): run the same command again to go on") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _write(task: GoalTask, writer: EpisodeWriter, config: RecordConfig, number: int) -> int:
    episode = record_episode(task, config, number)
    writer.write(number, episode.frames, episode.actions, episode.states, episode.times)
    return len(episode.frames)


_worker: tuple[GoalTask, EpisodeWriter, RecordConfig] | None = None  # of a worker process: opened once


def _begin(writer: EpisodeWriter, config: RecordConfig) -> None:
    global _worker
    _worker = open_task(config.env, **config.options), writer, config


def _work(number: int) -> int:
    assert _worker is not None
    return _write(*_worker, number)
