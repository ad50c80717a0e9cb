"""How long drawing masks takes, as a share of the training step it is drawn for, and what it throws away.

    python benchmarks/masks.py [--size vit_nano] [--crop-size 64] [--batch-size 16] [--threads 2]

Both V-JEPA families are drawn, as the loader does it (one thread, in the main process here; in training the loader's
workers draw while the model computes). The step is the forward, backward and EMA of one fp32 step, without the
optimizer.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from jepa.masks import MaskFamily, MultiBlockConfig, build_masks
from jepa.models.encoder import EncoderConfig
from jepa.models.predictor import PredictorConfig
from jepa.objectives import MaskedConfig, MaskedObjective
from jepa.types import Batch, ClipConfig, TokenGrid


def median_s(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of ``work()``, after one call to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def recipe(grid: TokenGrid, levels: int = 4, reference: bool = False) -> list[MaskFamily]:
    """The two families of V-JEPA."""
    pairs = ((8, 0.15), (2, 0.7))
    return build_masks(
        [MultiBlockConfig(num_blocks=n, scale=(s, s), levels=levels, reference=reference) for n, s in pairs], grid
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="vit_nano")
    parser.add_argument("--patch-size", type=int, default=8)
    parser.add_argument("--crop-size", type=int, default=64)
    parser.add_argument("--num-frames", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    clip = ClipConfig(num_frames=options.num_frames, fps=8, crop_size=options.crop_size)
    encoder = EncoderConfig(size=options.size, patch_size=options.patch_size)
    predictor = PredictorConfig(embed_dim=encoder.shape.embed_dim, depth=4, num_heads=encoder.shape.num_heads)
    objective = MaskedObjective(MaskedConfig(predictor=predictor), encoder, clip, 2)
    rng, size = np.random.default_rng(0), options.batch_size
    families = recipe(objective.encoder.grid)
    frames = torch.randn(size, 3, options.num_frames, options.crop_size, options.crop_size)

    def step() -> None:
        objective(Batch(frames, [family.draw(rng, size) for family in families]), 0.5).total.backward()
        objective.after_step(0.5)

    draw_s = median_s(lambda: [family.draw(rng, size) for family in families], 50)
    step_s = median_s(step, 7)
    print(f"grid {tuple(objective.encoder.grid)}, batch {size}, {options.size}, {options.threads} threads")
    print(f"masks {1e3 * draw_s:.2f} ms, step {1e3 * step_s:.1f} ms: {draw_s / step_s:.2%} of a step")
    for name, group in (
        ("levels 4 (default)", families),
        ("levels 1", recipe(objective.encoder.grid, levels=1)),
        ("reference", recipe(objective.encoder.grid, reference=True)),
    ):
        discarded = [family.draw(rng, size).discarded for family in group for _ in range(50)]
        print(f"discarded targets, {name}: {np.mean(discarded):.1%}")


if __name__ == "__main__":
    main()
