"""What the command line of ``jepa plan`` says, checked: planner, energy, action space, goals, model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from jepa.config import apply_overrides, from_dict, load_yaml
from jepa.data.trajectories.config import TrajectoryConfig
from jepa.models.policy import Policy
from jepa.models.world_model import WorldModel
from jepa.planning import ActionSpace, PlannerConfig, PlanningError, action_space, franka_space
from jepa.planning.agents import SubgoalConfig
from jepa.planning.energy import EnergyConfig
from jepa.world_model import is_policy, load_policy, load_world_model

Frame = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceConfig:
    """What narrows the bounds of the actions: see ``jepa.planning.action_space``. ``low`` and ``high`` replace those of
    the environment, or of the model's training data."""

    low: list[float] | None = None
    high: list[float] | None = None
    clip: list[float] | float | None = None
    max_norm: float | None = None
    norm_axes: list[int] | None = None
    frozen: dict[int, float] = field(default_factory=dict)

    def narrow(self, given: ActionSpace) -> ActionSpace:
        """``given`` with these settings. Raises ``ValueError`` naming what does not fit."""
        low = given.low.cpu() if self.low is None else self.low
        high = given.high.cpu() if self.high is None else self.high
        if len(low) != given.dim or len(high) != given.dim:
            raise PlanningError(f"space.low and space.high must have {given.dim} values, one per action axis")
        clip, frozen = self.clip, self.frozen
        return action_space(low, high, clip=clip, max_norm=self.max_norm, norm_axes=self.norm_axes, frozen=frozen)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSettings:
    """The keys of ``--set``. ``env``: options of the environment; ``model``: of ``load_world_model`` (``family`` and
    architecture of a published file)."""

    planner: PlannerConfig = field(default_factory=PlannerConfig)
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    subgoal: SubgoalConfig = field(default_factory=SubgoalConfig)
    trajectory: TrajectoryConfig = field(default_factory=TrajectoryConfig)
    env: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)


def read_settings(args: argparse.Namespace) -> PlanSettings:
    """``--set`` first, the other options over it. Raises ``ConfigError`` naming a wrong key or value."""
    data = apply_overrides({}, args.set)
    named = {"kind": args.planner, "samples": args.samples, "iterations": args.iterations, "horizon": args.horizon}
    planner = {**data.get("planner", {}), **{key: value for key, value in named.items() if value is not None}}
    samples = planner.get("samples")
    if "elites" not in planner and isinstance(samples, int) and samples < PlannerConfig().elites * 2:
        planner["elites"] = max(1, samples // 8)  # as many in proportion as by default
    data["planner"] = planner
    if args.energy is not None:
        data["energy"] = {**data.get("energy", {}), "kind": args.energy}
    if args.architecture is not None:
        data["model"] = {**load_yaml(args.architecture), **data.get("model", {})}
    return from_dict(PlanSettings, data)


def open_model(args: argparse.Namespace, settings: PlanSettings) -> WorldModel:
    """The world model of the command line."""
    return load_world_model(args.model, **settings.model)


def open_actor(args: argparse.Namespace, settings: PlanSettings, others: Sequence[str]) -> WorldModel | Policy:
    """What acts: the policy of a policy run, else a world model that is planned with. Raises ``PlanningError`` for
    options of a search where there is none, neither the policy's nor that of the agent "simulator" among ``others``."""
    if settings.model or not is_policy(args.model):
        return open_model(args, settings)
    idle = ["energy", "context"]
    if "simulator" not in others:
        idle += ["planner", "samples", "iterations", "horizon"]
    given = [f"--{name}" for name in idle if getattr(args, name, None) is not None]
    given += [f"--set {text}" for text in args.set if text.partition(".")[0] in idle]
    if given:
        raise PlanningError(f"{given[0]}: {args.model} is a policy, which acts without planning: leave it out")
    return load_policy(args.model)


def model_space(model: WorldModel) -> ActionSpace:
    """The actions to plan with where no environment says: V-JEPA 2-AC's own for models of poses, else the bounds of the
    training data."""
    if model.config.state_update == "pose7":
        return franka_space()
    return action_space(model.scaling.action_low.cpu(), model.scaling.action_high.cpu())


def read_image(path: str, size: tuple[int, int] | None, resize: bool) -> Frame:
    """An image file as uint8 ``[H, W, 3]``. ``size`` (height, width): what it must have, or with ``resize`` gets.

    Raises ``ValueError`` naming the file.
    """
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise PlanningError(f"goal image {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if size is not None and (picture.height, picture.width) != size:
        if not resize:
            raise PlanningError(
                f"goal image {path} is {picture.height} x {picture.width} pixels, the frames are {size[0]} x "
                f"{size[1]}: give one of the same size, or add --resize-goal"
            )
        picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def place(args: argparse.Namespace) -> tuple[torch.device, str]:
    """Device and precision of the command line."""
    from jepa.distributed import choose_device
    from jepa.precision import choose_precision

    device = choose_device(args.device)
    return device, choose_precision(args.precision, device)
