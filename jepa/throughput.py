"""How fast a run is: clips and tokens per second, model FLOP utilisation (MFU), memory.

MFU (arXiv 2204.02311, appendix B) is what the model needs (``jepa.models.flops``) over what the device could do in the
same time. The device's peak comes from a table of data sheets where the device is in it; elsewhere it is measured by a
matrix product, and called measured.
"""

from __future__ import annotations

import functools
import re
import resource
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from jepa.compiling import graphs_made
from jepa.logging import StepTimer, logger
from jepa.models.flops import Work
from jepa.models.linear import linear
from jepa.precision import DTYPES
from jepa.types import Batch

if TYPE_CHECKING:
    from jepa.session import Session


class Peak(NamedTuple):
    """``flops`` per second at one precision, and where that number comes from."""

    flops: float
    source: str


# Dense TFLOP/s (without sparsity) with fp32 accumulation: bf16 and fp16 alike, TF32, and fp32 outside tensor cores.
# Sources: NVIDIA's data sheets of each product (H100, H200 and B200: SXM / HGX modules; where a sheet states figures
# with sparsity, half of them), its architecture white papers (GA102, Ada, RTX Blackwell) for the GeForce and RTX cards,
# AMD's data sheet for MI300X. The name is what torch.cuda.get_device_name says, and the first match counts.
_DEVICES: tuple[tuple[str, dict[str, float]], ...] = (
    (r"B200", {"bf16": 2250.0, "tf32": 1120.0, "fp32": 75.0}),
    (r"GH200", {"bf16": 989.4, "tf32": 494.7, "fp32": 66.9}),
    (r"H[12]00 NVL", {"bf16": 835.5, "tf32": 417.5, "fp32": 60.0}),
    (r"H200", {"bf16": 989.4, "tf32": 494.7, "fp32": 66.9}),
    (r"H100 PCIe", {"bf16": 756.0, "tf32": 378.0, "fp32": 51.0}),
    (r"H100", {"bf16": 989.4, "tf32": 494.7, "fp32": 66.9}),
    (r"A100", {"bf16": 312.0, "tf32": 156.0, "fp32": 19.5}),
    (r"A40", {"bf16": 149.7, "tf32": 74.8, "fp32": 37.4}),
    (r"A30", {"bf16": 165.0, "tf32": 82.0, "fp32": 10.3}),
    (r"A10", {"bf16": 125.0, "tf32": 62.5, "fp32": 31.2}),
    (r"L40S", {"bf16": 362.1, "tf32": 183.0, "fp32": 91.6}),
    (r"L40", {"bf16": 181.1, "tf32": 90.5, "fp32": 90.5}),
    (r"L4", {"bf16": 121.0, "tf32": 60.0, "fp32": 30.3}),
    (r"RTX A6000", {"bf16": 154.8, "tf32": 77.4, "fp32": 38.7}),
    (r"RTX 5090", {"bf16": 209.5, "tf32": 104.8, "fp32": 104.8}),
    (r"RTX 4090(?! D)", {"bf16": 165.2, "tf32": 82.6, "fp32": 82.6}),
    (r"RTX 3090(?! Ti)", {"bf16": 71.0, "tf32": 35.6, "fp32": 35.6}),
    (r"V100-SXM2", {"fp16": 125.0, "fp32": 15.7}),
    (r"T4", {"fp16": 65.0, "fp32": 8.1}),
    (r"MI300X", {"bf16": 1307.4, "tf32": 653.7, "fp32": 163.4}),
)


def listed_peak(name: str, precision: str) -> Peak | None:
    """The table's peak of the device called ``name``, or None where it has none at that ``precision``."""
    for pattern, table in _DEVICES:
        if re.search(rf"\b{pattern}\b", name):
            tflops = table.get(precision, table.get("bf16") if precision == "fp16" else None)
            return None if tflops is None else Peak(tflops * 1e12, f"data sheet of {name}, dense {precision}")
    return None


@functools.cache
def measured_peak(device: torch.device, precision: str) -> Peak:
    """The best of a few products of square matrices on ``device``, by as many threads as PyTorch uses now."""
    size = 8192 if device.type == "cuda" else 1024
    kind = DTYPES[precision]
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        linear(a, b, None)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - began)
    return Peak(2.0 * size**3 / best, f"measured here by a {precision} product of {size} x {size} matrices")


def device_peak(device: torch.device, precision: str) -> Peak:
    """The peak of ``device`` at ``precision``: listed, else measured. With float8 linears it stays that of bf16, so
    that runs with and without them compare."""
    listed = listed_peak(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
    return measured_peak(device, precision) if listed is None else listed


def peak_memory_gib(device: torch.device) -> float:
    """The most memory in use so far, GiB: tensors on a CUDA device, else this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Meter:
    """Times the steps and adds up what they cost, from one log step to the next. All processes do the same amount.

    ``skipped``: unreadable clips of this process since its start.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.peak = device_peak(session.run.device, session.run.precision)
        self._known: dict[tuple[tuple[int, ...], ...], Work] = {}
        self._works: list[Work] = []
        self.skipped, self._told = 0, False
        self.timer = StepTimer()

    def stepped(self, batch: Batch, loss: Tensor) -> None:
        """Call after every step with this process's batch of it."""
        shapes = (tuple(batch.clip.shape), *((*m.context_ids.shape, *m.target_ids.shape) for m in batch.masks))
        if shapes not in self._known:
            self._known[shapes] = self._session.objective.work(batch)
        self._works.append(self._known[shapes])
        self.skipped += batch.skipped
        self.timer.stepped(loss, graphs_made())

    def figures(self) -> dict[str, float]:
        """Speeds since the last call, in all and per device; the same on every process but for rounding. Call it when a
        value of the last step has just been read from the device. ``time/data_wait_share`` and ``memory/peak_gib`` are
        those of the process where they are largest."""
        run, steps = self._session.run, len(self._works)
        lap = self.timer.lap(steps)
        rows = run.gather((self.skipped, lap.waited, peak_memory_gib(run.device)))
        skipped, waited, memory = zip(*rows, strict=True)  # type: ignore[call-overload]
        flops = sum(work.flops for work in self._works) / steps  # of one device's step
        tokens = sum(work.tokens for work in self._works) / steps / lap.step_s
        clips = self._session.config.train.batch_size / lap.step_s
        self._works = []
        warmup = {}
        if lap.warmup_steps:
            warmup = {"time/warmup_s": lap.warmup_s, "time/warmup_steps": lap.warmup_steps}
            logger.info("warm-up: %.1f s for %d of %d steps", lap.warmup_s, lap.warmup_steps, steps)
        if not self._told:
            self._told = True
            logger.info("a step takes %.3g model TFLOP; MFU 100%% is %.4g TFLOP/s per device: %s",
                        flops * run.world_size / 1e12, self.peak.flops / 1e12, self.peak.source)  # fmt: skip
        return {
            "skipped": float(sum(skipped)),
            "time/step_s": lap.step_s,
            "time/clips_per_s": clips,
            "time/clips_per_s_per_device": clips / run.world_size,
            "time/tokens_per_s": tokens * run.world_size,
            "time/tokens_per_s_per_device": tokens,
            "time/step_tflop": flops * run.world_size / 1e12,
            "time/tflops_per_device": flops / lap.step_s / 1e12,
            "time/mfu": flops / lap.step_s / self.peak.flops,
            "time/data_wait_share": max(waited),
            "memory/peak_gib": max(memory),
            **warmup,
        }


def speed_text(figures: Mapping[str, float]) -> str:
    """The few figures for a console's line; waiting for data is named when it is worth a look."""
    text = f"{figures['time/clips_per_s']:.1f} clips/s  MFU {figures['time/mfu']:.0%}"
    waited = figures["time/data_wait_share"]
    return f"{text}  data wait {waited:.0%}" if waited >= 0.05 else text
