"""Actions inferred from video: inverse dynamics, and the controller that says a real action in inferred ones.

States are latents of single frames, encoded frame by frame, so that none of them knows a later frame.

Shape legend: B batch, T frames, n tokens of a frame, D latent width, P own width, A real action width, Z inferred
action width, K codes, R rows (pairs of frames, or whole clips), S frames of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.models.layers import Block, Init, MlpKind, check_width, init_weights
from jepa.models.linear import Linear
from jepa.models.positions import sincos_1d

AttentionKind = Literal["joint", "factorised"]


@dataclass(frozen=True, kw_only=True, slots=True)
class InverseDynamicsConfig:
    """A transformer over the tokens of two frames and a read-out token of each.

    ``attention``: "joint" (all tokens of the pair together) or "factorised" (a block over the tokens of a frame, then
    one over the frames at a place: fewer products where frames have many tokens; ``depth`` counts these pairs).
    ``history``: an action may depend on all frames up to its second one, not on its own two only.
    ``change_only``: it depends on how latents change and not on what they are, so that the same change is the same
    action wherever it happens.
    """

    embed_dim: int = 192
    depth: int = 2
    num_heads: int = 3
    mlp_ratio: float = 4.0
    mlp: MlpKind = "gelu"
    attention: AttentionKind = "joint"
    history: bool = False
    change_only: bool = False
    init: Init = "trunc_normal"

    def __post_init__(self) -> None:
        check_width(self.embed_dim, self.depth, self.num_heads, self.mlp_ratio, "", "inverse dynamics")
        if self.embed_dim % 2:
            raise ValueError(f"inverse dynamics: embed_dim must be even, not {self.embed_dim}")


class InverseDynamics(nn.Module):
    """What happened between two frames: latents ``[B, T, n, D]`` to features ``[B, T-1, P]`` of the T-1 transitions.

    Row k sees frames k and k + 1 alone (with ``history`` frames 0 to k + 1), never a later one.
    """

    def __init__(self, config: InverseDynamicsConfig, latent_dim: int, num_tokens: int) -> None:
        super().__init__()
        dim = config.embed_dim
        self.config, self.num_tokens = config, num_tokens
        self.embed = None if config.change_only else Linear(latent_dim, dim)
        self.change = Linear(latent_dim, dim)  # to see at once what attention would have to find out: what moved
        self.readout = nn.Parameter(torch.empty(dim))
        self.places = nn.Parameter(torch.empty(num_tokens, dim))
        blocks = config.depth * (2 if config.attention == "factorised" else 1)
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio, config.mlp) for _ in range(blocks)
        )  # fmt: skip
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        init_weights(self, self.blocks, config.init)
        for parameter in (self.readout, self.places):
            nn.init.trunc_normal_(parameter, std=0.02)

    @property
    def out_dim(self) -> int:
        """Width of the features."""
        return self.config.embed_dim

    def forward(self, latents: Tensor) -> Tensor:
        """Raises ``ValueError`` for fewer than 2 frames, or another number of tokens than the model was built for."""
        batch, frames, tokens, _ = latents.shape
        if frames < 2:
            raise ValueError(f"an action lies between two frames, but clips have {frames}: raise clip.num_frames")
        if tokens != self.num_tokens:
            raise ValueError(f"inverse dynamics was built for {self.num_tokens} tokens of a frame, not {tokens}")
        if self.config.history:
            return self._features(latents)[:, 1:]
        pairs = torch.stack((latents[:, :-1], latents[:, 1:]), dim=2).flatten(0, 1)  # [B * (T-1), 2, n, D]
        return self._features(pairs)[:, 1].unflatten(0, (batch, frames - 1))

    def _features(self, rows: Tensor) -> Tensor:
        """Rows ``[R, S, n, D]`` to the read-out of every frame ``[R, S, P]``, which saw no later one."""
        count, frames = rows.shape[:2]
        before = torch.cat((rows[:, :1], rows[:, :-1]), dim=1)
        x = self.change(rows - before) + self.places
        x = x if self.embed is None else x + self.embed(rows)
        x = torch.cat((self.readout.expand(count, frames, 1, -1).to(x.dtype), x), dim=2)  # [R, S, 1 + n, P]
        time = sincos_1d(torch.arange(frames, device=rows.device), x.shape[-1])
        x = x + time[:, None].to(x.dtype)
        x = self._joint(x) if self.config.attention == "joint" else self._factorised(x)
        return self.norm(x[:, :, 0])

    def _joint(self, x: Tensor) -> Tensor:
        frames, x = x.shape[1], x.flatten(1, 2)
        for block in self.blocks:
            x = block(x, None, None, frames)
        return x.unflatten(1, (frames, -1))

    def _factorised(self, x: Tensor) -> Tensor:
        frames, places = x.shape[1:3]
        for number, block in enumerate(self.blocks):
            if number % 2 == 0:  # the tokens of a frame
                x = block(x.flatten(0, 1), None).unflatten(0, (-1, frames))
            else:  # the frames at a place
                x = x.transpose(1, 2).flatten(0, 1)
                x = block(x, None, None, frames).unflatten(0, (-1, places)).transpose(1, 2)
        return x


@dataclass(frozen=True, kw_only=True, slots=True)
class ControllerNetConfig:
    """``depth`` hidden layers, ``hidden_dim`` wide."""

    hidden_dim: int = 256
    depth: int = 2

    def __post_init__(self) -> None:
        if self.hidden_dim < 1 or self.depth < 1:
            raise ValueError(f"hidden_dim and depth must be at least 1, not {self.hidden_dim} and {self.depth}")


class ControllerNet(nn.Module):
    """A frame and a real action to the inferred action that has the same effect there (arXiv 2601.05230).

    The answer is the mean of ``codes`` ``[K, Z]`` weighted by the softmax of the output, where there are codes: one
    of them nearly always, and still differentiable for planners that follow gradients. Otherwise it is the output
    itself, scaled by ``mean`` and ``std`` of the actions that it is trained on.
    """

    codes: Tensor | None
    mean: Tensor
    std: Tensor

    def __init__(
        self, config: ControllerNetConfig, latent_dim: int, action_dim: int, dim: int, num_codes: int = 0
    ) -> None:
        super().__init__()
        self.config, self.action_dim, self.dim, self.num_codes = config, action_dim, dim, num_codes
        width, layers = latent_dim + action_dim, list[nn.Module]()
        for _ in range(config.depth):
            layers += [Linear(width, config.hidden_dim), nn.GELU()]
            width = config.hidden_dim
        self.layers = nn.Sequential(*layers, Linear(width, num_codes or dim))
        self.register_buffer("codes", torch.zeros(num_codes, dim) if num_codes else None)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def outputs(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Logits ``[..., K]``, or standardised actions ``[..., Z]``, from latents of the frame ``[..., n, D]`` and
        standardised real actions ``[..., A]``."""
        return self.pooled_outputs(latents.mean(dim=-2), actions)

    def pooled_outputs(self, pooled: Tensor, actions: Tensor) -> Tensor:
        """As ``outputs``, from latents ``[..., D]`` that are means over tokens already."""
        found: Tensor = self.layers(torch.cat((pooled, actions.to(pooled.dtype)), dim=-1))
        return found.float()

    def forward(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Latents ``[..., n, D]`` and standardised real actions ``[..., A]`` to inferred actions ``[..., Z]``."""
        found = self.outputs(latents, actions)
        return found.softmax(dim=-1) @ self.codes if self.codes is not None else found * self.std + self.mean

    def loss(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """How far ``outputs`` are from the inferred actions ``wanted`` ``[N, Z]``: cross-entropy over codes (in nats),
        or mean squared error in units of ``std``; a scalar."""
        if self.codes is not None:
            return F.cross_entropy(outputs, torch.cdist(wanted, self.codes).argmin(dim=1))
        return F.mse_loss(outputs, (wanted - self.mean) / self.std)
