"""Acting without planning: a network that says from the latents of a frame and of a goal what to do.

Shape legend: B rows, n latent tokens per frame, D width of a latent, A action width, H steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.models.flops import linear_flops
from jepa.models.linear import Linear
from jepa.models.world_model import WorldModel

Distance = Literal["l1", "l2", "cosine"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyNetConfig:
    """Every token of the frame is read beside the goal's token at its place into ``token_dim`` numbers; those of all
    tokens go through ``depth`` hidden layers, ``hidden_dim`` wide."""

    token_dim: int = 64
    hidden_dim: int = 256
    depth: int = 2

    def __post_init__(self) -> None:
        for name in ("token_dim", "hidden_dim", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


class PolicyNet(nn.Module):
    """Latents of a frame and of a goal to an action within ``action_low`` and ``action_high`` (buffers ``[A]``, set by
    ``set_bounds``): tanh, stretched to the bounds. An axis whose bounds are equal keeps that value."""

    action_low: Tensor
    action_high: Tensor

    def __init__(self, config: PolicyNetConfig, tokens: int, latent_dim: int, action_dim: int) -> None:
        super().__init__()
        self.config, self.tokens, self.latent_dim = config, tokens, latent_dim
        self.read = Linear(2 * latent_dim, config.token_dim)
        width, layers = tokens * config.token_dim, list[nn.Module]()
        for _ in range(config.depth):
            layers += [Linear(width, config.hidden_dim), nn.GELU()]
            width = config.hidden_dim
        self.layers = nn.Sequential(*layers)
        self.choose = Linear(width, action_dim)
        nn.init.xavier_uniform_(self.choose.weight, gain=0.1)  # it begins in the middle, where tanh has a slope
        nn.init.zeros_(self.choose.bias)
        self.register_buffer("action_low", torch.full((action_dim,), -1.0))
        self.register_buffer("action_high", torch.ones(action_dim))

    def set_bounds(self, low: Tensor, high: Tensor) -> None:
        """Keep the bounds ``[A]``. Raises ``ValueError`` naming those not finite, empty, or of another width."""
        for name, bound, own in (("action_low", low, self.action_low), ("action_high", high, self.action_high)):
            if bound.shape != own.shape:
                raise ValueError(f"{name} has {bound.numel()} values, but the model's actions have {own.numel()} axes")
            if not bool(bound.isfinite().all()):
                raise ValueError(f"{name} is {bound.tolist()}: a policy needs finite bounds on every action axis")
        if bool((low > high).any()):
            raise ValueError(f"action_low {low.tolist()} must not be above action_high {high.tolist()}")
        self.action_low.copy_(low)
        self.action_high.copy_(high)

    @property
    def half_range(self) -> Tensor:
        """``[A]``: half the width of the bounds."""
        return (self.action_high - self.action_low) / 2

    def within(self, actions: Tensor) -> Tensor:
        """Actions ``[..., A]`` brought into the bounds."""
        return torch.minimum(torch.maximum(actions, self.action_low), self.action_high)

    def forward(self, latents: Tensor, goals: Tensor) -> Tensor:
        """Latents ``[..., n, D]`` of the present and of the goal to actions ``[..., A]``, float32, in raw units."""
        if latents.shape[-2:] != (self.tokens, self.latent_dim) or goals.shape != latents.shape:
            raise ValueError(
                f"latents and goals must be [..., {self.tokens}, {self.latent_dim}] alike, not {list(latents.shape)} "
                f"and {list(goals.shape)}"
            )
        read = F.gelu(self.read(torch.cat((latents, goals), dim=-1)))
        share = torch.tanh(self.choose(self.layers(read.flatten(-2))).float())
        centre = (self.action_low + self.action_high) / 2
        return self.within(centre + self.half_range * share)  # rounding may step over the bounds

    def flops(self, rows: int) -> float:
        """A forward pass."""
        return linear_flops(self.read, rows * self.tokens) + linear_flops(self.layers, rows) + linear_flops(
            self.choose, rows
        )  # fmt: skip


class Dream(NamedTuple):
    """What a policy does in imagination: ``latents`` ``[B, H, n, D]`` after each step, ``actions`` ``[B, H, A]``."""

    latents: Tensor
    actions: Tensor


def dream(
    world: WorldModel, net: PolicyNet, latents: Tensor, goals: Tensor, states: Tensor | None, horizon: int,
    noise: float = 0.0,
) -> Dream:  # fmt: skip
    """Let ``net`` act in ``world`` for ``horizon`` steps from latents ``[B, n, D]`` (states ``[B, S]``, where the model
    has any) towards goals ``[B, n, D]``. ``noise``: standard deviation of what is added to its actions, in half-widths
    of the bounds. Gradients flow through all steps."""
    none = latents.new_zeros(len(latents), 0, len(net.action_low))
    memory = world.begin(latents[:, None], none, None if states is None else states[:, None])
    imagined, actions = [], []
    for _ in range(horizon):
        action = net(memory.latents, goals)
        if noise:
            action = net.within(action + noise * net.half_range * torch.randn_like(action))
        now, memory = world.step(memory, action)
        imagined.append(now)
        actions.append(action)
    return Dream(torch.stack(imagined, dim=1), torch.stack(actions, dim=1))


class Policy(nn.Module):
    """What a ``policy`` run leaves: ``world``, the model that it was trained on, ``net``, and over how many steps
    (``horizon``) which ``energy`` was made small."""

    def __init__(self, world: WorldModel, net: PolicyNet, horizon: int, energy: Distance) -> None:
        super().__init__()
        self.world, self.net, self.horizon, self.energy = world, net, horizon, energy

    def forward(self, latents: Tensor, goals: Tensor) -> Tensor:
        """Actions ``[..., A]`` at latents ``[..., n, D]`` towards goals ``[..., n, D]``."""
        actions: Tensor = self.net(latents, goals)
        return actions
