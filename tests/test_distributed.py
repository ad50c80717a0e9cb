from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from slurm.cluster import free_ports

from jepa.distributed import DistributedError, Run, choose_device
from jepa.precision import choose_precision

ROOT = Path(__file__).parent.parent
PATIENCE_S = 900.0  # for what takes seconds on an idle machine
WORKER = """
import torch
from jepa.distributed import Run

with Run.start("cpu") as run:
    assert (run.rank, run.world_size, run.is_main) == (run.rank, 2, run.rank == 0)
    mean = run.reduce_mean(torch.tensor([float(run.rank), 4.0]))
    bad = run.reduce_mean(torch.tensor(float("nan") if run.rank else 1.0))
    torch.manual_seed(run.rank)
    model = run.wrap(torch.nn.Linear(2, 1))
    model(torch.full((1, 2), float(run.rank))).sum().backward()
    # rank 1 alone raises its flag in the second step: both hear of it in the third
    votes = [run.any_last_step(run.rank == 1 and step == 1) for step in range(4)]
    try:
        run.on_main(lambda: int("x"))
        failed = "no"
    except ValueError:
        failed = "yes"
    assert run.on_main(lambda: run.rank) == 0
    grads = model.module.weight.grad.tolist()[0]
    print(f"rank {run.rank}", mean.tolist(), bad.item(), grads, votes, run.gather(run.rank), failed, flush=True)
"""


AGAIN = """
import os, time
import torch
import torch.distributed as dist
from jepa.distributed import Run

end = dist.destroy_process_group

def later():
    if os.environ["RANK"] == "0":
        time.sleep(1)  # the other is in its next run by now
    end()

dist.destroy_process_group = later
for count in range(3):
    with Run.start("cpu", timeout_s=30) as run:
        assert run.reduce_mean(torch.tensor([float(run.rank + count)])).item() == 0.5 + count
print("all met", flush=True)
"""


def outputs(script: str, processes: int = 2) -> list[str]:
    """What each prints of the processes that torchrun would start, without its own slow start.

    Fails where one of them does, and leaves none behind.
    """
    started, printed = _start(script, processes), []
    try:
        for process in started:
            out, errors = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, errors[-4000:]
            printed.append(out)
    finally:
        for process in started:
            process.kill()
    return printed


def _start(script: str, processes: int) -> list[subprocess.Popen[str]]:
    started, (port,) = [], free_ports(1)
    for rank in range(processes):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", **{k: str(v) for k, v in own.items()}}
        command = [sys.executable, "-c", script]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=ROOT))
    return started


def test_two_processes_reduce_vote_and_fail_together() -> None:
    for rank, printed in enumerate(outputs(WORKER)):
        line = f"rank {rank} [0.5, 4.0] nan [0.5, 0.5] [False, False, True, False] [0, 1] yes"
        assert line in printed


class _Exchange:
    """Stands for an exchange between processes that is under way."""

    waited = False

    def wait(self) -> None:
        self.waited = True


@pytest.mark.parametrize("failed", [False, True])
def test_closing_waits_for_the_last_vote_unless_something_failed(failed: bool) -> None:
    exchange = _Exchange()
    with contextlib.suppress(KeyError), Run(torch.device("cpu"), "fp32") as run:
        run._vote = (torch.zeros(1), exchange)  # type: ignore[assignment]
        if failed:
            raise KeyError
    assert exchange.waited is not failed


def test_alone_nothing_is_wrapped_or_reduced() -> None:
    with Run.start("cpu") as run:
        model = torch.nn.Linear(2, 1)
        assert run.wrap(model) is model
        assert (run.rank, run.world_size, run.precision, run.device.type) == (0, 1, "fp32", "cpu")
        assert run.any_last_step(True)
        assert run.gather(5) == [5]
        assert run.on_main(lambda: 3) == 3
        assert run.reduce_mean(torch.tensor(2.0)) == 2


def test_a_rank_may_be_in_the_next_run_before_rank_0_has_ended_the_last() -> None:
    """Several runs in one process, as in a script of experiments: rank 0 serves the store of all of them."""
    assert outputs(AGAIN) == ["all met\n"] * 2


def test_a_process_group_that_cannot_form_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DistributedError, match=r"rank 1 of 2 could not join the others at 127.0.0.1:9 within 1 s"):
        Run.start("cpu", timeout_s=1.0)
    assert not torch.distributed.is_initialized()


def test_ranks_that_never_came_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    settings = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    message = rf"rank 0 of 3 could not .* within 1 s: rank 1, rank 2 never came, only 0 \({socket.gethostname()}\) did"
    with pytest.raises(DistributedError, match=message):
        Run.start("cpu", timeout_s=1.0)
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(DistributedError, match=r"MASTER_PORT must be set for 3 processes"):
        Run.start("cpu", timeout_s=1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"RANK": "0"}, "WORLD_SIZE, LOCAL_RANK missing"),
        ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK missing"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK 2 does not fit WORLD_SIZE 2"),
        ({"RANK": "a", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "whole numbers"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, "would train 8 separate models"),
    ],
)
def test_half_an_environment_is_an_error(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], message: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DistributedError, match=message):
        Run.start("cpu")


def test_device_and_precision_choices() -> None:
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_precision("auto", cpu) == "fp32"
    assert choose_precision("bf16", cpu) == "bf16"
    with pytest.raises(ValueError, match="did you mean 'cuda'"):
        choose_device("cudda")
    with pytest.raises(ValueError, match="fp16 needs a CUDA device"):
        choose_precision("fp16", cpu)
    with pytest.raises(ValueError, match="precision 'half' is unknown"):
        choose_precision("half", cpu)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"cuda:0 is not there: torch sees 0 CUDA devices; use device cpu"):
            choose_device("cuda")


def test_autocast_on_cpu_computes_in_bf16() -> None:
    with Run.start("cpu", "bf16") as run, run.autocast():
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
    with Run.start("cpu", "fp32") as run, run.autocast():
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32
    assert not Run.start("cpu").grad_scaler().is_enabled()
