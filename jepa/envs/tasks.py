"""``open_task``: an environment by its name."""

from __future__ import annotations

from typing import Any

from jepa.envs.base import GoalTask, Observation, SimulatedTask, TaskError
from jepa.envs.gym_task import GymTask
from jepa.envs.policies import load_function
from jepa.envs.pusht import PushTTask, pusht_config
from jepa.envs.pusht_table import PUSHT
from jepa.envs.rooms_env import RoomsTask, rooms_config

__all__ = ["GoalTask", "Observation", "SimulatedTask", "TaskError", "open_task"]
_MEMBERS = ("fps", "action_low", "action_high", "state_names", "reset", "step", "close")


def open_task(name: str, **options: Any) -> GoalTask:
    """The task ``name``: ``rooms`` (options: the keys of ``RoomsConfig``), ``gym_pusht/PushT-v0`` (those of
    ``PushTConfig``), any other id of gymnasium (see ``GymTask``), or ``MODULE:FUNCTION``, which gets the options.

    Raises ``ValueError`` (``TaskError``, or ``ConfigError`` for an option) that names what is wrong: an unknown
    environment or option, a package that is not installed, actions that are not a Box.
    """
    if name in ("rooms", "jepa/Rooms-v0"):
        return RoomsTask(rooms_config(options))
    if name == PUSHT:
        return PushTTask(pusht_config(options))
    _, colon, function = name.partition(":")
    if colon and function.isidentifier():
        try:
            task = load_function(name, "environment")(**options)
        except TypeError as error:
            raise TaskError(f"environment {name!r} cannot be made with options {options}: {error}") from None
        missing = [member for member in _MEMBERS if not hasattr(task, member)]
        if missing:
            raise TaskError(f"environment {name!r} must return a GoalTask, but it has no {', '.join(missing)}")
        return task  # type: ignore[no-any-return]
    return GymTask(name, **options)
