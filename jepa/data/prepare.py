"""Re-encoding a folder of videos for fast random access (``jepa data prepare``)."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple, cast

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray
from tqdm import tqdm

from jepa.config import ConfigError, differences
from jepa.data.batches import Failure
from jepa.data.encoding import WriteError, encode_video, write_video
from jepa.data.listing import MANIFEST, VIDEO_SUFFIXES, list_folder, read_rows
from jepa.data.pyav_reader import rgb_picture
from jepa.data.video import VideoError, one_line, scaled_size

__all__ = ["PrepareResult", "WriteError", "prepare", "write_video"]
log = logging.getLogger("jepa")
_SETTINGS = "prepare.json"


def _resampled(path: Path, short_side: int, fps: float | None) -> tuple[float, Iterator[NDArray[np.uint8]]]:
    """The rate that ``path`` gets (never raised) and its frames at that rate, even-sized; one is in memory at a time.

    Every output instant takes the frame that is on screen then. Raises ``VideoError`` naming ``path``.
    """
    try:
        container = av.open(str(path))
    except (FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path} cannot be opened as a video: {one_line(error)}") from None
    stream = cast("av.VideoStream | None", container.streams.best("video"))
    if stream is None:
        container.close()
        raise VideoError(f"{path} holds no video stream")
    stream.thread_type = "NONE"
    rate = float(stream.average_rate or stream.guessed_rate or fps or 1.0)
    fps = min(fps or rate, rate)
    expected = stream.frames

    def frames() -> Iterator[NDArray[np.uint8]]:
        packets, count, emitted, first, seconds = 0, 0, 0, 0.0, 0.0
        shown: av.VideoFrame | None = None  # turned into a picture only if an output instant finds it on screen
        try:
            with container:
                for packet in container.demux(stream):
                    packets += packet.size > 0
                    for frame in packet.decode():
                        seconds = count / rate if frame.time is None else frame.time
                        first = seconds if count == 0 else first
                        while shown is not None and emitted / fps < seconds - first - 1e-4:
                            yield _upright(shown, short_side)
                            emitted += 1
                        shown, count = frame, count + 1
        except (FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{path} cannot be decoded: {one_line(error)}") from None
        if shown is None or packets < 0.9 * expected:  # a few fewer is a rounded header
            raise VideoError(f"{path} is cut off: {packets} of {expected} frames are there")
        while emitted / fps < seconds - first + 1 / rate - 1e-4:
            yield _upright(shown, short_side)
            emitted += 1

    return fps, frames()


def _upright(frame: av.VideoFrame, short_side: int) -> NDArray[np.uint8]:
    turns = round(frame.rotation / 90) % 4
    height, width = (2 * max(1, round(side / 2)) for side in scaled_size(frame.height, frame.width, short_side))
    return rgb_picture(frame, height, width, turns)


class PrepareResult(NamedTuple):
    """``written`` files made now, ``kept`` ones that were there already, ``failed`` sources that cannot be decoded."""

    manifest: Path
    written: int
    kept: int
    failed: list[Failure]


class _Job(NamedTuple):
    source: Path
    target: Path
    short_side: int
    fps: float | None
    gop: int
    crf: int


def _run(job: _Job) -> tuple[_Job, str, bool]:
    """In a worker process: the job, what went wrong ('' for nothing), and whether that stops the run."""
    try:
        if job.source.stat().st_size == 0:
            return job, f"{job.source} is empty (0 bytes)", False
    except OSError as error:
        return job, f"{job.source} cannot be opened: {error.strerror}", False
    try:
        fps, frames = _resampled(job.source, job.short_side, job.fps)
        encode_video(job.target, frames, fps, job.gop, job.crf)
    except WriteError as error:
        return job, str(error), True
    except VideoError as error:
        return job, str(error), False
    return job, "", False


def prepare(
    src: str | Path, dst: str | Path, short_side: int = 128, fps: float | None = 15.0, gop: int = 8,
    workers: int | None = None, crf: int = 23, progress: bool = True,
) -> PrepareResult:  # fmt: skip
    """Re-encode a folder of videos, or the videos of a CSV, for training.

    They become small, at ``fps`` frames per second (None: as they are), with a key frame every ``gop`` frames; none is
    enlarged or sped up. ``dst/manifest.csv`` (the CSV's columns, or path and class subfolder) makes ``dst`` a data
    source.

    Finished files are kept, so an interrupted run continues where it was. ``workers`` processes (None: one per CPU).
    Sources that cannot be decoded are logged, left out of the manifest and returned. Raises ``ConfigError`` for a
    source without videos or a ``dst`` made with other settings, ``WriteError`` when ``dst`` cannot be written.
    """
    settings: dict[str, float | None] = {"short_side": short_side, "fps": fps, "gop": gop, "crf": crf}
    for name, value in settings.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{name} must be positive, not {value}")
    src, dst = Path(src), Path(dst)
    columns, rows, root = _list_source(src)
    targets = _target_names([row[columns.index("path")] for row in rows], root)
    _claim(dst, settings)
    jobs, kept = [], 0
    for source, name in targets.items():
        target = dst / name
        if target.exists() and (not source.exists() or target.stat().st_mtime >= source.stat().st_mtime):
            kept += 1
            continue
        _make_folder(target.parent)
        jobs.append(_Job(source, target, short_side, fps, gop, crf))
    failed = _run_all(jobs, workers or os.cpu_count() or 1, progress, kept)
    bad = {failure.path for failure in failed}
    at = columns.index("path")
    lines = [
        [*row[:at], targets[root / row[at]], *row[at + 1 :]] for row in rows if str(root / row[at]) not in bad
    ]  # fmt: skip
    _write_csv(dst / MANIFEST, [columns, *lines])
    return PrepareResult(dst / MANIFEST, len(jobs) - len(failed), kept, failed)


def _list_source(src: Path) -> tuple[list[str], list[list[str]], Path]:
    """Columns and rows (one of them ``path``, relative to the returned folder) of a folder or a CSV."""
    if not src.exists():
        raise ConfigError(f"{src} does not exist")
    if src.is_file():
        if src.suffix.lower() not in (".csv", ".txt", ".tsv"):
            raise ConfigError(f"{src} is neither a folder of videos nor a CSV that lists some")
        columns, rows = read_rows(src)
        return columns, [[cell.strip() for cell in row] for row in rows], src.parent
    paths, names = list_folder(src, VIDEO_SUFFIXES)
    return ["path", "label"], [[os.path.relpath(p, src), name] for p, name in zip(paths, names)], src


def _target_names(paths: Iterable[str], root: Path) -> dict[Path, str]:
    """Source file -> name below the destination: the same with .mp4, or the full name and .mp4 where two would meet."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in dict.fromkeys(paths):
        inside = Path(os.path.relpath(root / path, root))
        if ".." in inside.parts:  # a CSV may point anywhere
            inside = Path(*(part for part in inside.parts if part != ".."))
        name = inside.with_suffix(".mp4").as_posix()
        if name in taken:
            name = f"{inside.as_posix()}.mp4"
        taken.add(name)
        names[root / path] = name
    return names


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{folder} cannot be created: {error.strerror}") from None


def _claim(dst: Path, settings: dict[str, float | None]) -> None:
    """Make ``dst``, clear what a killed run left half-written, and refuse a folder made with other settings."""
    _make_folder(dst)
    record = dst / _SETTINGS
    try:
        if record.exists():
            changed = differences(json.loads(record.read_text()), settings)
            if changed:
                raise ConfigError(f"{dst} was prepared with other settings ({'; '.join(changed)}): use another folder")
        else:
            record.write_text(json.dumps(settings))
        for leftover in dst.rglob(".*.tmp.mp4"):
            leftover.unlink()
    except OSError as error:
        raise WriteError(f"{dst} cannot be written: {error.strerror}") from None
    except json.JSONDecodeError:
        raise ConfigError(f"{record} is damaged: delete it and {dst}'s videos, then run again") from None


def _run_all(jobs: list[_Job], workers: int, progress: bool, kept: int) -> list[Failure]:
    failed: list[Failure] = []
    with (
        ProcessPoolExecutor(max_workers=max(1, min(workers, len(jobs)))) as pool,
        tqdm(total=kept + len(jobs), initial=kept, desc="prepare", unit="video", disable=not progress) as bar,
    ):
        pending = [pool.submit(_run, job) for job in jobs]
        try:
            for future in as_completed(pending):
                job, reason, stop = future.result()
                if stop:
                    raise WriteError(f"{reason}. Finished files are kept: mend this and run the same command again")
                if reason:
                    failed.append(Failure(str(job.source), reason))
                    log.warning("left out: %s", reason)
                bar.update()
        except BrokenProcessPool:
            raise VideoError("a worker process died (out of memory?): run this again with fewer workers") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return sorted(failed)


def _write_csv(path: Path, rows: Iterable[Iterable[str]]) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "w", newline="") as file:
            csv.writer(file).writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror}") from None
