"""Memory of a training step without the device: the step runs on fake tensors, and every storage is followed.

A fake tensor has a shape and a type, but no numbers, so a ViT-G's step "runs" on a laptop. What is alive at each moment
is counted; what a real allocator adds (rounding, fragmentation, the CUDA context, work areas of libraries) is not.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from jepa.models.recompute import Recompute, set_recompute
from jepa.objectives import Objective
from jepa.optim import OptimConfig, build_optimizer
from jepa.types import Batch, TokenGrid


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators have made and that are still alive: ``now`` and ``peak``."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            size = self._known[storage] = storage.nbytes()
            weakref.finalize(storage, self._gone, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _gone(self, size: int) -> None:
        self.now -= size


class StepMemory(NamedTuple):
    """Bytes. ``resting``: weights, EMA and optimizer state, what is there between steps. ``gradients``: of all trained
    weights. ``kept``: what a forward pass keeps for the backward pass. ``peak``: the most at any moment."""

    resting: int
    gradients: int
    kept: int
    peak: int


def measure_step(objective: Objective, batch: Batch, recompute: Recompute, autocast: torch.dtype | None) -> StepMemory:
    """A step of ``objective`` (made on the meta device) on ``batch``, after its optimizer has been used once."""
    set_recompute(objective, recompute)
    with LiveBytes() as live:
        fill(objective)
        batch = Batch(clip=batch.clip.clone(), masks=batch.masks)
        optimizer = build_optimizer(objective, OptimConfig())
        for p in objective.parameters():
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        optimizer.step()  # makes the optimizer's state
        optimizer.zero_grad(set_to_none=True)
        resting = live.now
        live.peak = 0
        with contextlib.nullcontext() if autocast is None else torch.autocast("cpu", autocast):
            loss = objective(batch, 0.0).total
        kept = live.now - resting
        loss.backward()
        del loss
        gradients = live.now - resting
        optimizer.step()
        objective.after_step(0.0)
        return StepMemory(resting, gradients, kept, live.peak)


def fake_step(objective: Objective, batch: Callable[[], Batch], recompute: Recompute) -> StepMemory:
    """As on a GPU in bf16: the fused attention and rotary formula that run there, not the CPU's own ways."""
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_gpu():  # tables of positions are made once, outside
        return measure_step(objective, batch(), recompute, torch.bfloat16)


@contextlib.contextmanager
def as_on_gpu() -> Iterator[None]:
    """Fake CPU tensors take the same paths as CUDA tensors (fake CUDA tensors need a driver in their backward)."""
    with (
        mock.patch("jepa.models.linear.CPU_HAS_BF16", True),
        # plain functions: a Mock would keep the tensors it was called with
        mock.patch("jepa.models.rope._spelled_out", _yes),
        mock.patch("jepa.types.TokenGrid.check", unchecked),
    ):
        yield


def unchecked(grid: TokenGrid, ids: Tensor, name: str) -> None:
    """In place of ``TokenGrid.check``: fake ids have no values to look at."""


def _yes(x: Tensor) -> bool:
    return True


def fill(model: nn.Module) -> None:
    """Memory for weights and buffers that are on the meta device."""
    for module in model.modules():
        for name, value in list(module._parameters.items()):
            if value is not None and value.is_meta:
                empty = torch.zeros(value.shape, dtype=value.dtype)
                module._parameters[name] = nn.Parameter(empty, requires_grad=value.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
