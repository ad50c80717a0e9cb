"""Online probes: the probes of ``jepa eval``, on the target encoder of a run that is still training.

The same clips every time, the heads chosen on held-out training clips, the accuracy on other clips. Rank 0 probes;
other processes wait for it in their next step. Where the model is cut over processes, all of them encode the clips that
rank 0 reads. Training does not notice: the same numbers come out with and without.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from evals import metrics
from evals.online_clips import Clips, Side, open_sides
from evals.probes import ProbeConfig, fit_probe
from evals.probes.preprocess import pool_cells
from jepa.checkpoint import random_state, set_random_state
from jepa.config import ConfigError
from jepa.data.transforms import ClipTransform
from jepa.logging import RunLog, read_metrics, trained_seconds
from jepa.observer import OnlineConfig, OnlineProbe
from jepa.session import Session
from jepa.types import Batch, TokenGrid

log = logging.getLogger("jepa")
DEVICE_BYTES = 512 * 2**20  # of features on the training's own device; more than that are moved batch by batch
# (learning rates, weight decays): a look shows a trend, so it tries fewer heads than an eval does
GRIDS = {"linear": ((3e-3, 1e-2, 3e-2), (0.01, 0.1, 1.0)), "attentive": ((1e-3, 3e-3), (0.01,))}


@dataclass(slots=True, kw_only=True)
class Budget:
    """Probing against training, both in seconds over the whole run. ``expected_s``: what the next look will take (None:
    not known yet)."""

    max_share: float
    spent_s: float = 0.0
    expected_s: float | None = None

    def fits(self, trained_s: float) -> bool:
        """Whether one more look stays within the share. The first one always does: its cost is not known before."""
        return self.expected_s is None or self.spent_s + self.expected_s <= self.max_share * trained_s


class Seen(NamedTuple):
    """What the encoder makes of one side: ``items`` int64 ``[K]``, ``vectors`` ``[K, D]`` (means of tokens), pooled
    ``tokens`` ``[K, N, D]`` (None: no probe wants them); float32 on the CPU."""

    items: Tensor
    vectors: Tensor
    tokens: Tensor | None


class OnlineProbes:
    """``jepa.observer.Observer`` that fits ``config.online.probes``. Metrics: ``online/LABEL/PROBE`` and
    ``online/LABEL/chance`` (always the commonest training class), both shares of the test clips, unreadable ones being
    errors; ``time/online_s`` of this look, ``time/online_share`` of the training time so far.

    Raises ``ConfigError`` naming the key, on every process, when the clips or their labels cannot be probed.
    """

    def __init__(self, session: Session, run_log: RunLog, clock: Callable[[], float] = time.perf_counter) -> None:
        assert session.config.online is not None
        self.session, self.log, self.clock, self.summary = session, run_log, clock, ""
        self.online = session.config.online
        self.last = session.run.on_main(self._open)

    def _open(self) -> int:
        """Choose the clips; the step of the last look of an earlier start, or -1."""
        online, config, encoder = self.online, self.session.config, self.session.objective.target_encoder
        self.cells = cells_of(online, encoder.grid)
        self.sides = open_sides(online, config.data, config.clip)
        self.clips = [
            Clips(
                sources=side.sources, clip=config.clip, batch_size=online.batch_size, workers=config.data.workers,
                most_bytes=online.memory_mb * 2**20 / 2,
            )
            for side in (self.sides.train, self.sides.test)
        ]  # fmt: skip
        records = read_metrics(config.run_dir)
        looks = [record for record in records if "time/online_s" in record]
        self.before_s = trained_seconds(records)
        self.trained_s, self.told = self.before_s, False
        seconds = [float(record["time/online_s"]) for record in looks]
        # the dearest look so far: the first one after a new start has to decode again
        self.budget = Budget(max_share=online.max_share, spent_s=sum(seconds), expected_s=max(seconds, default=None))
        log.info("online probes: %d training and %d test clips, %s; at most %.3g %% of the training time",
                 *map(len, self.clips), " and ".join(self.sides.classes), 100 * online.max_share)  # fmt: skip
        return int(looks[-1]["step"]) if looks else -1

    def due(self, step: int, trained_s: float) -> bool:
        """Every ``online.every`` steps, as soon as the share allows it; the first and the last look do not wait."""
        run = self.session.run
        if not self.session.sharded:
            return run.is_main and self._due(step, trained_s)
        if step != self.session.config.train.steps and step // self.online.every <= self.last // self.online.every:
            return False  # known to all without a word
        return run.on_main(lambda: self._due(step, trained_s))

    def _due(self, step: int, trained_s: float) -> bool:
        self.trained_s = self.before_s + trained_s
        if step == self.session.config.train.steps:
            return True
        if step // self.online.every <= self.last // self.online.every:
            return False
        fits = self.budget.fits(self.trained_s)
        if not fits and not self.told:
            self.told = True
            log.info(
                "step %d: online probes wait: %.3g s so far and about %.3g s for another look are more than %.3g %% "
                "(online.max_share) of %.3g s of training", step, self.budget.spent_s, self.budget.expected_s or 0.0,
                100 * self.online.max_share, self.trained_s,
            )  # fmt: skip
        return fits

    def look(self, step: int) -> None:
        """Encode, fit, score, log; all but rank 0 encode alone."""
        if not self.session.run.is_main:
            with unnoticed(self.session):
                for _ in itertools.chain(self._tokens(None), self._tokens(None)):  # training clips, then test clips
                    pass
            self.last = step
            return
        synchronize(self.session.run.device)  # steps that are still under way are not probing
        began, first = self.clock(), self.clips[0].kept is None
        with unnoticed(self.session):
            train, test = (self._encode(clips) for clips in self.clips)
            finite = all(bool(seen.vectors.isfinite().all()) for seen in (train, test))
            values = self._probe(train, test) if finite else {}
        if not finite:
            log.warning("step %d: no online probes, as the features are not finite", step)
        seconds = self.clock() - began
        self.budget.spent_s += seconds
        self.budget.expected_s = seconds - sum(clips.saved_s for clips in self.clips) if first else seconds
        self.last = step
        self.summary = next((f"{name} {value:.3g}" for name, value in values.items()), "")
        record = {**values, "time/online_s": seconds}
        if self.trained_s > 0:
            record["time/online_share"] = self.budget.spent_s / self.trained_s
        self.log.metrics(step, record)

    def _encode(self, clips: Clips) -> Seen:
        """Tokens of the whole clips, pooled at once, so that few bytes are kept."""
        wanted, grid = "attentive" in self.online.probes, self.session.objective.target_encoder.grid
        items, vectors, pooled = [], [], []
        for index, tokens in self._tokens(clips):
            items.append(index)
            vectors.append(tokens.mean(dim=1).cpu())
            if wanted:
                pooled.append(pool_cells(tokens, grid, self.cells).cpu())
        if not items:
            where = ", ".join(source.config.path for source in clips.sources)
            raise ConfigError(f"config key 'online': none of the {len(clips)} clips of {where} can be read")
        return Seen(torch.cat(items), torch.cat(vectors), torch.cat(pooled) if wanted else None)

    @torch.no_grad()  # not inference_mode: what an encoder keeps from here must do for training too
    def _tokens(self, clips: Clips | None) -> Iterator[tuple[Tensor, Tensor]]:
        """(indices, fp32 tokens ``[B, N, D]``) of batches of clips under the run's precision. Where the model is cut
        over processes, the others get rank 0's batches: they have no ``clips``."""
        session = self.session
        encoder, transform = session.objective.target_encoder, ClipTransform(session.config.clip)

        def read() -> Iterator[Batch]:
            return iter(()) if clips is None else clips.batches()

        for batch in session.run.from_main(read) if session.sharded else read():
            assert batch.index is not None
            ready = transform(batch.to(session.run.device))
            with session.run.autocast():
                tokens = encoder(ready.clip)
            yield batch.index, tokens.float()

    def _probe(self, train: Seen, test: Seen) -> dict[str, float]:
        """Every probe on every label."""
        values: dict[str, float] = {}
        for label, names in self.sides.classes.items():
            wanted = self.sides.test.labels[label]
            wanted = wanted[wanted >= 0]  # of clips that cannot be read too: they count as errors
            rows, y = labelled(train, self.sides.train, label)
            rows_test, y_test = labelled(test, self.sides.test, label)
            for kind in self.online.probes:
                x, x_test = (seen.tokens if kind == "attentive" else seen.vectors for seen in (train, test))
                assert x is not None
                assert x_test is not None
                result = fit_probe(
                    probe_config(self.online, kind), x[rows], y, x_test[rows_test], y_test,
                    num_classes=max(len(names), 2), device=self.session.run.device, memory_bytes=DEVICE_BYTES,
                )  # fmt: skip
                values[f"online/{label}/{kind}"] = result.accuracy * len(y_test) / len(wanted)
            values[f"online/{label}/chance"] = metrics.chance(y, wanted)
        return values


def probe_config(online: OnlineConfig, kind: OnlineProbe) -> ProbeConfig:
    """The probe of ``jepa eval`` with fewer heads and steps, and not fitted again once its head is chosen."""
    rates, decays = GRIDS.get(kind, (None, None))
    return ProbeConfig(
        kind=kind, learning_rates=rates, weight_decays=decays, steps=online.steps, refit=False, seed=online.seed
    )


def labelled(seen: Seen, side: Side, label: str) -> tuple[Tensor, Tensor]:
    """Rows of ``seen`` that have the label, bool ``[K]``, and their class ids."""
    ids = side.labels[label][seen.items]
    return ids >= 0, ids[ids >= 0]


def cells_of(online: OnlineConfig, grid: TokenGrid) -> tuple[int, int, int]:
    """Parts of ``grid`` that attentive probes see. Raises ``ConfigError`` where ``token_pool`` does not divide it."""
    if "attentive" in online.probes and any(size % pool for size, pool in zip(grid, online.token_pool, strict=True)):
        raise ConfigError(
            f"config key 'online.token_pool': {online.token_pool} must divide the token grid {tuple(grid)}"
        )
    t, h, w = (size // pool for size, pool in zip(grid, online.token_pool, strict=True))
    return t, h, w


@contextlib.contextmanager
def unnoticed(session: Session) -> Iterator[None]:
    """The target encoder in eval mode; afterwards its modes and all random states are what they were before."""
    encoder, device = session.objective.target_encoder, session.run.device
    modes, state = {module: module.training for module in encoder.modules()}, random_state(device)
    encoder.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        set_random_state(state, device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
