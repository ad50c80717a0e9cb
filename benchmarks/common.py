"""What the benchmarks share: alternating timings, the GEMM peak, where the time goes, and the peer.

The peer is the ``transformers`` implementation of V-JEPA 2, with the same sizes and the same number of parameters.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from jepa.models import EncoderConfig, PredictorConfig, Size
from jepa.models.linear import CPU_HAS_BF16, linear
from jepa.types import ClipConfig

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GROUPS = {  # profiler event names that begin with one of these
    "GEMM": ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_conv", "aten::_conv"),
    "attention": ("aten::_scaled_dot", "aten::_flash", "aten::_efficient"),
    "optimizer, EMA": ("aten::_fused_adam", "aten::_foreach", "aten::lerp", "aten::addcdiv", "aten::sqrt"),
    "norm, GELU": ("aten::native_layer_norm", "aten::gelu"),
}
REST = "elementwise, copies"


def arguments(
    description: str, size: str, batch_size: int, repeats: int, extra: dict[str, int] | None = None
) -> argparse.Namespace:
    """Command line that both benchmarks understand; ``extra`` adds whole-number options and their defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (extra or {}).items():
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "both"), default="both")
    parser.add_argument("--size", default=size, help="row of the size table, for example vit_base")
    parser.add_argument("--crop-size", type=int, default=128, help="pixels")
    parser.add_argument("--num-frames", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--repeats", type=int, default=repeats, help="timed runs of each side, alternating")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        default="wall",
        help="cpu: this process's own CPU seconds, for a machine that is busy with other things (use --threads 1)",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile both sides")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def import_transformers() -> Any:
    """The optional peer; leaves with a clear message when it is not installed."""
    try:
        import transformers
    except ImportError:
        sys.exit("the peer of this benchmark is missing; install it with: pip install '.[bench]'")
    transformers.utils.logging.set_verbosity_error()
    return transformers


def build_peer(size: Size, encoder: EncoderConfig, clip: ClipConfig, predictor: PredictorConfig, families: int) -> Any:
    """``VJEPA2Model`` of the same shape as our encoder and predictor."""
    transformers = import_transformers()
    config = transformers.VJEPA2Config(
        patch_size=encoder.patch_size, tubelet_size=encoder.tubelet_size, crop_size=clip.crop_size,
        frames_per_clip=clip.num_frames, hidden_size=size.embed_dim, num_hidden_layers=size.depth,
        num_attention_heads=size.num_heads, mlp_ratio=size.mlp_ratio, pred_hidden_size=predictor.embed_dim,
        pred_num_hidden_layers=predictor.depth, pred_num_attention_heads=predictor.num_heads,
        pred_mlp_ratio=predictor.mlp_ratio, pred_num_mask_tokens=families, pred_zero_init_mask_tokens=False,
    )  # fmt: skip
    return transformers.VJEPA2Model(config)


def autocast(device: str, dtype: str) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision as ``jepa train`` uses it; nothing at fp32."""
    return contextlib.nullcontext() if dtype == "fp32" else torch.autocast(torch.device(device).type, DTYPES[dtype])


def synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def alternate(runs: dict[str, Callable[[], Any]], repeats: int, device: str, clock: str) -> dict[str, float]:
    """Median seconds of each run, after one warm-up each; they take turns, in turned order every second time, so that
    whatever else the machine does falls on all of them alike."""
    now = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for turn in range(repeats):
        for name in list(runs)[:: 1 if turn % 2 == 0 else -1]:
            synchronize(device)
            start = now()
            runs[name]()
            synchronize(device)
            times[name].append(now() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def gemm_peak(dtype: str, device: str, clock: str, product: Callable[..., torch.Tensor] = F.linear) -> float:
    """Best measured FLOP/s of one matrix product of transformer shape in ``dtype``."""
    rows, width = (8192, 4096) if torch.device(device).type == "cuda" else (768, 768)
    x = torch.randn(rows, width, device=device, dtype=DTYPES[dtype])
    weight = torch.randn(4 * width, width, device=device, dtype=DTYPES[dtype])
    bias = torch.zeros(4 * width, device=device, dtype=DTYPES[dtype])
    now, best = CLOCKS[clock], float("inf")
    for _ in range(8):
        synchronize(device)
        start = now()
        product(x, weight, bias)
        synchronize(device)
        best = min(best, now() - start)
    return 2 * rows * width * 4 * width / best


def peaks(dtype: str, device: str, clock: str) -> float:
    """Print and return the GEMM peak for ``dtype``: the faster of PyTorch's product and ours."""
    native = gemm_peak(dtype, device, clock)
    if dtype != "bf16" or CPU_HAS_BF16 or torch.device(device).type != "cpu":
        print(f"  GEMM peak {dtype}: {native / 1e9:.0f} GFLOP/s")
        return native
    ours = gemm_peak(dtype, device, clock, linear)
    print("  This CPU has no bf16 instructions. GEMM peak bf16:")
    print(f"    {native / 1e9:.0f} GFLOP/s with PyTorch's bf16 products (the peer)")
    print(f"    {ours / 1e9:.0f} GFLOP/s with operands rounded to bf16 and multiplied in fp32 (jepa.models.linear)")
    return max(native, ours)


def report_best(medians: dict[str, dict[str, float]]) -> None:
    """With several dtypes measured: each side at the dtype that suits it best on this machine."""
    if len(medians) > 1:
        names = list(next(iter(medians.values())))
        best = {name: min((times[name], dtype) for dtype, times in medians.items()) for name in names}
        ratio = best[names[-1]][0] / best[names[0]][0]
        sides = ", ".join(f"{name} {dtype} {seconds:.3f} s" for name, (seconds, dtype) in best.items())
        print(f"\nEach side at its faster dtype: {sides}: {ratio:.2f}x")


def breakdown(runs: dict[str, Callable[[], Any]], device: str) -> None:
    """Print the share of one run's time per kind of operation."""
    cuda = torch.device(device).type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    print("  where the time goes:" + "".join(f"{name:>22}" for name in (*GROUPS, REST)))
    for name, run in runs.items():
        with profile(activities=activities) as profiler:
            run()
            synchronize(device)
        seconds = dict.fromkeys((*GROUPS, REST), 0.0)
        for event in profiler.key_averages():
            group = next((g for g, names in GROUPS.items() if event.key.startswith(names)), REST)
            seconds[group] += (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
        total = sum(seconds.values())
        cells = "".join(f"{value:>13.3f} s {value / total:>5.0%} " for value in seconds.values())
        print(f"    {name:<16}{cells}")


def report(medians: dict[str, float], flops: float, tokens: int, peak: float) -> None:
    """Print seconds, speed-up over the last (the peer), tokens/s, GFLOP/s of useful work and its share of the peak."""
    slowest = list(medians.values())[-1]
    print(f"  {'':<16}{'median s':>10}{'ratio':>8}{'tokens/s':>11}{'GFLOP/s':>9}{'of GEMM peak':>14}")
    for name, seconds in medians.items():
        rate = flops / seconds
        print(
            f"  {name:<16}{seconds:>10.3f}{slowest / seconds:>7.2f}x{tokens / seconds:>11,.0f}{rate / 1e9:>9.1f}"
            f"{rate / peak:>14.0%}"
        )


def describe_machine(device: str) -> str:
    """Device, threads and PyTorch's version."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
