"""What readers of published data sets share: their configuration, what they list, and how files are found and read."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jepa.config import ConfigError
from jepa.data.listing import VIDEO_SUFFIXES
from jepa.data.sampling import Span

ANNOTATION_FOLDERS = ("", "annotations", "labels", "label")


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetConfig:
    """A data set on disk, in its published layout (docs/datasets.md shows each).

    ``name``: a key of ``evals.datasets.DATASETS``. ``root``: its folder. ``splits``: the one that probes are fitted on
    and the one that is reported (``None``: the data set's usual ones). ``anticipation_s``, for EPIC-KITCHENS only:
    clips end so many seconds before the action starts (``None``: they lie inside the action). ``max_missing``: the
    largest share of a split's videos that may be missing from the disk; those are left out, counted and named.
    """

    name: str
    root: str
    splits: tuple[str, str] | None = None
    anticipation_s: float | None = None
    max_missing: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.max_missing <= 1:
            raise ValueError(f"max_missing must lie between 0 and 1, not {self.max_missing}")
        if self.anticipation_s is not None and self.anticipation_s < 0:
            raise ValueError(f"anticipation_s must be at least 0 seconds, not {self.anticipation_s}")


class Listing(NamedTuple):
    """What a split's annotations list, one entry per item (a video, or a span of one).

    ``names``: the videos, as the annotations call them. ``paths``: where they are ('' for a missing one). ``labels``:
    class ids by column (-1: none), with ``class_names``. ``spans``: seconds that items are confined to, in the way
    that ``span`` says. ``fps``: the rate of frame folders."""

    names: list[str]
    paths: list[str]
    labels: dict[str, list[int]]
    class_names: dict[str, tuple[str, ...]]
    spans: list[tuple[float, float]] | None = None
    span: Span = "inside"
    fps: float | None = None


class Dataset(NamedTuple):
    """``read``: (root, split, config) to a ``Listing``; ``splits``: those with labels, the one for fitting first and
    the one to report second."""

    read: Callable[[Path, str, DatasetConfig], Listing]
    splits: tuple[str, ...]


def find_file(root: Path, *names: str, folders: Sequence[str] = ANNOTATION_FOLDERS) -> Path:
    """The first of ``names`` in ``root`` or its annotation folders. Raises ``ConfigError`` when there is none."""
    for folder in folders:
        for name in names:
            if (root / folder / name).is_file():
                return root / folder / name
    places = ", ".join(folder for folder in folders if folder)
    raise ConfigError(
        f"{root} has no annotation file {' or '.join(names)} (looked in it{f' and in {places}' if places else ''}); "
        "docs/datasets.md shows the layout"
    )


def find_folder(root: Path, *names: str) -> Path:
    """The first of ``names`` that is a folder in ``root`` ('' is ``root`` itself). Raises ``ConfigError`` if none."""
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise ConfigError(f"{root} has no folder {' or '.join(names)}; docs/datasets.md shows the layout")


def index_videos(folder: Path) -> dict[str, str]:
    """Every video file below ``folder`` by its name without suffix. Raises ``ConfigError`` for a name used twice."""
    found: dict[str, str] = {}
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            stem, suffix = os.path.splitext(file)
            if suffix.lower() not in VIDEO_SUFFIXES or file.startswith("."):
                continue
            path = os.path.join(place, file)
            if stem in found:
                raise ConfigError(f"two files are called {stem}: {found[stem]} and {path}; remove one")
            found[stem] = path
    return found


def read_json(path: Path, kind: type) -> Any:
    """A JSON file whose top is a ``list`` or a ``dict``. Raises ``ConfigError`` naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, kind):
        raise ConfigError(f"{path} must hold a JSON {'list' if kind is list else 'object'}, not {type(value).__name__}")
    return value


def entries(path: Path, records: Iterable[Any], *keys: str) -> list[list[Any]]:
    """The values of ``keys`` in every record. Raises ``ConfigError`` naming file, position and key of what lacks."""
    rows = []
    for number, record in enumerate(records):
        for key in keys:
            if not isinstance(record, dict) or key not in record:
                raise ConfigError(f"{path}: entry {number} has no {key!r}")
        rows.append([record[key] for key in keys])
    return rows


def read_table(path: Path, *columns: str) -> list[list[str]]:
    """These columns of a CSV file with a header, row by row. Raises ``ConfigError`` naming file and column."""
    lines = [line for line in _text(path).splitlines() if line.strip()]
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    header = rows[0] if rows else []
    for column in columns:
        if column not in header:
            raise ConfigError(f"{path} has no column {column!r}; its columns: {', '.join(header)}")
    places = [header.index(column) for column in columns]
    for number, row in enumerate(rows[1:], 1):
        if len(row) <= max(places):
            raise ConfigError(f"{path}, row {number}: {len(row)} cells, the header has {len(header)}")
    return [[row[place] for place in places] for row in rows[1:]]


def read_lines(path: Path) -> list[str]:
    """Lines that are not empty, stripped. Raises ``ConfigError`` naming the file."""
    return [line.strip() for line in _text(path).splitlines() if line.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}") from None


def label_ids(names: Sequence[str], known: Sequence[str], path: Path, vocabulary: str) -> list[int]:
    """Places of ``names`` among the ``known`` classes. Raises ``ConfigError`` for one that is not in there."""
    ids = {name: i for i, name in enumerate(known)}
    unknown = sorted({name for name in names if name not in ids})
    if unknown:
        raise ConfigError(
            f"{path} has the class {unknown[0]!r}{_more(len(unknown) - 1)}, which is not among the {len(known)} "
            f"classes of {vocabulary}"
        )
    return [ids[name] for name in names]


def in_order(numbered: Sequence[tuple[str, str]], path: Path) -> tuple[str, ...]:
    """Pairs of a number (as text) and a name to the names in the order of numbers. Raises ``ConfigError`` unless the
    numbers are 0, 1, ..."""
    names = dict(numbered)
    if sorted(names) != sorted(str(i) for i in range(len(numbered))):
        raise ConfigError(f"{path} must number its {len(numbered)} classes from 0 to {len(numbered) - 1}")
    return tuple(names[str(i)] for i in range(len(numbered)))


def unique_names(names: Sequence[str], keys: Sequence[Any]) -> tuple[str, ...]:
    """Class names for tables: one that occurs twice gets its key behind it (ImageNet has two kinds of crane)."""
    count = Counter(names)
    return tuple(name if count[name] == 1 else f"{name} ({key})" for name, key in zip(names, keys, strict=True))


def _more(count: int) -> str:
    return f" (and {count} more)" if count > 0 else ""
