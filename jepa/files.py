"""Files that appear complete or not at all, and where the toolkit keeps what it can get again."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHARDED_SUFFIX = ".dcp"  # of a checkpoint that is a folder (jepa.sharded_checkpoint)
SHARDED_REST = "checkpoint.pt"  # the last file to appear in it


@contextlib.contextmanager
def atomic_write(path: Path, shared: bool = False) -> Iterator[Any]:
    """A binary file that appears at ``path`` complete and on the disk, or not at all.

    ``shared``: several processes may write it at once, each beside the others; the last one to finish stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp" if shared else f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # it is still there only if something failed
    flush(path.parent)  # the rename itself must survive a power cut


def flush(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a checkpoint, file or folder, that may not be there; a folder never shows half deleted."""
    if path.is_dir():
        hidden = path.with_name(f".{path.name}.old.tmp")
        shutil.rmtree(hidden, ignore_errors=True)
        os.replace(path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_sharded_checkpoint(path: str | Path) -> bool:
    """Whether ``path`` is a checkpoint that is a folder (``jepa.sharded_checkpoint``), and complete."""
    return os.path.isfile(os.path.join(path, SHARDED_REST))


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """``cache_dir``, or ``$JEPA_CACHE``, or ``jepa`` in ``$XDG_CACHE_HOME``, or ``~/.cache/jepa``."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    own = os.environ.get("JEPA_CACHE")
    return Path(own or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "jepa").expanduser()
