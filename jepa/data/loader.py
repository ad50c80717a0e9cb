"""Batches for training and evaluation.

The batch of step s is a pure function of (seed, s): sample i of the global batch has the number s * batch_size + i,
its number decides the video (``mixture.py``) and seeds its own random stream, and (seed, s) seeds the masks. Each
rank builds its own rows. So the batches do not depend on the number of workers or ranks, and resuming at a step
replays nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from jepa.config import ConfigError
from jepa.data.batches import Failure, collate, eval_batches
from jepa.data.cache import ClipCache
from jepa.data.mixture import HOLDOUT, MASKS, SAMPLE, Mixture, stream
from jepa.data.sampling import ShortVideo, ShortVideoError
from jepa.data.sources import ClipRequest, RawClip, ReadOptions, Source, SourceConfig, open_source
from jepa.data.video import Backend, VideoError
from jepa.masks import MaskFamily
from jepa.types import Batch, ClipConfig

__all__ = ["DataConfig", "TrainLoader", "eval_batches", "eval_options", "open_data"]
log = logging.getLogger("jepa")
_MAX_REPLACEMENTS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Sources and how they are read.

    ``validation`` sources, or else ``holdout`` videos of ``sources`` that training then never sees, feed the monitor.
    ``clips_per_video`` consecutive clips of a batch come from one video, spread over it. ``short_video`` says what
    happens to a video shorter than the clip: ``hold`` its last frame, ``loop`` it, or ``skip`` it. Files are decoded
    with their shorter side at most ``decode_short_side`` pixels (None: ``clip.short_side``, else 1.15 * crop_size, so
    that random crops lose little detail). ``reader``: decord, torchcodec, pyav, or auto. ``workers`` processes
    (0: in the training process) prepare ``prefetch`` batches each. ``cache_mb`` MiB of memory keep decoded videos,
    once for all workers of a rank. Training fails when more than the share ``max_failed`` of the files cannot be
    decoded.
    """

    sources: list[SourceConfig]
    validation: list[SourceConfig] = field(default_factory=list)
    holdout: int = 0
    clips_per_video: int = 1
    short_video: ShortVideo = "hold"
    decode_short_side: int | None = None
    reader: Backend = "auto"
    workers: int = 2
    prefetch: int = 2
    cache_mb: float = 0.0
    max_failed: float = 0.05

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources must name at least one folder, CSV or array of clips")
        for name, least in (("holdout", 0), ("clips_per_video", 1), ("workers", 0), ("prefetch", 1), ("cache_mb", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 <= self.max_failed <= 1:
            raise ValueError(f"max_failed must lie between 0 and 1, not {self.max_failed}")
        if self.decode_short_side is not None and self.decode_short_side < 1:
            raise ValueError(f"decode_short_side must be at least 1, not {self.decode_short_side}")


def eval_options(clip: ClipConfig, reader: Backend = "auto", short_video: ShortVideo = "hold") -> ReadOptions:
    """Decode straight to the size that the centre crop is cut from."""
    return ReadOptions(backend=reader, short_side=clip.short_side or clip.crop_size, short_video=short_video)


def open_data(data: DataConfig, clip: ClipConfig) -> tuple[list[Source], list[Source]]:
    """Training sources and validation sources (given, or held out of the training ones). Raises ``ConfigError``."""
    side = data.decode_short_side or clip.short_side or round(1.15 * clip.crop_size)
    options = ReadOptions(backend=data.reader, short_side=side, short_video=data.short_video)
    train = [open_source(config, options) for config in data.sources]
    if data.cache_mb:
        _add_cache(train, data.cache_mb)
    if data.validation:
        names = train[0].class_names if len(train) == 1 else ()
        evaluated = eval_options(clip, data.reader, data.short_video)
        return train, [open_source(config, evaluated, names) for config in data.validation]
    return _hold_out(train, data.holdout, eval_options(clip, data.reader, data.short_video))


def _add_cache(sources: list[Source], megabytes: float) -> None:
    first, tables = 0, []
    for source in sources:
        distinct, ids = np.unique(np.asarray(source.paths), return_inverse=True)
        tables.append(ids.astype(np.int64) + first)
        first += len(distinct)
    cache = ClipCache(first, megabytes)
    for source, slots in zip(sources, tables, strict=True):
        source.options, source.slots = replace(source.options, cache=cache), slots


def _hold_out(sources: list[Source], count: int, options: ReadOptions) -> tuple[list[Source], list[Source]]:
    """Take ``count`` videos out of the sources, in proportion to their sizes; every item of a video goes along."""
    if not count:
        return sources, []
    videos = sum(len(set(source.paths)) for source in sources)
    if count >= videos:
        raise ConfigError(f"holdout {count} leaves nothing to train on: the sources have {videos} videos")
    train, held = [], []
    names = sorted({(number, path) for number, source in enumerate(sources) for path in source.paths})
    taken = {names[i] for i in stream(0, HOLDOUT).permutation(len(names))[:count]}  # not the run's seed: a fixed set
    for number, source in enumerate(sources):
        out = np.array([(number, path) in taken for path in source.paths])
        if out.all():
            raise ConfigError(f"holdout {count} leaves nothing of {source.config.path}: lower it or set validation")
        train.append(source.subset(np.flatnonzero(~out)))
        if out.any():
            kept = source.subset(np.flatnonzero(out))
            held.append(replace(kept, options=options, slots=None))
    return train, held


class _Steps(Sampler[int]):
    """start, start + 1, ... without end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


class _TrainBatches(Dataset[tuple[Batch | None, list[Failure]]]):
    """Step -> this rank's rows of the batch (None: hopeless), and the files that had to be replaced."""

    def __init__(
        self, sources: list[Source], mixture: Mixture, clip: ClipConfig, masks: Sequence[MaskFamily], batch_size: int,
        rows: slice,
    ) -> None:  # fmt: skip
        self.sources, self.mixture, self.clip, self.masks = sources, mixture, clip, list(masks)
        self.batch_size, self.rows = batch_size, rows
        self.offsets = np.cumsum([0, *(len(source) for source in sources)])
        self.bad: dict[tuple[int, int], Failure] = {}  # this worker's memory of files not to try again

    def __getitem__(self, step: int) -> tuple[Batch | None, list[Failure]]:
        first = step * self.batch_size
        positions = range(first + self.rows.start, first + self.rows.stop)
        clips: list[RawClip] = []
        index: list[int] = []
        failures: list[Failure] = []
        for (source, item), group in itertools.groupby(positions, key=lambda p: self.mixture.locate(p)[:2]):
            members = list(group)
            loaded = self._load(source, item, members, 0, failures)
            if loaded is not None:
                clips += loaded
                index += [int(self.offsets[source]) + item] * len(members)
                continue
            for position in members:
                stand_in = self._replace(position, failures)
                if stand_in is None:
                    return None, failures
                clips.append(stand_in[0])
                index.append(stand_in[1])
        seeds = [int(stream(self.mixture.seed, SAMPLE, p).integers(2**62)) for p in positions]
        batch = collate(clips, index, seeds)
        rng = stream(self.mixture.seed, MASKS, step)
        batch.masks = [family.draw(rng, self.batch_size, self.rows) for family in self.masks]
        batch.skipped = len(failures)
        return batch, failures

    def _load(
        self, source: int, item: int, positions: list[int], attempt: int, failures: list[Failure]
    ) -> list[RawClip] | None:
        """The clips of these samples from one item, or None if it cannot be used."""
        known = self.bad.get((source, item))
        if known is None:
            parts, seed = self.mixture.clips_per_video, self.mixture.seed
            # a stream for every attempt: what a failed attempt consumed must not matter
            requests = [ClipRequest(stream(seed, SAMPLE, p, attempt), (p % parts, parts)) for p in positions]
            try:
                return self.sources[source].load_clips(item, self.clip, requests)
            except (VideoError, ShortVideoError) as error:
                path = self.sources[source].paths[item]
                known = self.bad[source, item] = Failure(path, str(error), isinstance(error, ShortVideoError))
        failures += [known] * len(positions)
        return None

    def _replace(self, position: int, failures: list[Failure]) -> tuple[RawClip, int] | None:
        """Another clip for this sample, the same one whenever it is asked for, and its index."""
        for attempt in range(_MAX_REPLACEMENTS):
            source, item = self.mixture.replacement(position, attempt)
            loaded = self._load(source, item, [position], attempt + 1, failures)
            if loaded is not None:
                return loaded[0], int(self.offsets[source]) + item
        return None


class TrainLoader:
    """Endless training batches of one rank; ``batch_size`` is the global one.

    ``sources`` are what is trained on, ``validation`` what the monitor may look at. Raises ``ConfigError`` when a
    source cannot be opened, ``VideoError`` while iterating when too many files cannot be decoded.
    """

    def __init__(
        self, data: DataConfig, clip: ClipConfig, masks: Sequence[MaskFamily] = (), batch_size: int = 16, seed: int = 0,
        rank: int = 0, world_size: int = 1, pin_memory: bool = False,
    ) -> None:  # fmt: skip
        if batch_size < 1 or batch_size % world_size:
            raise ConfigError(f"batch_size {batch_size} must be a positive multiple of the {world_size} processes")
        self.data, self.batch_size, self.seed, self.pin_memory = data, batch_size, seed, pin_memory
        self.sources, self.validation = open_data(data, clip)
        mixture = Mixture(
            [len(source) for source in self.sources], [source.config.weight for source in self.sources], seed,
            data.clips_per_video,
        )  # fmt: skip
        share = batch_size // world_size
        rows = slice(rank * share, (rank + 1) * share)
        self.dataset = _TrainBatches(self.sources, mixture, clip, masks, batch_size, rows)
        self.next_step = 0
        self.failed: dict[str, str] = {}  # path -> why, of the files that could not be decoded
        self._short: set[str] = set()
        self._num_files = len({path for source in self.sources for path in source.paths})

    def __len__(self) -> int:
        """Steps in an epoch."""
        clips = sum(len(source) for source in self.sources) * self.data.clips_per_video
        return max(1, clips // self.batch_size)

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """Batches of steps ``start_step``, ``start_step + 1``, ... without end."""
        workers = self.data.workers
        batches = DataLoader(
            self.dataset, batch_size=None, sampler=_Steps(start_step), num_workers=workers,
            prefetch_factor=self.data.prefetch if workers else None, pin_memory=self.pin_memory,
        )  # fmt: skip
        for step, (batch, failures) in enumerate(batches, start_step):
            self._note(failures)
            if batch is None:
                raise VideoError(
                    f"{_MAX_REPLACEMENTS} videos drawn in a row cannot be used, the last because: {failures[-1].reason}"
                )
            self.next_step = step + 1
            yield batch

    def _note(self, failures: list[Failure]) -> None:
        """Name every unusable file once; stop when there are too many."""
        for failure in failures:
            if failure.short:
                if failure.path not in self._short:
                    self._short.add(failure.path)
                    log.info("left out (short_video: skip): %s", failure.reason)
            elif failure.path not in self.failed:
                self.failed[failure.path] = failure.reason
                log.warning("skipped, cannot be decoded: %s", failure.reason)
        if len(self.failed) > self.data.max_failed * self._num_files:
            path, reason = next(iter(self.failed.items()))
            raise VideoError(
                f"{len(self.failed)} of {self._num_files} files cannot be decoded, more than the share "
                f"{self.data.max_failed} that data.max_failed allows; the first is {path}: {reason}. Mend or remove "
                "the files, or raise data.max_failed"
            )

    def fingerprint(self) -> str:
        """Hash of what is trained on: the names, labels and weights of all items, not where the folder lies."""
        digest = hashlib.sha256()
        for source in self.sources:
            root = source.config.path
            digest.update(repr((source.config.weight, source.class_names)).encode())
            digest.update("\n".join(path.removeprefix(root) for path in source.paths).encode())
            digest.update(source.labels.tobytes())
        return digest.hexdigest()[:16]

    def state_dict(self) -> dict[str, Any]:
        """The sampler's position; plain data for a checkpoint."""
        return {
            "seed": self.seed, "step": self.next_step, "batch_size": self.batch_size, "fingerprint": self.fingerprint()
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> int:
        """The step to ``iterate`` from. Raises ``ConfigError`` if the batches would not continue the saved ones."""
        remedy = {
            "seed": "use the run's seed", "batch_size": "use the run's batch size",
            "fingerprint": "the data sources have changed since: restore them, or start a new run with init_from",
        }  # fmt: skip
        now = self.state_dict()
        for key, advice in remedy.items():
            if state.get(key) != now[key]:
                raise ConfigError(f"cannot resume: the loader's {key} was {state.get(key)}, now {now[key]}; {advice}")
        self.next_step = int(state["step"])
        return self.next_step
