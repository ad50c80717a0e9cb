"""``encode`` whatever a user has: files, folders, arrays, tensors.

Everything goes through the encoder's own clip: its frame rate, number of frames, resolution and normalisation, which
are stored with the weights. Nothing has to be configured twice.
"""

from __future__ import annotations

import glob
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.config import to_dict
from jepa.data.batches import Failure, eval_batches
from jepa.data.loader import eval_options
from jepa.data.sources import Source, SourceConfig, open_source
from jepa.data.transforms import ClipTransform
from jepa.data.video import VideoError
from jepa.distributed import Run, choose_device, choose_precision
from jepa.features import Features, tubelet_times
from jepa.load import load
from jepa.models.base import ClipEncoder
from jepa.types import Batch, ClipConfig

log = logging.getLogger("jepa")

Item: TypeAlias = str | Path | NDArray[Any] | Tensor
Inputs: TypeAlias = Item | Sequence[Item]
_LISTS = (".csv", ".tsv", ".txt", ".npy", ".npz")


def encode(
    inputs: Inputs,
    model: ClipEncoder | str | Path,
    batch_size: int = 8,
    device: str = "auto",
    layers: Sequence[int] | None = None,
    segments: int = 1,
    *,
    fps: float | None = None,
    normalised: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    precision: str = "auto",
) -> Features:
    """Encode clips in chunks of ``batch_size``, without gradients, in the order of ``inputs``.

    ``model``: an encoder, or what ``load`` takes. ``inputs`` is one of these, or a list of them:
      * the path of a video or an image; a folder (every video and image below it, sorted); a CSV, ``.npy`` or ``.npz``
        as for training; a glob pattern;
      * an RGB array or tensor, uint8 ``[T, H, W, 3]`` (a video) or ``[H, W, 3]`` (an image);
      * a batch of clips ``[B, C, T, H, W]`` whose frames are taken as they are: uint8, or float with pixel values in
        [0, 1] (rounded to 256 levels). With ``normalised=True`` a float batch is the encoder's input already: nothing
        is done to it, and any size that the patches divide is encoded at that size.

    Videos are cut to the encoder's clip: its frame rate and length, ``segments`` clips spread over each video (1: the
    middle), resized and centre-cropped to its resolution. An image, or the last frame of a short video, is held for
    the length of the clip. ``fps``: frames per second of ``[T, H, W, 3]`` arrays; ``None``: already at the clip's rate.
    ``layers``: blocks to take tokens from (negative: from the last), joined along the width; ``None``: the last.
    ``device`` and ``precision`` as for training ("auto": bf16 on CUDA, fp32 elsewhere); the model is moved there.
    ``on_error="skip"`` leaves out files that cannot be decoded, logs them and lists them in ``metadata["failed"]``.

    Returns ``Features`` on the CPU, float32: tokens ``[B, N, D]``, B = clips x segments, video by video.
    Raises ``ValueError`` for inputs that cannot be encoded; ``VideoError`` (also a ``ValueError``) names a bad file.
    """
    if segments < 1 or batch_size < 1:
        raise ValueError(f"segments and batch_size must be at least 1, not {segments} and {batch_size}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}")
    place = choose_device(device)
    run = Run(place, choose_precision(precision, place))
    model = (model if isinstance(model, ClipEncoder) else load(model)).to(place).eval()
    feed = _Feed(model.clip, batch_size, segments, normalised, on_error == "skip", place, [])
    tokens: list[Tensor] = []
    clips: list[_Origin] = []
    grid = model.grid
    for clip, origins in feed.batches(_list_inputs(inputs, model.clip, fps)):
        shape = model.grid_of(clip.shape)
        if tokens and shape != grid:
            raise ValueError(f"inputs have different token grids, {tuple(grid)} and {tuple(shape)}: encode them apart")
        grid = shape
        tokens.append(_tokens(model, clip, layers, run))
        clips += origins
    if not tokens:
        raise VideoError(f"no input can be decoded; the first: {feed.failed[0]}")
    start_s, end_s = tubelet_times([c.start_s for c in clips], [c.end_s for c in clips], grid)
    metadata: dict[str, object] = {
        "clip": to_dict(model.clip), "segments": segments, "layers": None if layers is None else list(layers),
        "precision": run.precision, "normalised_by_caller": normalised, "failed": feed.failed,
    }  # fmt: skip
    sources = tuple(c.source for c in clips)
    return Features(torch.cat(tokens), grid, start_s, end_s, sources, metadata, tuple(layers or ()))


@torch.inference_mode()
def _tokens(model: ClipEncoder, clip: Tensor, layers: Sequence[int] | None, run: Run) -> Tensor:
    """Float clip [B, C, T, H, W] to tokens [B, N, D] (or the chosen layers side by side), float32 on the CPU."""
    with run.autocast():
        tokens = model(clip) if layers is None else torch.cat(model(clip, layers=layers), dim=-1)
    return tokens.float().cpu()


# ---- from what the user has to batches -------------------------------------------------------------------------------


class _Origin(NamedTuple):
    """Where a clip came from, and the seconds that it covers."""

    source: str
    start_s: float
    end_s: float


@dataclass
class _Feed:
    """Batches ready for the encoder. Clips of files and arrays are gathered; batches of the user's own stay apart."""

    clip: ClipConfig
    batch_size: int
    segments: int
    normalised: bool
    skip: bool
    device: torch.device
    failed: list[str]

    def batches(self, inputs: list[Source | Tensor]) -> Iterator[tuple[Tensor, list[_Origin]]]:
        """Float clips [n, C, T, H, W] on the device, with the origin of each."""
        for ready_made, group in itertools.groupby(inputs, lambda part: isinstance(part, Tensor)):
            parts: list[Any] = list(group)
            if ready_made:
                yield from itertools.chain.from_iterable(map(self._ready_made, parts))
            else:
                yield from self._cut(parts)

    def _cut(self, sources: list[Source]) -> Iterator[tuple[Tensor, list[_Origin]]]:
        paths = [path for source in sources for path in source.paths]
        failures: list[Failure] = []
        noted = failures if self.skip else None
        for batch in eval_batches(sources, self.clip, self.batch_size, self.segments, failures=noted):
            assert batch.index is not None
            assert batch.start_s is not None
            assert batch.end_s is not None
            seconds = zip(batch.index.tolist(), batch.start_s.tolist(), batch.end_s.tolist(), strict=True)
            yield self._transform(batch), [_Origin(paths[item], start, end) for item, start, end in seconds]
        for failure in failures:
            log.warning("skipped, cannot be decoded: %s", failure.reason)
            self.failed.append(failure.reason)

    def _ready_made(self, clips: Tensor) -> Iterator[tuple[Tensor, list[_Origin]]]:
        if self.normalised and not clips.is_floating_point():
            raise ValueError("normalised=True is for float clips, these are uint8")
        if not self.normalised and clips.is_floating_point() and (clips.min() < 0 or clips.max() > 1):
            raise ValueError(
                f"float clips hold pixel values in [0, 1]; these reach from {clips.min():.3g} to {clips.max():.3g}. "
                "Pass uint8 for values in 0..255, or normalised=True for clips that are normalised already"
            )
        origin = _Origin("array", 0.0, _duration_s(self.clip, clips.shape[2]))
        for part in clips.split(self.batch_size):
            if self.normalised:
                ready = part.to(self.device, torch.float32)
            else:
                ready = self._transform(Batch(clip=part if part.dtype == torch.uint8 else _bytes(part)))
            yield ready, [origin] * len(part)

    def _transform(self, batch: Batch) -> Tensor:
        return ClipTransform(self.clip, None)(batch.to(self.device)).clip


def _bytes(clips: Tensor) -> Tensor:
    """Pixel values in [0, 1] to the nearest of 256 levels: what a file or a uint8 array would have held."""
    return clips.float().mul(255).round().to(torch.uint8)


def _duration_s(clip: ClipConfig, num_frames: int) -> float:
    """Seconds that so many frames cover at the clip's own rate (a rate of 1 where the clip names none)."""
    if clip.duration_s is not None:
        return clip.duration_s * num_frames / clip.num_frames
    return num_frames / (clip.fps or 1.0)


def _list_inputs(inputs: Inputs, clip: ClipConfig, fps: float | None) -> list[Source | Tensor]:
    """Everything in ``inputs`` as sources of clips, or as batches [B, C, T, H, W]. Raises ``ValueError``."""
    if isinstance(inputs, (str, Path)):
        return [_open_path(os.fspath(inputs), clip)]
    if isinstance(inputs, (np.ndarray, Tensor)):
        return [_open_array(inputs, clip, fps)]
    if not isinstance(inputs, Sequence):
        raise ValueError(f"inputs must be a path, an array, a tensor or a list of these, not {type(inputs).__name__}")
    if not inputs:
        raise ValueError("inputs is an empty list: nothing to encode")
    return [source for part in inputs for source in _list_inputs(part, clip, fps)]


def _open_path(path: str, clip: ClipConfig) -> Source:
    if os.path.isdir(path) or (path.lower().endswith(_LISTS) and os.path.exists(path)):
        return open_source(SourceConfig(path=path), eval_options(clip))
    paths = [path]
    if glob.has_magic(path) and not os.path.exists(path):
        paths = sorted(found for found in glob.glob(path, recursive=True) if os.path.isfile(found))
        if not paths:
            raise VideoError(f"pattern {path} matches no file")
    nothing = np.full(len(paths), -1, dtype=np.int64)
    return Source(config=SourceConfig(path=path), options=eval_options(clip), paths=paths, labels=nothing)


def _open_array(array: NDArray[Any] | Tensor, clip: ClipConfig, fps: float | None) -> Source | Tensor:
    tensor = torch.as_tensor(array)
    shape = list(tensor.shape)
    described = f"{str(tensor.dtype).removeprefix('torch.')} {shape}"
    if 0 in shape:
        raise ValueError(f"an input array is empty: {described}")
    if tensor.dim() == 5 and shape[1] == 3 and (tensor.dtype == torch.uint8 or tensor.is_floating_point()):
        return tensor
    if tensor.dim() in (3, 4) and shape[-1] == 3 and tensor.dtype == torch.uint8:
        frames = tensor.cpu().numpy()
        return Source(
            config=SourceConfig(path="array", fps=fps),
            options=eval_options(clip),
            paths=["array"],
            labels=np.full(1, -1, dtype=np.int64),
            arrays=frames[None, None] if tensor.dim() == 3 else frames[None],
            rows=np.zeros(1, dtype=np.int64),
        )
    raise ValueError(
        f"cannot encode an array {described}: give uint8 [T, H, W, 3] (a video), uint8 [H, W, 3] (an image), "
        "or a batch [B, 3, T, H, W], uint8 or float"
    )
