"""Published data sets by name. A reader is a function from a folder and a split to a ``Listing``.

``DATASETS`` have classes; sets of possible and impossible videos are in ``evals.datasets.physics``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evals.datasets.base import Dataset, DatasetConfig, Listing
from evals.datasets.coin import read_coin, read_coin_steps
from evals.datasets.diving48 import read_diving48
from evals.datasets.epic100 import read_epic100
from evals.datasets.imagenet import read_imagenet
from evals.datasets.jester import read_jester
from evals.datasets.kinetics import read_kinetics
from evals.datasets.ssv2 import read_ssv2
from jepa.config import ConfigError, suggest
from jepa.data.sources import ReadOptions, Source, SourceConfig

__all__ = ["DATASETS", "DatasetConfig", "DatasetSplit", "SplitConfig", "choose_splits", "open_dataset"]
log = logging.getLogger("jepa")
_SHOWN = 5  # so many missing videos are named

DATASETS: dict[str, Dataset] = {
    "imagenet": Dataset(read_imagenet, ("train", "val")),
    "kinetics": Dataset(read_kinetics, ("train", "val", "test")),
    "ssv2": Dataset(read_ssv2, ("train", "validation")),
    "diving48": Dataset(read_diving48, ("train", "test")),
    "jester": Dataset(read_jester, ("train", "validation")),
    "epic100": Dataset(read_epic100, ("train", "validation")),
    "coin": Dataset(read_coin, ("training", "testing")),
    "coin_steps": Dataset(read_coin_steps, ("training", "testing")),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitConfig:
    """One ``split`` of a ``dataset``."""

    dataset: DatasetConfig
    split: str


class DatasetSplit(NamedTuple):
    """``source``: the split's clips (its own labels are the first column). ``labels``: ids ``[N]`` by column, -1 where
    there is none. ``class_names`` by column. ``missing``: videos of the annotations that are not on the disk."""

    source: Source
    labels: dict[str, NDArray[np.int64]]
    class_names: dict[str, tuple[str, ...]]
    missing: tuple[str, ...]


def choose_splits(config: DatasetConfig) -> tuple[SplitConfig, SplitConfig]:
    """The split to fit on and the one to report. Raises ``ConfigError`` for unknown data sets and splits."""
    dataset = _known(config)
    fit, report = config.splits or dataset.splits[:2]
    for split in (fit, report):
        _check_split(config.name, split)
    return SplitConfig(dataset=config, split=fit), SplitConfig(dataset=config, split=report)


def open_dataset(
    config: SplitConfig, options: ReadOptions | None = None, columns: tuple[str, ...] = ()
) -> DatasetSplit:
    """List a split. ``columns``: which labels (default: all that the data set has).

    Raises ``ConfigError`` naming file, key or video: unknown data set, split or column, a missing folder or annotation
    file, labels outside the vocabulary, an empty split, more missing videos than ``max_missing`` allows.
    """
    asked, root = config.dataset, Path(config.dataset.root)
    dataset = _known(asked)
    _check_split(asked.name, config.split)
    if not root.is_dir():
        raise ConfigError(f"data set {asked.name}: {root} is not a folder")
    if asked.anticipation_s is not None and dataset.read is not read_epic100:
        raise ConfigError(f"anticipation_s is for epic100 only, not for {asked.name}")
    listing = dataset.read(root, config.split, asked)
    if not listing.names:
        raise ConfigError(f"data set {asked.name} in {root}: the split {config.split!r} has no entries")
    for column in columns:
        if column not in listing.labels:
            raise ConfigError(f"data set {asked.name} has no labels {column!r}{suggest(column, listing.labels)}")
    missing = _missing(listing, config)
    items = [i for i, path in enumerate(listing.paths) if path]
    labels = {
        name: np.array([listing.labels[name][i] for i in items], dtype=np.int64) for name in columns or listing.labels
    }
    names = {name: listing.class_names[name] for name in labels}
    first = next(iter(labels))
    source = Source(
        config=SourceConfig(path=str(root), fps=listing.fps, span=listing.span), options=options or ReadOptions(),
        paths=[listing.paths[i] for i in items], labels=labels[first], class_names=names[first],
        spans=None if listing.spans is None else np.array([listing.spans[i] for i in items], dtype=np.float64),
    )  # fmt: skip
    return DatasetSplit(source, labels, names, missing)


def _known(config: DatasetConfig) -> Dataset:
    if config.name not in DATASETS:
        raise ConfigError(f"unknown data set {config.name!r}{suggest(config.name, DATASETS)}")
    return DATASETS[config.name]


def _check_split(name: str, split: str) -> None:
    known = DATASETS[name].splits
    if split not in known:
        raise ConfigError(f"data set {name} has no split {split!r} with labels{suggest(split, known)}")


def _missing(listing: Listing, config: SplitConfig) -> tuple[str, ...]:
    """Videos without a file; counted as videos, however many items they hold."""
    missing = tuple(dict.fromkeys(n for n, path in zip(listing.names, listing.paths, strict=True) if not path))
    if not missing:
        return missing
    asked, total = config.dataset, len(set(listing.names))
    shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
    what = f"data set {asked.name} in {asked.root}, split {config.split}: {len(missing)} of {total} videos are missing"
    if len(missing) == total:
        raise ConfigError(f"{what}: {shown}; docs/datasets.md shows where they are looked for")
    if len(missing) > asked.max_missing * total:
        raise ConfigError(f"{what}, more than the share max_missing {asked.max_missing:g} allows: {shown}")
    log.warning("%s and left out: %s", what, shown)
    return missing
