"""The layout ``droid``: a folder for each episode with ``trajectory.h5`` and ``recordings/MP4/SERIAL.mp4``.

What a robot's row holds is described with the DROID data set (arXiv 2403.12945) and read as V-JEPA 2-AC does: states
are the gripper's place, its angles about x, y, z and how far it is closed; actions are their differences. The frame
rate that an MP4 states is one for playing it: the cameras' clocks (milliseconds) say when a picture was taken.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa.config import ConfigError
from jepa.data.listing import read_rows
from jepa.data.source_config import ReadOptions
from jepa.data.trajectories.arrays import ArrayFile, Hdf5File
from jepa.data.trajectories.assemble import closed
from jepa.data.trajectories.base import Trajectories, TrajectoryError, make_rules
from jepa.data.trajectories.config import TrajectoryConfig
from jepa.data.trajectories.rotation import seen_from
from jepa.data.trajectories.timeline import Times, Track
from jepa.data.video import VideoReader, open_video

FILE = "trajectory.h5"
RECORDINGS = Path("recordings", "MP4")
STATES = ("observation/robot_state/cartesian_position", "observation/robot_state/gripper_position")
ACTIONS = ("action/cartesian_velocity", "action/gripper_velocity")
EULER = (3, 4, 5)
CAMERAS = ("left", "right", "wrist")  # as an episode's metadata_*.json names them


def find_folders(path: str) -> Iterator[str]:
    """Every folder at or below ``path`` with a ``trajectory.h5``, in the order of their names."""
    for root, folders, files in os.walk(path, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if FILE in files:
            folders.clear()
            yield root


class Droid(Trajectories):
    """Episodes below a folder, or those that a table names (its column ``path``, or its first one)."""

    def __init__(self, path: str, config: TrajectoryConfig) -> None:
        if os.path.isdir(path):
            names = list(find_folders(path))
        elif path.endswith(".h5"):
            names = [os.path.dirname(path) or "."]
        else:
            columns, rows = read_rows(Path(path))
            names = [os.path.join(os.path.dirname(path), row[columns.index("path")]) for row in rows]
        if not names:
            raise ConfigError(f"data source {path} holds no episodes of DROID: no folder with {FILE}")
        super().__init__(path, config, names)
        own = config.states in ([], list(STATES))
        euler = tuple(config.euler) or (EULER if own else ())
        if config.camera_frame and euler != EULER:
            raise ConfigError(
                f"data source {path}: camera_frame needs states that begin with x, y, z and euler 3, 4, 5"
            )
        self.rules = make_rules(config, tuple(config.angles), euler, auto="state_difference")

    def size(self, number: int) -> int:
        file = os.path.join(self.names[number], FILE)
        return os.path.getsize(file) if os.path.isfile(file) else 0

    def _camera(self, folder: str) -> str:
        """The number of the camera in an episode: the one named, or the one that the episode's metadata calls so."""
        recordings = Path(folder) / RECORDINGS
        there = sorted(p.stem for p in recordings.glob("*.mp4") if not p.stem.endswith("-stereo"))
        wanted = self.config.camera
        if wanted in there:
            return wanted
        roles = _roles(folder)
        for role in CAMERAS if wanted is None else (wanted,):
            if roles.get(role) in there:
                return roles[role]
        if wanted is None and there:
            return there[0]
        known = [
            *(f"{role} ({serial})" for role, serial in roles.items()),
            *(s for s in there if s not in roles.values()),
        ]
        raise TrajectoryError(
            f"{folder} has no camera {wanted or 'at all'} in {RECORDINGS}; there are: {', '.join(known) or 'none'}"
        )

    def _load(self, number: int) -> Track:
        folder = self.names[number]
        if not os.path.isfile(os.path.join(folder, FILE)):
            raise TrajectoryError(f"{folder} has no {FILE}")
        camera = self._camera(folder)
        video = os.path.join(folder, RECORDINGS, f"{camera}.mp4")
        with Hdf5File(os.path.join(folder, FILE)) as file:
            for name in self.config.states or STATES if self.config.states != ["none"] else ():
                file.check(name, "states")
            states = file.numbers(self.config.states or STATES, STATES, "states")
            actions = None
            if self.rules.action != "state_difference":
                actions = file.numbers(self.config.actions or ACTIONS, ACTIONS, "actions")
            rows = len(file.get(STATES[0])) if states is None else len(states)
            for what, values in (("states", states), ("actions", actions)):
                if values is not None and values.shape != (rows, values.shape[-1]):
                    raise TrajectoryError(f"{file.path}: {what} {list(values.shape)} do not have {rows} rows")
            row_times = self._row_times(file, camera, rows)
            extrinsics = self._extrinsics(file, camera, rows)
        with open_video(video) as reader:
            frames = reader.num_frames
        times, row_times = _frame_times(video, row_times, frames, self.config.fps is None)
        if states is not None and self.config.camera_frame and extrinsics is not None:
            seen = seen_from(states[:, :6].astype(np.float64), extrinsics.astype(np.float64))
            states = np.concatenate((seen.astype(np.float32), states[:, 6:]), axis=1)
        return Track(
            name=folder, frame_times=times, states=states, extrinsics=extrinsics,
            state_times=None if states is None else row_times, actions=actions,
            action_edges=None if actions is None else closed(row_times),
        )  # fmt: skip

    def _row_times(self, file: ArrayFile, camera: str, rows: int) -> NDArray[Any]:
        """When the rows were recorded, in milliseconds."""
        if self.config.fps is not None:
            return np.arange(rows) * (1000 / self.config.fps)
        names = (f"cameras/{camera}_frame_received", f"cameras/{camera}_estimated_capture", "control/step_start")
        name = next((f"observation/timestamp/{n}" for n in names if f"observation/timestamp/{n}" in file.names), None)
        if name is None:
            raise TrajectoryError(
                f"{file.path} has no times (observation/timestamp/{names[0]} or {names[-1]}): set trajectory.fps"
            )
        times = file.get(name)
        if times.shape != (rows,):
            raise TrajectoryError(f"{file.path}: {name} has {len(times)} times for {rows} rows")
        return times

    def _extrinsics(self, file: ArrayFile, camera: str, rows: int) -> NDArray[np.float32] | None:
        name = f"observation/camera_extrinsics/{camera}_left"
        if name not in file.names:
            if self.config.camera_frame:
                file.check(name, "camera_frame")
            return None
        found = file.get(name).astype(np.float32)
        if found.shape != (rows, 6):
            raise TrajectoryError(f"{file.path}: {name} must be [{rows}, 6], not {list(found.shape)}")
        return found

    def open(self, number: int, options: ReadOptions) -> VideoReader:
        folder = self.names[number]
        video = os.path.join(folder, RECORDINGS, f"{self._camera(folder)}.mp4")
        return open_video(video, options.backend, options.short_side, options.interpolation)


def _roles(folder: str) -> dict[str, str]:
    """``left``, ``right`` and ``wrist`` -> number of the camera, as ``metadata_*.json`` says."""
    for path in sorted(Path(folder).glob("metadata*.json")):
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise TrajectoryError(f"{path} cannot be read as JSON: {error}") from None
        return {role: Path(found[f"{role}_mp4_path"]).stem for role in CAMERAS if found.get(f"{role}_mp4_path")}
    return {}


def _frame_times(video: str, rows_ms: NDArray[Any], frames: int, by_clock: bool) -> tuple[Times, Times]:
    """Seconds of the frames, and of the rows, since the first frame: of SERIAL_timestamps.json beside the video
    (``by_clock``), else frame k is that of row k (the last row may lack one)."""
    beside = Path(os.path.splitext(video)[0] + "_timestamps.json")
    frames_ms = rows_ms[:frames]
    if by_clock and beside.is_file():
        try:
            frames_ms = np.asarray(json.loads(beside.read_text()))
        except (OSError, ValueError) as error:
            raise TrajectoryError(f"{beside} cannot be read as JSON: {error}") from None
        if frames_ms.shape != (frames,) or frames_ms.dtype.kind not in "fi":
            raise TrajectoryError(f"{beside} must hold {frames} times, one for each frame of {video}")
    elif len(rows_ms) - frames not in (0, 1):
        raise TrajectoryError(f"{video} has {frames} frames, but {FILE} {len(rows_ms)} rows, and {beside} is not there")
    # the clock's beginning goes before the division: milliseconds since 1970 would leave few digits
    return (frames_ms - frames_ms[0]) / 1000.0, (rows_ms - frames_ms[0]) / 1000.0
