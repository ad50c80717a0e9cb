"""What a run's ``data:`` section says, and the sources that it opens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from jepa.config import ConfigError
from jepa.data.cache import ClipCache
from jepa.data.mixture import HOLDOUT, stream
from jepa.data.sampling import ShortVideo
from jepa.data.sources import ReadOptions, Source, SourceConfig, open_source
from jepa.data.video import Backend
from jepa.types import ClipConfig


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
    side = clip.short_side or clip.crop_size
    return ReadOptions(backend=reader, short_side=side, short_video=short_video, interpolation=clip.interpolation)


def open_data(data: DataConfig, clip: ClipConfig) -> tuple[list[Source], list[Source]]:
    """Training sources and validation sources (given, or held out of the training ones). Raises ``ConfigError``."""
    side = data.decode_short_side or clip.short_side or round(1.15 * clip.crop_size)
    options = ReadOptions(backend=data.reader, short_side=side, short_video=data.short_video)
    train = _share_classes([open_source(config, options) for config in data.sources])
    if data.cache_mb:
        _add_cache(train, data.cache_mb)
    if data.validation:
        evaluated = eval_options(clip, data.reader, data.short_video)
        return train, [open_source(config, evaluated, train[0].class_names) for config in data.validation]
    return _hold_out(train, data.holdout, eval_options(clip, data.reader, data.short_video))


def _share_classes(sources: list[Source]) -> list[Source]:
    """Give sources that were numbered each for itself the same class ids."""
    union = sorted({name for source in sources for name in source.class_names}, key=lambda n: (len(n), n))
    for source in sources if any(s.class_names != tuple(union) for s in sources) and len(sources) > 1 else []:
        new = np.array([*(union.index(name) for name in source.class_names), -1], dtype=np.int64)  # -1 stays -1
        source.labels, source.class_names = new[source.labels], tuple(union)
    return sources


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
