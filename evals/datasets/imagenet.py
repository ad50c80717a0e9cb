"""ImageNet-1k (ILSVRC 2012, Russakovsky et al. 2015): class folders, or the flat validation folder of Kaggle."""

from __future__ import annotations

from pathlib import Path

from evals.datasets.base import (
    DatasetConfig,
    Listing,
    find_file,
    find_folder,
    label_ids,
    read_lines,
    read_table,
    unique_names,
)
from jepa.config import ConfigError
from jepa.data.image import IMAGE_SUFFIXES
from jepa.data.listing import list_folder

_KAGGLE = "ILSVRC/Data/CLS-LOC"


def read_imagenet(root: Path, split: str, config: DatasetConfig) -> Listing:
    """``label``: the synset, in sorted order. Its name is the first word of ``LOC_synset_mapping.txt``, where there is
    one ("n01440764 tench, Tinca tinca"), else the folder's name.

    Without that file, the folders of the training set are the classes.
    """
    folder = find_folder(root, split, f"{_KAGGLE}/{split}")
    synsets, class_names, vocabulary = _classes(root, folder)
    if any(entry.is_dir() for entry in folder.iterdir()):
        paths, names = list_folder(folder, IMAGE_SUFFIXES)
        if "" in names:
            stray = paths[names.index("")]
            raise ConfigError(f"{stray} lies beside the class folders of {folder}: move it into its class")
        labels = label_ids(names, synsets, folder, vocabulary)
        return Listing(paths, paths, {"label": labels}, {"label": class_names})
    path = find_file(root, f"LOC_{split}_solution.csv")  # ImageId, "synset x1 y1 x2 y2 synset ..."
    rows = read_table(path, "ImageId", "PredictionString")
    there = {entry.stem: str(entry) for entry in folder.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES}
    labels = label_ids([text.partition(" ")[0] for _, text in rows], synsets, path, vocabulary)
    images = [image for image, _ in rows]
    return Listing(images, [there.get(image, "") for image in images], {"label": labels}, {"label": class_names})


def _classes(root: Path, folder: Path) -> tuple[list[str], tuple[str, ...], str]:
    """Synsets, their names, and where they are from."""
    mapping = root / "LOC_synset_mapping.txt"
    if mapping.is_file():
        pairs = sorted(line.partition(" ")[::2] for line in read_lines(mapping))
        synsets = [synset for synset, _ in pairs]
        words = [words.partition(",")[0].strip() or synset for synset, words in pairs]
        return synsets, unique_names(words, synsets), mapping.name
    train = folder.parent / "train"
    if not train.is_dir():
        raise ConfigError(f"{root} has neither LOC_synset_mapping.txt nor {train}, which would tell the classes")
    synsets = sorted(entry.name for entry in train.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return synsets, tuple(synsets), str(train)
