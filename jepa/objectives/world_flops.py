"""Floating-point operations of a world model's training step, counted from shapes as in ``jepa.models.flops``.

Shape legend: B batch, T frames, K conditioning tokens per step, n latent tokens per frame, L = K + n.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from jepa.models.action_predictor import ActionPredictor
from jepa.models.base import ClipEncoder
from jepa.models.encoder import Encoder
from jepa.models.flops import TRAINED, block_flops, linear_flops
from jepa.models.latent_head import LatentHead
from jepa.models.layers import Block

_WEIGHTS_ONLY = TRAINED - 1  # of a layer whose input needs no gradient


def frame_flops(encoder: ClipEncoder, height: int, width: int, *, trained: bool) -> float:
    """One frame, encoded by itself; ``trained``: with the backward pass. A model that is not ours is run once, as its
    layers are not known."""
    if not isinstance(encoder, Encoder):
        frame = torch.zeros(1, 3, 1, height, width, device=next(encoder.parameters()).device)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            encoder(frame)
        return float(counter.get_total_flops())
    tokens = encoder.grid_of((encoder.config.in_channels, 1, height, width)).size
    embed = encoder.patch_embed if encoder.patch_embed_img is None else encoder.patch_embed_img
    patches = 2.0 * tokens * embed.proj.weight.numel()
    blocks = sum(block_flops(block, tokens) for block in encoder.blocks if isinstance(block, Block))
    return _WEIGHTS_ONLY * patches + TRAINED * blocks if trained else patches + blocks


def head_flops(head: LatentHead, frames: int, *, trained: bool) -> float:
    """Tokens to latents of so many frames; ``trained``: with the backward pass."""
    keypoints = head.config.pool == "keypoints"
    rows = frames * (head.cells.size if keypoints else head.grid.size)
    mean_places = 2.0 * rows * head.dim if keypoints else 0.0  # the places themselves are fixed
    linear = linear_flops(head, rows)
    return TRAINED * linear + 2 * mean_places if trained else linear + mean_places


def steps_flops(
    predictor: ActionPredictor, steps: int, tokens: int, *, earlier: int = 0, window: int | None = None,
    input_grad: bool = True, remembered_only: bool = False,
) -> float:  # fmt: skip
    """One row of ``steps`` steps of ``tokens`` latents each after ``earlier`` ones, forward and backward.

    ``input_grad``: latents need a gradient. ``remembered_only``: predictions are not used, only what later steps see.
    """
    length = tokens + predictor.num_conditions
    seen = sum(
        length * (number if window is None else min(number, window))
        for number in range(earlier + 1, earlier + steps + 1)
    )  # keys that one token of every step sees
    conditions = [predictor.action_encoder, predictor.state_encoder]
    total = _WEIGHTS_ONLY * sum(linear_flops(module, steps) for module in conditions if module is not None)
    total += (TRAINED if input_grad else _WEIGHTS_ONLY) * linear_flops(predictor.predictor_embed, steps * tokens)
    total += (1 if remembered_only else TRAINED) * linear_flops(predictor.predictor_proj, steps * tokens)
    for number, block in enumerate(predictor.predictor_blocks, start=1):
        assert isinstance(block, Block)
        last = number == len(predictor.predictor_blocks)
        keys_values, asking = 2 / 3 * linear_flops(block.attn.qkv, steps * length), tokens if last else length
        total += TRAINED * keys_values + (1 if last and remembered_only else TRAINED) * _asking(
            block, steps * asking, asking * seen
        )
    return total


def _asking(block: Block, tokens: int, pairs: int) -> float:
    """A block without its keys and values: queries of ``tokens``, ``pairs`` of who asks and who is seen, projection,
    MLP."""
    parts: tuple[nn.Module, ...] = (block.attn.proj, block.mlp)
    width = block.attn.proj.in_features
    return 2.0 * tokens * width**2 + 4.0 * pairs * width + sum(linear_flops(part, tokens) for part in parts)
