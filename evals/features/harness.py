"""The one way from clips to frozen features: read once, encoded once by every model, kept on disk for later probes.

``compute_splits`` says how much it will take before it encodes anything, and encodes only what the disk lacks. Several
processes share the work; what comes out does not depend on how many there were.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from evals.features.cache import DiskStore
from evals.features.encoding import Views
from evals.features.jobs import FeatureOptions, Job, Split, check_room, fill, make_job, writing
from evals.features.representations import Representation
from evals.features.rows import Rows
from evals.features.storage import source_hash
from evals.settings import EvalConfig
from jepa.config import ConfigError
from jepa.data.sources import Source
from jepa.distributed import Run
from jepa.types import TokenGrid

log = logging.getLogger("jepa")


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


def feature_splits(config: EvalConfig, sources: Mapping[str, Source], cache_dir: Path | None) -> dict[str, Split]:
    """The splits "train" and "test" of an eval (those of ``sources``), as its config says. ``cache_dir``: where
    features stay, if they do."""
    options = FeatureOptions(
        batch_size=config.batch_size, workers=config.workers, cache_gb=config.cache_gb,
        tokens=config.cache and any(probe.reads_tokens for probe in config.probes),
        cache_dir=cache_dir if config.cache_gb else None,
    )  # fmt: skip
    joined = config.join_segments or config.segments == 1
    kept = config.train_views if config.cache else 1  # without a cache every training step draws views of its own
    fit = Views(config.segments, joined, kept, config.augment if kept > 1 else None)
    report = Views(config.segments, joined, config.views)
    views = {"train": fit, "test": report}
    return {name: Split(source, replace(options, views=views[name])) for name, source in sources.items()}


def compute_features(
    representations: Sequence[Representation], source: Source, run: Run, options: FeatureOptions, split: str = "clips"
) -> dict[str, FeatureSet]:
    """``compute_splits`` of a single source."""
    return compute_splits(representations, {split: Split(source, options)}, run)[split]


def compute_splits(
    representations: Sequence[Representation], splits: Mapping[str, Split], run: Run
) -> dict[str, dict[str, FeatureSet]]:
    """Features of every split by every representation, by their names, in their order. Files are read once for each
    kind of clip, and every process has all features.

    Raises ``ConfigError`` where the features would take more room than there is, before anything is encoded, and when
    no clip of a source can be decoded; ``ValueError`` naming a file whose features are no numbers.
    """
    hashes = {name: source_hash(split.source) for name, split in splits.items()}
    jobs = [make_job(name, splits[name], r, hashes[name]) for name in splits for r in representations]

    def prepare() -> list[dict[int, tuple[str, ...]]]:
        for job in jobs:
            if isinstance(job.store, DiskStore):
                job.store.check()
            job.missing = job.store.missing()
        check_room(jobs, run.world_size)
        for job in jobs:
            if isinstance(job.store, DiskStore) and job.missing:
                with writing(job.store):
                    job.store.prepare()
        return [job.missing for job in jobs]

    for job, missing in zip(jobs, run.on_main(prepare), strict=True):
        job.missing = missing
    for name in splits:
        for clip in dict.fromkeys(representation.clip for representation in representations):
            fill([job for job in jobs if job.split == name and job.of.clip == clip and job.missing], clip, run)
    found: dict[str, dict[str, FeatureSet]] = {name: {} for name in splits}
    for job in jobs:
        found[job.split][job.of.name] = _read(job)
    if run.is_main:
        _warn(found)
    return found


def _read(job: Job) -> FeatureSet:
    """All features of a job. Raises ``ConfigError`` where no clip could be decoded."""
    blocks = job.store.read()
    items = [item for block in blocks for item in block.items]
    failures = {item: reason for block in blocks for item, reason in block.failures.items()}
    if not items:
        raise ConfigError(f"{job.source.config.path}: no clip can be decoded; the first: {failures[min(failures)]}")
    index, grid, views = torch.arange(len(items)), job.of.grid, job.options.views
    if views.joined:
        grid = grid._replace(t=grid.t * views.segments)
    vectors = Rows(tuple(part for block in blocks for part in block.vectors), index)
    tokens = None
    if job.options.tokens:
        tokens = Rows(tuple(part for block in blocks for part in block.tokens), index)
    return FeatureSet(
        torch.tensor(items), tokens, vectors, grid, job.of.levels, job.of.widths()[0], failures
    )  # fmt: skip


def _warn(found: Mapping[str, Mapping[str, FeatureSet]]) -> None:
    """Name every file that could not be decoded, once."""
    for split, features in found.items():
        for reason in dict.fromkeys(reason for one in features.values() for reason in one.failures.values()):
            log.warning("left out of the eval, %s: %s", split, reason)
