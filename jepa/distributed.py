"""One ``Run`` describes where this process computes: its device, its precision and its place among the processes.

One process, ``torchrun`` and a cluster launcher that exports torch's variables (``RANK``, ``WORLD_SIZE``,
``LOCAL_RANK``, ``MASTER_ADDR``, ``MASTER_PORT``) look the same to the code above. When several processes were started
but cannot find each other, that is an error: carrying on alone would train as many separate models as processes.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jepa.config import suggest
from jepa.precision import choose_precision, mixed

T = TypeVar("T")
Parallel = Literal["ddp", "fsdp"]
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class DistributedError(ValueError):
    """The processes of a run cannot work together; the message says what is missing."""


@dataclass(slots=True)
class Run:
    """Device, precision and rank of this process. Made by ``Run.start``; ``close`` it (or use ``with``) at the end."""

    device: torch.device
    precision: str
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    _vote: tuple[Tensor, dist.Work] | None = field(default=None, repr=False)

    @classmethod
    def start(cls, device: str = "auto", precision: str = "auto", timeout_s: float = 600.0) -> Run:
        """Join the process group that the environment describes, or be alone when it describes none.

        ``device``: "auto" (CUDA, then MPS, then CPU), "cpu", "cuda", "cuda:1", "mps". ``precision``: "auto" is bf16 on
        CUDA devices that support it and fp32 elsewhere. ``timeout_s``: how long to wait for the other processes.
        Raises ``ValueError`` for an impossible choice, ``DistributedError`` when the processes cannot find each other.
        """
        rank, local_rank, world_size = _environment()
        place = choose_device(device, local_rank, world_size)
        run = cls(place, choose_precision(precision, place), rank, local_rank, world_size)
        if place.type == "cuda":
            torch.cuda.set_device(place)
        if world_size > 1:
            _join(run, timeout_s)
        return run

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """``module`` itself when alone; else in DistributedDataParallel, with rank 0's weights everywhere."""
        if self.world_size == 1:
            return module
        # Buffers are constants or follow from the weights: broadcasting them every step would only cost time.
        return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Mixed precision for the forward pass; nothing at fp32."""
        return mixed(self.precision, self.device)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """The loss scaler: active for fp16 only, a pass-through otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def reduce_mean(self, values: Tensor) -> Tensor:
        """Mean of a tensor (any shape) over the processes, on each of them; a NaN anywhere is a NaN everywhere."""
        if self.world_size == 1:
            return values
        # AVG exists for NCCL only, so divide first: the same code for gloo.
        total = values.detach() / self.world_size
        dist.all_reduce(total)
        return total

    def gather(self, value: object) -> list[object]:
        """One small picklable object per process, in rank order, on each of them."""
        if self.world_size == 1:
            return [value]
        values: list[object] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def gather_rows(self, rows: Tensor) -> Tensor:
        """The rows of all processes ``[sum of B, ...]`` in rank order, on each of them; B may differ."""
        if self.world_size == 1:
            return rows
        counts = [int(count) for count in self.gather(len(rows))]  # type: ignore[call-overload]
        padded = rows.new_zeros(max(counts), *rows.shape[1:], device=self.device)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(rows.device)

    def on_main(self, action: Callable[[], T]) -> T:
        """The result of ``action``, run on rank 0 only, on every process; a ``ValueError`` of it is raised on each."""
        if self.world_size == 1:
            return action()
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = action()
            except ValueError as error:
                box[1] = error
        dist.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def any_last_step(self, flag: bool) -> bool:
        """Whether any process raised its flag in the *previous* call; call it once per step on every process.

        A signal reaches the processes in different steps, yet all must stop after the same one. The vote travels over
        the CPU group while the step computes and is read one call later, so nobody waits for a device or a network.
        """
        if self.world_size == 1:
            return flag
        decided = False
        if self._vote is not None:
            votes, work = self._vote
            work.wait()
            decided = bool(votes.item())
        votes = torch.tensor([int(flag)])
        self._vote = (votes, dist.all_reduce(votes, op=dist.ReduceOp.MAX, async_op=True))
        return decided

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()

    def close(self, failed: bool = False) -> None:
        """Leave the process group. ``failed``: an error is on its way, so nobody is waited for."""
        if self._vote is not None and not failed:
            # An exchange still under way while the interpreter shuts down takes the process with it (abort).
            self._vote[1].wait()
        self._vote = None
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.close(failed=error[0] is not None and not isinstance(error[1], SystemExit))


def choose_device(device: str = "auto", local_rank: int = 0, world_size: int = 1) -> torch.device:
    """The device that ``device`` means on this machine. Raises ``ValueError`` when it is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if device == "mps" and world_size > 1:
            device = "cpu"  # no process group reaches MPS tensors
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdigit()):
        raise ValueError(f"device {device!r} is unknown{suggest(kind, ['auto', 'cpu', 'cuda', 'mps'])}")
    if kind == "cpu":
        return torch.device("cpu")
    if kind == "mps":
        if not torch.backends.mps.is_available() or world_size > 1:
            raise ValueError("device mps needs Apple silicon and a single process; use device cpu")
        return torch.device("mps")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(number) if number and world_size == 1 else local_rank
    if index >= count:
        raise ValueError(f"device cuda:{index} is not there: torch sees {count} CUDA devices; use device cpu")
    return torch.device("cuda", index)


def _environment() -> tuple[int, int, int]:
    """(rank, local rank, world size) from torch's variables; (0, 0, 1) when there are none."""
    found = [name for name in _VARIABLES if os.environ.get(name)]
    if "RANK" not in found and "WORLD_SIZE" not in found:
        tasks = os.environ.get("SLURM_NTASKS", "1")
        if "SLURM_PROCID" in os.environ and tasks.isdigit() and int(tasks) > 1:
            raise DistributedError(
                f"Slurm started {tasks} tasks, but RANK and WORLD_SIZE are not set: they would train {tasks} separate "
                "models; start with torchrun, or export torch's variables"
            )
        return 0, 0, 1
    missing = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name not in found]
    if missing:
        raise DistributedError(f"{', '.join(missing)} missing beside {', '.join(found)}; start with torchrun")
    try:
        rank, world_size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except ValueError:
        raise DistributedError("RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers; start with torchrun") from None
    if not 0 <= rank < world_size:
        raise DistributedError(f"RANK {rank} does not fit WORLD_SIZE {world_size}; start with torchrun")
    return rank, local_rank, world_size


def _join(run: Run, timeout_s: float) -> None:
    """Set up the process group, or raise ``DistributedError``: never go on alone."""
    if dist.is_initialized():
        raise DistributedError("this process already belongs to a process group; close the earlier Run first")
    # Both backends on CUDA: gloo carries the small CPU votes, NCCL the gradients.
    backend = "cpu:gloo,cuda:nccl" if run.device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))
        probe = torch.ones(1, device=run.device)
        dist.all_reduce(probe)
    except (RuntimeError, ValueError, OSError) as error:  # torch's DistError is a RuntimeError
        reason = str(error).strip().splitlines()[0][:300]
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise DistributedError(
            f"rank {run.rank} of {run.world_size} could not join the others at {place} within {timeout_s:.0f} s: "
            f"{reason}; check that every process was started and can reach that address"
        ) from error
    if int(probe.item()) != run.world_size:
        raise DistributedError(f"{run.world_size} processes were announced, {int(probe.item())} answered")


def to_float64(x: Tensor) -> Tensor:
    """``x`` in float64: on its own device, or on the CPU where the device has no float64 (Apple MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()
