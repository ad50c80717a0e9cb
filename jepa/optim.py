"""AdamW with parameter groups, and the schedules that move its learning rate and weight decay."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from jepa.schedules import RampKind, ScheduleConfig, ramp
from jepa.sharding import local, total_norm


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW (arXiv 1711.05101).

    ``lr``: schedule of the learning rate. ``weight_decay`` and ``final_weight_decay``: its value at the first and at
    the last step (``None``: constant), reached along ``weight_decay_schedule``. ``clip_norm``: largest norm of the
    whole gradient (``None``: no clipping).
    """

    lr: ScheduleConfig = field(default_factory=ScheduleConfig)
    weight_decay: float = 0.04
    final_weight_decay: float | None = None
    weight_decay_schedule: RampKind = "cosine"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if self.weight_decay < 0 or (self.final_weight_decay or 0.0) < 0:
            raise ValueError(f"weight_decay must not be negative: {self.weight_decay} to {self.final_weight_decay}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), not {list(self.betas)}")
        if self.eps <= 0:
            raise ValueError(f"eps must be positive, not {self.eps}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be positive, not {self.clip_norm}; leave it out for no clipping")


def parameter_groups(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Trainable parameters that decay, and those that do not: vectors (norms, biases) and mask tokens."""
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            small = parameter.ndim <= 1 or "mask_token" in name
            (plain if small else decayed).append(parameter)
    return decayed, plain


def build_optimizer(module: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW over the trainable parameters of ``module``: group 0 decays, group 1 does not."""
    decayed, plain = parameter_groups(module)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    fused = all(p.device.type in ("cuda", "cpu") and p.is_floating_point() for p in (*decayed, *plain))
    return AdamW(groups, lr=config.lr.peak, betas=config.betas, eps=config.eps, fused=fused, foreach=not fused)


def apply_schedules(optimizer: Optimizer, config: OptimConfig, step: int, total_steps: int) -> dict[str, float]:
    """Set learning rate and weight decay for ``step`` (counted from 0); returns both for the log."""
    lr = config.lr.value(step, total_steps)
    end = config.weight_decay if config.final_weight_decay is None else config.final_weight_decay
    decay = ramp(config.weight_decay_schedule, config.weight_decay, end, step / max(total_steps - 1, 1))
    for group, weight_decay in zip(optimizer.param_groups, (decay, 0.0), strict=True):
        group["lr"], group["weight_decay"] = lr, weight_decay
    return {"lr": lr, "weight_decay": decay}


def clip_gradients(module: nn.Module, config: OptimConfig) -> Tensor:
    """Scale the gradient down to ``clip_norm`` where one is set; returns its norm before, a scalar on the device."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    norm = total_norm(gradients)
    if config.clip_norm is not None:
        torch._foreach_mul_([local(g) for g in gradients], (config.clip_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
