"""How launched runs fare: from SLURM's queue and accounts where there are any, and from the files the job left."""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.launch import slurm
from app.launch.attempts import Attempt, read_attempts
from app.launch.records import (
    Launch,
    controller_is_alive,
    launch_folder,
    log_path,
    read_launch,
    read_sweep,
    result_path,
)
from app.launch.slurm import LIVE, JobState
from app.launch.sweep import short_keys
from app.launch.worker import FOLLOWS
from jepa.config import ConfigError, load_yaml
from jepa.logging import read_metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """One run. ``state``: SLURM's word, or COMPLETED, FAILED, INTERRUPTED, LOST (not queued, and no result). ``why``:
    what it waits for, or why it ended. ``probes``: the last figure of every online probe."""

    name: str
    job_id: str
    state: str
    why: str
    nodes: str
    attempts: list[Attempt]
    step: int | None
    total: int | None
    loss: float | str | None
    clips_per_s: float | None
    log: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)
    probes: Mapping[str, float] = field(default_factory=dict)

    @property
    def progress(self) -> str:
        return "" if self.step is None else f"{self.step} / {self.total}" if self.total else str(self.step)


def find_launches(folder: str | Path) -> dict[Path, Launch]:
    """Run directory to launch: one, or those of a sweep. Raises ``ConfigError`` where nothing was launched."""
    folder = Path(folder)
    sweep = read_sweep(folder)
    found = {folder / name: read_launch(folder / name) for name in ([""] if sweep is None else sweep.runs)}
    launches = {run_dir: launch for run_dir, launch in found.items() if launch is not None}
    if not launches:
        raise ConfigError(f"{folder} was not launched: it has no launch/launch.json and no launch/sweep.json")
    return launches


def states_of(launches: Mapping[Path, Launch]) -> dict[Path, JobState]:
    """Where each job stands. Raises ``SlurmError`` when SLURM must be asked and does not answer."""
    ids = [launch.job_id for launch in launches.values() if launch.executor == "slurm"]
    try:
        queued = slurm.job_states(ids)
    except slurm.SlurmError:
        if not all(_has_ended(run_dir, launch) for run_dir, launch in launches.items()):
            raise
        queued = {}  # of these nobody needs to be asked: wherever they ran, they have told how they ended
    states = {}
    for run_dir, launch in launches.items():
        known = queued.get(launch.job_id)
        if known is not None and known.state in LIVE:
            states[run_dir] = known
        elif launch.executor == "local" and launch.is_here and controller_is_alive(launch):
            states[run_dir] = JobState("RUNNING", nodes=launch.host)
        else:
            states[run_dir] = _ended(run_dir, launch, known)
    return states


def is_live(state: JobState) -> bool:
    """Whether the job waits, runs, or cannot be asked."""
    return state.state in LIVE or state.state == "ELSEWHERE"


def _last(run_dir: Path, launch: Launch) -> Attempt | None:
    """The last start of the job."""
    return next((one for one in reversed(read_attempts(run_dir)) if one.job_id == launch.job_id), None)


def _has_ended(run_dir: Path, launch: Launch) -> bool:
    """Whether the job itself noted an end after which it does not start again."""
    last = _last(run_dir, launch)
    return last is not None and (last.how or "").startswith(("done", "failed", "stopped"))


def _ended(run_dir: Path, launch: Launch, known: JobState | None) -> JobState:
    """How a job ended that no longer is live: its own words first, then SLURM's."""
    why = _own_words(run_dir, launch)
    if known is not None and known.state != "UNKNOWN":
        return JobState(known.state, why or known.reason, known.nodes)
    last = _last(run_dir, launch)
    how = "" if last is None else last.how or ""
    if how.startswith("failed") or any(outcome == "error" for outcome, _ in _results(launch)):
        return JobState("FAILED", why)
    if how == "done":
        return JobState("COMPLETED")
    if how.startswith("stopped"):
        return JobState("INTERRUPTED", why)  # not STOPPED, which is SLURM's word for jobs that go on
    if launch.executor == "local" and not launch.is_here:
        return JobState("ELSEWHERE", f"runs on {launch.host}, or has ended there: ask on that machine")
    return JobState("LOST", why or "the queue does not know it and it left no result: cancelled, or killed")


def _own_words(run_dir: Path, launch: Launch) -> str:
    """Why the job says that it ended: why it may not start again, its errors, the end of its last start."""
    folder = launch_folder(run_dir)
    if (folder / "stopped.txt").exists():
        return (folder / "stopped.txt").read_text().strip()
    causes, consequences = errors_of(run_dir, launch)
    if causes:
        return causes[0].read_text().partition("\n")[0]
    if consequences:
        return "".join([*_silent(launch, consequences), consequences[0].read_text().partition("\n")[0]])
    for outcome, trace in _results(launch):
        if outcome == "error":
            return str(trace).strip().rpartition("\n")[2]
    last = _last(run_dir, launch)
    return "" if last is None or last.how in (None, "done") else str(last.how)


def errors_of(run_dir: Path, launch: Launch) -> tuple[list[Path], list[Path]]:
    """The errors of the job's processes, the earliest first: those that are causes, and those that only tell that
    another process ended or did not come. Neither times nor ranks tell them apart on several machines."""
    found = (launch_folder(run_dir) / "errors").glob(f"{launch.job_id}_rank*.txt")
    both: tuple[list[Path], list[Path]] = [], []
    for path in sorted(found, key=lambda path: (path.stat().st_mtime, path.name)):
        both[any(FOLLOWS in line for line in path.read_text().splitlines()[1:2])].append(path)
    return both


def _silent(launch: Launch, told: Sequence[Path]) -> list[str]:
    """A sentence about the processes that ended without a word, where there are any."""
    files = {path.name for path in told}
    ranks = [rank for rank in range(launch.processes)
             if f"{launch.job_id}_rank{rank}.txt" not in files and not result_path(launch, rank).exists()]  # fmt: skip
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return [f"no word from rank {shown}: killed (out of memory?), or it hung; "] if ranks else []


def _results(launch: Launch) -> list[tuple[str, Any]]:
    """("success", None) or ("error", traceback) of each process that submitit wrote a result of."""
    results = []
    for rank in range(launch.processes):
        path = result_path(launch, rank)
        if path.exists():
            results.append(pickle.loads(path.read_bytes()))
    return results


def read_status(run_dir: Path, launch: Launch, state: JobState) -> RunStatus:
    """What the files of a run say beside its ``state``."""
    step = loss = total = speed = None
    probes: dict[str, float] = {}
    config = launch_folder(run_dir) / "config.yaml"
    if launch.command[0] == "train" and config.exists():
        total = load_yaml(config)["train"]["steps"]
    for record in read_metrics(run_dir):
        step, loss = record["step"], record.get("loss", loss)
        speed = record.get("time/clips_per_s", speed)
        probes |= {key.removeprefix("online/"): value for key, value in record.items() if _is_figure(key)}
    return RunStatus(
        name=run_dir.absolute().name, job_id=launch.job_id, state=state.state, why=state.reason, nodes=state.nodes,
        attempts=read_attempts(run_dir), step=step, total=total, loss=loss, clips_per_s=speed, log=log_path(launch),
        overrides=launch.overrides, probes=probes,
    )  # fmt: skip


def _is_figure(key: str) -> bool:
    return key.startswith("online/") and not key.endswith("_s")  # not what probing took in seconds


def describe(status: RunStatus) -> str:
    """One run in a few lines."""
    where = f" on {status.nodes}" if status.nodes else ""
    lines = [f"{status.name}: {status.state}{where}", f"  job       {status.job_id}"]
    if status.why:
        lines.append(f"  why       {status.why}")
    if status.progress:
        lines.append(f"  step      {status.progress}")
    if status.loss is not None:
        lines.append(f"  loss      {_text(status.loss)}")
    if status.clips_per_s is not None:
        lines.append(f"  clips/s   {_text(status.clips_per_s)}")
    lines += [f"  {name:9} {_text(value)}" for name, value in status.probes.items()]
    unknown = "under way" if status.state in LIVE else "killed"
    for one in status.attempts:
        step = "" if one.first_step is None else f", from step {one.first_step}"
        lines.append(f"  attempt   {one.attempt}: job {one.job_id} on {one.host}{step}: {one.how or unknown}")
    lines.append(f"  log       {status.log}")
    return "\n".join(lines)


def table(statuses: Sequence[RunStatus]) -> list[list[str]]:
    """A sweep as rows of text, the first one the header."""
    short = short_keys({key: None for status in statuses for key in status.overrides})
    probes = list(dict.fromkeys(name for status in statuses for name in status.probes))
    rows = [["run", *short.values(), "state", "step", "attempts", "loss", *probes, "why"]]
    for status in statuses:
        values = [_text(status.overrides.get(key)) for key in short]
        figures = [_text(status.probes.get(name)) for name in probes]
        fixed = [status.state, status.progress, str(len(status.attempts)), _text(status.loss)]
        rows.append([status.name, *values, *fixed, *figures, status.why])
    return rows


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def as_csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """An aligned table, to be read as it is or rendered."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(cells[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
             for row in cells]  # fmt: skip
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"
