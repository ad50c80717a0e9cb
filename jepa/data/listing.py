"""What folders and CSV files list, and class names to numbers."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jepa.config import ConfigError
from jepa.data.image import IMAGE_SUFFIXES
from jepa.data.video import is_url

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".avi", ".mkv", ".mov", ".webm", ".gif", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp"}
)
MANIFEST = "manifest.csv"


def list_folder(
    folder: Path, suffixes: frozenset[str] = VIDEO_SUFFIXES | IMAGE_SUFFIXES
) -> tuple[list[str], list[str]]:
    """Every file below ``folder`` with one of the ``suffixes``, sorted, and the top subfolder of each ('' for none)."""
    paths, names = [], []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(files):
            if os.path.splitext(file)[1].lower() in suffixes and not file.startswith("."):
                paths.append(os.path.join(root, file))
                parts = Path(root).relative_to(folder).parts
                names.append(parts[0] if parts else "")
    if not paths:
        looked = ", ".join(sorted(suffixes))
        raise ConfigError(f"data source {folder} holds no video or image file (looked for {looked})")
    return paths, names


def label_ids(names: Sequence[str], fixed: Sequence[str], path: Path) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class names ('' for none) to ids. Whole numbers keep their value; other names are numbered in sorted order."""
    present = sorted({name for name in names if name})
    if fixed:
        classes = tuple(fixed)
    elif all(name.isdecimal() and int(name) < 100_000 for name in present):
        classes = tuple(str(i) for i in range(max(map(int, present), default=-1) + 1))
    else:
        classes = tuple(present)
    ids = {name: i for i, name in enumerate(classes)}
    keys = [str(int(name)) if name.isdecimal() and name not in ids else name for name in names]  # '03' is class 3
    unknown = sorted({key for key in keys if key and key not in ids})
    if unknown:
        raise ConfigError(f"data source {path} has the class {unknown[0]!r}, which is not among: {', '.join(classes)}")
    return np.array([ids.get(key, -1) for key in keys], dtype=np.int64), classes


def read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of a CSV file with commas, tabs or spaces, with a header (a column ``path``) or without.

    Without a header the columns are ``path`` and ``label``; separated by spaces, the last word of a line is the label,
    so that paths may contain spaces.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data source {path} cannot be read as text: {error}") from None
    if not lines:
        raise ConfigError(f"data source {path} is empty")
    mark = next((mark for mark in ("\t", ",") if mark in lines[0]), None)
    if mark or lines[0].strip().lower() == "path":
        rows = list(csv.reader(lines, delimiter=mark or ","))
    else:  # lines of bare paths, which may hold spaces, or a label behind each
        bare = is_url(lines[0]) or (path.parent / lines[0].strip()).exists()
        rows = [[line.strip()] if bare else line.rsplit(None, 1) for line in lines]
    header = [cell.strip().lower() for cell in rows[0]]
    if "path" in header:
        return header, rows[1:]
    return ["path", "label"], [row[:2] for row in rows]
