"""What a data source is, as a run's config says it, and the clips that it hands out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa.data.cache import ClipCache
from jepa.data.sampling import ShortVideo, Span
from jepa.data.trajectories.config import TrajectoryConfig
from jepa.data.video import Backend, FileInfo
from jepa.types import Interpolation


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """Where clips come from.

    ``path``: a folder of videos or images (class subfolders give labels; a prepared folder's manifest is used), a CSV
    file, a ``.npy`` / ``.npz`` file of clips, or tar shards: a folder of ``.tar``, a pattern ``a-{000..127}.tar``, a
    URL or ``pipe:COMMAND``. ``weight``: the source's share of the clips, relative to the other sources' weights and
    whatever its size.

    For CSV files: ``label_column`` names the column of labels (default: ``label``, or the second column of a file
    without header); ``where`` keeps the rows whose columns have these values; where there are columns ``start_s`` and
    ``end_s``, ``span`` says whether clips stay ``inside`` these seconds, are ``centred`` on them, or stay inside and
    end at their end (``ending``). Its paths may be folders of pictures, one per frame. ``fps`` is the frame rate of
    these and of arrays (None: they are at the clip's rate).

    For tar shards: ``label_column`` is a name in the samples' ``.json`` (default: ``label``, or else the ``.cls``
    member); ``member`` the extension of the member that is read, such as ``left.mp4`` (default: the video, array or
    image that is there); ``shuffle_shards`` how many shards' samples are shuffled among each other at a time, after the
    order of the shards (0: all).

    ``trajectory``: the path holds recorded episodes of frames, actions and states, read as this says ({}: the usual).
    """

    path: str
    weight: float = 1.0
    label_column: str | None = None
    where: dict[str, str] = field(default_factory=dict)
    span: Span = "inside"
    fps: float | None = None
    member: str | None = None
    shuffle_shards: int = 16
    trajectory: TrajectoryConfig | None = None

    def __post_init__(self) -> None:
        if self.shuffle_shards < 0:
            raise ValueError(f"shuffle_shards must be at least 0, not {self.shuffle_shards}")
        if self.weight <= 0:
            raise ValueError(f"weight must be positive, not {self.weight}: remove the source to leave it out")
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"fps must be positive, not {self.fps}")
        if self.trajectory is not None:
            if self.fps is not None:
                raise ValueError(f"fps {self.fps} is for arrays and pictures: for episodes set trajectory.fps")
            for name in ("label_column", "where", "member"):
                if getattr(self, name):
                    raise ValueError(f"{name} has no meaning with trajectory: episodes have no labels; leave it out")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """How files are read: the decoding library, the longest short side in pixels, the rule for short videos, the room
    for fetched shards."""

    backend: Backend = "auto"
    short_side: int | None = None
    short_video: ShortVideo = "hold"
    cache: ClipCache | None = None
    interpolation: Interpolation = "bilinear"  # decord and torchcodec scale in a way of their own
    shard_cache_gb: float = 50.0


class RawClip(NamedTuple):
    """``frames`` uint8 ``[T, H, W, 3]``, the seconds they cover, and the class id (-1: none); what the file holds, and
    how many different frames of it the clip shows; of trajectories ``actions`` ``[T-1, A]`` and ``states`` ``[T, S]``.
    """

    frames: NDArray[np.uint8]
    start_s: float
    end_s: float
    label: int
    info: FileInfo | None = None
    distinct: int = 0
    actions: NDArray[np.float32] | None = None
    states: NDArray[np.float32] | None = None


class ClipRequest(NamedTuple):
    """One clip of a video: ``rng`` None is the middle clip; ``segment`` (k, K) is clip k of K spread over the video."""

    rng: np.random.Generator | None = None
    segment: tuple[int, int] = (0, 1)
