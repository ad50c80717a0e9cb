"""Stopping on request: signals, time limits, exact resume, checkpoints that survive a death in the middle of a save."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from slurm.cluster import free_ports
from support import tiny_settings

from jepa import train
from jepa.checkpoint import latest_checkpoint, load_checkpoint, step_of
from jepa.config import from_dict
from jepa.stopping import STOP_SIGNALS, Stopped, StopSignal
from jepa.train import TrainConfig, fit

ROOT = Path(__file__).parent.parent


def test_stop_signal_notes_the_first_and_gives_the_handlers_back() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopSignal() as stop:
        assert (stop.signum, stop.reason) == (None, None)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop.signum, stop.reason) == (signal.SIGTERM, "SIGTERM")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_an_inner_stop_signal_takes_over_and_hands_back(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignal() as early:
        os.kill(os.getpid(), signal.SIGUSR1)
        with StopSignal() as inner:
            assert inner.reason == "SIGUSR1"
    assert capfd.readouterr().err.count("jepa: SIGUSR1: stopping") == 1
    with StopSignal() as outer:
        with StopSignal() as inner:
            os.kill(os.getpid(), signal.SIGUSR2)
        assert outer.reason == "SIGUSR2"
    assert early.reason == "SIGUSR1"


def test_at_once_raises_where_the_program_is() -> None:
    with StopSignal(at_once=(signal.SIGUSR1,)) as stop, pytest.raises(Stopped) as stopped:
        os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.reason == stopped.value.reason == "SIGUSR1"
    assert stopped.value.code == 128 + signal.SIGUSR1
    assert Stopped("time limit").code == 128 + signal.SIGUSR1


# ---- a run that is stopped and goes on is the run that was not stopped -----------------------------------------------


def settings_of(folder: Path, **train: Any) -> dict[str, Any]:
    settings = tiny_settings(folder, steps=8, log_every=1, save_every=3, device="cpu", precision="fp32", **train)
    settings["objective"]["regularizer"] = {"kind": "sigreg", "num_slices": 8}  # draws random numbers in every step
    return settings


def config_of(settings: dict[str, Any]) -> TrainConfig:
    return from_dict(TrainConfig, settings)


def figures(run_dir: Path) -> list[dict[str, Any]]:
    """Every line of ``metrics.jsonl`` with a loss, without what depends on the clock."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    noise = ("time/", "memory/", "throughput/")
    return [{k: v for k, v in line.items() if not k.startswith(noise)} for line in lines if "loss" in line]


def assert_same_run(straight: Path, other: Path) -> None:
    """Losses and all other figures of every step, weights, optimizer and random state: equal to the last bit."""
    assert [line["step"] for line in figures(other)] == list(range(1, 9))
    assert figures(other) == figures(straight)
    a, b = (load_checkpoint(latest_checkpoint(folder) or folder) for folder in (straight, other))
    assert a["step"] == b["step"] == 8
    for name, value in a["objective"].items():
        assert torch.equal(value, b["objective"][name]), name
    for key, state in a["optimizer"]["state"].items():
        assert all(torch.equal(value, b["optimizer"]["state"][key][name]) for name, value in state.items())
    assert torch.equal(a["rng"][0]["torch"], b["rng"][0]["torch"])


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps without interruption."""
    folder = tmp_path_factory.mktemp("straight")
    fit(config_of(settings_of(folder)))
    return folder / "run"


def stopped_fit(config: TrainConfig) -> Stopped:
    with pytest.raises(Stopped) as stopped:
        fit(config)
    return stopped.value


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int, action: Callable[[], None]) -> None:
    """Do something in the middle of the step after ``at`` steps."""
    real = train.train_step

    def step_and_act(session: Any, batch: Any, step: int) -> Any:
        if step == at:
            action()
        return real(session, batch, step)

    monkeypatch.setattr(train, "train_step", step_and_act)


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2", "SIGTERM", "SIGINT"])
def test_a_stop_by_signal_and_a_resume_are_an_uninterrupted_run(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config, number = config_of(settings_of(tmp_path)), signal.Signals[name]
    with monkeypatch.context() as patch:
        interrupt(patch, 4, lambda: os.kill(os.getpid(), number))
        stopped = stopped_fit(config)
    saved = tmp_path / "run" / "checkpoints" / "step_00000005.pt"
    assert (stopped.step, stopped.reason, stopped.saved) == (5, name, saved)
    assert stopped.code == 128 + number
    assert [line["step"] for line in figures(tmp_path / "run")] == [1, 2, 3, 4, 5]
    fit(config)
    assert_same_run(straight, tmp_path / "run")


def test_a_stop_by_the_time_limit_and_a_resume_are_an_uninterrupted_run(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, hour_s = config_of(settings_of(tmp_path, time_limit_min=60.0)), 3600.0
    clock = [0.0]
    with monkeypatch.context() as patch:
        patch.setattr("jepa.stopping.time", SimpleNamespace(monotonic=lambda: clock[0]))
        interrupt(patch, 3, lambda: clock.__setitem__(0, hour_s - 0.001))
        interrupt(patch, 6, lambda: clock.__setitem__(0, hour_s))
        stopped = stopped_fit(config)
    assert (stopped.step, stopped.reason) == (7, "time limit")
    assert stopped.code == 128 + signal.SIGUSR1
    fit(config)  # a free key, and the limit counts anew
    assert_same_run(straight, tmp_path / "run")
    with pytest.raises(ValueError, match="time_limit_min must be above 0, not 0"):
        config_of(settings_of(tmp_path, time_limit_min=0.0))


def test_a_signal_before_the_loop_is_not_lost(straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the model is built, twice: it stops before the first step, with all saved."""
    config = config_of(settings_of(tmp_path))
    real = train.build

    def build_under_fire(*parts: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR2)
        return real(*parts)

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(train, "build", build_under_fire)
            stopped = stopped_fit(config)
        assert (stopped.step, stopped.reason) == (0, "SIGUSR2")
        assert stopped.saved == tmp_path / "run" / "checkpoints" / "step_00000000.pt"
    fit(config)
    assert_same_run(straight, tmp_path / "run")


def test_signals_during_the_save_do_not_spoil_it(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, real = config_of(settings_of(tmp_path)), torch.save

    def save_under_fire(state: Any, file: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        real(state, file)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_under_fire)  # the regular save of step 3; the stop follows after step 4
        stopped = stopped_fit(config)
    assert (stopped.step, stopped.reason) == (4, "SIGTERM")
    fit(config)
    assert_same_run(straight, tmp_path / "run")


DIES_IN_SAVE = """
import io, os, signal, sys
import torch
from app.cli import main
from jepa.checkpoint import latest_checkpoint

real, (run_dir, size) = torch.save, sys.argv[1:3]

class Dying:
    "A file that kills its process, as a power cut would, when byte ``size`` is about to be written."
    def __init__(self, file):
        self.file = file
    def __getattr__(self, name):
        return getattr(self.file, name)
    def write(self, data):
        if self.file.tell() + len(data) > int(size):
            self.file.write(bytes(data)[: int(size) - self.file.tell()])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.file.write(data)

torch.save = lambda state, file: real(state, file if latest_checkpoint(run_dir) is None else Dying(file))
sys.exit(main(sys.argv[3:]))
"""


def test_a_death_in_the_middle_of_a_save_leaves_the_previous_checkpoint(straight: Path, tmp_path: Path) -> None:
    """Killed at byte 20000 of the second checkpoint: the half file has another name, and the resume is exact."""
    settings, run_dir = settings_of(tmp_path), tmp_path / "run"
    (tmp_path / "config.json").write_text(json.dumps(settings))
    command = [sys.executable, "-c", DIES_IN_SAVE, str(run_dir), "20000", "train", str(tmp_path / "config.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    died = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    left = {path.name: path.stat().st_size for path in (run_dir / "checkpoints").iterdir()}
    assert left.pop(".step_00000006.pt.tmp") == 20000
    assert list(left) == ["step_00000003.pt"]
    assert [line["step"] for line in figures(run_dir)] == [1, 2, 3, 4, 5, 6]  # 4 to 6 are computed, and written, again
    fit(config_of(settings))
    assert_same_run(straight, run_dir)
    assert [path.name for path in (run_dir / "checkpoints").glob(".*")] == []


# ---- two processes ---------------------------------------------------------------------------------------------------

TWO = """
import json, os, signal, sys, time
from jepa import train
from jepa.config import from_dict
from jepa.stopping import Stopped

rank, settings, real = os.environ["RANK"], json.loads(sys.argv[1]), train.train_step

def step_and_act(session, batch, step):
    if rank == "1" and step == 2 and "STOPPED" not in os.environ:
        os.kill(os.getpid(), signal.SIGUSR1)  # only this process is told
    if rank == "1" and step == 5:
        os._exit(9)
    return real(session, batch, step)

train.train_step = step_and_act
config = from_dict(train.TrainConfig, settings)
try:
    train.fit(config)
except Stopped as stopped:
    print("stopped", stopped.step, stopped.reason, stopped.code, flush=True)
os.environ |= {"STOPPED": "1", "MASTER_PORT": sys.argv[2]}
began = time.monotonic()
try:
    train.fit(config)
except ValueError as error:
    print("error", round(time.monotonic() - began), type(error).__name__, error, flush=True)
"""


def test_a_signal_on_one_process_stops_all_and_a_vanished_process_is_named(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    ports = [str(port) for port in free_ports(2)]
    pipe, started = subprocess.PIPE, []
    for rank in ("0", "1"):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        environment = {**os.environ, **own, "MASTER_PORT": ports[0], "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", TWO, json.dumps(settings), ports[1]]
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=tmp_path))
    try:
        (printed, errors), (printed_1, errors_1) = (process.communicate(timeout=600) for process in started)
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 9], errors + errors_1
    lines = printed.splitlines()
    assert lines[0] == printed_1.splitlines()[0] == f"stopped 4 SIGUSR1 {128 + signal.SIGUSR1}", errors
    _, seconds, kind, message = lines[1].split(maxsplit=3)
    assert (kind, int(seconds) < 30) == ("LostPeersError", True)
    assert re.match(r"rank 0 of 2 on \S+ lost another process of this run", message)
    assert f"What {tmp_path}/run has of checkpoints is intact" in message
    assert step_of(latest_checkpoint(tmp_path / "run") or tmp_path) == 4
