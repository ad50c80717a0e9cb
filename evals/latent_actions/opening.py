"""What the task "latent_action" measures: models, and the latents of clips with their true actions where there are any.

Shape legend: N clips, T frames, n tokens of a frame, D latent width, Z width of inferred actions, A of true ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evals.settings import EvalConfig
from jepa.checkpoint import find_checkpoint, load_checkpoint
from jepa.config import ConfigError, from_dict
from jepa.data.batches import Failure
from jepa.data.loader import DataConfig, eval_batches, eval_options, open_data
from jepa.data.sources import Source, open_source
from jepa.data.transforms import ClipTransform
from jepa.distributed import Run
from jepa.objectives import LatentActionObjective
from jepa.types import ClipConfig
from jepa.watch import take
from jepa.world_model import load_objective


class RunModel:
    """A run of ``latent_action`` (or a controller's, whose base it is) as the measures see it."""

    def __init__(self, objective: LatentActionObjective, run: Run) -> None:
        self.objective, self.run = objective.to(run.device), run

    @property
    def codes(self) -> Tensor | None:
        """``[K, Z]``, or None."""
        return self.objective.codes

    @property
    def kind(self) -> str:
        """Of its bottleneck."""
        return self.objective.config.bottleneck.kind

    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Tensor:
        """Float frames ``[N, C, T, H, W]`` to latents ``[N, T, n, D]``, fp32."""
        with self.run.autocast():
            return self.objective.world_model.encode(frames).float()

    def infer(self, latents: Tensor) -> Tensor:
        """``[N, T, n, D]`` to ``[N, T-1, Z]``."""
        with self.run.autocast():
            return self.objective.infer(latents).z

    def predict(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Teacher-forced: ``[N, T, n, D]`` and ``[N, T, Z]`` to ``[N, T, n, D]``."""
        with self.run.autocast():
            return self.objective.learner.teacher_forced(latents, actions).float()


def open_model(name: str, run: Run) -> RunModel:
    """Raises ``ValueError`` for what is no run of objective latent_action."""
    path = find_checkpoint(name)
    objective = load_objective(path, load_checkpoint(path, mmap=True))
    if not isinstance(objective, LatentActionObjective):
        raise ConfigError(
            f"{name} was trained with objective {objective.config.kind!r}, which infers no actions: the task "
            "latent_action needs a run of 'latent_action'"
        )
    return RunModel(objective.eval().requires_grad_(False), run)


class Scenes(NamedTuple):
    """Of N clips the ``latents`` ``[N, T, n, D]``, the number of each one's video ``[N]``, and the true ``actions``
    ``[N, T-1, A]`` (None: the data has none)."""

    latents: Tensor
    videos: Tensor
    actions: Tensor | None


def open_sources(config: EvalConfig, clip: ClipConfig) -> list[Source]:
    """``config.test``, or what the run validates on or holds out. Raises ``ConfigError`` when there is nothing."""
    if config.test is not None:
        return [open_source(config.test, eval_options(clip))]
    state = load_checkpoint(find_checkpoint(config.run), mmap=True)
    _, validation = open_data(from_dict(DataConfig, state["config"]["data"], "data"), clip)
    if not validation:
        raise ConfigError(f"give --test PATH: {config.run} neither validates on videos nor holds any out")
    return validation


def read_scenes(model: RunModel, sources: Sequence[Source], clips: int, batch_size: int, workers: int) -> Scenes:
    """About ``clips`` clips, evenly over the videos, as ``model`` encodes them. Raises ``ConfigError`` when fewer than
    two can be read."""
    clip, total = model.objective.clip, sum(len(source) for source in sources)
    chosen = np.unique(np.linspace(0, total - 1, min(clips, total)).round().astype(np.int64))
    segments = max(1, round(clips / len(chosen)))
    failures: list[Failure] = []
    latents: list[Tensor] = []
    videos: list[Tensor] = []
    actions: list[Tensor | None] = []
    transform = ClipTransform(clip)
    for batch in eval_batches(take(sources, chosen), clip, batch_size, segments, workers, failures):
        ready = transform(batch.to(model.run.device))
        latents.append(model.encode(ready.clip))
        assert batch.index is not None
        videos.append(batch.index)
        actions.append(batch.actions)
    if sum(map(len, latents)) < 2:
        why = f": {failures[0].reason}" if failures else ""
        raise ConfigError(f"the task latent_action needs at least 2 clips, but {len(latents)} can be read{why}")
    known = [part for part in actions if part is not None]
    return Scenes(torch.cat(latents), torch.cat(videos), torch.cat(known) if len(known) == len(actions) else None)
