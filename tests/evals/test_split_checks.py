"""Splits that cannot be trusted: leaks by any name, overlapping spans, unseen classes, a single class."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evals.labelled import Labelled, open_labelled
from evals.split_checks import check_decoded, check_shots, check_splits, leaks
from jepa.config import ConfigError
from jepa.data.sources import Source, SourceConfig
from jepa.types import ClipConfig

CLIP = ClipConfig(num_frames=2, fps=8.0, crop_size=16)


def table(folder: Path, name: str, lines: list[str], header: str = "path,label") -> Path:
    path = folder / f"{name}.csv"
    path.write_text("\n".join([header, *lines]))
    for line in lines:
        picture = folder / line.split(",")[0]
        if not picture.exists():
            Image.new("RGB", (16, 16)).save(picture)
    return path


def sides(train: Path, test: Path) -> tuple[Labelled, Labelled]:
    first = open_labelled(SourceConfig(path=str(train)), (), CLIP)
    return first, open_labelled(SourceConfig(path=str(test)), (), CLIP, first.class_names)


def sources(train: Path, test: Path) -> tuple[Source, Source]:
    return tuple(side.source for side in sides(train, test))


def test_the_same_file_by_any_name_is_a_leak(tmp_path: Path) -> None:
    train = table(tmp_path, "train", ["a.png,x", "b.png,y", "c.png,x"])
    test = table(tmp_path, "test", ["d.png,x", "e.png,y"])
    assert leaks(*[[side] for side in sources(train, test)]) == []
    check_splits(*sides(train, test))
    os.symlink(tmp_path / "a.png", tmp_path / "link.png")
    os.link(tmp_path / "b.png", tmp_path / "hard.png")
    both = table(tmp_path, "both", ["d.png,x", "link.png,y", "hard.png,y", "../" + tmp_path.name + "/c.png,x"])
    found = leaks(*[[side] for side in sources(train, both)])
    assert [Path(path).name for path in found] == ["link.png", "hard.png", "c.png"]
    with pytest.raises(ConfigError, match=r"3 of the 4 test clips are among the training.*link\.png.*--allow leak"):
        check_splits(*sides(train, both))
    check_splits(*sides(train, both), ("leak",))


def test_spans_leak_where_they_overlap(tmp_path: Path) -> None:
    header = "path,label,start_s,end_s"
    train = table(tmp_path, "train", ["a.png,x,0,2", "a.png,y,4,6", "b.png,x,,"], header)
    lines = ["a.png,x,2,4", "a.png,y,5.5,9", "a.png,y,6,7", "b.png,x,100,101", "c.png,y,0,2", "a.png,x,0,2"]
    test = table(tmp_path, "test", lines, header)
    found = leaks(*[[side] for side in sources(train, test)])
    assert [name.rsplit("/", 1)[1] for name in found] == [
        "a.png (5.5 to 9 s)", "b.png (100 to 101 s)", "a.png (0 to 2 s)"
    ]  # fmt: skip


def test_rows_of_one_array_leak_where_they_are_the_same(tmp_path: Path) -> None:
    clips = np.zeros((6, 2, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "one.npz", clips=clips, labels=np.arange(6) % 2)
    np.savez(tmp_path / "two.npz", clips=clips, labels=np.arange(6) % 2)
    one, two = sources(tmp_path / "one.npz", tmp_path / "two.npz")
    assert leaks([one], [two]) == []
    assert leaks([one.subset([0, 1, 2])], [one.subset([3, 4, 5])]) == []
    assert [name.rsplit("/", 1)[1] for name in leaks([one.subset([0, 3, 2])], [one.subset([5, 3])])] == ["one.npz[3]"]
    with pytest.raises(ConfigError, match=r"6 of the 6 test clips"):
        check_splits(*sides(tmp_path / "one.npz", tmp_path / "one.npz"))


def test_classes_that_nobody_can_know_are_named(tmp_path: Path) -> None:
    train = table(tmp_path, "train", ["a.png,x", "b.png,y"])
    test = table(tmp_path, "test", ["c.png,x", "d.png,w", "e.png,w", "f.png,v"])
    train_side, test_side = sides(train, test)
    assert test_side.class_names["label"] == ("x", "y", "v", "w")
    assert test_side.labels["label"].tolist() == [0, 3, 3, 2]
    with pytest.raises(ConfigError, match=r"3 test clips are of 2 label classes that no training clip has: 'v', 'w'\."):
        check_splits(train_side, test_side)
    allowed = check_splits(train_side, test_side, ("unseen_classes",))
    assert allowed.class_names == test_side.class_names
    assert torch.equal(allowed.labels["label"], train_side.labels["label"])


def test_a_number_without_training_clips_is_an_unseen_class_too(tmp_path: Path) -> None:
    train = table(tmp_path, "train", ["a.png,0", "b.png,2"])
    test = table(tmp_path, "test", ["c.png,0", "d.png,1"])
    with pytest.raises(ConfigError, match=r"1 test clips are of 1 label classes that no training clip has: '1'"):
        check_splits(*sides(train, test))


def test_classes_with_fewer_clips_than_asked_for_are_named_before_anything_is_encoded(tmp_path: Path) -> None:
    train = table(tmp_path, "train", ["a.png,x", "b.png,y", "c.png,x", "d.png,"])
    side, _ = sides(train, train)
    check_shots(side, ("1", "10%"))
    with pytest.raises(ValueError, match="few_shot: 2 clips per class, but class 'y' has 1"):
        check_shots(side, ("1", "2"))


def test_classes_of_clips_that_cannot_be_decoded_are_no_classes(tmp_path: Path) -> None:
    train, test = sides(
        table(tmp_path, "train", ["a.png,x", "b.png,y", "c.png,z"]), table(tmp_path, "test", ["d.png,x", "e.png,y"])
    )
    check_decoded(train, test, [torch.tensor([0, 1])])  # nobody asks for z
    with pytest.raises(ConfigError, match=r"1 test clips .* that no training clip that can be decoded has: 'y'"):
        check_decoded(train, test, [torch.tensor([0, 1, 2]), torch.tensor([0, 2])])
    check_decoded(train, test, [torch.tensor([0, 2])], ("unseen_classes",))
    with pytest.raises(ConfigError, match=r"train\.csv: all training clips that can be decoded have the label 'z'"):
        check_decoded(train, test, [torch.tensor([2])], ("unseen_classes",))


def test_a_single_class_is_named(tmp_path: Path) -> None:
    train = table(tmp_path, "train", ["a.png,x", "b.png,x", "c.png,"])
    test = table(tmp_path, "test", ["d.png,x"])
    with pytest.raises(ConfigError, match=r"train\.csv: all training clips have the label 'x'; a probe needs at least"):
        check_splits(*sides(train, test))


def test_other_errors_of_a_source_stay_what_they_are(tmp_path: Path) -> None:
    train = table(tmp_path, "train", ["a.png,x", "b.png,y"])
    with pytest.raises(ConfigError, match=r"nowhere\.csv does not exist"):
        sides(train, tmp_path / "nowhere.csv")
