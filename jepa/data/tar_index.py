"""What tar shards hold, and where: found once by reading their headers, then mapped from the disk by every process.

A sample is what ``webdataset`` makes one: members that stand together and whose names differ only behind the first
dot. One row of 48 bytes says where its video (or image, or array) lies; nothing about a sample is a Python object.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from jepa.config import ConfigError
from jepa.data.image import IMAGE_SUFFIXES
from jepa.data.listing import VIDEO_SUFFIXES
from jepa.data.sampling import parse_span
from jepa.data.tar_files import fetch, is_stream, locked
from jepa.data.video import VideoError, one_line
from jepa.files import atomic_write, cache_folder

log = logging.getLogger("jepa")
INDEX = "index"  # the folder beside shards that `jepa data shard` writes
ENTRY = np.dtype(
    [("shard", "<i4"), ("label", "<i4"), ("offset", "<i8"), ("size", "<i8"), ("name", "<i8"), ("span_s", "<f8", 2)]
)
_VERSION, _BLOCK, _NAMED = 1, 512, 1000


@dataclass(slots=True)
class Scanned:
    """One shard: ``rows`` of ``ENTRY`` fields (``name``: end of the name in ``names``), the samples left out and why,
    what is wrong with the shard itself ('' for nothing), and ``crowded``: members that are not used because another
    one of their kind is, in the same sample."""

    rows: list[tuple[int, int, int, int, int, tuple[float, float]]] = field(default_factory=list)
    names: bytearray = field(default_factory=bytearray)
    labels: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    broken: str = ""
    crowded: list[str] = field(default_factory=list)


def scan_shard(path: str | Path, label_key: str | None = None, member: str | None = None) -> Scanned:
    """Read the headers of a tar file, and the labels, but no video. What is damaged is said in the result."""
    from webdataset.tariterators import base_plus_ext

    found, key = Scanned(), None
    parts: dict[str, tuple[str, int, int]] = {}  # extension -> name, offset, bytes
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            total = os.fstat(file.fileno()).st_size
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined] # or it would remember every header
                prefix, suffix = base_plus_ext(info.name)
                if not info.isreg() or prefix is None or os.path.basename(info.name).startswith("__"):
                    continue
                if prefix != key:
                    _add(found, file.fileno(), parts, key, label_key, member)
                    key, parts = prefix, {}
                if info.offset_data + info.size > total:
                    raise tarfile.ReadError(f"it ends within {info.name}")
                if suffix.lower() in parts:
                    found.crowded.append(info.name)
                parts[suffix.lower()] = (info.name, info.offset_data, info.size)
            _add(found, file.fileno(), parts, key, label_key, member)
            file.seek(tar.offset)
            end = file.read(_BLOCK)
            if end.strip(b"\0") or len(end) < _BLOCK:
                what = "damaged" if end else "cut off"
                found.broken = f"it is {what} at byte {tar.offset} of {total}, after {len(found.rows)} samples"
    except tarfile.TarError as error:
        found.broken = f"it is cut off or damaged ({one_line(error)}), after {len(found.rows)} samples"
    except OSError as error:
        found.broken = error.strerror or one_line(error)
    return found


def _add(
    found: Scanned, descriptor: int, parts: dict[str, tuple[str, int, int]], key: str | None, label_key: str | None,
    member: str | None,
) -> None:  # fmt: skip
    """A row for the sample ``key`` with these members, or why it has none."""
    if key is None:
        return
    ranked = [(rank, suffix) for suffix in parts if (rank := _rank(suffix, member)) is not None]
    if not ranked:
        wanted = f"member .{member}" if member else "video, array or image"
        found.skipped[key] = f"it has no {wanted}, only {', '.join(f'.{suffix}' for suffix in parts)}"
        return
    name, offset, size = parts[min(ranked)[1]]  # of several, a video comes first, then by name
    found.crowded += [parts[suffix][0] for rank, suffix in sorted(ranked)[1:] if rank == min(ranked)[0]]
    if not size:
        found.skipped[name] = "it is empty (0 bytes)"
        return
    try:
        label, span_s = _facts(descriptor, parts, label_key)
    except (ValueError, UnicodeDecodeError) as error:
        found.skipped[name] = f"its label cannot be read: {one_line(error)}"
        return
    number = found.labels.setdefault(label, len(found.labels)) if label else -1
    found.names += name.encode(errors="surrogateescape")
    found.rows.append((0, number, offset, size, len(found.names), span_s))


def _rank(suffix: str, member: str | None) -> int | None:
    if member is not None:
        return 0 if suffix == member.lower().lstrip(".") else None
    last = f".{suffix.rpartition('.')[2]}"
    kinds: Sequence[Iterable[str]] = (VIDEO_SUFFIXES, (".npy",), IMAGE_SUFFIXES)
    return next((rank for rank, kind in enumerate(kinds) if last in kind), None)


def _facts(
    descriptor: int, parts: dict[str, tuple[str, int, int]], label_key: str | None
) -> tuple[str, tuple[float, float]]:
    """The label's name ('' for none) and the span in seconds (NaN: the whole video)."""

    def text(suffix: str) -> str:
        _, offset, size = parts[suffix]
        return os.pread(descriptor, size, offset).decode().strip()

    facts = json.loads(text("json")) if "json" in parts else {}
    if not isinstance(facts, dict):
        raise ValueError("the .json member holds no names and values")
    label = facts.get(label_key or "label")
    if label is None and label_key is None and "cls" in parts:
        label = text("cls")
    span = (float("nan"), float("nan"))
    if facts.get("start_s") not in (None, "") or facts.get("end_s") not in (None, ""):
        span = parse_span(str(facts.get("start_s") or ""), str(facts.get("end_s") or ""))
    return "" if label is None else str(label), span


class TarIndex:
    """The samples of shards, mapped: ``entries`` ``[N]`` of ``ENTRY`` in the order of the shards, ``names`` bytes.

    ``shards``: one record for each (name, bytes, samples, what is broken); ``labels``: names of label ids;
    ``skipped``: the samples left out and why (the first 1000), ``num_skipped`` of them in all; ``crowded``: members
    that are not used because another one of their kind is (the first 1000), ``num_crowded`` of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = json.loads((folder / "index.json").read_text())
        self.shards: list[dict[str, Any]] = facts["shards"]
        self.labels: list[str] = facts["labels"]
        self.skipped: dict[str, str] = facts["skipped"]
        self.num_skipped: int = facts["num_skipped"]
        self.crowded: list[str] = facts.get("crowded", [])
        self.num_crowded: int = facts.get("num_crowded", 0)
        self.version: int = facts["version"]
        # as plain arrays: those of the class memmap are slow to take single elements from
        self.entries: NDArray[Any] = np.asarray(np.load(folder / "entries.npy", mmap_mode="r"))
        self.names: NDArray[np.uint8] = np.asarray(np.load(folder / "names.npy", mmap_mode="r"))
        self._name_ends = self.entries["name"]

    def __reduce__(self) -> tuple[type[TarIndex], tuple[Path]]:
        return TarIndex, (self.folder,)  # a spawned worker maps the same files

    def name(self, row: int) -> str:
        """The member's name in its shard."""
        first = int(self._name_ends[row - 1]) if row else 0
        return self.names[first : int(self._name_ends[row])].tobytes().decode(errors="surrogateescape")

    @property
    def broken(self) -> dict[str, str]:
        """Shard -> what is wrong with it."""
        return {record["name"]: record["broken"] for record in self.shards if record["broken"]}


def build_index(
    shards: Sequence[str], folder: Path, get: Callable[[str], Path], label_key: str | None = None,
    member: str | None = None, relative: bool = False, progress: bool = True,
) -> TarIndex:  # fmt: skip
    """Read every shard's headers (a few at a time, to hide the wait for a shared disk) and write the index."""

    def scan(shard: str) -> tuple[Scanned, int]:
        try:
            path = get(shard)
            return scan_shard(path, label_key, member), path.stat().st_size
        except (VideoError, OSError) as error:
            return Scanned(broken=one_line(error)), 0

    tables, names, records = [], [np.zeros(0, dtype=np.uint8)], []
    labels: dict[str, int] = {}
    skipped: dict[str, str] = {}
    crowded: list[str] = []
    written = num_skipped = num_crowded = 0
    with ThreadPoolExecutor(4) as pool, tqdm(
        total=len(shards), desc="index", unit="shard", disable=not progress or len(shards) < 2
    ) as bar:  # fmt: skip
        for number, (found, size) in enumerate(pool.map(scan, shards)):
            table = np.array(found.rows, dtype=ENTRY)
            new = np.array([*(labels.setdefault(name, len(labels)) for name in found.labels), -1], dtype=np.int32)
            table["shard"], table["label"] = number, new[table["label"]]
            table["name"] += written
            written += len(found.names)
            tables.append(table)
            names.append(np.frombuffer(bytes(found.names), dtype=np.uint8))
            for key, reason in found.skipped.items():
                num_skipped += 1
                if len(skipped) < _NAMED:
                    skipped[f"{shards[number]}/{key}"] = reason
            num_crowded += len(found.crowded)
            crowded += [f"{shards[number]}/{name}" for name in found.crowded[: _NAMED - len(crowded)]]
            name = os.path.basename(shards[number]) if relative else shards[number]
            records.append({"name": name, "bytes": size, "samples": len(table), "broken": found.broken})
            bar.update()
    facts = {
        "version": _VERSION, "samples": sum(map(len, tables)), "shards": records,
        "labels": list(labels), "skipped": skipped, "num_skipped": num_skipped,
        "crowded": crowded, "num_crowded": num_crowded,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("entries", np.concatenate(tables)), ("names", np.concatenate(names))):
        with atomic_write(folder / f"{name}.npy") as file:
            np.save(file, array)
    with atomic_write(folder / "index.json") as file:  # last: with it, the index is complete
        file.write(json.dumps(facts, indent=1).encode())
    return TarIndex(folder)


def open_index(
    shards: Sequence[str], cache_gb: float, label_key: str | None = None, member: str | None = None
) -> tuple[TarIndex, NDArray[np.int64] | None]:
    """The index of these shards, and which of its shards they are (None: all, in order).

    It lies beside the shards (``jepa data shard`` wrote it), or in the cache folder, where it is made now if need be,
    by one process while the others wait. Raises ``ConfigError`` when not a single sample can be read.
    """
    beside = None if label_key or member else _beside(shards)
    if beside is not None:
        return beside
    state = [(s, 0, 0) if is_stream(s) else (os.path.abspath(s), *_stat(s)) for s in shards]
    digest = hashlib.sha256(repr((_VERSION, label_key, member, state)).encode()).hexdigest()[:24]
    folder = cache_folder() / "shards" / f"{digest}.{INDEX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock"):
            if (folder / "index.json").exists():
                return TarIndex(folder), None
            log.info("reading the headers of %d tar shards, once; kept in %s", len(shards), folder)
            index = build_index(
                shards, folder, lambda s: fetch(s, cache_gb) if is_stream(s) else Path(s), label_key, member
            )
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}; set JEPA_CACHE to another folder") from None
    if len(index.entries) == 0 or any(map(is_stream, index.broken)):
        (folder / "index.json").unlink()  # a stream that was out of reach may come back
    return index, None


def _stat(shard: str) -> tuple[int, int]:
    status = os.stat(shard)
    return status.st_size, status.st_mtime_ns


def _beside(shards: Sequence[str]) -> tuple[TarIndex, NDArray[np.int64] | None] | None:
    """The index in the shards' own folder, where it is there and knows every one of them by its size."""
    folders = {os.path.dirname(shard) for shard in shards}
    if len(folders) > 1 or any(is_stream(shard) for shard in shards):
        return None
    folder = Path(folders.pop(), INDEX)
    if not (folder / "index.json").is_file():
        return None
    index = TarIndex(folder)
    known = {record["name"]: number for number, record in enumerate(index.shards)}
    numbers = [known.get(os.path.basename(shard), -1) for shard in shards]
    for shard, number in zip(shards, numbers, strict=True):
        if number < 0 or index.shards[number]["bytes"] != os.stat(shard).st_size or index.version != _VERSION:
            log.warning("%s does not describe %s as it is now: the shards' headers are read again", folder, shard)
            return None
    return index, None if numbers == list(range(len(known))) else np.array(numbers)
