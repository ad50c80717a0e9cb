"""Labelled pictures side by side: as a film (all panels of all examples at one time), and as a strip (every panel's
frames from left to right). Frames are uint8 RGB.

Shape legend: T frames, H/W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from app.output import write_output
from evals.pages.drawing import Frames, enlarge, gif_bytes, shrink
from jepa.data.encoding import write_video

LEAST, MOST = 144, 288  # pixels of a film's panel: its shorter side, and its height
LEAST_STILL = 112  # pixels of a strip's frame: its shorter side
MOST_COLUMNS = 10  # panels in a row of a film
MOST_TIMES = 12  # frames in a row of a strip
_LINE, _GAP, _LEFT = 16, 8, 150  # pixels: a line of text, the space between panels, the words beside a strip
_INK, _PALE = (20, 20, 20), (110, 110, 110)


class Panel(NamedTuple):
    """One moving picture: ``label`` and ``detail`` are two lines above it, ``under`` has a line for each of its
    ``frames`` ``[T, H, W, 3]`` (none: nothing is written there)."""

    label: str
    frames: Frames
    detail: str = ""
    under: tuple[str, ...] = ()


class Example(NamedTuple):
    """One clip: its ``name`` and its panels, all of one shape."""

    name: str
    panels: tuple[Panel, ...]


def film(examples: Sequence[Example]) -> Frames:
    """Every example under the last, its panels in rows: ``[T, H, W, 3]`` of even height and width.

    An example that is shorter than the others ends in its last frame.
    """
    parts = [_film(example) for example in examples]
    frames = max(len(part) for part in parts)
    width = max(part.shape[2] for part in parts)
    width += width % 2
    shown = []
    for part in parts:
        held = part[np.minimum(np.arange(frames), len(part) - 1)]
        shown.append(np.pad(held, ((0, 0), (0, 0), (0, width - part.shape[2]), (0, 0)), constant_values=255))
    whole = np.concatenate(shown, axis=1)
    return np.pad(whole, ((0, 0), (0, whole.shape[1] % 2), (0, 0), (0, 0)), constant_values=255)


def strip(examples: Sequence[Example]) -> Frames:
    """A row for every panel, with its words at the left and its frames, at most ``MOST_TIMES`` of them, from left to
    right: ``[H, W, 3]``."""
    parts = [_strip(example) for example in examples]
    width = max(part.shape[1] for part in parts)
    return np.concatenate(
        [np.pad(part, ((0, 0), (0, width - part.shape[1]), (0, 0)), constant_values=255) for part in parts]
    )


def write_sheets(folder: Path, stem: str, examples: Sequence[Example], fps: float) -> None:
    """``stem``.mp4, .gif and .png in ``folder``. Raises ``ValueError`` naming what cannot be written."""
    still, frames = io.BytesIO(), film(examples)
    Image.fromarray(strip(examples)).save(still, format="PNG")
    write_output(folder / f"{stem}.png", still.getvalue())
    write_output(folder / f"{stem}.gif", gif_bytes(frames, fps))
    write_video(folder / f"{stem}.mp4", frames, fps)
    print(f"wrote {folder / f'{stem}.mp4'}")


def sized(frames: Frames, least: int) -> Frames:
    """Frames at the size in which they are shown: whole multiples of small ones, the nearest pixels of large ones."""
    return shrink(enlarge(frames, least), MOST)


def words(text: str, width: int, end: bool = False) -> str:
    """``text``, cut off where it is wider than ``width`` pixels; ``end``: what is kept is its end, as of a path."""
    if _font().getlength(text) <= width:
        return text
    parts = ["..." + text[n:] if end else text[: len(text) - n] + "..." for n in range(1, len(text) + 1)]
    return next((part for part in parts if _font().getlength(part) <= width), "")


def _film(example: Example) -> Frames:
    pictures = [sized(panel.frames, LEAST) for panel in example.panels]
    height, width = pictures[0].shape[1:3]
    columns = min(len(pictures), MOST_COLUMNS)
    rows = -(-len(pictures) // columns)
    below = _LINE if any(panel.under for panel in example.panels) else 0
    cell = 2 * _LINE + height + below + _GAP
    total = columns * (width + _GAP) - _GAP
    sheet = Image.new("RGB", (total, _LINE + rows * cell), "white")
    draw = ImageDraw.Draw(sheet)
    _write(draw, (0, 0), words(example.name, total - 2, end=True), total, _PALE)
    for number, panel in enumerate(example.panels):
        left, top = number % columns * (width + _GAP), _LINE + number // columns * cell
        _write(draw, (left, top), panel.label, width, _INK)
        _write(draw, (left, top + _LINE), panel.detail, width, _PALE)
    frames = np.repeat(np.asarray(sheet)[None], len(pictures[0]), axis=0)
    for number, (panel, picture) in enumerate(zip(example.panels, pictures, strict=True)):
        left, top = number % columns * (width + _GAP), 3 * _LINE + number // columns * cell
        frames[:, top : top + height, left : left + width] = picture
        for time, text in enumerate(panel.under):
            frames[time, top + height : top + height + _LINE, left : left + width] = _text(text, width)
    return frames


def _strip(example: Example) -> Frames:
    pictures = [sized(panel.frames, LEAST_STILL) for panel in example.panels]
    count, height, width = pictures[0].shape[:3]
    times = np.unique(np.linspace(0, count - 1, min(count, MOST_TIMES)).round().astype(int))
    total = _LEFT + len(times) * (width + _GAP)
    tops, top = [], _LINE
    for panel in example.panels:
        tops.append(top)
        top += height + (_LINE if panel.under else 0) + _GAP
    sheet = Image.new("RGB", (total, top + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    _write(draw, (0, 0), words(example.name, total - 2, end=True), total, _PALE)
    for panel, picture, top in zip(example.panels, pictures, tops, strict=True):
        _write(draw, (0, top + height // 2 - _LINE), panel.label, _LEFT - _GAP, _INK)
        _write(draw, (0, top + height // 2), panel.detail, _LEFT - _GAP, _PALE)
        for column, time in enumerate(times):
            left = _LEFT + column * (width + _GAP)
            sheet.paste(Image.fromarray(picture[time]), (left, top))
            if panel.under:
                _write(draw, (left, top + height), panel.under[time], width, _PALE)
    return np.asarray(sheet)


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, colour: tuple[int, ...]) -> None:
    draw.text((place[0] + 1, place[1] + 1), words(text, width - 2), fill=colour, font=_font())


def _text(text: str, width: int) -> Frames:
    line = Image.new("RGB", (width, _LINE), "white")
    _write(ImageDraw.Draw(line), (0, 0), text, width, _PALE)
    return np.asarray(line)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(12)
