"""Weights, gradients, optimizer state and EMA target in shards over the processes: FSDP2 (torch's ``fully_shard``).

Each transformer block is a unit: its weights come together for its own forward and backward pass and part again. The
context encoder, the predictor and the target encoder are separate roots, so that a look at one of them alone (monitor,
probes) works, provided that all processes take part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from jepa.distributed import Run
from jepa.models.layers import Block
from jepa.precision import DTYPES

M = TypeVar("M", bound=nn.Module)


def build_sharded(build: Callable[[], M], prepare: Callable[[M], Any], run: Run) -> M:
    """The module of ``build`` in shards on ``run.device``, with the weights that ``build`` gives it on rank 0.

    Only rank 0 holds the whole of it, on its CPU and for a moment. ``prepare`` may change its layers before they are
    cut, but neither names nor shapes of weights.
    """
    source = dict(_tensors(build())) if run.is_main else {}
    with torch.device("meta"):
        module = build()
    prepare(module)
    shard(module, run)
    module.to_empty(device=run.device)
    with torch.no_grad():
        for name, own in _tensors(module):  # buffers too: constants that no state dict holds would stay empty
            full = torch.empty(own.shape, dtype=own.dtype, device=run.device)
            if run.is_main:
                full.copy_(source.pop(name))
            dist.broadcast(full, 0)
            put(own, full)
    return module


def shard(module: nn.Module, run: Run) -> None:
    """Cut every child of ``module`` over all processes, each transformer block by itself.

    Master weights, gradients and their sums over processes are fp32; weights travel in the precision that autocast
    would round them to. Activations are left to autocast: a rotary table must not be rounded.
    """
    mesh = init_device_mesh(run.device.type, (run.world_size,))
    dtype = DTYPES[run.precision]
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for part in module.children():
        # a root would keep its weights whole after a forward pass; the EMA and a look need them back in shards
        for unit in (*blocks_of(part), part):
            fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
            if hasattr(unit, "extend"):  # of an action predictor and its blocks: the other way to call them
                register_fsdp_forward_method(unit, "extend")
    whole = [name for name, parameter in module.named_parameters() if not isinstance(parameter, DTensor)]
    assert not whole, f"parameters outside of the objective's parts are not cut: {whole}"


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The transformer blocks of ``module``."""
    return [block for block in module.modules() if isinstance(block, Block)]


def is_sharded(module: nn.Module) -> bool:
    """Whether the parts of ``module`` are cut over processes, so that all must take part in calling one."""
    return any(isinstance(part, FSDPModule) for part in module.children())


def exchange_gradients(module: nn.Module, exchange: bool) -> None:
    """Whether the next backward pass sums gradients over the processes, or each keeps (whole) ones for the next."""
    for part in module.children():
        if isinstance(part, FSDPModule):
            part.set_requires_gradient_sync(exchange)


# ---- tensors in shards -----------------------------------------------------------------------------------------------


def local(tensor: Tensor) -> Tensor:
    """This process's shard, sharing memory; a tensor that is not cut is its own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, all shards of all processes counted; a scalar on the device."""
    cut = [isinstance(tensor, DTensor) for tensor in tensors]
    assert all(cut) or not any(cut), "a whole tensor beside shards would be counted once per process"
    norm = nn.utils.get_total_norm([local(tensor) for tensor in tensors])
    if not any(cut):
        return norm
    square = norm.square()
    dist.all_reduce(square)
    return square.sqrt()


def put(own: Tensor, full: Tensor) -> None:
    """Copy ``full`` into ``own``; where that is cut, the part that belongs to this process. Nothing is exchanged."""
    if isinstance(own, DTensor):
        full = distribute_tensor(full.to(own.device), own.device_mesh, own.placements, src_data_rank=None).to_local()
    local(own).copy_(full)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def optimizer_room(optimizer: torch.optim.Optimizer, saved: Mapping[int, Mapping[str, Tensor]]) -> dict[int, dict]:
    """Room for the state ``saved`` of ``optimizer``'s parameters: tensors of their shape are cut as they are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def room(like: Tensor, parameter: Tensor) -> Tensor:
        return torch.zeros_like(parameter) if like.shape == parameter.shape else torch.zeros(like.shape)

    return {n: {key: room(value, parameters[n]) for key, value in values.items()} for n, values in saved.items()}
