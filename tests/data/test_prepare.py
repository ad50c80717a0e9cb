"""Re-encoding: what comes out, labels kept, bad files left out, interrupted and failing runs."""

from __future__ import annotations

import csv
import os
import resource
import signal
from pathlib import Path

import av
import numpy as np
import pytest

from jepa.config import ConfigError
from jepa.data import prepare as module
from jepa.data.encoding import WriteError, write_video
from jepa.data.prepare import prepare
from jepa.data.sources import SourceConfig, open_source
from jepa.data.video import VideoError, open_video
from jepa.types import ClipConfig

CLIP = ClipConfig(num_frames=4, fps=5, crop_size=16)


def key_frames(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        return [i for i, p in enumerate(p for p in container.demux(video=0) if p.size) if p.is_keyframe]


def rows_of(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_written_videos_read_back_with_key_frames_where_they_should_be(tmp_path, frame_numbers):
    frames = np.zeros((20, 32, 64, 3), dtype=np.uint8)
    frames[..., 0] = (np.arange(20) * 5)[:, None, None]
    write_video(tmp_path / "a.mp4", frames, fps=12.5, gop=6)
    with open_video(tmp_path / "a.mp4") as reader:
        assert (reader.num_frames, reader.fps) == (20, 12.5)
        assert frame_numbers(reader.read(range(20))) == list(range(20))
    assert key_frames(tmp_path / "a.mp4") == [0, 6, 12, 18]
    assert os.listdir(tmp_path) == ["a.mp4"]
    with pytest.raises(ValueError, match="even height and width, not 31x64"):
        write_video(tmp_path / "b.mp4", frames[:, :31], fps=10)
    with pytest.raises(ValueError, match=r"uint8 \[T, H, W, 3\], not float64"):
        write_video(tmp_path / "b.mp4", frames / 2, fps=10)


def test_prepared_folder_is_small_slow_and_a_source_with_the_same_labels(video_folder, tmp_path, frame_numbers):
    result = prepare(video_folder, tmp_path / "out", short_side=20, fps=5, gop=4, workers=2, crf=4, progress=False)
    assert (result.written, result.kept, result.failed) == (12, 0, [])
    assert rows_of(result.manifest)[:2] == [["path", "label"], ["left/01.mp4", "left"]]
    source = open_source(SourceConfig(path=str(tmp_path / "out")))
    original = open_source(SourceConfig(path=str(video_folder)))
    assert (source.class_names, source.labels.tolist()) == (original.class_names, original.labels.tolist())
    with open_video(source.paths[0]) as reader:
        assert (reader.num_frames, reader.fps, reader.height, reader.width) == (11, 5.0, 20, 30)
        frames = reader.read(range(11))[..., 0].mean(axis=(1, 2))
    with open_video(original.paths[0], "pyav", short_side=20) as reader:
        expected = reader.read(range(0, 22, 2))[..., 0].mean(axis=(1, 2))  # every second frame, at its own time
    assert np.abs(frames - expected).max() < 2  # neighbours differ by 5
    assert key_frames(Path(source.paths[0])) == [0, 4, 8]
    one, other = source.load_clip(5, CLIP), original.load_clip(5, CLIP)
    assert frame_numbers(one.frames)[0] == pytest.approx(frame_numbers(other.frames)[0], abs=2)


def test_neither_enlarged_nor_sped_up(make_video, tmp_path):
    (tmp_path / "src").mkdir()
    make_video("src/a.mp4", count=9, fps=10)
    result = prepare(tmp_path / "src", tmp_path / "out", short_side=300, fps=30, workers=1, progress=False)
    with open_video(result.manifest.parent / "a.mp4") as reader:
        assert (reader.num_frames, reader.fps, reader.height, reader.width) == (9, 10.0, 40, 60)


def test_csv_columns_travel_and_names_that_would_meet_are_kept_apart(make_video, tmp_path):
    for name in ("a.mp4", "a.mov"):
        make_video(name)
    (tmp_path / "list.csv").write_text("word,path,start_s,end_s\nx,a.mp4,0.5,1\ny,a.mov,0,1\nz,a.mp4,1,2\n")
    result = prepare(tmp_path / "list.csv", tmp_path / "out", workers=1, progress=False)
    assert result.written == 2
    rows = rows_of(result.manifest)
    assert rows[1:] == [["x", "a.mp4", "0.5", "1"], ["y", "a.mov.mp4", "0", "1"], ["z", "a.mp4", "1", "2"]]
    source = open_source(SourceConfig(path=str(tmp_path / "out"), label_column="word"))
    assert source.class_names == ("x", "y", "z")
    assert source.spans.tolist() == [[0.5, 1], [0, 1], [1, 2]]


def test_bad_sources_are_left_out_and_returned(video_folder, make_video, tmp_path, caplog):
    folder = tmp_path / "src"
    folder.mkdir()
    good = make_video("src/good.mp4", height=64, width=64)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("hello")
    (folder / "cut.mp4").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    result = prepare(folder, tmp_path / "out", workers=2, progress=False)
    assert (result.written, [Path(f.path).stem for f in result.failed]) == (1, ["cut", "empty", "text"])
    assert [row[0] for row in rows_of(result.manifest)] == ["path", "good.mp4"]
    assert sorted(os.listdir(tmp_path / "out")) == ["good.mp4", "manifest.csv", "prepare.json"]
    for failure in result.failed:
        assert failure.path in failure.reason
        assert any(failure.path in record.message for record in caplog.records)


def test_a_killed_run_continues_and_other_settings_are_refused(video_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    pid = os.fork()  # a run that is killed after its fifth video
    if pid == 0:
        done = []
        original = module._run

        def run(job):
            if len(done) == 5:
                (job.target.parent / ".x.1.tmp.mp4").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(job)
            return original(job)

        module._run_all.__globals__["ProcessPoolExecutor"] = _InProcess
        module._run = run
        prepare(video_folder, out, short_side=20, workers=1, progress=False)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    finished = {p: p.stat().st_mtime_ns for p in out.rglob("[!.]*.mp4")}
    assert len(finished) == 5
    assert not (out / "manifest.csv").exists()
    with pytest.raises(ConfigError, match=r"other settings \(short_side: 20 -> 24\): use another folder"):
        prepare(video_folder, out, short_side=24, progress=False)
    result = prepare(video_folder, out, short_side=20, workers=1, progress=False)
    assert (result.written, result.kept) == (7, 5)
    assert all(p.stat().st_mtime_ns == t for p, t in finished.items())
    assert not list(out.rglob(".*"))
    assert len(rows_of(result.manifest)) == 13


class _InProcess:
    """The pool's interface, one job after the other in this process."""

    def __init__(self, max_workers: int) -> None:
        self.max_workers = max_workers

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, job):
        from concurrent.futures import Future

        future = Future()
        future.set_result(module._run(job))
        return future

    def shutdown(self, wait: bool, cancel_futures: bool) -> None:
        pass


def test_a_full_disk_stops_with_the_reason_and_leaves_no_half_file(make_video, tmp_path):
    """A limit on file size fails like a full disk: the write itself returns an error."""
    frames = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), dtype=np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    (tmp_path / "src").mkdir()
    write_video(tmp_path / "src" / "a.mp4", frames, fps=10)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(WriteError, match=r"b\.mp4 cannot be written: File too large"):
            write_video(tmp_path / "b.mp4", frames, fps=10)
        with pytest.raises(WriteError, match=r"a\.mp4 cannot be written: File too large\. Finished files are kept"):
            prepare(tmp_path / "src", tmp_path / "out", workers=1, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(os.listdir(tmp_path)) == ["out", "src"]
    assert os.listdir(tmp_path / "out") == ["prepare.json"]
    assert prepare(tmp_path / "src", tmp_path / "out", workers=1, progress=False).written == 1


def test_a_destination_that_cannot_be_written_is_named(video_folder, tmp_path):
    """Below a file nobody may write, not even root."""
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"file/out cannot be created: Not a directory"):
        prepare(video_folder, tmp_path / "file" / "out", progress=False)
    frames = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    with pytest.raises(VideoError, match=r"file/a\.mp4 cannot be written"):
        write_video(tmp_path / "file" / "a.mp4", frames, fps=10)
    with pytest.raises(WriteError, match="cannot be created"):
        prepare(video_folder, "/proc/out", progress=False)


def test_wrong_arguments_are_named(video_folder, tmp_path):
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(ConfigError, match="no video"):
        prepare(tmp_path / "hollow", tmp_path / "out")
    with pytest.raises(ConfigError, match="gop must be positive, not 0"):
        prepare(video_folder, tmp_path / "out", gop=0)
