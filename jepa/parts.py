"""The folder beside a result in which it grows: a plan, and part files that appear complete or not at all.

``plan.json`` guards the folder against another job. A part file (safetensors) holds rows, what ended with them, and how
far the video in progress is, so that a killed job goes on from its last part, also in the middle of a video.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from jepa.config import differences
from jepa.features.store import FeatureFileError, rows_per_block, writing
from jepa.feed import End
from jepa.files import atomic_write
from jepa.forward import Encoded
from jepa.job import Job, MergeState, Row, Rows

log = logging.getLogger("jepa")
PART_BYTES = 64 << 20
PART_SECONDS = 20.0  # of work that a kill can cost
_REMEDY = "finished parts are kept: make room and run the same command again"


class Position(NamedTuple):
    """``windows`` of video number ``video`` are encoded, and more is to come."""

    video: int
    windows: int
    merge: MergeState | None


@dataclass(slots=True)
class Progress:
    """What the parts hold: videos that are through, and where the others stopped."""

    ended: dict[int, End] = field(default_factory=dict)
    stopped: dict[int, Position] = field(default_factory=dict)
    clips: int = 0


class Parts:
    """The part files of ``out``, in the folder ``out.parts``."""

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out.with_name(f"{out.name}.parts")
        self._lock: IO[bytes] | None = None

    def claim(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Take the folder for this plan, or go on with one that was begun: the plan that holds, with its batch size.

        Raises ``ValueError`` when it belongs to another job or another process works in it.
        """
        path = self.folder / "plan.json"
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in [*self.folder.glob(".*.tmp"), *self.folder.glob("*.done")]:
                leftover.unlink()
            self._lock = (self.folder / "lock").open("wb")
            try:
                # not flock, which forked workers would hold on to for a while after this process was killed
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise FeatureFileError(f"another process is writing {self.out}: wait for it, or stop it") from None
            if not path.exists():
                with atomic_write(path) as file:
                    file.write(json.dumps(plan).encode())
                return plan
        try:
            begun: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError):
            raise FeatureFileError(f"{path} is damaged: delete {self.folder} to start again") from None
        fixed = {**json.loads(json.dumps(plan)), "batch_size": begun["batch_size"]}
        changed = differences(begun, fixed)
        if changed:
            raise FeatureFileError(
                f"{self.folder} holds the unfinished work of another job ({'; '.join(changed)}): repeat that job to "
                f"finish it, choose another output, or delete {self.folder}"
            )
        return begun

    def close(self) -> None:
        """Let another process work here."""
        if self._lock is not None:
            self._lock.close()

    def remove(self) -> None:
        """Delete the folder."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def files(self) -> list[Path]:
        """Every part, in the order of writing of each process."""
        return sorted(self.folder.glob("*.safetensors"))

    def write(
        self, name: str, rows: Sequence[Row], ends: Sequence[End], position: Position | None, clips: int,
        grids: Sequence[Sequence[int]], widths: Sequence[int],
    ) -> None:  # fmt: skip
        """One part. Raises ``FeatureFileError`` when the disk is full; then there is no such part."""
        arrays: dict[str, NDArray[Any]] = {
            "video": np.array([row.video for row in rows], np.int64),
            "number": np.array([row.number for row in rows], np.int64),
            "start_s": np.array([row.start_s for row in rows], np.float64),
            "end_s": np.array([row.end_s for row in rows], np.float64),
        }
        if rows:
            arrays["feature"] = torch.stack([row.feature for row in rows]).numpy()
        about: dict[str, Any] = {"ends": ends, "clips": clips, "grids": grids, "widths": widths, "position": None}
        if position is not None:
            about["position"] = [position.video, position.windows]
            if position.merge is not None:
                arrays["sums"] = position.merge.sums.numpy()
                about["merge"] = position.merge[:-1]  # all but the sums
        path = self.folder / f"{name}.safetensors"
        with writing(self.out, _REMEDY), atomic_write(path) as file:
            file.write(save(arrays, {"jepa": json.dumps(about)}))

    def progress(self) -> Progress:
        """What is done already."""
        found = Progress()
        for path in self.files():
            with open_part(path) as part:
                about = json.loads(part.metadata()["jepa"])
                found.clips += about["clips"]
                found.ended.update({end[0]: End(*end) for end in about["ends"]})
                if about["position"] is None:
                    continue
                video, windows = about["position"]
                if video in found.stopped and found.stopped[video].windows > windows:
                    continue
                merge = None
                if "merge" in about:
                    base_s, tubelet_s, first, counts = about["merge"]
                    sums = torch.from_numpy(part.get_tensor("sums").copy())
                    merge = MergeState(base_s, tubelet_s, first, counts, sums)
                found.stopped[video] = Position(video, windows, merge)
        for video in found.ended:
            found.stopped.pop(video, None)
        return found

    def table(self) -> Table:
        """All rows, in the order of the inputs."""
        parts: list[Path] = []
        columns: list[list[NDArray[Any]]] = []
        shape: tuple[int, ...] | None = None
        grids: set[tuple[int, ...]] = set()
        widths: list[int] = []
        for path in self.files():
            with open_part(path) as part:
                about = json.loads(part.metadata()["jepa"])
                grids |= {tuple(grid) for grid in about["grids"]}
                widths = widths or about["widths"]
                names = ("video", "number", "start_s", "end_s")
                if "feature" not in part.keys():  # noqa: SIM118 - not a dictionary
                    continue
                own = tuple(part.get_slice("feature").get_shape()[1:])
                if shape not in (None, own):
                    raise FeatureFileError(
                        f"{self.out}: rows of different shapes, {list(shape or ())} and {list(own)}, do not fit one "
                        "file: pool them (--pool mean), or use fit 'crop'"
                    )
                shape = own
                count = part.get_slice("feature").get_shape()[0]
                labels = [part.get_tensor(name) for name in names]
                columns.append([*labels, np.full(count, len(parts)), np.arange(count)])
                parts.append(path)
        if shape is None:
            return Table([], (), grids, widths, *[np.empty(0)] * 6)
        joined = [np.concatenate(column) for column in zip(*columns)]
        order = np.lexsort((joined[1], joined[0]))
        return Table(parts, shape, grids, widths, *[column[order] for column in joined])


class Table(NamedTuple):
    """K rows over part files: ``part`` and ``place`` (row of that part) are int64 ``[K]``."""

    parts: list[Path]
    shape: tuple[int, ...]
    grids: set[tuple[int, ...]]
    widths: list[int]
    video: NDArray[Any]
    number: NDArray[Any]
    start_s: NDArray[Any]
    end_s: NDArray[Any]
    part: NDArray[Any]
    place: NDArray[Any]

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """The features, block by block, from parts that are memory-mapped."""
        step = rows_per_block(self.shape)
        for first in range(0, len(self.video), step):
            part, place = self.part[first : first + step], self.place[first : first + step]
            block = np.empty((len(part), *self.shape), np.float32)
            for number in np.unique(part):
                here = np.flatnonzero(part == number)
                low = int(place[here].min())
                with open_part(self.parts[number]) as file:
                    block[here] = file.get_slice("feature")[low : int(place[here].max()) + 1][place[here] - low]
            yield block


def open_part(path: Path) -> Any:
    """A part, memory-mapped; use with ``with``. Raises ``FeatureFileError`` when something else damaged it."""
    try:
        return safe_open(os.fspath(path), "numpy")
    except (OSError, ValueError, RuntimeError) as error:
        raise FeatureFileError(f"part {path} cannot be read: {error}; delete {path.parent} to start again") from None


class PartWriter:
    """Collects rows and writes a part when there are enough of them, or enough time has passed."""

    def __init__(self, parts: Parts, name: str, job: Job, done: Progress) -> None:
        self.parts, self.name, self.job = parts, name, job
        states = {video: position.merge for video, position in done.stopped.items() if position.merge is not None}
        self.rows = Rows(job.options.merge, states)
        self.number = 0
        self.at: Position | None = None
        self.widths: tuple[int, ...] = ()
        self._clear()

    def _clear(self) -> None:
        self.pending: list[Row] = []
        self.ends: list[End] = []
        self.grids: set[tuple[int, ...]] = set()
        self.size, self.clips, self.since = 0, 0, time.monotonic()

    def add(self, encoded: Encoded, rows: list[Row]) -> None:
        """The rows that came with a batch; the end of a batch is where a job can go on."""
        for row in rows:
            first, shape = (self.pending or [row])[0].feature.shape, row.feature.shape
            if shape != first:
                raise ValueError(
                    f"inputs make tokens of different shapes, {list(first)} and {list(shape)}: pool them "
                    "(--pool mean), or use fit 'crop'"
                )
            self.pending.append(row)
            self.size += 4 * row.feature.numel()
        if encoded.grid is not None:
            self.grids.add(tuple(encoded.grid._replace(t=1) if self.job.merging else encoded.grid))
            self.clips += len(encoded.work.origins)
            self.widths = encoded.widths
            last = encoded.work.origins[-1]
            self.at = Position(last.video, last.window + 1, None)
        for end in encoded.work.ends:
            self.ends.append(end)
            if end.reason:
                log.warning("skipped, cannot be decoded: %s", end.reason)
            if self.at is not None and self.at.video == end.video:
                self.at = None
        if self.size >= PART_BYTES or time.monotonic() - self.since >= PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what there is. Raises ``FeatureFileError`` when the disk is full."""
        if self.clips or self.ends:
            at = None if self.at is None else self.at._replace(merge=self.rows.state())
            name = f"{self.name}-{self.number:06d}"
            self.parts.write(name, self.pending, self.ends, at, self.clips, sorted(self.grids), self.widths)
            self.number += 1
        self._clear()
