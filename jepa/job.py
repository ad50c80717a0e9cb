"""One piece of encoding: a model, what it is to make of its inputs, and the rows that come of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from jepa.checkpoint import code_version
from jepa.config import to_dict
from jepa.distributed import Run
from jepa.features.features import Pool, attentive_pool
from jepa.feed import Cut, End, Feed, Origin, Task, choose_workers
from jepa.forward import Encoded, Forward, choose_batch_size, tubelet_size
from jepa.load import load
from jepa.models.base import ClipEncoder
from jepa.models.encoder import Encoder
from jepa.types import ClipConfig, Fit
from jepa.windows import Merge, Merger, WindowRule

_MOST_FILES = 10_000  # whose formats metadata tells


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeOptions:
    """What features are made, whatever they are made of; the words are those of ``encode``."""

    layers: tuple[int, ...] | None = None
    segments: int = 1
    overlap: float | None = None
    merge: Merge = "none"
    pool: Pool = "none"
    num_frames: int | None = None
    clip_fps: float | None = None
    crop_size: int | None = None
    fit: Fit | None = None
    normalised: bool = False

    def __post_init__(self) -> None:
        if self.segments < 1:
            raise ValueError(f"segments must be at least 1, not {self.segments}")
        for name, known in (("merge", get_args(Merge)), ("pool", get_args(Pool))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        if self.overlap is not None and self.segments != 1:
            raise ValueError(f"overlap covers the whole video: leave out segments {self.segments}")
        if self.merge != "none" and self.overlap is None:
            raise ValueError(f"merge {self.merge!r} joins windows that overlap: set overlap, for example 0.5")
        if self.merge != "none" and self.pool == "attentive":
            raise ValueError("attentive pooling makes one vector of a whole window: use merge 'none', or pool 'mean'")
        if self.overlap is not None:
            WindowRule(num_frames=1, tubelet=1, overlap=self.overlap)  # checks it

    def clip_of(self, model: ClipEncoder) -> ClipConfig:
        """The model's clip with the options laid over it."""
        changes: dict[str, Any] = {name: getattr(self, name) for name in ("num_frames", "crop_size", "fit")}
        changes = {name: value for name, value in changes.items() if value is not None}
        if self.clip_fps is not None:
            changes |= {"fps": self.clip_fps, "frame_step": None, "duration_s": None}
        if model.clip.short_side is not None and ("crop_size" in changes or changes.get("fit", "crop") != "crop"):
            scale = changes.get("crop_size", model.clip.crop_size) / model.clip.crop_size
            keep = changes.get("fit", model.clip.fit) == "crop"
            changes["short_side"] = round(model.clip.short_side * scale) if keep else None
        return dataclasses.replace(model.clip, **changes)


@dataclass(kw_only=True)
class Job:
    """A model, the clip that it gets, and where it runs. ``weights``: which of a checkpoint's encoders was loaded;
    None for a model that came loaded."""

    name: str
    weights: str | None
    model: ClipEncoder
    options: EncodeOptions
    clip: ClipConfig
    run: Run
    probe: nn.Module | None
    failed: list[str] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def prepare(
        cls, model: ClipEncoder | str | Path, options: EncodeOptions, run: Run, probe: nn.Module | None,
        weights: Literal["target_encoder", "encoder"] = "target_encoder",
    ) -> Job:  # fmt: skip
        """Load the model if it has to be, and check the options against it. Raises ``ValueError``."""
        if (options.pool == "attentive") != (probe is not None):
            raise ValueError("pool 'attentive' and a probe go together: give both, or neither")
        name = type(model).__name__ if isinstance(model, ClipEncoder) else str(model)
        encoder = model if isinstance(model, ClipEncoder) else load(model, weights)
        for layer in options.layers or ():
            encoder.layer_number(layer)
        if options.layers == ():
            raise ValueError("layers is empty; leave it out for the last block's output, or name at least one block")
        if probe is not None and isinstance(encoder, Encoder):  # before anything is begun that would have to be undone
            width = encoder.embed_dim * len(options.layers or (0,))
            attentive_pool(probe.cpu(), torch.zeros(1, 1, width))
        chosen = None if encoder is model else weights
        clip = options.clip_of(encoder)
        return cls(name=name, weights=chosen, model=encoder, options=options, clip=clip, run=run, probe=probe)

    @property
    def rule(self) -> WindowRule | None:
        """How videos are covered; None: by clips spread over them."""
        if self.options.overlap is None:
            return None
        return self.window_rule(self.options.overlap)

    def window_rule(self, overlap: float) -> WindowRule:
        return WindowRule(num_frames=self.clip.num_frames, tubelet=tubelet_size(self.model), overlap=overlap)

    @property
    def merging(self) -> bool:
        return self.options.merge != "none"

    def forward(self, may_split: bool = False) -> Forward:
        """The encoder, ready on its device; ``may_split``: batches that are too large for its memory."""
        options = self.options
        return Forward(
            self.model, self.run, self.clip, options.layers, options.pool, self.probe, self.merging, may_split
        )

    def feed(self, tasks: Sequence[Task], batch_size: int, workers: int | str) -> Feed:
        """The clips of the tasks, cut as the options say."""
        cut = Cut(
            clip=self.clip, tubelet=tubelet_size(self.model), segments=self.options.segments, rule=self.rule,
            normalised=self.options.normalised,
        )  # fmt: skip
        on_cpu = self.run.device.type == "cpu"
        count = choose_workers(workers, tasks, self.rule is not None, on_cpu, self.run.world_size)
        return Feed(tasks, cut, batch_size, count, pin=self.run.device.type == "cuda")

    def note(self, end: End, name: str) -> None:
        """Keep what a video's end says of it, for the metadata."""
        if end.reason:
            self.failed.append(end.reason)
        if end.about and len(self.files) < _MOST_FILES:
            self.files[name] = end.about

    def metadata(self) -> dict[str, Any]:
        """What was done, for whoever finds the features."""
        options, rule = self.options, self.rule
        window = None
        if rule is not None:
            window = {"num_frames": rule.num_frames, "stride_frames": rule.stride, "overlap": rule.overlap}
        return {
            "model": self.name, "weights": self.weights, "clip": to_dict(self.clip), "pool": options.pool,
            "layers": list(options.layers or ()), "segments": options.segments, "window": window,
            "overlap": options.overlap, "merge": options.merge, "precision": self.run.precision,
            "normalised_by_caller": options.normalised, "failed": self.failed, "files": self.files,
            "code_version": code_version(),
        }  # fmt: skip


class Row(NamedTuple):
    """One row of the result: of video number ``video``, in order of ``number``."""

    video: int
    number: int
    start_s: float
    end_s: float
    feature: Tensor


class MergeState(NamedTuple):
    """Where ``Rows`` stand in the middle of a video: its first second and a tubelet's length, and the ``Merger``."""

    base_s: float
    tubelet_s: float
    first: int
    counts: list[int]
    sums: Tensor


class Rows:
    """From encoded clips to rows: one per clip, or merged to one per tubelet. ``resume``: states of videos that were
    begun earlier."""

    def __init__(self, merge: Merge, resume: dict[int, MergeState] | None = None) -> None:
        self.merger = None if merge == "none" else Merger(merge)
        self.resume = resume or {}
        self.video = -1
        self.base_s, self.tubelet_s = 0.0, 0.0  # of the video that is being merged

    def state(self) -> MergeState | None:
        """To go on from here later; None between videos."""
        if self.merger is None or self.video < 0 or self.merger.sums is None:
            return None
        return MergeState(self.base_s, self.tubelet_s, self.merger.first, self.merger.counts, self.merger.sums)

    def add(self, encoded: Encoded) -> Iterator[Row]:
        """The rows that are complete now, in order."""
        for number, origin in enumerate(encoded.work.origins):
            assert encoded.rows is not None
            row = encoded.rows[number]
            if self.merger is None:
                yield Row(origin.video, origin.window, origin.start_s, origin.end_s, row)
                continue
            if origin.video != self.video:
                yield from self._finish()
                self._begin(origin, len(row))
            yield from self._rows(*self.merger.add(origin.first, row[: origin.valid]))
        for end in encoded.work.ends:
            if end.video in self.resume:  # it was begun earlier, and nothing more came
                self._restore(end.video)
            if end.video == self.video:
                yield from self._finish()

    def _restore(self, video: int) -> None:
        assert self.merger is not None
        self.video = video
        state = self.resume.pop(video)
        self.base_s, self.tubelet_s = state.base_s, state.tubelet_s
        self.merger.first, self.merger.counts, self.merger.sums = state.first, state.counts, state.sums

    def _begin(self, origin: Origin, tubelets: int) -> None:
        if origin.video in self.resume:
            self._restore(origin.video)
            return
        self.video = origin.video
        self.tubelet_s = (origin.end_s - origin.start_s) / tubelets
        self.base_s = origin.start_s - origin.first * self.tubelet_s

    def _finish(self) -> Iterator[Row]:
        if self.merger is not None and self.video >= 0:
            yield from self._rows(*self.merger.finish())
            self.video = -1

    def _rows(self, first: int, rows: Tensor) -> Iterator[Row]:
        for number, row in enumerate(rows, first):
            start_s = self.base_s + number * self.tubelet_s
            yield Row(self.video, number, start_s, start_s + self.tubelet_s, row)


def encode_tasks(
    job: Job, tasks: Sequence[Task], batch_size: int | str, workers: int | str, forward: Forward, rows: Rows
) -> Iterator[tuple[Encoded, list[Row]]]:
    """Every batch of the tasks, encoded, and the rows that are complete with it. Raises ``ValueError``."""
    feed = job.feed(tasks, choose_batch_size(batch_size, job.model, job.clip, job.run.device), workers)
    for encoded in forward(iter(feed)):
        yield encoded, list(rows.add(encoded))
