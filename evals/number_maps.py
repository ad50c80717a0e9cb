"""Pictures whose pixels are numbers: classes, objects, or depths in steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from jepa.config import ConfigError


def read_numbers(path: Path) -> NDArray[np.int64]:
    """The numbers in a palette or grey PNG, ``[H, W]``. Raises ``ConfigError`` for other files."""
    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.asarray(image)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{path} cannot be read as an image: {error}") from None
    if mode not in ("P", "L", "1") and not mode.startswith("I"):
        raise ConfigError(f"{path} must hold one number per pixel (a palette or grey PNG), not {mode}")
    return values.astype(np.int64)
