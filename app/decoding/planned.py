"""Plans of a world model, decoded: the imagined path from a first frame to a goal, beside what really happens.

Shape legend: S samples, C channels, T frames, n tokens of a frame, D width, H steps, A action width.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.decoding.acted import action_lines, decoded_frames
from app.decoding.bench import Bench
from app.decoding.colours import to_pictures
from app.decoding.material import evenly, fitted, open_episodes, read_episode
from app.decoding.panels import Shown, by_frame, decoded, error_panel, quality, scores, with_lines
from app.decoding.sheets import Example, Panel
from app.planning.recorded import Past, cut_past, frame_of, search
from app.planning.settings import PlanSettings, model_space, read_settings
from jepa.envs.base import GoalTask
from jepa.envs.tasks import open_task
from jepa.models.world_model import WorldModel
from jepa.planning import ActionSpace, PlanningError
from jepa.planning.agents import frame_skip_of, task_space

Frames = NDArray[np.uint8]


class Way(NamedTuple):
    """A plan that was found: its ``actions`` ``[H, A]``, the ``latents`` ``[H + 1, n, D]`` from the first frame on that
    they are imagined to lead to, and the ``energies`` of this plan and of standing still."""

    actions: Tensor
    latents: Tensor
    energies: dict[str, float]


def plan(bench: Bench, args: argparse.Namespace) -> Iterator[Shown]:
    """The imagined path to the goal: in an environment (``--env``), where the plan is then carried out, or between two
    frames of a recording."""
    settings = read_settings(
        argparse.Namespace(
            set=args.set, planner=args.planner, energy=args.energy, horizon=args.horizon, samples=None, iterations=None,
            architecture=None,
        )
    )  # fmt: skip
    model = bench.world()
    if args.env is None:
        yield from _in_recordings(bench, model, settings, args)
        return
    if args.videos:
        raise PlanningError(f"--env {args.env} shows its own frames: leave {args.videos[0]} out")
    task = open_task(args.env, **settings.env)
    try:
        for number in range(args.clips):
            yield _in_task(bench, model, settings, task, args.seed + number, args.env)
    finally:
        task.close()


def _in_recordings(
    bench: Bench, model: WorldModel, settings: PlanSettings, args: argparse.Namespace
) -> Iterator[Shown]:  # fmt: skip
    """From frame ``--step`` to ``--goal-frame``, by default so many steps on as a plan has."""
    horizon = settings.planner.horizon
    for video in evenly(open_episodes(args.videos, bench.decoder, settings.trajectory), args.clips):
        episode = read_episode(video, model.clip)
        if episode.actions.shape[1] != model.action_dim:
            raise PlanningError(
                f"{episode.name}: actions have {episode.actions.shape[1]} axes, the model's {model.action_dim}: it was "
                "trained on another action space"
            )
        last = min(args.step + horizon, len(episode.frames) - 1) if args.goal_frame is None else args.goal_frame
        goal = frame_of(episode, "--goal-frame", last)
        past = cut_past(episode, args.step, 1 if args.context is None else int(args.context), model)
        way = _find(bench, model, settings, past, goal, model_space(model))
        recorded = episode.frames[args.step : args.step + horizon + 1]
        yield _shown(bench, episode.name, way, past.frames[-1], goal, recorded, "what was recorded")


def _in_task(
    bench: Bench, model: WorldModel, settings: PlanSettings, task: GoalTask, seed: int, name: str
) -> Shown:  # fmt: skip
    """From the first frame of an episode to its goal; then the plan is carried out without another look."""
    observation = task.reset(seed)
    if observation.goal is None:
        raise PlanningError(f"environment {name} shows no goal to plan to: use a recording")
    if model.action_dim != len(task.action_low):
        raise PlanningError(
            f"the actions of {name} have {len(task.action_low)} axes, the model's {model.action_dim}: it was trained "
            "on another action space"
        )
    states = torch.from_numpy(observation.state)[None] if model.state_dim else None
    past = Past(observation.frame[None], torch.zeros(0, model.action_dim), states)
    way = _find(bench, model, settings, past, observation.goal, task_space(task))
    frames, skip = [observation.frame], frame_skip_of(model.clip, task.fps)
    for action in way.actions.cpu().numpy():
        for _ in range(skip):
            after = task.step(action)
            frames.append(after.frame)
            if after.done and not task.goes_on:
                break
        if after.done and not task.goes_on:
            break
    return _shown(
        bench, f"{name}, seed {seed}", way, observation.frame, observation.goal, np.stack(frames[::skip]),
        "the plan, carried out",
    )  # fmt: skip


def _find(
    bench: Bench, model: WorldModel, settings: PlanSettings, past: Past, goal: Frames, bounds: ActionSpace
) -> Way:  # fmt: skip
    space = settings.space.narrow(bounds).to(bench.run.device)
    generator = torch.Generator(bench.run.device).manual_seed(bench.seed)
    found = search(settings, model, past, goal, space, bench.run.device, bench.run.precision, generator)
    actions = found.plan.actions.to(bench.run.device)
    latents = torch.cat((found.latents[-1:], found.imagination.follow(actions))).float()
    with torch.no_grad():
        still = float(found.cost(space.clip(torch.zeros_like(actions)[None]))[0])
    return Way(actions, latents, {"energy": float(found.plan.cost), "energy_still": still})


def _shown(bench: Bench, name: str, way: Way, start: Frames, goal: Frames, real: Frames, words: str) -> Shown:
    """Start, imagined path, what really happened (``real`` ``[T, H, W, 3]``, which may end before), goal."""
    clip, device, frames = bench.decoder.clip, bench.run.device, len(way.latents)
    first, last = (bench.pixels(fitted(picture[None], clip, device)) for picture in (start, goal))
    truth = bench.pixels(fitted(real, clip, device))
    happened = truth[:, torch.arange(frames).clamp(max=truth.shape[1] - 1)]
    clips = decoded_frames(bench, way.latents)
    mean = clips.mean(dim=0)
    carried_out = words == "the plan, carried out"
    panels = [
        Panel("first frame", to_pictures(first.expand_as(happened))),
        *decoded("imagined path", clips, happened if carried_out else None, None, ""),
        Panel("truth" if carried_out else "recorded", to_pictures(happened), words),
        Panel("goal", to_pictures(last.expand_as(happened))),
        *([error_panel(clips, happened)] if carried_out else []),
    ]
    ends = {"imagined": quality(mean[:, -1:], last), "first_frame": quality(first, last)}
    numbers: dict[str, Any] = {
        **way.energies, "actions": way.actions.cpu().tolist(),
        "psnr_to_the_goal": {key: round(value, 3) for key, value in ends.items()},
    }  # fmt: skip
    if carried_out:
        numbers |= {"imagined": scores(clips, happened), "psnr_by_frame": by_frame(mean, happened)}
    return Shown(Example(name, with_lines(panels, action_lines(way.actions, 1, ""))), numbers)
