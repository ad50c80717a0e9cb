"""What every task of a launched job runs: one ``jepa`` command, and what must happen when the job is interrupted.

The command saves and leaves with ``Stopped``. Then rank 0 speaks for the job: it requeues through submitit, whose
handler of the pre-timeout signal stores ``checkpoint()`` and asks the cluster, or it says in
``run_dir/launch/stopped.txt`` why not. The other ranks leave with status 0, as srun kills a whole job for any other.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from submitit import JobEnvironment
from submitit.core.utils import UncompletedJobError
from submitit.helpers import DelayedSubmission, TorchDistributedEnvironment

from app.launch import attempts

if TYPE_CHECKING:
    from jepa.stopping import Stopped, StopSignal

LOCAL_REQUEUES = 5  # submitit's local controller starts a job six times at most, then ends without a word
FOLLOWS = "another process is the cause"  # in the second line of an error that tells of others' end or absence
_SIGNALS = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT}


class LaunchError(ValueError):
    """A launched job cannot run or must not run again; the message says why."""


@dataclass
class Worker:
    """Runs ``jepa COMMAND...`` in a task of a job; picklable. ``run_dir``: where ``launch/`` lies. ``max_requeues``:
    how often a job may start again, for whatever reason."""

    run_dir: str
    command: list[str]
    max_requeues: int

    def __call__(self) -> None:
        """Run the command. Raises what it raises, after a copy in ``launch/errors`` (users' mistakes as
        ``LaunchError``); ``Stopped`` when it was interrupted and must not start again; ``SystemExit`` of submitit when
        it was requeued."""
        job = JobEnvironment()
        with _noting(at_once=self.command[0] != "train", is_main=job.global_rank == 0):
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
            if job.global_rank == 0:
                self._begin(job)
            try:
                stopped = self._run(job)
            except ValueError as error:  # a sentence for the user says it all: submitit logs a short traceback then
                raise LaunchError(_sentence(error)) from None
        if stopped is not None:
            self._leave(job, stopped)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit submits again: the same; the command itself goes on from the files in its run directory."""
        return DelayedSubmission(self)

    def _run(self, job: JobEnvironment) -> Stopped | None:
        """The command, to its end or to a stop that was asked for."""
        from app.cli import main
        from jepa.stopping import Stopped

        try:
            with contextlib.ExitStack() as stack:
                stack.push(lambda kind, error, trace: self._note_end(job, error))
                try:
                    status = main(["--debug", *self.command])  # --debug: errors come up here instead of being printed
                except Stopped:
                    raise
                except SystemExit as error:  # argparse has printed why
                    status = error.code
                if status:
                    raise LaunchError(f"jepa {' '.join(self.command)}: ended with status {status}")
        except Stopped as stopped:
            return stopped
        return None

    def _begin(self, job: JobEnvironment) -> None:
        """Note the start; refuse one too many. Raises ``LaunchError``."""
        step = self._step()
        earlier = [attempt.job_id for attempt in attempts.read_attempts(self.run_dir)]
        begun = attempts.begin(self.run_dir, job.job_id, _host(), step)
        if job.job_id not in earlier:
            self._stopped_txt.unlink(missing_ok=True)
        elif reason := attempts.why_stop(begun[:-1], step, self.max_requeues):
            attempts.end(self.run_dir, step, f"stopped: {reason}")
            self._say_stopped(reason)
            raise LaunchError(reason)

    def _note_end(self, job: JobEnvironment, error: BaseException | None) -> None:
        """Leave a copy of an error where the user finds it, and the end of the attempt."""
        from jepa.stopping import Stopped

        if isinstance(error, Stopped):
            return
        if error is not None:
            write_error(self.run_dir, job, error)
        if job.global_rank == 0:
            if error is None:
                for path in _errors(self.run_dir).glob(f"{job.job_id}_rank*.txt"):  # of an attempt that was overcome
                    path.unlink()
            how = "done" if error is None else f"failed: {_sentence(error)}"
            attempts.end(self.run_dir, self._step(), how)

    def _leave(self, job: JobEnvironment, stopped: Stopped) -> None:
        """Requeue where that is wanted and allowed; always raises ``SystemExit``."""
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # submitit has no handler for it, and a second one would kill
        if job.global_rank != 0:
            print(f"jepa: rank {job.global_rank} leaves after {stopped.reason}; rank 0 speaks for the job",
                  file=sys.stderr)  # fmt: skip
            raise SystemExit(0)
        step = self._step()
        state = slurm_state(job)
        if not wants_requeue(stopped, state):
            words = " ".join(word for word in state if word != "None")
            attempts.end(self.run_dir, step, f"stopped by {stopped.reason}{f' (SLURM: {words})' if words else ''}")
            raise stopped
        bound = min(self.max_requeues, LOCAL_REQUEUES) if job.cluster == "local" else self.max_requeues
        reason = attempts.why_stop(attempts.read_attempts(self.run_dir), step, bound)
        number = signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]
        if reason is None and not callable(signal.getsignal(number)):
            reason = f"{job.cluster} jobs are not requeued; launch again to go on"
        if reason is None:
            attempts.end(self.run_dir, step, f"requeued after {stopped.reason}")
            try:
                signal.raise_signal(number)  # submitit's handler: checkpoint(), requeue, SystemExit
            except (UncompletedJobError, subprocess.SubprocessError, OSError) as error:
                reason = f"the requeue failed: {_sentence(error)}"
        assert reason is not None
        reason = f"{reason} (saved, after {stopped.reason})"
        attempts.end(self.run_dir, step, f"stopped: {reason}")
        self._say_stopped(reason)
        raise stopped

    @property
    def _stopped_txt(self) -> Path:
        return Path(self.run_dir) / "launch" / "stopped.txt"

    def _say_stopped(self, reason: str) -> None:
        self._stopped_txt.write_text(reason + "\n")
        print(f"jepa: not started again: {reason}", file=sys.stderr, flush=True)

    def _step(self) -> int | None:
        """Step of the newest checkpoint, 0 before the first; None for commands without steps."""
        if self.command[0] != "train":
            return None
        from jepa.checkpoint import latest_checkpoint, step_of

        latest = latest_checkpoint(self.run_dir)
        return 0 if latest is None else step_of(latest)


@contextlib.contextmanager
def _noting(at_once: bool, is_main: bool) -> Iterator[StopSignal]:
    """Note signals from here on. ``at_once``: for commands that may be cut anywhere, because they go on from the files
    they left; there only rank 0 heeds what asks for a requeue, as that takes the others along."""
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # the import takes seconds: they come after it
    from jepa.stopping import StopSignal

    ends = (signal.SIGTERM, signal.SIGINT)
    chosen = () if not at_once else (*ends, signal.SIGUSR1, signal.SIGUSR2) if is_main else ends
    with StopSignal(at_once=chosen) as stop:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
        yield stop


def slurm_state(job: JobEnvironment) -> list[str]:
    """Slurm's words for the job's state and its reason, such as RUNNING None; empty where there is no Slurm."""
    if job.cluster != "slurm":
        return []
    command = ["squeue", "--noheader", "--jobs", job.raw_job_id, "--format", "%T %r"]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return asked.stdout.split() if asked.returncode == 0 else ["UNKNOWN"]


def wants_requeue(stopped: Stopped, state: list[str]) -> bool:
    """Whether this stop asks for another start. SIGUSR1, SIGUSR2 and the time limit do. Ctrl-C does not. SIGTERM does
    where all ranks agreed on a step and Slurm still counts the job as running: one that was cancelled, or that Slurm
    itself preempts and requeues, is completing by then, and srun sends it too when another rank has failed."""
    if stopped.reason == "SIGTERM":
        return stopped.step is not None and state[:1] == ["RUNNING"]
    return stopped.reason != "SIGINT"


def write_error(run_dir: str | Path, job: JobEnvironment, error: BaseException) -> Path:
    """Leave ``error`` in ``launch/errors/JOB_rankK.txt``: rank, host and time, the sentence, and for what is not a
    user's mistake (``ValueError``) the traceback."""
    from jepa.rendezvous import DistributedError

    path = _errors(run_dir) / f"{job.job_id}_rank{job.global_rank}.txt"
    head = f"rank {job.global_rank} of {job.num_tasks} on {_host()}: {_sentence(error)}"
    print(f"jepa: error: {head}", file=sys.stderr, flush=True)
    trace = "" if isinstance(error, ValueError) else "".join(traceback.format_exception(error))
    path.parent.mkdir(parents=True, exist_ok=True)
    follows = f"; {FOLLOWS}" if isinstance(error, DistributedError) else ""
    path.write_text(f"{head}\n(job {job.job_id}, {attempts.now()}{follows})\n{trace}")
    return path


def _errors(run_dir: str | Path) -> Path:
    return Path(run_dir) / "launch" / "errors"


def _host() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()  # the name that Slurm's commands know


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
