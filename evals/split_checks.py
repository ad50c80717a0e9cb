"""Splits that cannot be trusted are refused before anything is encoded: leaks, classes nobody can learn, one class."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from evals.labelled import Labelled
from evals.probes.shots import Shots
from evals.settings import Allowance
from jepa.config import ConfigError
from jepa.data.sources import Source

_NAMED = 10  # classes in a message
_WHOLE = (-math.inf, math.inf)


def check_splits(train: Labelled, test: Labelled, allow: Sequence[Allowance] = ()) -> Labelled:
    """``train`` with the class names of both sides, the test's own ones last.

    Raises ``ConfigError`` for a training label with a single class; where a file (a span of it, a row of an array) is
    on both sides, unless "leak" is allowed; for test classes that no training clip has, unless "unseen_classes" is.
    """
    _check_classes(train, test, allow)
    both = leaks([train.source], [test.source])
    if both and "leak" not in allow:
        raise ConfigError(
            f"{len(both)} of the {len(test.source)} test clips are among the training clips too, for example "
            f"{both[0]}: the scores would say nothing. Use other splits, or allow it (--allow leak)"
        )
    return train._replace(class_names={label: test.class_names[label] for label in train.class_names})


def check_decoded(
    train: Labelled, test: Labelled, decoded: Iterable[torch.Tensor], allow: Sequence[Allowance] = ()
) -> None:
    """What ``check_splits`` says of classes, of the training clips that could be decoded: the items ``[K]`` that each
    representation has features of."""
    for items in decoded:
        known = {label: torch.full_like(ids, -1).index_put((items,), ids[items]) for label, ids in train.labels.items()}
        _check_classes(train._replace(labels=known), test, allow, " that can be decoded")


def _check_classes(train: Labelled, test: Labelled, allow: Sequence[Allowance], which: str = "") -> None:
    for label, ids in train.labels.items():
        classes = ids[ids >= 0].unique().tolist()
        if len(classes) < 2:
            what = repr(train.class_names[label][classes[0]]) if classes else "no value"
            raise ConfigError(
                f"{train.source.config.path}: all training clips{which} have the {label} {what}; a probe needs at "
                "least two classes"
            )
    for label, ids in test.labels.items():
        unseen = set(ids[ids >= 0].unique().tolist()) - set(train.labels[label].unique().tolist())
        if unseen and "unseen_classes" not in allow:
            names = [test.class_names[label][number] for number in sorted(unseen)]
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            count = int(torch.isin(ids, torch.tensor(sorted(unseen))).sum())
            raise ConfigError(
                f"{count} test clips are of {len(names)} {label} classes that no training clip{which} has: "
                f"{', '.join(map(repr, names[:_NAMED]))}{more}. Nobody can know them: leave them out, or count them as "
                "errors (--allow unseen_classes)"
            )


def check_shots(train: Labelled, few_shot: Sequence[str]) -> None:
    """Raise ``ValueError`` where a class has fewer clips than one of ``few_shot`` asks for."""
    for text in few_shot:
        for label, ids in train.labels.items():
            Shots.parse(text).draw(ids[ids >= 0], 0, train.class_names[label])


def leaks(train: Iterable[Source], test: Iterable[Source]) -> list[str]:
    """The items of ``test`` that show what an item of ``train`` shows: the same file on the disk, by whatever name; of
    spans of one video those that overlap, of arrays the same row."""
    known: dict[Any, list[tuple[float, float]]] = {}
    for source in train:
        for item, name in enumerate(_identities(source)):
            known.setdefault(name, []).append(source.span_s(item) or _WHOLE)
    found = []
    for source in test:
        for item, name in enumerate(_identities(source)):
            own = source.span_s(item)
            if any(_overlap(own or _WHOLE, other) for other in known.get(name, ())):
                seconds = "" if own is None else f" ({own[0]:g} to {own[1]:g} s)"
                found.append(source.paths[item] + seconds)
    return found


def _identities(source: Source) -> list[Any]:
    """What tells each item's file from others: device and inode, with the row of an array or the place in a shard; a
    URL itself."""
    if source.arrays is not None:
        assert source.rows is not None
        array = _file(source.config.path)
        return [(array, int(row)) for row in source.rows]
    if source.tar is not None:
        places = [source.tar.place(item) for item in range(len(source))]
        return [(_file(shard), offset) for shard, offset in places]
    return [_file(path) for path in source.paths]


def _file(path: str) -> Any:
    try:
        status = os.stat(path)
    except OSError:
        return path
    return status.st_dev, status.st_ino


def _overlap(first: tuple[float, float], second: tuple[float, float]) -> bool:
    return first == second or max(first[0], second[0]) < min(first[1], second[1])
