"""Small recorded episodes of every layout, made on the spot.

Everything can be told from its time: a frame's red is 5 times its number, the first action of a row is its number, the
first state its time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jepa.data.encoding import write_video


def numbered(count: int, height: int = 32, width: int = 48, tint: int = 0) -> np.ndarray:
    """uint8 ``[count, height, width, 3]``: red rises by 5 a frame, green is ``tint``."""
    frames = np.zeros((count, height, width, 3), dtype=np.uint8)
    frames[..., 0] = (np.arange(count) * 5 % 256)[:, None, None]
    frames[..., 1] = tint
    frames[..., 2] = np.linspace(40, 200, width).astype(np.uint8)
    return frames


def numbers_of(frames: np.ndarray) -> list[int]:
    """What ``numbered`` wrote into ``[T, H, W, 3]``, through a codec too."""
    return [round(float(frame[..., 0].mean()) / 5) for frame in frames]


def tint_of(frames: np.ndarray) -> int:
    return round(float(frames[..., 1].mean()) / 10) * 10


def steps(count: int, width: int, seed: int = 0) -> np.ndarray:
    """float32 ``[count, width]``: the number of the row, then noise."""
    rows = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    rows[:, 0] = np.arange(count)
    return rows


def write_npz(folder: Path, episodes: int = 3, length: int = 20, fps: float | None = 10.0, **changes: Any) -> Path:
    """``episode_00000.npz`` ...: frames, actions ``[T-1, 2]``, states ``[T, 3]``, and trajectories.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(episodes):
        count = length + number
        arrays = {
            "frames": numbered(count, tint=10 * number), "actions": steps(count - 1, 2, number),
            "states": steps(count, 3, 50 + number), **changes,
        }  # fmt: skip
        np.savez(folder / f"episode_{number:05d}.npz", **{k: v for k, v in arrays.items() if v is not None})
    if fps is not None:
        (folder / "trajectories.json").write_text(json.dumps({"fps": fps}))
    return folder


def _info(version: str, data: str, video: str, fps: float, width: int) -> dict[str, Any]:
    camera = {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channels"]}
    return {
        "codebase_version": version, "fps": fps, "chunks_size": 1000, "data_path": data, "video_path": video,
        "features": {
            "observation.images.front": camera, "observation.images.wrist": camera,
            "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["x", "y"]}},
            "action": {"dtype": "float32", "shape": [width], "names": None},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        },
    }  # fmt: skip


def _rows(number: int, length: int, fps: float, first: int, width: int) -> dict[str, Any]:
    time = (np.arange(length) / fps).astype(np.float32)
    states = np.stack((time, steps(length, 2, number)[:, 1]), axis=1)
    return {
        "observation.state": pa.FixedSizeListArray.from_arrays(pa.array(states.reshape(-1)), 2),
        "action": pa.array(steps(length, width, number).tolist(), pa.list_(pa.float32())),
        "timestamp": time, "frame_index": np.arange(length), "episode_index": np.full(length, number),
        "index": first + np.arange(length), "task_index": np.zeros(length, dtype=np.int64),
    }  # fmt: skip


CAMERAS = ("observation.images.front", "observation.images.wrist")


def write_lerobot2(root: Path, lengths: tuple[int, ...] = (12, 15), fps: float = 10.0, width: int = 3) -> Path:
    """Version 2.1: tints 10 * episode (front) and 100 + that (wrist)."""
    data = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    video = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(_info("v2.1", data, video, fps, width)))
    lines, first = [], 0
    for number, length in enumerate(lengths):
        table = root / data.format(episode_chunk=0, episode_index=number)
        table.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(_rows(number, length, fps, first, width)), table)
        for camera, base in zip(CAMERAS, (0, 100), strict=True):
            file = root / video.format(episode_chunk=0, video_key=camera, episode_index=number)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_video(file, numbered(length, tint=base + 10 * number), fps)
        lines.append(json.dumps({"episode_index": number, "tasks": ["push"], "length": length}))
        first += length
    (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    return root


def write_lerobot3(root: Path, lengths: tuple[int, ...] = (12, 15, 9), fps: float = 10.0, width: int = 3) -> Path:
    """Version 3.0: the first two episodes share a file of rows and videos, the third has its own; row groups of 5."""
    data = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    video = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(_info("v3.0", data, video, fps, width)))
    meta: list[dict[str, Any]] = []
    for file, members in enumerate(((0, 1), tuple(range(2, len(lengths))))):
        tables, since = [], 0
        for number in members:
            first, length = sum(lengths[:number]), lengths[number]
            tables.append(pa.table(_rows(number, length, fps, first, width)))
            meta.append({
                "episode_index": number, "length": length, "data/chunk_index": 0, "data/file_index": file,
                "dataset_from_index": first, "dataset_to_index": first + length, "tasks": ["push"],
            })  # fmt: skip
            for camera in CAMERAS:
                meta[-1] |= {
                    f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": file,
                    f"videos/{camera}/from_timestamp": since / fps,
                    f"videos/{camera}/to_timestamp": (since + length) / fps,
                }  # fmt: skip
            since += length
        table = root / data.format(chunk_index=0, file_index=file)
        table.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(tables), table, row_group_size=5)
        for camera, base in zip(CAMERAS, (0, 100), strict=True):
            path = root / video.format(video_key=camera, chunk_index=0, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            parts = [numbered(lengths[n], tint=base + 10 * n) for n in members]
            write_video(path, np.concatenate(parts), fps)
    pq.write_table(pa.Table.from_pylist(meta), root / "meta/episodes/chunk-000/file-000.parquet")
    return root


def write_droid(
    folder: Path, frames: int = 30, rows: int | None = None, clock_hz: float = 15.0, playing_fps: float = 60.0,
    serials: tuple[str, ...] = ("11", "22", "33"),
) -> Path:  # fmt: skip
    """One episode: an arm that turns about z from 3 to beyond pi. The MP4s are to be played four times too fast."""
    rows = frames if rows is None else rows
    (folder / "recordings/MP4").mkdir(parents=True)
    for number, serial in enumerate(serials):
        write_video(folder / f"recordings/MP4/{serial}.mp4", numbered(frames, tint=60 * number), playing_fps)
    milliseconds = 1_700_000_000_000 + np.round(np.arange(rows) * 1000 / clock_hz).astype(np.int64)
    pose = np.random.default_rng(0).normal(size=(rows, 6)) * 0.1
    pose[:, 5] = (3 + 0.02 * np.arange(rows) + np.pi) % (2 * np.pi) - np.pi
    with h5py.File(folder / "trajectory.h5", "w") as file:
        file["observation/robot_state/cartesian_position"] = pose
        file["observation/robot_state/gripper_position"] = np.linspace(0, 1, rows)
        file["action/cartesian_velocity"] = steps(rows, 6)
        file["action/gripper_velocity"] = np.zeros(rows)
        for serial in serials:
            file[f"observation/timestamp/cameras/{serial}_frame_received"] = milliseconds
            file[f"observation/camera_extrinsics/{serial}_left"] = np.tile(
                [0.1, 0.2, 0.3, 0.4, -0.5, 0.6], (rows, 1)
            )  # fmt: skip
    roles = zip(("wrist", "left", "right"), serials, strict=False)
    meta = {f"{role}_mp4_path": f"success/x/recordings/MP4/{serial}.mp4" for role, serial in roles}
    (folder / "metadata_x.json").write_text(json.dumps({"uuid": "x", **meta}))
    return folder
