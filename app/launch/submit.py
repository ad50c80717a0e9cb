"""From checked jobs to submitted ones, through submitit."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env

from app.launch import slurm
from app.launch.attempts import now
from app.launch.records import Launch, Sweep, launch_folder, write_record, write_text
from app.launch.settings import LaunchConfig
from app.launch.snapshot import take_snapshot
from app.launch.worker import Worker
from jepa.config import to_dict

_FOREVER_MIN = 60 * 24 * 365  # a local job without time limit


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A job to submit. ``command``: words for `jepa`. ``config``: the YAML text that it trains from ("": none)."""

    run_dir: Path
    command: list[str]
    config: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)


def open_executor(settings: LaunchConfig, home: Path, code: Path | None, count: int = 1) -> submitit.AutoExecutor:
    """submitit's executor with these settings. ``home``: the run's or the sweep's directory. ``code``: the copy of
    the code that jobs import (None: what Python finds). ``count``: jobs that will be submitted together.

    Raises ``SlurmError`` where there is no SLURM.
    """
    if settings.executor == "slurm":
        slurm.require_slurm()
    ours = {} if settings.executor == "debug" else {
        f"{settings.executor}_python": _python(settings, code),
        f"{settings.executor}_max_num_timeout": settings.max_requeues,
    }  # fmt: skip
    executor = submitit.AutoExecutor(folder=launch_folder(home) / "logs", cluster=settings.executor, **ours)
    gpus = None if settings.gres is not None and settings.executor == "slurm" else settings.gpus_per_node or None
    executor.update_parameters(
        name=settings.name or f"jepa-{home.name}", nodes=settings.nodes, tasks_per_node=settings.tasks,
        cpus_per_task=settings.cpus_per_task, mem_gb=settings.mem_gb, gpus_per_node=gpus,
        timeout_min=settings.time_min or _FOREVER_MIN,
        stderr_to_stdout=True,  # one file per process, in the order in which things happened
        **_own_parameters(settings, home, count),
    )  # fmt: skip
    return executor


def _own_parameters(settings: LaunchConfig, home: Path, count: int) -> dict[str, Any]:
    """What only this executor knows."""
    if settings.executor != "slurm":
        return {}
    words = ["--kill-on-bad-exit=1"]
    if settings.cpus_per_task is not None:  # since SLURM 22.05, srun no longer takes it over from sbatch
        words.append(f"--cpus-per-task={settings.cpus_per_task}")
    if settings.container is not None:
        mounts = [f"{home}:{home}", *settings.container_mounts]
        words += [f"--container-image={settings.container}", f"--container-mounts={','.join(mounts)}"]
    plain = {name: getattr(settings, name) for name in
             ("partition", "account", "qos", "constraint", "exclude", "gres")}  # fmt: skip
    further = {"requeue": True, **{key.replace("_", "-"): value for key, value in settings.slurm.items()}}
    return {f"slurm_{name}": value for name, value in plain.items()} | {
        "slurm_signal_delay_s": settings.signal_s,
        "slurm_setup": settings.setup or None,
        "slurm_srun_args": [*words, *settings.srun_args],
        "slurm_array_parallelism": min(settings.array_parallelism, count),
        "slurm_additional_parameters": further,
    }


def _python(settings: LaunchConfig, code: Path | None) -> str:
    """Shell words that start Python with the copied code before everything else, whatever the working directory holds:
    jobs keep the directory they were submitted from, so that relative paths mean the same."""
    words = settings.python or ("python3" if settings.container is not None else shlex.quote(sys.executable))
    if code is None:
        return words
    paths = os.pathsep.join([str(code), *filter(None, [os.environ.get("PYTHONPATH")])])
    return f"env PYTHONSAFEPATH=1 {shlex.quote(f'PYTHONPATH={paths}')} {words}"


def script(settings: LaunchConfig, home: Path, count: int) -> str:
    """What sbatch would be given; nothing is submitted."""
    executor = open_executor(settings, home, launch_folder(home) / "code", count)._executor
    assert isinstance(executor, submitit.SlurmExecutor)
    if count > 1:
        executor.parameters["map_count"] = count
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def submit(settings: LaunchConfig, plan: Sequence[Planned], home: Path, is_sweep: bool) -> list[Launch]:
    """Copy the code, write configs, submit, write records. A debug job has run when this returns.

    Raises ``SlurmError`` with SLURM's own words when it refuses.
    """
    folder = launch_folder(home)
    folder.mkdir(parents=True, exist_ok=True)
    code = None if settings.executor == "debug" else folder / "code"
    if code is not None:
        print(f"code: {take_snapshot(code, settings.snapshot)} to {code}", file=sys.stderr)
    for job in plan:
        launch_folder(job.run_dir).mkdir(parents=True, exist_ok=True)
        (launch_folder(job.run_dir) / "stopped.txt").unlink(missing_ok=True)  # of an earlier launch
        if job.config:
            write_text(launch_folder(job.run_dir) / "config.yaml", job.config)
    with _clean_environment():
        executor = open_executor(settings, home, code, len(plan))
        jobs = _hand_over(executor, [Worker(str(job.run_dir), job.command, settings.max_requeues) for job in plan])
    launches = [_record(settings, one, job.job_id, folder / "logs", code) for one, job in zip(plan, jobs, strict=True)]
    for one, launch in zip(plan, launches, strict=True):
        write_record(launch_folder(one.run_dir) / "launch.json", launch)
    if is_sweep:
        runs = {one.run_dir.name: one.overrides for one in plan}
        write_record(folder / "sweep.json", Sweep(executor=settings.executor, submitted=now(), runs=runs))
    if settings.executor == "debug":
        for job in jobs:
            job.results()
    return launches


def _hand_over(executor: submitit.AutoExecutor, workers: list[Worker]) -> list[submitit.Job[None]]:
    printed = io.StringIO()  # submitit prints what sbatch said before it raises it
    try:
        with contextlib.redirect_stderr(printed):
            return executor.submit_array(workers)
    except (FailedJobError, FailedSubmissionError) as error:
        raise slurm.refusal(str(error)) from None


def _record(settings: LaunchConfig, one: Planned, job_id: str, logs: Path, code: Path | None) -> Launch:
    from jepa.checkpoint import code_version

    return Launch(
        command=one.command, executor=settings.executor, job_ids=[job_id], processes=settings.processes,
        submitted=now(), host=socket.gethostname(), cwd=os.getcwd(), logs=str(logs),
        code=None if code is None else str(code), code_version=code_version(), resources=to_dict(settings),
        overrides=one.overrides,
    )  # fmt: skip


@contextlib.contextmanager
def _clean_environment() -> Iterator[None]:
    """Inside a job, hide that job's variables from the one that is submitted; SLURM_CONF says where SLURM is."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    where = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with clean_env():
        os.environ.update(where)
        yield
