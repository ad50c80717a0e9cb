"""What the task "world_model" measures: models, and recorded episodes at a model's own rate.

Shape legend: C channels, T frames, n tokens of a frame, D latent width, A width of actions, S of states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evals.settings import EvalConfig
from evals.split_checks import leaks
from evals.subjects import run_state
from jepa.config import ConfigError, from_dict
from jepa.data.batches import Failure
from jepa.data.loader import DataConfig, eval_options, open_data
from jepa.data.sampling import ShortVideoError
from jepa.data.source_config import SourceConfig
from jepa.data.sources import Source, open_source
from jepa.data.trajectories.base import Trajectories
from jepa.data.trajectories.config import TrajectoryConfig
from jepa.data.transforms import ClipTransform
from jepa.data.video import VideoError
from jepa.distributed import Run
from jepa.models.world_model import WorldModel
from jepa.types import Batch, ClipConfig
from jepa.world_model import load_world_model

SPLIT = 0.5  # share of the episodes of a single folder that are reported on; the others fit the readout


class Seer:
    """A world model as the measures see it; ``context``: how many frames are given before it imagines."""

    def __init__(self, world: WorldModel, run: Run, context: int = 1) -> None:
        self.world, self.run, self.context = world.to(run.device).eval(), run, context

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Float frames ``[1, C, T, H, W]`` to latents ``[1, T, n, D]``, fp32."""
        with self.run.autocast():
            return self.world.encode(frames).float()


def open_model(name: str, run: Run, context: int | None) -> Seer:
    """``context`` None: as many frames as the run's own rollouts began from. Raises ``ValueError`` for what is no
    world model of true actions."""
    world, state = load_world_model(name), run_state(name)
    objective = {} if state is None else state["config"]["objective"]
    if objective.get("kind") == "latent_action":
        raise ConfigError(
            f"{name} was trained with objective 'latent_action' and takes actions that it infers itself: use the task "
            "latent_action, or name a controller's run"
        )
    return Seer(world, run, context or objective.get("rollout_context", 1))


class Recorded(NamedTuple):
    """One of the episodes of a source: its ``number`` among ``episodes``."""

    episodes: Trajectories
    number: int

    @property
    def name(self) -> str:
        return self.episodes.names[self.number]


class Parts(NamedTuple):
    """Episodes that readouts are fitted on, and others that are reported on."""

    fit: list[Recorded]
    test: list[Recorded]


def open_parts(config: EvalConfig, clip: ClipConfig) -> Parts:
    """``config.train`` and ``config.test``; where they are left out, what the run was trained on and what it validates
    on or holds out. A test folder alone is cut in two, episode by episode.

    Raises ``ConfigError`` when there is nothing, or an episode is in both parts.
    """
    own = config.world_model
    if config.dataset is not None:
        raise ConfigError("the task world_model takes recorded episodes: give --data FOLDER without --dataset")
    if config.clip:
        raise ConfigError("the task world_model sees clips as its model was trained: leave clip out")
    options = eval_options(clip)
    train, test = (None if s is None else [open_source(episodic(s), options)] for s in (config.train, config.test))
    if test is None:
        known, held = of_run(config.run, clip)
        train, test = train or known, held
    if train is None:
        order = np.random.default_rng(own.seed).permutation(len(test[0]))
        count = max(1, round(SPLIT * len(order)))
        if len(order) - count < 2:
            raise ConfigError(
                f"{test[0].config.path} has {len(order)} episodes: at least 3 are needed to fit on some and report on "
                "others (--train FOLDER names more)"
            )
        train, test = [test[0].subset(np.sort(order[count:]))], [test[0].subset(np.sort(order[:count]))]
    both = leaks(train, test)
    if both and "leak" not in config.allow:
        raise ConfigError(
            f"{len(both)} of the test episodes are among the training episodes too, for example {both[0]}: use other "
            "folders, or allow it (--allow leak)"
        )
    return Parts(spread(train, own.fit_episodes), spread(test, own.test_episodes))


def episodic(source: SourceConfig) -> SourceConfig:
    """The source as one of recorded episodes, in whatever layout."""
    return source if source.trajectory is not None else replace(source, trajectory=TrajectoryConfig())


def of_run(run: str, clip: ClipConfig) -> tuple[list[Source], list[Source]]:
    """What a run was trained on, and what it validates on. Raises ``ConfigError`` where that is nothing."""
    state = run_state(run)
    if state is None:
        raise ConfigError(f"give --data FOLDER: {run} is no run of this toolkit, which would remember its data")
    train, validation = open_data(from_dict(DataConfig, state["config"]["data"], "data"), clip)
    if not validation:
        raise ConfigError(f"give --data FOLDER: {run} neither validates on episodes nor holds any out")
    for source in (*train, *validation):
        if source.trajectories is None:
            raise ConfigError(f"give --data FOLDER: {source.config.path}, which {run} was trained with, has no actions")
    return train, validation


def spread(sources: Sequence[Source], most: int) -> list[Recorded]:
    """At most so many episodes, evenly over all sources."""
    found = [Recorded(s.trajectories, n) for s in sources if s.trajectories is not None for n in s.episodes()]
    chosen = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(np.int64))
    return [found[k] for k in chosen]


def check_widths(name: str, world: WorldModel, recorded: Sequence[Recorded]) -> None:
    """Raises ``ConfigError`` for data whose actions or states are not the model's."""
    for episodes in {id(one.episodes): one.episodes for one in recorded}.values():
        actions, states = episodes.widths()
        if actions != world.action_dim:
            raise ConfigError(
                f"{episodes.path} has actions of {actions} numbers, the model {name} of {world.action_dim}: it was "
                "trained on another action space"
            )
        if world.state_dim and states != world.state_dim:
            raise ConfigError(
                f"{episodes.path} has states of {states} numbers, the model {name} takes {world.state_dim}"
            )


class Watched(NamedTuple):
    """One whole episode: float ``frames`` ``[1, C, T, H, W]`` as the model sees them, ``actions`` ``[T-1, A]``,
    ``states`` ``[T, S]`` (None: the data has none)."""

    frames: Tensor
    actions: Tensor
    states: Tensor | None


def watch(recorded: Sequence[Recorded], seer: Seer, failures: list[Failure]) -> Iterator[Watched]:
    """Episodes one by one, at the model's rate and size; those that cannot be read are added to ``failures``."""
    clip, device = seer.world.clip, seer.run.device
    transform, options = ClipTransform(clip), eval_options(clip)
    for one in recorded:
        try:
            found = one.episodes.episode(one.number, clip, options)
        except (VideoError, ShortVideoError) as error:
            failures.append(Failure(one.name, str(error), isinstance(error, ShortVideoError)))
            continue
        pixels = torch.from_numpy(found.frames).permute(3, 0, 1, 2)[None].to(device)
        states = None if found.states is None else torch.from_numpy(found.states).to(device)
        yield Watched(transform(Batch(clip=pixels)).clip, torch.from_numpy(found.actions).to(device), states)


def lengths_of(recorded: Sequence[Recorded], clip: ClipConfig) -> dict[str, int]:
    """Frames at the model's rate of every episode that can be read, by name; without looking at its pictures."""
    found: dict[str, int] = {}
    for one in recorded:
        try:
            found[one.name] = len(one.episodes.window_of_all(one.number, clip).instants)
        except (VideoError, ShortVideoError):
            continue  # counted when it is watched
    return found


def state_names(recorded: Sequence[Recorded], width: int) -> list[str]:
    """What the data calls the columns of its states, else "state 0", ..."""
    names = recorded[0].episodes.state_names
    return list(names) if len(names) == width else [f"state {k}" for k in range(width)]
