"""Batches through the encoder: copied to the device, encoded, pooled and copied back while the next one is made ready.

Shape legend: B clips, N tokens, D width, t/h/w token grid.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jepa.data.transforms import ClipTransform
from jepa.distributed import Run
from jepa.features.features import Pool, attentive_pool
from jepa.feed import Work
from jepa.models.base import ClipEncoder
from jepa.types import Batch, ClipConfig, TokenGrid

log = logging.getLogger("jepa")
_CPU_TOKENS = 4096  # per batch: enough for full speed, little enough for any memory
_CUDA_CLIPS = 128


class Encoded(NamedTuple):
    """What became of ``work``: ``rows`` float32 on the CPU, one per clip (None: it had no clips), their grid, and the
    widths of their layers."""

    work: Work
    rows: Tensor | None
    grid: TokenGrid | None
    widths: tuple[int, ...] = ()


@dataclass(slots=True)
class Meter:
    """Clips, seconds, and for how many of them the device had nothing to do because no data was there."""

    clips: int = 0
    started: float = 0.0
    waited_s: float = 0.0

    @property
    def seconds(self) -> float:
        """Since the first batch."""
        return time.perf_counter() - self.started if self.started else 0.0

    @property
    def clips_per_s(self) -> float:
        return self.clips / max(self.seconds, 1e-9)

    @property
    def wait_share(self) -> float:
        """Waiting for data as a share of the time since the first batch."""
        return min(1.0, self.waited_s / max(self.seconds, 1e-9))


class Forward:
    """The encoder at work. ``by_tubelet``: rows keep their tubelets apart, ``[B, t, ...]``, to be merged.

    Rows are ``[B, N, D]`` (pool "none"), else ``[B, D]``; by tubelet ``[B, t, h*w, D]`` or ``[B, t, D]``. Several
    ``layers`` stand side by side along D.
    """

    def __init__(
        self, model: ClipEncoder, run: Run, clip: ClipConfig, layers: Sequence[int] | None, pool: Pool,
        probe: nn.Module | None, by_tubelet: bool, may_split: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.run, self.layers, self.pool = model.to(run.device).eval(), run, layers, pool
        self.probe = None if probe is None else probe.to(run.device).eval()
        self.by_tubelet = by_tubelet
        self.transform = ClipTransform(clip, multiple=patch_size(model))
        self.meter = Meter()
        self.may_split = may_split
        self.widths: tuple[int, ...] = ()
        self._fits: int | None = None  # clips at once, learned from running out of memory
        self._copy = torch.cuda.Stream(run.device) if run.device.type == "cuda" else None

    def __call__(self, works: Iterator[Work]) -> Iterator[Encoded]:
        """Encode works in order; each comes out when the device has it done and the next one is under way."""
        waiting: Callable[[], Encoded] | None = None
        idle: Callable[[], bool] | None = None
        self.meter.started = time.perf_counter()
        while True:
            asked = time.perf_counter()
            work = next(works, None)
            if idle is None:
                self.meter.started = time.perf_counter()  # the start of workers is no waiting
            elif idle():
                self.meter.waited_s += time.perf_counter() - asked
            if work is not None and work.clips is not None:
                follow, idle = self._start(work)
            elif work is not None:
                follow = _nothing(work)
            if waiting is not None:
                yield waiting()
            if work is None:
                return
            waiting = follow

    def _start(self, work: Work) -> tuple[Callable[[], Encoded], Callable[[], bool]]:
        """Send one batch on its way: how to get its rows, and whether the device is through with it."""
        assert work.clips is not None
        clip = self._ready(work.clips)
        grid = self.model.grid_of(clip.shape)
        rows = self._encode(clip, grid)
        self.meter.clips += len(clip)
        if rows.device.type != "cuda":
            done = rows.cpu()
            return lambda: Encoded(work, done, grid, self.widths), lambda: True
        landed = torch.empty(rows.shape, pin_memory=True).copy_(rows, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(rows.device))

        def result() -> Encoded:
            event.synchronize()
            return Encoded(work, landed, grid, self.widths)

        return result, event.query

    def _ready(self, clips: Batch | Tensor) -> Tensor:
        """Float clips on the device; the copy runs beside the computation of the batch before."""
        device = self.run.device
        if self._copy is None:
            moved = clips.to(device)
        else:
            with torch.cuda.stream(self._copy):
                moved = clips.to(device) if isinstance(clips, Batch) else clips.to(device, non_blocking=True)
            computing = torch.cuda.current_stream(device)
            computing.wait_stream(self._copy)
            # else their memory could be given to the next copy while this batch still reads it
            for tensor in (moved.clip, moved.size) if isinstance(moved, Batch) else (moved,):
                if tensor is not None:
                    tensor.record_stream(computing)
        return self.transform(moved).clip if isinstance(moved, Batch) else moved

    def _encode(self, clip: Tensor, grid: TokenGrid) -> Tensor:
        count = len(clip)
        try:
            if self._fits is None or count <= self._fits:
                return self._pooled(clip, grid)
        except torch.OutOfMemoryError:
            if count == 1 or not self.may_split:
                remedy = "batch_size, or 'auto'" if count > 1 else "crop_size or num_frames"
                many = f"{count} clips of {list(clip.shape[1:])}"
                raise ValueError(f"out of memory on {self.run.device} with {many}: set a smaller {remedy}") from None
            self._fits = (count + 1) // 2
            log.info("out of memory with %d clips at once: going on with %d", count, self._fits)
            torch.cuda.empty_cache()
        assert self._fits is not None
        return torch.cat([self._encode(part, grid) for part in clip.split(self._fits)])

    @torch.inference_mode()
    def _pooled(self, clip: Tensor, grid: TokenGrid) -> Tensor:
        with self.run.autocast():
            outputs = [self.model(clip)] if self.layers is None else self.model(clip, layers=self.layers)
        self.widths = tuple(output.shape[-1] for output in outputs)
        tokens = torch.cat(outputs, dim=-1).float()
        if self.by_tubelet:
            tokens = tokens.unflatten(1, (grid.t, grid.h * grid.w))
        if self.pool == "none":
            return tokens
        if self.pool == "mean":
            return tokens.mean(dim=-2)
        assert self.probe is not None
        return attentive_pool(self.probe, tokens)


def _nothing(work: Work) -> Callable[[], Encoded]:
    return lambda: Encoded(work, None, None)


def patch_size(model: ClipEncoder) -> int:
    """Pixels of a patch's side: the least by which pictures can grow (a grid that is pooled does not tell)."""
    frames, side = model.clip.num_frames, model.clip.crop_size
    for step in range(1, side):
        with contextlib.suppress(ValueError):
            model.grid_of((3, frames, side + step, side))
            return step
    return side  # no other size at all


def tubelet_size(model: ClipEncoder) -> int:
    """Frames of a tubelet."""
    return max(1, model.clip.num_frames // model.grid.t)


def choose_batch_size(batch_size: int | str, model: ClipEncoder, clip: ClipConfig, device: torch.device) -> int:
    """Clips at once: as asked, or ("auto") what fits easily; on CUDA by the free memory. Raises ``ValueError``."""
    if batch_size != "auto":
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be 'auto' or at least 1, not {batch_size!r}")
        return batch_size
    tokens = model.grid_of((3, clip.num_frames, clip.crop_size, clip.crop_size)).size
    if device.type != "cuda":
        return max(1, min(64, _CPU_TOKENS // tokens))
    free, _ = torch.cuda.mem_get_info(device)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    # tokens through an MLP of width 4D beside queries, keys and values, twice over; pixels as uint8 and float
    clip_bytes = 4 * 24 * tokens * model.embed_dim + 5 * 3 * clip.num_frames * clip.crop_size**2
    fits = int(0.6 * max(0, free - weights) / clip_bytes)
    return 2 ** (max(1, min(_CUDA_CLIPS, fits)).bit_length() - 1)
