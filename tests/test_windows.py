"""Windows against a slow formulation: all samples in a list, every window sliced out of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa.data.encoding import write_video
from jepa.data.pyav_reader import PyavReader
from jepa.data.sources import ReadOptions, Source, SourceConfig
from jepa.types import ClipConfig
from jepa.windows import Merger, WindowRule, file_windows, stream_windows

VIDEOS = [(1, 10, 10), (3, 10, 10), (8, 10, 10), (41, 10, 5), (33, 7.5, 5), (9, 5, 10)]  # frames, fps, clip's fps


def numbered(count: int) -> np.ndarray:
    """Frames ``[count, 2, 2, 3]`` that hold their number."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 2, 2, 3)).copy()


def source_of(frames: np.ndarray, fps: float | None, span: tuple[float, float] | None = None) -> Source:
    spans = None if span is None else np.array([span])
    return Source(
        config=SourceConfig(path="array", fps=fps), options=ReadOptions(), paths=["array"], labels=np.array([-1]),
        arrays=frames[None], rows=np.array([0]), spans=spans,
    )  # fmt: skip


def brute_force(
    count: int, fps: float, clip: ClipConfig, tubelet: int, stride: int
) -> list[tuple[list[int], float, int, int]]:
    """(frame numbers, start second, first tubelet, tubelets with real frames) of every window."""
    step = fps / (clip.fps or fps)
    samples = []
    while math.floor(len(samples) * step + 1e-6) < count:
        samples.append(math.floor(len(samples) * step + 1e-6))
    starts, length = [0], clip.num_frames
    while starts[-1] + length < len(samples):
        starts.append(starts[-1] + stride)
    while starts[-1] - tubelet + length >= len(samples) and starts[-1] > 0:  # no further than it has to
        starts[-1] -= tubelet
    windows = []
    for start in starts:
        real = samples[start : start + length]
        held = real + [real[-1]] * (length - len(real))
        windows.append((held, start * step / fps, start // tubelet, math.ceil(len(real) / tubelet)))
    return windows


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("tubelet", [1, 2])
@pytest.mark.parametrize(("count", "fps", "rate"), VIDEOS)
def test_files_and_streams_give_the_windows_of_the_slow_formulation(
    count: int, fps: float, rate: float, tubelet: int, overlap: float
) -> None:
    clip, frames = ClipConfig(num_frames=4, fps=rate, crop_size=2), numbered(count)
    rule = WindowRule(num_frames=4, tubelet=tubelet, overlap=overlap)
    expected = brute_force(count, fps, clip, tubelet, max(tubelet, round(4 / tubelet * (1 - overlap)) * tubelet))
    from_file = list(file_windows(source_of(frames, fps), 0, clip, rule))
    from_stream = list(stream_windows(iter(frames), fps, clip, rule))
    for windows in (from_file, from_stream):
        found = [(w.frames[:, 0, 0, 0].tolist(), w.start_s, w.first, w.valid) for w in windows]
        assert [f[0] for f in found] == [e[0] for e in expected]
        assert [f[1] for f in found] == pytest.approx([e[1] for e in expected])
        assert [f[2:] for f in found] == [e[2:] for e in expected]
        assert all(w.end_s - w.start_s == pytest.approx(4 / rate) for w in windows)
    assert [w.distinct for w in from_file] == [w.distinct for w in from_stream] == [len(set(e[0])) for e in expected]
    for skip in range(len(expected) + 1):  # as after a kill
        again = list(file_windows(source_of(frames, fps), 0, clip, rule, skip))
        assert [w.frames[:, 0, 0, 0].tolist() for w in again] == [e[0] for e in expected][skip:]


def test_windows_stay_inside_a_span() -> None:
    clip, rule = ClipConfig(num_frames=4, fps=10, crop_size=2), WindowRule(num_frames=4, tubelet=2, overlap=0.5)
    windows = list(file_windows(source_of(numbered(40), 10, (1.0, 1.8)), 0, clip, rule))
    assert [w.frames[:, 0, 0, 0].tolist() for w in windows] == [[10, 11, 12, 13], [12, 13, 14, 15], [14, 15, 16, 17]]
    assert [w.start_s for w in windows] == pytest.approx([1.0, 1.2, 1.4])


def test_a_file_is_decoded_once_from_start_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.repeat(np.repeat(numbered(60), 16, axis=1), 16, axis=2)
    write_video(tmp_path / "a.mp4", frames, fps=10, gop=60)
    decoded, largest = [], []
    picture, read = PyavReader._picture, PyavReader.read
    monkeypatch.setattr(PyavReader, "_picture", lambda self, frame: decoded.append(frame.pts) or picture(self, frame))
    monkeypatch.setattr(PyavReader, "read", lambda self, ids: largest.append(len(ids)) or read(self, ids))
    seeks = []
    source = Source(
        config=SourceConfig(path="a"), options=ReadOptions(backend="pyav"), paths=[str(tmp_path / "a.mp4")],
        labels=np.array([-1]),
    )  # fmt: skip
    original = source.open

    def opened(item: int) -> PyavReader:
        reader = original(item)
        reader._container = Counted(reader._container, seeks)
        return reader

    monkeypatch.setattr(source, "open", opened)
    clip, rule = ClipConfig(num_frames=8, fps=10, crop_size=32), WindowRule(num_frames=8, tubelet=2, overlap=0.75)
    windows = list(file_windows(source, 0, clip, rule))
    assert len(windows) == 27
    assert len(decoded) == len(set(decoded)) == 60  # no frame twice, though windows share three quarters
    assert max(largest) == 8  # never more than a window at once
    assert len(seeks) == 1


class Counted:
    """A container that notes every seek."""

    def __init__(self, container: object, seeks: list[int]) -> None:
        self._container, self._seeks = container, seeks

    def seek(self, position: int, **options: object) -> None:
        self._seeks.append(position)
        self._container.seek(position, **options)

    def __getattr__(self, name: str) -> object:
        return getattr(self._container, name)


def test_a_stream_holds_one_window_of_frames_and_is_asked_for_no_more() -> None:
    alive = 0

    class Frame(np.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            alive -= self.base is None

    asked = most = 0

    def camera():
        nonlocal alive, asked, most
        while True:
            asked += 1
            alive += 1
            most = max(most, alive)
            yield np.zeros((2, 2, 3), np.uint8).view(Frame).copy()

    clip, rule = ClipConfig(num_frames=4, fps=5, crop_size=2), WindowRule(num_frames=4, tubelet=2, overlap=0.5)
    windows = stream_windows(camera(), 10, clip, rule)
    for _ in range(100):
        next(windows)
    assert asked == 2 * (99 * 2 + 3) + 1  # the frame that completes the 100th window, and not one more
    assert most <= 4 + 2


@pytest.mark.parametrize("merge", ["mean", "latest"])
@pytest.mark.parametrize("starts", [[0], [0, 1, 2, 3, 4], [0, 2, 4, 5], [0, 3, 6]])
def test_merged_rows_equal_the_slow_formulation(merge: str, starts: list[int]) -> None:
    torch.manual_seed(0)
    windows = [torch.randn(3, 5) for _ in starts]
    seen: dict[int, list[torch.Tensor]] = {}
    for start, window in zip(starts, windows, strict=True):
        for k, row in enumerate(window):
            seen.setdefault(start + k, []).append(row)
    merger, rows = Merger(merge), {}
    for step in [*zip(starts, windows, strict=True), None]:
        first, done = merger.finish() if step is None else merger.add(*step)
        if step is not None:
            assert all(first + k < step[0] for k in range(len(done)))
        rows.update({first + k: row for k, row in enumerate(done)})
    assert sorted(rows) == sorted(seen)
    for k, values in seen.items():
        torch.testing.assert_close(rows[k], torch.stack(values).mean(0) if merge == "mean" else values[-1])


def test_bad_windows_are_named() -> None:
    for overlap in (1.0, -0.1):
        with pytest.raises(ValueError, match="overlap must be a share"):
            WindowRule(num_frames=4, tubelet=2, overlap=overlap)
    with pytest.raises(ValueError, match="num_frames 5 must be a multiple of the tubelet of 2 frames"):
        WindowRule(num_frames=5, tubelet=2, overlap=0)
