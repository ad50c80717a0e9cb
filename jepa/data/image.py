"""Images as videos of one frame."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from jepa.data.video import VideoError, VideoReader, local_path, scaled_size
from jepa.types import Interpolation

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: transparent pixels become black, 16-bit grey levels keep their high bits. Raises ``ValueError``."""
    if image.mode == "F":
        raise ValueError("it holds floating-point grey levels: convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray((grey // 257 if grey.max(initial=0) > 255 else grey).astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        coloured = image.convert("RGBA")
        black = Image.new("RGBA", coloured.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, coloured).convert("RGB")
    return image.convert("RGB")


class ImageReader(VideoReader):
    """One RGB picture, turned upright by its EXIF tag; see ``_rgb`` for transparent and 16-bit pictures."""

    backend = "pillow"
    num_frames = 1
    fps = 1.0

    def __init__(
        self, path: str | Path, short_side: int | None = None, interpolation: Interpolation = "bilinear"
    ) -> None:
        self.path = local_path(os.fspath(path))
        try:
            with Image.open(self.path) as image:
                upright = _rgb(ImageOps.exif_transpose(image))
        except FileNotFoundError:
            raise VideoError(f"{self.path} does not exist") from None
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise VideoError(f"{self.path} cannot be read as an image: {error}") from None
        self.native = (upright.height, upright.width)
        self.height, self.width = scaled_size(*self.native, short_side)
        if (self.height, self.width) != self.native:
            upright = upright.resize((self.width, self.height), _FILTERS[interpolation])
        self._frames = np.asarray(upright)[None]

    def _read_sorted(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._frames[indices]
