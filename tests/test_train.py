from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_settings

from jepa import train
from jepa.checkpoint import latest_checkpoint, list_checkpoints, load_checkpoint, load_encoder
from jepa.config import ConfigError, from_dict, merge
from jepa.distributed import Run
from jepa.logging import read_metrics
from jepa.session import build, train_step
from jepa.train import TrainConfig, TrainError, fit

ROOT = Path(__file__).parent.parent
# With so large an epsilon Adam's step is proportional to the gradient; else a rounding error in a gradient near zero
# would move its weight by the whole learning rate.
PROPORTIONAL = {"lr": {"start": 0.3, "peak": 0.3}, "eps": 1.0}
KILLED = """
import os, signal, sys
from app.cli import main
from jepa import train

real_step = train.train_step

def step_or_die(session, batch, step):
    if step == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return real_step(session, batch, step)

train.train_step = step_or_die
sys.exit(main(sys.argv[1:]))
"""


def config_of(settings: dict[str, Any], **train_keys: Any) -> TrainConfig:
    return from_dict(TrainConfig, merge(settings, {"train": train_keys}))


def weights(run_dir: str | Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run_dir)["objective"]


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert different == []


@contextlib.contextmanager
def started(settings: dict[str, Any], folder: Path, *program: str) -> Iterator[subprocess.Popen[str]]:
    """``jepa train`` in a process of its own, gone at the end whatever happens."""
    path = folder / "config.json"  # JSON is YAML
    path.write_text(json.dumps(settings))
    command = [sys.executable, *(program or ("-m", "app.cli")), "train", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str], timeout_s: float = 600) -> None:
    end = time.monotonic() + timeout_s
    while not any(record["step"] >= step for record in read_metrics(run_dir)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"no step {step} within {timeout_s} s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps without interruption, with loader workers, noise in the loss (SIGReg) and a checkpoint every 5."""
    folder = tmp_path_factory.mktemp("straight")
    settings = resumable(folder)
    fit(config_of(settings))
    return folder / "run"


def resumable(folder: Path) -> dict[str, Any]:
    settings = tiny_settings(folder, steps=20, save_every=5, log_every=1, keep_last=10)
    settings["data"]["workers"] = 1
    settings["objective"]["regularizer"] = {"kind": "sigreg", "num_slices": 8}  # draws random numbers in every step
    settings["monitor"]["every"] = 4
    return settings


def test_a_run_leaves_what_it_promises(straight: Path) -> None:
    records = [record for record in read_metrics(straight) if "loss" in record]
    assert [record["step"] for record in records] == list(range(1, 21))
    for name in ("prediction", "grad_norm", "lr", "time/step_s", "time/data_wait_share", "time/clips_per_s"):
        assert all(record[name] >= 0 for record in records)
    assert [p.name for p in list_checkpoints(straight)] == [f"step_000000{n}.pt" for n in ("05", "10", "15", "20")]
    assert load_encoder(straight).embed_dim == 24
    assert (straight / "config.yaml").exists()
    assert "done: step 20" in (straight / "log.txt").read_text()
    monitored = [record["step"] for record in read_metrics(straight) if "monitor/rankme" in record]
    assert monitored == [0, 4, 8, 12, 16, 20]


def test_ten_kill_ten_equals_twenty_bit_for_bit(straight: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of a run, then the same run again: the same weights as 20 steps straight."""
    settings = resumable(tmp_path)
    with started(settings, tmp_path, "-c", KILLED) as process:
        _, errors = process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL, errors
    assert load_checkpoint(tmp_path / "run")["step"] == 10
    assert read_metrics(tmp_path / "run")[-1]["step"] == 12  # two steps are lost and will be computed again
    fit(config_of(settings))
    assert_same(weights(tmp_path / "run"), weights(straight))
    old, new = load_checkpoint(straight), load_checkpoint(tmp_path / "run")
    assert torch.equal(old["rng"][0]["torch"], new["rng"][0]["torch"])
    for key, state in old["optimizer"]["state"].items():
        assert_same(state, new["optimizer"]["state"][key])
    losses = {r["step"]: r["loss"] for r in read_metrics(straight) if "loss" in r}
    assert {r["step"]: r["loss"] for r in read_metrics(tmp_path / "run") if "loss" in r} == losses


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_signals_save_before_leaving(tmp_path: Path, number: signal.Signals) -> None:
    settings = resumable(tmp_path)
    settings["train"] |= {"steps": 100_000, "save_every": 100_000}
    settings["train"]["progress"] = "lines"
    with started(settings, tmp_path) as process:
        wait_for_step(tmp_path / "run", 3, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 128 + number, errors
    state = load_checkpoint(tmp_path / "run")
    assert state["step"] >= 3
    assert f"stopped by {number.name} at step {state['step']} of 100000" in errors
    assert "Traceback" not in errors
    assert read_metrics(tmp_path / "run")[-1]["step"] == state["step"]


def test_more_steps_and_free_keys_continue_a_run(settings: dict[str, Any]) -> None:
    fit(config_of(settings, steps=2))
    path = fit(config_of(settings, steps=4, log_every=1, save_every=3))
    assert load_checkpoint(path)["step"] == 4
    assert fit(config_of(settings, steps=4)) == path  # nothing left to do
    with pytest.raises(ConfigError, match=r"already at step 4, train.steps is 3"):
        fit(config_of(settings, steps=3))


def test_another_config_in_the_same_run_dir_is_refused(settings: dict[str, Any]) -> None:
    fit(config_of(settings, steps=1))
    other = merge(settings, {"seed": 3, "objective": {"momentum": [0.9, 1.0]}})
    with pytest.raises(ConfigError, match=r"objective.momentum.0: 0.998 -> 0.9; seed: 0 -> 3\)"):
        fit(config_of(other, steps=1))


def test_init_from_begins_with_the_other_runs_weights(settings: dict[str, Any], tmp_path: Path) -> None:
    path = fit(config_of(settings, steps=2))
    other = merge(settings, {"run_dir": str(tmp_path / "second"), "init_from": str(path), "seed": 5})
    config = config_of(other)
    with Run.start("cpu") as run:
        session = build(config, run)
        assert train.restore(session, None) == 0
        assert_same(session.objective.state_dict(), weights(path))
    wider = merge(other, {"run_dir": str(tmp_path / "third"), "encoder": {"embed_dim": 48}})
    with pytest.raises(ValueError, match=r"does not fit the configured model: encoder.patch_embed"):
        fit(config_of(wider))


@pytest.mark.parametrize("first_bad", [3, 4])
def test_a_loss_that_is_not_finite_stops_the_run(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
                                                 first_bad: int) -> None:  # fmt: skip
    """Whether it is seen at a log step or in between, it is named by its own step and never saved."""
    def spoilt(session: Any, batch: Any, step: int) -> dict[str, torch.Tensor]:
        values = train_step(session, batch, step)
        if step + 1 >= first_bad:
            values["loss"] = values["loss"] * float("nan")
        return values

    monkeypatch.setattr(train, "train_step", spoilt)
    message = rf"not finite at step {first_bad}: loss nan, grad_norm [\d.]+, prediction"
    with pytest.raises(TrainError, match=message) as caught:
        fit(config_of(settings, steps=8, log_every=4, save_every=2))
    assert "last good checkpoint: " + str(latest_checkpoint(settings["run_dir"])) in str(caught.value)
    assert load_checkpoint(settings["run_dir"])["step"] == 2


def test_a_full_disk_stops_with_the_last_checkpoint_intact(settings: dict[str, Any],
                                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    path = fit(config_of(settings, steps=2))
    before = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match=r"step_00000004.pt could not be written: No space left on device"):
        fit(config_of(settings, steps=4))
    assert path.read_bytes() == before


def test_accumulation_gives_the_same_update(settings: dict[str, Any]) -> None:
    settings["optim"] = PROPORTIONAL
    steps = {}
    for parts in (1, 2):
        with Run.start("cpu") as run:
            session = build(config_of(settings, accumulate=parts), run)
            batch = next(session.loader.iterate(0))
            values = train_step(session, copy.deepcopy(batch), 0)
            steps[parts] = (values, session.objective.state_dict())
    torch.testing.assert_close(steps[1][0]["loss"], steps[2][0]["loss"])
    torch.testing.assert_close(steps[1][0]["grad_norm"], steps[2][0]["grad_norm"])
    torch.testing.assert_close(steps[1][1], steps[2][1], rtol=1e-4, atol=1e-6)


def test_every_trained_parameter_moves_and_the_target_follows(settings: dict[str, Any]) -> None:
    settings["optim"] = {"lr": {"start": 1e-3, "peak": 1e-3}}
    with Run.start("cpu") as run:
        session = build(config_of(settings), run)
        before = copy.deepcopy(session.objective.state_dict())
        train_step(session, next(session.loader.iterate(0)), 0)
        after = session.objective.state_dict()
    still = [n for n in after if torch.equal(before[n], after[n]) and not n.endswith(".bias")]
    assert still == []


def test_bf16_on_the_cpu_trains(settings: dict[str, Any]) -> None:
    path = fit(config_of(settings, steps=2, precision="bf16"))
    assert all(t.dtype == torch.float32 for t in weights(path).values())


def test_two_processes_under_torchrun_equal_one(tmp_path: Path) -> None:
    """The same global batches, the same losses and (up to summation order) the same weights."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir(), together.mkdir()
    settings = {**tiny_settings(alone, steps=4, log_every=1, accumulate=2), "optim": PROPORTIONAL}
    fit(config_of(settings))
    shared = {**tiny_settings(together, steps=4, log_every=1, accumulate=2), "optim": PROPORTIONAL}
    path = together / "config.json"
    path.write_text(json.dumps(shared))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "app.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "train", str(path)], capture_output=True, text=True, timeout=600, check=False,
                          env=environment, cwd=ROOT)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [[r["loss"] for r in read_metrics(f / "run") if "loss" in r] for f in (alone, together)]
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(weights(together / "run"), weights(alone / "run"), rtol=1e-4, atol=1e-6)
    assert len(load_checkpoint(together / "run")["rng"]) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_cuda_trains(settings: dict[str, Any], precision: str) -> None:
    path = fit(config_of(settings, steps=4, device="cuda", precision=precision))
    assert load_checkpoint(path)["step"] == 4
    assert fit(config_of(settings, steps=6, device="cuda", precision=precision)) != path
