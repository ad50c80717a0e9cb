"""The nouns of the toolkit: plain containers that every part shares.

Shape legend: B batch, C channels, T frames, H/W pixels, t/h/w token grid, N tokens, Nc context tokens,
M target blocks, Nt target tokens per block, D width, A action width, S state width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor


class TokenGrid(NamedTuple):
    """The lattice of tubelets of one clip: ``t`` tubelets in time, ``h`` rows and ``w`` columns of patches.

    A token id is flat in t, h, w order: ``id = (time * h + row) * w + column``.
    """

    t: int
    h: int
    w: int

    @property
    def size(self) -> int:
        """Number of tokens, ``t * h * w``."""
        return self.t * self.h * self.w

    def coordinates(self, ids: Tensor) -> Tensor:
        """Flat token ids ``[..., N]`` (int64) to ``[..., N, 3]`` integer coordinates (time, row, column)."""
        cells = self.h * self.w
        rest = ids % cells
        return torch.stack((ids // cells, rest // self.w, rest % self.w), dim=-1)

    def check(self, ids: Tensor, name: str) -> None:
        """Raise ``ValueError`` for token ids outside the grid. On CPUs only: elsewhere the answer would cost a sync."""
        if ids.device.type != "cpu" or torch.compiler.is_compiling() or ids.numel() == 0:
            return
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.size:
            wrong = low if low < 0 else high
            sides = " x ".join(map(str, self))
            raise ValueError(f"{name} holds {wrong}, but a grid of {sides} has 0 to {self.size - 1}")

    def ids(self, device: torch.device | str | None = None) -> Tensor:
        """Every token id in order, int64 ``[N]``."""
        return torch.arange(self.size, device=device)


class Mask(NamedTuple):
    """Which tokens the context encoder sees and which ones the predictor predicts, for a batch.

    ``context_ids`` int64 ``[B, Nc]``: ids to keep. ``target_ids`` int64 ``[B, M, Nt]``: ids to predict, in M blocks
    that are predicted separately (I-JEPA M=4, V-JEPA M=1). Within a row every id is distinct and the two never
    overlap. ``discarded`` is the share of the drawn target tokens that had to be dropped so that the batch is
    rectangular (0 when none).
    """

    context_ids: Tensor
    target_ids: Tensor
    discarded: float = 0.0

    def to(self, device: torch.device | str) -> Mask:
        context, target = (ids.to(device, non_blocking=True) for ids in (self.context_ids, self.target_ids))
        return Mask(context, target, self.discarded)


@dataclass(slots=True)
class Batch:
    """A batch of clips.

    ``clip`` ``[B, C, T, H, W]``: uint8 as it leaves the loader, padded at the bottom and the right to the largest
    clip of the batch; float after ``jepa.data.transforms`` cropped and normalised it on the device.
    ``size`` int64 ``[B, 2]``: the valid height and width of every padded clip, in pixels.
    ``masks``: one ``Mask`` per mask family. ``label`` int64 ``[B]``, -1 where a clip has none.
    ``index`` int64 ``[B]``: position of the clip's video in the data source. ``start_s`` and ``end_s`` float64
    ``[B]``: the clip's time in its video, in seconds. ``actions`` ``[B, T-1, A]`` and ``states`` ``[B, T, S]`` are
    for trajectories.
    ``augment_seed`` int64 ``[B]``: seed of every sample's own augmentation stream.
    """

    clip: Tensor
    masks: list[Mask] = field(default_factory=list)
    size: Tensor | None = None
    label: Tensor | None = None
    index: Tensor | None = None
    start_s: Tensor | None = None
    end_s: Tensor | None = None
    augment_seed: Tensor | None = None
    actions: Tensor | None = None
    states: Tensor | None = None
    skipped: int = 0

    def to(self, device: torch.device | str) -> Batch:
        """A copy on ``device``; the times stay where they are (nothing computes with them, and MPS has no float64)."""

        def move(name: str, value: object) -> object:
            if isinstance(value, Tensor):
                return value if name in ("start_s", "end_s") else value.to(device, non_blocking=True)
            if isinstance(value, list):
                return [mask.to(device) for mask in value]
            return value

        moved = {f.name: move(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)}
        return Batch(**moved)  # type: ignore[arg-type]

    def chunk(self, parts: int) -> list[Batch]:
        """Split along B into ``parts`` micro-batches of equal size; ``ValueError`` when B is no multiple of it."""
        total = len(self.clip)
        if total % parts:
            raise ValueError(f"a batch of {total} clips does not split into {parts} equal micro-batches")
        size = total // parts

        def rows(value: object, start: int) -> object:
            if isinstance(value, Tensor):
                return value[start : start + size]
            if isinstance(value, list):
                keep = slice(start, start + size)
                return [Mask(m.context_ids[keep], m.target_ids[keep], m.discarded) for m in value]
            return value

        names = [f.name for f in dataclasses.fields(self)]
        return [Batch(**{n: rows(getattr(self, n), i) for n in names}) for i in range(0, total, size)]  # type: ignore[arg-type]

    def pin_memory(self) -> Batch:
        """Page-locked copy, called by ``DataLoader(pin_memory=True)``."""

        def pin(value: object) -> object:
            if isinstance(value, Tensor):
                return value.pin_memory()
            if isinstance(value, list):
                return [Mask(m.context_ids.pin_memory(), m.target_ids.pin_memory(), m.discarded) for m in value]
            return value

        return Batch(**{f.name: pin(getattr(self, f.name)) for f in dataclasses.fields(self)})  # type: ignore[arg-type]


class Statistics(NamedTuple):
    """Of the actions ``[A]`` and states ``[S]`` of trajectories, taken at the model's own rate; float32 tensors.

    ``low`` and ``high`` are the bounds that an environment or a data set states, else the smallest and largest seen.
    """

    action_mean: Tensor
    action_std: Tensor
    action_low: Tensor
    action_high: Tensor
    state_mean: Tensor
    state_std: Tensor


class Loss(NamedTuple):
    """What an objective returns: ``total`` (scalar, backpropagated) and the named ``terms`` (scalars, logged).

    A NamedTuple on purpose: a dataclass output hides its tensors from DistributedDataParallel.
    """

    total: Tensor
    terms: dict[str, Tensor]


Fit = Literal["crop", "keep", "stretch"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """The clip that an encoder eats; stored with every checkpoint, so that features are always made the same way.

    Frames are chosen by exactly one of ``fps`` (frames per second), ``frame_step`` (every n-th frame of the file) or
    ``duration_s`` (``num_frames`` spread evenly over so many seconds). ``num_frames`` 1 is an image.
    ``crop_size`` is the side of the square crop in pixels; ``short_side`` is the length that the video's shorter side
    is brought to before a centred crop (``None``: ``crop_size``). ``fit`` says how a picture that is not square meets
    an encoder: "crop" (the centred square), "keep" (shape kept: the shorter side becomes ``crop_size``, and both are
    cut to whole patches) or "stretch" (to the square). ``interpolation`` is that of every resizing, antialiased.
    ``mean`` and ``std`` are per colour channel, of values in [0, 1].
    """

    num_frames: int = 16
    fps: float | None = None
    frame_step: int | None = None
    duration_s: float | None = None
    crop_size: int = 224
    short_side: int | None = None
    fit: Fit = "crop"
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.crop_size < 1:
            raise ValueError(f"num_frames and crop_size must be at least 1, not {self.num_frames} and {self.crop_size}")
        chosen = [name for name in ("fps", "frame_step", "duration_s") if getattr(self, name) is not None]
        if len(chosen) > 1 or (not chosen and self.num_frames > 1):
            raise ValueError(f"set exactly one of fps, frame_step, duration_s (set now: {', '.join(chosen) or 'none'})")
        for name in chosen:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.short_side is not None and self.short_side < self.crop_size:
            raise ValueError(f"short_side {self.short_side} must not be smaller than crop_size {self.crop_size}")
        if self.fit != "crop" and self.short_side is not None:
            raise ValueError(f"short_side {self.short_side} has no meaning with fit {self.fit!r}: leave it out")
        for name, known in (("fit", get_args(Fit)), ("interpolation", get_args(Interpolation))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, not {self.std}")
