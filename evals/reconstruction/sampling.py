"""Samples of a generative decoder: drawn clip by clip, and gathered into what their scores and pictures need.

Every sample of a clip begins with noise that is the clip's and the sample's own, and the same for all latents: what
differs between samples of two models, or of target and predicted latents, comes from the latents.

Shape legend: K clips, B of them at once, S samples of each, C channels, T frames, H/W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evals import pixel_metrics as pm
from evals.reconstruction.shown import Shown
from evals.task_configs import ReconstructionTask
from jepa.data.transforms import to_values
from jepa.distributed import Run
from jepa.models.flow_decoder import FlowDecoder

ByRows = Callable[[Tensor], Tensor]  # from numbers of clips [B] to something of each
SHOWN = 3  # samples that are drawn one by one


def noise_of(clips: Sequence[int], samples: int, size: Sequence[int], seed: int) -> Tensor:
    """What samples begin with, ``[B, S, *size]``: of a clip's number and ``seed`` alone, and of fewer samples the first
    of more."""
    found = []
    for clip in clips:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + clip)
        found.append(torch.stack([torch.randn(*size, generator=generator) for _ in range(samples)]))
    return torch.stack(found)


def sampler(
    decoder: FlowDecoder, latents: ByRows, shown: Shown, task: ReconstructionTask, run: Run, together: int = 1
) -> ByRows:
    """From rows ``[B]`` to samples ``[B, S, C, T, H, W]``: values in 0..1, of 8 bits as decoded clips are.

    ``together``: so many rows after each other begin with the same noise, as frames of one rollout should: what their
    latents leave open does not flicker.
    """
    size = (decoder.channels, *shown.pixels.shape[1:4])

    @torch.no_grad()
    def draw(rows: Tensor) -> Tensor:
        given = latents(rows).to(run.device)
        noise = noise_of([row // together for row in rows.tolist()], task.samples, size, task.seed).to(run.device)
        each = given.repeat_interleave(task.samples, dim=0)
        with run.autocast():
            made = decoder.sample(each, noise.flatten(0, 1), task.sampling_steps, task.guidance)
        values = (to_values(made.float(), shown.clip) * 255).round() / 255
        return values.cpu().unflatten(0, (len(rows), task.samples))

    return draw


class Scores(NamedTuple):
    """Numbers of every clip, over the pixels in question: ``psnr`` ``[K, S]`` of the samples in dB, their ``diversity``
    ``[K]`` (root mean square difference of two of them) and the mean squared ``error`` ``[K]`` of their mean."""

    psnr: Tensor
    diversity: Tensor
    error: Tensor

    def best(self) -> list[dict[str, float]]:
        """PSNR of the best of k samples for k = 1, 2, 4, ... and all: the mean over clips of the mean over choices."""
        count = self.psnr.shape[1]
        found = pm.best_of_k(self.psnr).mean(dim=0)
        chosen = sorted({2**power for power in range(count.bit_length())} | {count})
        return [{"k": k, "psnr": float(found[k - 1])} for k in chosen]

    def calibration(self) -> float | None:
        """How far apart samples are, in units of how wrong their mean is: sqrt((1 + 1/S) variance / error), each the
        mean over clips. 1 where the truth might be one more sample, less where samples are too sure; None without an
        error. Source: Fortin et al., "Why should ensemble spread match the RMSE of the ensemble mean?", Journal of
        Hydrometeorology 15, 2014."""
        error, count = float(self.error.mean()), self.psnr.shape[1]
        variance = float(self.diversity.square().mean()) / 2
        return ((1 + 1 / count) * variance / error) ** 0.5 if error > 0 else None


class Drawn(NamedTuple):
    """``mean`` and ``first`` of the samples of all clips, uint8 ``[K, T, H, W, 3]``; all samples of the first few,
    ``kept`` ``[P, S, C, T, H, W]``; and ``scores`` for each kind of places."""

    mean: Tensor
    first: Tensor
    kept: Tensor
    scores: list[Scores]


def gather(
    draw: ByRows, truth: ByRows, count: int, masks: Sequence[ByRows | None], batch: int, pictures: int,
    by_frame: bool = False,
) -> Drawn:  # fmt: skip
    """Draw the samples of ``count`` clips, so many of a ``batch`` at a time, and keep those of the first ``pictures``.

    ``truth``: true clips ``[B, C, T, H, W]``; ``masks``: which pixels are in question, bool ``[B, 1, T, H, W]`` (None:
    all), one for each kind of places. ``by_frame``: the PSNR of a sample is the mean over those of its frames, as
    rollouts have it; without masks.
    """
    assert not by_frame or list(masks) == [None], "rollouts are judged everywhere"
    mean, first, kept = list[Tensor](), list[Tensor](), list[Tensor]()
    found: list[list[tuple[Tensor, ...]]] = [[] for _ in masks]
    for rows in torch.arange(count).split(batch):
        samples, true = draw(rows), truth(rows)
        middle = samples.mean(dim=1)
        mean.append(_bytes(middle))
        first.append(_bytes(samples[:, 0]))
        kept.append(samples[: max(0, pictures - int(rows[0]))])
        for mask, parts in zip(masks, found, strict=True):
            chosen = None if mask is None else mask(rows)
            each = None if chosen is None else chosen[:, None]
            quality = frame_psnr(samples, true[:, None]) if by_frame else pm.psnr(samples, true[:, None], each)
            parts.append((quality, pm.diversity(samples, chosen), pm.mean_square(middle, true, chosen)))
    scores = [Scores(*(torch.cat(column) for column in zip(*parts, strict=True))) for parts in found]
    return Drawn(torch.cat(mean), torch.cat(first), torch.cat(kept), scores)


def frame_psnr(predicted: Tensor, true: Tensor) -> Tensor:
    """Mean over frames of the PSNR of each, ``[...]`` in dB, of clips ``[..., C, T, H, W]``."""
    frames = (side.transpose(-4, -3)[..., None, :, :] for side in (predicted, true))  # [..., T, C, 1, H, W]
    return pm.psnr(*frames).mean(dim=-1)


def _bytes(values: Tensor) -> Tensor:
    """``[B, C, T, H, W]`` in 0..1 to uint8 ``[B, T, H, W, C]``."""
    return (values * 255).round().byte().movedim(1, -1)
