"""Clips of a source through frozen models: read once, all views, several models at once.

Shapes: B clips, k items, S segments of an item, W views of a segment, R = W views of an item (S * W where segments are
not joined), N tokens, D and V widths.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from evals.features.representations import Encoded, Representation
from jepa.config import ConfigError
from jepa.data.batches import collate, read_ahead
from jepa.data.sampling import ShortVideoError
from jepa.data.sources import ClipRequest, RawClip, Source
from jepa.data.transforms import AugmentConfig, Boxes, ClipTransform
from jepa.data.video import VideoError
from jepa.logging import duration
from jepa.types import Batch, ClipConfig

log = logging.getLogger("jepa")

_LOG_SECONDS = 30.0
SEED_BITS = 12  # of an augmentation seed, for the number of a segment, and for that of a view


class Views(NamedTuple):
    """What is seen of every item. ``segments`` clips spread over it, ``joined`` to one or as views of their own; of
    each segment ``count`` views: with ``augment`` the plain one and random crops, else crops along the longer side."""

    segments: int = 1
    joined: bool = True
    count: int = 1
    augment: AugmentConfig | None = None

    @property
    def per_item(self) -> int:
        """R."""
        return self.count if self.joined else self.count * self.segments

    def transforms(self, clip: ClipConfig) -> list[ClipTransform]:
        """One for each view of a segment. Raises ``ConfigError`` where crops could not differ."""
        if self.count == 1:
            return [ClipTransform(clip)]
        if self.augment is not None:
            return [ClipTransform(clip), *(ClipTransform(clip, self.augment) for _ in range(1, self.count))]
        if clip.fit != "crop":
            raise ConfigError(f"{self.count} views need a crop, but clips are fitted by {clip.fit!r}: use 1 view")
        return [CropAlong(clip, (number, self.count - 1)) for number in range(self.count)]


class CropAlong(ClipTransform):
    """The crop at ``place`` = (k, K) of the way along the longer side: from one end (0) to the other (k = K).

    A picture that is square has the same crop everywhere, unless ``clip.short_side`` leaves room: then the rows count
    as the shorter side.
    """

    def __init__(self, clip: ClipConfig, place: tuple[int, int]) -> None:
        super().__init__(clip)
        self.place = place

    def boxes(self, batch: Batch) -> Boxes:
        """What is cut from ``batch``."""
        (part, parts), found, out = self.place, super().boxes(batch), self.out(batch)
        down, along = found.scaled_height - out[0], found.scaled_width - out[1]
        high = down > along
        row = torch.where(high, down * part // parts, found.row)
        return found._replace(row=row, column=torch.where(high, found.column, along * part // parts))


class Clips(NamedTuple):
    """Some consecutive items: ``batch`` holds all segments of those that could be read (``None``: of none), ``items``
    which these are, ``failures`` why the others could not."""

    batch: Batch | None
    items: list[int]
    failures: dict[int, str]


def read_clips(
    source: Source, clip: ClipConfig, segments: int, groups: Sequence[Sequence[int]], workers: int
) -> Iterator[Clips]:
    """The clips of every group of items, in order; the same ones whenever it is called."""
    read = functools.partial(_read, source, clip, segments)
    for found in read_ahead(groups, read, workers, ahead=2):
        yield from found


def _read(source: Source, clip: ClipConfig, segments: int, items: Sequence[int]) -> Iterator[Clips]:
    requests = [ClipRequest(None, (k, segments)) for k in range(segments)]
    clips: list[RawClip] = []
    usable: list[int] = []
    failures: dict[int, str] = {}
    for item in items:
        try:
            clips += source.load_clips(item, clip, requests)
            usable.append(item)
        except (VideoError, ShortVideoError) as error:
            failures[item] = " ".join(str(error).split())
    index = [item for item in usable for _ in range(segments)]
    seeds = [((item << SEED_BITS) + segment) << SEED_BITS for item in usable for segment in range(segments)]
    yield Clips(collate(clips, index, seeds) if clips else None, usable, failures)


def encode_views(
    batch: Batch, views: Views, transforms: Sequence[ClipTransform], representations: Sequence[Representation],
    batch_size: int, tokens: bool, device: torch.device,
) -> dict[str, tuple[Tensor, Tensor | None]]:  # fmt: skip
    """Vectors ``[k, R, 1, V]`` and, if asked for, tokens ``[k, R, N, D]`` on the CPU, by name of representation.

    All segments of an item stand together in ``batch``; view n of a clip is drawn by its ``augment_seed`` + n.
    """
    assert batch.augment_seed is not None
    found: dict[str, list[Encoded]] = {r.name: [] for r in representations}
    moved = batch.to(device)
    for number, transform in enumerate(transforms):
        ready = transform(replace(moved, augment_seed=batch.augment_seed.to(device) + number)).clip
        for representation in representations:
            parts = [_to_cpu(representation(part), tokens) for part in ready.split(batch_size)]
            found[representation.name].append(Encoded(*(torch.cat(side) for side in zip(*parts))))
    return {name: _arrange(encoded, views, tokens) for name, encoded in found.items()}


def _to_cpu(encoded: Encoded, tokens: bool) -> Encoded:
    return Encoded((encoded.tokens if tokens else encoded.tokens[:, :0]).cpu(), encoded.vector.cpu())


def _arrange(encoded: Sequence[Encoded], views: Views, tokens: bool) -> tuple[Tensor, Tensor | None]:
    """Clips of every view to items: joined, the mean vector of an item's segments and their tokens one after another;
    else views of their own, segment by segment."""
    vectors = torch.stack([one.vector for one in encoded], dim=1).unflatten(0, (-1, views.segments))  # [k, S, W, V]
    vectors = (vectors.mean(dim=1) if views.joined else vectors.flatten(1, 2))[:, :, None]
    if not tokens:
        return vectors, None
    found = torch.stack([one.tokens for one in encoded], dim=1).unflatten(0, (-1, views.segments))  # [k, S, W, N, D]
    return vectors, found.transpose(1, 2).flatten(2, 3) if views.joined else found.flatten(1, 2)


class Progress:
    """Clips so far, their speed and the time left: a bar on a terminal, else a line now and then."""

    def __init__(self, what: str, total: int, shown: bool) -> None:
        self.what, self.total, self.shown, self.done = what, total, shown, 0
        self.started = self.told = time.monotonic()
        look = "{desc}: {percentage:3.0f}%|{bar}| {n}/{total} clips [{elapsed}<{remaining}, {rate_fmt}]"
        terminal = shown and sys.stderr.isatty()
        self.bar = tqdm(total=total, desc=what, unit=" clips", bar_format=look, disable=not terminal)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def step(self, clips: int) -> None:
        """After so many more clips."""
        self.done += clips
        self.bar.update(clips)
        now = time.monotonic()
        if self.shown and self.bar.disable and now - self.told >= _LOG_SECONDS and self.done:
            self.told = now
            speed = self.done / (now - self.started)
            left = duration((self.total - self.done) / speed)
            log.info("%s: %d of %d clips, %.1f clips/s, %s left", self.what, self.done, self.total, speed, left)
