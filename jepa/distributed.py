"""One ``Run`` describes where this process computes: its device, its precision and its place among the processes.

One process, ``torchrun`` and a cluster launcher that exports torch's variables (``RANK``, ``WORLD_SIZE``,
``LOCAL_RANK``, ``MASTER_ADDR``, ``MASTER_PORT``) look the same to the code above. When several processes were started
but cannot find each other, that is an error: carrying on alone would train as many separate models as processes.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import gc
import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jepa.config import suggest
from jepa.precision import choose_precision, mixed
from jepa.rendezvous import DistributedError, RollCall, environment

__all__ = ["DistributedError", "Parallel", "Run", "choose_device", "process_place", "sum_over_processes", "to_float64"]
T = TypeVar("T")
Parallel = Literal["ddp", "fsdp"]


@dataclass(slots=True)
class Run:
    """Device, precision and rank of this process. Made by ``Run.start``; ``close`` it (or use ``with``) at the end."""

    device: torch.device
    precision: str
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    timeout_s: float = 600.0
    _vote: tuple[Tensor, dist.Work] | None = field(default=None, repr=False)
    _others: RollCall | None = field(default=None, repr=False)

    @classmethod
    def start(cls, device: str = "auto", precision: str = "auto", timeout_s: float = 600.0) -> Run:
        """Join the process group that the environment describes, or be alone when it describes none.

        ``device``: "auto" (CUDA, then MPS, then CPU), "cpu", "cuda", "cuda:1", "mps". ``precision``: "auto" is bf16 on
        CUDA devices that support it and fp32 elsewhere. ``timeout_s``: how long to wait for the other processes, now
        and later. The processes exchange CUDA tensors by NCCL, all others by gloo.
        Raises ``ValueError`` for an impossible choice, ``DistributedError`` when the processes cannot find each other
        (it names those that never came).
        """
        rank, local_rank, world_size = environment()
        place = choose_device(device, local_rank, world_size)
        run = cls(place, choose_precision(precision, place), rank, local_rank, world_size, timeout_s)
        if place.type == "cuda":
            torch.cuda.set_device(place)
        if world_size > 1:
            run._others = _join(run)
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
        ddp: Any = nn.parallel.DistributedDataParallel
        newer = "forward_sync_buffers" in inspect.signature(ddp).parameters  # what torch 2.15 calls it
        alone = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
        wrapped: nn.Module = ddp(module, gradient_as_bucket_view=True, **alone)
        return wrapped

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

    def from_main(self, items: Callable[[], Iterator[T]]) -> Iterator[T]:
        """The items that rank 0 makes, one after the other, on every process; a ``ValueError`` is raised on each."""
        source = items() if self.is_main else iter(())
        while True:
            found = self.on_main(lambda: list(itertools.islice(source, 1)))
            if not found:
                return
            yield found[0]

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

    def barrier(self, occasion: str = "barrier", timeout_s: float | None = None) -> None:
        """Wait until every process is here, on whatever device it computes.

        Raises ``DistributedError`` after ``timeout_s`` (the run's, if not given) with the ranks that are missing and
        their hosts; ``occasion`` says in it what was waited for.
        """
        if self._others is not None:
            self._others.meet(occasion, self.timeout_s if timeout_s is None else timeout_s)

    @property
    def hosts(self) -> dict[int, str]:
        """The host of every rank; empty when alone."""
        return {} if self._others is None else self._others.hosts

    def close(self, failed: bool = False) -> None:
        """Leave the process group. ``failed``: an error is on its way, so nobody is waited for."""
        if self._vote is not None and not failed:
            # An exchange still under way while the interpreter shuts down takes the process with it (abort).
            self._vote[1].wait()
        self._vote = None
        if self._others is not None:
            self._others.leave(wait=not failed)
            self._others = None
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()
            # Shards are in reference cycles and hold process groups, whose threads must end while the interpreter is
            # alive: a thread that finds it shutting down takes the process with it (abort) or never ends.
            atexit.unregister(gc.collect)
            atexit.register(gc.collect)

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


def _join(run: Run) -> RollCall:
    """Set up the process group, or raise ``DistributedError``: never go on alone."""
    if dist.is_initialized():
        raise DistributedError("this process already belongs to a process group; close the earlier Run first")
    others = RollCall(run.rank, run.world_size, run.timeout_s)
    others.join()
    # Both backends on CUDA: gloo carries the small CPU votes, NCCL the gradients.
    backend = "cpu:gloo,cuda:nccl" if run.device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", others.store), rank=run.rank, world_size=run.world_size,
            timeout=datetime.timedelta(seconds=run.timeout_s),
        )  # fmt: skip
        probe = torch.ones(1, device=run.device)
        dist.all_reduce(probe)
    except (RuntimeError, ValueError, OSError) as error:  # torch's DistError is a RuntimeError
        raise others.failure(error) from error
    if int(probe.item()) != run.world_size:
        raise DistributedError(f"{run.world_size} processes were announced, {int(probe.item())} answered")
    return others


def process_place() -> tuple[int, int]:
    """(rank, world size) of the process group that this process is in; (0, 1) without one."""
    together = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if together else (0, 1)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()  # every process's loss depends on x
        dist.all_reduce(total)
        return total


def sum_over_processes(x: Tensor) -> Tensor:
    """Sum of ``x`` (any shape) over the processes of the group, on each of them; ``x`` itself when alone.

    Gradients flow through it to every process. Where all compute the same loss from such sums, the gradient averaged
    over them, as DDP and FSDP do it, is that of one process with all the data. Backward is a collective call, too.
    """
    return x if process_place()[1] == 1 else _Sum.apply(x)


def to_float64(x: Tensor) -> Tensor:
    """``x`` in float64: on its own device, or on the CPU where the device has no float64 (Apple MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()
