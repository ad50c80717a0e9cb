"""The one way from clips to frozen features: read once, encoded once by every model, cached on disk."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evals.representations import Encoded, Representation
from evals.rows import Rows
from jepa.config import ConfigError
from jepa.data.batches import Failure, eval_batches
from jepa.data.loader import eval_options
from jepa.data.sources import Source
from jepa.data.transforms import ClipTransform
from jepa.distributed import Run
from jepa.types import ClipConfig, TokenGrid

log = logging.getLogger("jepa")


def source_hash(source: Source) -> str:
    """Short hash of what a source's clips are cut from: paths, sizes, times of change, and spans. Labels stay out."""
    digest = hashlib.sha256(repr((source.config.fps, source.config.span, source.options.short_side)).encode())
    for number, path in enumerate(source.paths):
        file = source.config.path if source.arrays is not None else path
        try:
            status = os.stat(file)
        except OSError:
            digest.update(f"{path} missing".encode())
            continue
        span = None if source.spans is None else source.spans[number].tolist()
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns} {span}".encode())
    return digest.hexdigest()[:16]


class FeatureSet(NamedTuple):
    """Features of every usable clip of a source, R views of each. ``items`` int64 ``[K]``: its position there;
    ``tokens`` ``[K, R, N, D]``, or ``None`` when no probe wants them; ``vectors`` ``[K, R, 1, V]``; ``grid`` of the
    tokens. ``levels``: the blocks whose outputs stand side by side along D (and along V), ``widths`` of a token each;
    None: the encoder's own output. ``failures``: why other items have no features, by item."""

    items: Tensor
    tokens: Rows | None
    vectors: Rows
    grid: TokenGrid
    levels: tuple[int, ...] | None = None
    widths: tuple[int, ...] = ()
    failures: Mapping[int, str] = {}

    def matrix(self) -> Tensor:
        """One vector per clip, the mean over its views: float32 ``[K, V]``, in memory."""
        return torch.cat([part.float().mean(dim=(1, 2)) for part in self.vectors.chunks()])

    def level(self, number: int) -> FeatureSet:
        """Only the output of block ``number``, one of ``levels``."""
        assert self.levels is not None
        place = self.levels.index(number)
        first, last = sum(self.widths[:place]), sum(self.widths[: place + 1])
        cells = self.vectors.shape[-1] // sum(self.widths)  # a vector holds as many means of each level
        return self._replace(
            tokens=None if self.tokens is None else self.tokens.part(first, last),
            vectors=self.vectors.part(first * cells, last * cells),
            levels=(number,), widths=(self.widths[place],),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureOptions:
    """``segments`` clips per item: vectors are averaged over them, tokens joined. ``tokens`` False keeps vectors only.
    ``cache_dir`` (None: nothing is kept on disk) never grows beyond ``cache_gb`` by these features."""

    batch_size: int = 16
    segments: int = 1
    tokens: bool = True
    workers: int = 0
    cache_dir: Path | None = None
    cache_gb: float = 4.0


def compute_features(
    representations: Sequence[Representation], source: Source, run: Run, options: FeatureOptions
) -> dict[str, FeatureSet]:
    """Features by every representation, by its name, in their order. The source is read once for each kind of clip.

    Raises ``ConfigError`` when no clip of the source can be decoded.
    """
    found: dict[str, FeatureSet] = {}
    for clip in dict.fromkeys(representation.clip for representation in representations):
        group = [representation for representation in representations if representation.clip == clip]
        reading = eval_options(clip, source.options.backend, source.options.short_video)
        found |= _features_of_clip(group, replace(source, options=reading), clip, run, options)
    return {representation.name: found[representation.name] for representation in representations}


def _features_of_clip(
    representations: Sequence[Representation], source: Source, clip: ClipConfig, run: Run, options: FeatureOptions
) -> dict[str, FeatureSet]:
    """Features by representations that want the same clips, decoded once for all that the cache does not hold."""
    stem = f"{source_hash(source)}-{hashlib.sha256(repr((clip, options.segments)).encode()).hexdigest()[:8]}"
    found: dict[str, FeatureSet] = {}
    missing: list[Representation] = []
    for representation in representations:
        known = _read(options, f"{representation.fingerprint}-{stem}", representation)
        if known is None:
            missing.append(representation)
        else:
            found[representation.name] = known
    if missing:
        fresh = _encode_all(missing, source, clip, run, options)
        for representation in missing:
            found[representation.name] = fresh[representation.name]
            _write(options, f"{representation.fingerprint}-{stem}", fresh[representation.name])
    return found


def _encode_all(
    representations: Sequence[Representation], source: Source, clip: ClipConfig, run: Run, options: FeatureOptions
) -> dict[str, FeatureSet]:
    transform = ClipTransform(clip, None)
    failures: list[Failure] = []
    items: list[Tensor] = []
    parts: dict[str, list[Encoded]] = {r.name: [] for r in representations}
    batches = eval_batches(source, clip, options.batch_size, options.segments, options.workers, failures)
    for batch in batches:
        assert batch.index is not None
        ready = transform(batch.to(run.device))
        items.append(batch.index)
        for representation in representations:
            encoded = representation(ready.clip)
            tokens = encoded.tokens.cpu() if options.tokens else encoded.tokens[:, :0].cpu()
            parts[representation.name].append(Encoded(tokens, encoded.vector.cpu()))
    for failure in failures:
        log.warning("left out of the eval: %s", failure.reason)
    if not items:
        raise ConfigError(f"{source.config.path}: no clip can be decoded; the first: {failures[0].reason}")
    return {r.name: _gather(torch.cat(items), parts[r.name], r, options) for r in representations}


def _gather(index: Tensor, parts: list[Encoded], of: Representation, options: FeatureOptions) -> FeatureSet:
    """Clips to items: the mean vector of an item's segments, and their tokens one after the other."""
    items, segments = index.unique_consecutive(), options.segments
    vectors = torch.cat([part.vector for part in parts]).unflatten(0, (len(items), segments)).mean(dim=1)
    tokens = None
    if options.tokens:
        tokens = torch.cat([part.tokens for part in parts]).unflatten(0, (len(items), segments)).flatten(1, 2)
    found = None if tokens is None else Rows.of(tokens)
    grid = of.grid._replace(t=of.grid.t * segments)
    return FeatureSet(items, found, Rows.of(vectors), grid, of.levels, of.widths()[0])


# ---- cache: one .npy per array, so that tokens (large) are read only when a probe wants them -----------------------


def _read(options: FeatureOptions, key: str, of: Representation) -> FeatureSet | None:
    if options.cache_dir is None:
        return None
    arrays = []
    for part in ("items", "vectors", "tokens") if options.tokens else ("items", "vectors"):
        path = options.cache_dir / f"{key}.{part}.npy"
        try:
            arrays.append(torch.from_numpy(np.load(path)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError):
            log.warning("feature cache %s is damaged and will be written again", path)
            return None
    items, vectors = arrays[:2]
    grid = of.grid._replace(t=of.grid.t * options.segments)
    tokens = Rows.of(arrays[2]) if options.tokens else None
    return FeatureSet(items, tokens, Rows.of(vectors), grid, of.levels, of.widths()[0])


def _write(options: FeatureOptions, key: str, features: FeatureSet) -> None:
    """Write beside the final place, then rename: no half file is ever read. A full disk only costs time."""
    if options.cache_dir is None:
        return
    tokens = None if features.tokens is None else features.tokens.blocks[0][:, 0]
    arrays = {"items": features.items, "vectors": features.matrix(), "tokens": tokens}
    try:
        options.cache_dir.mkdir(parents=True, exist_ok=True)
        used = sum(path.stat().st_size for path in options.cache_dir.iterdir())
        for part, value in arrays.items():
            if value is None:
                continue
            used += value.numel() * value.element_size()
            if used > options.cache_gb * 1e9:
                log.info("%s stay out of the feature cache: it would hold more than %g GB", part, options.cache_gb)
                return
            path = options.cache_dir / f"{key}.{part}.npy"
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            with temporary.open("wb") as file:
                np.save(file, value.numpy())
            temporary.replace(path)
    except OSError as error:
        log.warning("features are not cached: %s", error)
