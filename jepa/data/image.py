"""Images as videos of one frame, and folders of numbered images as videos."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from jepa.data.array_reader import ArrayReader
from jepa.data.video import VideoError, VideoReader, is_url, local_path, scaled_size
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
        self, path: str | Path, short_side: int | None = None, interpolation: Interpolation = "bilinear",
        file: BinaryIO | None = None,
    ) -> None:  # fmt: skip
        self.path = local_path(os.fspath(path))
        try:
            with Image.open(self.path if file is None else file) as image:
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


class FolderReader(VideoReader):
    """A folder of pictures, one per frame, in the order of the numbers in their names (``2.jpg`` before ``10.jpg``).

    ``fps`` None: the rate is not known. Pictures are decoded when they are read; all must have the size of the first.
    """

    backend = "pillow"

    def __init__(
        self, path: str | Path, fps: float | None = None, short_side: int | None = None,
        interpolation: Interpolation = "bilinear",
    ) -> None:  # fmt: skip
        self.path, self._side, self._interpolation = os.fspath(path), short_side, interpolation
        self.fps, self._known = fps or 1.0, fps is not None
        try:
            names = [name for name in os.listdir(path) if _is_picture(name) and not name.startswith(".")]
        except OSError as error:
            raise VideoError(f"{self.path} cannot be opened: {error.strerror}") from None
        if not names:
            raise VideoError(f"{self.path} is a folder without pictures, not a video")
        self._names = sorted(names, key=_by_number)
        self.num_frames = len(names)
        first = self._picture(0)
        self.native, (self.height, self.width) = first.native, first.size

    @property
    def rate(self) -> float | None:
        return self.fps if self._known else None

    def _picture(self, index: int) -> ImageReader:
        return ImageReader(os.path.join(self.path, self._names[index]), self._side, self._interpolation)

    def _read_sorted(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        pictures = [self._picture(int(index)) for index in indices]
        for picture in pictures:
            if picture.native != self.native:
                raise VideoError(f"{picture.path} has {picture.native} pixels, the first frame has {self.native}")
        return np.concatenate([picture.read([0]) for picture in pictures])


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sort key: runs of digits compare as numbers, what lies between them as text."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _load_array(path: str, file: BinaryIO) -> NDArray[np.uint8]:
    try:
        frames = np.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise VideoError(f"{path} cannot be read as an array: {error}") from None
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise VideoError(f"{path} must hold uint8 frames [T, H, W, 3]")
    if 0 in frames.shape:
        raise VideoError(f"{path} holds no frames: its shape is {list(frames.shape)}")
    return frames


def open_pictures(
    path: str, fps: float | None, short_side: int | None, interpolation: Interpolation, file: BinaryIO | None = None
) -> VideoReader | None:
    """A picture, a folder of pictures or a ``.npy`` member of a shard (at ``fps``) as a video; ``None`` for any other
    path. ``file``: what ``path`` holds, where it is no file of its own."""
    if file is not None and path.lower().endswith(".npy"):
        return ArrayReader(path, _load_array(path, file), fps, short_side, interpolation)
    if file is not None:
        return ImageReader(path, short_side, interpolation, file) if _is_picture(path) else None
    if is_url(path):
        return None
    if os.path.isdir(path):
        return FolderReader(path, fps, short_side, interpolation)
    return ImageReader(path, short_side, interpolation) if _is_picture(path) else None
