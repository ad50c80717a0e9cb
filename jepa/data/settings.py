"""What a run's ``data:`` section says, and the sources that it opens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from jepa.config import ConfigError
from jepa.data.cache import ClipCache
from jepa.data.mixture import HOLDOUT, stream
from jepa.data.sampling import ShortVideo
from jepa.data.sources import ReadOptions, Source, SourceConfig, open_source
from jepa.data.trajectories.statistics import check_widths
from jepa.data.video import Backend
from jepa.types import ClipConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Sources and how they are read.

    ``validation`` sources, or else ``holdout`` videos of ``sources`` that training then never sees, feed the monitor.
    ``limit``: train on only so many of the other videos (None: all); those of a smaller limit are among those of a
    larger one, whatever the run's seed.
    ``clips_per_video`` consecutive clips of a batch come from one video, spread over it. ``short_video`` says what
    happens to a video shorter than the clip: ``hold`` its last frame, ``loop`` it, or ``skip`` it. Files are decoded
    with their shorter side at most ``decode_short_side`` pixels (None: ``clip.short_side``, else 1.15 * crop_size, so
    that random crops lose little detail). ``reader``: decord, torchcodec, pyav, or auto. ``workers`` processes
    (0: in the training process) prepare ``prefetch`` batches each. ``cache_mb`` MiB of memory keep decoded videos,
    once for all workers of a rank. Training fails when more than the share ``max_failed`` of the files cannot be
    decoded, or of the shards are damaged. ``lanes``: the rows of a batch are cut into so many equal parts, and each
    goes through a part of its own of every source; with one for each machine (or process), each fetches only its own
    part of the shards. Batches depend on it, but not on the number of processes. ``shard_cache_gb``: room on the disk
    for fetched shards (``$JEPA_CACHE/shards``), for all processes of a machine.
    """

    sources: list[SourceConfig]
    validation: list[SourceConfig] = field(default_factory=list)
    holdout: int = 0
    limit: int | None = None
    clips_per_video: int = 1
    short_video: ShortVideo = "hold"
    decode_short_side: int | None = None
    reader: Backend = "auto"
    workers: int = 2
    prefetch: int = 2
    cache_mb: float = 0.0
    max_failed: float = 0.05
    lanes: int = 1
    shard_cache_gb: float = 50.0

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources must name at least one folder, CSV or array of clips")
        for name, least in (
            ("holdout", 0), ("clips_per_video", 1), ("workers", 0), ("prefetch", 1), ("cache_mb", 0), ("lanes", 1),
            ("shard_cache_gb", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1 video, not {self.limit}: leave it out for all")
        if not 0 <= self.max_failed <= 1:
            raise ValueError(f"max_failed must lie between 0 and 1, not {self.max_failed}")
        if self.decode_short_side is not None and self.decode_short_side < 1:
            raise ValueError(f"decode_short_side must be at least 1, not {self.decode_short_side}")


def eval_options(clip: ClipConfig, reader: Backend = "auto", short_video: ShortVideo = "hold") -> ReadOptions:
    """Decode straight to the size that the centre crop is cut from."""
    side = clip.short_side or clip.crop_size
    return ReadOptions(backend=reader, short_side=side, short_video=short_video, interpolation=clip.interpolation)


def open_data(data: DataConfig, clip: ClipConfig) -> tuple[list[Source], list[Source]]:
    """Training sources and validation sources (given, or held out of the training ones). Raises ``ConfigError``."""
    side = data.decode_short_side or clip.short_side or round(1.15 * clip.crop_size)
    options = ReadOptions(
        backend=data.reader, short_side=side, short_video=data.short_video, shard_cache_gb=data.shard_cache_gb
    )
    train = share_classes([open_source(config, options) for config in data.sources])
    check_widths(train)
    if data.cache_mb:
        _add_cache(train, data.cache_mb)
    evaluated = eval_options(clip, data.reader, data.short_video)
    if data.validation:
        evaluated = replace(evaluated, shard_cache_gb=data.shard_cache_gb)
        validation = [open_source(config, evaluated, train[0].class_names) for config in data.validation]
        check_widths([*train, *validation])
        return _split(train, 0, data.limit, evaluated)[0], validation
    return _split(train, data.holdout, data.limit, evaluated)


def share_classes(sources: list[Source]) -> list[Source]:
    """Give sources that were numbered each for itself the same class ids."""
    union = sorted({name for source in sources for name in source.class_names}, key=lambda n: (len(n), n))
    for source in sources if any(s.class_names != tuple(union) for s in sources) and len(sources) > 1 else []:
        new = np.array([*(union.index(name) for name in source.class_names), -1], dtype=np.int64)  # -1 stays -1
        source.labels, source.class_names = new[source.labels], tuple(union)
    return sources


def _add_cache(sources: list[Source], megabytes: float) -> None:
    first, tables = 0, []
    for source in sources:
        tables.append(source.file_ids() + first)
        first = int(tables[-1].max()) + 1
    cache = ClipCache(first, megabytes)
    for source, slots in zip(sources, tables, strict=True):
        source.options, source.slots = replace(source.options, cache=cache), slots


def _split(
    sources: list[Source], holdout: int, limit: int | None, options: ReadOptions
) -> tuple[list[Source], list[Source]]:
    """Take ``holdout`` videos out of the sources, in proportion to their sizes, and ``limit`` others to train on (None:
    all others); every item of a video goes along."""
    if not holdout and limit is None:
        return sources, []
    tables = [source.file_ids() for source in sources]
    videos = sum(int(table.max()) + 1 for table in tables)
    if holdout >= videos:
        raise ConfigError(f"holdout {holdout} leaves nothing to train on: the sources have {videos} videos")
    if limit is not None and limit > videos - holdout:
        raise ConfigError(f"limit {limit} is more than the {videos - holdout} videos that there are to train on")
    order = stream(0, HOLDOUT).permutation(videos)  # not the run's seed: fixed sets
    out, into = np.zeros((2, videos), dtype=bool)
    out[order[:holdout]] = True
    into[order[holdout:][:limit]] = True
    train, held, first = [], [], 0
    for source, table in zip(sources, tables, strict=True):
        taken, used = out[first + table], into[first + table]
        first += int(table.max()) + 1
        if not used.any():
            name, value = ("holdout", holdout) if limit is None else ("limit", limit)
            how = "lower it or set validation" if limit is None else "raise it or remove the source"
            raise ConfigError(f"{name} {value} leaves nothing of {source.config.path}: {how}")
        train.append(source.subset(np.flatnonzero(used)))
        if taken.any():
            held.append(replace(source.subset(np.flatnonzero(taken)), options=options, slots=None))
    return train, held
