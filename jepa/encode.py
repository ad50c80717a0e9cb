"""``encode`` whatever a user has: files, folders, arrays, tensors, a camera.

Everything goes through the encoder's own clip: its frame rate, number of frames, resolution and normalisation, which
are stored with the weights. Nothing has to be configured twice.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from jepa.data.batches import collate
from jepa.data.sources import RawClip
from jepa.data.video import VideoError
from jepa.distributed import Run, choose_device
from jepa.features import Features, tubelet_times
from jepa.features.features import Pool
from jepa.feed import Origin, Task, Work
from jepa.inputs import Camera, Inputs, list_inputs
from jepa.job import EncodeOptions, Job, Row, Rows, encode_tasks
from jepa.models.base import ClipEncoder
from jepa.precision import choose_precision
from jepa.types import Fit, TokenGrid
from jepa.windows import Merge, stream_windows

log = logging.getLogger("jepa")


def encode(
    inputs: Inputs, model: ClipEncoder | str | Path, batch_size: int | Literal["auto"] = "auto", device: str = "auto",
    layers: Sequence[int] | None = None, segments: int = 1, *, overlap: float | None = None, merge: Merge = "none",
    pool: Pool = "none", probe: nn.Module | None = None, fps: float | None = None, num_frames: int | None = None,
    clip_fps: float | None = None, crop_size: int | None = None, fit: Fit | None = None, normalised: bool = False,
    on_error: Literal["raise", "skip"] = "raise", precision: str = "auto", workers: int | Literal["auto"] = "auto",
) -> Features:  # fmt: skip
    """Encode clips in batches, without gradients, in the order of ``inputs``; for much data see ``encode_files``.

    ``model``: an encoder, or what ``load`` takes. ``inputs`` is one of these, or a list of them: the path or URL of a
    video; an image; a folder; a glob pattern; a CSV, TSV or text file with a column ``path`` (and, if wanted,
    ``start_s`` and ``end_s``); an ``.npy`` or ``.npz`` file or a ``SourceConfig`` as for training; an RGB array or
    tensor, uint8 ``[T, H, W, 3]`` (a video), ``[H, W, 3]`` (an image) or ``[B, T, H, W, 3]``; a batch of clips
    ``[B, C, T, H, W]`` whose frames are taken as they are: uint8, or float with pixel values in [0, 1]
    (``normalised=True``: floats that are the encoder's input already, at any size that the patches divide); an iterator
    of frames uint8 ``[H, W, 3]``. ``fps``: frames per second of arrays and iterators; None: the clip's rate.

    Videos are cut to the encoder's clip: ``segments`` clips spread over each (1: the middle), or, with ``overlap`` (a
    share of the window, 0 <= overlap < 1), windows from start to end, of which ``merge`` makes one row per window
    ("none") or one per tubelet (the "mean" over the windows that saw it, or the "latest"). Iterators always go by
    windows. An image, or the last frame of a short video, is held. ``num_frames``, ``clip_fps``, ``crop_size`` and
    ``fit`` ("crop", "keep", "stretch") replace the clip's own. ``layers``: blocks to take tokens from (negative: from
    the last), side by side along the width; None: the last block. ``pool``: "none" (tokens), "mean", or "attentive" by
    ``probe``. ``batch_size``, ``workers`` (decoding processes), ``device`` and ``precision``: "auto" suits the machine.
    ``on_error="skip"`` leaves out files that cannot be decoded and lists them in ``metadata["failed"]``.

    Returns ``Features`` on the CPU, float32. Raises ``ValueError`` for inputs that cannot be encoded; ``VideoError``
    (also a ``ValueError``) names a bad file.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}")
    options = EncodeOptions(
        layers=None if layers is None else tuple(layers), segments=segments, overlap=overlap, merge=merge, pool=pool,
        num_frames=num_frames, clip_fps=clip_fps, crop_size=crop_size, fit=fit, normalised=normalised,
    )  # fmt: skip
    job = Job.prepare(model, options, _alone(device, precision), probe)
    videos = list_inputs(inputs, job.clip, fps)
    return _encode(job, [Task(*pair) for pair in enumerate(videos)], batch_size, workers, on_error == "skip")


def encode_stream(
    frames: Iterable[Any], model: ClipEncoder | str | Path, *, fps: float | None = None, overlap: float = 0.0,
    device: str = "auto", precision: str = "auto", layers: Sequence[int] | None = None, pool: Pool = "none",
    probe: nn.Module | None = None, num_frames: int | None = None, clip_fps: float | None = None,
    crop_size: int | None = None, fit: Fit | None = None,
) -> Iterator[Features]:  # fmt: skip
    """Features of a live camera, window by window, each as soon as its last frame is there; memory stays the same.

    ``frames``: uint8 ``[H, W, 3]`` as they come, ``fps`` per second (None: the clip's rate). ``overlap``: the share of
    a window that the next one sees again. The rest is as for ``encode``. Every ``Features`` holds one window, with its
    seconds since the first frame. Raises ``ValueError`` for frames of another kind or size.
    """
    options = EncodeOptions(
        layers=None if layers is None else tuple(layers), overlap=overlap, pool=pool, num_frames=num_frames,
        clip_fps=clip_fps, crop_size=crop_size, fit=fit,
    )  # fmt: skip
    job = Job.prepare(model, options, _alone(device, precision), probe)
    forward, rule = job.forward(), job.window_rule(overlap)
    windows = stream_windows(iter(Camera(iter(frames), fps)), fps, job.clip, rule)
    for number, window in enumerate(windows):
        batch = collate([RawClip(window.frames, window.start_s, window.end_s, -1)], [0], [0])
        origin = Origin(0, number, window.start_s, window.end_s, window.first, window.valid)
        for encoded in forward(iter([Work(batch, [origin], [])])):
            assert encoded.rows is not None
            assert encoded.grid is not None
            row = Row(0, number, window.start_s, window.end_s, encoded.rows[0])
            yield _features(job, [row], encoded.grid, ("camera",), encoded.widths)


def _alone(device: str, precision: str) -> Run:
    place = choose_device(device)
    return Run(place, choose_precision(precision, place))


def _encode(job: Job, tasks: list[Task], batch_size: int | str, workers: int | str, skip: bool) -> Features:
    rows: list[Row] = []
    grid = job.model.grid
    widths: tuple[int, ...] = ()
    forward = job.forward(may_split=batch_size == "auto")
    for encoded, complete in encode_tasks(job, tasks, batch_size, workers, forward, Rows(job.options.merge)):
        for end in encoded.work.ends:
            if end.reason and not skip:
                raise VideoError(end.reason)
            if end.reason:
                log.warning("skipped, cannot be decoded: %s", end.reason)
            job.note(end, tasks[end.video].video.name)
        if encoded.grid is not None:
            if rows and encoded.grid != grid:
                both = f"{tuple(grid)} and {tuple(encoded.grid)}"
                raise ValueError(f"inputs have different token grids, {both}: encode them apart, or pool to a file")
            grid, widths = encoded.grid, encoded.widths
        rows += complete
    if not rows:
        raise VideoError(f"no input can be decoded; the first: {job.failed[0]}")
    return _features(job, rows, grid, tuple(tasks[row.video].video.name for row in rows), widths)


def _features(
    job: Job, rows: list[Row], grid: TokenGrid, sources: tuple[str, ...], widths: tuple[int, ...]
) -> Features:
    """Rows of one grid, stacked."""
    if job.merging:
        grid = grid._replace(t=1)
    start_s, end_s = tubelet_times([row.start_s for row in rows], [row.end_s for row in rows], grid)
    stacked = torch.stack([row.feature for row in rows])
    tokens = stacked if job.options.pool == "none" else stacked[:, None]
    layers, pool = job.options.layers or (), job.options.pool
    return Features(tokens, grid, start_s, end_s, sources, job.metadata(), layers, pool, widths if layers else ())
