"""One pass over episodes: errors of rollouts at growing horizons, and what readouts of the true state need.

Shape legend: C channels, T frames of an episode, W windows, n tokens of a frame, D latent width, F features, S states,
N frames of all episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evals.world_models.opening import Recorded, Seer, Watched, watch
from evals.world_models.untrained import untrained_latents
from jepa.config import ConfigError
from jepa.data.batches import Failure
from jepa.models.latent_head import encode_frames
from jepa.models.world_model import WorldModel
from jepa.objectives.horizons import predict_horizons
from jepa.types import TokenGrid

FURTHEST = 64  # steps, of the horizons that nobody asked for
MOST_FEATURES = 8192  # of a frame: more tokens than that are averaged, as a readout's cost grows with the square
MOST_FRAMES = 4096  # that a readout is fitted on, evenly over all episodes
BASELINES = ("copy", "mean")  # the last frame that was given again, and the mean latents of the training episodes
Reader = Callable[[Tensor, Tensor], Tensor]
"""From frames ``[1, C, T, H, W]`` and latents ``[1, T, n, D]`` to features ``[T, F]``."""


def fold(latents: Tensor, grid: TokenGrid, most: int = MOST_FEATURES) -> Tensor:
    """Latents ``[..., n, D]`` as vectors ``[..., F]``; where that would be more than ``most`` numbers, of tokens
    averaged to the finest grid that is not."""
    rows, columns = folded_grid(grid, latents.shape[-1], most)
    if (rows, columns) == (grid.h, grid.w):
        return latents.flatten(-2)
    maps = latents.flatten(0, -3).transpose(1, 2).unflatten(2, (grid.h, grid.w))
    return F.adaptive_avg_pool2d(maps, (rows, columns)).flatten(1).unflatten(0, latents.shape[:-2])


def folded_grid(grid: TokenGrid, dim: int, most: int = MOST_FEATURES) -> tuple[int, int]:
    """Rows and columns that ``fold`` keeps."""
    side = max(grid.h, grid.w)
    while side > 1 and min(side, grid.h) * min(side, grid.w) * dim > most:
        side -= 1
    return min(side, grid.h), min(side, grid.w)


def readers(world: WorldModel, baselines: Sequence[str], seed: int) -> dict[str, Reader]:
    """What states are read from: the model's latents, those of the same architecture with fresh weights ("random"), and
    each frame averaged to at most 16 x 16 ("pixels")."""
    found: dict[str, Reader] = {"trained": lambda _, latents: fold(latents[0], world.grid)}
    if "random" in baselines:
        encoder, head = untrained_latents(world, seed)
        found["random"] = lambda frames, _: fold(encode_frames(encoder, frames, head)[0], world.grid)
    if "pixels" in baselines:
        found["pixels"] = lambda frames, _: shrunk(frames[0])
    return found


def shrunk(frames: Tensor, side: int = 16) -> Tensor:
    """Frames ``[C, T, H, W]`` averaged to at most ``side`` x ``side`` pixels, as vectors ``[T, F]``."""
    size = min(side, frames.shape[2]), min(side, frames.shape[3])
    return F.adaptive_avg_pool2d(frames.transpose(0, 1), size).flatten(1)


class Frames(NamedTuple):
    """All frames of some episodes: ``features`` ``[N, F]`` by reader, ``states`` ``[N, S]`` (None: the data has none),
    the number of each one's episode ``[N]``, and the ``mean`` latents ``[n, D]``."""

    features: dict[str, Tensor]
    states: Tensor | None
    episodes: Tensor
    mean: Tensor

    def thinned(self, most: int = MOST_FRAMES) -> Frames:
        """At most so many frames, evenly."""
        count = len(self.episodes)
        rows = torch.from_numpy(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))
        states = None if self.states is None else self.states[rows]
        features = {name: values[rows] for name, values in self.features.items()}
        return Frames(features, states, self.episodes[rows], self.mean)


class Windows(NamedTuple):
    """Rollouts from W windows of the test episodes. ``errors``: per horizon those of the model, of "copy" and "mean",
    ``[W]`` each. ``features``: per horizon those of latents that are "predicted", "encoded" (of the true frame) and
    "copied" (the last given one), ``[W, F]`` each. ``states``: per horizon the true ones ``[W, S]``. ``episodes``
    ``[W]``."""

    errors: dict[int, dict[str, Tensor]]
    features: dict[int, dict[str, Tensor]]
    states: dict[int, Tensor]
    episodes: Tensor


def choose_horizons(asked: Sequence[int], lengths: Mapping[str, int], context: int) -> list[int]:
    """``asked``, or powers of two up to what half of the episodes reach. Raises ``ConfigError`` naming the longest
    episode where it is too short for one."""
    if not lengths:
        raise ConfigError("no test episode can be read")
    longest = max(lengths, key=lambda name: lengths[name])
    least = context + max(asked, default=1)
    if lengths[longest] < least:
        raise ConfigError(
            f"horizon {max(asked, default=1)} after {context} given frames needs episodes of {least} frames at the "
            f"model's rate, but the longest, {longest}, has {lengths[longest]}: lower world_model.horizons"
        )
    if asked:
        return sorted(set(asked))
    room = max(1, min(FURTHEST, int(median(lengths.values())) - context))
    return [2**k for k in range(room.bit_length())]


def collect(recorded: Sequence[Recorded], seer: Seer, read: Mapping[str, Reader], failures: list[Failure]) -> Frames:
    """The frames of the episodes that readouts learn from. Raises ``ConfigError`` when none can be read."""
    gathered, count = _Gatherer(read), 0
    total = torch.zeros(seer.world.grid.size, seer.world.latent_dim, dtype=torch.float64)
    for episode in watch(recorded, seer, failures):
        latents = seer.encode(episode.frames)
        total, count = total + latents[0].cpu().double().sum(dim=0), count + latents.shape[1]
        gathered.add(episode, latents)
    if not count:
        raise ConfigError(f"none of {len(recorded)} training episodes can be read; the first: {failures[0].reason}")
    return gathered.frames((total / count).float())


def starts_of(room: int, windows: int) -> list[int]:
    """Where up to ``windows`` windows begin, evenly from 0 to ``room`` (negative: there is no room for one)."""
    if room < 0:
        return []
    return np.unique(np.linspace(0, room, min(windows, room + 1)).round().astype(np.int64)).tolist()


class _Gatherer:
    """Keeps features and states of whole episodes."""

    def __init__(self, read: Mapping[str, Reader]) -> None:
        self._read, self._episodes = read, list[Tensor]()
        self._features: dict[str, list[Tensor]] = {name: [] for name in read}
        self._states: list[Tensor | None] = []

    def add(self, episode: Watched, latents: Tensor) -> None:
        self._episodes.append(torch.full((latents.shape[1],), len(self._episodes)))
        self._states.append(None if episode.states is None else episode.states.cpu())
        with torch.no_grad():
            for name, read in self._read.items() if episode.states is not None else ():
                self._features[name].append(read(episode.frames, latents).float().cpu())

    @property
    def number(self) -> int:
        """Of the episode that was added last."""
        return len(self._episodes) - 1

    def frames(self, mean: Tensor) -> Frames:
        known = [part for part in self._states if part is not None]
        if len({part.shape[1] for part in known}) > 1 or len(known) < len(self._states):
            known = []  # the same state of every episode, or none at all
        features = {name: torch.cat(parts) for name, parts in self._features.items()} if known else {}
        return Frames(features, torch.cat(known) if known else None, torch.cat(self._episodes), mean)


def look_ahead(
    recorded: Sequence[Recorded], seer: Seer, read: Mapping[str, Reader], mean: Tensor, horizons: Sequence[int],
    windows: int, measure: str, batch_size: int, failures: list[Failure],
) -> tuple[Frames, Windows]:  # fmt: skip
    """The test episodes: all of their frames, and up to ``windows`` rollouts evenly over each one that is long enough
    for the longest of ``horizons``. Raises ``ConfigError`` when no episode is."""
    gathered, length, mean = _Gatherer(read), seer.context + max(horizons), mean.to(seer.run.device)
    waiting: list[tuple[Tensor, Tensor, Tensor | None]] = []
    parts, episodes = list[Windows](), list[int]()
    for episode in watch(recorded, seer, failures):
        latents = seer.encode(episode.frames)
        gathered.add(episode, latents)
        for start in starts_of(latents.shape[1] - length, windows):
            states = None if episode.states is None else episode.states[start : start + length]
            actions = episode.actions[start : start + length - 1]
            waiting.append((latents[0, start : start + length], actions, states))
            episodes.append(gathered.number)
        while len(waiting) >= batch_size:
            parts.append(_roll(waiting[:batch_size], seer, mean, horizons, measure))
            waiting = waiting[batch_size:]
    if waiting:
        parts.append(_roll(waiting, seer, mean, horizons, measure))
    if not parts:
        raise ConfigError(f"no test episode of {length} frames can be read; the first: {failures[0].reason}")
    return gathered.frames(mean), _joined(parts, torch.tensor(episodes))


@torch.no_grad()
def _roll(
    waiting: Sequence[tuple[Tensor, Tensor, Tensor | None]], seer: Seer, mean: Tensor, horizons: Sequence[int],
    measure: str,
) -> Windows:  # fmt: skip
    latents, actions = (torch.stack([window[k] for window in waiting]) for k in (0, 1))  # type: ignore[misc]
    known = [window[2] for window in waiting if window[2] is not None]
    states = torch.stack(known) if len(known) == len(waiting) else None
    world, context = seer.world, seer.context
    given = states if world.state_dim else None
    with seer.run.autocast():
        found = predict_horizons(world, latents, actions, given, context, horizons, mean)
    errors, features = {}, {}
    for h, at in found.items():
        sides = {"error": at.predicted, "copy": at.copy, "mean": at.mean}
        errors[h] = {name: distance(side.float(), at.truth, measure).cpu() for name, side in sides.items()}
        latent = {} if states is None else {"predicted": at.predicted, "encoded": at.truth, "copied": at.copy}
        features[h] = {name: fold(side.float(), world.grid).cpu() for name, side in latent.items()}
    true = {} if states is None else {h: states[:, context - 1 + h].cpu() for h in found}
    return Windows(errors, features, true, torch.empty(0))


def distance(one: Tensor, other: Tensor, measure: str) -> Tensor:
    """Mean absolute ("l1") or squared ("mse") difference of latents ``[W, n, D]``: ``[W]``."""
    apart = one - other
    return (apart.abs() if measure == "l1" else apart.square()).mean(dim=(1, 2))


def _joined(parts: Sequence[Windows], episodes: Tensor) -> Windows:
    first = parts[0]

    def join(field: str, h: int, name: str) -> Tensor:
        return torch.cat([getattr(part, field)[h][name] for part in parts])

    errors = {h: {name: join("errors", h, name) for name in named} for h, named in first.errors.items()}
    complete = all(part.states for part in parts)
    features = {
        h: {name: join("features", h, name) for name in named} for h, named in first.features.items() if complete
    }
    states = {h: torch.cat([part.states[h] for part in parts]) for h in first.states} if complete else {}
    return Windows(errors, features, states, episodes)
