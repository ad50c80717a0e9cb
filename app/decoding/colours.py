"""Pixels and masks as frames, uint8 ``[T, H, W, 3]``.

Shape legend: C channels, T frames, H/W pixels, t/h/w token grid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evals.pages.drawing import Frames

ERROR_TOP = 0.5  # of values in [0, 1]: where the colours end
_GREY = 128


def to_pictures(pixels: Tensor) -> Frames:
    """Values in [0, 1], ``[C, T, H, W]``, to frames."""
    return (pixels[:3].float().cpu().clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()


def over_frames(cells: NDArray[np.bool_], shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Cells ``[t, h, w]`` of the token grid at every pixel ``[T, H, W]`` (``shape``)."""
    places = (np.arange(length) * count // length for length, count in zip(shape, cells.shape, strict=True))
    return cells[np.ix_(*places)]


def veil(frames: Frames, hidden: NDArray[np.bool_]) -> Frames:
    """``frames`` with the ``hidden`` pixels ``[T, H, W]`` hatched in grey: nothing of them is to be seen."""
    rows, columns = np.indices(frames.shape[1:3])
    hatch = np.where((rows + columns) % 8 < 1 + frames.shape[1] // 64, _GREY + 40, _GREY).astype(np.uint8)
    return np.where(hidden[..., None], hatch[..., None], frames)


def mask_frames(hidden: NDArray[np.bool_]) -> Frames:
    """Bright where pixels ``[T, H, W]`` are hidden, dark where they are seen; either is told from a white page."""
    return np.repeat(np.where(hidden, np.uint8(215), np.uint8(40))[..., None], 3, axis=-1)
