"""Mean, spread and bounds of the actions and states that training will see."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from jepa.config import ConfigError
from jepa.data.batches import Failure
from jepa.data.sampling import ShortVideoError
from jepa.data.video import VideoError
from jepa.types import ClipConfig, Statistics

if TYPE_CHECKING:
    from jepa.data.sources import Source
    from jepa.data.trajectories.base import Trajectories

log = logging.getLogger("jepa")
MOST = 4096  # episodes of a source that are looked at, spread evenly over it: more would hardly change the numbers


class Moments:
    """Count, mean and squared deviations of rows ``[N, W]`` that come in parts, in float64 (Chan, Golub and LeVeque
    1983), and their smallest and largest values."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean, self._squares = np.zeros(width), np.zeros(width)
        self.low, self.high = np.full(width, np.inf), np.full(width, -np.inf)

    def add(self, rows: NDArray[np.float32]) -> None:
        """Take in more rows."""
        if not len(rows):
            return
        new = rows.astype(np.float64)
        mean, total = new.mean(axis=0), self.count + len(new)
        change = mean - self.mean
        self._squares += ((new - mean) ** 2).sum(axis=0) + change**2 * (self.count * len(new) / total)
        self.mean = self.mean + change * (len(new) / total)
        self.count = total
        self.low, self.high = np.minimum(self.low, new.min(axis=0)), np.maximum(self.high, new.max(axis=0))

    def std(self, what: str) -> NDArray[np.float64]:
        """Standard deviations; 1 for columns that never change, which are named in the log."""
        found = np.sqrt(self._squares / max(1, self.count))
        still = found <= 1e-6 * np.maximum(1.0, np.abs(self.mean))
        for column in np.flatnonzero(still):
            log.warning(
                "%s: column %d is always %g; its standard deviation is set to 1", what, column, self.mean[column]
            )
        return np.where(still, 1.0, found)


def check_widths(sources: Sequence[Source]) -> tuple[int, int] | None:
    """Width of the actions and states of the sources with trajectories, None where there are none. Raises
    ``ConfigError`` for sources that differ, or whose states are known to be of other things."""
    known: tuple[int, int] | None = None
    first = ""
    named: Source | None = None
    for source in sources:
        if source.trajectories is None:
            continue
        found = source.trajectories.widths()
        if known is None:
            known, first = found, source.config.path
        for what, one, other in zip(("actions", "states"), known, found, strict=True):
            if one != other:
                raise ConfigError(
                    f"data source {source.config.path} has {what} of width {other}, but {first} of width {one}: a run "
                    f"takes {what} of one width (choose columns with trajectory.{what})"
                )
        named = _check_names(source, named)
    return known


def _check_names(source: Source, named: Source | None) -> Source | None:
    """The first source that names its states. Raises ``ConfigError`` where the source at hand names them otherwise."""
    assert source.trajectories is not None
    names = source.trajectories.state_names
    if named is None or not names:
        return named or (source if names else None)
    assert named.trajectories is not None
    if names != named.trajectories.state_names:
        raise ConfigError(
            f"data source {source.config.path} has states {', '.join(names)}, but {named.config.path} has "
            f"{', '.join(named.trajectories.state_names)}: a run takes states of one kind (name them alike in "
            "trajectories.json or meta/info.json, or choose columns with trajectory.states)"
        )
    return named


def measure(sources: Sequence[Source], clip: ClipConfig) -> tuple[Statistics, list[Failure]]:
    """Statistics of all intervals and instants of the sources' episodes at the clip's rate, and the episodes that
    cannot be used. Every step counts the same, so that a source weighs as much as it is long.

    Raises ``ConfigError`` for a source without trajectories or without a single usable episode.
    """
    for source in sources:
        if source.trajectories is None:
            raise ConfigError(
                f"data source {source.config.path} has no actions: if it holds recorded episodes, give it "
                "'trajectory: {}'"
            )
    widths = check_widths(sources)
    assert widths is not None
    actions, states = Moments(widths[0]), Moments(widths[1])
    failures: list[Failure] = []
    for source in sources:
        before = actions.count + states.count, len(failures)
        _add_source(source, clip, actions, states, failures)
        if (actions.count + states.count, len(failures)) == before:
            raise ConfigError(f"data source {source.config.path} holds no episode")
        if actions.count + states.count == before[0]:
            raise ConfigError(
                f"data source {source.config.path} has no episode that could be used, the first because: "
                f"{failures[before[1]].reason}"
            )
    low, high = _bounds([s.trajectories for s in sources if s.trajectories is not None], actions)
    numbers = (actions.mean, actions.std("actions"), low, high, states.mean, states.std("states"))
    return Statistics(*(torch.from_numpy(np.asarray(n, dtype=np.float32)) for n in numbers)), failures


def _add_source(source: Source, clip: ClipConfig, actions: Moments, states: Moments, failures: list[Failure]) -> None:
    assert source.trajectories is not None
    numbers = source.episodes()
    if len(numbers) > MOST:
        numbers = [numbers[k * len(numbers) // MOST] for k in range(MOST)]
    for number in numbers:
        name = source.trajectories.names[number]
        try:
            window = source.trajectories.window_of_all(number, clip)
            if len(window.instants) < clip.num_frames:
                raise ShortVideoError(
                    f"{name} has {len(window.instants)} frames at the clip's rate, the clip needs {clip.num_frames}"
                )
        except (VideoError, ShortVideoError) as error:
            failures.append(Failure(name, str(error), isinstance(error, ShortVideoError)))
            continue
        actions.add(window.actions)
        if window.states is not None:
            states.add(window.states)


def _bounds(trajectories: Sequence[Trajectories], actions: Moments) -> tuple[NDArray, NDArray]:
    """What the data sets state, where they all do and an interval's action is one of theirs; else what was seen."""
    stated: list[tuple[NDArray, NDArray]] = []
    for source in trajectories:
        if source.rules.action not in ("mean", "last") or source.action_low is None or source.action_high is None:
            # clips of one frame have no actions to see
            return (actions.low, actions.high) if actions.count else (actions.mean, actions.mean)
        stated.append((source.action_low, source.action_high))
        for bound in stated[-1]:
            if bound.shape != actions.mean.shape or not np.isfinite(bound).all():
                raise ConfigError(
                    f"data source {source.path} states bounds of actions {bound.tolist()}, but its actions have "
                    f"{len(actions.mean)} columns"
                )
    return np.min([low for low, _ in stated], axis=0), np.max([high for _, high in stated], axis=0)
