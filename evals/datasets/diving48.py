"""Diving48 (Li et al. 2018), its second version of labels: 48 dives that only their motion tells apart."""

from __future__ import annotations

from pathlib import Path

from evals.datasets.base import (
    DatasetConfig,
    Listing,
    entries,
    find_file,
    find_folder,
    index_videos,
    read_json,
)
from jepa.config import ConfigError


def read_diving48(root: Path, split: str, config: DatasetConfig) -> Listing:
    """``label``: the dive, as numbered in the annotations; its name joins the four parts of the vocabulary's entry.

    Annotations are lists of ``{"vid_name", "label", "start_frame", "end_frame"}``. The published files are already
    cut to one dive each, so the frame range, which counts the frames of the file, is not used.
    """
    vocabulary = find_file(root, "Diving48_vocab.json")
    path = find_file(root, f"Diving48_V2_{split}.json")
    names = tuple(" ".join(entry) if isinstance(entry, list) else str(entry) for entry in read_json(vocabulary, list))
    rows = entries(path, read_json(path, list), "vid_name", "label")
    for number, (_, label) in enumerate(rows):
        if not isinstance(label, int) or not 0 <= label < len(names):
            raise ConfigError(f"{path}: entry {number} has the label {label!r}, {vocabulary.name} has {len(names)}")
    videos = index_videos(find_folder(root, "rgb", "videos"))
    return Listing(
        names=[str(name) for name, _ in rows],
        paths=[videos.get(str(name), "") for name, _ in rows],
        labels={"label": [label for _, label in rows]},
        class_names={"label": names},
    )
