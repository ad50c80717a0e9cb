"""Crop, flip, resize and normalise: the one place, on the device, for a whole batch.

Every crop is one definition: antialiased resampling (bilinear or bicubic) of a box of every clip. On
accelerators it is two batched matrix products (a row of weights for every output row and column, no loop, no
synchronisation). On CPUs it runs on the uint8 values, clip by clip, which PyTorch's vectorised uint8 kernel does
several times faster than any float path; the two agree to the rounding of one grey level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.types import Batch, ClipConfig, Interpolation


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Random resized crop: ``scale`` is the box's share of the picture's area, ``ratio`` its width to its height
    (log-uniform); ``flip`` is the probability of mirroring. The same box for all frames of a clip.
    """

    scale: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (0.75, 1.35)
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be two shares of the area in (0, 1], smaller first, not {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be two positive numbers, smaller first, not {self.ratio}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be a probability, not {self.flip}")


class Boxes(NamedTuple):
    """Which part of every clip becomes the crop, in whole pixels of the uint8 clip; int64 ``[B]`` each.

    The box ``top, left, height, width`` is resized to ``scaled_height`` x ``scaled_width``; the crop is cut from there
    at ``row, column`` and mirrored where ``flip`` (bool ``[B]``).
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    scaled_height: Tensor
    scaled_width: Tensor
    row: Tensor
    column: Tensor
    flip: Tensor


def uniform(seed: Tensor, draws: int) -> Tensor:
    """Uniform numbers in [0, 1) as a pure function of int64 seeds ``[B]``: float32 ``[B, draws]``, on their device.

    SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) over a counter, so that crops depend neither on the batch's split nor
    on the device.
    """

    def word(value: int) -> int:  # the same 64 bits as a signed number
        return value - 2**64 if value >= 2**63 else value

    def shift(value: Tensor, bits: int) -> Tensor:  # logical, where torch shifts arithmetically
        return (value >> bits) & ((1 << (64 - bits)) - 1)

    counter = torch.arange(1, draws + 1, device=seed.device)
    state = seed[:, None] + counter * word(0x9E3779B97F4A7C15)
    state = (state ^ shift(state, 30)) * word(0xBF58476D1CE4E5B9)
    state = (state ^ shift(state, 27)) * word(0x94D049BB133111EB)
    state = state ^ shift(state, 31)
    return shift(state, 40).to(torch.float32) / 2**24


def random_boxes(size: Tensor, seed: Tensor, augment: AugmentConfig, crop_size: int) -> Boxes:
    """A random resized crop inside the valid ``size`` ``[B, 2]`` of every clip."""
    draws = uniform(seed, 5).unbind(1)
    full_h, full_w = size.to(torch.float32).unbind(1)
    area = full_h * full_w * (augment.scale[0] + (augment.scale[1] - augment.scale[0]) * draws[0])
    low, high = math.log(augment.ratio[0]), math.log(augment.ratio[1])
    ratio = torch.exp(low + (high - low) * draws[1])
    width = torch.minimum(torch.sqrt(area * ratio).round().clamp(min=1), full_w)
    height = torch.minimum(torch.sqrt(area / ratio).round().clamp(min=1), full_h)
    top = torch.minimum((draws[2] * (full_h - height + 1)).floor(), full_h - height)
    left = torch.minimum((draws[3] * (full_w - width + 1)).floor(), full_w - width)
    crop = torch.full_like(size[:, 0], crop_size)
    zero = torch.zeros_like(crop)
    top, left, height, width = (value.to(torch.int64) for value in (top, left, height, width))
    return Boxes(top, left, height, width, crop, crop, zero, zero, draws[4] < augment.flip)


def fitted_size(height: int, width: int, clip: ClipConfig, multiple: int) -> tuple[int, int]:
    """Height and width that a picture gets by ``clip.fit``; "keep" cuts both to multiples of ``multiple``."""
    if clip.fit != "keep":
        return clip.crop_size, clip.crop_size
    scaled = (round(side * clip.crop_size / min(height, width)) for side in (height, width))
    rows, columns = (side // multiple * multiple for side in scaled)
    return rows, columns


def fitted_boxes(size: Tensor, clip: ClipConfig, out: tuple[int, int]) -> Boxes:
    """What ``clip.fit`` cuts from pictures of ``size`` ``[B, 2]`` to make them ``out`` = (rows, columns)."""
    height, width = size.unbind(1)
    zero = torch.zeros_like(height)
    if clip.fit == "stretch":
        rows, columns = (torch.full_like(height, side) for side in out)
        return Boxes(zero, zero, height, width, rows, columns, zero, zero, zero.bool())
    short = torch.minimum(height, width)
    short_side = clip.short_side or clip.crop_size
    scaled_h, scaled_w = (torch.round(side * short_side / short).to(torch.int64) for side in (height, width))
    row, column = (scaled_h - out[0]) // 2, (scaled_w - out[1]) // 2
    return Boxes(zero, zero, height, width, scaled_h, scaled_w, row, column, zero.bool())


def _kernel(distance: Tensor, interpolation: Interpolation) -> Tensor:
    """Weight at a distance in output pixels: a triangle, or Keys' cubic with a = -0.5 (IEEE TASSP 29, 1981)."""
    x = distance.abs()
    if interpolation == "bilinear":
        return (1 - x).clamp(min=0)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _weights(
    low: Tensor, length: Tensor, scaled: Tensor, first: Tensor, flip: Tensor | None, crop: int, full: int,
    interpolation: Interpolation,
) -> Tensor:  # fmt: skip
    """Antialiased weights ``[B, crop, full]`` of the input pixels for every output pixel of one axis."""
    place = torch.arange(crop, device=low.device, dtype=torch.float32).expand(len(low), crop)
    if flip is not None:
        place = torch.where(flip[:, None], crop - 1 - place, place)
    scale = (length / scaled)[:, None]  # input pixels per output pixel
    centre = low[:, None] + (place + first[:, None] + 0.5) * scale
    pixel = torch.arange(full, device=low.device, dtype=torch.float32) + 0.5
    weight = _kernel((pixel - centre[..., None]) / scale.clamp(min=1)[..., None], interpolation)
    inside = (pixel >= low[:, None]) & (pixel < (low + length)[:, None])
    weight = weight * inside[:, None]
    return weight / weight.sum(dim=2, keepdim=True)


def resample(clip: Tensor, boxes: Boxes, out: tuple[int, int], interpolation: Interpolation = "bilinear") -> Tensor:
    """Any device, any dtype: ``[B, C, T, H, W]`` to float32 ``[B, C, T, *out]`` by two matrix products."""
    batch, channels, frames, height, width = clip.shape
    rows = _weights(boxes.top, boxes.height, boxes.scaled_height, boxes.row, None, out[0], height, interpolation)
    columns = _weights(
        boxes.left, boxes.width, boxes.scaled_width, boxes.column, boxes.flip, out[1], width, interpolation
    )
    pixels = clip.to(torch.float32, memory_format=torch.contiguous_format).reshape(batch, -1, width)
    wide = torch.bmm(pixels, columns.transpose(1, 2)).view(batch, channels * frames, height, out[1])
    cut = torch.matmul(rows[:, None], wide).view(batch, channels, frames, *out)
    return cut if interpolation == "bilinear" else cut.clamp_(0, 255)  # a cubic kernel overshoots


def resample_uint8(
    clip: Tensor, boxes: Boxes, out: tuple[int, int], interpolation: Interpolation = "bilinear"
) -> Tensor:
    """CPU: uint8 ``[B, C, T, H, W]`` (channels last in memory is fast) to float32 ``[B, C, T, *out]``."""
    batch, channels, frames = clip.shape[:3]
    cut = torch.empty(batch, channels, frames, *out)
    for pixels, target, values in zip(clip.unbind(0), cut.unbind(0), zip(*(values.tolist() for values in boxes))):
        top, left, height, width, scaled_height, scaled_width, row, column, flip = values
        box = pixels[:, :, top : top + height, left : left + width].transpose(0, 1)  # [T, C, h, w]
        if (height, width) != (scaled_height, scaled_width):
            box = F.interpolate(box, size=(scaled_height, scaled_width), mode=interpolation, antialias=True)
        box = box[:, :, row : row + out[0], column : column + out[1]]
        target.copy_((box.flip(-1) if flip else box).transpose(0, 1))
    return cut


class ClipTransform:
    """uint8 batch as the loader makes it -> float32 ``[B, C, T, crop_size, crop_size]``, normalised.

    ``augment`` None is deterministic, as ``clip.fit`` says; where that is "keep", the clips of a batch are of one size,
    and both sides are cut to multiples of ``multiple`` (the patch). With augmentation the crop is square, and its box
    depends on ``batch.augment_seed`` and ``batch.size`` alone.
    """

    def __init__(self, clip: ClipConfig, augment: AugmentConfig | None = None, multiple: int = 1) -> None:
        self.clip, self.augment, self.multiple = clip, augment, multiple
        self._mean = torch.tensor(clip.mean).view(-1, 1, 1, 1) * 255
        self._scale = 1 / (torch.tensor(clip.std).view(-1, 1, 1, 1) * 255)

    def boxes(self, batch: Batch) -> Boxes:
        """What would be cut from ``batch``, on its device."""
        size = batch.size
        if size is None:
            size = torch.tensor(batch.clip.shape[3:], device=batch.clip.device).expand(len(batch.clip), 2)
        if self.augment is None:
            return fitted_boxes(size, self.clip, self.out(batch))
        assert batch.augment_seed is not None, "augmentation needs batch.augment_seed"
        return random_boxes(size, batch.augment_seed, self.augment, self.clip.crop_size)

    def out(self, batch: Batch) -> tuple[int, int]:
        """Rows and columns of the clips that are made."""
        if self.augment is not None:
            return self.clip.crop_size, self.clip.crop_size
        height, width = batch.clip.shape[3:]
        return fitted_size(height, width, self.clip, self.multiple)

    def __call__(self, batch: Batch) -> Batch:
        assert batch.clip.dtype == torch.uint8, f"the transform takes uint8 clips, not {batch.clip.dtype}"
        cut = resample_uint8 if batch.clip.device.type == "cpu" else resample
        clip = cut(batch.clip, self.boxes(batch), self.out(batch), self.clip.interpolation)
        if self._mean.device != clip.device:
            self._mean, self._scale = self._mean.to(clip.device), self._scale.to(clip.device)
        return replace(batch, clip=clip.sub_(self._mean).mul_(self._scale), size=None)


def to_values(clips: Tensor, clip: ClipConfig) -> Tensor:
    """Normalised clips ``[..., C, T, H, W]`` back to values in 0..1, what lies beyond being cut off."""
    mean, std = (clips.new_tensor(numbers).view(-1, 1, 1, 1) for numbers in (clip.mean, clip.std))
    return (clips * std + mean).clamp(0, 1)
