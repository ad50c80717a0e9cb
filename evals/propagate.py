"""Tracking by propagation: the first frame's masks follow the patches whose features are alike.

As in DINO (arXiv 2104.14294, section 4.2.2), after A. Jabri et al., "Space-Time Correspondence as a Contrastive Random
Walk", NeurIPS 2020. S steps (frames, or tubelets of them), h x w patches, N = h w, D width, O objects with the
background first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evals.task_configs import TrackingConfig
from jepa.distributed import Run
from jepa.models.base import ClipEncoder

_VALUES = 1 << 26  # similarities in memory at once


class PatchMaps(NamedTuple):
    """``maps`` ``[S, h, w, D]`` and, for every frame, the step that shows it (int64 ``[T]``)."""

    maps: Tensor
    step_of_frame: Tensor


def propagate(maps: Tensor, first: Tensor, config: TrackingConfig) -> Tensor:
    """Soft masks ``[S, O, h, w]`` from those of the first step ``[O, h, w]`` (a distribution over O at each patch)."""
    steps, height, width, _ = maps.shape
    patches = F.normalize(maps.float().flatten(1, 2), dim=-1)
    near = neighbours(height, width, config.radius).to(maps.device)
    masks = [first.to(maps).flatten(1).T]  # [N, O] each
    for step in range(1, steps):
        seen = [0, *range(max(1, step - config.context), step)]
        bank, known = patches[seen].flatten(0, 1), torch.cat([masks[s] for s in seen])
        size = max(1, _VALUES // len(bank))
        found = []
        for rows, allowed in zip(patches[step].split(size), near.split(size), strict=True):
            alike = (rows @ bank.T).masked_fill(~allowed.repeat(1, len(seen)), -torch.inf)
            best, place = alike.topk(min(config.top_k, len(bank)), dim=1)
            weights = (best / config.temperature).softmax(dim=1)
            found.append(torch.einsum("nk,nko->no", weights, known[place]))
        masks.append(torch.cat(found))
    return torch.stack(masks).transpose(1, 2).unflatten(2, (height, width))


def neighbours(height: int, width: int, radius: int) -> Tensor:
    """Which patches are at most ``radius`` rows and ``radius`` columns apart: bool ``[N, N]``."""
    rows, columns = (
        (torch.arange(side)[:, None] - torch.arange(side)).abs() <= radius for side in (height, width)
    )  # fmt: skip
    return (rows[:, None, :, None] & columns[None, :, None, :]).reshape(height * width, height * width)


def to_patches(numbers: Tensor, objects: int, size: tuple[int, int]) -> Tensor:
    """Numbers of objects ``[H, W]`` (0: background) to each one's share of every patch, ``[O, h, w]``."""
    shares = F.one_hot(numbers, objects).permute(2, 0, 1).float()
    return F.adaptive_avg_pool2d(shares, size)


def to_pixels(soft: Tensor, size: tuple[int, int], sharpen: bool) -> Tensor:
    """Soft masks ``[O, h, w]`` to the number of the object at every pixel, int64 ``[H, W]``."""
    large = F.interpolate(soft[None], size, mode="bilinear", align_corners=False)[0]
    if sharpen:
        low, high = large.amin(dim=(1, 2), keepdim=True), large.amax(dim=(1, 2), keepdim=True)
        large = torch.where(high > low, (large - low) / (high - low).clamp_min(1e-12), large)
    return large.argmax(dim=0)


class EncoderMaps:
    """Patch features of a frozen encoder, frame by frame or by tubelets.

    Frame by frame every frame is a clip of one frame, as the encoder takes images. By tubelets the encoder sees windows
    of its own length, one after the other, of consecutive frames whatever their rate; the first frame is repeated
    before itself so that it fills the first tubelet alone, and the last is held. With tubelets of two frames, frame 0
    is step 0, frames 1 and 2 are step 1, and so on.
    """

    def __init__(self, name: str, encoder: ClipEncoder, run: Run, config: TrackingConfig, batch_size: int = 16) -> None:
        self.name, self.run, self.config, self.batch_size = name, run, config, batch_size
        self.encoder = encoder.to(run.device).eval()
        self.tubelet = encoder.clip.num_frames // encoder.grid.t
        single = config.frames == "single" or (config.frames == "auto" and self.tubelet == 1)
        self.window, self.tubelet = (1, 1) if single else (encoder.clip.num_frames, self.tubelet)

    @property
    def mode(self) -> str:
        """How frames become steps, for the results."""
        return "single frames" if self.window == 1 else f"tubelets of {self.tubelet} frames"

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of pixels that the encoder sees."""
        clip, grid = self.encoder.clip, self.encoder.grid
        if self.config.fit == "stretch":
            return clip.crop_size, clip.crop_size
        scale = self.config.side / min(height, width)
        patches = (clip.crop_size // grid.h, clip.crop_size // grid.w)
        rows, columns = (max(1, round(side * scale / p)) * p for side, p in zip((height, width), patches))
        return rows, columns

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> PatchMaps:
        """uint8 ``[T, H, W, 3]``. Raises ``ValueError`` for a size or a length that the encoder refuses."""
        rows, columns = self.size(*frames.shape[1:3])
        grid = self.encoder.grid_of((3, self.window, rows, columns))
        if self.window > 1 and grid.t * self.tubelet != self.window:
            raise ValueError(f"{self.name} mixes all frames: use tracking.frames=single")
        shown = torch.cat((frames[:1].expand(self.tubelet - 1, -1, -1, -1), frames))
        steps = -(-len(shown) // self.tubelet)
        rest = -len(shown) % self.window
        shown = torch.cat((shown, frames[-1:].expand(rest, -1, -1, -1)))
        parts = []
        for part in shown.split(self.window * max(1, self.batch_size // self.window)):
            clips = prepare(part.to(self.run.device), (rows, columns), self.encoder).unflatten(0, (-1, self.window))
            with self.run.autocast():
                tokens = self.encoder(clips.transpose(1, 2))
            parts.append(tokens.float().unflatten(1, tuple(grid)).flatten(0, 1))
        return PatchMaps(torch.cat(parts)[:steps], (torch.arange(len(frames)) + self.tubelet - 1) // self.tubelet)


def prepare(frames: Tensor, size: tuple[int, int], encoder: ClipEncoder) -> Tensor:
    """uint8 ``[T, H, W, 3]``, resized and normalised as the encoder wants: float ``[T, 3, rows, columns]``."""
    clip = encoder.clip
    pictures = frames.permute(0, 3, 1, 2).float()
    pictures = F.interpolate(pictures, size, mode=clip.interpolation, antialias=True).clamp(0, 255) / 255
    mean, std = (torch.tensor(values, device=frames.device).view(3, 1, 1) for values in (clip.mean, clip.std))
    return (pictures - mean) / std


class PixelMaps:
    """No encoder: a patch is its picture averaged down to at most 4 x 4 pixels; frames, sizes and patches are those of
    ``like``."""

    def __init__(self, like: EncoderMaps) -> None:
        self.name, self.mode, self.like = "pixels", "single frames", like

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> PatchMaps:
        """uint8 ``[T, H, W, 3]``."""
        encoder = self.like.encoder
        rows, columns = self.like.size(*frames.shape[1:3])
        grid = encoder.grid_of((3, self.like.window, rows, columns))
        side = max(1, min(rows // grid.h, columns // grid.w, 4))
        parts = []
        for part in frames.split(self.like.batch_size):
            pictures = prepare(part.to(self.like.run.device), (rows, columns), encoder)
            small = F.adaptive_avg_pool2d(pictures, (grid.h * side, grid.w * side))
            cells = small.unflatten(3, (grid.w, side)).unflatten(2, (grid.h, side))  # [T, 3, h, side, w, side]
            parts.append(cells.permute(0, 2, 4, 1, 3, 5).flatten(3))
        return PatchMaps(torch.cat(parts), torch.arange(len(frames)))
