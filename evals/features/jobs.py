"""Encoding what is missing of a split's features, by all models at once and by any number of processes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from evals.features.cache import TOKENS, VECTORS, Block, DiskStore, Layout, MemoryStore, Writer
from evals.features.encoding import Clips, Progress, Views, encode_views, read_clips
from evals.features.representations import Representation
from evals.features.storage import check_disk, check_memory, free_disk, readable
from evals.shares import share_out
from jepa.config import ConfigError, to_dict
from jepa.data.loader import eval_options
from jepa.data.sources import Source
from jepa.data.transforms import ClipTransform
from jepa.distributed import Run
from jepa.types import ClipConfig

log = logging.getLogger("jepa")
PREPROCESSING = 1  # count on whenever the same files give other clips: kept features are then made anew


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureOptions:
    """What is seen of every item (``views``), how it is read and encoded, and where its features stay.

    ``tokens`` False keeps vectors only. ``cache_dir`` (None: nothing is kept on disk) never grows beyond ``cache_gb``.
    """

    batch_size: int = 16
    views: Views = field(default_factory=Views)
    tokens: bool = True
    workers: int = 0
    cache_dir: Path | None = None
    cache_gb: float = 20.0


class Split(NamedTuple):
    """A source and how its features are made."""

    source: Source
    options: FeatureOptions


@dataclass
class Job:
    """One representation's features of one split: where they are kept, and which blocks are still to be encoded."""

    split: str
    source: Source
    options: FeatureOptions
    of: Representation
    layout: Layout
    store: MemoryStore | DiskStore
    missing: dict[int, tuple[str, ...]]

    @property
    def parts(self) -> tuple[str, ...]:
        return (VECTORS, TOKENS) if self.options.tokens else (VECTORS,)

    @property
    def total_bytes(self) -> int:
        return self.layout.items * sum(self.layout.item_bytes(part) for part in self.parts)

    @property
    def missing_bytes(self) -> int:
        """Of what is still to be encoded."""
        return sum(
            len(self.layout.block_items(number)) * self.layout.item_bytes(part)
            for number, parts in self.missing.items()
            for part in parts
        )


def layout_of(items: int, views: Views, of: Representation) -> Layout:
    """What ``of`` makes of so many items."""
    widths, vector = of.widths()
    tokens = of.grid.size * (views.segments if views.joined else 1)
    return Layout(items, views.per_item, tokens, sum(widths), vector)


def read_for(source: Source, clip: ClipConfig) -> Source:
    """The source, read as a model with this clip wants it."""
    return replace(source, options=eval_options(clip, source.options.backend, source.options.short_video))


def make_job(name: str, split: Split, of: Representation, content: str) -> Job:
    """What is to be done for one split and representation; ``content``: hash of the source."""
    source, options = split
    views = options.views
    views.transforms(of.clip)  # raises
    layout = layout_of(len(source), views, of)
    store: MemoryStore | DiskStore = MemoryStore(layout, options.tokens)
    if options.cache_dir is not None:
        about = {
            "preprocessing": PREPROCESSING, "model": of.fingerprint, "clip": to_dict(of.clip), "grid": list(of.grid),
            "levels": of.levels,
            "source": source.config.path, "files": content, "segments": views.segments, "joined": views.joined,
            "views": views.count, "augment": None if views.augment is None else to_dict(views.augment),
        }  # fmt: skip
        store = DiskStore(options.cache_dir, about, layout, options.tokens)
    return Job(name, source, options, of, layout, store, {})


def check_room(jobs: Sequence[Job], processes: int) -> None:
    """Say how much every split will take, and where. Raises ``ConfigError`` where that is too much."""
    folder, limit = jobs[0].options.cache_dir, jobs[0].options.cache_gb
    for split in dict.fromkeys(job.split for job in jobs):
        own = [job for job in jobs if job.split == split]
        shapes = [f"{job.of.name} {readable(job.total_bytes)}" for job in own]
        total, missing = sum(job.total_bytes for job in own), sum(job.missing_bytes for job in own)
        room = "in memory" if folder is None else f"in {folder} ({readable(free_disk(folder))} free)"
        there = "all of it there already" if not missing else f"{readable(missing)} to encode"
        log.info("features of %d %s clips: %s %s, %s: %s", own[0].layout.items, split, readable(total), room, there,
                 ", ".join(shapes))  # fmt: skip
    total, missing = sum(job.total_bytes for job in jobs), sum(job.missing_bytes for job in jobs)
    if folder is None:
        check_memory(total, processes)
    elif missing:
        check_disk(folder, total, missing, limit)


@contextlib.contextmanager
def writing(store: MemoryStore | DiskStore) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or store.folder
        raise ConfigError(
            f"features cannot be written to {where}: {error.strerror or error}; make room, or keep them in memory "
            "with --cache-gb 0 (what is complete is kept)"
        ) from None


def fill(jobs: Sequence[Job], clip: ClipConfig, run: Run) -> None:
    """Encode the missing blocks of one split by all models that want the same clips."""
    if not jobs:
        return
    source, options, layout = jobs[0].source, jobs[0].options, jobs[0].layout
    source = read_for(source, clip)
    numbers = sorted(set().union(*(job.missing for job in jobs)))
    mine, size = numbers[run.rank :: run.world_size], max(1, options.batch_size // options.views.segments)
    groups = [layout.block_items(n)[start : start + size] for n in mine for start in range(0, layout.block, size)]
    reading = read_clips(source, clip, options.views.segments, [group for group in groups if group], options.workers)
    transforms = options.views.transforms(clip)
    what = f"encode {jobs[0].split} for {', '.join(job.of.name for job in jobs)}"
    with Progress(what, sum(len(group) for group in groups), run.is_main) as progress:

        def encode(number: int) -> dict[str, Block]:
            writers = {job.of.name: (job, Writer(job.store, number, job.missing[number]))
                       for job in jobs if number in job.missing}  # fmt: skip
            left = len(layout.block_items(number))
            while left:
                clips = next(reading)
                _encode(clips, [job for job, _ in writers.values()], [w for _, w in writers.values()], transforms, run)
                left -= len(clips.items) + len(clips.failures)
                progress.step(len(clips.items) + len(clips.failures))
            for job, writer in writers.values():
                with writing(job.store):
                    writer.close()
            return {name: writer.block for name, (job, writer) in writers.items() if isinstance(job.store, MemoryStore)}

        # a round at a time: an error of one process stops all of them at once
        for start in range(0, len(numbers), run.world_size):
            together = numbers[start : start + run.world_size]
            for number, blocks in zip(together, share_out(run, together, encode), strict=True):
                for job in jobs:
                    if job.of.name in blocks:
                        job.store.close(number, blocks[job.of.name])


def _encode(
    clips: Clips, jobs: Sequence[Job], writers: Sequence[Writer], transforms: Sequence[ClipTransform], run: Run
) -> None:
    """Encode some clips by every model. Raises ``ValueError`` naming the first file with features that are no numbers.
    """
    options, source = jobs[0].options, jobs[0].source
    encoded: dict[str, tuple[Tensor, Tensor | None]] = {}
    if clips.batch is not None:
        encoded = encode_views(
            clips.batch, options.views, transforms, [job.of for job in jobs], options.batch_size, options.tokens,
            run.device,
        )  # fmt: skip
    for job, writer in zip(jobs, writers, strict=True):
        vectors, tokens = encoded.get(job.of.name, (torch.empty(0), None))
        bad = ~vectors.flatten(1).isfinite().all(dim=1) if clips.items else torch.empty(0)
        if bad.any():
            path = source.paths[clips.items[int(bad.nonzero()[0])]]
            raise ValueError(
                f"the features of {job.of.name} for the {job.split} clip {path} hold NaN or infinity: the encoder has "
                "diverged"
            )
        with writing(job.store):
            writer.add(clips.items, clips.failures, vectors, tokens)


