"""The layout ``episodes``: a file of arrays for each episode (pictures among them or in a video beside), or one .npz of
many episodes."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from jepa.config import ConfigError
from jepa.data.listing import VIDEO_SUFFIXES, list_folder
from jepa.data.source_config import ReadOptions
from jepa.data.trajectories.arrays import (
    ACTIONS,
    HDF5_SUFFIXES,
    STATES,
    ArrayFile,
    NpzFile,
    PartReader,
    camera_axis,
    open_arrays,
    pick_pictures,
)  # fmt: skip
from jepa.data.trajectories.assemble import assemble
from jepa.data.trajectories.base import Trajectories, TrajectoryError
from jepa.data.trajectories.config import TrajectoryConfig
from jepa.data.trajectories.timeline import Track
from jepa.data.trajectories.writer import META
from jepa.data.video import VideoReader, open_video

SUFFIXES = frozenset({".npz", *HDF5_SUFFIXES})


def read_meta(folder: Path) -> dict[str, Any]:
    """What ``trajectories.json`` says, nothing where there is none. Raises ``ConfigError``."""
    path = folder / META
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from None
    fps = found.get("fps") if isinstance(found, dict) else 0
    if not isinstance(found, dict) or (fps is not None and not (isinstance(fps, int | float) and fps > 0)):
        raise ConfigError(f"{path} must be a mapping in which fps, if it is there, is a positive number")
    for key in ("action_low", "action_high"):
        values = found.get(key)
        if values is not None and not (isinstance(values, list) and all(isinstance(v, int | float) for v in values)):
            raise ConfigError(f"{path}: {key} must be a list of numbers, one for each column, not {values!r}")
    names = found.get("state_names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ConfigError(f"{path}: state_names must be a list of names, one for each column, not {names!r}")
    return found


def stated_fps(file: ArrayFile) -> float | None:
    """The frame rate that a file of arrays says. Raises ``TrajectoryError`` for one that is none."""
    if "fps" not in file.names:
        return None
    found = file.get("fps")
    if found.size != 1 or found.dtype.kind not in "fiu" or not 0 < found.item() < np.inf:
        raise TrajectoryError(f"{file.path}: fps must be one positive number, not {found.tolist()!r}")
    return float(found.item())


def find_videos(path: str) -> dict[str, str]:
    """Every video below a folder, or beside a file, by its path without the suffix."""
    if not os.path.isdir(path):
        folder = os.path.dirname(path)
        files = [os.path.join(folder, name) for name in os.listdir(folder or ".")]
    else:
        files = [os.path.join(root, name) for root, _, names in os.walk(Path(path), followlinks=True) for name in names]
    split = (os.path.splitext(file) for file in sorted(files, reverse=True))  # of two with a name the first one stays
    return {stem: stem + suffix for stem, suffix in split if suffix.lower() in VIDEO_SUFFIXES}


class StatedEpisodes(Trajectories):
    """Episodes whose ``trajectories.json`` may say what their columns are."""

    def _take(self, meta: dict[str, Any]) -> None:
        """What it says of all columns says nothing of others that ``actions`` and ``states`` choose."""
        low, high = meta.get("action_low"), meta.get("action_high")
        if low is not None and high is not None and set(self.config.actions) <= set(ACTIONS):
            self.action_low, self.action_high = np.array(low, dtype=np.float32), np.array(high, dtype=np.float32)
        if set(self.config.states) <= set(STATES):
            self.state_names = tuple(meta.get("state_names") or ())


class EpisodeFiles(StatedEpisodes):
    """One file of arrays for each episode."""

    def __init__(self, path: str, config: TrajectoryConfig) -> None:
        names = list_folder(Path(path), SUFFIXES)[0] if os.path.isdir(path) else [path]
        super().__init__(path, config, names)
        self._videos = find_videos(path)
        meta = read_meta(Path(path) if os.path.isdir(path) else Path(path).parent)
        self._fps: float | None = meta.get("fps") if config.fps is None else config.fps
        self._take(meta)

    def size(self, number: int) -> int:
        video = self._video(self.names[number])
        return os.path.getsize(self.names[number]) + (os.path.getsize(video) if video else 0)

    def _video(self, path: str) -> str | None:
        """The video beside a file of arrays: NAME.mp4, or NAME.CAMERA.mp4."""
        return self._videos.get(os.path.splitext(path)[0] + (f".{self.config.camera}" if self.config.camera else ""))

    def _no_pictures(self, file: ArrayFile) -> TrajectoryError:
        stem = os.path.splitext(file.path)[0]
        cameras = sorted(name.removeprefix(f"{stem}.") for name in self._videos if name.startswith(f"{stem}."))
        if cameras:
            wanted = "names no camera" if self.config.camera is None else f"there is no camera {self.config.camera!r}"
            return TrajectoryError(f"{file.path}: {wanted}; there are: {', '.join(cameras)}")
        return TrajectoryError(
            f"{file.path} has no array of frames and no video beside it ({os.path.basename(stem)}.mp4); its arrays: "
            f"{', '.join(file.names)}. Name one in trajectory.frames"
        )

    def _load(self, number: int) -> Track:
        path = self.names[number]
        with open_arrays(path) as file:
            pictures = pick_pictures(file, self.config.frames, self.config.camera)
            fps = self._fps
            if pictures is not None:
                shape = file.part(pictures[0]).shape
                check_frames(path, pictures[0], shape, file.part(pictures[0]).dtype, (4, 5))
                axis = camera_axis(f"{path}: {pictures[0]}", shape, 4, pictures[1])
                count = shape[0] if axis is None else shape[1]
                fps = stated_fps(file) if fps is None else fps
            else:
                video = self._video(path)
                if video is None:
                    raise self._no_pictures(file)
                with open_video(video) as reader:
                    count, fps = reader.num_frames, fps if self.config.fps is not None else reader.fps
            actions = file.numbers(self.config.actions, ACTIONS, "actions")
            states = file.numbers(self.config.states, STATES, "states")
            for what, values in (("actions", actions), ("states", states)):
                if values is not None and values.ndim != 2:
                    raise TrajectoryError(f"{path}: {what} must be [steps, width], not {list(values.shape)}")
            times = None if self.config.fps is not None else file.times(("times", "timestamps"))
            if actions is None and self.rules.action != "state_difference":
                raise TrajectoryError(
                    f"{path} has no actions (looked for {', '.join(ACTIONS)}); its arrays: {', '.join(file.names)}. "
                    "Name them in trajectory.actions"
                )
            return assemble(
                path, count, fps, actions, states, times, file.times(("action_times",)),
                file.times(("state_times",)), self.config.action_fps,
            )  # fmt: skip

    def open(self, number: int, options: ReadOptions) -> VideoReader:
        path = self.names[number]
        with contextlib.ExitStack() as stack:
            file = open_arrays(path)
            stack.callback(file.close)
            pictures = pick_pictures(file, self.config.frames, self.config.camera)
            if pictures is not None:
                frames = file.part(pictures[0])
                check_frames(path, pictures[0], frames.shape, frames.dtype, (4, 5))
                axis = camera_axis(f"{path}: {pictures[0]}", frames.shape, 4, pictures[1])
                track = self.track(number)
                if axis is not None:
                    frames = frames[axis]
                stack.pop_all()  # the reader closes the file
                return PartReader(path, frames, 1 / track.gap, options, file)
            video = self._video(path)
            if video is None:
                raise self._no_pictures(file)
        return open_video(video, options.backend, options.short_side, options.interpolation)


class ManyEpisodes(StatedEpisodes):
    """One .npz of many episodes: frames ``[E, T, H, W, 3]`` or ``[E, cameras, T, H, W, 3]``, actions ``[E, K, A]``,
    states ``[E, N, S]``, and, where episodes end before T, ``lengths`` ``[E]``."""

    def __init__(self, path: str, config: TrajectoryConfig) -> None:
        with NpzFile(path) as file:
            pictures = pick_pictures(file, config.frames, config.camera)
            if pictures is None:
                raise ConfigError(f"{path} has no array of frames; its arrays: {', '.join(file.names)}")
            self._frames = file.part(pictures[0])
            shape = self._frames.shape
            check_frames(path, pictures[0], shape, self._frames.dtype, (5, 6))
            self._camera = camera_axis(f"{path}: {pictures[0]}", shape, 5, pictures[1])
            arrays = {
                "actions": file.numbers(config.actions, ACTIONS, "actions"),
                "states": file.numbers(config.states, STATES, "states"),
            }
            times = {name: file.get(name) for name in ("times", "action_times", "state_times") if name in file.names}
            lengths = file.get("lengths") if "lengths" in file.names else None
            fps = stated_fps(file)
        for name, array in arrays.items():
            if array is not None and (array.ndim != 3 or len(array) != shape[0]):
                raise ConfigError(f"{path}: {name} {list(array.shape)} do not belong to frames {list(shape)}")
        meta = read_meta(Path(path).parent)
        self._arrays, self._times = arrays, times
        self._lengths = np.full(shape[0], shape[-4]) if lengths is None else np.asarray(lengths)
        if len(self._lengths) != shape[0] or self._lengths.max(initial=0) > shape[-4]:
            raise ConfigError(f"{path}: lengths {list(self._lengths.shape)} do not belong to frames {list(shape)}")
        self._fps: float | None = config.fps or fps or meta.get("fps")
        super().__init__(path, config, [f"{path}[{number}]" for number in range(shape[0])])
        self._take(meta)

    def size(self, number: int) -> int:
        return int(self._lengths[number])

    def _load(self, number: int) -> Track:
        count = int(self._lengths[number])
        short = self._frames.shape[-4] - count  # steps that this episode lacks, of everything

        def row(values: Any) -> Any:
            return None if values is None else values[number][: len(values[number]) - short]

        times = {name: row(values) for name, values in self._times.items()}
        if self.config.fps is not None:
            times.pop("times", None)
        return assemble(
            self.names[number], count, self._fps, row(self._arrays["actions"]), row(self._arrays["states"]),
            times.get("times"), times.get("action_times"), times.get("state_times"), self.config.action_fps,
        )  # fmt: skip

    def open(self, number: int, options: ReadOptions) -> VideoReader:
        frames = self._frames[number] if self._camera is None else self._frames[number, self._camera]
        rate = 1 / self.track(number).gap
        return PartReader(self.names[number], frames[: self._lengths[number]], rate, options)


def check_frames(path: str, name: str, shape: tuple[int, ...], dtype: Any, ndims: tuple[int, int]) -> None:
    """Raises ``TrajectoryError`` for what are no pictures."""
    if dtype != np.uint8 or len(shape) not in ndims or shape[-1] != 3:
        raise TrajectoryError(f"{path}: {name} must be uint8 [..., T, H, W, 3], not {dtype} {list(shape)}")


def holds_many(path: str, config: TrajectoryConfig) -> bool:
    """Whether a .npz has an axis of episodes: its actions (or states) have one more than those of an episode."""
    with NpzFile(path) as file:
        for wanted, usual in ((config.actions, ACTIONS), (config.states, STATES)):
            name = file.find(wanted[:1] or usual)
            if name in file.names:
                return len(file.part(name).shape) == 3
    return False
