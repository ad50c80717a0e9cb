"""World models in the task ``reconstruction``: their latents of recorded episodes, and a fresh predictor of them.

Beside the model stands its architecture with fresh weights, whose predictor is trained here. All models see the same
frames and windows, and every episode is read once.

Shape legend: F frames, W windows, T frames of a part of an episode, B windows of a batch, H/W pixels, n latents of a
frame, D width, A actions, S states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evals.features.rows import Rows
from evals.pages.drawing import to_frames
from evals.reconstruction.models import RANDOM
from evals.reconstruction.probe import Latents, descend, draw_rows
from evals.reconstruction.shown import Shown
from evals.settings import EvalConfig
from evals.subjects import TRAINED, run_state
from evals.task_configs import ReconstructionTask
from evals.world_models.collecting import starts_of
from evals.world_models.opening import Recorded, Seer, open_model, watch
from evals.world_models.untrained import untrained_world
from jepa.config import ConfigError, from_dict
from jepa.data.batches import Failure
from jepa.distributed import Run
from jepa.objectives import OBJECTIVES, ControllerConfig, PolicyConfig, WorldModelConfig
from jepa.objectives.prediction import prediction_loss

FRAMES = 4  # frames that a decoder is fitted on, for each of reconstruction.train_clips


class Windows(NamedTuple):
    """Parts of test episodes: ``pixels`` uint8 ``[W, T, H, W, 3]``, ``latents`` ``[W, T, n, D]``, ``actions`` ``[W,
    T-1, A]``, ``states`` ``[W, T, S]`` (None: there are none), and the ``episodes`` ``[W]`` that they are from, counted
    over those that can be read, with the frames ``[W]`` at which they begin (``starts``)."""

    pixels: Tensor
    latents: Tensor
    actions: Tensor
    states: Tensor | None
    episodes: list[int]
    starts: list[int]


class Stretch(NamedTuple):
    """A part of a training episode: ``latents`` ``[T, n, D]``, ``actions`` ``[T-1, A]``, ``states`` ``[T, S]``."""

    latents: Tensor
    actions: Tensor
    states: Tensor | None


class Scale(NamedTuple):
    """Mean and standard deviation ``[D]`` of the latents of training frames.

    A decoder is given standardised latents: those of a random head have any scale, and little of it changes from frame
    to frame, which a decoder would take long to find. The trained model's are standardised in the same way, so that
    neither is helped more. Predictors see latents as they are: on the rooms a fresh one that was given standardised
    latents was no better (mean squared error 0.55 of the latents' variance one step ahead, as without; 0.98 and 0.89
    eight steps ahead).
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, latents: Tensor) -> Scale:
        """Of ``[F, n, D]``; numbers that never change keep their unit."""
        flat = latents.flatten(0, 1).double()
        std = flat.std(dim=0, correction=0)
        return cls(flat.mean(dim=0).float(), torch.where(std > 1e-6, std, torch.ones_like(std)).float())

    def latents(self, latents: Tensor, seer: Seer) -> Latents:
        """``[F, n, D]`` as a decoder takes them."""
        return Latents((Rows.of((latents.cpu() - self.mean) / self.std),), seer.world.grid._replace(t=1), norm=False)


class Training(NamedTuple):
    """Of training episodes: single frames as they were ``shown``, their ``latents`` ``[F, n, D]`` by model, and the
    ``stretches`` of whoever is still to learn to predict, by model."""

    shown: Shown
    latents: dict[str, Tensor]
    stretches: dict[str, list[Stretch]]


class Recipe(NamedTuple):
    """How a predictor was trained: its loss, by ``config``, on clips of so many ``frames``."""

    config: WorldModelConfig
    frames: int


def open_seers(config: EvalConfig, run: Run) -> dict[str, Seer]:
    """The world model ``config.run``, and, where the baselines name it, its architecture with fresh weights. Raises
    ``ValueError`` for what is no world model of true actions."""
    first = open_model(config.run, run, config.world_model.context)
    if RANDOM not in config.baselines:
        return {TRAINED: first}
    return {TRAINED: first, RANDOM: Seer(untrained_world(first.world, config.random_seed), run, first.context)}


def recipe_of(model: str) -> Recipe:
    """Of the run ``model``; of a controller's or a policy's, that of the world model that it holds."""
    state = run_state(model)
    assert state is not None, "a run was opened"
    settings = state["config"]
    config: Any = from_dict(OBJECTIVES[settings["objective"]["kind"]][0], settings["objective"], "objective")
    frames: int = settings["clip"]["num_frames"]
    if isinstance(config, PolicyConfig):
        assert config.base is not None, "a run's config is settled"
        config, frames = config.base.objective, config.base.clip.num_frames
    if isinstance(config, ControllerConfig):
        config = config.base
    assert isinstance(config, WorldModelConfig), "the other kinds have no world model"
    return Recipe(config, frames)


def read_training(
    recorded: Sequence[Recorded], seers: Mapping[str, Seer], most: int, frames: int, seed: int,
    failures: list[Failure],
) -> Training:  # fmt: skip
    """At most ``most`` frames of the episodes, evenly, each as a clip of its own; for the models that are not trained
    yet a stretch of every episode with room for ``frames``, somewhere in it, of as many frames in all (but for
    episodes that would be left with less). Raises ``ConfigError`` when no episode can be read."""
    first, rng = seers[TRAINED], np.random.default_rng(seed)
    each = max(1, most // max(1, len(recorded)))
    pixels, latents = list[Tensor](), {name: list[Tensor]() for name in seers}
    stretches = {name: list[Stretch]() for name in seers if name != TRAINED}
    for episode in watch(recorded, first, failures):
        count = episode.frames.shape[2]
        rows = torch.from_numpy(np.unique(np.linspace(0, count - 1, min(each, count)).round().astype(np.int64)))
        pixels.append(torch.from_numpy(to_frames(episode.frames, first.world.clip))[0][rows])
        length = min(count, max(each, frames))
        start = int(rng.integers(count - length + 1))
        for name, seer in seers.items():
            found = seer.encode(episode.frames)[0].cpu()
            latents[name].append(found[rows])
            if name in stretches and length >= frames:
                states = None if episode.states is None else episode.states[start : start + length].cpu()
                actions = episode.actions[start : start + length - 1].cpu()
                stretches[name].append(Stretch(found[start : start + length].clone(), actions, states))
    if not pixels:
        raise ConfigError(f"none of {len(recorded)} training episodes can be read; the first: {failures[0].reason}")
    found = torch.cat(pixels)[:, None]
    shown = Shown(found, torch.arange(len(found)), [""] * len(found), first.world.clip, {})
    return Training(shown, {name: torch.cat(parts) for name, parts in latents.items()}, stretches)


def fit_predictor(seer: Seer, stretches: Sequence[Stretch], recipe: Recipe, task: ReconstructionTask) -> None:
    """Train the predictor of ``seer``, and nothing else, on latents of its own frozen encoder: by the loss that
    ``recipe`` has for it, on clips of as many frames. Raises ``ConfigError`` when no episode has so many."""
    config, frames = recipe
    world, device = seer.world, seer.run.device
    starts = [(k, s) for k, stretch in enumerate(stretches) for s in range(len(stretch.latents) - frames + 1)]
    if not starts:
        raise ConfigError(
            f"no training episode has the {frames} frames (clip.num_frames of the run) that the random encoder's "
            "predictor is trained on: give longer ones (--train), or leave 'random' out of --baselines"
        )
    rows = draw_rows(len(starts), task.batch_size, task.seed)
    world.predictor.requires_grad_(True).train()

    def loss(step: int) -> Tensor:
        chosen = [(stretches[k], slice(s, s + frames)) for k, s in (starts[row] for row in rows(step).tolist())]
        latents = torch.stack([stretch.latents[part] for stretch, part in chosen]).to(device)
        actions = torch.stack([stretch.actions[part.start : part.stop - 1] for stretch, part in chosen]).to(device)
        known = [stretch.states[part] for stretch, part in chosen if stretch.states is not None]
        states = torch.stack(known).to(device) if world.state_dim and len(known) == len(chosen) else None
        with seer.run.autocast():
            return prediction_loss(world, config, latents, latents[:, 1:], actions, states).total

    descend(world.predictor, loss, task.predictor_steps, task.learning_rate)
    world.predictor.eval().requires_grad_(False)


def cut(
    recorded: Sequence[Recorded], seers: Mapping[str, Seer], length: int, count: int, failures: list[Failure]
) -> dict[str, Windows]:
    """Up to ``count`` windows of ``length`` frames evenly over every episode that is long enough: the same for every
    model, with latents of its own. Raises ``ConfigError`` when none is."""
    first = seers[TRAINED]
    found: list[tuple[Tensor, Tensor, Tensor | None, int, int]] = []
    latents = {name: list[Tensor]() for name in seers}
    for number, episode in enumerate(watch(recorded, first, failures)):
        encoded = {name: seer.encode(episode.frames)[0].cpu() for name, seer in seers.items()}
        pixels = torch.from_numpy(to_frames(episode.frames, first.world.clip))[0]
        for start in starts_of(len(pixels) - length, count):
            part = slice(start, start + length)
            states = None if episode.states is None else episode.states[part].cpu()
            found.append((pixels[part], episode.actions[start : start + length - 1].cpu(), states, number, start))
            for name, own in encoded.items():
                latents[name].append(own[part])
    if not found:
        raise ConfigError(f"no test episode of {length} frames can be read: lower world_model.horizons")
    shown, actions = (torch.stack([window[k] for window in found]) for k in (0, 1))  # type: ignore[misc]
    known = [window[2] for window in found if window[2] is not None]
    states = torch.stack(known) if len(known) == len(found) else None
    episodes, starts = [window[3] for window in found], [window[4] for window in found]
    return {name: Windows(shown, torch.stack(own), actions, states, episodes, starts) for name, own in latents.items()}
