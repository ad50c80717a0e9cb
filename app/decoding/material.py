"""What is decoded comes from: clips of videos, episodes of recordings, at the rate and the size of the decoder's own.

Shape legend: C channels, T frames, H/W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.config import ConfigError, from_dict
from jepa.data.settings import DataConfig, eval_options, open_data
from jepa.data.sources import Source, SourceConfig, open_source
from jepa.data.trajectories.arrays import ACTIONS, HDF5_SUFFIXES
from jepa.data.trajectories.base import Episode
from jepa.data.trajectories.config import TrajectoryConfig
from jepa.data.trajectories.opening import open_trajectories
from jepa.data.transforms import ClipTransform
from jepa.forward import patch_size
from jepa.inputs import Item, Video, list_inputs
from jepa.load import read_run
from jepa.predictive import clip_batches
from jepa.types import Batch, ClipConfig

if TYPE_CHECKING:
    from jepa.decoding import Decoder


class Clip(NamedTuple):
    """``pixels`` ``[C, T, H, W]``, normalised, of the seconds from ``start_s`` to ``end_s`` of ``name``."""

    name: str
    pixels: Tensor
    start_s: float
    end_s: float

    def times(self) -> tuple[str, ...]:
        """The time of each frame, in words."""
        frames = self.pixels.shape[1]
        gap = (self.end_s - self.start_s) / frames
        return tuple(f"{self.start_s + gap * frame:.2f} s" for frame in range(frames))


def open_videos(paths: Sequence[str], decoder: Decoder) -> list[Video]:
    """The videos and episodes at ``paths``; without any what the decoder's run validates on or holds out.

    Raises ``ValueError`` where there is none.
    """
    if paths:
        items: list[Item] = [
            SourceConfig(path=path, trajectory=TrajectoryConfig()) if is_recording(path) else path for path in paths
        ]
        return list_inputs(items, decoder.clip)
    return [Video(path, source, item) for source in held_out(decoder) for item, path in enumerate(source.paths)]


def open_episodes(paths: Sequence[str], decoder: Decoder, trajectory: TrajectoryConfig) -> list[Video]:
    """The recorded episodes at ``paths``; without any those that the decoder's run validates on or holds out.

    Raises ``ConfigError`` for what is no recording.
    """
    sources = [
        open_source(SourceConfig(path=path, trajectory=trajectory), eval_options(decoder.clip)) for path in paths
    ]  # fmt: skip
    sources = sources or held_out(decoder)
    episodes = [
        Video(path, source, item)
        for source in sources if source.trajectories is not None for item, path in enumerate(source.paths)
    ]  # fmt: skip
    if not episodes:
        raise ConfigError(
            f"{decoder.path} was trained on videos without actions: name a recording, frames and actions, to decode"
        )
    return episodes


def held_out(decoder: Decoder) -> list[Source]:
    """What the decoder's run validates on or holds out. Raises ``ConfigError`` when there is nothing."""
    config = read_run(decoder.path, "jepa.decoding.load_decoder")[1]["config"]
    data = from_dict(DataConfig, config["data"], "data")
    try:
        _, validation = open_data(data, decoder.clip)
    except ConfigError as error:
        raise ConfigError(f"name a video to decode: the data of {decoder.path} cannot be opened ({error})") from None
    if not validation:
        raise ConfigError(f"name a video to decode: {decoder.path} neither validates on videos nor holds any out")
    return validation


def is_recording(path: str) -> bool:
    """Whether ``path`` holds episodes of frames and actions, and no plain videos."""
    if os.path.isdir(path):
        try:
            return len(open_trajectories(path)) > 0
        except ConfigError:  # it says which layouts were looked for: none is there
            return False
    if path.lower().endswith(".npz") and os.path.isfile(path):
        with np.load(path) as arrays:
            return bool(set(ACTIONS) & set(arrays.files))
    return path.lower().endswith(HDF5_SUFFIXES)


def evenly(videos: Sequence[Video], count: int) -> list[Video]:
    """At most ``count`` of the videos, from all over the list."""
    chosen = np.unique(np.linspace(0, len(videos) - 1, min(count, len(videos))).round().astype(int))
    return [videos[number] for number in chosen]


def read_clips(videos: Sequence[Video], decoder: Decoder) -> list[Clip]:
    """The middle clip of each video, as the decoder's model takes them. Raises ``VideoError`` naming a damaged file."""
    encoder = decoder.objective.encoder
    tubelet = 1 if decoder.per_frame else max(1, decoder.clip.num_frames // decoder.grid_of(native(decoder.clip)).t)
    found = []
    for pixels, origins in clip_batches(
        videos, decoder.clip, tubelet, patch_size(encoder), None, 1, True, decoder.device
    ):  # fmt: skip
        found += [
            Clip(videos[origin.video].name, one, origin.start_s, origin.end_s)
            for one, origin in zip(pixels, origins, strict=True)
        ]
    return found


def read_episode(video: Video, clip: ClipConfig) -> Episode:
    """A whole recorded episode at the clip's rate. Raises ``VideoError`` or ``ShortVideoError`` naming it."""
    source = video.origin
    assert isinstance(source, Source)
    assert source.trajectories is not None, "open_episodes lists no others"
    return source.trajectories.episode(source.episodes()[video.item], clip, source.options)


def fitted(frames: NDArray[np.uint8], clip: ClipConfig, device: torch.device) -> Tensor:
    """uint8 ``[T, H, W, 3]`` as the model takes them: ``[C, T, H, W]``, cropped and normalised."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)[None].to(device)
    return ClipTransform(clip)(Batch(clip=pixels)).clip[0]


def native(clip: ClipConfig, frames: int | None = None) -> tuple[int, int, int]:
    """Frames, rows and columns of a clip in its square crop."""
    return frames or clip.num_frames, clip.crop_size, clip.crop_size
