"""Signals that ask a run to stop, noted until the work can end well, and the exit that follows.

SIGUSR1 and SIGUSR2 are what clusters send before they take a job's machines away (``--signal`` of sbatch, submitit),
SIGTERM is what ``scancel``, ``kill`` and preemption send, SIGINT is Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

TIME_LIMIT = "time limit"
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """Work ended early on request, with everything saved. ``reason``: a signal's name or "time limit"; ``step`` and
    ``saved`` are None for work without steps. Exit code: 128 + signal number, that of SIGUSR1 for the time limit."""

    def __init__(self, reason: str, step: int | None = None, saved: Path | None = None) -> None:
        super().__init__(128 + (signal.SIGUSR1 if reason == TIME_LIMIT else signal.Signals[reason]))
        self.reason, self.step, self.saved = reason, step, saved


class StopSignal:
    """Turns the signals of ``STOP_SIGNALS`` into a request that the work honours when it can; a second Ctrl-C quits at
    once. ``signum``: the first one that came. A time limit (``end_after``) is such a request too.

    Use with ``with``; the earlier handlers come back at its end. One inside another takes over what the outer one has
    noted, and hands its own note back. Outside the main thread it never fires. ``at_once``: signals that raise
    ``Stopped`` where the program is, for work that may be cut anywhere.
    """

    def __init__(self, at_once: tuple[signal.Signals, ...] = ()) -> None:
        self.signum: int | None = None
        self.at_once = at_once
        self._interrupts = 0
        self._end_s: float | None = None
        self._earlier: dict[signal.Signals, Any] = {}
        self._outer: StopSignal | None = None

    @property
    def reason(self) -> str | None:
        """Name of the signal that came, or "time limit"; None: go on."""
        if self.signum is not None:
            return signal.Signals(self.signum).name
        return TIME_LIMIT if self._end_s is not None and time.monotonic() >= self._end_s else None

    def end_after(self, minutes: float | None) -> None:
        """Ask for a stop in so many minutes from now."""
        self._end_s = None if minutes is None else time.monotonic() + 60 * minutes

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            owner = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
            self._outer = owner if isinstance(owner, StopSignal) else None
            self._earlier = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
            if self._outer is not None:
                self.signum = self._outer.signum
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        if self._outer is not None:
            self._outer.signum = self.signum

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        # torchrun passes the terminal's Ctrl-C on a second time, so only a lone process takes it for impatience.
        if number == signal.SIGINT and self._interrupts > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
        if self.signum is None:
            self.signum = number
            self._tell(f"{signal.Signals(number).name}: stopping as soon as the work can be saved")
        if number in self.at_once:
            raise Stopped(signal.Signals(number).name)

    @staticmethod
    def _tell(sentence: str) -> None:
        # Not print or logging: the signal may have come in the middle of either, and they are not re-entrant.
        with contextlib.suppress(OSError):
            os.write(2, f"\njepa: {sentence}\n".encode())
