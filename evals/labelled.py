"""Labelled clips of an eval: which sources, and several labels of one manifest at once."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evals.datasets import SplitConfig, choose_splits, open_dataset
from evals.settings import EvalConfig
from evals.subjects import run_state
from jepa.config import ConfigError, from_dict
from jepa.data.loader import eval_options
from jepa.data.sources import ReadOptions, Source, SourceConfig, open_source
from jepa.types import ClipConfig


class Labelled(NamedTuple):
    """A source's clips, opened once, with every label that is probed: ids ``[N]`` (-1: none) and class names.
    ``missing``: videos that a data set's annotations name and the disk has not."""

    source: Source
    labels: dict[str, Tensor]
    class_names: dict[str, tuple[str, ...]]
    missing: tuple[str, ...] = ()


def choose_sources(
    config: EvalConfig, fits: bool = True
) -> tuple[SourceConfig | SplitConfig, SourceConfig | SplitConfig]:
    """The sources or the data set's splits asked for, or the sources that the run was trained and validated with.

    ``fits`` False: no training clips are needed, and the first is not to be used."""
    if config.dataset is not None:
        return choose_splits(config.dataset)
    if config.test is not None and not fits:
        return config.test, config.test
    if config.train is not None and config.test is not None:
        return config.train, config.test
    state = run_state(config.run)
    if state is None:
        raise ConfigError(f"give --train PATH and --test PATH: {config.run} comes without a run that names its data")
    data = state["config"].get("data", {})
    chosen = []
    for name, given, key in (("--train", config.train, "sources"), ("--test", config.test, "validation")):
        listed = data.get(key) or []
        if given is None and len(listed) != 1:
            raise ConfigError(f"give {name} PATH: the run was made with {len(listed)} data.{key}, not with one")
        chosen.append(given if given is not None else from_dict(SourceConfig, listed[0], f"data.{key}.0"))
    return chosen[0], chosen[1]


def open_labelled(
    config: SourceConfig | SplitConfig, columns: tuple[str, ...], clip: ClipConfig,
    known: dict[str, tuple[str, ...]] | None = None,
) -> Labelled:  # fmt: skip
    """Open a source once per label column; the clips are the same, so features are shared. Or a data set's split.

    ``known``: class names of the training source, which fix the ids; classes that are not among them come after them.
    Raises ``ConfigError`` when a label is missing.
    """
    options = eval_options(clip)
    if isinstance(config, SplitConfig):
        split = open_dataset(config, options, columns)
        for column, values in split.labels.items():
            if (values < 0).all():
                raise ConfigError(f"{config.dataset.root}: the split {config.split} has no labels for {column!r}")
        ids = {column: torch.from_numpy(values) for column, values in split.labels.items()}
        return Labelled(split.source, ids, split.class_names, split.missing)
    labels: dict[str, Tensor] = {}
    names: dict[str, tuple[str, ...]] = {}
    source: Source | None = None
    for column in columns or (config.label_column or "label",):
        chosen = replace(config, label_column=column) if columns else config
        found = _open_known(chosen, options, (known or {}).get(column, ()))
        if (found.labels < 0).all():
            raise ConfigError(f"{config.path} has no labels for {column!r}: a probe needs them")
        labels[column], names[column] = torch.from_numpy(np.asarray(found.labels)), found.class_names
        source = source or found
    assert source is not None
    return Labelled(source, labels, names)


def _open_known(config: SourceConfig, options: ReadOptions, known: tuple[str, ...]) -> Source:
    """Open a source with these class names, and further ones that it has."""
    try:
        return open_source(config, options, known)
    except ConfigError:
        loose = open_source(config, options)  # fails alike where the reason was another
        own = [loose.class_names[number] for number in sorted(set(loose.labels.tolist()) - {-1})]
        return open_source(config, options, (*known, *(name for name in own if name not in known)))
