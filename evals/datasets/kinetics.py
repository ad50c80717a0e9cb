"""Kinetics-400, -600 and -700 (Kay et al. 2017, Carreira et al. 2018, 2019): ten seconds of YouTube videos."""

from __future__ import annotations

from pathlib import Path

from evals.datasets.base import (
    DatasetConfig,
    Listing,
    find_file,
    find_folder,
    index_videos,
    label_ids,
    read_table,
)
from jepa.config import ConfigError

_FILES = {
    "train": ("train.csv", "kinetics_train.csv"),
    "val": ("val.csv", "validate.csv", "kinetics_val.csv"),
    "test": ("test.csv", "kinetics_test.csv"),
}


def read_kinetics(root: Path, split: str, config: DatasetConfig) -> Listing:
    """``label``: the class, numbered in the sorted order of the names in the training CSV.

    A row ``label, youtube_id, time_start, time_end, split`` is the file ``ID_START_END.mp4``, both times with six
    digits, anywhere below the split's folder. A folder ``replacement`` (CVDF's copies of damaged K400 videos) takes
    precedence. A test CSV without labels is refused.
    """
    path, training = find_file(root, *_FILES[split]), find_file(root, *_FILES["train"])
    classes = tuple(sorted({label.replace('"', "") for (label,) in read_table(training, "label")}))
    rows = read_table(path, "label", "youtube_id", "time_start", "time_end")
    folder = find_folder(root, split, f"videos/{split}", f"videos_{split}", "videos")
    videos = index_videos(folder)
    if (root / "replacement").is_dir():
        videos |= index_videos(root / "replacement")
    names = []
    for number, (_, video, start, end) in enumerate(rows, 1):
        try:
            names.append(f"{video}_{int(float(start)):06d}_{int(float(end)):06d}")
        except ValueError:
            raise ConfigError(f"{path}, row {number}: {start!r} and {end!r} must be numbers of seconds") from None
    labels = label_ids([row[0].replace('"', "") for row in rows], classes, path, training.name)
    return Listing(names, [videos.get(name, "") for name in names], {"label": labels}, {"label": classes})
