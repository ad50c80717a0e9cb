"""``surprise``: how wrong a model's expectations are, over the time of a whole video.

Windows as long as the model's clip slide over the video; of each, the first tubelets are seen and the rest predicted.
Sources: intuitive physics from prediction errors (arXiv 2502.11831); V-JEPA (arXiv 2404.08471) for the predictor.

Shape legend: K context lengths, n windows in a batch, C channels, T frames and t' tubelets of a window.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from jepa.config import to_dict
from jepa.inputs import Item, Video, list_inputs
from jepa.predictive import Measure, Predictive, batches, prepare, token_errors
from jepa.pretrained.loader import Pretrained
from jepa.surprise_curve import KINDS, SurpriseCurve, Totals
from jepa.types import ClipConfig
from jepa.windows import WindowRule


def surprise(
    video: Item | Video,
    model: Predictive | Pretrained | str | os.PathLike[str],
    context_tubelets: int | Sequence[int] | None = None,
    *,
    stride_tubelets: int = 1,
    num_frames: int | None = None,
    mask_token: int = 0,
    measure: Measure = "l1",
    batch_size: int = 8,
    fps: float | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: Callable[[float], None] | None = None,
) -> SurpriseCurve:
    """Slide the model's clip over one whole ``video`` and measure how wrong its predictions are.

    ``video``: a path, uint8 ``[T, H, W, 3]`` or an iterator of uint8 frames ``[H, W, 3]`` (``fps``: their rate, if it
    is not the clip's own); read once, window by window, in memory that does not depend on its length. ``model``: what
    ``load_predictive`` takes or returns. ``context_tubelets``: how many tubelets of a window are seen, one number or
    several; all that follow are predicted. Default: half of the window. ``stride_tubelets``: from one window's start
    to the next one's; the last window ends with the video. ``num_frames``: length of the windows, where it is not the
    model's. A video shorter than a window is one window, its last frame held; tubelets that hold nothing else are not
    reported. ``batch_size`` in windows; ``mask_token``, ``measure``, ``device`` and ``precision`` as in ``predict``.
    ``progress`` is called after every batch with the share of the video that is done.

    The protocol of arXiv 2502.11831 (2, 4, ... 10 of 16 frames seen) is ``context_tubelets=(1, 2, 3, 4, 5)`` for a
    model with 16 frames and tubelets of 2. Raises ``ValueError`` for contexts that leave nothing to see or to predict,
    for models of images, and (``VideoError``, naming the file) for videos that cannot be read.
    """
    if batch_size < 1 or stride_tubelets < 1:
        raise ValueError(f"batch_size {batch_size} and stride_tubelets {stride_tubelets} must be at least 1")
    parts, run = prepare(model, mask_token, measure, device, precision)
    length, tubelet = num_frames or parts.clip.num_frames, parts.context_encoder.config.tubelet_size
    tubelets = parts.context_encoder.grid_of((3, length, parts.clip.crop_size, parts.clip.crop_size)).t
    contexts = _check_contexts(context_tubelets, tubelets)
    rule = WindowRule(num_frames=length, tubelet=tubelet, overlap=max(0.0, 1 - stride_tubelets / tubelets))
    videos = [video] if isinstance(video, Video) else list_inputs(video, parts.clip, fps)
    if len(videos) != 1 or isinstance(videos[0].origin, Tensor):
        raise ValueError("surprise looks at one video: a path, uint8 [T, H, W, 3] or an iterator of frames")
    totals = Totals(contexts)
    clip_config = replace(parts.clip, num_frames=length, duration_s=_duration_s(parts.clip, length))
    for clip, origins in batches(parts, videos, clip_config, rule, batch_size, False, run.device):
        with run.autocast():
            errors = window_errors(parts, clip, contexts, mask_token, measure)
        for origin, its_errors in zip(origins, errors.double().numpy(), strict=True):
            totals.add(origin, its_errors)
        if progress is not None:
            progress(origins[-1].share)
    metadata = {
        **parts.metadata, "mask_token": mask_token, "measure": measure, "clip": to_dict(clip_config),
        "tubelet_frames": tubelet, "stride_tubelets": rule.stride // tubelet,
        "precision": run.precision,
    }  # fmt: skip
    return totals.curve(videos[0].name, metadata)


def _check_contexts(context_tubelets: int | Sequence[int] | None, tubelets: int) -> tuple[int, ...]:
    if tubelets < 2:
        raise ValueError("the model's clip is one tubelet long (an image): it expects nothing of what follows")
    if context_tubelets is None:
        return (tubelets // 2,)
    contexts = (context_tubelets,) if isinstance(context_tubelets, int) else tuple(sorted(set(context_tubelets)))
    wrong = [seen for seen in contexts if not 1 <= seen < tubelets]
    if wrong or not contexts:
        given = ", ".join(map(str, wrong)) or "none"
        reach = f"between 1 and {tubelets - 1} (windows have {tubelets})"
        raise ValueError(f"context_tubelets must lie {reach}, not {given}")
    return contexts


def _duration_s(clip: ClipConfig, num_frames: int) -> float | None:
    """Seconds of ``num_frames`` at the clip's own spacing, where that is how it says its spacing."""
    return None if clip.duration_s is None else clip.duration_s * num_frames / clip.num_frames


@torch.inference_mode()
def window_errors(
    parts: Predictive, clip: Tensor, context_tubelets: Sequence[int], mask_token: int, measure: Measure
) -> Tensor:
    """Errors of the three ``KINDS`` of predictor per tubelet of windows ``clip`` ``[n, C, T, H, W]``.

    float32 ``[n, 3, K, t']`` on the CPU, NaN in the context. The target encoder looks at each window once.
    """
    grid = parts.grid_of(clip)
    cells, count = grid.h * grid.w, len(clip)
    targets = parts.targets(clip)
    errors = torch.full((count, len(KINDS), len(context_tubelets), grid.t), float("nan"), device=clip.device)
    ids = grid.ids(clip.device).expand(count, -1)
    for row, seen in enumerate(context_tubelets):
        context_ids, target_ids = ids[:, : seen * cells], ids[:, seen * cells :]
        predicted = parts.predict(clip, context_ids, target_ids, mask_token)
        known, wanted = targets[:, : seen * cells], targets[:, seen * cells :]
        last = known[:, -cells:].repeat(1, grid.t - seen, 1)
        guesses = (predicted, last, known.mean(dim=1, keepdim=True))
        for kind, guess in enumerate(guesses):
            values = token_errors(guess.expand_as(wanted), wanted, measure)
            errors[:, kind, row, seen:] = values.unflatten(1, (grid.t - seen, cells)).mean(dim=2)
    return errors.cpu()
