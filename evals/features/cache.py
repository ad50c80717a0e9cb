"""Features on disk, block by block: encoding goes on where it stopped, readers map the files instead of loading them.

A folder holds one representation's features of one source: ``meta.json`` says of what, and for every block of
consecutive items there are ``NUMBER.vectors.npy`` ``[k, R, 1, V]``, ``NUMBER.json`` (the k items that could be decoded,
and why the others could not) and, once a probe has asked for them, ``NUMBER-PART.tokens.npy`` ``[k', R, N, D]``, the
block's tokens in files of at most 64 MB. Files appear complete or not at all, and what they hold follows from
``meta.json`` alone, so any number of processes may fill the same folder at once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa.config import ConfigError
from jepa.files import atomic_write

log = logging.getLogger("jepa")

_FILE_BYTES = 64 * 2**20
_STALE_S = 3600.0  # a temporary file that nobody has touched for so long belongs to no process any more
VECTORS, TOKENS = "vectors", "tokens"


class Layout(NamedTuple):
    """What a source of ``items`` items becomes: per item R ``views`` of N ``tokens`` of ``width`` D, and of a vector of
    width V, all float32."""

    items: int
    views: int
    tokens: int
    width: int
    vector: int

    def item_bytes(self, part: str) -> int:
        """Of one item's vectors or tokens."""
        return 4 * self.views * (self.vector if part == VECTORS else self.tokens * self.width)

    @property
    def block(self) -> int:
        """Items in a block: at most 256, fewer of small sources, so that several processes have work."""
        return min(256, max(16, self.items // 256 * 16))

    def block_items(self, number: int) -> range:
        """The items of a block."""
        return range(number * self.block, min((number + 1) * self.block, self.items))

    @property
    def blocks(self) -> int:
        return -(-self.items // self.block)

    @property
    def token_rows(self) -> int:
        """Clips in one file of tokens."""
        return min(256, max(1, _FILE_BYTES // self.item_bytes(TOKENS)))


@dataclass
class Block:
    """Features of a block's usable ``items``: ``vectors`` ``[k, R, 1, V]`` and, where wanted, ``tokens``
    ``[k', R, N, D]`` one after the other. ``failures``: why the other items have none."""

    items: list[int] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    vectors: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)

    def add(self, items: list[int], failures: Mapping[int, str], vectors: Tensor, tokens: Tensor | None) -> None:
        """The next clips."""
        self.items += items
        self.failures.update(failures)
        if items:
            self.vectors.append(vectors)
            self.tokens += [] if tokens is None else [tokens]


class MemoryStore:
    """Blocks that nobody keeps."""

    folder: Path | None = None

    def __init__(self, layout: Layout, tokens: bool) -> None:
        self.layout, self.tokens = layout, tokens
        self.found: dict[int, Block] = {}

    def missing(self) -> dict[int, tuple[str, ...]]:
        """Blocks to encode, and which parts of each."""
        wanted = (VECTORS, TOKENS) if self.tokens else (VECTORS,)
        return {number: wanted for number in range(self.layout.blocks) if number not in self.found}

    def close(self, number: int, block: Block) -> None:
        """Keep a block."""
        self.found[number] = block

    def read(self) -> list[Block]:
        """All blocks, in order."""
        return [self.found[number] for number in sorted(self.found)]


class DiskStore:
    """A folder of blocks. ``about``: what they are features of, as plain data; ``tokens``: whether these are wanted."""

    def __init__(self, home: Path, about: Mapping[str, Any], layout: Layout, tokens: bool) -> None:
        self.about = json.loads(json.dumps({**about, "layout": layout._asdict()}))
        self.folder = home / hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:24]
        self.layout, self.tokens = layout, tokens

    def check(self) -> None:
        """Raise ``ConfigError`` where the folder holds features of something else."""
        path = self.folder / "meta.json"
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            return
        except (OSError, ValueError):
            log.warning("feature cache %s is damaged and will be written again", path)
            return
        for key in self.about.keys() | (found.keys() if isinstance(found, dict) else set()):
            theirs = found.get(key) if isinstance(found, dict) else found
            if theirs != self.about.get(key):
                raise ConfigError(
                    f"the feature cache {self.folder} holds features of another {key}: {theirs}, not {self.about[key]}"
                    if key in self.about
                    else f"the feature cache {self.folder} holds features of an unknown {key}: {theirs}"
                ) from None

    def prepare(self) -> None:
        """Make the folder, and clear away what killed processes have left. Raises ``OSError``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".*.tmp"):
            if time.time() - leftover.stat().st_mtime > _STALE_S:
                leftover.unlink(missing_ok=True)
        with atomic_write(self.folder / "meta.json", shared=True) as file:
            file.write(json.dumps(self.about, indent=1).encode())

    def missing(self) -> dict[int, tuple[str, ...]]:
        """Blocks to encode, and which parts of each. A damaged one is named in a warning."""
        found = {}
        for number in range(self.layout.blocks):
            block = self._open(number)
            lacking = (VECTORS,) if block is None else ()
            if self.tokens and (block is None or self._tokens(number, len(block.items)) is None):
                lacking += (TOKENS,)
            if lacking:
                found[number] = lacking
        return found

    def close(self, number: int, block: Block) -> None:
        """Write what remains of a block: vectors, then the list of its items. Raises ``OSError``."""
        known = self._open(number)
        if known is not None and known.items == block.items:
            return  # the vectors are there: only tokens were missing, or another process was faster
        if block.items:
            self.save(f"{number:06d}.vectors.npy", torch.cat(block.vectors))
        listed = {"items": block.items, "failures": {str(item): why for item, why in block.failures.items()}}
        with atomic_write(self.folder / f"{number:06d}.json", shared=True) as file:
            file.write(json.dumps(listed).encode())

    def save(self, name: str, value: Tensor) -> None:
        """Write an array. Raises ``OSError``."""
        with atomic_write(self.folder / name, shared=True) as file:
            np.save(file, value.numpy())

    def read(self) -> list[Block]:
        """All blocks, in order, mapped from the disk. Raises ``ConfigError`` where one has gone."""
        blocks = []
        for number in range(self.layout.blocks):
            block = self._open(number)
            tokens = self._tokens(number, len(block.items)) if block is not None and self.tokens else []
            if block is None or tokens is None:
                raise ConfigError(f"the feature cache {self.folder} was changed meanwhile: start again")
            block.tokens = tokens
            blocks.append(block)
        return blocks

    def _open(self, number: int) -> Block | None:
        """A block without its tokens, ``None`` where it is not there or damaged."""
        path = self.folder / f"{number:06d}.json"
        try:
            listed = json.loads(path.read_text())
            items, failures = listed["items"], {int(item): reason for item, reason in listed["failures"].items()}
            if sorted([*items, *failures]) != list(self.layout.block_items(number)):
                raise ValueError("it does not list the items of the block")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            log.warning("feature cache %s is damaged and will be written again", path)
            return None
        shape = (len(items), self.layout.views, 1, self.layout.vector)
        vectors = self._map(self.folder / f"{number:06d}.vectors.npy", shape)
        return None if vectors is None else Block(items, failures, vectors)

    def _tokens(self, number: int, count: int) -> list[Tensor] | None:
        """The tokens of a block with ``count`` usable items."""
        layout, found = self.layout, []
        for part, start in enumerate(range(0, count, layout.token_rows)):
            shape = (min(layout.token_rows, count - start), layout.views, layout.tokens, layout.width)
            tokens = self._map(self.folder / f"{number:06d}-{part:03d}.tokens.npy", shape)
            if tokens is None:
                return None
            found += tokens
        return found

    def _map(self, path: Path, shape: tuple[int, ...]) -> list[Tensor] | None:
        """The array of a file, mapped; ``None`` where there is none or it is damaged."""
        if not shape[0]:
            return []  # there is no file for no clip
        try:
            array = np.load(path, mmap_mode="c")
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError("another shape")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError):
            log.warning("feature cache %s is damaged and will be written again", path)
            return None
        return [torch.from_numpy(array)]


class Writer:
    """Takes one block's clips, and writes tokens as soon as a file of them is full, vectors at the end."""

    def __init__(self, store: MemoryStore | DiskStore, number: int, parts: tuple[str, ...]) -> None:
        self.store, self.number, self.parts = store, number, parts
        self.block, self.files = Block(), 0

    def add(self, items: list[int], failures: Mapping[int, str], vectors: Tensor, tokens: Tensor | None) -> None:
        """The next clips: ``vectors`` ``[k, R, 1, V]``, ``tokens`` ``[k, R, N, D]``. Raises ``OSError``."""
        self.block.add(items, failures, vectors, tokens if TOKENS in self.parts else None)
        self._flush(self.store.layout.token_rows)

    def close(self) -> None:
        """Complete the block. Raises ``OSError``."""
        self._flush(1)
        self.store.close(self.number, self.block)

    def _flush(self, least: int) -> None:
        """Write files of tokens while at least so many clips wait."""
        if not isinstance(self.store, DiskStore):
            return
        waiting, size = sum(map(len, self.block.tokens)), self.store.layout.token_rows
        while waiting >= least:
            together = torch.cat(self.block.tokens)
            self.store.save(f"{self.number:06d}-{self.files:03d}.tokens.npy", together[:size])
            self.files += 1
            self.block.tokens = [together[size:]]
            waiting -= min(size, waiting)
