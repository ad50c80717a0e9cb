"""Tiny made-up copies of published layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evals.datasets import DatasetConfig, DatasetSplit, SplitConfig, open_dataset
from jepa.data.encoding import write_video


class Layout:
    """Writes files below ``root``: videos whose red rises by 10 a frame, pictures, text, JSON."""

    def __init__(self, root: Path) -> None:
        self.root = root
        red = (10 * np.arange(20)).astype(np.uint8)
        frames = np.zeros((20, 16, 16, 3), dtype=np.uint8)
        frames[..., 0] = red[:, None, None]
        write_video(root / "model.mp4", frames, fps=10)
        self._video = (root / "model.mp4").read_bytes()
        (root / "model.mp4").unlink()

    def _path(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def video(self, *names: str) -> None:
        """Files of 20 frames at 10 per second."""
        for name in names:
            self._path(name).write_bytes(self._video)

    def picture(self, name: str, value: int = 0) -> None:
        Image.new("RGB", (16, 16), (value, value, value)).save(self._path(name))

    def text(self, name: str, *lines: str) -> None:
        self._path(name).write_text("\n".join(lines) + "\n")

    def json(self, name: str, value: Any) -> None:
        self._path(name).write_text(json.dumps(value))

    def relative(self, split: DatasetSplit) -> list[str]:
        return [str(Path(path).relative_to(self.root)) for path in split.source.paths]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


@pytest.fixture
def opened(layout: Layout) -> Callable[..., DatasetSplit]:
    """``opened(name, split, columns=(), **DatasetConfig)`` on the layout."""

    def open_it(name: str, split: str, columns: tuple[str, ...] = (), **settings: Any) -> DatasetSplit:
        asked = DatasetConfig(name=name, root=str(layout.root), **settings)
        return open_dataset(SplitConfig(dataset=asked, split=split), columns=columns)

    return open_it
