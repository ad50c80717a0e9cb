"""Something-Something v2; and what all data sets refuse."""

from __future__ import annotations

import logging

import pytest

from evals.datasets import DatasetConfig, choose_splits
from jepa.config import ConfigError
from jepa.types import ClipConfig

CLASSES = {"Pushing something": "2", "Closing something": "0", "Holding something next to something": "1"}


def entry(video: int, template: str) -> dict:
    return {"id": str(video), "label": "as it was said", "template": template, "placeholders": ["cup"]}


@pytest.fixture
def ssv2(layout):
    name = "something-something-v2-{}.json"
    layout.json(name.format("labels"), CLASSES)
    layout.json(name.format("train"), [
        entry(7, "Pushing [something]"),
        entry(12, "Holding [something] next to [something]"),
        entry(3, "Closing [something]"),
    ])  # fmt: skip
    layout.json(name.format("validation"), [entry(20, "Holding [something] next to [something]")])
    layout.video(*(f"20bn-something-something-v2/{video}.mp4" for video in (7, 12, 3, 20, 99)))
    return layout


def test_templates_are_classes(ssv2, opened):
    train = opened("ssv2", "train")
    assert train.class_names == {
        "label": ("Closing something", "Holding something next to something", "Pushing something")
    }
    assert train.labels["label"].tolist() == train.source.labels.tolist() == [2, 1, 0]
    assert ssv2.relative(train) == [f"20bn-something-something-v2/{video}.mp4" for video in (7, 12, 3)]
    assert train.missing == ()
    clip = train.source.load_clip(0, ClipConfig(num_frames=4, fps=10.0, crop_size=16))
    assert (clip.frames.shape, clip.label, clip.start_s) == ((4, 16, 16, 3), 2, 0.8)
    test = opened("ssv2", "validation")
    assert (test.labels["label"].tolist(), test.class_names) == ([1], train.class_names)


def test_the_later_names_of_the_files(layout, opened):
    layout.json("labels/labels.json", CLASSES)
    layout.json("labels/train.json", [entry(7, "Pushing [something]")])
    layout.video("videos/7.webm")  # named as published; an mp4 inside, which readers do not mind
    assert opened("ssv2", "train").labels["label"].tolist() == [2]


def test_missing_videos_are_counted_and_named(ssv2, opened, caplog):
    (ssv2.root / "20bn-something-something-v2/12.mp4").unlink()
    with pytest.raises(ConfigError, match=r"split train: 1 of 3 videos are missing, .* max_missing 0\.05 allows: 12"):
        opened("ssv2", "train")
    with caplog.at_level(logging.WARNING, "jepa"):
        train = opened("ssv2", "train", max_missing=0.34)
    assert "1 of 3 videos are missing and left out: 12" in caplog.text
    assert (train.labels["label"].tolist(), train.missing, len(train.source)) == ([2, 0], ("12",), 2)
    for video in (7, 3):
        (ssv2.root / f"20bn-something-something-v2/{video}.mp4").unlink()
    with pytest.raises(ConfigError, match=r"3 of 3 videos are missing: 7, 12, 3; docs/datasets\.md"):
        opened("ssv2", "train", max_missing=1.0)


@pytest.mark.parametrize(
    ("file", "value", "message"),
    [
        ("train", [entry(7, "Poking [something]")], r"train\.json has the class 'Poking something', which is not"),
        ("train", [{"id": "7"}], r"train\.json: entry 0 has no 'template'"),
        ("train", {}, r"train\.json must hold a JSON list, not dict"),
        ("train", [], r"the split 'train' has no entries"),
        ("labels", {"Pushing something": "1"}, r"labels\.json must number its 1 classes from 0 to 0"),
    ],
)
def test_wrong_annotations(ssv2, opened, file, value, message):
    ssv2.json(f"something-something-v2-{file}.json", value)
    with pytest.raises(ConfigError, match=message):
        opened("ssv2", "train")


def test_what_every_data_set_refuses(ssv2, opened):
    with pytest.raises(ConfigError, match="unknown data set 'ssv1', did you mean 'ssv2'"):
        opened("ssv1", "train")
    with pytest.raises(ConfigError, match="has no split 'valid' with labels, did you mean 'validation'"):
        opened("ssv2", "valid")
    with pytest.raises(ConfigError, match="has no labels 'labels', did you mean 'label'"):
        opened("ssv2", "train", ("labels",))
    with pytest.raises(ConfigError, match="anticipation_s is for epic100 only, not for ssv2"):
        opened("ssv2", "train", anticipation_s=1.0)
    with pytest.raises(ValueError, match=r"max_missing must lie between 0 and 1, not 1\.5"):
        opened("ssv2", "train", max_missing=1.5)
    with pytest.raises(ValueError, match="anticipation_s must be at least 0 seconds"):
        opened("ssv2", "train", anticipation_s=-1.0)
    (ssv2.root / "something-something-v2-train.json").write_text("{broken")
    with pytest.raises(ConfigError, match=r"train\.json cannot be read as JSON"):
        opened("ssv2", "train")
    (ssv2.root / "something-something-v2-train.json").unlink()
    with pytest.raises(ConfigError, match=r"no annotation file something-something-v2-train\.json or train\.json"):
        opened("ssv2", "train")
    ssv2.video("20bn-something-something-v2/more/20.mp4")
    with pytest.raises(ConfigError, match="two files are called 20"):
        opened("ssv2", "validation")
    (ssv2.root / "20bn-something-something-v2").rename(ssv2.root / "clips")
    with pytest.raises(ConfigError, match="has no folder 20bn-something-something-v2 or videos"):
        opened("ssv2", "validation")


def test_splits_are_the_usual_ones_unless_given(tmp_path):
    fit, report = choose_splits(DatasetConfig(name="ssv2", root=str(tmp_path)))
    assert (fit.split, report.split) == ("train", "validation")
    fit, report = choose_splits(DatasetConfig(name="kinetics", root=str(tmp_path), splits=("val", "test")))
    assert (fit.split, report.split) == ("val", "test")
    with pytest.raises(ConfigError, match="data set kinetics has no split 'dev'"):
        choose_splits(DatasetConfig(name="kinetics", root=str(tmp_path), splits=("train", "dev")))
