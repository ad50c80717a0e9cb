"""``load``: an encoder by name, run directory or file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from jepa.checkpoint import CheckpointError, load_encoder
from jepa.models.base import ClipEncoder


def load(name_or_path: str | Path, weights: Literal["target_encoder", "encoder"] = "target_encoder") -> ClipEncoder:
    """The encoder of a run directory (its newest checkpoint) or of a checkpoint file, on the CPU, in eval mode.

    ``weights``: the EMA target encoder, or the context encoder. Raises ``CheckpointError`` (a ``ValueError``) naming
    the path when it is missing, damaged or no checkpoint of this toolkit.
    """
    text = os.fspath(name_or_path)
    if not os.path.exists(text) and os.sep not in text and not text.endswith((".pt", ".pth")):
        raise CheckpointError(f"unknown model {text!r}: give a run directory or a checkpoint file")
    return load_encoder(text, weights)
