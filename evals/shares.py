"""Work that the processes of a run share: each does every n-th item, and all of them have all results in the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jepa.distributed import Run

S = TypeVar("S")
T = TypeVar("T")


def share_out(run: Run, items: Sequence[S], work: Callable[[S], T]) -> list[T]:
    """``[work(item) for item in items]`` on every process, each item done by one of them. Results must be picklable.

    A ``ValueError`` of any process is raised on all of them: nobody waits for results that do not come."""
    done: dict[int, T] = {}
    error: ValueError | None = None
    try:
        for place in range(run.rank, len(items), run.world_size):
            done[place] = work(items[place])
    except ValueError as raised:
        error = raised
    together: dict[int, T] = {}
    answers: list[Any] = run.gather((done, error))
    for part, failed in answers:
        if failed is not None:
            raise failed
        together |= part
    return [together[place] for place in range(len(items))]
