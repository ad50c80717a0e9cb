"""Readers: the right frames, the same from every library, and one clear error for every bad file."""

from __future__ import annotations

import logging
import multiprocessing
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from jepa.data import video
from jepa.data.encoding import write_video
from jepa.data.video import VideoError, available_backends, one_line, open_video, resize_frames, scaled_size

BACKENDS = available_backends()
REAL = Path(__file__).parents[3] / "shared" / "data" / "decode"
FILES = sorted(p for p in REAL.rglob("*") if p.is_file() and "intel" not in p.parent.name)
needs_real = pytest.mark.skipif(not FILES, reason="the shared sample videos are not here")


@pytest.mark.parametrize("backend", BACKENDS)
def test_reads_the_frames_asked_for_in_the_order_asked(backend, make_video, frame_numbers):
    with open_video(make_video(count=40), backend) as reader:
        assert (reader.num_frames, reader.fps, reader.height, reader.width) == (40, 10.0, 40, 60)
        wanted = [39, 0, 17, 17, 5, 38]
        frames = reader.read(wanted)
    assert frames.dtype == np.uint8
    assert frames.shape == (6, 40, 60, 3)
    assert frame_numbers(frames) == wanted


def read_all(path: Path, backend: str, short_side: int) -> None:
    with open_video(path, backend, short_side=short_side) as reader:
        reader.read(range(reader.num_frames))


@pytest.mark.skipif(sys.platform != "linux", reason="loader workers are forked on Linux only")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_process_forked_after_reading_can_read(backend, make_video):
    path = make_video(count=20)
    read_all(path, backend, short_side=20)
    child = multiprocessing.get_context("fork").Process(target=read_all, args=(path, backend, 16))
    child.start()
    child.join(timeout=60)
    ended = child.exitcode
    child.kill()
    assert ended == 0, "still waiting" if ended is None else f"exit status {ended}"


@pytest.mark.skipif(sys.platform != "linux", reason="loader workers are forked on Linux only")
def test_a_process_forked_after_the_users_own_conversions_can_read(make_video):
    """PyAV keeps a scaler with threads for each thread that converted a frame; a forked process lacks those threads."""
    path = make_video(count=20)
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            frame.to_ndarray(format="rgb24", width=36, height=24)
    child = multiprocessing.get_context("fork").Process(target=read_all, args=(path, "pyav", 20))
    child.start()
    child.join(timeout=60)
    ended = child.exitcode
    child.kill()
    assert ended == 0, "still waiting" if ended is None else f"exit status {ended}"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_scaled_pictures_have_the_colours_of_pictures_scaled_afterwards(interpolation, tmp_path):
    """Saturated stripes, whose colour is stored at half the resolution: the two ways agree to a few grey levels."""
    columns = np.arange(96)
    stripe = np.stack([127 + 120 * np.sin(columns / 12 + k) for k in (0, 2, 4)], axis=-1).astype(np.uint8)
    frames = np.broadcast_to(stripe, (4, 64, 96, 3)).copy()
    write_video(tmp_path / "stripes.mp4", frames, fps=8.0, crf=1)
    with open_video(tmp_path / "stripes.mp4", "pyav") as reader:
        afterwards = resize_frames(reader.read([1]), 24, 36, interpolation).astype(int)
    with open_video(tmp_path / "stripes.mp4", "pyav", 24, interpolation) as reader:
        scaled = reader.read([1]).astype(int)
    assert abs(scaled - afterwards).max() <= 12  # 26 where colour is interpolated more coarsely than brightness
    assert abs(scaled - afterwards).mean() < 4  # 8.6


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_frame_alone_equals_the_frame_read_in_sequence(backend, make_video):
    path = make_video(count=25)
    with open_video(path, backend) as reader:
        all_frames = reader.read(range(25))
    for number in (24, 9, 8, 0, 16):
        with open_video(path, backend) as reader:
            assert np.array_equal(reader.read([number])[0], all_frames[number])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("short_side", [16, 20, 30])
def test_scales_while_decoding(backend, short_side, make_video):
    """16 gives a width (24) that decord's own scaling gets wrong."""
    path = make_video()
    with open_video(path, backend) as reader:
        native = reader.read([3, 20])
    with open_video(path, backend, short_side) as reader:
        small = reader.read([3, 20])
    width = round(short_side * 1.5)
    assert small.shape == (2, short_side, width, 3)
    reference = resize_frames(native, short_side, width)
    assert np.abs(small.astype(int) - reference).mean() < 3


def test_scaled_size_never_enlarges_and_keeps_the_shape():
    assert scaled_size(480, 640, 120) == (120, 160)
    assert scaled_size(640, 480, 120) == (160, 120)
    assert scaled_size(100, 50, 120) == (100, 50)
    assert scaled_size(100, 50, None) == (100, 50)


def test_outside_frame_numbers_are_an_index_error(make_video):
    with open_video(make_video(count=10)) as reader:
        with pytest.raises(IndexError, match="10 frames"):
            reader.read([10])
        with pytest.raises(ValueError, match="non-empty"):
            reader.read([])


def bad_files(folder: Path, good: Path) -> dict[str, Path]:
    """One of every kind of broken file."""
    data = good.read_bytes()
    names = ("missing", "empty", "truncated", "text", "no_header", "folder")
    files = {name: folder / f"{name}.mp4" for name in names}
    files["empty"].touch()
    files["truncated"].write_bytes(data[: len(data) // 2])
    files["text"].write_text("this is not a video\n" * 50)
    files["no_header"].write_bytes(bytes(2000) + data[2000:])
    files["folder"].mkdir()
    return files


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "text", "no_header", "folder"])
def test_bad_files_raise_one_line_naming_the_file(backend, kind, make_video, tmp_path):
    path = bad_files(tmp_path, make_video("good.mp4", height=64, width=64))[kind]
    with pytest.raises(VideoError, match=path.name) as caught, open_video(path, backend) as reader:
        reader.read(range(reader.num_frames))
    assert "\n" not in str(caught.value)


def test_an_unknown_or_missing_library_is_named(make_video, monkeypatch):
    path = make_video()
    with pytest.raises(VideoError, match=r"unknown video reader 'vlc'; known: auto, decord"):
        open_video(path, "vlc")
    monkeypatch.setattr(video, "available_backends", lambda: ("pyav",))
    with pytest.raises(VideoError, match="'decord' is not installed; available: pyav"):
        open_video(path, "decord")
    monkeypatch.setattr(video, "available_backends", lambda: ())
    with pytest.raises(VideoError, match="pip install"):
        open_video(path)


def test_auto_takes_the_first_library_and_names_it_once(make_video, caplog):
    video._name_once.cache_clear()
    path = make_video()
    with caplog.at_level(logging.INFO, "jepa"):
        for _ in range(3):
            with open_video(path) as reader:
                assert reader.backend == BACKENDS[0]
    line = f"video reader: {BACKENDS[0]} (available: {', '.join(BACKENDS)})"
    assert [record.message for record in caplog.records].count(line) == 1


@needs_real
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_real_files_read_alike_in_every_library_or_fail_cleanly(path):
    """Odd codecs, depths, sizes, rotations and edit lists; decord does not know GIF and AV1."""
    shots = {}
    for backend in BACKENDS:
        try:
            with open_video(path, backend) as reader:
                wanted = sorted({0, reader.num_frames // 3, reader.num_frames // 2})
                shots[backend] = (reader.num_frames, reader.fps, reader.read(wanted))
                assert shots[backend][2].shape == (len(wanted), reader.height, reader.width, 3)
        except VideoError as error:
            if str(path) not in str(error):
                pytest.fail(f"the message does not name the file: {error}")
    if path.name == "corrupted.mp4":
        for backend in (*BACKENDS, "auto"):
            with pytest.raises(VideoError, match="corrupted"), open_video(path, backend) as reader:
                reader.read(range(reader.num_frames))
        return
    assert "pyav" in shots  # everything but the corrupted file can be read
    if len(shots) > 1 and path.name != "discard_first_keyframe.mp4":  # decord shows frames that its edit list hides
        (count, fps, frames), (other_count, other_fps, other) = list(shots.values())[:2]
        assert count == other_count
        assert count == 1 or fps == pytest.approx(other_fps, rel=1e-3)
        assert np.abs(frames.astype(int) - other).mean(axis=(1, 2, 3)).max() < 6


@needs_real
def test_auto_reads_what_decord_cannot_open():
    with open_video(REAL / "torchcodec" / "animated.gif") as reader:
        assert reader.backend != "decord"
        assert reader.read([0, 3]).shape == (2, 48, 64, 3)
    with open_video(REAL / "mmaction2" / "test.avi") as reader:  # decord returns a wrong last frame for this one
        last = reader.read([10, reader.num_frames - 1])[1]
    with open_video(REAL / "mmaction2" / "test.avi", "pyav") as reader:
        assert np.array_equal(last, reader.read(range(reader.num_frames))[-1])


def test_one_line_of_an_error_says_the_same_at_any_time() -> None:
    for clock in ("[23:21:11]", "[07:00:59]"):
        text = f"{clock} /src/video_reader.cc:486: Error: av_read_frame failed with 1094995529\n\nStack trace: ..."
        assert one_line(text) == "Error: av_read_frame failed with 1094995529"
    checked = "[01:02:03] /src/a.cc:1: Check failed: st_vid_idx >= 0 (-1 vs. 0) ERROR cannot find video stream"
    assert one_line(checked) == "st_vid_idx >= 0 (-1 vs. 0) ERROR cannot find video stream"
