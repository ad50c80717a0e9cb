"""Writing sources as tar shards (``jepa data shard``)."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from jepa.config import ConfigError, differences
from jepa.data.batches import Failure
from jepa.data.encoding import WriteError
from jepa.data.listing import MANIFEST, read_rows
from jepa.data.settings import share_classes
from jepa.data.sources import Source, SourceConfig, open_source
from jepa.data.tar_files import PLAN
from jepa.data.tar_index import INDEX, build_index
from jepa.data.video import VideoError
from jepa.files import atomic_write

log = logging.getLogger("jepa")
_OVERHEAD = 4096  # bytes of headers, label and padding for each sample, about


class ShardResult(NamedTuple):
    """``written`` shards made now, ``kept`` ones that were there already, and what they hold in all; ``failed``: files
    that could not be read."""

    folder: Path
    written: int
    kept: int
    samples: int
    bytes: int
    failed: list[Failure]


class _Item(NamedTuple):
    source: int
    item: int
    size: int  # bytes, as far as is known beforehand


def write_shards(
    sources: Sequence[SourceConfig], folder: str | Path, shard_mb: float = 256.0, shard_count: int | None = None,
    shuffle: int | None = 0, progress: bool = True,
) -> ShardResult:  # fmt: skip
    """Write the sources' videos, images and arrays, as they are, with their labels into tar shards in ``folder``.

    A shard has about ``shard_mb`` MiB (or there are ``shard_count`` of them); a larger file has one for itself.
    ``shuffle``: seed of the order (None: that of the sources). A sample NUMBER_NAME has its file, a ``.json`` with its
    source's columns and path, and for a labelled one a ``.cls`` with the class id. ``folder/index`` says where
    everything lies.

    Shards appear complete or not at all and are kept when the command is run again. Files that cannot be read are left
    out and returned. Raises ``ConfigError`` for a folder that belongs to other sources or settings, ``WriteError``
    when it cannot be written or the disk is too small.
    """
    if shard_mb <= 0 or (shard_count is not None and shard_count < 1):
        raise ConfigError(f"shard_mb {shard_mb:g} and shard_count {shard_count} must be positive")
    for config in sources:
        if config.trajectory is not None:
            raise ConfigError(f"data source {config.path}: episodes cannot be written as shards: train on them as is")
        if os.path.realpath(config.path) == os.path.realpath(folder):
            raise ConfigError(f"{folder} is one of the sources: write the shards to another folder")
    opened = share_classes([open_source(config) for config in sources])
    items, failed = _list_items(opened)
    if shuffle is not None:
        items = [items[i] for i in np.random.default_rng(shuffle).permutation(len(items))]
    shards = _divide([item.size for item in items], shard_mb * 2**20, shard_count)
    folder = Path(folder)
    _claim(folder, _plan(opened, items, shards, shuffle))
    total = sum(item.size for item in items)
    names = [folder / f"shard-{number:06d}.tar" for number in range(len(shards))]
    missing = [number for number, name in enumerate(names) if not name.exists()]
    _check_disk(folder, sum(items[i].size + _OVERHEAD for n in missing for i in range(*shards[n])))
    done = total - sum(items[i].size for n in missing for i in range(*shards[n]))
    extras = [_columns(source) for source in opened]
    with tqdm(
        total=total, initial=done, desc="shard", unit="B", unit_scale=True, unit_divisor=1024, disable=not progress
    ) as bar:  # fmt: skip
        for number in missing:
            failed += _write(names[number], opened, extras, items, range(*shards[number]), bar)
    index = build_index(
        [str(name) for name in names], folder / INDEX, Path, relative=True, progress=progress
    )  # which reads every header: a check of what was written
    if index.broken:
        name, reason = next(iter(index.broken.items()))
        raise WriteError(f"{folder / name} is damaged: {reason}; delete it and run the same command again")
    size = sum(record["bytes"] for record in index.shards)
    return ShardResult(folder, len(missing), len(names) - len(missing), len(index.entries), size, failed)


def _list_items(sources: Sequence[Source]) -> tuple[list[_Item], list[Failure]]:
    """Every item that can be written, and the files that cannot."""
    items, failed = [], []
    for number, source in enumerate(sources):
        for item in range(len(source)):
            path = source.paths[item]
            if source.arrays is not None:
                size = int(source.arrays[0].nbytes) + 128
            elif source.tar is not None:
                size = source.tar.size(item)
            else:
                try:
                    size = -1 if os.path.isdir(path) else os.path.getsize(path)
                except OSError as error:
                    failed.append(Failure(path, error.strerror or str(error)))
                    continue
                if size < 1:
                    reason = "it is a folder of pictures" if size else "it is empty (0 bytes)"
                    failed.append(Failure(path, reason))
                    continue
            items.append(_Item(number, item, size))
    for failure in failed:
        log.warning("left out: %s: %s", failure.path, failure.reason)
    if not items:
        raise ConfigError(f"nothing to write: not one file of {sources[0].config.path} can be read")
    return items, failed


def _divide(sizes: list[int], most: float, count: int | None) -> list[tuple[int, int]]:
    """First item of each shard and the one after its last: shards of at most ``most`` bytes, or ``count`` of them."""
    if count is not None:
        if count > len(sizes):
            raise ConfigError(f"shard_count {count}: there are only {len(sizes)} samples")
        cuts = [len(sizes) * n // count for n in range(count + 1)]
        return list(itertools.pairwise(cuts))
    shards, first, held = [], 0, 0
    for i, size in enumerate(sizes):
        if held and held + size + _OVERHEAD > most:
            shards.append((first, i))
            first, held = i, 0
        held += size + _OVERHEAD
    return [*shards, (first, len(sizes))]


def _plan(
    sources: Sequence[Source], items: Sequence[_Item], shards: Sequence[tuple[int, int]], shuffle: int | None
) -> dict[str, Any]:
    digest = hashlib.sha256(np.array(items, dtype=np.int64).tobytes())
    for source in sources:
        source.identify(digest)
    return {"samples": len(items), "shards": len(shards), "shuffle": shuffle, "content": digest.hexdigest()[:16]}


def _claim(folder: Path, plan: dict[str, Any]) -> None:
    """Make ``folder`` this job's, or refuse it."""
    record = folder / PLAN
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not record.exists():
            if next(folder.glob("*.tar"), None) is not None:
                raise ConfigError(f"{folder} holds shards that this command did not write: use another folder")
            with atomic_write(record) as file:
                file.write(json.dumps(plan).encode())
        changed = differences(json.loads(record.read_text()), plan)
    except OSError as error:
        raise WriteError(f"{folder} cannot be written: {error.strerror}") from None
    except json.JSONDecodeError:
        raise ConfigError(f"{record} is damaged: delete {folder} and run again") from None
    if changed:
        raise ConfigError(
            f"{folder} holds shards of other sources or settings ({'; '.join(changed)}): use another folder"
        )


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise WriteError(
            f"the shards need about {needed / 1e9:.2f} GB more, but the disk of {folder} has {free / 1e9:.2f} GB left: "
            "make room, or use another folder"
        )


def _columns(source: Source) -> tuple[list[str], list[list[str]]]:
    """The columns of a source's table, where it has one (open_source keeps every row in its order)."""
    path = Path(source.config.path)
    path = path / MANIFEST if (path / MANIFEST).is_file() else path
    if source.config.where or source.tar is not None or path.suffix.lower() not in (".csv", ".txt", ".tsv"):
        return [], []
    return read_rows(path)


def _write(
    path: Path, sources: Sequence[Source], extras: Sequence[tuple[list[str], list[list[str]]]],
    items: Sequence[_Item], numbers: range, bar: tqdm,
) -> list[Failure]:  # fmt: skip
    from webdataset.writer import TarWriter

    failed = []
    try:
        # a fixed time, so that the same samples make the same bytes; pax knows names and sizes of any length
        settings: dict[str, Any] = {"encoder": False, "mtime": 0.0, "format": "PAX_FORMAT", "user": "", "group": ""}
        with atomic_write(path) as file, TarWriter(file, **settings) as tar:
            for number in numbers:
                source, item, size = items[number]
                try:
                    tar.write(_sample(number, sources[source], item, extras[source]))
                except VideoError as error:
                    failed.append(Failure(sources[source].paths[item], str(error)))
                    log.warning("left out: %s", error)
                bar.update(size)
    except OSError as error:
        raise WriteError(
            f"{path} cannot be written: {error.strerror}. Finished shards are kept: mend this and run the same command "
            "again"
        ) from None
    return failed


def _sample(number: int, source: Source, item: int, extra: tuple[list[str], list[list[str]]]) -> dict[str, Any]:
    """The members of one sample. Raises ``VideoError`` when its file cannot be read."""
    path = source.paths[item]
    stem, suffix = os.path.splitext(os.path.basename(path))
    root = source.config.path if os.path.isdir(source.config.path) else os.path.dirname(source.config.path)
    facts: dict[str, Any] = {"path": os.path.relpath(path, root or "."), **dict(_facts(source, item, extra))}
    if source.arrays is not None:
        assert source.rows is not None
        data, suffix, stem = _npy(source.arrays[source.rows[item]]), ".npy", Path(source.config.path).stem
    elif source.tar is not None:
        data = source.tar.file(item).read()
    else:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise VideoError(f"{path} cannot be read: {error.strerror}") from None
    name = re.sub(r"[^A-Za-z0-9-]+", "-", stem)[:60].strip("-")
    sample = {"__key__": f"{number:08d}_{name}", suffix.lstrip(".").lower(): data, "json": json.dumps(facts).encode()}
    if source.labels[item] >= 0:
        sample["cls"] = str(int(source.labels[item])).encode()
    return sample


def _facts(source: Source, item: int, extra: tuple[list[str], list[list[str]]]) -> Iterator[tuple[str, Any]]:
    columns, rows = extra
    if rows:
        yield from ((name, value.strip()) for name, value in zip(columns, rows[item], strict=False) if name != "path")
    if source.labels[item] >= 0:
        yield "label", source.class_names[source.labels[item]]
    if source.spans is not None:
        start, end = source.spans[item].tolist()
        yield from (("start_s", start), ("end_s", end if np.isfinite(end) else None))


def _npy(frames: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, frames)
    return buffer.getvalue()
