"""``jepa train --profile``: a trace of a few steps by torch.profiler, from every process, and what took longest.

It watches an ordinary run and changes nothing that is computed; only the profiled steps take longer.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from torch.profiler import ProfilerActivity, profile, schedule

from jepa.logging import logger

if TYPE_CHECKING:
    from torch.autograd.profiler_util import FunctionEventAvg

    from jepa.session import Session

SKIPPED = 3  # steps of this process: compilation, first allocations, and whatever the loader has in stock
WARMUP = 1  # the profiler's own
STEPS = 3
_ROWS = 12


class Profiler:
    """An observer (``jepa.observer``) that records ``STEPS`` steps once and writes ``profile/rank0.json.gz`` and so on
    below the run directory. A run that ends before is told so by ``close``."""

    summary = ""

    def __init__(self, session: Session) -> None:
        self._run, self._folder = session.run, Path(session.config.run_dir) / "profile"
        self._cuda = session.run.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
        plan = schedule(wait=0, warmup=WARMUP, active=STEPS, repeat=1)
        self._profile = profile(activities=activities, schedule=plan, record_shapes=True, acc_events=True)
        self._steps, self._done = 0, False

    def due(self, step: int, trained_s: float) -> bool:
        """After every step until the trace is written; not before the first one of a run."""
        return step > 0 and not self._done

    def look(self, step: int) -> None:
        """One step is over: start, go on, or write."""
        self._steps += 1
        if self._steps == SKIPPED:
            self._profile.start()
            logger.info("profiling steps %d to %d", step + WARMUP + 1, step + WARMUP + STEPS)
        elif self._steps == SKIPPED + WARMUP + STEPS:
            self._profile.stop()
            self._done = True
            self._write()
        elif self._steps > SKIPPED:
            self._profile.step()

    def close(self) -> None:
        """At the end of a run."""
        if not self._done:
            self._done = True
            if self._steps >= SKIPPED:
                self._profile.stop()
            logger.warning(
                "no profile: it needs %d steps in one go, this run had %d; raise train.steps",
                SKIPPED + WARMUP + STEPS + 1, self._steps,
            )  # fmt: skip

    def _write(self) -> None:
        """The trace of this process; the first one prints its table."""
        began = time.perf_counter()
        path = self._folder / f"rank{self._run.rank}.json.gz"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(path))
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(f"{path} cannot be written: {reason}; make room, or leave out --profile") from None
        if self._run.is_main:
            print(table(list(self._profile.key_averages()), self._cuda, STEPS), flush=True)
            logger.info("trace of each process in %s (%.0f s to write): open one with https://ui.perfetto.dev or "
                        "chrome://tracing", self._folder, time.perf_counter() - began)  # fmt: skip


def table(events: list[FunctionEventAvg], cuda: bool, steps: int) -> str:
    """The operators that took longest, without what they called: name, milliseconds and calls per step, share."""

    def own_us(event: FunctionEventAvg) -> float:
        return float(event.self_device_time_total if cuda else event.self_cpu_time_total)

    events = [event for event in events if not str(event.key).startswith("ProfilerStep")]
    total = sum(map(own_us, events)) or 1.0
    kind = "device" if cuda else "CPU"
    lines = [f"{kind + ' time by operator':<52}{'ms/step':>10}{'share':>8}{'calls/step':>12}"]
    for event in sorted(events, key=own_us, reverse=True)[:_ROWS]:
        name = str(event.key)[:50]
        took = own_us(event)
        lines.append(f"{name:<52}{took / 1e3 / steps:>10.2f}{took / total:>8.1%}{event.count / steps:>12.1f}")
    return "\n".join(lines)
