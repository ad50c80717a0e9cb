"""What a run tells: a progress bar, log lines, JSON lines of metrics and TensorBoard scalars and images (rank 0 only).

Files in the run directory: ``log.txt`` (what was printed), ``metrics.jsonl`` (one object per logged step, its first
key ``step``), ``tensorboard/``. Messages of every module go through the logger "jepa".
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger("jepa")
Progress = Literal["auto", "bar", "lines", "off"]


class _Console(logging.Handler):
    """Prints above the progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class RunLog:
    """The log of one run directory; on ranks other than 0 every method does nothing.

    ``start_step`` is the step that the run continues from: lines of ``metrics.jsonl`` beyond it were written by a run
    that was lost before its next checkpoint, and are dropped because those steps are computed again.
    ``progress``: "bar", "lines" (one log line per logged step), "off", or "auto" (a bar on a terminal, else lines).
    Raises ``ValueError`` naming the directory when it cannot be written.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        total_steps: int,
        start_step: int = 0,
        is_main: bool = True,
        progress: Progress = "auto",
        tensorboard: bool = True,
    ) -> None:
        self.run_dir, self.total_steps, self.is_main = Path(run_dir), total_steps, is_main
        self._handlers: list[logging.Handler] = []
        self._writer: SummaryWriter | None = None
        self._bar: tqdm[Any] | None = None
        logger.setLevel(logging.INFO)
        logger.propagate = False
        if not is_main:
            logger.setLevel(logging.ERROR)
            return
        self.mode = progress if progress != "auto" else ("bar" if sys.stderr.isatty() else "lines")
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            metrics = self.run_dir / "metrics.jsonl"
            if start_step:
                _drop_after(metrics, start_step)
            else:
                metrics.unlink(missing_ok=True)  # of a start that was lost before its first checkpoint
            self._metrics = metrics.open("a")
            self._add_handlers()
        except OSError as error:
            reason = error.strerror or str(error)
            message = f"run directory {self.run_dir} cannot be written: {reason}; choose another run_dir"
            raise ValueError(message) from None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # seconds of import time, so only where it is used

            self._writer = SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=start_step + 1)
        if self.mode == "bar":
            self._bar = tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True, smoothing=0.05)

    def _add_handlers(self) -> None:
        to_file = logging.FileHandler(self.run_dir / "log.txt")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        console = _Console(level=logging.WARNING if self.mode == "off" else logging.INFO)
        console.setFormatter(logging.Formatter("%(message)s"))
        self._handlers = [to_file, console]
        for handler in self._handlers:
            logger.addHandler(handler)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Turn a full disk into a sentence. Raises ``ValueError`` naming the file."""
        try:
            yield
        except OSError as error:
            raise ValueError(
                f"{self.run_dir / name} cannot be written: {error.strerror or error}; the last checkpoint is intact: "
                "make room and run the same command again"
            ) from None

    def step(self, step: int) -> None:
        """Move the bar to ``step``."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def metrics(self, step: int, values: Mapping[str, float], *, show: str = "") -> None:
        """Record named numbers of a step; ``show`` is the short text for the bar or the log line."""
        if not self.is_main:
            return
        record = {"step": step, **{name: _plain(value) for name, value in values.items()}}
        with self._writing("metrics.jsonl"):
            self._metrics.write(json.dumps(record) + "\n")
            self._metrics.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        if show and self._bar is not None:
            self._bar.set_postfix_str(show, refresh=False)
        elif show and self.mode == "lines":
            logger.info("step %d/%d  %s", step, self.total_steps, show)

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Record named uint8 pictures ``[H, W, 3]``: TensorBoard, and PNG files in ``pictures/`` (latest only)."""
        if not self.is_main or not pictures:
            return
        from PIL import Image

        folder = self.run_dir / "pictures"
        for name, picture in pictures.items():
            if self._writer is not None:
                self._writer.add_image(name, picture, step, dataformats="HWC")
            with self._writing("pictures"):
                folder.mkdir(exist_ok=True)
                Image.fromarray(picture).save(folder / f"{name.replace('/', '_')}.png")

    def close(self) -> None:
        """Finish the bar and close every file."""
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()
        if self.is_main:
            with contextlib.suppress(OSError):  # on a full disk: metrics() has reported it already
                self._metrics.close()
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()
        self._handlers = []
        logger.propagate = True


class StepWindow:
    """The metrics of the steps since the last log, kept as device tensors and read in one transfer."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._rows: list[Tensor] = []
        self._first = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Scalars of one step; the names must be those of the window's first step."""
        if not self._rows:
            self.names, self._first = list(values), step
        assert list(values) == self.names, f"step {step} has other terms: {list(values)}"
        self._rows.append(torch.stack([value.detach().float() for value in values.values()]))

    def read(self, reduce_mean: Callable[[Tensor], Tensor]) -> tuple[int, Tensor]:
        """(first step, values ``[steps, names]`` on the CPU), averaged over processes; empties the window."""
        rows = reduce_mean(torch.stack(self._rows)).cpu()
        self._rows = []
        return self._first, rows


class Lap(NamedTuple):
    """``step_s``: seconds per steady step. ``waited``: the share of them spent waiting for data. The warm-up steps of
    the lap, ``warmup_s`` in all, are not in these (unless there were no others)."""

    step_s: float
    waited: float
    warmup_s: float
    warmup_steps: int


class StepTimer:
    """Wall-clock time of steps, and the share of it spent waiting for data. No device sync: see ``lap``."""

    def __init__(self) -> None:
        self._start = self._begun = self._step_start = time.perf_counter()
        self._waited = self._step_waited = 0.0
        self._warmup_s, self._warmup_steps = 0.0, 0
        self._graphs: int | None = None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around asking for a batch."""
        started = time.perf_counter()
        yield
        self._step_waited += time.perf_counter() - started

    def stepped(self, loss: Tensor, graphs: int = 0) -> None:
        """Call after every step. ``graphs``: how many torch.compile has made so far. The first step and every one that
        made a graph are warm-up: they are waited for, and their time is kept apart from that of the others."""
        if graphs == self._graphs:
            self._waited += self._step_waited
            self._step_start = time.perf_counter()
        else:
            loss.item()
            now = time.perf_counter()
            taken = now - self._step_start
            self._warmup_s, self._warmup_steps = self._warmup_s + taken, self._warmup_steps + 1
            self._start, self._step_start, self._graphs = self._start + taken, now, graphs
        self._step_waited = 0.0

    def lap(self, steps: int) -> Lap:
        """Figures since the last lap; exact when the caller has just read a value of the last step from the device."""
        steady, elapsed = steps - self._warmup_steps, max(time.perf_counter() - self._start, 1e-9)
        if steady <= 0:
            steady, elapsed = self._warmup_steps, max(self._warmup_s, 1e-9)
        lap = Lap(elapsed / max(steady, 1), self._waited / elapsed, self._warmup_s, self._warmup_steps)
        self._start = self._step_start = time.perf_counter()
        self._waited, self._warmup_s, self._warmup_steps = 0.0, 0.0, 0
        return lap

    @contextlib.contextmanager
    def paused(self) -> Iterator[float]:
        """Around what is not part of a step (a save, the monitor): its time counts in no lap, the steps before do.
        Gives the seconds of all steps so far."""
        started = time.perf_counter()
        yield started - self._begun
        pause = time.perf_counter() - started
        self._start, self._step_start, self._begun = self._start + pause, self._step_start + pause, self._begun + pause


def duration(seconds: float) -> str:
    """Seconds as text: ``42s``, ``3m10s``, ``2h05m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """Every complete line of a run's ``metrics.jsonl``; a line cut short by a crash is left out."""
    path = Path(run_dir) / "metrics.jsonl"
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def trained_seconds(records: Sequence[Mapping[str, Any]]) -> float:
    """Seconds that the steps in these ``records`` took, saves and looks left out."""
    step, seconds = 0, 0.0
    for record in records:
        if "time/step_s" in record:
            steady = record["step"] - step - record.get("time/warmup_steps", 0)
            seconds += steady * record["time/step_s"] + record.get("time/warmup_s", 0.0)
            step = record["step"]
    return seconds


def _drop_after(path: Path, step: int) -> None:
    """Keep the lines up to ``step``, replacing the file in one move."""
    if not path.exists():
        return
    kept = [record for record in read_metrics(path.parent) if record["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
    os.replace(temporary, path)


def _plain(value: float) -> float | str:
    """A number that JSON can hold: NaN and infinity become text."""
    number = float(value)
    return number if np.isfinite(number) else str(number)
