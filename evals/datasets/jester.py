"""20BN-Jester v1 (Materzynska et al. 2019): 27 hand gestures, published as folders of JPEG frames."""

from __future__ import annotations

import os
from pathlib import Path

from evals.datasets.base import DatasetConfig, Listing, find_file, find_folder, label_ids, read_lines
from jepa.config import ConfigError

FPS = 12.0  # at which 20BN extracted the frames


def read_jester(root: Path, split: str, config: DatasetConfig) -> Listing:
    """``label``: the gesture, numbered by the lines of the labels file. Rows are ``ID;gesture``; the frames of a video
    are ``20bn-jester-v1/ID/00001.jpg``, ... The test split is published without labels.
    """
    vocabulary = find_file(root, "jester-v1-labels.csv")
    path = find_file(root, f"jester-v1-{split}.csv")
    classes = tuple(read_lines(vocabulary))
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        video, mark, label = (part.strip() for part in line.partition(";"))
        if not mark:
            raise ConfigError(f"{path}, line {number}: {line!r} is not ID;gesture")
        rows.append((video, label))
    frames = find_folder(root, "20bn-jester-v1", "rawframes", "frames")
    there = {entry.name for entry in os.scandir(frames) if entry.is_dir()}
    return Listing(
        names=[video for video, _ in rows],
        paths=[str(frames / video) if video in there else "" for video, _ in rows],
        labels={"label": label_ids([label for _, label in rows], classes, path, vocabulary.name)},
        class_names={"label": classes},
        fps=FPS,
    )
