"""What SLURM's own commands say: which partitions there are, which jobs are queued, and how others ended."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from typing import NamedTuple

LIVE = frozenset(
    {
        "PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING",
        "RESV_DEL_HOLD", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED",
    }
)  # fmt: skip
_ANSWER_S = 60.0


class SlurmError(ValueError):
    """SLURM is not here or refuses; the message has its own words."""


class JobState(NamedTuple):
    """``state``: SLURM's word. ``reason``: why it waits or ended, "" for nothing. ``nodes``: where it runs."""

    state: str
    reason: str = ""
    nodes: str = ""


def require_slurm() -> None:
    """Raise ``SlurmError`` where there is no SLURM."""
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise SlurmError(f"{program} is not on PATH, so this is no login node of SLURM; use --executor local")


def base_ids(job_ids: Iterable[str]) -> list[str]:
    """Jobs and arrays that these ids belong to: ``12_3`` is part of ``12``."""
    return sorted({job_id.partition("_")[0] for job_id in job_ids})


def job_states(job_ids: Sequence[str]) -> dict[str, JobState]:
    """The jobs that the queue or the accounting knows; without accounting those that have not ended a while ago.

    Raises ``SlurmError`` when the queue does not answer: then nobody knows whether a job still runs.
    """
    if not job_ids:
        return {}
    states = _accounting(job_ids)
    for line in _queue(job_ids).splitlines():
        job_id, state, reason, nodes = line.split("|")
        told = reason not in ("None", "") and state != "CANCELLED"  # then it is what it had waited for
        states[job_id] = JobState(state, reason if told else "", nodes)
    return states


def _queue(job_ids: Sequence[str]) -> str:
    # all states: an ended job stays a few minutes, which is all that clusters without accounting know about it
    command = ["squeue", "--noheader", "--array", "--states=all", "--jobs", ",".join(base_ids(job_ids))]
    answer = _ask([*command, "--format=%i|%T|%r|%N"])
    if answer is None:
        raise SlurmError("squeue is not on PATH: ask on a login node of the cluster")
    if answer.returncode:
        if "Invalid job id" in answer.stderr:  # it is forgotten
            return ""
        raise SlurmError(f"squeue: {_line(answer.stderr)}")
    return answer.stdout


def _accounting(job_ids: Sequence[str]) -> dict[str, JobState]:
    """Ended jobs by sacct; nothing where a cluster keeps no accounts."""
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--jobs", ",".join(base_ids(job_ids))]
    answer = _ask([*command, "--format=JobID,State,ExitCode,NodeList"])
    if answer is None or answer.returncode:
        return {}
    states = {}
    for line in answer.stdout.splitlines():
        job_id, words, exit_code, nodes = line.split("|")
        state = words.split()[0] if words else "UNKNOWN"  # "CANCELLED by 1000"
        reason = f"exit code {exit_code.partition(':')[0]}" if state == "FAILED" else ""
        states[job_id] = JobState(state, reason, "" if nodes == "None assigned" else nodes)
    return states


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel jobs and parts of arrays. Raises ``SlurmError``."""
    answer = _ask(["scancel", *job_ids])
    if answer is None:
        raise SlurmError("scancel is not on PATH: cancel on a login node of the cluster")
    if answer.returncode:
        raise SlurmError(f"scancel: {_line(answer.stderr)}")


def refusal(message: str) -> SlurmError:
    """What sbatch said as one sentence, with the partitions that there are."""
    answer = _ask(["sinfo", "--noheader", "--format=%R"])
    known = sorted(set(answer.stdout.split())) if answer is not None and answer.returncode == 0 else []
    return SlurmError(
        f"SLURM refuses the job: {_line(message)}" + (f"; partitions: {', '.join(known)}" if known else "")
    )


def _line(text: str) -> str:
    """An error message of several lines as one, without the name of the program in each."""
    lines = [re.sub(r"^\w+: (error: )?", "", line.strip()) for line in text.splitlines()]
    return "; ".join(line for line in lines if line) or "no reason given"


def _ask(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    """The answer of a command, None where it is not installed. Raises ``SlurmError`` when it does not come."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S, check=False)
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within {_ANSWER_S:.0f} s: try again later") from None
