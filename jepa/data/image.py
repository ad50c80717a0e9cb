"""Images as videos of one frame."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from jepa.data.video import VideoError, VideoReader, scaled_size

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})


class ImageReader(VideoReader):
    """One RGB picture, turned upright by its EXIF tag; transparent pixels become black."""

    backend = "pillow"
    num_frames = 1
    fps = 1.0

    def __init__(self, path: str | Path, short_side: int | None = None) -> None:
        self.path = os.fspath(path)
        try:
            with Image.open(self.path) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB")
        except FileNotFoundError:
            raise VideoError(f"{self.path} does not exist") from None
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise VideoError(f"{self.path} cannot be read as an image: {error}") from None
        self.height, self.width = scaled_size(upright.height, upright.width, short_side)
        if (self.height, self.width) != (upright.height, upright.width):
            upright = upright.resize((self.width, self.height), Image.Resampling.BILINEAR)
        self._frames = np.asarray(upright)[None]

    def _read_sorted(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._frames[indices]
