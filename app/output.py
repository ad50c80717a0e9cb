"""Files that a command was asked for by --out."""

from __future__ import annotations

import tempfile
from pathlib import Path

from jepa.files import atomic_write


def write_output(path: Path, data: bytes) -> None:
    """Write a file in one move, its folder too, and say so. Raises ``ValueError`` naming it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(data)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}; choose another --out") from error
    print(f"wrote {path}")


def check_output(folder: Path) -> None:
    """Make the folder of ``--out`` and a file in it, which goes again: hours of work must not end at a folder that
    nothing can be written to. Raises ``ValueError`` naming it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to: {error.strerror or error}; choose another --out") from error
