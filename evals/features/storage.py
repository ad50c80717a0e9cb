"""What features are made of and how much room they take: hashes of sources, free memory and disk."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from jepa.config import ConfigError
from jepa.data.sources import Source


def source_hash(source: Source) -> str:
    """Short hash of what a source's clips are cut from: paths, sizes, times of change, and spans. Labels stay out, and
    so does the size at which files are read, which the clip decides."""
    digest = hashlib.sha256(repr((source.config.fps, source.config.span, source.options.short_video)).encode())
    if source.arrays is not None:
        digest.update(_state(source.config.path).encode())
    if source.tar is not None:
        digest.update(" ".join(map(_state, source.tar.files.shards)).encode())
        source.tar.identify(digest)
    for number, path in enumerate(source.paths):
        state = "" if source.arrays is not None else _state(path)
        span = None if source.spans is None else source.spans[number].tolist()
        digest.update(f"{path} {state} {span}".encode())
    return digest.hexdigest()[:16]


def _state(path: str) -> str:
    """Size and time of change of a file, of every picture of a folder of frames."""
    try:
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                pictures = sorted((entry.name, entry.stat()) for entry in entries)
            return " ".join(f"{name} {found.st_size} {found.st_mtime_ns}" for name, found in pictures)
        found = os.stat(path)
    except OSError:
        return "missing"
    return f"{found.st_size} {found.st_mtime_ns}"


def readable(size: float) -> str:
    """Bytes in words: 12 kB, 3.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


def folder_bytes(folder: Path) -> int:
    """Of all files below a folder; 0 where there is none."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue  # another process has just renamed it
    return total


def free_disk(folder: Path) -> int:
    """Free bytes where ``folder`` is, or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def available_memory() -> int | None:
    """Bytes of memory that this process can still get: what the system has to spare, or less where a container or a
    cluster's job is limited. ``None`` where the system does not say."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        if "SC_PHYS_PAGES" in os.sysconf_names:  # no Linux: all there is
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit, used = (Path("/sys/fs/cgroup", name).read_text().strip() for name in ("memory.max", "memory.current"))
        found += [] if limit == "max" else [int(limit) - int(used)]
    except OSError:
        pass
    return min(found, default=None)


def check_disk(folder: Path, total: int, missing: int, limit_gb: float) -> None:
    """Raise ``ConfigError`` where ``missing`` of ``total`` bytes of features would not fit into ``folder``."""
    remedy = (
        "make fewer features (fewer segments, views, layers or cells; no attentive probe, which needs all tokens), or "
        "keep none: --cache-gb 0 holds them in memory, --no-cache encodes them anew in every step"
    )
    held = folder_bytes(folder)
    if held + missing > limit_gb * 1e9:
        raise ConfigError(
            f"the features would take {readable(total)}, of which {readable(missing)} are still to be written to "
            f"{folder}, where {readable(held)} lie already: more than cache_gb {limit_gb:g} allows. Allow more "
            f"(--cache-gb {_up((held + missing) / 1e9)}), remove features of other models from that folder, {remedy}"
        )
    free = free_disk(folder)
    if missing > free:
        raise ConfigError(
            f"the features would take {readable(total)}, of which {readable(missing)} are still to be written to "
            f"{folder}, but the disk has {readable(free)} left: make room, {remedy}"
        )


def check_memory(total: int, copies: int) -> None:
    """Raise ``ConfigError`` where ``copies`` processes cannot hold ``total`` bytes of features each."""
    memory = available_memory()
    if memory is not None and total * copies > memory:
        each = f" in each of {copies} processes" if copies > 1 else ""
        raise ConfigError(
            f"the features would take {readable(total)} of memory{each}, but {readable(memory)} are available: keep "
            f"them on disk (--cache-gb {_up(total / 1e9)}), or use fewer segments or views, or no attentive probe"
        )


def _up(gigabytes: float) -> str:
    return f"{gigabytes * 1.01:.2g}" if gigabytes < 10 else f"{int(gigabytes) + 1}"
