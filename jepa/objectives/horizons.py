"""How far ahead a world model sees: its error at growing horizons, beside that of predictors that know no actions.

Shape legend: B batch, T frames, n latent tokens per frame, D width of a latent, A action width, S state width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jepa.models.world_model import WorldModel

HORIZONS = (1, 2, 4, 8)
Measure = Callable[[Tensor, Tensor], Tensor]


class Horizon(NamedTuple):
    """Latents ``[B, n, D]`` of one horizon: ``predicted``, the last given ones (``copy``), the ``mean`` latents, and
    the ``truth``."""

    predicted: Tensor
    copy: Tensor
    mean: Tensor
    truth: Tensor


@torch.no_grad()
def predict_horizons(
    world: WorldModel, latents: Tensor, actions: Tensor, states: Tensor | None, context: int = 1,
    horizons: Sequence[int] = HORIZONS, mean: Tensor | None = None,
) -> dict[int, Horizon]:  # fmt: skip
    """Open-loop rollouts from the ``context`` first frames of clips, at those of ``horizons`` that the clips reach.

    ``latents`` ``[B, T, n, D]``, ``actions`` ``[B, T-1, A]``, ``states`` ``[B, T, S]``; ``mean`` ``[n, D]`` (None: the
    mean over these clips and frames, at every place). Raises ``ValueError`` for clips that are too short for any.
    """
    reached = [h for h in horizons if h <= latents.shape[1] - context]
    if not reached:
        raise ValueError(f"clips of {latents.shape[1]} frames reach no horizon of {list(horizons)} after {context}")
    end = context - 1 + max(reached)
    known = None if states is None else states[:, :context]
    predictions = world.rollout(latents[:, :context], actions[:, :end], known)
    copy = latents[:, context - 1]
    mean = (latents.mean(dim=(0, 1)) if mean is None else mean).expand_as(copy)
    return {h: Horizon(predictions[:, h - 1], copy, mean, latents[:, context - 1 + h]) for h in reached}


@torch.no_grad()
def horizon_errors(
    world: WorldModel, latents: Tensor, actions: Tensor, states: Tensor | None, error: Measure, context: int = 1,
    horizons: Sequence[int] = HORIZONS,
) -> dict[str, Tensor]:  # fmt: skip
    """Errors of ``predict_horizons``; scalars.

    ``error`` of predictions and truth. For each of ``horizons`` that the clip reaches ``error_hK``, ``error_copy_hK``
    (the last frame that was given), ``error_mean_hK`` (the mean over clips and frames, at every place) and
    ``skill_hK``: 1 - error / the better of the two. ``error``, ``error_copy``, ``error_mean`` are means over horizons,
    ``skill`` is taken of the sums: 0 when the predictor is no use. Raises ``ValueError`` for clips that are too short
    for any.
    """
    reached = predict_horizons(world, latents, actions, states, context, horizons)
    values: dict[str, Tensor] = {}
    best = []
    for h, at in reached.items():
        found = {"error": at.predicted, "error_copy": at.copy, "error_mean": at.mean}
        values |= {f"{name}_h{h}": error(value, at.truth) for name, value in found.items()}
        best.append(torch.minimum(values[f"error_copy_h{h}"], values[f"error_mean_h{h}"]).clamp(min=1e-12))
        values[f"skill_h{h}"] = 1 - values[f"error_h{h}"] / best[-1]
    for name in ("error", "error_copy", "error_mean"):
        values[name] = torch.stack([values[f"{name}_h{h}"] for h in reached]).mean()
    return values | {"skill": 1 - values["error"] / torch.stack(best).mean()}
