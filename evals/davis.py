"""Reader of DAVIS-2017's layout: pictures of every frame and palette PNGs of the objects' masks.

ROOT/JPEGImages/480p/SEQUENCE/*.jpg, ROOT/Annotations/480p/SEQUENCE/*.png, ROOT/ImageSets/2017/val.txt.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa.config import ConfigError
from jepa.data.image import IMAGE_SUFFIXES, ImageReader

VOID = 255  # pixels that belong to no object and are not judged
LEAST_FRAMES = 3  # neither the first nor the last frame is judged


class Tracked(NamedTuple):
    """A sequence: its pictures and, for each, the file of its masks."""

    name: str
    pictures: list[Path]
    masks: list[Path]

    def read_frames(self) -> NDArray[np.uint8]:
        """uint8 ``[T, H, W, 3]``. Raises ``ValueError`` naming a picture that cannot be read or has another size."""
        frames = [ImageReader(path).read([0])[0] for path in self.pictures]
        for path, frame in zip(self.pictures, frames):
            if frame.shape != frames[0].shape:
                raise ConfigError(f"{path} has {frame.shape[:2]} pixels, the first frame has {frames[0].shape[:2]}")
        return np.stack(frames)


def read_davis(root: str | Path, split: str) -> list[Tracked]:
    """The sequences of a split. Raises ``ConfigError`` naming what is missing."""
    root = Path(root)
    listing = root / "ImageSets" / "2017" / f"{split}.txt"
    if not listing.is_file():
        raise ConfigError(f"{listing} is missing: {root} must have the layout of DAVIS-2017 (docs/evaluation.md)")
    names = listing.read_text().split()
    if not names:
        raise ConfigError(f"{listing} names no sequence")
    return [_read_sequence(root, name) for name in names]


def _read_sequence(root: Path, name: str) -> Tracked:
    folder = root / "JPEGImages" / "480p" / name
    pictures = sorted(p for p in folder.glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if len(pictures) < LEAST_FRAMES:
        raise ConfigError(f"{folder} has {len(pictures)} pictures: a sequence needs at least {LEAST_FRAMES}")
    masks = [root / "Annotations" / "480p" / name / f"{picture.stem}.png" for picture in pictures]
    missing = [path for path in masks if not path.is_file()]
    if missing:
        raise ConfigError(f"{missing[0]} is missing ({len(missing)} of {len(masks)} masks of {name}): J&F needs them")
    return Tracked(name, pictures, masks)
