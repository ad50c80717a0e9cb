"""Tiny videos, made here with PyAV, whose frames tell their number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jepa.data.encoding import write_video


def numbered_frames(count: int, height: int = 40, width: int = 60, video: int = 0) -> np.ndarray:
    """uint8 ``[count, height, width, 3]``: red rises by 5 a frame, green tells the video, blue is a ramp."""
    frames = np.zeros((count, height, width, 3), dtype=np.uint8)
    frames[..., 0] = (np.arange(count) * 5)[:, None, None]
    frames[..., 1] = 20 * video
    frames[..., 2] = np.linspace(40, 200, width).astype(np.uint8)
    return frames


def frame_numbers(frames: np.ndarray) -> list[int]:
    """The numbers that ``numbered_frames`` wrote into the frames ``[T, H, W, 3]``, read back through the codec."""
    return [round(float(frame[..., 0].mean()) / 5) for frame in frames]


@pytest.fixture(name="frame_numbers")
def frame_numbers_fixture() -> Callable[[np.ndarray], list[int]]:
    return frame_numbers


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve videos of 20 to 42 frames at 10 fps in two class folders ``left`` and ``right``."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(12):
        folder = root / ("left" if number % 2 else "right")
        folder.mkdir(exist_ok=True)
        write_video(folder / f"{number:02d}.mp4", numbered_frames(20 + 2 * number, video=number), fps=10)
    return root


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "a.mp4", count: int = 30, fps: float = 10, **size: int) -> Path:
        write_video(tmp_path / name, numbered_frames(count, **size), fps)
        return tmp_path / name

    return make
