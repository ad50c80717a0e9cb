"""What the tests of real jobs share: launch, wait, ask SLURM, read what a run left."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support import tiny_settings

from app.cli import main
from app.launch.attempts import Attempt, read_attempts
from app.launch.records import launch_folder, read_launch
from jepa.checkpoint import load_checkpoint
from jepa.logging import read_metrics

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
STEPS = 80  # a second or two: long enough to be interrupted
# With so large an epsilon Adam's step is proportional to the gradient; else a rounding error in a gradient near zero
# would move its weight by the whole learning rate.
PROPORTIONAL = {"lr": {"start": 0.3, "peak": 0.3}, "eps": 1.0}


def settings_of(folder: Path, **train: Any) -> dict[str, Any]:
    """A tiny training config with its clips in ``folder``; its run goes to ``folder/run``."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = tiny_settings(folder, **{"steps": STEPS, "save_every": 10, "log_every": 1, "device": "cpu", **train})
    settings["optim"] = PROPORTIONAL
    settings["train"]["precision"] = "fp32"
    return settings


def launch(settings: dict[str, Any], *options: str, nodes: int = 1) -> Path:
    """``jepa launch`` with ``settings``, on ``nodes`` x one process; gives the run directory."""
    run_dir = Path(settings["run_dir"])
    config = run_dir.parent / "config.json"  # JSON is YAML
    config.write_text(json.dumps(settings))
    words = ["--nodes", str(nodes), "--time", "10", "--snapshot", "copy", *options]
    assert main(["launch", str(config), *words]) == 0
    return run_dir


def slurm(*command: str) -> str:
    """What a command of SLURM prints; it must succeed."""
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def job_of(run_dir: Path) -> str:
    launched = read_launch(run_dir)
    assert launched is not None
    return launched.job_id


def fact(run_dir: Path, name: str) -> str:
    """One of the facts that ``scontrol show job`` tells, such as JobState or Restarts."""
    words = slurm("scontrol", "show", "job", "--oneliner", job_of(run_dir)).split()
    return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))


def step_of(run_dir: Path) -> int:
    return max((record["step"] for record in read_metrics(run_dir)), default=0)


def wait(ready: Callable[[], bool], what: str, *run_dirs: Path, every_s: float = 0.3, timeout_s: float = 480) -> None:
    """Poll; where it does not come, fail with what the jobs wrote."""
    end = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}\n" + "\n".join(map(written, run_dirs))
        time.sleep(every_s)


def wait_for_step(run_dir: Path, step: int) -> None:
    wait(lambda: step_of(run_dir) >= step, f"step {step} of {run_dir}", run_dir, every_s=0.05)


def wait_for_start(run_dir: Path, number: int) -> Attempt:
    wait(lambda: len(read_attempts(run_dir)) >= number, f"start {number} of {run_dir}", run_dir)
    return read_attempts(run_dir)[number - 1]


def wait_for_end(run_dir: Path, state: str = "COMPLETED") -> None:
    wait(lambda: fact(run_dir, "JobState") in ENDED, f"{run_dir} ends", run_dir)
    assert fact(run_dir, "JobState") == state, written(run_dir)


def written(run_dir: Path) -> str:
    """The queue, the starts, and the end of every log of a run."""
    logs = sorted(launch_folder(run_dir).glob("logs/*.out")) + sorted(launch_folder(run_dir).glob("logs/*.err"))
    tails = [f"--- {path.name}\n{path.read_text()[-3000:]}" for path in logs]
    return "\n".join([slurm("squeue", "--states=all"), *map(str, read_attempts(run_dir)), *tails])


def ends(run_dir: Path) -> list[str | None]:
    """How each start of a run ended."""
    return [attempt.how for attempt in read_attempts(run_dir)]


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in read_metrics(run_dir) if "loss" in record]


def assert_same_run(run_dir: Path, other: Path) -> None:
    """Every loss and every weight at the end is equal, bit for bit."""
    assert losses(run_dir) == losses(other)
    ours, theirs = (load_checkpoint(path)["objective"] for path in (run_dir, other))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
