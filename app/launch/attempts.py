"""The starts of a launched run, in ``run_dir/launch/attempts.jsonl``: one line each, written by rank 0.

``attempt`` counts from 1 over all jobs of the run directory; ``job_id`` and ``host`` (of rank 0); ``started`` and
``ended`` (ISO 8601, UTC; None: still running, or killed); ``first_step`` and ``last_step`` of the checkpoints at both
ends (None for commands without steps); ``how`` it ended: "done", "requeued after SIGUSR1", "stopped by SIGTERM",
"failed: ...", "killed".
"""

from __future__ import annotations

import datetime
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Attempt:
    attempt: int
    job_id: str
    host: str
    started: str
    first_step: int | None
    last_step: int | None = None
    ended: str | None = None
    how: str | None = None


def attempts_path(run_dir: str | Path) -> Path:
    return Path(run_dir) / "launch" / "attempts.jsonl"


def read_attempts(run_dir: str | Path) -> list[Attempt]:
    """Every start so far, oldest first."""
    path = attempts_path(run_dir)
    if not path.exists():
        return []
    return [Attempt(**json.loads(line)) for line in path.read_text().splitlines()]


def begin(run_dir: str | Path, job_id: str, host: str, step: int | None) -> list[Attempt]:
    """Note a start at ``step`` and give all starts with it. An earlier one without an end was killed."""
    earlier = [
        attempt if attempt.how is not None else replace(attempt, last_step=step, how="killed")
        for attempt in read_attempts(run_dir)
    ]
    attempts = [*earlier, Attempt(len(earlier) + 1, job_id, host, now(), step)]
    _write(run_dir, attempts)
    return attempts


def end(run_dir: str | Path, step: int | None, how: str) -> None:
    """Note how the last start ended."""
    *earlier, last = read_attempts(run_dir)
    _write(run_dir, [*earlier, replace(last, last_step=step, ended=now(), how=how)])


def why_stop(attempts: list[Attempt], step: int | None, max_requeues: int) -> str | None:
    """Why the job of the last of ``attempts`` must not start once more after it, at ``step``; None if it may."""
    own = [attempt for attempt in attempts if attempt.job_id == attempts[-1].job_id]
    if step is not None and len(own) > 1 and own[-2].first_step == own[-1].first_step == step:
        return (
            f"crash loop: attempts {own[-2].attempt} and {own[-1].attempt} of job {own[-1].job_id} both began at step "
            f"{step} and saved no later one"
        )
    if len(own) > max_requeues:
        return f"job {own[-1].job_id} has started {len(own)} times, max_requeues is {max_requeues}"
    return None


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _write(run_dir: str | Path, attempts: list[Attempt]) -> None:
    path = attempts_path(run_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")  # a kill in the middle leaves the lines as they were
    temporary.write_text("".join(json.dumps(asdict(attempt)) + "\n" for attempt in attempts))
    os.replace(temporary, path)
