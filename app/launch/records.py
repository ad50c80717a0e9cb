"""What a launch leaves in ``run_dir/launch``: ``launch.json`` (``Launch``), ``config.yaml``, ``logs``, ``code``; of a
sweep, ``sweep.json`` (``Sweep``) in its folder, and the rest in the folder of every run."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from jepa.config import ConfigError, from_dict, to_dict
from jepa.files import atomic_write

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """One submitted job. ``command``: words for `jepa`. ``logs``: a file per job and process. ``code``: the copy of
    the code (None: it runs the checkout itself). ``resources``: the settings. ``overrides``: what a sweep changed."""

    command: list[str]
    executor: str
    job_ids: list[str]
    processes: int
    submitted: str
    host: str
    cwd: str
    logs: str
    code: str | None
    code_version: str
    resources: dict[str, Any]
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def job_id(self) -> str:
        return self.job_ids[-1]

    @property
    def is_here(self) -> bool:
        """Whether it was submitted on this machine, whose processes can be looked at."""
        return self.host == socket.gethostname()


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """The runs of a sweep: folder names, and what each changes."""

    executor: str
    submitted: str
    runs: dict[str, dict[str, Any]]


def launch_folder(run_dir: str | Path) -> Path:
    return Path(run_dir) / "launch"


def read_launch(run_dir: str | Path) -> Launch | None:
    """The last launch of a run; None if it never was launched."""
    return _read(Launch, launch_folder(run_dir) / "launch.json")


def read_sweep(folder: str | Path) -> Sweep | None:
    """The sweep in this folder; None if it holds none."""
    return _read(Sweep, launch_folder(folder) / "sweep.json")


def _read(kind: type[T], path: Path) -> T | None:
    if not path.exists():
        return None
    try:
        return from_dict(kind, json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}; remove it to launch anew, once no job of it waits or runs (its job ids "
            "begin the names in launch/logs)"
        ) from None


def write_record(path: Path, record: Launch | Sweep) -> None:
    """Put a record on the disk, complete or not at all."""
    write_text(path, json.dumps(to_dict(record), indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text.encode())


def log_path(launch: Launch, rank: int = 0) -> Path:
    """Where a process of the job writes what it prints."""
    from submitit.core.utils import JobPaths

    return JobPaths(launch.logs, job_id=launch.job_id, task_id=rank).stdout


def result_path(launch: Launch, rank: int = 0) -> Path:
    """Where submitit puts what a process returned, or its traceback."""
    from submitit.core.utils import JobPaths

    return JobPaths(launch.logs, job_id=launch.job_id, task_id=rank).result_pickle


def controller_is_alive(launch: Launch) -> bool:
    """Whether the process that looks after a local job still runs, and is not another one with its number."""
    try:
        os.kill(int(launch.job_id), 0)
        words = Path(f"/proc/{launch.job_id}/cmdline").read_bytes()
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's: the number was used again
        return False
    except FileNotFoundError:  # no /proc (macOS): the number has to do
        return True
    return b"submitit.local._local" in words
