"""What the V-JEPA recipes need: parameters, FLOPs per clip, memory per device, time. No GPU is used.

    python benchmarks/recipes.py [--batch 8] [--device "NVIDIA H100 80GB HBM3"] [--mfu 0.4]
    python benchmarks/recipes.py --check      # both models against what a small step on this CPU really takes

Parameters and FLOPs (``Objective.work``) are counted. Memory is followed on fake tensors (``benchmarks/memory.py``):
one process's whole model, bf16, eager, ``--batch`` clips per device in one micro-batch, masks of average size. Time is
not measured but follows from the formula below, with the MFU as a parameter:

    device hours = steps x batch_size x FLOPs per clip / (peak FLOP/s x MFU) / 3600
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import platform
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import get_args
from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs by path, too

from benchmarks.memory import StepMemory, fake_step, measure_step, unchecked
from jepa.config import apply_overrides, from_dict, load_yaml
from jepa.masks import MaskFamily, build_masks
from jepa.models.recompute import Recompute
from jepa.objectives import Objective, build_objective
from jepa.throughput import listed_peak
from jepa.train import TrainConfig
from jepa.types import Batch

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
RECIPES = {
    "V-JEPA ViT-L/16": ("vjepa/vitl16.yaml", []),
    "V-JEPA ViT-H/16": ("vjepa/vith16.yaml", []),
    "V-JEPA ViT-H/16, 384 px": ("vjepa/vith16_384.yaml", []),
    "V-JEPA 2 ViT-L/16": ("vjepa2/vitl16.yaml", []),
    "V-JEPA 2 ViT-H/16": ("vjepa2/vith16.yaml", []),
    "V-JEPA 2 ViT-g/16": ("vjepa2/vitg16.yaml", []),
    "V-JEPA 2 ViT-g/16, cooldown": ("vjepa2/vitg16_cooldown.yaml", []),
    "V-JEPA 2 with ViT-G/16": ("vjepa2/vitg16.yaml", ["encoder.size=vit_gigantic"]),
}
SMALL = ["encoder.size=vit_tiny", "clip.num_frames=8", "clip.crop_size=128", "objective.predictor.depth=4",
         "objective.predictor.embed_dim=192", "objective.predictor.num_heads=6"]  # fmt: skip
SMALLER = [*SMALL, "encoder.depth=6"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="clips per device in one micro-batch")
    parser.add_argument("--device", default="NVIDIA H100 80GB HBM3", help="a name of the table in jepa/throughput.py")
    parser.add_argument("--mfu", type=float, default=0.4, help="model FLOP utilisation that the time assumes")
    parser.add_argument("--check", action="store_true", help="compare the two models with a real step on this CPU")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.check:
        check_memory()
        check_time()
        return
    peak = listed_peak(options.device, "bf16")
    if peak is None:
        raise SystemExit(f"--device {options.device!r} has no bf16 peak in the table of jepa/throughput.py")
    print(f"torch {torch.__version__}, {datetime.date.today()}; {options.batch} clips per device; {peak.source}: "
          f"{peak.flops / 1e12:.0f} TFLOP/s; MFU {options.mfu:.0%} assumed\n")  # fmt: skip
    heads = ("recipe", "parameters trained / in all, M", "TFLOP per clip", "fixed GiB", *get_args(Recompute),
             "clips", "device hours")  # fmt: skip
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|", flush=True)
    for name, (path, changes) in RECIPES.items():
        config = config_of(path, changes)
        print(f"| {name} | " + " | ".join(row(config, options.batch, peak.flops * options.mfu)) + " |", flush=True)


def config_of(path: str, changes: list[str]) -> TrainConfig:
    return from_dict(TrainConfig, apply_overrides(load_yaml(ROOT / "configs" / path), changes))


def parts_of(config: TrainConfig) -> tuple[Objective, list[MaskFamily]]:
    """The objective without memory for its weights, and its mask families."""
    with torch.device("meta"):
        objective = build_objective(config.objective, config.encoder, config.clip, len(config.masks))
    return objective, build_masks(config.masks, objective.encoder.grid)


def draw(families: list[MaskFamily], config: TrainConfig, clips: int, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    side = config.clip.crop_size
    clip = torch.zeros(clips, config.encoder.in_channels, config.clip.num_frames, side, side)
    return Batch(clip=clip, masks=[family.draw(rng, clips) for family in families])


def flops_per_clip(objective: Objective, families: list[MaskFamily], draws: int = 64) -> float:
    """The mean over batches of one clip: masks vary in size from batch to batch."""
    rng = np.random.default_rng(0)
    batches = (Batch(torch.zeros(1), [family.draw(rng, 1) for family in families]) for _ in range(draws))
    return float(np.mean([objective.work(batch).flops for batch in batches]))


def row(config: TrainConfig, clips: int, flops_per_s: float) -> list[str]:
    objective, families = parts_of(config)
    per_clip = flops_per_clip(objective, families)
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    held = sum(p.numel() for p in objective.parameters())
    costs = [objective.work(draw(families, config, 1, seed)).flops for seed in range(16)]
    typical = int(np.argsort(costs)[8])
    memory = []
    for policy in get_args(Recompute):
        memory.append(fake_step(parts_of(config)[0], lambda: draw(families, config, clips, typical), policy))
    assert all(abs(step.gradients - 4 * trained) < 2**24 for step in memory), "more than gradients is left of a step"
    fixed = memory[0].resting + 4 * trained
    total = config.train.steps * config.train.batch_size
    return [
        f"{trained / 1e6:.0f} / {held / 1e6:.0f}", f"{per_clip / 1e12:.2f}", f"{fixed / GIB:.1f}",
        *(f"{step.peak / GIB:.1f}" for step in memory), f"{total / 1e6:.0f} M",
        f"{total * per_clip / flops_per_s / 3600:,.0f}",
    ]  # fmt: skip


# ---- the two models against reality ----------------------------------------------------------------------------------


def check_memory() -> None:
    """Followed on fake tensors, followed on real ones, and what the process really grew by; fp32 on this CPU."""
    print(
        f"{platform.machine()} CPU, 1 thread, torch {torch.__version__}, {datetime.date.today()}; 4 clips, fp32, MiB\n"
    )
    print("| activation checkpointing | fake tensors | real tensors | resident memory grew by |\n|---|---|---|---|")
    for policy in get_args(Recompute):
        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            mock.patch("jepa.types.TokenGrid.check", unchecked),
        ):
            fake = small_step(policy).peak
        # in a process of its own: freed memory that an allocator keeps would hide the next step's
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            real, grown = pool.submit(grown_by_step, policy).result()
        print(f"| {policy} | " + " | ".join(f"{value / 2**20:.0f}" for value in (fake, real, grown)) + " |", flush=True)


def small_step(policy: Recompute, clips: int = 4, *changes: str) -> StepMemory:
    config = config_of("vjepa2/vitl16.yaml", [*SMALL, *changes])
    objective, families = parts_of(config)
    return measure_step(objective, draw(families, config, clips, 0), policy, None)


def grown_by_step(policy: Recompute) -> tuple[int, int]:
    """(peak of the storages followed, growth of the process's resident memory up to its own peak)."""
    torch.set_num_threads(1)
    small_step(policy, 1, "encoder.depth=1", "objective.predictor.depth=1")  # loads what the first step of all loads
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    peak = small_step(policy).peak
    return peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def check_time() -> None:
    """The share of the peak that one model reaches predicts the processor time of another one's step; fp32."""
    from jepa.optim import OptimConfig, build_optimizer

    def product() -> None:
        torch.mm(a, b)

    def seconds(action: object, repeats: int) -> float:
        took = []
        for _ in range(repeats):
            began = time.process_time()
            action()  # type: ignore[operator]
            took.append(time.process_time() - began)
        return sorted(took)[len(took) // 2]

    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    peak = 2 * 1024**3 / seconds(product, 7)
    rates = []
    for changes in (SMALLER, SMALL):
        config = config_of("vjepa2/vitl16.yaml", [*changes])
        objective = build_objective(config.objective, config.encoder, config.clip, len(config.masks))
        batch = draw(build_masks(config.masks, objective.encoder.grid), config, 2, 0)
        optimizer = build_optimizer(objective, OptimConfig())

        def step() -> None:
            objective(batch, 0.0).total.backward()  # noqa: B023 - called before the next one is made
            optimizer.step()  # noqa: B023
            optimizer.zero_grad()  # noqa: B023
            objective.after_step(0.0)  # noqa: B023

        step()
        rates.append((objective.work(batch).flops, seconds(step, 5)))
    (small_flops, small_s), (flops, real_s) = rates
    mfu = small_flops / small_s / peak
    print(
        f"\npeak {peak / 1e9:.0f} GFLOP/s of processor time; MFU of a 6-block model {mfu:.1%}; a 12-block model's step "
        f"of {flops / 1e9:.0f} GFLOP: predicted {flops / peak / mfu:.2f} s, measured {real_s:.2f} s"
    )


if __name__ == "__main__":
    main()
