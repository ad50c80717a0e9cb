"""Files that a command was asked for by --out."""

from __future__ import annotations

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
