"""Something-Something v2 (Goyal et al. 2017; version 2 of 2018): 174 templates of actions with objects."""

from __future__ import annotations

from pathlib import Path

from evals.datasets.base import (
    DatasetConfig,
    Listing,
    entries,
    find_file,
    find_folder,
    in_order,
    index_videos,
    label_ids,
    read_json,
)


def read_ssv2(root: Path, split: str, config: DatasetConfig) -> Listing:
    """``label``: the template without the brackets around its placeholders, numbered as the labels file says.

    Annotations are lists of ``{"id", "label", "template", "placeholders"}``; the vocabulary maps templates to numbers
    written as text. The test split is published without labels.
    """
    vocabulary = find_file(root, "something-something-v2-labels.json", "labels.json")
    path = find_file(root, f"something-something-v2-{split}.json", f"{split}.json")
    names = in_order([(str(number), name) for name, number in read_json(vocabulary, dict).items()], vocabulary)
    rows = entries(path, read_json(path, list), "id", "template")
    videos = index_videos(find_folder(root, "20bn-something-something-v2", "videos"))
    templates = [str(template).replace("[", "").replace("]", "") for _, template in rows]
    return Listing(
        names=[str(video) for video, _ in rows],
        paths=[videos.get(str(video), "") for video, _ in rows],
        labels={"label": label_ids(templates, names, path, vocabulary.name)},
        class_names={"label": names},
    )
