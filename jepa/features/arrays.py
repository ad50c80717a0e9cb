"""Feature files as safetensors and as npz: raw arrays, written as a stream and memory-mapped for reading.

safetensors has no text, so the sources are UTF-8 bytes (``source``) and the offsets of K + 1 boundaries
(``source_offsets``). The format: 8 bytes length, a JSON header, the arrays one after the other
(huggingface/safetensors, README). npz is a zip of ``.npy`` files, here uncompressed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from jepa.features.store import Block, Rows, Times, blocks_of

_TYPES = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "U8": "|u1"}


def write_safetensors(
    file: IO[bytes], sources: Sequence[str], start_s: Times, end_s: Times, blocks: Iterable[Block], metadata: str,
    shape: tuple[int, ...],
) -> None:  # fmt: skip
    """The 8-byte arrays come first, so that every array is aligned."""
    names = [source.encode() for source in sources]
    offsets = np.cumsum([0, *map(len, names)], dtype=np.int64)
    layout = [
        ("start_s", "F64", (len(names),)), ("end_s", "F64", (len(names),)), ("source_offsets", "I64", offsets.shape),
        ("feature", "F32", (len(names), *shape)), ("source", "U8", (int(offsets[-1]),)),
    ]  # fmt: skip
    header: dict[str, Any] = {"__metadata__": {"jepa": metadata}}
    position = 0
    for name, kind, size in layout:
        end = position + math.prod(size) * np.dtype(_TYPES[kind]).itemsize
        header[name] = {"dtype": kind, "shape": list(size), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for column in (start_s, end_s, offsets):
        file.write(np.ascontiguousarray(column).data)
    for block in blocks:
        file.write(np.ascontiguousarray(block, dtype="<f4").data)
    file.write(b"".join(names))


@contextlib.contextmanager
def read_safetensors(path: Path) -> Iterator[Rows]:
    """The features stay on the disk, memory-mapped."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            raise ValueError("it is cut off, or no safetensors file")
        header = json.loads(file.read(length))
    if "jepa" not in header.get("__metadata__", {}):
        raise ValueError("it has no metadata 'jepa': it was not written by this toolkit")

    def array(name: str) -> NDArray[Any]:
        about = header[name]
        start, end = (8 + length + int(offset) for offset in about["data_offsets"])
        if end > size:
            raise ValueError("it is cut off")
        return _mapped(path, np.dtype(_TYPES[about["dtype"]]), start, tuple(about["shape"]))

    text, offsets = bytes(array("source")), array("source_offsets").tolist()
    sources = [text[a:b].decode() for a, b in itertools.pairwise(offsets)]
    metadata = json.loads(header["__metadata__"]["jepa"])
    yield _rows(sources, array("start_s"), array("end_s"), array("feature"), metadata)


def write_npz(
    file: IO[bytes], sources: Sequence[str], start_s: Times, end_s: Times, blocks: Iterable[Block], metadata: str,
    shape: tuple[int, ...],
) -> None:  # fmt: skip
    """Members ``feature``, ``start_s``, ``end_s``, ``source`` and ``jepa`` (JSON text)."""
    small = {"start_s": start_s, "end_s": end_s, "source": np.array(sources, dtype=np.str_), "jepa": np.array(metadata)}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        # a fixed date in every entry: equal features make equal files
        with archive.open(zipfile.ZipInfo("feature.npy"), "w", force_zip64=True) as member:
            about = {"descr": "<f4", "fortran_order": False, "shape": (len(sources), *shape)}
            npy.write_array_header_2_0(member, about)  # type: ignore[no-untyped-call]
            for block in blocks:
                member.write(np.ascontiguousarray(block, dtype="<f4").data)
        for name, value in small.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                npy.write_array(member, value, allow_pickle=False)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def read_npz(path: Path) -> Iterator[Rows]:
    """The features stay on the disk, memory-mapped."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = {"feature", "start_s", "end_s", "source", "jepa"} - set(archive.files)
            if missing:
                raise ValueError(f"it has no {', '.join(sorted(missing))}: it was not written by this toolkit")
            start_s, end_s, source = (archive[name] for name in ("start_s", "end_s", "source"))
            metadata = json.loads(str(archive["jepa"]))
        yield _rows([str(name) for name in source], start_s, end_s, _mapped_member(path, "feature.npy"), metadata)
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from None


def _mapped_member(path: Path, name: str) -> NDArray[Any]:
    """An array stored in a zip without compression, memory-mapped."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entry = archive.getinfo(name)
        file.seek(entry.header_offset + 26)  # the local header: 30 bytes, a name and extras; their lengths stand at 26
        lengths = file.read(4)
        skip = 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
        file.seek(entry.header_offset + skip)
        npy.read_magic(file)  # type: ignore[no-untyped-call]
        shape, _, dtype = npy.read_array_header_2_0(file)  # type: ignore[no-untyped-call]
        return _mapped(path, dtype, file.tell(), shape)


def _mapped(path: Path, dtype: np.dtype[Any], start: int, shape: tuple[int, ...]) -> NDArray[Any]:
    if 0 in shape:  # an empty range cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape)


def _rows(sources: list[str], start_s: Times, end_s: Times, feature: Block, metadata: dict[str, Any]) -> Rows:
    if len(feature) != len(sources):
        raise ValueError(f"it has {len(feature)} features for {len(sources)} sources")
    return Rows(sources, start_s, end_s, feature.shape[1:], metadata, lambda: blocks_of(feature), feature)
