"""Tar shards as files on this machine: local ones as they are, streams fetched into a cache of bounded size.

A shard's address is whatever ``webdataset`` opens: a path, ``http://``, ``gs://``, ``hf://``, ``pipe:COMMAND``. A
stream cannot be read at random, so it is fetched whole when a sample of it is first needed, once for all processes of
a machine, into ``shards`` in the cache folder (``$JEPA_CACHE``). The shards used longest ago make room for new ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import gzip
import hashlib
import io
import json
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

from jepa.config import ConfigError
from jepa.data.listing import VIDEO_SUFFIXES
from jepa.data.video import VideoError, is_url, local_path, one_line
from jepa.files import atomic_write, cache_folder

_SHARD = re.compile(r"\.(tar|tar\.gz|tgz)($|[?:])", re.IGNORECASE)
PLAN = "shards.json"  # beside shards that `jepa data shard` writes: what they are made of
_OPEN_FILES = 64  # descriptors that a process keeps: one for each shard that it has used lately
_IN_MEMORY = 2**26  # bytes; a longer member is read in pieces


def names_shards(path: str) -> bool:
    """Whether ``path`` means tar shards: ``.tar`` (also ``.tar.gz``, ``.tgz``), a pattern or URL of them, a ``pipe:``,
    or a folder that holds some."""
    if path.startswith("pipe:") or _SHARD.search(path):
        return True
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        return any(_SHARD.search(entry.name) and not entry.name.startswith(".") for entry in entries)
    return False


def expand_shards(path: str) -> list[str]:
    """The shards that ``path`` means, in order: a folder's, those of a brace pattern (``a-{000..127}.tar``) or of a
    wildcard, several joined by ``::``. Raises ``ConfigError`` naming local ones that are not there."""
    from webdataset.shardlists import expand_urls

    if os.path.isdir(path):
        return _shards_of(path)
    try:
        shards = expand_urls(local_path(path))
    except AssertionError as error:  # ${NAME} stands for the environment variable WDS_NAME
        raise ConfigError(f"data source {path}: {error}") from None
    found = [shard for one in shards for shard in (sorted(glob.glob(one)) if _is_local(one) else []) or [one]]
    missing = [shard for shard in found if _is_local(shard) and not os.path.isfile(shard)]
    if missing:
        raise ConfigError(
            f"data source {path}: {len(missing)} of {len(found)} shards do not exist, the first: {missing[0]}"
        )
    return found


def _shards_of(folder: str) -> list[str]:
    """Every shard of a folder. Raises ``ConfigError`` when some of those that ``jepa data shard`` meant to write are
    missing, and when videos lie beside the shards: nobody could tell which are meant."""
    found = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    names = [name for name in found if _SHARD.search(name)]
    videos = [name for name in found if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES]
    if videos:
        raise ConfigError(
            f"data source {folder} holds {len(names)} tar shards ({names[0]}, ...) and {len(videos)} videos "
            f"({videos[0]}, ...): name the shards as {os.path.join(folder, '*.tar')}, or move them out of there"
        )
    planned = 0
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        planned = int(json.loads(Path(folder, PLAN).read_text())["shards"])
    if len(names) < planned:
        raise ConfigError(
            f"data source {folder}: `jepa data shard` was to write {planned} shards there, but {len(names)} are there: "
            f"run it again, copy the others too, or name those that you want ({os.path.join(folder, '*.tar')})"
        )
    return [os.path.join(folder, name) for name in names]


def _is_local(shard: str) -> bool:
    return not is_url(shard) and not shard.startswith("pipe:")


def is_stream(shard: str) -> bool:
    """Whether a shard must be fetched (or unpacked) before it can be read at random."""
    return not _is_local(shard) or shard.lower().endswith((".gz", ".tgz"))


class MemberFile(io.RawIOBase):
    """``size`` bytes from ``offset`` of an open file, as a file; nothing is read before it is asked for."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self._descriptor, self._offset, self._size, self._at = descriptor, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        data = os.pread(self._descriptor, count, self._offset + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        super().close()


class ShardFiles:
    """Reads bytes of shards by their number. Every process keeps descriptors of its own; nothing else is kept."""

    def __init__(self, shards: Sequence[str], cache_gb: float) -> None:
        self.shards, self.cache_gb = list(shards), cache_gb
        self._open: OrderedDict[int, int] = OrderedDict()
        self._pid = os.getpid()

    def __reduce__(self) -> tuple[type[ShardFiles], tuple[list[str], float]]:
        return ShardFiles, (self.shards, self.cache_gb)

    def path(self, shard: int) -> Path:
        """The shard as a plain tar file, fetched if need be. Raises ``VideoError`` naming it."""
        address = self.shards[shard]
        return fetch(address, self.cache_gb) if is_stream(address) else Path(address)

    def member(self, shard: int, offset: int, size: int) -> BinaryIO:
        """``size`` bytes from ``offset``: in memory, or for a long member as a file that reads them in pieces.

        Raises ``VideoError`` naming the shard.
        """
        try:
            descriptor = self._descriptor(shard)
            if size > _IN_MEMORY:
                return io.BufferedReader(MemberFile(os.dup(descriptor), offset, size), 2**20)
            data = os.pread(descriptor, size, offset)
        except OSError as error:
            raise VideoError(f"shard {self.shards[shard]} cannot be read: {error.strerror}") from None
        if len(data) < size:
            raise VideoError(f"shard {self.shards[shard]} is cut off: it ended {size - len(data)} bytes too early")
        return io.BytesIO(data)

    def _descriptor(self, shard: int) -> int:
        if self._pid != os.getpid():  # the parent's descriptors are its own to close
            self._open, self._pid = OrderedDict(), os.getpid()
        if shard not in self._open:
            self._open[shard] = self._open_file(shard)
            if len(self._open) > _OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(shard)
        return self._open[shard]

    def _open_file(self, shard: int) -> int:
        try:
            return os.open(self.path(shard), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # another process needed the room just now: fetch it again
            return os.open(self.path(shard), os.O_RDONLY | os.O_CLOEXEC)


def fetched_path(shard: str) -> Path:
    """Where the cache keeps a stream."""
    return cache_folder() / "shards" / f"{hashlib.sha256(shard.encode()).hexdigest()[:24]}.tar"


def fetch(shard: str, cache_gb: float) -> Path:
    """The stream ``shard`` as a plain tar file in the cache. Raises ``VideoError`` naming it when it cannot be had."""
    path = fetched_path(shard)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            try:
                os.utime(path)  # used now: not the next one to make room
            except FileNotFoundError:
                _make_room(path.parent, cache_gb)
                with atomic_write(path) as file, contextlib.closing(_open_stream(shard)) as stream:
                    shutil.copyfileobj(stream, file, 2**20)
    except (OSError, EOFError) as error:
        reason = re.sub(r"^.*: exit (\d+) \(read\).*$", r"its command ended with status \1", one_line(error))
        raise VideoError(f"shard {shard} cannot be fetched: {reason}") from None
    return path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process of this machine at a time."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open_stream(shard: str) -> IO[bytes]:
    from webdataset.gopen import gopen

    try:
        stream = gopen(shard)
    except ValueError:
        raise VideoError(
            f"shard {shard}: webdataset cannot open this kind of address; use pipe:COMMAND with a command that writes "
            "the shard to its standard output, for example 'pipe:aws s3 cp s3://BUCKET/a-{000..127}.tar -'"
        ) from None
    named = shard.lower().split("?")[0].endswith((".gz", ".tgz"))
    return gzip.GzipFile(fileobj=stream) if named else stream  # type: ignore[return-value]


def _make_room(folder: Path, cache_gb: float) -> None:
    """Remove the shards used longest ago until the cache is within its size."""
    with locked(folder / "lock"):
        kept = sorted((found.stat().st_mtime, found.stat().st_size, found) for found in folder.glob("*.tar"))
        total = sum(size for _, size, _ in kept)
        while kept and total > cache_gb * 1e9:
            _, size, oldest = kept.pop(0)
            oldest.unlink()
            total -= size
