"""The log of a launched run, as it grows if wanted."""

from __future__ import annotations

import collections
import sys
import time
from pathlib import Path

from app.launch.records import Launch, log_path
from app.launch.status import errors_of, is_live, states_of

_POLL_S, _ASK_S = 0.5, 15.0  # how often the file and the queue are looked at


def tail(run_dir: Path, launch: Launch, rank: int, lines: int, follow: bool) -> None:
    """Print the last ``lines`` of what process ``rank`` printed, and the errors of the others; ``follow`` until the
    job ends or Ctrl-C. Raises ``ValueError`` for a process that the job does not have."""
    if not 0 <= rank < launch.processes:
        raise ValueError(f"rank {rank} is not among the job's {launch.processes} processes (from 0)")
    path = log_path(launch, rank)
    print(f"==> {path} <==", file=sys.stderr)
    if path.exists():
        with path.open(errors="replace") as file:
            last = collections.deque(file, maxlen=lines)
        print("".join(last), end="", flush=True)
    else:
        state = states_of({run_dir: launch})[run_dir]
        print(f"no log yet: job {launch.job_id} is {state.state} {state.reason}".rstrip(), file=sys.stderr)
    if follow:
        _follow(run_dir, launch, path)
    causes, consequences = errors_of(run_dir, launch)
    shown = causes or consequences[:1]
    if others := len(causes) + len(consequences) - len(shown):
        print(f"==> {others} processes only say that they lost another one: {consequences[0].parent} <==",
              file=sys.stderr)  # fmt: skip
    for error in reversed(shown):  # the first one stands last, where it is seen
        print(f"==> {error} <==\n{error.read_text().rstrip()}", file=sys.stderr)


def _follow(run_dir: Path, launch: Launch, path: Path) -> None:
    """Print what is added to ``path`` until the job has ended."""
    position = path.stat().st_size if path.exists() else 0
    asked = live = None
    while True:
        if path.exists():
            with path.open(errors="replace") as file:
                file.seek(position)
                print(file.read(), end="", flush=True)
                position = file.tell()
        if live is False:  # and what it wrote before it ended is printed
            return
        if asked is None or time.monotonic() - asked > _ASK_S:
            asked, live = time.monotonic(), is_live(states_of({run_dir: launch})[run_dir])
        if live:
            time.sleep(_POLL_S)
