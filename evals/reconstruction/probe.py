"""The probes: small decoders of pixels, deterministic or generative, fitted on frozen latents that they do not change.

Shape legend: K clips, B clips of a batch, N latents of a clip, D width of a latent, C channels, T frames, H/W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evals.features.harness import FeatureSet
from evals.features.rows import Rows
from evals.reconstruction.shown import Shown
from evals.task_configs import ReconstructionTask
from jepa.config import ConfigError
from jepa.data.transforms import to_values
from jepa.distributed import Run
from jepa.models.base import ClipEncoder
from jepa.models.flow_decoder import FlowDecoder, FlowDecoderConfig, decoder_of
from jepa.models.pixel_decoder import PixelDecoder, PixelDecoderConfig, check_share, out_grid
from jepa.optim import OptimConfig, apply_schedules, build_optimizer, clip_gradients
from jepa.schedules import ScheduleConfig
from jepa.types import TokenGrid

_WARMUP = 0.05  # of the steps
_MATRIX_LR = 8.0  # times the learning rate: Muon's, for matrices
_FLOW_SHARE = 1 / 4  # of both rates: at those of the others a flow decoder learned not to listen to its latents


@dataclass(frozen=True)
class Latents:
    """Latents of K clips, read from the features of an encoder: ``parts`` side by side, each layer-normed by itself
    (unless ``norm`` is False) and averaged over ``pool`` x ``pool`` rows and columns of the ``stored`` grid after that.
    """

    parts: tuple[Rows, ...]
    stored: TokenGrid
    pool: int = 1
    norm: bool = True

    @property
    def grid(self) -> TokenGrid:
        return TokenGrid(self.stored.t, self.stored.h // self.pool, self.stored.w // self.pool)

    @property
    def dim(self) -> int:
        return sum(part.shape[-1] for part in self.parts)

    def __call__(self, rows: Tensor) -> Tensor:
        """``[B, N, D]``, float32, of the clips ``rows`` ``[B]``."""
        found = [part.gather(rows)[:, 0].float() for part in self.parts]
        normed = [F.layer_norm(tokens, tokens.shape[-1:]) for tokens in found] if self.norm else found
        return pooled(torch.cat(normed, dim=-1), self.stored, self.pool)


def latents_of(features: FeatureSet, levels: tuple[int, ...] | None, pool: int = 1) -> Latents:
    """Of the blocks ``levels`` side by side (None: the encoder's own output). Raises ``ConfigError`` for a pool that
    does not divide the grid."""
    assert features.tokens is not None
    grid = features.grid
    if grid.h % pool or grid.w % pool:
        raise ConfigError(f"reconstruction.pools: {pool} does not divide a grid of {grid.h} x {grid.w} tokens")
    chosen = [features] if levels is None else [features.level(level) for level in levels]
    return Latents(tuple(part.tokens for part in chosen if part.tokens is not None), grid, pool)


def pooled(tokens: Tensor, grid: TokenGrid, pool: int) -> Tensor:
    """``tokens`` ``[B, N, D]`` of ``grid`` averaged over ``pool`` x ``pool`` rows and columns."""
    if pool == 1:
        return tokens
    cells = tokens.unflatten(1, (grid.t, grid.h // pool, pool, grid.w // pool, pool))
    return cells.mean(dim=(3, 5)).flatten(1, 3)


def build_decoder(task: ReconstructionTask, encoder: ClipEncoder, latents: Latents, shown: Shown) -> PixelDecoder:
    """A deterministic decoder of patches as large as the encoder's, with weights drawn by ``task.seed``. Raises
    ``ConfigError`` for one that is too large a part of a large encoder: it could learn what the latents do not hold."""
    decoder = _build(PixelDecoderConfig, task, encoder, latents, shown)
    assert isinstance(decoder, PixelDecoder)
    return decoder


def build_flow(task: ReconstructionTask, encoder: ClipEncoder, latents: Latents, shown: Shown) -> FlowDecoder:
    """The same, generative."""
    decoder = _build(FlowDecoderConfig, task, encoder, latents, shown)
    assert isinstance(decoder, FlowDecoder)
    return decoder


def _build(
    kind: Callable[..., PixelDecoderConfig], task: ReconstructionTask, encoder: ClipEncoder, latents: Latents,
    shown: Shown,
) -> PixelDecoder | FlowDecoder:  # fmt: skip
    _, frames, height, width, _ = shown.pixels.shape
    grid = latents.stored
    config = kind(
        embed_dim=task.embed_dim, depth=task.depth, num_heads=task.num_heads, patch_size=height // grid.h,
        tubelet_size=frames // grid.t, latent_noise=task.latent_noise,
    )  # fmt: skip
    size = (frames, height, width)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)
            decoder = decoder_of(config, latents.dim, latents.grid, out_grid(config, size))
    except ValueError as error:
        raise ConfigError(f"clips of {frames} x {height} x {width} cannot be decoded: {error}") from None
    try:
        check_share(decoder, encoder)
    except ValueError as error:
        raise ConfigError(f"reconstruction: {error}") from None
    return decoder


def descend(module: nn.Module, loss: Callable[[int], Tensor], steps: int, learning_rate: float) -> list[float]:
    """Follow ``loss(step)`` downhill with what can be trained of ``module``, with a short warm-up and a half cosine to
    0. Returns the losses of the first and the last step. Raises ``ValueError`` when they are no numbers any more."""
    # Muon: AdamW took twice the steps in the demo's world, and a decoder that is not done hides what latents hold
    schedule = ScheduleConfig(peak=learning_rate, start=learning_rate / 10, warmup_steps=max(1, round(_WARMUP * steps)))
    config = OptimConfig(
        kind="muon", lr=schedule, matrix_lr=_MATRIX_LR, betas=(0.9, 0.98), weight_decay=0.01, clip_norm=1.0
    )
    optimizer, ends = build_optimizer(module, config), list[float]()
    for step in range(steps):
        apply_schedules(optimizer, config, step, steps)
        optimizer.zero_grad(set_to_none=True)
        error = loss(step)
        error.backward()
        clip_gradients(module, config)
        optimizer.step()
        if step in (0, steps - 1):
            ends.append(error.item())
    if not all(torch.tensor(ends).isfinite()):
        raise ValueError("the loss of a probe is not finite: are the latents broken, or reconstruction.learning_rate?")
    return ends


def draw_rows(count: int, batch_size: int, seed: int) -> Callable[[int], Tensor]:
    """Which of ``count`` clips a step sees, ``[B]``: all of them once, in another order every time they are through."""
    size = min(batch_size, count)
    per_round = count // size

    def rows(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step // per_round)
        order = torch.randperm(count, generator=generator)
        first = step % per_round * size
        return order[first : first + size]

    return rows


def fit_decoder(
    decoder: PixelDecoder | FlowDecoder, latents: Latents, shown: Shown, task: ReconstructionTask, run: Run
) -> None:
    """Train ``decoder`` to tell the pixels of ``shown`` from their ``latents``, in the normalised scale; a generative
    one by the error of its velocity, with noise drawn by ``task.seed``."""
    rows = draw_rows(len(shown), task.batch_size, task.seed)
    decoder.to(run.device).train()
    measure = F.mse_loss if task.loss == "mse" else F.l1_loss

    def loss(step: int) -> Tensor:
        chosen = rows(step)
        clip, given = shown.normalised(chosen).to(run.device), latents(chosen).to(run.device)
        with run.autocast():
            if isinstance(decoder, FlowDecoder):
                return decoder.loss(clip, given)
            decoded = decoder(given)
        return measure(decoded.float(), clip)

    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        torch.manual_seed(task.seed)
        if isinstance(decoder, FlowDecoder):
            descend(decoder, loss, task.flow_steps, _FLOW_SHARE * task.learning_rate)
        else:
            descend(decoder, loss, task.steps, task.learning_rate)
    decoder.eval().requires_grad_(False)


def count(decoder: nn.Module) -> int:
    """Its parameters."""
    return sum(p.numel() for p in decoder.parameters())


@torch.no_grad()
def decode(
    decoder: PixelDecoder, latents: Callable[[Tensor], Tensor], shown: Shown, task: ReconstructionTask, run: Run
) -> Tensor:
    """What ``decoder`` makes of the latents of all clips: uint8 ``[K, T, H, W, 3]``."""
    parts = []
    for rows in torch.arange(len(shown)).split(task.batch_size):
        with run.autocast():
            decoded = decoder(latents(rows).to(run.device)).float()
        values = to_values(decoded, shown.clip).cpu()
        parts.append((values * 255).round().byte().movedim(1, -1))
    return torch.cat(parts)
