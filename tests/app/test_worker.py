"""What a launched job does when it is interrupted, fails, or may not start again: in this process, under submitit's own
signal handler, with commands that stand for training; and once for real, in two processes of submitit's local executor.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import submitit
from submitit.core.job_environment import JobEnvironment
from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.local import local
from support import tiny_settings

from app import cli
from app.launch.attempts import Attempt, begin, read_attempts, why_stop
from app.launch.worker import FOLLOWS, LOCAL_REQUEUES, LaunchError, Worker
from jepa.checkpoint import load_checkpoint
from jepa.config import from_dict
from jepa.peers import LostPeersError
from jepa.stopping import STOP_SIGNALS, Stopped
from jepa.train import TrainConfig, fit

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Signal handlers and the environment as they were: a job changes both for its whole process."""
    handlers = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGCONT)}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Job:
    """A task of a submitit job whose ``jepa train`` is a function of the run directory."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.run_dir, self.patch = folder, folder / "run", monkeypatch
        self.cluster("local")

    def cluster(self, name: str, rank: int = 0, job_id: str = "77") -> None:
        """Be a task of such a cluster."""
        shared = {"SUBMITIT_EXECUTOR": name, "SUBMITIT_FOLDER": str(self.folder)}
        names = {"local": ("SUBMITIT_LOCAL_JOB_ID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_GLOBALID"),
                 "slurm": ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID")}  # fmt: skip
        for key, value in {**shared, **dict(zip(names[name], (job_id, "2", str(rank)), strict=True))}.items():
            self.patch.setenv(key, value)

    def run(self, train: Callable[[Path], None], command: str = "train", requeues: int = 3, timeouts: int = 9) -> None:
        """One start, as submitit makes it."""
        stand_in = SimpleNamespace(add_arguments=lambda parser: None, run=lambda args: train(self.run_dir))
        self.patch.setitem(sys.modules, "stand_in", stand_in)
        self.patch.setitem(cli.COMMANDS, command, ("stand_in", "a stand-in"))
        worker = Worker(str(self.run_dir), [command], requeues)
        delayed = DelayedSubmission(worker)
        delayed.set_timeout(60, timeouts)
        job = JobEnvironment()
        job._handle_signals(JobPaths(self.folder, job.job_id), delayed)
        worker()

    def ends(self, train: Callable[[Path], None], **options: Any) -> SystemExit:
        with pytest.raises(SystemExit) as ended:
            self.run(train, **options)
        return ended.value

    @property
    def hows(self) -> list[str | None]:
        return [attempt.how for attempt in read_attempts(self.run_dir)]

    @property
    def why(self) -> str:
        return (self.run_dir / "launch" / "stopped.txt").read_text()


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path, monkeypatch)


def stops(reason: str, step: int) -> Callable[[Path], None]:
    """Training that was asked to stop, and saved."""

    def train(run_dir: Path) -> None:
        path = run_dir / "checkpoints" / f"step_{step:08d}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        raise Stopped(reason, step, path)

    return train


@pytest.mark.parametrize("reason", ["SIGUSR1", "SIGUSR2", "time limit"])
def test_a_stop_is_requeued_through_submitit(job: Job, tmp_path: Path, reason: str) -> None:
    assert job.ends(stops(reason, 5)).code == local.LOCAL_REQUEUE_RETURN_CODE
    again = DelayedSubmission.load(tmp_path / "77_submitted.pkl")
    assert again.function == Worker(str(job.run_dir), ["train"], 3)
    attempt = read_attempts(job.run_dir)[0]
    assert (attempt.attempt, attempt.job_id, attempt.first_step, attempt.last_step) == (1, "77", 0, 5)
    assert attempt.how == f"requeued after {reason}"
    assert attempt.ended is not None
    job.run(lambda run_dir: None)
    assert job.hows == [f"requeued after {reason}", "done"]
    assert read_attempts(job.run_dir)[1].first_step == 5


def test_other_ranks_leave_quietly_and_note_nothing(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.cluster("local", rank=1)
    assert job.ends(stops("SIGUSR1", 5)).code == 0
    assert job.hows == []
    assert "rank 1 leaves after SIGUSR1; rank 0 speaks for the job" in capsys.readouterr().err


@pytest.mark.parametrize("reason", ["SIGTERM", "SIGINT"])
def test_a_cancelled_job_is_saved_and_not_requeued(job: Job, reason: str) -> None:
    ended = job.ends(stops(reason, 5))
    assert (type(ended), ended.code) == (Stopped, 128 + signal.Signals[reason])
    assert job.hows == [f"stopped by {reason}"]


def test_requeues_are_bounded_whatever_asks_for_them(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        assert job.ends(stops("SIGUSR1", step), requeues=2).code == local.LOCAL_REQUEUE_RETURN_CODE
    assert isinstance(job.ends(stops("SIGUSR1", 3), requeues=2), Stopped)
    assert job.why == "job 77 has started 3 times, max_requeues is 2 (saved, after SIGUSR1)\n"
    assert f"jepa: not started again: {job.why}" in capsys.readouterr().err
    job.cluster("local", job_id="78")  # launched once more: counted anew
    assert job.ends(stops("SIGUSR1", 4), requeues=2).code == local.LOCAL_REQUEUE_RETURN_CODE
    assert not (job.run_dir / "launch" / "stopped.txt").exists()
    assert [attempt.attempt for attempt in read_attempts(job.run_dir)] == [1, 2, 3, 4]


def test_the_local_controller_gives_up_first(job: Job) -> None:
    assert inspect.signature(local.Controller.run).parameters["max_retry"].default == LOCAL_REQUEUES + 1
    for step in range(1, LOCAL_REQUEUES + 1):
        assert job.ends(stops("SIGUSR1", step), requeues=50).code == local.LOCAL_REQUEUE_RETURN_CODE
    assert isinstance(job.ends(stops("SIGUSR1", 9), requeues=50), Stopped)
    assert "started 6 times" in job.why


def test_two_starts_without_a_new_step_are_a_crash_loop(job: Job) -> None:
    codes = [job.ends(stops("SIGUSR1", step)).code for step in (4, 4, 4)]
    assert codes == [144, 144, 128 + signal.SIGUSR1]
    assert job.why.startswith("crash loop: attempts 2 and 3 of job 77 both began at step 4 and saved no later one")
    assert why_stop([Attempt(1, "1", "a", "", None), Attempt(2, "1", "a", "", None)], None, 3) is None  # no steps


def test_a_job_that_is_killed_again_and_again_is_refused(job: Job) -> None:
    """As when Slurm itself requeues after a node has failed."""
    for _ in range(2):
        begin(job.run_dir, "77", "node", 0)
    with pytest.raises(LaunchError, match="crash loop: attempts 1 and 2 of job 77 both began at step 0"):
        job.run(lambda run_dir: None)
    assert job.hows[:2] == ["killed", "killed"]
    assert "crash loop" in job.why
    assert job.why.strip() in str(job.hows[2])


def test_submitits_own_count_is_told_too(job: Job) -> None:
    """It counts time-outs of its own (``max_num_timeout``), and refuses when they are used up."""
    assert isinstance(job.ends(stops("SIGUSR2", 5), requeues=3, timeouts=-1), Stopped)
    assert "the requeue failed" in job.why
    assert "timed-out too many times" in job.why


# ---- Slurm, with commands that stand for its own ---------------------------------------------------------------------


def slurm(job: Job, state: str, refusal: str = "") -> Path:
    """A Slurm that says ``state`` of every job; gives the file where requeues are noted."""
    folder, noted = job.folder / "bin", job.folder / "requeued"
    folder.mkdir()
    scontrol = f"echo {refusal} >&2; exit 1" if refusal else f'echo "$@" >> {noted}'
    for name, line in {"squeue": f"echo {state}", "scontrol": scontrol}.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    job.patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    job.cluster("slurm")
    return noted


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING None", True), ("COMPLETING TimeLimit", False)])
def test_sigterm_requeues_only_what_slurm_still_runs(job: Job, state: str, requeued: bool) -> None:
    noted = slurm(job, state)
    ended = job.ends(stops("SIGTERM", 5))
    assert noted.exists() is requeued
    if requeued:
        assert noted.read_text() == "requeue 77\n"
        assert job.hows == ["requeued after SIGTERM"]
    else:
        assert (ended.code, job.hows) == (128 + signal.SIGTERM, [f"stopped by SIGTERM (SLURM: {state})"])


def test_srun_ending_an_encode_for_another_ranks_sake_is_no_wish_to_requeue(job: Job) -> None:
    noted = slurm(job, "RUNNING None")
    ended = job.ends(lambda run_dir: os.kill(os.getpid(), signal.SIGTERM), command="encode")
    assert (ended.code, noted.exists(), job.hows) == (143, False, ["stopped by SIGTERM (SLURM: RUNNING)"])


def test_a_requeue_that_slurm_refuses_is_told(job: Job) -> None:
    slurm(job, "RUNNING", refusal="disabled")
    assert isinstance(job.ends(stops("SIGUSR1", 5)), Stopped)
    assert "the requeue failed: CalledProcessError" in job.why
    assert job.hows == [f"stopped: {job.why.strip()}"]


# ---- errors, other commands, signals at any time ---------------------------------------------------------------------


def test_errors_are_kept_with_rank_and_host(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    def mistake(run_dir: Path) -> None:
        raise ValueError("config key 'x'\n is unknown")

    def bug(run_dir: Path) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(LaunchError, match=r"^config key 'x' is unknown$"):
        job.run(mistake)
    host = read_attempts(job.run_dir)[0].host
    path = job.run_dir / "launch" / "errors" / "77_rank0.txt"
    assert path.read_text().splitlines()[0] == f"rank 0 of 2 on {host}: config key 'x' is unknown"
    assert "Traceback" not in path.read_text()
    assert job.hows == ["failed: config key 'x' is unknown"]
    job.cluster("local", rank=1)
    with pytest.raises(RuntimeError):
        job.run(bug)
    text = (job.run_dir / "launch" / "errors" / "77_rank1.txt").read_text()
    assert text.startswith(f"rank 1 of 2 on {host}: RuntimeError: shapes differ\n")
    assert 'raise RuntimeError("shapes differ")' in text
    assert f"jepa: error: rank 1 of 2 on {host}: RuntimeError: shapes differ" in capsys.readouterr().err
    assert len(job.hows) == 1

    def lost(run_dir: Path) -> None:
        raise LostPeersError("lost another process")

    with pytest.raises(LaunchError):
        job.run(lost)
    assert FOLLOWS in path.with_name("77_rank1.txt").read_text().splitlines()[1]
    assert FOLLOWS not in text
    job.cluster("local")
    job.run(lambda run_dir: None)  # it went well in the end: nothing is left that says otherwise
    assert list(path.parent.iterdir()) == []


def test_a_wrong_command_line_is_an_error_of_the_job(job: Job) -> None:
    with pytest.raises(LaunchError, match=r"jepa encode: ended with status 2"):
        Worker(str(job.run_dir), ["encode"], 1)()


def test_commands_without_steps_are_cut_where_they_are(job: Job) -> None:
    def encode(run_dir: Path) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        pytest.fail("it went on")

    assert [job.ends(encode, command="encode").code for _ in range(3)] == [144, 144, 144]  # no steps: no crash loop
    assert isinstance(job.ends(encode, command="encode"), Stopped)
    job.cluster("local", rank=1)
    went_on = []
    job.run(lambda run_dir: went_on.append(os.kill(os.getpid(), signal.SIGUSR1)), command="encode")
    assert went_on == [None]  # rank 0 takes the others along when it requeues


def test_a_signal_before_training_is_kept_for_it(job: Job) -> None:
    """It arrives while the job starts, where nothing else would handle it: fit finds it noted."""
    job.patch.setattr("app.launch.attempts.begin", lambda *a: [os.kill(os.getpid(), signal.SIGUSR1)])
    heard = []

    def train(run_dir: Path) -> None:
        heard.append(signal.getsignal(signal.SIGUSR1).__self__.reason)  # type: ignore[union-attr]

    with pytest.raises(ValueError):  # begin noted nothing, so there is nothing to end
        job.run(train)
    assert heard == ["SIGUSR1"]


def test_debug_jobs_run_here_and_are_not_requeued(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, device="cpu", time_limit_min=1e-6)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    executor = submitit.AutoExecutor(tmp_path / "logs", cluster="debug")
    worker = Worker(settings["run_dir"], ["train", str(tmp_path / "config.json"), "train.steps=2"], 3)
    with pytest.raises(Stopped) as stopped:
        executor.submit(worker).result()
    assert (stopped.value.step, stopped.value.reason) == (0, "time limit")
    assert "debug jobs are not requeued" in (tmp_path / "run" / "launch" / "stopped.txt").read_text()
    worker.command.append("train.time_limit_min=null")
    executor.submit(worker).result()
    assert load_checkpoint(tmp_path / "run")["step"] == 2


# ---- for real --------------------------------------------------------------------------------------------------------


def test_two_local_processes_are_requeued_and_end_as_if_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGUSR1 to rank 1 alone; both stop after one step, rank 0 requeues, and both go on."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    settings = tiny_settings(tmp_path, steps=24, log_every=1, device="cpu")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings))
    executor = submitit.AutoExecutor(tmp_path / "logs", cluster="local")
    executor.update_parameters(tasks_per_node=2, timeout_min=10, stderr_to_stdout=True)
    task = executor.submit(Worker(settings["run_dir"], ["train", str(path)], 3))
    metrics, limit = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 300
    while not metrics.exists() or metrics.read_text().count("\n") < 4:
        assert not task.done(), task.stdout()
        assert time.monotonic() < limit
        time.sleep(0.05)
    children = [int(pid) for pid in Path(f"/proc/{task.job_id}/task/{task.job_id}/children").read_text().split()]
    rank_1 = next(pid for pid in children if b"GLOBALID=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(rank_1, signal.SIGUSR1)
    task.wait()
    first, second = read_attempts(tmp_path / "run")
    assert (first.how, second.how, second.last_step) == ("requeued after SIGUSR1", "done", 24), task.stdout()
    assert first.last_step == second.first_step
    fit(from_dict(TrainConfig, {**settings, "run_dir": str(tmp_path / "alone")}))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)


def losses(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [*range(1, 25)]
    return [line["loss"] for line in lines if "loss" in line]
