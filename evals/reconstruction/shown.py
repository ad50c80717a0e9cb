"""Clips of the task ``reconstruction`` as the models see them, in memory, and the sources that they come from.

Shape legend: K clips, B of them at once, C channels, T frames, H/W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evals.datasets import SplitConfig
from evals.features.encoding import read_clips
from evals.features.jobs import read_for
from evals.labelled import choose_sources, open_labelled
from evals.pages.drawing import to_frames
from evals.settings import EvalConfig
from evals.split_checks import leaks
from evals.subjects import run_state
from jepa.config import ConfigError, from_dict
from jepa.data.loader import DataConfig, eval_options, open_data
from jepa.data.sources import Source, SourceConfig, open_source
from jepa.data.transforms import ClipTransform
from jepa.types import ClipConfig


@dataclass(frozen=True, eq=False)
class Shown:
    """Clips as they were cropped for a model: ``pixels`` uint8 ``[K, T, H, W, 3]``, of the ``items`` ``[K]`` of a
    source, with their ``paths``; ``failures``: why other items could not be read."""

    pixels: Tensor
    items: Tensor
    paths: list[str]
    clip: ClipConfig
    failures: dict[int, str]

    def __len__(self) -> int:
        return len(self.items)

    def values(self, rows: Tensor) -> Tensor:
        """The clips ``rows``, float32 ``[B, C, T, H, W]`` in 0..1."""
        return self.pixels[rows].movedim(-1, 1).float() / 255

    def normalised(self, rows: Tensor) -> Tensor:
        """The clips ``rows`` as an encoder takes them."""
        return normalise(self.values(rows), self.clip)


def normalise(values: Tensor, clip: ClipConfig) -> Tensor:
    """Clips ``[..., C, T, H, W]`` of values in 0..1 as an encoder of ``clip`` takes them."""
    mean, std = (values.new_tensor(numbers).view(-1, 1, 1, 1) for numbers in (clip.mean, clip.std))
    return (values - mean) / std


def open_sides(config: EvalConfig, clip: ClipConfig) -> dict[str, Source]:
    """The sources "train" and "test", with as many clips as ``config.reconstruction`` says, evenly over each: those
    named, or what the run was trained on and what it validates on or holds out. Raises ``ConfigError`` where there are
    none, and where a clip is on both sides."""
    own = config.reconstruction
    named = config.dataset is not None or (config.train is not None and config.test is not None)
    state = None if named else run_state(config.run)
    if state is None or not state["config"].get("data", {}).get("holdout"):
        train, test = (_open(chosen, clip) for chosen in choose_sources(config))
    else:
        train, test = (_only(found, config.run) for found in open_data(_settings(state), clip))
        train = train if config.train is None else _open(config.train, clip)
        test = test if config.test is None else _open(config.test, clip)
    both = leaks([train], [test])
    if both and "leak" not in config.allow:
        raise ConfigError(
            f"{len(both)} of the {len(test)} test clips are among the training clips too, for example {both[0]}: use "
            "other splits, or allow it (--allow leak)"
        )
    return {"train": _evenly(train, config.train_limit or own.train_clips), "test": _evenly(test, own.test_clips)}


def _settings(state: dict) -> DataConfig:
    return from_dict(DataConfig, state["config"]["data"], "data")


def _only(found: list[Source], run: str) -> Source:
    if len(found) != 1:
        raise ConfigError(f"give --train PATH and --test PATH: {run} was made with {len(found)} data sources, not one")
    return found[0]


def _open(chosen: SourceConfig | SplitConfig, clip: ClipConfig) -> Source:
    if isinstance(chosen, SplitConfig):
        return open_labelled(chosen, (), clip).source
    return open_source(chosen, eval_options(clip))


def _evenly(source: Source, most: int) -> Source:
    if len(source) < 2:
        raise ConfigError(f"{source.config.path} has 1 clip: at least 2 are needed")
    return source.subset(np.unique(np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(np.int64)))


def read(source: Source, clip: ClipConfig, batch_size: int, workers: int) -> Shown:
    """The middle clip of every item, cropped as ``clip`` says. Raises ``ConfigError`` when none can be read."""
    transform, order = ClipTransform(clip), list(range(len(source)))
    groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    pixels, items, failures = list[Tensor](), list[int](), dict[int, str]()
    for found in read_clips(read_for(source, clip), clip, 1, groups, workers):
        failures |= found.failures
        if found.batch is not None:
            pixels.append(torch.from_numpy(to_frames(transform(found.batch).clip, clip)))
            items += found.items
    if not items:
        raise ConfigError(f"{source.config.path}: no clip can be read; the first: {failures[min(failures)]}")
    if len({part.shape[1:] for part in pixels}) > 1:
        raise ConfigError(f"{source.config.path}: clips differ in shape; reconstruction needs fit 'crop' or 'stretch'")
    return Shown(torch.cat(pixels), torch.tensor(items), [source.paths[i] for i in items], clip, failures)
