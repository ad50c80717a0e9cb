"""Batches for training and evaluation.

The batch of step s is a pure function of (seed, s): sample i of the global batch has the number s * batch_size + i,
its number decides the video (``mixture.py``) and seeds its own random stream, and (seed, s) seeds the masks. Each
rank builds its own rows. So the batches do not depend on the number of workers or ranks, and resuming at a step
replays nothing.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from jepa.config import ConfigError
from jepa.data.batches import Failure, collate, eval_batches, leave_signals_to_parent
from jepa.data.mixture import MASKS, SAMPLE, FullOrder, Mixture, Order, ShardOrder, stream
from jepa.data.sampling import ShortVideoError
from jepa.data.settings import DataConfig, eval_options, open_data
from jepa.data.sources import ClipRequest, RawClip, Source
from jepa.data.tar_index import TarIndex
from jepa.data.trajectories.statistics import measure
from jepa.data.video import VideoError
from jepa.masks import MaskFamily
from jepa.types import Batch, ClipConfig, Statistics

__all__ = ["DataConfig", "TrainLoader", "eval_batches", "eval_options", "open_data"]
log = logging.getLogger("jepa")
_MAX_REPLACEMENTS = 50


class _Steps(Sampler[int]):
    """start, start + 1, ... without end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


class _TrainBatches(Dataset[tuple[Batch | None, list[Failure]]]):
    """Step -> this rank's rows of the batch (None: hopeless), and the files that had to be replaced."""

    def __init__(
        self, sources: list[Source], mixture: Mixture, clip: ClipConfig, masks: Sequence[MaskFamily], batch_size: int,
        rows: list[int],
    ) -> None:  # fmt: skip
        self.sources, self.mixture, self.clip, self.masks = sources, mixture, clip, list(masks)
        self.batch_size, self.rows = batch_size, rows
        self.offsets = np.cumsum([0, *(len(source) for source in sources)])

    def __getitem__(self, step: int) -> tuple[Batch | None, list[Failure]]:
        first = step * self.batch_size
        positions = [first + row for row in self.rows]
        clips: list[RawClip] = []
        index: list[int] = []
        failures: list[Failure] = []
        for (source, item), group in itertools.groupby(positions, key=lambda p: self.mixture.locate(p)[:2]):
            members = list(group)
            loaded = self._load(source, item, members, 0, failures)
            if loaded is not None:
                clips += loaded
                index += [int(self.offsets[source]) + item] * len(members)
                continue
            for position in members:
                stand_in = self._replace(position, failures)
                if stand_in is None:
                    return None, failures
                clips.append(stand_in[0])
                index.append(stand_in[1])
        seeds = [int(stream(self.mixture.seed, SAMPLE, p).integers(2**62)) for p in positions]
        batch = collate(clips, index, seeds)
        rng = stream(self.mixture.seed, MASKS, step)
        batch.masks = [family.draw(rng, self.batch_size, self.rows) for family in self.masks]
        batch.skipped = len(failures)
        return batch, failures

    def _load(
        self, source: int, item: int, positions: list[int], attempt: int, failures: list[Failure]
    ) -> list[RawClip] | None:
        """The clips of these samples from one item, or None if it cannot be used.

        A file that failed is tried again the next time: half of it may be readable, and a worker that remembered
        would make batches depend on what it had read before.
        """
        parts, seed = self.mixture.clips_per_video, self.mixture.seed
        # a stream for every attempt: what a failed attempt consumed must not matter
        requests = [ClipRequest(stream(seed, SAMPLE, p, attempt), (p % parts, parts)) for p in positions]
        try:
            return self.sources[source].load_clips(item, self.clip, requests)
        except (VideoError, ShortVideoError) as error:
            failure = Failure(self.sources[source].paths[item], str(error), isinstance(error, ShortVideoError))
            failures += [failure] * len(positions)
            return None

    def _replace(self, position: int, failures: list[Failure]) -> tuple[RawClip, int] | None:
        """Another clip for this sample, the same one whenever it is asked for, and its index."""
        for attempt in range(_MAX_REPLACEMENTS):
            source, item = self.mixture.replacement(position, attempt)
            loaded = self._load(source, item, [position], attempt + 1, failures)
            if loaded is not None:
                return loaded[0], int(self.offsets[source]) + item
        return None


def _order(source: Source) -> Order:
    if source.tar is None:
        return FullOrder(len(source))
    return ShardOrder(source.tar.shard_sizes(), source.config.shuffle_shards)


def _check_shards(indices: Sequence[TarIndex], max_failed: float) -> None:
    """Raise ``VideoError`` when too many shards are damaged: how many samples that costs, nobody knows."""
    broken = {name: reason for index in indices for name, reason in index.broken.items()}
    count = sum(len(index.shards) for index in indices)
    if len(broken) > max_failed * count:
        name, reason = next(iter(broken.items()))
        raise VideoError(
            f"{len(broken)} of {count} shards are damaged, more than the share {max_failed} that data.max_failed "
            f"allows; the first: {name}: {reason}. Mend or remove them, or raise data.max_failed"
        )


class TrainLoader:
    """Endless training batches of one rank; ``batch_size`` is the global one, ``accumulate`` its micro-batches.

    ``sources`` are what is trained on, ``validation`` what the monitor may look at. Raises ``ConfigError`` when a
    source cannot be opened, ``VideoError`` while iterating when too many files cannot be decoded.
    """

    def __init__(
        self, data: DataConfig, clip: ClipConfig, masks: Sequence[MaskFamily] = (), batch_size: int = 16, seed: int = 0,
        rank: int = 0, world_size: int = 1, pin_memory: bool = False, accumulate: int = 1,
    ) -> None:  # fmt: skip
        if batch_size < 1 or batch_size % (world_size * accumulate):
            raise ConfigError(
                f"batch_size {batch_size} must be a positive multiple of the {world_size} processes x accumulate "
                f"{accumulate}"
            )
        self.data, self.batch_size, self.seed, self.pin_memory = data, batch_size, seed, pin_memory
        self.sources, self.validation = open_data(data, clip)
        mixture = Mixture(
            [_order(source) for source in self.sources], [source.config.weight for source in self.sources], seed,
            data.clips_per_video, batch_size, data.lanes,
        )  # fmt: skip
        # of every micro-batch its share: then the ranks' k-th micro-batches together are those of a single process
        share = batch_size // (world_size * accumulate)
        rows = [row for row in range(batch_size) if row // share % world_size == rank]
        self.dataset = _TrainBatches(self.sources, mixture, clip, masks, batch_size, rows)
        self.next_step = 0
        self.failed: dict[str, str] = {}  # path -> why, of the files that could not be decoded
        self._short: set[str] = set()
        indices = [source.tar.table for source in self.sources if source.tar is not None]
        self._left_out = sum(index.num_skipped for index in indices)  # samples of shards that cannot be used
        self._num_files = sum(int(source.file_ids().max()) + 1 for source in self.sources) + self._left_out
        _check_shards(indices, data.max_failed)

    def __len__(self) -> int:
        """Steps in an epoch."""
        clips = sum(len(source) for source in self.sources) * self.data.clips_per_video
        return max(1, clips // self.batch_size)

    def iterate(self, start_step: int = 0) -> Generator[Batch, None, None]:
        """Batches of steps ``start_step``, ``start_step + 1``, ... without end."""
        workers = self.data.workers
        batches = DataLoader(
            self.dataset, batch_size=None, sampler=_Steps(start_step), num_workers=workers,
            prefetch_factor=self.data.prefetch if workers else None, pin_memory=self.pin_memory,
            worker_init_fn=leave_signals_to_parent,
        )  # fmt: skip
        for step, (batch, failures) in enumerate(batches, start_step):
            self._note(failures)
            if batch is None:
                raise VideoError(
                    f"{_MAX_REPLACEMENTS} videos drawn in a row cannot be used, the last because: {failures[-1].reason}"
                )
            self.next_step = step + 1
            yield batch

    def _note(self, failures: list[Failure]) -> None:
        """Name every unusable file once; stop when there are too many."""
        for failure in failures:
            if failure.short:
                if failure.path not in self._short:
                    self._short.add(failure.path)
                    log.info("left out (short_video: skip): %s", failure.reason)
            elif failure.path not in self.failed:
                self.failed[failure.path] = failure.reason
                log.warning("skipped, cannot be decoded: %s", failure.reason)
        if self.failed and len(self.failed) + self._left_out > self.data.max_failed * self._num_files:
            count = len(self.failed) + self._left_out
            raise VideoError(
                f"{count} of {self._num_files} files cannot be decoded, more than the share "
                f"{self.data.max_failed} that data.max_failed allows; the first: {next(iter(self.failed.values()))}. "
                "Mend or remove the files, or raise data.max_failed"
            )

    def statistics(self) -> Statistics:
        """Of the actions and states that are trained on, at the clip's rate.

        Raises ``ConfigError`` for sources without, ``VideoError`` when too many episodes cannot be used.
        """
        found, failures = measure(self.sources, self.dataset.clip)
        self._note(failures)
        return found

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of what is trained on: the names, labels and weights of all items, not where the folder lies."""
        digest = hashlib.sha256()
        for source in self.sources:
            source.identify(digest)
        if self.data.lanes > 1:
            digest.update(repr(self.data.lanes).encode())
        return digest.hexdigest()[:16]

    def state_dict(self) -> dict[str, Any]:
        """The sampler's position; plain data for a checkpoint."""
        return {
            "seed": self.seed, "step": self.next_step, "batch_size": self.batch_size, "fingerprint": self.fingerprint
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> int:
        """The step to ``iterate`` from. Raises ``ConfigError`` if the batches would not continue the saved ones."""
        remedy = {
            "seed": "use the run's seed", "batch_size": "use the run's batch size",
            "fingerprint": "the data sources have changed since: restore them, or start a new run with init_from",
        }  # fmt: skip
        now = self.state_dict()
        for key, advice in remedy.items():
            if state.get(key) != now[key]:
                raise ConfigError(f"cannot resume: the loader's {key} was {state.get(key)}, now {now[key]}; {advice}")
        self.next_step = int(state["step"])
        return self.next_step
