"""EPIC-KITCHENS-100: actions, pairs seen in training, and what may be seen before an action."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from jepa.config import ConfigError
from jepa.types import ClipConfig

HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)
CLIP = ClipConfig(num_frames=3, fps=10.0, crop_size=16)


def row(video: str, start: str, stop: str, verb: int, noun: int) -> str:
    return f"{video}_0,{video[:3]},{video},{start},{start},{stop},1,9,n,v,{verb},n,{noun},\"['a', 'b']\",\"[1, 2]\""


@pytest.fixture
def epic(layout):
    layout.text("EPIC_100_verb_classes.csv", "id,key,instances,category", "0,take,\"['a', 'b']\",x", "1,put,['c'],x")
    layout.text("EPIC_100_noun_classes.csv", '"id","key"', '0,"tap"', '1,"spoon"', '2,"bowl:washing"')
    layout.text(
        "EPIC_100_train.csv", HEADER,
        row("P01_01", "00:00:00.50", "00:00:01.00", 1, 0),
        row("P01_01", "00:00:01.20", "00:00:01.90", 0, 2),
        row("P02_101", "00:00:00.00", "00:00:02.00", 0, 1),
    )  # fmt: skip
    layout.text(
        "EPIC_100_validation.csv", HEADER,
        row("P02_102", "00:00:01.50", "00:00:01.80", 0, 2),
        row("P02_102", "00:00:00.40", "00:00:00.80", 1, 1),
    )  # fmt: skip
    layout.video("EPIC-KITCHENS/P01/videos/P01_01.MP4", "EPIC-KITCHENS/P02/videos/P02_101.MP4", "P02/P02_102.MP4")
    return layout


def test_actions_are_the_pairs_seen_in_training(epic, opened, caplog):
    train = opened("epic100", "train")
    assert train.class_names["verb"] == ("take", "put")
    assert train.class_names["noun"] == ("tap", "spoon", "bowl:washing")
    assert train.class_names["action"] == ("take spoon", "take bowl:washing", "put tap")
    assert {name: ids.tolist() for name, ids in train.labels.items()} == {
        "verb": [1, 0, 0], "noun": [0, 2, 1], "action": [2, 1, 0],
    }  # fmt: skip
    assert train.source.spans.tolist() == [[0.5, 1.0], [1.2, 1.9], [0.0, 2.0]]
    with caplog.at_level(logging.WARNING, "jepa"):
        test = opened("epic100", "validation")
    assert "1 of 2 actions are not in the training set" in caplog.text
    assert test.labels["action"].tolist() == [1, -1]
    assert (test.labels["verb"].tolist(), test.labels["noun"].tolist()) == ([0, 1], [2, 1])
    assert epic.relative(test) == ["P02/P02_102.MP4"] * 2
    inside = train.source.load_clip(1, CLIP).frames[..., 0].mean(axis=(1, 2))  # frames 12 to 18: the middle three
    assert np.abs(inside - [140, 150, 160]).max() < 6


def test_anticipation_ends_before_the_action(epic, opened, caplog):
    with caplog.at_level(logging.WARNING, "jepa"):
        test = opened("epic100", "validation", ("action", "verb"), anticipation_s=1.0)
    assert list(test.labels) == ["action", "verb"]
    assert "1 of 2 actions start within 1 s of their video" in caplog.text
    assert test.source.spans.tolist() == [[0.0, 0.5], [0.0, 0.0]]
    seen = [test.source.load_clip(item, CLIP).frames[..., 0].mean(axis=(1, 2)) for item in range(2)]
    assert np.abs(seen[0] - [20, 30, 40]).max() < 6  # frame 5 is the one at 0.5 s, one second before 1.5 s
    assert np.abs(seen[1]).max() < 6  # nothing but the first frame


def test_a_missing_video_counts_once(epic, opened):
    (epic.root / "EPIC-KITCHENS/P01/videos/P01_01.MP4").unlink()
    train = opened("epic100", "train", max_missing=0.5)
    assert (train.missing, train.labels["action"].tolist(), train.source.spans.tolist()) == (
        ("P01_01",), [0], [[0.0, 2.0]],
    )  # fmt: skip
    with pytest.raises(ConfigError, match="1 of 2 videos are missing"):
        opened("epic100", "train", max_missing=0.49)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (row("P02_102", "1.5", "00:00:02.00", 0, 1), r"row 1: '1\.5' and '00:00:02\.00' must be times HH:MM:SS"),
        (row("P02_102", "00:00:02.00", "00:00:02.00", 0, 1), r"row 1: the action stops at 00:00:02\.00, not after"),
        (row("P02_102", "00:00:01.00", "00:00:02.00", 2, 1), r"class '2', which is not among the 2 classes of EPIC"),
        (row("P02_102", "00:00:01.00", "00:00:02.00", 1, 9), r"class '9', which is not among the 3 classes of EPIC"),
    ],
)
def test_wrong_rows(epic, opened, line, message):
    epic.text("EPIC_100_validation.csv", HEADER, line)
    with pytest.raises(ConfigError, match=message):
        opened("epic100", "validation")


def test_missing_files(epic, opened):
    epic.text("EPIC_100_verb_classes.csv", "id,key", "0,take", "2,put")
    with pytest.raises(ConfigError, match=r"verb_classes\.csv must number its 2 classes from 0 to 1"):
        opened("epic100", "validation")
    (epic.root / "EPIC_100_train.csv").unlink()  # the actions are those of the training set
    with pytest.raises(ConfigError, match=r"no annotation file EPIC_100_train\.csv"):
        opened("epic100", "validation")
