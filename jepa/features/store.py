"""Feature files: one row per clip, the same columns in every format.

Columns: ``source`` (text), ``start_s`` and ``end_s`` (float64, of the whole row), ``feature`` (float32, ``shape`` [D]
for pooled rows and [N, D] for tokens; parquet holds it flat, as a fixed-size list). The file's metadata is JSON under
the key ``jepa``; it holds at least ``shape``. Everything is written and read block by block, so that neither needs the
memory of a whole file.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa.config import suggest
from jepa.files import atomic_write

SUFFIXES = (".parquet", ".safetensors", ".npz")
BLOCK_BYTES = 32 << 20
TIMES_RULE = "tubelet k of t covers the k-th of t equal parts of the row's start_s to end_s"
Times = NDArray[np.float64]
Block = NDArray[np.float32]


class FeatureFileError(ValueError):
    """A feature file cannot be written or read; the message names it."""


@dataclass(frozen=True, slots=True)
class Rows:
    """An open feature file: K ``sources``, ``start_s`` and ``end_s`` float64 ``[K]``, the ``shape`` of a row, and
    ``blocks()``, which reads the features ``[k, *shape]`` in order. ``mapped`` is ``[K, *shape]`` on the disk, where
    the format can be memory-mapped."""

    sources: list[str]
    start_s: Times
    end_s: Times
    shape: tuple[int, ...]
    metadata: dict[str, Any]
    blocks: Callable[[], Iterator[Block]]
    mapped: Block | None = None


def rows_per_block(shape: Sequence[int]) -> int:
    """How many rows of this shape are written and read at once."""
    return max(1, BLOCK_BYTES // (4 * math.prod(shape)))


def blocks_of(rows: Block) -> Iterator[Block]:
    """``[K, *shape]`` in blocks of ``rows_per_block`` rows."""
    step = rows_per_block(rows.shape[1:])
    return (rows[first : first + step] for first in range(0, len(rows), step))


def check_suffix(path: Path) -> None:
    """Raises ``FeatureFileError`` for a name whose suffix is no feature format."""
    if path.suffix.lower() not in SUFFIXES:
        hint = suggest(path.suffix.lower(), SUFFIXES)
        raise FeatureFileError(f"{path} must end in {', '.join(SUFFIXES[:2])} or {SUFFIXES[2]}{hint}")


def write_rows(
    path: Path, sources: Sequence[str], start_s: Times, end_s: Times, blocks: Iterable[Block], metadata: dict[str, Any]
) -> None:
    """Write a feature file in one move. ``blocks``: the features in order, each block ``rows_per_block`` rows but for
    the last. Raises ``FeatureFileError`` naming ``path`` (another suffix; a full disk; no permission)."""
    from jepa.features import arrays, parquet

    check_suffix(path)
    header = {**metadata, "tubelet_times": TIMES_RULE}
    writers = {".parquet": parquet.write, ".safetensors": arrays.write_safetensors, ".npz": arrays.write_npz}
    write = writers[path.suffix.lower()]
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            write(file, sources, start_s, end_s, blocks, json.dumps(header, default=str), tuple(header["shape"]))


@contextlib.contextmanager
def writing(path: Path, remedy: str = "make room or choose another place") -> Iterator[None]:
    """Turn a full disk or a missing permission into a sentence. Raises ``FeatureFileError`` naming ``path``."""
    try:
        yield
    except OSError as error:
        raise FeatureFileError(f"{path} cannot be written: {error.strerror or error}; {remedy}") from error


@contextlib.contextmanager
def open_rows(path: Path) -> Iterator[Rows]:
    """Open a feature file for reading. Raises ``FeatureFileError`` naming ``path``."""
    from jepa.features import arrays, parquet

    check_suffix(path)
    if not path.is_file():
        raise FeatureFileError(f"feature file {path} does not exist")
    readers = {".parquet": parquet.read, ".safetensors": arrays.read_safetensors, ".npz": arrays.read_npz}
    try:
        with readers[path.suffix.lower()](path) as rows:
            if not len(rows.sources) == len(rows.start_s) == len(rows.end_s):
                raise ValueError("its columns differ in length")
            yield rows
    except FeatureFileError:
        raise
    except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise FeatureFileError(f"{path} cannot be read as a feature file: {reason}") from None
