"""Features that are not kept: clips are decoded, augmented and encoded anew whenever a probe asks for them.

So the published protocols train their probes, and so features are probed that no disk could hold.

Shapes: K clips, B of them at a time, R views, S segments, N tokens, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from evals.features.encoding import SEED_BITS, Progress, Views, encode_views
from evals.features.harness import FeatureSet
from evals.features.jobs import Split, layout_of, read_for
from evals.features.representations import Representation
from evals.features.rows import Rows
from evals.settings import EvalConfig
from jepa.config import ConfigError
from jepa.data.batches import collate, read_ahead
from jepa.data.mixture import SAMPLE, stream
from jepa.data.sampling import ShortVideoError
from jepa.data.sources import ClipRequest, RawClip, Source
from jepa.data.transforms import AugmentConfig, ClipTransform
from jepa.data.video import VideoError
from jepa.distributed import Run
from jepa.types import Batch, ClipConfig

Kind = Literal["vectors", "tokens"]
_KINDS: tuple[Kind, ...] = get_args(Kind)
DRAWS = 2**31  # seeds of an augmented view; more than any training takes


@dataclass(frozen=True, eq=False, kw_only=True)
class LiveRows(Rows):
    """Rows whose drawn views are encoded when they are asked for: a random time and, with ``augment``, a random crop.

    ``items`` int64: which item of ``source`` each stored clip is. Plain views (``gather`` without ``view``) come from
    ``blocks``, or, where these are on the device "meta" and so hold no values, are encoded as ``views`` says too.
    Several processes encode a part of each batch, and all of them get the whole: all must ask alike.
    """

    source: Source
    items: Tensor
    of: Representation
    kind: Kind
    views: Views
    augment: AugmentConfig
    run: Run
    batch_size: int
    workers: int

    @property
    def draws(self) -> int:
        """Seeds: every one is another view."""
        return DRAWS

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def stored(self) -> bool:
        """Whether the plain views are kept."""
        return self.blocks[0].device.type != "meta"

    def gather(self, rows: Tensor, view: Tensor | None = None) -> Tensor:
        """All plain views of clips ``rows`` ``[B, R, N, D]``, or of each the one drawn by ``view``, ``[B, N, D]``."""
        if view is not None:
            return next(self.stream([(rows, view)]))
        return super().gather(rows) if self.stored else next(self.pieces([rows]))

    def stream(self, plan: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """One view ``[B, N, D]`` of each clip, for every pair (rows, seeds)."""
        plan = list(plan)
        groups = [(self._own(rows), seeds[self._share(len(rows))].tolist()) for rows, seeds in plan]
        once = self.views._replace(count=1, segments=self.views.segments if self.views.joined else 1)
        read = functools.partial(_read_drawn, self.source, self.of.clip, self.views)
        transform = ClipTransform(self.of.clip, self.augment)
        for found in self._counted([rows for rows, _ in plan], self._decoded(groups, read)):
            yield self._whole(found, once, [transform])[:, 0]

    def pieces(self, groups: Iterable[Tensor]) -> Iterator[Tensor]:
        """All plain views ``[B, R, N, D]`` of every group of clips."""
        if self.stored:
            yield from super().pieces(groups)
            return
        groups = list(groups)
        listed: list[tuple[list[int], list[int]]] = [(self._own(rows), []) for rows in groups]
        read = functools.partial(_read_plain, self.source, self.of.clip, self.views.segments)
        for found in self._counted(groups, self._decoded(listed, read)):
            yield self._whole(found, self.views, self.views.transforms(self.of.clip))

    def _share(self, count: int) -> slice:
        """Which rows of a batch this process encodes."""
        rank, total = self.run.rank, self.run.world_size
        return slice(count * rank // total, count * (rank + 1) // total)

    def _own(self, rows: Tensor) -> list[int]:
        return self.items[self.index[rows.cpu()[self._share(len(rows))]]].tolist()

    def _decoded(
        self, groups: Sequence[tuple[list[int], list[int]]], read: functools.partial
    ) -> Iterator[Batch | None]:
        for found in read_ahead(groups, read, self.workers, ahead=2):
            yield from found

    def _counted(self, groups: Sequence[Tensor], batches: Iterator[Batch | None]) -> Iterator[Batch | None]:
        """The batches as they are; how far along they are is shown, unless there is one only."""
        clips = [len(rows) for rows in groups]
        shown = self.run.is_main and len(clips) > 1
        with Progress(f"encode anew for the probe of {self.of.name}", sum(clips), shown) as progress:
            for count, batch in zip(clips, batches, strict=True):
                yield batch
                progress.step(count)

    def _whole(self, batch: Batch | None, views: Views, transforms: Sequence[ClipTransform]) -> Tensor:
        """Encode this process's clips, and join those of all processes."""
        wanted = self.kind == "tokens"
        if batch is None:  # fewer clips than processes
            found = torch.empty(0, views.per_item, *self.shape[2:])
        else:
            encoded = encode_views(batch, views, transforms, [self.of], self.batch_size, wanted, self.run.device)
            vectors, tokens = encoded[self.of.name]
            found = (tokens if wanted else vectors)[..., self.columns]  # type: ignore[index]
        return self.run.gather_rows(found)


def _read_drawn(
    source: Source, clip: ClipConfig, views: Views, group: tuple[list[int], list[int]]
) -> Iterator[Batch | None]:
    """Clips of a random time, all segments of an item or, where they are not joined, one of them."""
    clips: list[RawClip] = []
    seeds: list[int] = []
    for item, seed in zip(*group, strict=True):
        rng = stream(seed, SAMPLE)
        chosen = range(views.segments) if views.joined else [int(rng.integers(views.segments))]
        clips += _load(source, item, clip, [ClipRequest(rng, (segment, views.segments)) for segment in chosen])
        seeds += [((seed << SEED_BITS) + segment) << SEED_BITS for segment in chosen]
    yield _collate(clips, group[0], seeds)


def _read_plain(
    source: Source, clip: ClipConfig, segments: int, group: tuple[list[int], list[int]]
) -> Iterator[Batch | None]:
    requests = [ClipRequest(None, (segment, segments)) for segment in range(segments)]
    clips = [found for item in group[0] for found in _load(source, item, clip, requests)]
    yield _collate(clips, group[0], [0] * len(clips))


def _collate(clips: list[RawClip], items: list[int], seeds: list[int]) -> Batch | None:
    each = len(clips) // max(1, len(items))
    return collate(clips, [item for item in items for _ in range(each)], seeds) if clips else None


def _load(source: Source, item: int, clip: ClipConfig, requests: Sequence[ClipRequest]) -> list[RawClip]:
    try:
        return source.load_clips(item, clip, requests)
    except (VideoError, ShortVideoError) as error:
        raise ConfigError(f"{source.paths[item]} could be decoded at first, and now cannot: {error}") from None


def live_features(
    features: Mapping[str, Mapping[str, FeatureSet]], splits: Mapping[str, Split],
    representations: Sequence[Representation], config: EvalConfig, run: Run,
) -> dict[str, dict[str, FeatureSet]]:  # fmt: skip
    """``features``, of which only vectors are kept, with drawn views for training, and tokens for attentive probes."""
    tokens = any(probe.reads_tokens for probe in config.probes)
    return {
        name: {of.name: live_set(features[name][of.name], split, of, config, run, tokens) for of in representations}
        for name, split in splits.items()
    }


def live_set(
    plain: FeatureSet, split: Split, of: Representation, config: EvalConfig, run: Run, tokens: bool
) -> FeatureSet:
    """One set of ``live_features``."""
    views, index = split.options.views, torch.arange(len(plain.items))
    layout = layout_of(len(index), views, of)
    blocks = {"vectors": plain.vectors.blocks, "tokens": (torch.empty(*layout[:4], device="meta"),)}
    rows = {
        kind: LiveRows(
            blocks=blocks[kind], index=index, source=read_for(split.source, of.clip), items=plain.items, of=of,
            kind=kind, views=views, augment=config.augment, run=run, batch_size=config.batch_size,
            workers=config.workers,
        )
        for kind in _KINDS[: 1 + tokens]
    }  # fmt: skip
    return plain._replace(vectors=rows["vectors"], tokens=rows.get("tokens"))
