"""Where things are in a picture that somebody drew or decoded: the trackers of the built-in worlds.

Validated against the simulators' own positions (tests/evals/test_tracking_pixels.py). Pictures are clips of values in
0..1, places are (x, y) in units of the picture's side, x to the right and y downwards; NaN where nothing is seen.

Shape legend: C channels, T frames, H/W pixels, K colours.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evals.probes.sklearn_bridge import digit_images
from jepa.data.sampling import frame_indices
from jepa.data.synthetic.dataset import DRAWING, Glyphs, WorldConfig, draw_clip
from jepa.types import ClipConfig

SHARE = 0.3  # of the strongest signal of a frame: what is weaker is background, grain or the haze of an unsure decoder
FAINT = 0.1  # a frame whose strongest signal is below this shows nothing


def bright_places(frames: Tensor, background: Tensor) -> Tensor:
    """The middle of what is brighter than ``background`` (``[..., C, 1 or T, H, W]``: the scene without it) in frames
    ``[..., C, T, H, W]``: ``[..., T, 2]``.

    The demo's bodies are brighter than all that stands still. The middle is that of the visible ink: that of a whole
    digit lies 0.03 from the simulator's centre on average, 0.1 at most (a body hidden in part).
    """
    return _middles((frames - background).mean(dim=-4))


def colour_places(frames: Tensor, colours: Tensor) -> Tensor:
    """The middle of what has each of ``colours`` ``[K, 3]`` in frames ``[..., 3, T, H, W]``: ``[..., T, K, 2]``.

    Colours count by what sets them apart from grey, so that grey walls and dark floors are no signal, and light and
    shade little; they must lie more than a quarter of the colour circle from each other, as those of the rooms do
    (agent and object).
    """
    saturation = colours - colours.mean(dim=1, keepdim=True)
    strength = saturation.norm(dim=1)
    if not bool((strength > FAINT).all()):
        raise ValueError("colours to be tracked must not be grey")
    tint = frames - frames.mean(dim=-4, keepdim=True)
    signal = torch.einsum("...cthw,kc->...kthw", tint, saturation / strength.square()[:, None])
    return _middles(signal).transpose(-2, -3)


def _middles(signal: Tensor) -> Tensor:
    """Middles ``[..., T, 2]`` of ``signal`` ``[..., T, H, W]``, each pixel averaged with its neighbours first."""
    height, width = signal.shape[-2:]
    flat = F.avg_pool2d(signal.reshape(-1, 1, height, width), 3, 1, 1, count_include_pad=False)[:, 0]
    top = flat.amax(dim=(1, 2), keepdim=True)
    weights = (flat - SHARE * top).clamp(min=0) * (top >= FAINT)
    total = weights.sum(dim=(1, 2))
    x, y = ((torch.arange(n, device=signal.device) + 0.5) / n for n in (width, height))
    middles = torch.stack(((weights.sum(dim=1) * x).sum(dim=1), (weights.sum(dim=2) * y).sum(dim=1)), dim=1)
    return (middles / total[:, None]).view(*signal.shape[:-2], 2)  # 0 / 0 is NaN


def near(places: Tensor, true: Tensor, distance: float) -> Tensor:
    """Whether each of ``places`` ``[..., 2]`` lies at most ``distance`` from the ``true`` one: bool ``[...]``; a thing
    that is not seen is not near."""
    return (places - true).norm(dim=-1) <= distance


class Scene(NamedTuple):
    """What the simulator knows of a clip: the ``places`` ``[T, 2]`` of the body, float32, and the ``background``
    without it, ``[3, T, H, W]`` in 0..1, with the clip's own grain."""

    places: Tensor
    background: Tensor


def demo_scene(path: str | Path, clip: ClipConfig) -> Scene | None:
    """The scene behind the middle ``clip`` of a video of the demo's world, ``WORLD/SPLIT/NUMBER.mp4``; None for any
    other video, and where ``clip`` does not show the whole picture in the world's own pixels."""
    path = Path(path)
    config = _world_of(path.parent.parent)
    split, number = path.parent.name, path.stem
    whole = clip.short_side in (None, clip.crop_size)
    if config is None or split not in ("train", "test") or not number.isdecimal() or not whole:
        return None
    if clip.crop_size != config.side:
        return None
    empty = _blank().part(split, config.test_glyphs)  # no ink: all else is drawn from the same numbers
    frames, trajectory, _ = draw_clip(empty, config, split, int(number))
    rows = frame_indices(config.num_frames, config.fps, clip, name=str(path)).indices
    background = torch.from_numpy(frames[rows]).movedim(-1, 0).float() / 255
    return Scene(torch.from_numpy(trajectory.position[rows]).float(), background)


def _world_of(folder: Path) -> WorldConfig | None:
    """The settings of the world in ``folder``; None where there is none, or one that this version draws otherwise."""
    stamp = folder / "world.json"
    if not stamp.is_file():
        return None
    settings = json.loads(stamp.read_text())
    if settings.pop("drawing", None) != DRAWING or set(settings) != {field.name for field in fields(WorldConfig)}:
        return None
    return WorldConfig(**settings)


@functools.cache
def _blank() -> Glyphs:
    """As many empty pictures as there are digits, with the digits' classes."""
    images, labels = digit_images()
    return Glyphs(np.zeros_like(images), labels)


def demo_scenes(paths: Sequence[str], clip: ClipConfig) -> list[Scene] | None:
    """The scenes of all clips, or None where one of them is no video of the demo's world."""
    found: list[Scene] = []
    for path in paths:
        scene = demo_scene(path, clip)
        if scene is None:
            return None
        found.append(scene)
    return found
