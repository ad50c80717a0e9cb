"""``jepa plan MODEL --trajectory FILE``: a recorded trajectory in, actions out."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.planning.settings import Frame, PlanSettings, model_space, open_model, place, read_image
from jepa.data.trajectories.base import Episode
from jepa.data.trajectories.opening import open_trajectories
from jepa.models.world_model import WorldModel
from jepa.planning import ActionSpace, PlanningError, plan
from jepa.planning.energy import Energy
from jepa.planning.imagination import Eyes, Imagination
from jepa.planning.search import Cost, Plan


class Past(NamedTuple):
    """What the model is shown: ``frames`` ``[T, H, W, 3]``, ``actions`` ``[T-1, A]`` between them, ``states``."""

    frames: Frame
    actions: Tensor
    states: Tensor | None


def plan_recorded(args: argparse.Namespace, settings: PlanSettings) -> int:
    """Plan once, print the actions and their energies."""
    if (args.goal_frame is None) == (not args.goal) or len(args.goal) > 1:
        raise PlanningError("with --trajectory give one goal: --goal IMAGE or --goal-frame K")
    model = open_model(args, settings)
    episode = read_episode(args, settings, model)
    context = args.context
    if context is None:
        context = max(1, min(3, model.clip.num_frames - settings.planner.horizon, args.step + 1))
    past = cut_past(episode, args.step, context, model)
    if args.goal:
        goal = read_image(args.goal[0], (episode.frames.shape[1], episode.frames.shape[2]), args.resize_goal)
    else:
        goal = frame_of(episode, "--goal-frame", args.goal_frame)
    report = solve(args, settings, model, past, goal, torch.from_numpy(episode.actions[args.step :]))
    print(json.dumps(report) if args.json else "\n".join(describe(report)))
    return 0


def read_episode(args: argparse.Namespace, settings: PlanSettings, model: WorldModel) -> Episode:
    """The episode at the model's rate. Raises ``ValueError`` where its actions or states are not the model's."""
    found = open_trajectories(args.trajectory, settings.trajectory)
    if not 0 <= args.episode < len(found):
        raise PlanningError(f"{args.trajectory} holds episodes 0 to {len(found) - 1}, not {args.episode}")
    episode = found.episode(args.episode, model.clip)
    if episode.actions.shape[1] != model.action_dim:
        raise PlanningError(
            f"{episode.name}: actions have {episode.actions.shape[1]} axes, the model's {model.action_dim}: it was "
            "trained on another action space"
        )
    states = 0 if episode.states is None else episode.states.shape[1]
    if model.state_dim and states != model.state_dim:
        raise PlanningError(f"{episode.name}: states have {states} numbers, the model's {model.state_dim}")
    return episode


def frame_of(episode: Episode, option: str, number: int) -> Frame:
    """A frame by its number."""
    if not 0 <= number < len(episode.frames):
        raise PlanningError(
            f"{option} {number}: {episode.name} has frames 0 to {len(episode.frames) - 1} at the model's rate"
        )
    frame: Frame = episode.frames[number]
    return frame


def cut_past(episode: Episode, step: int, context: int, model: WorldModel) -> Past:
    """The last ``context`` frames up to ``step``. Raises ``PlanningError`` where there are not so many."""
    frame_of(episode, "--step", step)
    if context < 1:
        raise PlanningError(f"context must be at least 1 frame, not {context}")
    if step + 1 < context:
        raise PlanningError(
            f"{episode.name}: a context of {context} frames does not end at step {step}, which only {step} frames "
            f"come before: use a later --step or --context {step + 1}"
        )
    seen = slice(step + 1 - context, step + 1)
    states = torch.from_numpy(episode.states[seen]) if model.state_dim and episode.states is not None else None
    return Past(episode.frames[seen], torch.from_numpy(episode.actions[seen][: context - 1]), states)


class Found(NamedTuple):
    """The ``plan``, the ``latents`` ``[T, n, D]`` of what was seen, and what says where actions lead and their cost."""

    plan: Plan
    latents: Tensor
    imagination: Imagination
    cost: Cost


def search(
    settings: PlanSettings, model: WorldModel, past: Past, goal: Frame, space: ActionSpace, device: torch.device,
    precision: str, generator: torch.Generator,
) -> Found:  # fmt: skip
    """Plan from ``past`` to the ``goal`` ``[H, W, 3]``; ``model`` and ``space`` are on ``device``."""
    eyes, energy = Eyes(model, device, precision), Energy(settings.energy)
    wanted, latents = eyes(goal[None])[0], eyes(past.frames)
    states = None if past.states is None else past.states.to(device)
    imagination = Imagination(model, latents, past.actions.to(device), states, precision)
    cost = imagination.cost(energy, wanted, space)
    return Found(plan(settings.planner, cost, space, generator), latents, imagination, cost)


def solve(
    args: argparse.Namespace, settings: PlanSettings, model: WorldModel, past: Past, goal: Frame, recorded: Tensor
) -> dict[str, Any]:
    """The plan, and the energies to compare it with: standing still, and the actions that were recorded."""
    device, precision = place(args)
    model = model.to(device)
    space = settings.space.narrow(model_space(model)).to(device)
    generator = torch.Generator(device).manual_seed(args.seed)
    horizon = settings.planner.horizon
    started = time.perf_counter()
    found, _, _, cost = search(settings, model, past, goal, space, device, precision, generator)
    actions = found.on_host()
    seconds = time.perf_counter() - started
    with torch.no_grad():
        still = space.clip(torch.zeros(1, horizon, space.dim, device=device))
        report = {
            "actions": np.round(actions.astype(float), 6).tolist(),
            "energy": float(found.cost),
            "energy_still": float(cost(still)[0]),
            "energy_recorded": None,
            "best_per_round": found.history.tolist(),
            "planner": settings.planner.kind,
            "seconds": round(seconds, 4),
        }
        if len(recorded) >= horizon:
            report["energy_recorded"] = float(cost(recorded[None, :horizon].to(device))[0])
    return report


def describe(report: dict[str, Any]) -> list[str]:
    """The report in words."""
    recorded = report["energy_recorded"]
    lines = [f"planned by {report['planner']} in {1000 * report['seconds']:.0f} ms", "step  action"]
    lines += [
        f"{step:>4}  " + " ".join(f"{value:>8.4f}" for value in action) for step, action in enumerate(report["actions"])
    ]
    lines.append(f"energy of the plan       {report['energy']:.5f}")
    lines.append(f"energy of standing still {report['energy_still']:.5f}")
    if recorded is not None:
        lines.append(f"energy of the recording  {recorded:.5f}")
    return lines
