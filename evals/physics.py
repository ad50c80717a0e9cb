"""Intuitive physics by surprise: whole videos watched by latent predictors and by predictors of pixels.

Windows slide over each video; of every window the first tubelets are seen and the rest is predicted, for several
context lengths. A video's surprise is the mean, or the largest, of its windows' errors.
Source: intuitive physics from prediction errors (arXiv 2502.11831).

Shape legend: n windows in a batch, K context lengths, T frames and t' tubelets of a window, W windows of a video.
"""

from __future__ import annotations

import csv
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from evals.features.representations import random_twin
from evals.shares import share_out
from evals.watching import Watching, watched_clip
from jepa.config import ConfigError, to_dict
from jepa.data.settings import eval_options
from jepa.data.sources import Source, SourceConfig
from jepa.data.transforms import ClipTransform
from jepa.data.video import VideoError
from jepa.distributed import Run
from jepa.feed import Cut, Feed, Task
from jepa.inputs import Video
from jepa.models.encoder import Encoder
from jepa.predictive import Predictive
from jepa.surprise import window_errors
from jepa.surprise_curve import KINDS, Floats, SurpriseCurve, Totals
from jepa.types import Batch, ClipConfig
from jepa.windows import WindowRule

log = logging.getLogger("jepa")


class Pair(NamedTuple):
    """Two videos that differ in one law: paths, the ``condition``, the ``scene``, which pairs that are not independent
    share, the second of the event (None: not known), and the ``fps`` of videos that are folders of pictures."""

    condition: str
    possible: str
    impossible: str
    scene: str
    event_s: float | None = None
    fps: float | None = None


def read_pairs(path: str | Path) -> list[Pair]:
    """The pairs of a CSV with the columns ``condition``, ``possible`` and ``impossible`` (paths, relative to it), and
    perhaps ``scene`` and ``event_s``; a folder stands for its ``pairs.csv``. Raises ``ConfigError``."""
    path = Path(path) / "pairs.csv" if Path(path).is_dir() else Path(path)
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as pairs of videos: {error}") from None
    pairs = []
    for number, row in enumerate(rows):
        missing = [name for name in ("condition", "possible", "impossible") if not row.get(name)]
        if missing:
            raise ConfigError(f"{path}, pair {number}: no {missing[0]!r}; needed: condition, possible, impossible")
        possible, impossible = (str(path.parent / row[name]) for name in ("possible", "impossible"))
        try:
            event = float(row["event_s"]) if row.get("event_s") else None
        except ValueError:
            raise ConfigError(f"{path}, pair {number}: event_s {row['event_s']!r} is no number of seconds") from None
        pairs.append(Pair(row["condition"], possible, impossible, row.get("scene") or f"pair {number}", event))
    if not pairs:
        raise ConfigError(f"{path} lists no pair")
    return pairs


class Watcher(Protocol):
    """Predictors that look at the same windows: their ``names``, the ``clip`` they want, the frames of a ``tubelet``,
    and the side of the ``patch`` that has to divide pictures."""

    names: tuple[str, ...]
    clip: ClipConfig
    tubelet: int
    patch: int

    def errors(self, clip: Tensor, contexts: Sequence[int]) -> Tensor:
        """Error per tubelet of windows ``[n, C, T, H, W]``: float ``[n, P, K, t']``, NaN in the context."""
        ...


class LatentWatcher:
    """A model's predictions; with ``copy`` the last seen latents, unchanged, as a predictor of their own beside it."""

    def __init__(self, name: str, parts: Predictive, run: Run, watching: Watching, copy: bool = False) -> None:
        self.names: tuple[str, ...] = (name, "latents stay") if copy else (name,)
        self.parts, self.run, self.watching = parts.to(run.device), run, watching
        config = parts.context_encoder.config
        self.clip, self.tubelet, self.patch = watched_clip(parts.clip, watching), config.tubelet_size, config.patch_size

    def errors(self, clip: Tensor, contexts: Sequence[int]) -> Tensor:
        with self.run.autocast():
            found = window_errors(self.parts, clip, contexts, self.watching.mask_token, self.watching.measure)
        return found[:, : len(self.names)]  # in the order of KINDS


class PixelWatcher:
    """Predictors without weights or features: the last seen frame stays; what changed between the last two seen frames
    goes on (linear extrapolation, within black and white); and, as a detector, the change from each frame to the next,
    which sees every frame."""

    names: tuple[str, ...] = ("pixels stay", "pixels go on", "pixel change")

    def __init__(self, like: Watcher) -> None:
        self.clip, self.tubelet, self.patch = like.clip, like.tubelet, like.patch
        clip = like.clip
        self.range = [
            torch.tensor([(value - mean) / std for mean, std in zip(clip.mean, clip.std, strict=True)])
            for value in (0.0, 1.0)
        ]

    @torch.inference_mode()
    def errors(self, clip: Tensor, contexts: Sequence[int]) -> Tensor:
        frames = clip.shape[2]
        black, white = (value.to(clip).view(-1, 1, 1, 1) for value in self.range)
        found = torch.full((len(clip), 3, len(contexts), frames // self.tubelet), float("nan"), device=clip.device)
        for row, seen in enumerate(contexts):
            first = seen * self.tubelet
            wanted, last = clip[:, :, first:], clip[:, :, first - 1 : first]
            slope = last - clip[:, :, max(first - 2, 0) : max(first - 1, 1)]
            later = torch.arange(1, frames - first + 1, device=clip.device, dtype=clip.dtype).view(-1, 1, 1)
            guesses = (last, (last + later * slope).clamp(black, white), clip[:, :, first - 1 : -1])
            for kind, guess in enumerate(guesses):
                by_frame = (wanted - guess).abs().mean(dim=(1, 3, 4))
                found[:, kind, row, seen:] = by_frame.unflatten(1, (-1, self.tubelet)).mean(dim=2)
        return found.cpu()


def untrained(parts: Predictive, seed: int) -> Predictive:
    """The same architecture with fresh weights: one encoder for both sides, and a fresh predictor."""
    encoder, known = random_twin(parts.target_encoder, seed), parts.predictor
    assert isinstance(encoder, Encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        predictor = type(known)(
            known.config, known.in_dim // known.config.levels, known.grid, len(known.mask_tokens),
            encoder.config.position, known.rope,
        )  # fmt: skip
    predictor.eval().requires_grad_(False)
    return Predictive(context_encoder=encoder, target_encoder=encoder, predictor=predictor)


class Watched(NamedTuple):
    """``curves[name][path]``: surprise over time of every video that could be read; ``failures``: path and reason."""

    curves: dict[str, dict[str, SurpriseCurve]]
    failures: dict[str, str]


def watch(
    pairs: Sequence[Pair], watchers: Sequence[Watcher], watching: Watching, run: Run, workers: int = 0
) -> Watched:
    """Every video of the pairs through every watcher; each is decoded once for all that want the same windows.

    Windows with the same pixels, as pairs have before the event, are looked at once: less work, and exact ties.
    A video that cannot be read to its end, or is too short for the shortest context, is a failure and has no curve.
    The processes of ``run`` share the videos, and each has all curves.
    """
    groups: dict[tuple[object, ...], list[Watcher]] = {}
    for watcher in watchers:
        groups.setdefault((watcher.clip, watcher.tubelet, watcher.patch), []).append(watcher)
    names = [name for watcher in watchers for name in watcher.names]

    def look(rates: dict[str, float | None]) -> Watched:
        watched = Watched({name: {} for name in names}, {})
        for group in groups.values() if rates else ():
            _watch_group(rates, group, watching, run, workers, watched)
        return watched

    parts = share_out(run, split_pairs(pairs, run.world_size), look)
    paths = dict.fromkeys(path for pair in pairs for path in (pair.possible, pair.impossible))
    failures = {path: reason for part in parts for path, reason in part.failures.items()}
    watched = Watched({name: {} for name in names}, {path: failures[path] for path in paths if path in failures})
    for name, curves in watched.curves.items():
        found = {path: curve for part in parts for path, curve in part.curves[name].items()}
        # what one watcher could not read counts for none: scores are of the same videos
        curves.update((path, found[path]) for path in paths if path in found and path not in failures)
    for reason in watched.failures.values():
        log.warning("counts as an error: %s", reason)
    return watched


def split_pairs(pairs: Sequence[Pair], parts: int) -> list[dict[str, float | None]]:
    """Paths (and rates) of all videos in so many parts. Videos that share a pair or a scene stay together: windows that
    they have in common must be looked at once, or their ties would be broken by rounding."""
    family: dict[object, object] = {}

    def head(member: object) -> object:
        while family.setdefault(member, member) != member:
            member = family[member]
        return member

    for pair in pairs:
        for other in (pair.impossible, (pair.condition, pair.scene)):
            family[head(other)] = head(pair.possible)
    places: dict[object, int] = {}
    shares: list[dict[str, float | None]] = [{} for _ in range(parts)]
    for pair in pairs:
        place = places.setdefault(head(pair.possible), len(places) % parts)
        shares[place] |= {pair.possible: pair.fps, pair.impossible: pair.fps}
    return shares


def _watch_group(
    rates: dict[str, float | None], watchers: Sequence[Watcher], watching: Watching, run: Run, workers: int,
    watched: Watched,
) -> None:  # fmt: skip
    clip, tubelet = watchers[0].clip, watchers[0].tubelet
    if clip.num_frames % tubelet:
        raise ConfigError(f"num_frames {clip.num_frames} must be a multiple of the tubelet of {tubelet} frames")
    tubelets = clip.num_frames // tubelet
    contexts = watching.contexts(tubelets)
    rule = WindowRule(
        num_frames=clip.num_frames, tubelet=tubelet, overlap=max(0.0, 1 - watching.stride_tubelets / tubelets)
    )
    videos = [video_of(path, clip, fps) for path, fps in rates.items()]
    tasks = [Task(number, video) for number, video in enumerate(videos)]
    cut = Cut(clip=clip, tubelet=tubelet, segments=1, rule=rule, normalised=False)
    transform = ClipTransform(clip, None, watchers[0].patch)
    totals = {name: [Totals(contexts) for _ in videos] for watcher in watchers for name in watcher.names}
    known: dict[bytes, list[Floats]] = {}  # errors by every watcher, of windows that were looked at before
    for work in Feed(tasks, cut, watching.batch_size, workers, pin=False):
        if work.clips is not None:
            assert isinstance(work.clips, Batch)
            keys = _keys(work.clips)
            fresh = {key: row for row, key in enumerate(keys) if key not in known}
            if fresh:
                ready = transform(_rows(work.clips, list(fresh.values())).to(run.device)).clip
                found = [_finite(watcher, watcher.errors(ready, contexts), contexts) for watcher in watchers]
                known |= {key: [errors[row] for errors in found] for row, key in enumerate(fresh)}
            for key, origin in zip(keys, work.origins, strict=True):
                for watcher, errors in zip(watchers, known[key], strict=True):
                    for name, own in zip(watcher.names, errors, strict=True):
                        # a curve has room for two trivial predictors; here each predictor has a curve of its own
                        totals[name][origin.video].add(origin, np.stack([own] * len(KINDS)))
        for end in work.ends:
            if end.reason:
                watched.failures[videos[end.video].name] = end.reason
    metadata = {"clip": to_dict(clip), "tubelet_frames": tubelet, "measure": watching.measure}
    for number, video in enumerate(videos):
        if video.name in watched.failures:
            continue
        try:
            for name in totals:
                watched.curves[name][video.name] = totals[name][number].curve(video.name, metadata)
        except VideoError as error:
            watched.failures[video.name] = str(error)


def _finite(watcher: Watcher, errors: Tensor, contexts: Sequence[int]) -> Floats:
    """Errors as float64. Raises ``ValueError`` unless they are numbers wherever something was predicted."""
    for row, seen in enumerate(contexts):
        if not errors[:, :, row, seen:].isfinite().all():
            raise ValueError(f"the surprise of {watcher.names[0]!r} is not finite: are its weights broken?")
    return errors.double().numpy()


def _keys(batch: Batch) -> list[bytes]:
    """A hash of every clip's pixels and of how many of them are not padding."""
    sizes = [[]] * len(batch.clip) if batch.size is None else batch.size.tolist()
    clips = batch.clip.contiguous().numpy()
    return [hashlib.blake2b(c.data, key=repr(size).encode()).digest() for c, size in zip(clips, sizes, strict=True)]


def _rows(batch: Batch, rows: list[int]) -> Batch:
    return Batch(clip=batch.clip[rows], size=None if batch.size is None else batch.size[rows])


def video_of(path: str, clip: ClipConfig, fps: float | None) -> Video:
    """A file, or a folder of pictures at ``fps``, as one video."""
    source = Source(
        config=SourceConfig(path=path, fps=fps), options=eval_options(clip, "pyav"), paths=[path],
        labels=np.full(1, -1, dtype=np.int64),
    )  # fmt: skip
    return Video(path, source)
