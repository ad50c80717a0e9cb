"""Policies that need no model: how a recording explores, and what a planner must beat."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa.config import suggest
from jepa.envs.base import GoalTask, Observation, Policy, TaskError, Vector

HELD_STEPS = 8.0  # mean number of actions between two directions of the policy `held`
NOISE = 0.2  # standard deviation that is added to a held action, as a share of half the range
SMOOTHNESS = 0.85  # correlation of neighbouring actions of the policy `smooth`


def uniform(low: Vector, high: Vector, rng: np.random.Generator) -> Policy:
    """Every action uniform in the bounds, by itself."""
    return lambda _: rng.uniform(low, high).astype(np.float32)


def held(low: Vector, high: Vector, rng: np.random.Generator) -> Policy:
    """An action uniform in the bounds is held, with noise, and drawn anew after a geometric
    number of steps: it gets somewhere, which independent actions do not."""
    middle, half = (low + high) / 2, (high - low) / 2
    base = middle

    def act(observation: Observation) -> Vector:
        nonlocal base
        if base is middle or rng.random() < 1 / HELD_STEPS:
            base = middle + half * direction(rng, len(low))
        return np.clip(base + NOISE * half * rng.standard_normal(len(low)), low, high).astype(np.float32)

    return act


def direction(rng: np.random.Generator, width: int) -> NDArray[np.float64]:
    """A random direction in the box -1..1, as long as the box allows times 0.4 to 1."""
    way = rng.standard_normal(width)
    return np.asarray(way / np.abs(way).max() * rng.uniform(0.4, 1.0))


def smooth(low: Vector, high: Vector, rng: np.random.Generator) -> Policy:
    """A walk through the bounds whose neighbouring actions are alike (first-order autoregressive)."""
    middle, half, now = (low + high) / 2, (high - low) / 2, rng.standard_normal(len(low))

    def act(observation: Observation) -> Vector:
        nonlocal now
        action = np.clip(middle + 0.6 * half * now, low, high).astype(np.float32)
        now = SMOOTHNESS * now + (1 - SMOOTHNESS**2) ** 0.5 * rng.standard_normal(len(low))
        return action

    return act


POLICIES: dict[str, Callable[[Vector, Vector, np.random.Generator], Policy]] = {
    "random": held, "held": held, "smooth": smooth, "uniform": uniform,
}  # fmt: skip


def open_policy(name: str, task: GoalTask, rng: np.random.Generator) -> Policy:
    """``random`` (the task's own way to explore, else like ``held``), ``held``, ``smooth``, ``uniform``, or
    ``MODULE:FUNCTION`` with ``function(task, rng) -> policy`` and ``policy(observation) -> action [A]``.

    Raises ``TaskError`` for an unknown name.
    """
    if ":" in name:
        try:
            policy = load_function(name, "policy")(task, rng)
        except TypeError as error:
            raise TaskError(f"policy {name!r} must be a function of (task, rng): {error}") from None
        if not callable(policy):
            raise TaskError(f"policy {name!r} must return a function of the observation, not {type(policy).__name__}")
        return policy  # type: ignore[no-any-return]
    if name not in POLICIES:
        raise TaskError(f"unknown policy {name!r}{suggest(name, POLICIES)}; or give MODULE:FUNCTION")
    explorer = getattr(task, "explorer", None)
    if name == "random" and explorer is not None:
        return explorer(rng)  # type: ignore[no-any-return]
    low, high = task.action_low, task.action_high
    if not np.isfinite(low).all() or not np.isfinite(high).all():
        raise TaskError(f"policy {name!r} needs actions with bounds, not {low.tolist()} to {high.tolist()}")
    return POLICIES[name](low, high, rng)


def load_function(name: str, kind: str) -> Callable[..., Any]:
    """The function ``MODULE:FUNCTION``; modules of the folder at hand are found too. ``TaskError`` names what fails."""
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # an installed command does not look there by itself
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise TaskError(f"{kind} {name!r}: there is no module {error.name!r}") from None
    except ImportError as error:
        raise TaskError(f"{kind} {name!r} cannot be imported: {error}") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        hint = suggest(function_name, known)
        raise TaskError(f"{kind} {name!r}: {module_name} has no function {function_name!r}{hint}")
    return function  # type: ignore[no-any-return]
