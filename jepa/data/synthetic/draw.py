"""Draws a simulated trajectory as video: a textured glyph over a background, behind an occluder. No physics here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jepa.data.synthetic.world import Trajectory

Array = NDArray[np.floating]
Frames = NDArray[np.uint8]

GLYPH_SIDE = 32  # glyphs are smoothed up to this many pixels before they are placed
GRAIN = 0.03  # of the range from black to white


@dataclass(frozen=True, slots=True)
class Appearance:
    """How one clip looks, drawn independently of its labels.

    ``background [S, S, 3]``, ``light`` and ``dark`` ``[3]`` the two colours of the body's texture, ``stripe`` the
    texture's wave vector in glyph units, ``tilt`` in radians, ``bar [3]`` the occluder's colour; values in [0, 1].
    ``grain``: standard deviation of the camera's noise, new in every pixel of every frame, drawn from ``grain_seed``.
    """

    background: Array
    light: Array
    dark: Array
    stripe: Array
    tilt: float
    bar: Array
    grain: float = 0.0
    grain_seed: int = 0


def draw_appearance(rng: np.random.Generator, side: int) -> Appearance:
    """Random looks for a picture of ``side`` pixels.

    Backgrounds are smooth and of low contrast, and the body is brighter than they are: static background is the first
    thing that a JEPA learns, and it must not drown what moves. Grain is what no predictor can foresee: a latent
    predictor may drop it, features that are not trained carry it along.
    """
    base = rng.uniform(0.12, 0.36) + rng.uniform(-0.08, 0.08, 3)
    background = base + 0.08 * _smooth_noise(rng, side, int(rng.integers(2, 6)))
    light, dark = rng.uniform(0.85, 1.0, 3), rng.uniform(0.65, 0.9, 3)
    angle, waves = rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 3.0)
    stripe = waves * np.array([np.cos(angle), np.sin(angle)])
    tilt, bar = rng.uniform(-0.12, 0.12), rng.uniform(0.2, 0.5, 3)
    return Appearance(background, light, dark, stripe, tilt, bar, GRAIN, int(rng.integers(2**32)))


def render(trajectory: Trajectory, glyph: Frames, looks: Appearance) -> Frames:
    """Video ``[T, S, S, 3]`` uint8 of ``glyph`` (uint8, square, 255 = ink) on its trajectory."""
    side, single = looks.background.shape[0], np.float32  # 8-bit pictures do not need more
    shape = enlarge(glyph.astype(np.float64) / 255.0, GLYPH_SIDE).astype(single)
    centres = ((np.arange(side) + 0.5) / side).astype(single)
    dx = centres[None, None, :] - trajectory.position[:, 0, None, None].astype(single)
    dy = centres[None, :, None] - trajectory.position[:, 1, None, None].astype(single)
    cos, sin = (single(turn(looks.tilt) / (2 * trajectory.radius)) for turn in (np.cos, np.sin))
    u, v = cos * dx + sin * dy, cos * dy - sin * dx  # glyph coordinates, -0.5..0.5
    ink = np.clip(_sample(shape, v, u) * single(3.0) - single(0.9), 0.0, 1.0)[..., None]  # edges made crisp
    across, down = (2 * np.pi * looks.stripe).astype(single)
    wave = single(0.5) + single(0.5) * np.sin(across * u + down * v)[..., None]
    floor = np.where(centres[:, None, None] > trajectory.floor, 0.6, 1.0)
    ground, dark, light = (x.astype(single) for x in (looks.background * floor, looks.dark, looks.light))
    frames = ground + ink * (dark + (light - dark) * wave - ground)
    for left, top, right, bottom in trajectory.occluders:
        columns, rows = (centres >= left) & (centres < right), (centres >= top) & (centres < bottom)
        frames[:, rows[:, None] & columns[None, :]] = looks.bar
    if looks.grain:
        noise = np.random.default_rng(looks.grain_seed).standard_normal(frames.shape, dtype=single)
        frames += single(looks.grain) * noise
    return (np.clip(frames, 0, 1) * 255 + single(0.5)).astype(np.uint8)


def enlarge(image: Array, side: int) -> Array:
    """Bilinear resize of a square image ``[n, n]`` to ``[side, side]``."""
    places = (np.arange(side) + 0.5) / side - 0.5
    return _sample(image, np.repeat(places[:, None], side, 1), np.repeat(places[None, :], side, 0), edge=True)


def _sample(image: Array, v: Array, u: Array, edge: bool = False) -> Array:
    """Bilinear values of a square ``image`` at rows ``v`` and columns ``u`` in -0.5..0.5; 0 outside unless ``edge``."""
    n = image.shape[0]
    row, column = (v + 0.5) * n - 0.5, (u + 0.5) * n - 0.5
    if edge:
        row, column = np.clip(row, 0, n - 1), np.clip(column, 0, n - 1)
    padded = np.pad(image, 1)  # a rim of zeros: coordinates beyond it read as no ink
    row, column = np.clip(row + 1, 0, n + 0.999), np.clip(column + 1, 0, n + 0.999)
    top, left = row.astype(np.int32), column.astype(np.int32)
    a, b = row - top, column - left
    upper = padded[top, left] * (1 - b) + padded[top, left + 1] * b
    lower = padded[top + 1, left] * (1 - b) + padded[top + 1, left + 1] * b
    return upper * (1 - a) + lower * a


def _smooth_noise(rng: np.random.Generator, side: int, cells: int) -> Array:
    """Smooth colour noise ``[side, side, 3]`` in -1..1 with about ``cells`` blobs across."""
    return np.stack([enlarge(rng.uniform(-1, 1, (cells, cells)), side) for _ in range(3)], axis=-1)
