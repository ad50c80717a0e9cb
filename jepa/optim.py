"""AdamW or Muon with parameter groups, and the schedules that move learning rate and weight decay."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Muon, Optimizer

from jepa.config import ConfigError
from jepa.schedules import RampKind, ScheduleConfig, ramp
from jepa.sharding import local, total_norm


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """``kind``: AdamW (arXiv 1711.05101), or Muon (kellerjordan.github.io/posts/muon; arXiv 2502.16982) for all
    matrices and AdamW for the rest. ``matrix_lr``: Muon's learning rate is so many times ``lr``; at 1 its updates are
    as large as AdamW's.

    ``lr``: schedule of the learning rate. ``weight_decay`` and ``final_weight_decay``: its value at the first and at
    the last step (``None``: constant), reached along ``weight_decay_schedule``. ``clip_norm``: largest norm of the
    whole gradient (``None``: no clipping).
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: ScheduleConfig = field(default_factory=ScheduleConfig)
    matrix_lr: float = 1.0
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
        if self.matrix_lr <= 0 or (self.matrix_lr != 1 and self.kind == "adamw"):
            raise ValueError(f"matrix_lr must be positive, and belongs to kind: muon; it is {self.matrix_lr:g}")
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


class MuonAdamW(Optimizer):
    """PyTorch's Muon for ``matrices`` and its AdamW for all else, as one optimizer with one state: group 0 are the
    matrices, group 1 decays, group 2 does not."""

    def __init__(self, matrices: list[Tensor], others: AdamW, config: OptimConfig) -> None:
        groups = [{"params": matrices, "lr_scale": config.matrix_lr}]
        muon = Muon(groups, lr=config.lr.peak, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
        self.parts: tuple[Optimizer, ...] = (muon, others)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the parts work on this one's groups and state."""
        self.parts[0].param_groups, self.parts[1].param_groups = self.param_groups[:1], self.param_groups[1:]
        for part in self.parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nobody here steps by closures
        """One step of both."""
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of any optimizer; PyTorch puts new groups and a new state in the place of the old ones."""
        super().load_state_dict(state_dict)
        self._share()


def build_optimizer(module: nn.Module, config: OptimConfig) -> Optimizer:
    """Over the trainable parameters of ``module``: AdamW, whose group 0 decays and group 1 does not, or
    ``MuonAdamW``. Raises ``ConfigError`` for Muon on parameters in shards: it needs whole matrices."""
    decayed, plain = parameter_groups(module)
    matrices = [p for p in decayed if p.ndim == 2] if config.kind == "muon" else []
    if any(isinstance(p, DTensor) for p in matrices):
        raise ConfigError("optim.kind: muon needs whole matrices, not shards: use train.parallel: ddp, or kind: adamw")
    chosen = {id(p) for p in matrices}
    others = [p for p in decayed if id(p) not in chosen]
    groups = [{"params": others, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    fused = all(p.device.type in ("cuda", "cpu") and p.is_floating_point() for p in (*others, *plain))
    adamw = AdamW(groups, lr=config.lr.peak, betas=config.betas, eps=config.eps, fused=fused, foreach=not fused)
    return MuonAdamW(matrices, adamw, config) if matrices else adamw


def apply_schedules(optimizer: Optimizer, config: OptimConfig, step: int, total_steps: int) -> dict[str, float]:
    """Set learning rate and weight decay for ``step`` (counted from 0); returns both for the log."""
    lr = config.lr.value(step, total_steps)
    end = config.weight_decay if config.final_weight_decay is None else config.final_weight_decay
    decay = ramp(config.weight_decay_schedule, config.weight_decay, end, step / max(total_steps - 1, 1))
    *decayed, plain = optimizer.param_groups
    for group, weight_decay in (*((group, decay) for group in decayed), (plain, 0.0)):
        group["lr"], group["weight_decay"] = lr * group.get("lr_scale", 1.0), weight_decay
    return {"lr": lr, "weight_decay": decay}


def clip_gradients(module: nn.Module, config: OptimConfig) -> Tensor:
    """Scale the gradient down to ``clip_norm`` where one is set; returns its norm before, a scalar on the device."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    norm = total_norm(gradients)
    if config.clip_norm is not None:
        torch._foreach_mul_([local(g) for g in gradients], (config.clip_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
