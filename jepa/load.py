"""``load``: an encoder by name, run directory, file or folder."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from jepa.checkpoint import CheckpointError, find_checkpoint, load_checkpoint, load_encoder
from jepa.models.base import ClipEncoder
from jepa.pretrained import load_pretrained
from jepa.pretrained.layouts import recognise
from jepa.pretrained.zoo import MODELS
from jepa.tensorfiles import read_torch_file


def load(name_or_path: str | Path, weights: str = "target_encoder") -> ClipEncoder:
    """A frozen encoder, on the CPU, in eval mode, with its own preprocessing (``.clip``).

    ``name_or_path``: a run directory (its newest checkpoint) or a checkpoint file of this toolkit; the name of a
    published model (``jepa models``), downloaded once; a folder in the ``transformers`` layout; or ``timm:NAME``, any
    vision model of timm. Other published files: ``jepa.load_pretrained(path, family=..., ...)``.
    ``weights``: "target_encoder" (the EMA) or "encoder" (the context encoder), where a checkpoint has both.

    Raises ``CheckpointError`` (a ``ValueError``) naming the path when it is missing, damaged or of another layout.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise CheckpointError(f"a model is named by a path or a name, not by {type(name_or_path).__name__}")
    text = os.fspath(name_or_path)
    if text.startswith("timm:"):
        from jepa.models.timm_encoder import load_timm

        return load_timm(text)
    if not os.path.exists(text):
        return _load_published(text, weights)
    if os.path.isfile(os.path.join(text, "config.json")):
        if weights != "target_encoder":
            raise CheckpointError(f"{text} holds one encoder, as it was exported: weights={weights!r} cannot be chosen")
        encoder = load_pretrained(text, "transformers").encoder
        assert encoder is not None, "every folder of this layout has one"
        return encoder
    try:
        return load_encoder(text, weights)  # type: ignore[arg-type]
    except CheckpointError:
        check_unpublished(text, "jepa.load_pretrained")
        raise


def check_unpublished(path: str, function: str) -> None:
    """Raise ``CheckpointError`` for a published file, which needs ``function`` and its architecture to be loaded."""
    family = recognise(read_torch_file(path, mmap=True)) if os.path.isfile(path) else None
    if family is not None:
        raise CheckpointError(
            f"{path} looks like a published {family} checkpoint, which does not say its own architecture: use "
            f"{function}({path!r}, family={family!r}, embed_dim=..., depth=..., num_heads=..., ...)"
        ) from None


def read_run(path: str, function: str) -> tuple[Path, dict[str, Any]]:
    """The checkpoint file (or folder of shards) that ``path`` means, and what it holds, tensors mapped and not read.

    Raises ``CheckpointError``; of a published file it says that ``function`` reads it.
    """
    try:
        file = find_checkpoint(path)
        return file, load_checkpoint(file, mmap=True)
    except CheckpointError:
        check_unpublished(path, function)
        raise


def check_model(name_or_path: str) -> None:
    """Raise ``CheckpointError`` for a model that is neither a published name nor a path that exists. Nothing is read:
    a run directory may still be waiting for its first checkpoint."""
    if not name_or_path.startswith("timm:") and not os.path.exists(name_or_path):
        check_published(name_or_path)


def check_published(name: str) -> None:
    """Raise ``CheckpointError`` for a name that no published model has."""
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise CheckpointError(
            f"unknown model {name!r}{hint}: give a run directory, a checkpoint file, timm:NAME, or a name that "
            "`jepa models` lists"
        )


def _load_published(name: str, weights: str) -> ClipEncoder:
    check_published(name)
    encoder = load_pretrained(name, weights=None if weights == "target_encoder" else weights).encoder
    if encoder is None:
        raise CheckpointError(f"{name} is a probe, not an encoder: load it by jepa.load_pretrained({name!r}).probe")
    return encoder
