"""Principal components of patch features over whole videos, as colours beside the frames."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.thumbnails import file_of
from evals.pages.drawing import Frames
from jepa.data.image import IMAGE_SUFFIXES
from jepa.data.loader import eval_options
from jepa.data.sampling import frame_spacing
from jepa.data.sources import Source, SourceConfig
from jepa.data.transforms import ClipTransform
from jepa.data.video import VideoError, open_video, resize_frames
from jepa.encode import encode
from jepa.features import tubelet_times
from jepa.models.base import ClipEncoder
from jepa.monitor import pca_colours, tubelet_frames
from jepa.types import Batch, ClipConfig, TokenGrid

MAX_TUBELETS = 48  # per video: what a page can show
SHORT_SIDE = 192


class VideoMap(NamedTuple):
    """n tubelets of a video: ``frames`` and ``colours`` uint8 ``[n, H, W, 3]``, ``start_s`` and ``end_s`` float64
    ``[n]``; ``note`` says how the video was covered."""

    source: str
    frames: Frames
    colours: Frames
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    note: str


class _Encoded(NamedTuple):
    """The n clips that tile a video: ``tokens`` ``[n, N, D]``, the first frame of every tubelet ``[n, t, H, W, 3]``,
    their seconds ``[n, t]``, and which tubelets are shown (bool ``[n, t]``)."""

    path: str
    tokens: Tensor
    grid: TokenGrid
    frames: Frames
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    keep: NDArray[np.bool_]
    note: str


def video_maps(
    paths: Sequence[str], encoder: ClipEncoder, layers: Sequence[int] | None, device: str
) -> tuple[list[VideoMap], list[str]]:
    """Maps of every video, coloured together, and a sentence about each that cannot be read.

    Clips follow each other without gaps from the start to the end; of a video with more than ``MAX_TUBELETS``
    tubelets, clips spread evenly over it.
    """
    encoded, failed = [], []
    for path in paths:
        try:
            encoded.append(_encode(path, encoder, layers, device))
        except VideoError as error:
            failed.append(f"no maps: {error}")
    if not encoded:
        return [], failed
    tokens = [part.tokens.flatten(0, 1) for part in encoded]  # grids may differ between videos, components must not
    colours = (pca_colours(torch.cat(tokens)) * 255).round().byte()
    pieces = colours.split([len(part) for part in tokens])
    return [_finish(part, piece.numpy()) for part, piece in zip(encoded, pieces, strict=True)], failed


def _encode(path: str, encoder: ClipEncoder, layers: Sequence[int] | None, device: str) -> _Encoded:
    clip = encoder.clip
    spans, note = tile(path, clip, encoder.grid.t)
    count = len(spans) if spans is not None else 1
    nothing = np.full(count, -1, dtype=np.int64)
    config = SourceConfig(path=path)
    source = Source(config=config, options=eval_options(clip), paths=[path] * count, labels=nothing, spans=spans)
    raw = [source.load_clip(item, clip) for item in range(count)]
    pixels = torch.from_numpy(np.stack([part.frames for part in raw])).permute(0, 4, 1, 2, 3)
    features = encode(pixels, encoder, batch_size=4, device=device, layers=layers)
    shown = ClipTransform(clip)(Batch(clip=pixels)).clip
    frames = tubelet_frames(shown, features.grid, clip, least=1)
    seconds = tubelet_times([part.start_s for part in raw], [part.end_s for part in raw], features.grid)
    start_s, end_s = (x.numpy() for x in seconds)
    keep = np.ones(start_s.shape, dtype=bool)
    if count > 1:  # the last clip is moved back so that it ends with the video, and may repeat what is shown already
        keep[-1] = start_s[-1] > end_s[-2, -1] - 1e-3
    return _Encoded(path, features.tokens, features.grid, frames, start_s, end_s, keep, note)


def tile(path: str, clip: ClipConfig, tubelets: int) -> tuple[NDArray[np.float64] | None, str]:
    """Seconds ``[n, 2]`` of the clips that cover a video (None: an image), and how they do, in words."""
    suffix = os.path.splitext(file_of(path))[1].lower()
    if suffix in (".npy", ".npz"):
        raise VideoError(f"{path} holds arrays; maps are drawn of video and image files")
    if suffix in IMAGE_SUFFIXES:
        return None, "An image, held for the length of the clip."
    with open_video(path) as reader:
        duration, rate = reader.num_frames / reader.fps, reader.fps
    length = frame_spacing(rate, clip) * clip.num_frames / rate
    most = max(1, MAX_TUBELETS // tubelets)
    needed = max(1, math.ceil(duration / length - 0.05))
    if needed > most:
        starts = np.linspace(0, duration - length, most)
        words = f"{most} clips of {length:.2f} s, spread evenly over {duration:.1f} s."
    else:
        starts = np.minimum(np.arange(needed) * length, max(0.0, duration - length))
        words = f"The whole video, {duration:.1f} s, in {needed} clip{'s' * (needed > 1)} of {length:.2f} s."
    return np.stack((starts, starts + length), axis=1), words


def _finish(part: _Encoded, colours: NDArray[np.uint8]) -> VideoMap:
    """Colours ``[n * N, 3]`` and frames to pictures of one size, in the order of time."""
    shown = part.keep.flatten()
    cells = colours.reshape(-1, *part.grid[1:], 3)[shown]
    frames = part.frames.reshape(-1, *part.frames.shape[2:])[shown]
    height, width = frames.shape[1:3]
    scale = SHORT_SIDE / min(height, width)
    pictures = (resize_frames(x, round(height * scale), round(width * scale)) for x in (frames, cells))
    return VideoMap(part.path, *pictures, part.start_s[part.keep], part.end_s[part.keep], part.note)
