"""COIN (Tang et al. 2019): instructional YouTube videos of 180 tasks, cut into steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evals.datasets.base import (
    DatasetConfig,
    Listing,
    entries,
    find_file,
    find_folder,
    index_videos,
    read_json,
    unique_names,
)
from jepa.config import ConfigError

# the README of the annotations calls the second subset "validation", papers and other readers "testing"
_SUBSETS = {"training": ("training",), "testing": ("testing", "validation")}


def read_coin(root: Path, split: str, config: DatasetConfig) -> Listing:
    """``task``: the class of a whole video, numbered in the order of ``recipe_type``."""
    path, videos = _open(root)
    tasks, numbers = _tasks(path, videos)
    kept = [(name, video) for name, video in videos.items() if video["subset"] in _SUBSETS[split]]
    files = index_videos(find_folder(root, "videos", ""))
    return Listing(
        names=[name for name, _ in kept],
        paths=[files.get(name, "") for name, _ in kept],
        labels={"task": [numbers[video["recipe_type"]] for _, video in kept]},
        class_names={"task": tasks},
    )


def read_coin_steps(root: Path, split: str, config: DatasetConfig) -> Listing:
    """``step`` of every annotated segment, numbered in the order of the steps' ids, and the ``task`` of its video.
    Clips lie inside their segment."""
    path, videos = _open(root)
    tasks, numbers = _tasks(path, videos)
    names: dict[int, str] = {}
    segments = []
    for name, video in videos.items():
        for step, (start, end), label in entries(path, video["annotation"], "id", "segment", "label"):
            if names.setdefault(int(step), label) != label:
                raise ConfigError(f"{path}: step {step} is called {names[int(step)]!r} and {label!r}")
            if not end > start:
                raise ConfigError(f"{path}: a segment of {name} ends at {end} s, not after its start at {start} s")
            if video["subset"] in _SUBSETS[split]:
                segments.append((name, int(step), numbers[video["recipe_type"]], (float(start), float(end))))
    order = sorted(names)
    ids = {step: i for i, step in enumerate(order)}
    files = index_videos(find_folder(root, "videos", ""))
    return Listing(
        names=[name for name, *_ in segments],
        paths=[files.get(name, "") for name, *_ in segments],
        labels={"step": [ids[step] for _, step, *_ in segments], "task": [task for _, _, task, _ in segments]},
        class_names={"step": unique_names([names[step] for step in order], order), "task": tasks},
        spans=[span for *_, span in segments],
    )


def _open(root: Path) -> tuple[Path, dict[str, dict[str, Any]]]:
    """``COIN.json`` and the videos of its ``database`` by YouTube id, their keys checked."""
    path = find_file(root, "COIN.json")
    ((videos,),) = entries(path, [read_json(path, dict)], "database")
    for name, video in videos.items():
        for key in ("subset", "class", "recipe_type", "annotation"):
            if key not in video:
                raise ConfigError(f"{path}: the video {name} has no {key!r}")
        if video["subset"] not in ("training", "testing", "validation"):
            raise ConfigError(f"{path}: the video {name} is in the unknown subset {video['subset']!r}")
    return path, videos


def _tasks(path: Path, videos: dict[str, dict[str, Any]]) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names of all tasks, and ``recipe_type`` to class id."""
    names: dict[int, str] = {}
    for name, video in videos.items():
        if names.setdefault(video["recipe_type"], video["class"]) != video["class"]:
            raise ConfigError(
                f"{path}: recipe_type {video['recipe_type']} is {names[video['recipe_type']]!r} and, in {name}, "
                f"{video['class']!r}"
            )
    order = sorted(names)
    return unique_names([names[task] for task in order], order), {task: i for i, task in enumerate(order)}
