"""Rollouts of world models by a generative decoder, and the scores of single windows.

Shape legend: W windows, h steps ahead, n latents of a frame, D width, S samples, C channels, H/W pixels.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from evals.pages.reconstruction_page import Pictures
from evals.reconstruction.by_clip import BEST, MEAN, PSNR, ByClip
from evals.reconstruction.probe import Latents, build_flow, fit_decoder
from evals.reconstruction.rows import ROLLOUT, Scored, values_of
from evals.reconstruction.sampled import ScoredSamples, score
from evals.reconstruction.sampling import gather, sampler
from evals.reconstruction.shown import Shown
from evals.reconstruction.worlds import Windows
from evals.task_configs import ReconstructionTask
from evals.world_models.opening import Seer

log = logging.getLogger("jepa")
Judging = Callable[[str, str, Tensor, nn.Module | None], Scored]  # what, model, uint8 [W, h, H, W, 3], by which decoder


def sample_rollouts(
    name: str, seer: Seer, fitted: tuple[Latents, Shown], sides: Mapping[str, Latents], truth: Tensor,
    judge: Judging, task: ReconstructionTask, pictures: Pictures,
) -> list[ScoredSamples]:  # fmt: skip
    """A generative decoder of the latents of the model ``name``, ``fitted`` to those of single frames, and what its
    samples of true and of imagined frames are worth beside the ``truth``, uint8 ``[W, h, H, W, 3]``.

    ``sides``: latents of all steps of all windows, ``[W * h, n, D]``, by what they are. All steps of a window begin
    with the same noise.
    """
    latents, shown = fitted
    decoder = build_flow(task, seer.world.encoder, latents, shown)
    fit_decoder(decoder, latents, shown, task, seer.run)
    steps = truth.shape[1]
    batch = max(1, task.batch_size // (task.samples * steps))
    found = []
    for what, own in sides.items():
        draw = sampler(decoder, own, shown, task, seer.run, together=steps)

        def windows(rows: Tensor, draw: Callable[[Tensor], Tensor] = draw) -> Tensor:
            """From windows ``[B]`` to samples ``[B, S, C, h, H, W]``."""
            frames = draw((rows[:, None] * steps + torch.arange(steps)).flatten())  # [B * h, S, C, 1, H, W]
            return frames[:, :, :, 0].unflatten(0, (len(rows), steps)).permute(0, 2, 3, 1, 4, 5)

        drawn = gather(windows, values_of(truth), len(truth), [None], batch, pictures.count, by_frame=True)
        scored = score(drawn, 0, functools.partial(_judged, judge, what, name, decoder))
        pictures.add_samples(ROLLOUT, f"{what} {name}", drawn)
        log.info("%s, samples of %s rollouts: PSNR of the mean %.2f dB", name, what, scored.row.psnr)
        found.append(scored)
    return found


def _judged(judge: Judging, what: str, name: str, decoder: nn.Module, pixels: Tensor) -> Scored:
    return judge(what, name, pixels, decoder)


def pack(
    windows: Windows, episodes: Sequence[str], rows: Sequence[Scored], sampled: Sequence[ScoredSamples]
) -> bytes:  # fmt: skip
    """``clips.npz`` of rollouts: of every window the mean PSNR over its steps. ``episodes``: the names that
    ``windows.episodes`` counts; its ``path`` is such a name, ``span_s`` the first frame and the one behind the last at
    the model's rate, and windows of one episode are a ``group``."""
    items, kept = torch.arange(len(windows.pixels)), ByClip(len(windows.pixels))
    for one in rows:
        kept.add(one.row._asdict(), PSNR, one.psnr, one.hidden, items)
    for scored in sampled:
        for kind, psnr in ((MEAN, scored.mean), (BEST, scored.best)):
            kept.add(scored.row._asdict(), kind, psnr, scored.hidden, items)
    names, length = np.array([episodes[number] for number in windows.episodes]), windows.pixels.shape[1]
    spans = np.array([(start, start + length) for start in windows.starts], dtype=np.float64)
    return kept.pack({"path": names, "span_s": spans, "group": names})
