"""From latents to pixels, sampled: what the latents do not determine is drawn instead of blurred.

Flow matching (arXiv 2210.02747, 2209.03003): on the straight line x_t = (1 - t) noise + t x, from noise at t = 0 to the
clip at t = 1, the network learns which way clips lie, and a sample follows it from fresh noise. The network puts out
the clip that it expects, x', which is the velocity (x' - x_t) / (1 - t): a narrow transformer cannot pass the noise of
a whole patch on, as it would have to in order to put out velocities (arXiv 2511.13720, whose loss
is used, too). Time acts by adaptive norms (DiT, arXiv 2212.09748). Latents are now and then replaced by a learned null,
so that guidance (arXiv 2207.12598) can weigh them.

Shape legend: B batch, N latents, D width of a latent, E width of the decoder, C channels, T frames, H/W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.models.layers import Block
from jepa.models.linear import Linear
from jepa.models.pixel_decoder import PatchDecoder, PixelDecoder, PixelDecoderConfig, to_clip
from jepa.models.recompute import run
from jepa.models.tubelet import PatchEmbed
from jepa.types import TokenGrid

Solver = Literal["euler", "heun"]
_TIME_FEATURES = 256
_NEAREST = 0.05  # of 1 - t in the loss: the last of the noise would otherwise outweigh all else


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowDecoderConfig(PixelDecoderConfig):
    """As ``PixelDecoderConfig``. ``drop``: how often, in training, a clip's latents are hidden. ``time_mean`` and
    ``time_std``: times of training are the logistic function of numbers so distributed (normal), many of them near
    pure noise: latents matter there alone, for where a picture has large even parts a little less noise tells all."""

    kind: Literal["flow"] = "flow"  # type: ignore[assignment]  # each decoder has its own name
    drop: float = 0.1
    time_mean: float = -2.0
    time_std: float = 1.6

    def __post_init__(self) -> None:
        PixelDecoderConfig.__post_init__(self)  # super() does not work in a dataclass with slots
        if not 0 <= self.drop < 1:
            raise ValueError(f"decoder.drop must be a share in [0, 1), not {self.drop:g}")
        if self.time_std <= 0:
            raise ValueError(f"decoder.time_std must be positive, not {self.time_std:g}")


class AdaptiveBlock(Block):
    """A block whose norms are shifted and scaled, and whose two branches are gated, by a ``condition`` ``[B, E]``. It
    begins as the identity."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__(dim, num_heads, mlp_ratio)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = Linear(dim, 6 * dim)

    def forward(
        self, x: Tensor, rope: Tensor | None, num_queries: int | None = None, steps: int | None = None,
        window: int | None = None, condition: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        assert condition is not None, "what it adapts to"
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = _parts(self.modulation, condition, 6)
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift, rope, num_queries, steps, window)
        return x + mlp_gate * self.mlp(self.norm2(x) * (1 + mlp_scale) + mlp_shift)


class FlowDecoder(PatchDecoder):
    """A noised clip, its time and the latents of the clip that it was, to that clip: normalised, as ``PixelDecoder``
    has it. ``sample`` draws from noise."""

    block = AdaptiveBlock

    def __init__(
        self, config: FlowDecoderConfig, latent_dim: int, source: TokenGrid, out: TokenGrid, channels: int = 3
    ) -> None:
        super().__init__(config, latent_dim, source, out, channels)
        self.flow, dim = config, config.embed_dim
        self.embed = PatchEmbed(channels, dim, config.patch_size, config.tubelet_size)
        self.time = nn.Sequential(Linear(_TIME_FEATURES, dim), nn.SiLU(), Linear(dim, dim))
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = Linear(dim, 2 * dim)
        self.null = nn.Parameter(torch.empty(latent_dim))
        self.init()
        nn.init.trunc_normal_(self.null, std=0.02)
        for block in self.blocks:
            nn.init.zeros_(block.modulation.weight)  # type: ignore[union-attr, arg-type]  # an AdaptiveBlock's
        for last in (self.modulation, self.proj):
            nn.init.zeros_(last.weight)

    def forward(
        self, noised: Tensor, time: Tensor, latents: Tensor, source: TokenGrid | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The clip ``[B, C, T, H, W]`` that is expected of ``noised``, of the same shape, at ``time`` ``[B]`` (0: all
        noise, 1: none), with latents ``[B, N, D]`` on the grid ``source`` (None: the native one).

        ``hidden`` (bool ``[B]``): rows whose latents are replaced by the learned null. Raises ``ValueError`` for
        latents of another width or number, and for a size that patches do not divide.
        """
        frames, height, width = noised.shape[2:]
        _, source, out = self.grids(latents, (frames, height, width), source)
        latents = self.with_noise(latents)
        if hidden is not None:
            latents = torch.where(hidden[:, None, None], self.null.to(latents.dtype), latents)
        x = self.cells(latents, source, out) + self.embed(noised)
        condition = self.time(time_features(time, _TIME_FEATURES))
        rope = self.rope(out, x.device)
        for block in self.blocks:
            x = run(block, self.recompute_now, x, rope, None, None, None, condition)
        shift, scale = _parts(self.modulation, condition, 2)
        return to_clip(self.proj(self.norm(x) * (1 + scale) + shift), out, self.config, frames)

    def loss(self, clip: Tensor, latents: Tensor, source: TokenGrid | None = None) -> Tensor:
        """Mean squared error of the velocity, a scalar, of ``clip`` ``[B, C, T, H, W]`` and its ``latents``, at times
        and with noise drawn anew in every call."""
        config, rows, device = self.flow, len(clip), clip.device
        time = torch.sigmoid(config.time_mean + config.time_std * torch.randn(rows, device=device))
        hidden = torch.rand(rows, device=device) < config.drop
        noise = torch.randn_like(clip)
        expected = self(between(noise, clip, time), time, latents, source, hidden).float()
        error = (expected - clip).square().flatten(1).mean(dim=1)
        return (error / (1 - time).clamp_min(_NEAREST).square()).mean()

    @torch.no_grad()
    def sample(
        self, latents: Tensor, noise: Tensor, steps: int = 8, guidance: float = 1.0, solver: Solver = "euler",
        source: TokenGrid | None = None,
    ) -> Tensor:  # fmt: skip
        """The clip ``[B, C, T, H, W]``, fp32, that ``noise`` of its shape becomes with ``latents`` ``[B, N, D]``.

        ``guidance`` w: v_null + w (v_latents - v_null); 1 is what was learned, 0 takes no notice of the latents.
        """
        ways = 1 if guidance in (0.0, 1.0) else 2  # with the latents, without them, or both ways at once
        hidden = torch.zeros(ways, len(latents), dtype=torch.bool, device=latents.device)
        hidden[-1] = guidance != 1.0
        latents, hidden = latents.repeat(ways, 1, 1), hidden.flatten()

        def expected(x: Tensor, time: float) -> Tensor:
            now = x.new_full((len(latents),), time)
            found = self(x.repeat(ways, 1, 1, 1, 1), now, latents, source, hidden).float()
            if ways == 1:
                return found
            known, unknown = found.chunk(2)
            return unknown + guidance * (known - unknown)  # linear in the clip as in the velocity

        return follow(expected, noise, steps, solver)


def decoder_of(
    config: PixelDecoderConfig, latent_dim: int, source: TokenGrid, out: TokenGrid
) -> PixelDecoder | FlowDecoder:
    """The decoder that ``config`` describes, with fresh weights; the rest as for ``PixelDecoder``."""
    if isinstance(config, FlowDecoderConfig):
        return FlowDecoder(config, latent_dim, source, out)
    return PixelDecoder(config, latent_dim, source, out)


def between(noise: Tensor, clip: Tensor, time: Tensor) -> Tensor:
    """x_t on the straight line from ``noise`` to ``clip``, both ``[B, ...]``, at ``time`` ``[B]``."""
    t = time.view(-1, *(1,) * (clip.dim() - 1))
    return (1 - t) * noise + t * clip


def follow(expected: Callable[[Tensor, float], Tensor], noise: Tensor, steps: int, solver: Solver = "euler") -> Tensor:
    """From ``noise`` at time 0 to a sample at time 1 in ``steps`` equal steps, the velocity at x being
    (``expected(x, t)`` - x) / (1 - t).

    "heun" corrects every step by the velocity at its end, for twice the work; the last step of both is Euler's, whose
    end is ``expected`` itself. Raises ``ValueError`` for an unknown solver, and fewer than 1 step.
    """
    if solver not in get_args(Solver) or steps < 1:
        raise ValueError(f"solver must be one of {', '.join(get_args(Solver))}, in 1 step or more, not {solver!r} in "
                         f"{steps}")  # fmt: skip
    x, step = noise, 1 / steps
    for number in range(steps):
        time = number * step
        velocity = (expected(x, time) - x) / (1 - time)
        ahead = x + step * velocity
        if solver == "heun" and number < steps - 1:
            end = time + step
            ahead = x + step / 2 * (velocity + (expected(ahead, end) - ahead) / (1 - end))
        x = ahead
    return x


def time_features(time: Tensor, dim: int) -> Tensor:
    """Sine and cosine, float32 ``[B, dim]``, of 1000 x ``time`` ``[B]`` at ``dim`` / 2 frequencies from 1 to nearly
    1/10000 (DiT)."""
    half = dim // 2
    omega = torch.exp(-math.log(10000.0) / half * torch.arange(half, device=time.device, dtype=torch.float32))
    angle = 1000 * time.float()[:, None] * omega
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


def _parts(modulation: nn.Module, condition: Tensor, count: int) -> tuple[Tensor, ...]:
    """So many vectors ``[B, 1, E]`` of the ``condition`` ``[B, E]``."""
    made: Tensor = modulation(F.silu(condition))
    return made[:, None].chunk(count, dim=-1)
