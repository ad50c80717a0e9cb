"""``predict``: latents of hidden places or future frames, and how far they are from what was there.

Shape legend: B batch, C channels, T frames, t/h/w token grid, Nc context, Nt targets, O predicted width.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jepa.config import to_dict
from jepa.distributed import Run
from jepa.features import tubelet_times
from jepa.feed import Origin
from jepa.inputs import Inputs, Video, list_inputs
from jepa.masks.chosen import Places, Tubelet, chosen_mask
from jepa.objectives.masked import gather_tokens
from jepa.predictive import Measure, Predictive, batches, prepare, token_errors
from jepa.pretrained.loader import Pretrained
from jepa.types import Mask, TokenGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """``predicted`` latents at ``target_ids`` and the ``target`` latents that were there, float32 ``[B, Nt, O]``.

    ``target`` is layer-normed (eps 1e-5, no weights), as the predictor was trained; ``error`` ``[B, Nt]`` is the
    ``measure`` of each token. Both are None where the predictor was made for another model's latents.
    ``context_ids`` ``[B, Nc]`` and ``target_ids`` ``[B, Nt]`` are flat ids on ``grid``. ``start_s`` and ``end_s``
    ``[B, t]``: the seconds of every tubelet. ``sources``: a name per clip. Everything is on the CPU.
    """

    predicted: Tensor
    target: Tensor | None
    error: Tensor | None
    context_ids: Tensor
    target_ids: Tensor
    grid: TokenGrid
    measure: Measure
    start_s: Tensor
    end_s: Tensor
    sources: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.predicted)

    def maps(self) -> Tensor:
        """Error on the token grid, ``[B, t, h, w]``; NaN where nothing was predicted."""
        errors = self._errors()
        empty = torch.full((len(errors), self.grid.size), float("nan"))
        return empty.scatter_(1, self.target_ids, errors).unflatten(1, tuple(self.grid))

    def surprise(self) -> Tensor:
        """Mean error of every tubelet's predicted tokens, ``[B, t]``; NaN where nothing was predicted."""
        return self.maps().flatten(2).nanmean(dim=2)

    def _errors(self) -> Tensor:
        if self.error is None:
            raise ValueError(
                "there is no error to look at: the predictor predicts the latents of a teacher that its file does not "
                "hold (metadata['comparable'] is False)"
            )
        return self.error


def predict(
    clip: Inputs,
    model: Predictive | Pretrained | str | os.PathLike[str],
    context: Places | None = None,
    target: Places | None = None,
    *,
    mask_token: int = 0,
    measure: Measure = "l1",
    batch_size: int = 8,
    normalised: bool = True,
    fps: float | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Prediction:
    """Predict the latents of what is hidden from what is seen.

    ``clip``: a float batch ``[B, C, T, H, W]``, normalised (with ``normalised=False`` pixel values in [0, 1]), or
    anything that ``jepa.encode`` takes: a path, uint8 ``[T, H, W, 3]``, a list, ... Videos are cut to the model's clip.
    ``model``: what ``load_predictive`` takes or returns.
    ``context`` and ``target`` say what is seen and what is predicted, each by one of
      * token ids ``[N]`` or ``[B, N]``, flat in t, h, w order;
      * a bool mask ``[t, h, w]`` or ``[B, t, h, w]``;
      * a slice of tubelets, for example ``slice(2, 4)``;
      * a number of tubelets: the first ones, or for ``target`` those that follow the context; or a time, "6 frames" or
        "0.5 s", which has to end where a tubelet ends. ``target="future"`` is all that follows.
    What is left out is the rest of the clip; without either the first half is seen and the second predicted.
    ``mask_token``: which of the predictor's mask tokens stands at the hidden places. In our runs it is the number of
    the mask family (``metadata["mask_families"]`` names them), in published models that of the group of clips of one
    length that it was trained with; a token that was never trained is pointed out.
    ``measure``: "l1" or "smooth_l1" (the losses) or "cosine" (1 - cosine). ``fps``: of uint8 arrays.

    The errors' mean is the masked objective's prediction loss. Sources: V-JEPA (arXiv 2404.08471); surprise as a
    probe of intuitive physics (arXiv 2502.11831). Raises ``ValueError`` for places that overlap or do not exist, and
    for inputs that cannot be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    parts, run = prepare(model, mask_token, measure, device, precision)
    videos = list_inputs(clip, parts.clip, fps)
    clips, origins = _read_all(parts, videos, batch_size, normalised, run.device)
    grid = parts.grid_of(clips)
    start_s, end_s = tubelet_times([origin.start_s for origin in origins], [origin.end_s for origin in origins], grid)
    tubelet = Tubelet(max(1, clips.shape[2] // grid.t), float(end_s[0, 0] - start_s[0, 0]))
    mask = chosen_mask(grid, context, target, len(clips), tubelet)
    predicted, targets = _predict_all(parts, clips.split(batch_size), mask, mask_token, run)
    error = None if targets is None else token_errors(predicted, targets, measure)
    metadata = {
        **parts.metadata, "mask_token": mask_token, "comparable": parts.comparable, "clip": to_dict(parts.clip),
        "precision": run.precision,
    }  # fmt: skip
    return Prediction(
        predicted=predicted, target=targets, error=error, context_ids=mask.context_ids,
        target_ids=mask.target_ids[:, 0], grid=grid, measure=measure, start_s=start_s, end_s=end_s,
        sources=tuple(video.name for video in videos), metadata=metadata,
    )  # fmt: skip


def _read_all(
    parts: Predictive, videos: Sequence[Video], batch_size: int, normalised: bool, device: torch.device
) -> tuple[Tensor, list[Origin]]:
    """Clips ``[B, C, T, H, W]`` and the origin of each."""
    as_bytes = any(isinstance(video.origin, Tensor) and not video.origin.is_floating_point() for video in videos)
    clips: list[Tensor] = []
    origins: list[Origin] = []
    for clip, its_origins in batches(
        parts, videos, parts.clip, None, batch_size, normalised and not as_bytes, device
    ):  # fmt: skip
        if clips and clip.shape[1:] != clips[0].shape[1:]:
            raise ValueError(f"clips have different shapes, {list(clips[0].shape[1:])} and {list(clip.shape[1:])}")
        clips.append(clip)
        origins += its_origins
    return torch.cat(clips), origins


@torch.inference_mode()
def _predict_all(
    parts: Predictive, clips: Sequence[Tensor], mask: Mask, mask_token: int, run: Run
) -> tuple[Tensor, Tensor | None]:
    """Predictions and, where there are any, targets, ``[B, Nt, O]`` each, on the CPU."""
    predicted, targets, first = [], [], 0
    for clip in clips:
        rows = slice(first, first + len(clip))
        first += len(clip)
        context_ids, target_ids = (ids.to(run.device) for ids in (mask.context_ids[rows], mask.target_ids[rows, 0]))
        with run.autocast():
            predicted.append(parts.predict(clip, context_ids, target_ids, mask_token).cpu())
            if parts.comparable:
                latents = parts.targets(clip)
                targets.append(gather_tokens(latents, target_ids[:, None])[:, 0].cpu())
    return torch.cat(predicted), torch.cat(targets) if targets else None
