"""Exports that appear complete or not at all: everything is written beside its place, then moved in one go."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError

from jepa.files import flush


class ExportError(ValueError):
    """A model cannot be exported; the message says why and what to do."""


def check_free(path: Path, own_files: Sequence[str], force: bool) -> None:
    """Raise ``ExportError`` where ``path`` exists and may not be replaced.

    ``own_files``: names that an export has in its folder, or none for a file: with ``force`` a folder that holds
    anything else is left alone.
    """
    if not os.path.lexists(path):
        return
    if not force:
        raise ExportError(f"{path} exists already: choose another destination, or replace it with --force")
    if path.is_dir() and not path.is_symlink():
        others = sorted(set(os.listdir(path)) - set(own_files))
        if not own_files or others:
            raise ExportError(f"{path} is a folder that holds more than an export ({', '.join(others[:4])}): remove it")
    elif own_files:
        raise ExportError(f"{path} is a file, and this format is a folder: choose another destination")


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """An empty folder beside ``path``, flushed to the disk at the end and then removed; move what it holds before.

    Raises ``ExportError`` naming ``path`` when the disk is full, or cannot be written for another reason.
    """
    stage: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        yield stage
        flush(path.parent)
    except OSError as error:
        raise ExportError(_reason(path, error.strerror or str(error))) from error
    except (SafetensorError, RuntimeError) as error:  # these writers' words for a disk that takes no more
        raise ExportError(_reason(path, str(error).strip().splitlines()[0])) from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


def _reason(path: Path, words: str) -> str:
    with contextlib.suppress(OSError):
        words += f", {shutil.disk_usage(path.parent).free / 2**30:.2f} GiB free there"
    return f"{path} could not be written ({words}); nothing was left there. Free space or choose another destination"


def place_folder(stage: Path, path: Path) -> None:
    """Make the finished folder ``stage / "export"`` the folder ``path``."""
    new = stage / "export"
    for file in new.iterdir():
        _finish(file)
    if os.path.lexists(path):
        os.rename(path, stage / "replaced")
    os.rename(new, path)


def place_files(stage: Path, path: Path) -> None:
    """Move every file of ``stage`` beside ``path``, the one called as ``path`` last."""
    files = sorted(stage.iterdir(), key=lambda file: file.name == path.name)
    for file in files:
        _finish(file)
    for file in files:
        os.replace(file, path.with_name(file.name))


def _finish(file: Path) -> None:
    """As readable as any new file (safetensors makes its own private), and on the disk."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)
    flush(file)
