"""What is hidden from a model, what its predictor expects there, and what simple guesses say instead.

Hidden is every place that the context does not hold; whatever is guessed there, only the seen pixels were read.

Shape legend: K clips, B clips of a batch, Nc context tokens, N tokens, O predicted width, C channels, T frames,
H/W pixels, t/h/w token grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evals.reconstruction.probe import descend, draw_rows
from evals.reconstruction.shown import Shown
from evals.subjects import run_state
from evals.task_configs import ReconstructionTask
from jepa.config import from_dict
from jepa.distributed import Run
from jepa.frozen_model import target_layers
from jepa.masks import CausalConfig, MaskConfig, MultiBlockConfig, build_masks
from jepa.objectives.base import MEASURES
from jepa.objectives.masked import MaskedConfig
from jepa.predictive import Predictive, load_predictive
from jepa.tensorfiles import CheckpointError
from jepa.types import TokenGrid

FORECAST = "forecast"
MASKED = "masked"


class Expecting(NamedTuple):
    """A model that predicts: its ``parts``, the blocks that it predicts (None: the last alone), and the mask families
    and the loss (of ``jepa.objectives.base.MEASURES``) that it was trained with."""

    parts: Predictive
    levels: tuple[int, ...] | None
    families: tuple[MaskConfig, ...]
    loss: str = "l1"


def open_expecting(model: str) -> Expecting | str:
    """The predicting parts of ``model``, or why there are none."""
    from jepa.train import TrainConfig  # the loop and its loggers, which no other task needs

    try:
        parts = load_predictive(model)
    except CheckpointError as error:
        return str(error)
    if not parts.comparable:
        return f"{model} predicts the latents of a teacher that its file does not hold"
    state = run_state(model)
    levels = target_layers(parts.target_encoder, parts.predictor.config.levels)
    if state is None:
        return Expecting(parts, levels, (MultiBlockConfig(),))
    config = from_dict(TrainConfig, state["config"])
    assert isinstance(config.objective, MaskedConfig)  # load_predictive refuses all others
    return Expecting(parts, levels, tuple(config.masks), config.objective.loss)


def fit_predictor(expecting: Expecting, shown: Shown, task: ReconstructionTask, run: Run) -> None:
    """Train the predictor of ``expecting``, and nothing else, on the latents of its own frozen encoder: by the
    model's own loss, at the places that its mask families hide."""
    parts = expecting.parts.to(run.device)
    grid = parts.grid_of(shown.normalised(torch.tensor([0])))
    families = build_masks(expecting.families, grid)
    rows, rng = draw_rows(len(shown), task.batch_size, task.seed), np.random.default_rng(task.seed)
    parts.predictor.requires_grad_(True).train()

    def loss(step: int) -> Tensor:
        clip = shown.normalised(rows(step)).to(run.device)
        with torch.no_grad(), run.autocast():
            targets = parts.targets(clip)
        errors = []
        for number, family in enumerate(families):
            mask = family.draw(rng, len(clip)).to(run.device)
            for block in mask.target_ids.unbind(1):
                with run.autocast():
                    predicted = parts.predict(clip, mask.context_ids, block, number)
                wanted = targets.gather(1, block[..., None].expand(-1, -1, targets.shape[-1]))
                errors.append(MEASURES[expecting.loss](predicted, wanted))
        return torch.stack(errors).mean()

    descend(parts.predictor, loss, task.predictor_steps, task.learning_rate)
    parts.predictor.eval().requires_grad_(False)


class Hidden(NamedTuple):
    """What is seen of K clips: ``context_ids`` ``[K, Nc]`` on ``grid``. ``name``: "masked" or "forecast"."""

    name: str
    context_ids: Tensor
    grid: TokenGrid

    def ids(self, rows: Tensor) -> Tensor:
        """The hidden tokens of the clips ``rows``, ``[B, N - Nc]``, in order."""
        context = self.context_ids[rows]
        hidden = torch.ones(len(rows), self.grid.size, dtype=torch.bool).scatter_(1, context, False)
        return hidden.nonzero()[:, 1].view(len(rows), -1)

    def pixels(self, rows: Tensor, frames: int, height: int, width: int) -> Tensor:
        """Whether a pixel of the clips ``rows`` is hidden: bool ``[B, 1, T, H, W]``."""
        flat = torch.zeros(len(rows), self.grid.size, dtype=torch.bool).scatter_(1, self.ids(rows), True)
        cells = flat.view(len(rows), 1, *self.grid)
        for axis, length in zip((2, 3, 4), (frames, height, width), strict=True):
            cells = cells.repeat_interleave(length // cells.shape[axis], dim=axis)
        return cells


def hide(name: str, expecting: Expecting, grid: TokenGrid, count: int, task: ReconstructionTask) -> Hidden:
    """What is hidden of ``count`` clips of ``grid``: by the family of the model's own masks that ``task.mask_token``
    names ("masked"), or all that follows a share ``task.context`` of the clip ("forecast"). The same for every model of
    the same grid and masks."""
    own = expecting.families[min(task.mask_token, len(expecting.families) - 1)]
    config = own if name == MASKED else CausalConfig(context=(task.context, task.context))
    mask = build_masks([config], grid)[0].draw(np.random.default_rng(task.seed), count)
    return Hidden(name, mask.context_ids, grid)


def token_of(name: str, expecting: Expecting, task: ReconstructionTask) -> int:
    """Which of the predictor's mask tokens stands at hidden places of this ``name``: that of the family that hides
    them, which for a forecast is the first causal one that the model was trained with, if any."""
    causal = [number for number, family in enumerate(expecting.families) if isinstance(family, CausalConfig)]
    number = causal[0] if name == FORECAST and causal else task.mask_token
    return min(number, len(expecting.parts.predictor.mask_tokens) - 1)


def expected(
    expecting: Expecting, shown: Shown, hidden: Hidden, mask_token: int, run: Run
) -> Callable[[Tensor], Tensor]:
    """From rows ``[B]`` to latents of whole clips ``[B, N, O]``, of which the hidden ones are predicted and the others
    are made from the seen pixels alone."""
    parts = expecting.parts.to(run.device)

    @torch.inference_mode()
    def latents(rows: Tensor) -> Tensor:
        clip = shown.normalised(rows).to(run.device)
        with run.autocast():
            return parts.completed(clip, hidden.context_ids[rows].to(run.device), mask_token)

    return latents


def guesses(shown: Shown, hidden: Hidden, mean: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """What stands at every pixel of the clips ``rows`` if nothing is learned, ``[B, C, T, H, W]`` in 0..1: "training
    mean" is ``mean`` ``[C, H, W]``, "mean frame" the mean over the frames in which the pixel is seen, and "copy last"
    its last seen value (where it is only seen later, the next one). Pixels that are never seen have the training mean.
    """
    true = shown.values(rows)
    seen = ~hidden.pixels(rows, *true.shape[2:])
    still = mean[None, :, None].expand_as(true)
    count = seen.sum(dim=2, keepdim=True)
    average = torch.where(count > 0, (true * seen).sum(dim=2, keepdim=True) / count.clamp(min=1), still[:, :, :1])
    return {
        "training mean": still, "mean frame": average.expand_as(true), "copy last": carried(true, seen, still),
    }  # fmt: skip


def carried(true: Tensor, seen: Tensor, otherwise: Tensor) -> Tensor:
    """Every pixel of ``true`` ``[B, C, T, H, W]`` as it was when last ``seen`` (``[B, 1, T, H, W]``), or, before that,
    as it is when first seen; ``otherwise`` where it never is."""
    frames = true.shape[2]
    time = torch.arange(frames).view(1, 1, -1, 1, 1)
    last = torch.where(seen, time, -1).cummax(dim=2).values
    following = torch.where(seen, time, frames).flip(2).cummin(dim=2).values.flip(2)
    source = torch.where(last >= 0, last, following)
    found = true.gather(2, source.clamp(max=frames - 1).expand_as(true))
    return torch.where(source < frames, found, otherwise)


def training_mean(shown: Shown, batch: int = 64) -> Tensor:
    """Mean of every pixel over all clips and frames, ``[C, H, W]`` in 0..1."""
    parts: Sequence[Tensor] = shown.pixels.split(batch)
    total = sum((part.double().sum(dim=(0, 1)) for part in parts), torch.zeros(()))
    return (total / (255 * len(shown) * shown.pixels.shape[1])).movedim(-1, 0).float()
