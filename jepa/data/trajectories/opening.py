"""Which layout a folder or file of episodes has."""

from __future__ import annotations

import os
from pathlib import Path

from jepa.config import ConfigError
from jepa.data.trajectories import droid, lerobot
from jepa.data.trajectories.arrays import HDF5_SUFFIXES
from jepa.data.trajectories.base import Trajectories, TrajectoryError
from jepa.data.trajectories.config import TrajectoryConfig
from jepa.data.trajectories.episodes import SUFFIXES, EpisodeFiles, ManyEpisodes, holds_many

__all__ = ["Trajectories", "open_trajectories"]


def open_trajectories(path: str, config: TrajectoryConfig | None = None) -> Trajectories:
    """The episodes at ``path``. Raises ``ConfigError`` naming it when there are none that could be read."""
    config = config or TrajectoryConfig()
    if not os.path.exists(path):
        raise ConfigError(f"data source {path} does not exist")
    layout = config.layout if config.layout != "auto" else _recognise(path)
    try:
        if layout == "lerobot":
            return lerobot.open_lerobot(path, config)
        if layout == "droid":
            return droid.Droid(path, config)
        if config.camera_frame:
            raise ConfigError(f"data source {path} has no extrinsics: camera_frame is for layout droid, not {layout}")
        if os.path.isdir(path) and not _has_arrays(path):
            raise ConfigError(f"data source {path} holds no file of arrays ({', '.join(sorted(SUFFIXES))})")
        if path.lower().endswith(".npz") and holds_many(path, config):
            return ManyEpisodes(path, config)
        return EpisodeFiles(path, config)
    except TrajectoryError as error:  # of a file that describes all episodes
        raise ConfigError(f"data source {path}: {error}") from None


def _recognise(path: str) -> str:
    if os.path.isfile(path):
        if path.lower().endswith((".npz", *HDF5_SUFFIXES)) and os.path.basename(path) != droid.FILE:
            return "episodes"
        if path.lower().endswith((".csv", ".txt")):
            return "droid"
    elif os.path.isfile(os.path.join(path, "meta", "info.json")):
        return "lerobot"
    elif next(droid.find_folders(path), None) is not None:
        return "droid"
    elif _has_arrays(path):
        return "episodes"
    raise ConfigError(
        f"data source {path} holds no episodes: looked for files of arrays ({', '.join(sorted(SUFFIXES))}), "
        f"meta/info.json (LeRobot) and {droid.FILE} (DROID)"
    )


def _has_arrays(path: str) -> bool:
    return any(
        Path(name).suffix.lower() in SUFFIXES for _, _, files in os.walk(path, followlinks=True) for name in files
    )
