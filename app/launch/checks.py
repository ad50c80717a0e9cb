"""What can be found wrong with a training run before it waits in a queue: on the login node, without a device."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa.config import ConfigError, apply_overrides, differences, from_dict, load_yaml, to_dict

if TYPE_CHECKING:
    from app.launch.settings import LaunchConfig
    from jepa.data.sources import Source
    from jepa.train import TrainConfig

_LOOK_AT = 200  # files of a source


def resolve(path: str, overrides: Sequence[str]) -> TrainConfig:
    """The config of a file with its base below it and ``overrides`` over it. Raises ``ConfigError`` naming the file."""
    from jepa.train import TrainConfig

    data = apply_overrides(load_yaml(path), overrides)
    try:
        return from_dict(TrainConfig, data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def absolute(config: TrainConfig) -> TrainConfig:
    """The same run with paths that hold in every directory. One that was begun keeps the spelling it was begun with,
    as that is part of what it is. Raises ``ConfigError`` when its directory belongs to another config."""
    run_dir = os.path.abspath(config.run_dir)
    init_from = None if config.init_from is None else os.path.abspath(config.init_from)
    plain = dataclasses.replace(config, run_dir=run_dir, init_from=init_from)
    moved: TrainConfig = _absolute_sources(plain)
    kept = dataclasses.replace(config, run_dir=run_dir)
    changes = []
    for spelling in (moved, kept):
        changes.append(_changed(spelling))
        if not changes[-1]:
            return spelling
    raise ConfigError(
        f"run directory {run_dir} was made with another config ({'; '.join(min(changes, key=len))}); choose another "
        "run_dir, or remove that directory to start over"
    )


def _changed(config: TrainConfig) -> list[str]:
    """In what a run that has checkpoints differs from ``config``, keys that may differ left out."""
    from jepa.checkpoint import latest_checkpoint
    from jepa.train import FREE_KEYS, TrainConfig

    path = Path(config.run_dir) / "config.yaml"
    if latest_checkpoint(config.run_dir) is None or not path.exists():
        return []
    earlier = to_dict(from_dict(TrainConfig, load_yaml(path)))
    changed = differences(earlier, to_dict(config))
    return [line for line in changed if not any(line.startswith((f"{key}:", f"{key}.")) for key in FREE_KEYS)]


def _absolute_sources(part: Any) -> Any:
    """Every source below ``part`` with an absolute path."""
    from jepa.data.sources import SourceConfig

    if isinstance(part, SourceConfig):
        return dataclasses.replace(part, path=_absolute_path(part.path))
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = {f.name: _absolute_sources(getattr(part, f.name)) for f in dataclasses.fields(part) if f.init}
        return dataclasses.replace(part, **fields)
    return type(part)(map(_absolute_sources, part)) if isinstance(part, (list, tuple)) else part


def _absolute_path(path: str) -> str:
    """Addresses stay as they are: URLs, pipes, and what webdataset takes from a variable; ``::`` joins several."""
    from jepa.data.video import is_url

    if path.startswith("pipe:"):
        return path
    parts = path.split("::")
    return "::".join(p if is_url(p) or p.startswith(("pipe:", "${")) else os.path.abspath(p) for p in parts)


class Checker:
    """Checks runs one after another; what several of them share is looked at once."""

    def __init__(self, settings: LaunchConfig) -> None:
        self.settings = settings
        self._seen: set[str] = set()

    def check(self, config: TrainConfig) -> None:
        """Raise ``ValueError`` naming the key or path for whatever would end the run at its start."""
        loop, settings = config.train, self.settings
        share = settings.processes * loop.accumulate
        if loop.batch_size % share:
            raise ConfigError(
                f"train.batch_size {loop.batch_size} must be a multiple of nodes x processes per node x accumulate = "
                f"{settings.nodes} x {settings.tasks} x {loop.accumulate} = {share}"
            )
        if loop.device.startswith("cuda") and not settings.gpus_per_node:
            raise ConfigError(f"train.device is {loop.device}, but the job asks for no GPU: give --gpus-per-node")
        if loop.device == "cpu" and settings.gpus_per_node:
            raise ConfigError(f"train.device is cpu, but the job asks for {settings.gpus_per_node} GPUs per node")
        if self._is_new(config.encoder, config.clip, config.objective, config.masks, config.optim):
            _build_model(config)
        if self._is_new(config.data, config.clip, config.online):
            _open_data(config)
        if config.init_from is not None:
            from jepa.checkpoint import find_checkpoint

            find_checkpoint(config.init_from)

    def _is_new(self, *parts: Any) -> bool:
        key = json.dumps(to_dict(parts), default=str)
        known = key in self._seen
        self._seen.add(key)
        return not known


def _build_model(config: TrainConfig) -> None:
    """Build the model without memory for its weights, and what belongs to it."""
    import torch

    from jepa.masks import build_masks
    from jepa.objectives import build_objective
    from jepa.optim import build_optimizer

    with torch.device("meta"):
        objective = build_objective(config.objective, config.encoder, config.clip, len(config.masks))
    build_masks(config.masks, objective.encoder.grid)
    build_optimizer(objective, config.optim)


def _open_data(config: TrainConfig) -> None:
    """Open every source as training will, but for the memory of its cache."""
    from jepa.data.loader import TrainLoader
    from jepa.data.sources import open_source

    data = dataclasses.replace(config.data, cache_mb=0.0)
    loader = TrainLoader(data, config.clip, (), config.train.batch_size, config.seed)
    for source in loader.sources:
        _look(source, data.max_failed)
    for name in ("train", "test") if config.online is not None else ():
        given = getattr(config.online, name)
        if given is not None:
            open_source(given)


def _look(source: Source, max_failed: float) -> None:
    """Are the files there? A sample of them, as there may be millions."""
    from jepa.data.video import is_url

    if source.arrays is not None or not isinstance(source.paths, list):  # arrays and shards were opened already
        return
    paths = source.paths[:: max(1, len(source.paths) // _LOOK_AT)]
    missing = [path for path in paths if not is_url(path) and not os.path.exists(path)]
    if len(missing) > max_failed * len(paths):
        raise ConfigError(
            f"data source {source.config.path}: {len(missing)} of {len(paths)} files looked at do not exist, more than "
            f"the share {max_failed} that data.max_failed allows; the first: {missing[0]}"
        )
