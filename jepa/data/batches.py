"""Clips to batches, and the ordered batches of an evaluation."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from jepa.data.sampling import ShortVideoError
from jepa.data.sources import ClipRequest, RawClip, Source
from jepa.data.video import VideoError
from jepa.stopping import STOP_SIGNALS
from jepa.types import Batch, ClipConfig

T = TypeVar("T")


class Failure(NamedTuple):
    """A file that was left out and why; ``short`` when it is only too short for the clip."""

    path: str
    reason: str
    short: bool = False


def collate(clips: Sequence[RawClip], index: Sequence[int], seeds: Sequence[int]) -> Batch:
    """Clips to a uint8 batch ``[B, C, T, H, W]``, padded at the bottom and the right.

    In memory the channels come last, as decoders deliver them; the transform on the device brings them to the front.
    """
    sizes = [clip.frames.shape[1:3] for clip in clips]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    num_frames = clips[0].frames.shape[0]
    shape = (len(clips), num_frames, height, width, 3)
    memory = torch.empty(shape, dtype=torch.uint8) if len(set(sizes)) == 1 else torch.zeros(shape, dtype=torch.uint8)
    view = memory.numpy()
    for row, (clip, (h, w)) in enumerate(zip(clips, sizes, strict=True)):
        view[row, :, :h, :w] = clip.frames
    return Batch(
        clip=memory.permute(0, 4, 1, 2, 3),
        size=torch.tensor(sizes, dtype=torch.int64),
        label=torch.tensor([clip.label for clip in clips], dtype=torch.int64),
        index=torch.tensor(index, dtype=torch.int64),
        start_s=torch.tensor([clip.start_s for clip in clips], dtype=torch.float64),
        end_s=torch.tensor([clip.end_s for clip in clips], dtype=torch.float64),
        augment_seed=torch.tensor(seeds, dtype=torch.int64),
        actions=_stacked([clip.actions for clip in clips]),
        states=_stacked([clip.states for clip in clips]),
    )


def _stacked(arrays: Sequence[NDArray[np.float32] | None]) -> Tensor | None:
    """``[B, ...]``, or None where a clip has none."""
    given = [array for array in arrays if array is not None]
    return torch.from_numpy(np.stack(given)) if len(given) == len(arrays) else None


def leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C and a cluster's signals reach every process of a job; the parent needs its workers until it has saved."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def leave_interrupts_to_parent(worker: int) -> None:
    """All but SIGTERM is the parent's to handle; that one ends the worker, as Python sends one to those that outlive an
    error in the parent, and would wait for ever for a worker that ignores it."""
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)


class _Items(Dataset[tuple[list[RawClip], Failure | None]]):
    """Item over all sources -> its clips, or why there are none."""

    def __init__(self, sources: Sequence[Source], clip: ClipConfig, segments: int) -> None:
        self.clip, self.segments = clip, segments
        self.sources, self.ends = list(sources), np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, number: int) -> tuple[list[RawClip], Failure | None]:
        at = int(np.searchsorted(self.ends, number, side="right"))
        source = self.sources[at]
        item = number - int(self.ends[at]) + len(source)
        requests = [ClipRequest(None, (k, self.segments)) for k in range(self.segments)]
        try:
            return source.load_clips(item, self.clip, requests), None
        except (VideoError, ShortVideoError) as error:
            return [], Failure(source.paths[item], str(error), isinstance(error, ShortVideoError))


def eval_batches(
    sources: Source | Sequence[Source], clip: ClipConfig, batch_size: int, segments: int = 1, workers: int = 0,
    failures: list[Failure] | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """Every item once, in order, ``segments`` clips spread over each: the same clips whenever it is called.

    ``batch.index`` is the item's position (over all sources, in order); the clips of an item stand together. Files
    that cannot be read are left out and appended to ``failures``; without such a list they raise ``VideoError``.
    """
    dataset = _Items([sources] if isinstance(sources, Source) else sources, clip, segments)
    loaded = DataLoader(dataset, batch_size=None, num_workers=workers, worker_init_fn=leave_interrupts_to_parent)
    clips: list[RawClip] = []
    index: list[int] = []
    for number, (found, failure) in enumerate(itertools.chain(loaded, [([], None)])):
        if failure is not None:
            if failures is None:
                raise VideoError(failure.reason)
            failures.append(failure)
        clips += found
        index += [number] * len(found)
        while len(clips) >= batch_size or (clips and number == len(dataset)):
            yield collate(clips[:batch_size], index[:batch_size], [0] * len(clips[:batch_size]))
            clips, index = clips[batch_size:], index[batch_size:]


class _Share(IterableDataset[Any]):
    """What ``read`` makes of every task, and None at each task's end."""

    def __init__(self, tasks: Sequence[Any], read: Callable[[Any], Iterable[Any]]) -> None:
        self.tasks, self.read = tasks, read

    def __iter__(self) -> Iterator[Any]:
        for task in self.tasks:
            yield from self.read(task)
            yield None


def read_ahead(
    tasks: Sequence[T], read: Callable[[T], Iterable[Any]], workers: int, ahead: int = 4
) -> Iterator[Iterator[Any]]:
    """For every task, in order, an iterator over what ``read`` makes of it (to be used up before the next one).

    ``workers`` processes (0: none) take the tasks in turn and read at most ``ahead`` elements each in advance, so that
    memory stays the same however long a task is. They start at once. Raises ``VideoError`` when one of them dies.
    """
    workers = min(workers, len(tasks))
    if not workers:
        return (iter(read(task)) for task in tasks)
    # one loader for each worker: the consumer decides whose turn it is, so that the order never depends on speed
    loaders = [
        iter(
            DataLoader(
                _Share(tasks[worker::workers], read), batch_size=None, num_workers=1, prefetch_factor=ahead,
                worker_init_fn=leave_interrupts_to_parent,
            )
        )
        for worker in range(workers)
    ]  # fmt: skip
    return (_until_none(loaders[number % workers]) for number in range(len(tasks)))


def _until_none(loader: Iterator[Any]) -> Iterator[Any]:
    try:
        while (element := next(loader)) is not None:
            yield element
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise VideoError("a worker process died (out of memory?): run this again with fewer workers") from None
