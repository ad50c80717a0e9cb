"""Videos that are folders of numbered pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa.data.image import FolderReader
from jepa.data.sources import SourceConfig, open_source
from jepa.data.video import VideoError
from jepa.types import ClipConfig


def write_frames(folder: Path, values: list[int], name: str = "{}.png") -> Path:
    """Pictures of 8 x 12 pixels numbered from 1, all grey, frame k of value ``values[k]``."""
    folder.mkdir(parents=True)
    for number, value in enumerate(values, 1):
        Image.new("RGB", (12, 8), (value, value, value)).save(folder / name.format(number))
    return folder


def test_frames_follow_their_numbers_and_are_read_when_asked(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "v", list(range(0, 240, 20)))  # 1.png ... 12.png: 10 comes after 9
    (folder / "notes.txt").write_text("no picture")
    reader = FolderReader(folder, fps=6.0)
    assert (reader.num_frames, reader.rate, reader.size) == (12, 6.0, (8, 12))
    frames = reader.read([11, 0, 9, 0])
    assert frames.shape == (4, 8, 12, 3)
    assert frames[:, 0, 0, 0].tolist() == [220, 0, 180, 0]
    assert FolderReader(folder, short_side=4).read([3]).shape == (1, 4, 6, 3)
    assert FolderReader(folder).rate is None


def test_a_csv_may_name_folders_at_a_rate(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_frames(tmp_path / name, list(range(0, 240, 20)), "{:05d}.jpg")
    (tmp_path / "list.csv").write_text("path,label\na,x\nb,y\n")
    source = open_source(SourceConfig(path=str(tmp_path / "list.csv"), fps=12.0))
    clip = source.load_clip(1, ClipConfig(num_frames=3, fps=6.0, crop_size=8))  # every second of 12: the middle 5
    assert np.abs(clip.frames[:, 0, 0, 0].astype(int) - [80, 120, 160]).max() <= 2
    assert (clip.start_s, clip.end_s) == (4 / 12, 10 / 12)


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="empty is a folder without pictures"):
        FolderReader(tmp_path / "empty")
    with pytest.raises(VideoError, match="nothing cannot be opened: No such file"):
        FolderReader(tmp_path / "nothing")
    folder = write_frames(tmp_path / "v", [0, 1, 2])
    Image.new("RGB", (12, 10)).save(folder / "4.png")
    with pytest.raises(VideoError, match=r"4.png has \(10, 12\) pixels, the first frame has \(8, 12\)"):
        FolderReader(folder).read([0, 3])
    (folder / "4.png").write_bytes(b"broken")
    with pytest.raises(VideoError, match=r"4\.png cannot be read as an image"):
        FolderReader(folder).read([3])
