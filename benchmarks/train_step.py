"""One training step, ours against ``transformers``: same sizes, same clips, same mask ids, in turns.

    python benchmarks/train_step.py [--dtype fp32] [--size vit_base] [--predictor-dim 384]

A step: target encoder on the whole clip, then for each of the two V-JEPA mask families the context encoder on the
context tokens and the predictor; L1 loss, backward, AdamW, EMA. The peer does this with the modules of
``transformers`` the way the reference recipe does: the clip is embedded whole and then reduced to the context tokens,
predictor tokens are sorted and un-sorted, AdamW is PyTorch's default, the EMA multiplies and adds over lists.
Prints median seconds, ratio, tokens/s, and achieved GFLOP/s as a share of the measured GEMM peak.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs by path, too

from benchmarks import common
from jepa.masks import MultiBlockConfig, build_masks
from jepa.models import EncoderConfig, PredictorConfig
from jepa.objectives.masked import MaskedConfig, MaskedObjective
from jepa.optim import OptimConfig, apply_schedules, build_optimizer, parameter_groups
from jepa.types import Batch, ClipConfig, Mask

FAMILIES = (MultiBlockConfig(num_blocks=8, scale=(0.15, 0.15)), MultiBlockConfig(num_blocks=2, scale=(0.7, 0.7)))
LR, MOMENTUM, STEPS = 1e-4, 0.998, 1000


def our_step(objective: MaskedObjective, batch: Batch, device: str, dtype: str) -> Callable[[], Tensor]:
    """The step as ``jepa.train`` takes it."""
    config = OptimConfig()
    optimizer = build_optimizer(objective, config)

    def step() -> Tensor:
        apply_schedules(optimizer, config, 0, STEPS)
        with common.autocast(device, dtype):
            loss = objective(batch, 0.0)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        objective.after_step(0.0)
        return loss.total.detach()

    return step


def gather(tokens: Tensor, ids: Tensor) -> Tensor:
    return torch.gather(tokens, 1, ids[..., None].repeat(1, 1, tokens.shape[-1]))


def peer_encode(encoder: Any, clip: Tensor, ids: Tensor) -> Tensor:
    """Context tokens by the modules of ``VJEPA2Encoder``, whose forward takes no ids."""
    hidden = gather(encoder.embeddings(clip), ids)
    for layer in encoder.layer:
        hidden = layer(hidden, ids)[0]
    return encoder.layernorm(hidden)


def peer_predict(predictor: Any, context: Tensor, mask: Mask, family: int) -> Tensor:
    """``VJEPA2Predictor.forward`` for features that are already those of the context alone."""
    hidden, ids = predictor.embeddings(context, [mask.context_ids], [mask.target_ids[:, 0]], mask_index=family)
    order = torch.argsort(ids, dim=1)
    hidden, ids = predictor.sort_tokens(hidden, ids, order)
    for layer in predictor.layer:
        hidden = layer(hidden, ids)[0]
    hidden = predictor.unsort_tokens(predictor.layernorm(hidden), order)
    return predictor.proj(hidden[:, context.shape[1] :])


def peer_step(model: Any, clip: Tensor, masks: Sequence[Mask], device: str, dtype: str) -> Callable[[], Tensor]:
    """The same step with the peer's modules."""
    target = copy.deepcopy(model.encoder).requires_grad_(False)
    decayed, plain = parameter_groups(model)
    groups = [{"params": decayed, "weight_decay": 0.04}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR)

    def step() -> Tensor:
        with common.autocast(device, dtype):
            with torch.no_grad():
                tokens = target(clip).last_hidden_state.float()
                targets = F.layer_norm(tokens, tokens.shape[-1:])
            losses = []
            for family, mask in enumerate(masks):
                context = peer_encode(model.encoder, clip, mask.context_ids)
                predictions = peer_predict(model.predictor, context, mask, family)
                losses.append((predictions.float() - gather(targets, mask.target_ids[:, 0])).abs().mean())
            loss = torch.stack(losses).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            followers, leaders = list(target.parameters()), list(model.encoder.parameters())
            torch._foreach_mul_(followers, MOMENTUM)
            torch._foreach_add_(followers, leaders, alpha=1 - MOMENTUM)
        return loss.detach()

    return step


def main() -> None:
    extra = {"--predictor-dim": 192, "--predictor-depth": 12, "--predictor-heads": 6}
    options = common.arguments(__doc__ or "", size="vit_small", batch_size=2, repeats=5, extra=extra)
    common.import_transformers()
    torch.manual_seed(0)
    device, config = options.device, EncoderConfig(size=options.size)
    predictor = PredictorConfig(
        embed_dim=options.predictor_dim, depth=options.predictor_depth, num_heads=options.predictor_heads
    )
    clip = ClipConfig(num_frames=options.num_frames, fps=4, crop_size=options.crop_size)
    ours = MaskedObjective(
        MaskedConfig(predictor=predictor, momentum=(MOMENTUM, 1.0)), config, clip, num_families=len(FAMILIES)
    ).to(device)
    peer = common.build_peer(config.shape, config, clip, predictor, len(FAMILIES)).to(device).train()
    trained = common.parameters(ours.encoder) + common.parameters(ours.predictor)
    assert trained == common.parameters(peer), "the two models differ in size"
    rng = np.random.default_rng(0)
    masks = [family.draw(rng, options.batch_size).to(device) for family in build_masks(FAMILIES, ours.encoder.grid)]
    video = torch.randn(options.batch_size, 3, clip.num_frames, clip.crop_size, clip.crop_size, device=device)
    if options.compile:
        for part in (ours.encoder, ours.target_encoder, ours.predictor, *peer.encoder.layer, *peer.predictor.layer):
            part.compile()
    shapes = ", ".join(f"{m.context_ids.shape[1]} context + {m.target_ids.shape[2]} target" for m in masks)
    print(
        f"{options.size} and a predictor {predictor.embed_dim} wide and {predictor.depth} deep, {trained / 1e6:.1f} M "
        f"trained parameters; {clip.num_frames} frames at {clip.crop_size} px, batch {options.batch_size}: "
        f"{ours.encoder.grid.size} tokens per clip, {shapes}; {common.describe_machine(device)}"
    )
    flops = ours.work(Batch(torch.zeros(options.batch_size), masks)).flops
    medians: dict[str, dict[str, float]] = {}
    for dtype in ("fp32", "bf16") if options.dtype == "both" else (options.dtype,):
        print(f"\n{dtype}")
        peak = common.peaks(dtype, device, options.clock)
        runs: dict[str, Callable[[], Any]] = {
            "jepa": our_step(ours, Batch(clip=video, masks=masks), device, dtype),
            "transformers": peer_step(peer, video.transpose(1, 2).contiguous(), masks, device, dtype),
        }
        repeats = options.repeats if dtype == "fp32" else max(1, options.repeats // 2)
        medians[dtype] = common.alternate(runs, repeats, device, options.clock)
        common.report(medians[dtype], flops, options.batch_size * ours.encoder.grid.size, peak)
        common.breakdown(runs, device)
    common.report_best(medians)


if __name__ == "__main__":
    main()
