"""The collapse monitor at work: a fixed held-out batch, looked at every so many steps, with what it saw so far."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jepa.data.loader import eval_batches
from jepa.data.sources import Source
from jepa.data.transforms import ClipTransform
from jepa.data.video import VideoError
from jepa.logging import RunLog, logger, read_metrics
from jepa.masks import build_masks
from jepa.monitor import CollapseMonitor, pictures
from jepa.objectives import PixelsObjective
from jepa.session import Session
from jepa.types import Batch

_PREFIX = "monitor/"


class Watch:
    """Measures ``session.objective`` on held-out clips and logs numbers, warnings and pictures.

    Rank 0 does; where the model is cut over processes, all of them compute the same measurements, and rank 0 logs them.
    The clips are taken evenly over the validation videos, cropped in the middle, with masks drawn once from the run's
    seed. Without validation or held-out videos it looks at training videos, and says so.
    """

    def __init__(self, session: Session, log: RunLog) -> None:
        self.session, self.log, self.summary = session, log, ""
        self.takes_part = session.run.is_main or session.sharded
        if not self.takes_part:
            return
        config = session.config
        self.monitor = CollapseMonitor(config.monitor)
        self.batch = session.run.on_main(self._open) if session.sharded else self._open()
        self.history = [
            {name.removeprefix(_PREFIX): float(value) for name, value in record.items() if name.startswith(_PREFIX)}
            for record in read_metrics(config.run_dir)
            if f"{_PREFIX}pooled_std" in record
        ]

    def _open(self) -> Batch:
        sources = self.session.loader.validation
        if not sources:
            logger.info("no data.validation and no data.holdout: the monitor looks at training videos")
            sources = self.session.loader.sources
        return held_out_batch(sources, self.session, self.session.config.monitor.clips)

    def due(self, step: int, trained_s: float = 0.0) -> bool:
        """Whether to look after ``step``: every ``monitor.every`` steps, before the first and after the last one."""
        config = self.session.config
        return self.takes_part and (step % config.monitor.every == 0 or step == config.train.steps)

    def look(self, step: int) -> None:
        """Measure, log, warn, draw."""
        session, config = self.session, self.session.config
        began = time.perf_counter()
        batch = ClipTransform(config.clip)(self.batch.to(session.run.device))
        with session.run.autocast():
            values = {name: float(v) for name, v in self.monitor.measure(session.objective, batch).items()}
            if step % config.monitor.pictures_every == 0 or step == config.train.steps:
                self.log.images(step, pictures(session.objective, batch, config.clip))
        self.history.append(values)
        shown = ("rankme", "pooled_std", "cosine", "skill", "knn")
        self.summary = "  ".join(f"{name} {values[name]:.3g}" for name in shown if name in values)
        record = {f"{_PREFIX}{name}": value for name, value in values.items()}
        self.log.metrics(step, {**record, "time/monitor_s": time.perf_counter() - began})
        if not session.run.is_main:
            return
        for warning in self.monitor.warnings(self.history, isinstance(session.objective, PixelsObjective)):
            logger.warning("step %d: %s", step, warning)


def held_out_batch(sources: Sequence[Source], session: Session, clips: int) -> Batch:
    """Up to ``clips`` clips, evenly over the videos of all ``sources``, as uint8 on the CPU, with masks."""
    total = sum(len(source) for source in sources)
    chosen = np.unique(np.linspace(0, total - 1, min(clips, total)).round().astype(np.int64))
    failures: list = []
    batch = next(eval_batches(take(sources, chosen), session.config.clip, clips, failures=failures), None)
    if batch is None:
        raise VideoError(f"none of the monitor's {len(chosen)} videos can be read; the first: {failures[0].reason}")
    rng = np.random.default_rng(session.config.seed)
    families = build_masks(session.config.masks, session.objective.encoder.grid)
    batch.masks = [family.draw(rng, len(batch.clip)) for family in families]
    return batch


def take(sources: Sequence[Source], items: NDArray[np.int64]) -> list[Source]:
    """The sources with only these ``items``, sorted numbers counted over all sources; none that would be empty."""
    starts = np.cumsum([0, *(len(source) for source in sources)])
    parts = [
        source.subset(items[(items >= first) & (items < first + len(source))] - first)
        for source, first in zip(sources, starts[:-1], strict=True)
    ]
    return [part for part in parts if len(part)]
