"""Kinetics, Diving48, Jester and COIN: what is listed, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from jepa.config import ConfigError
from jepa.types import ClipConfig

HEADER = "label,youtube_id,time_start,time_end,split"


@pytest.fixture
def kinetics(layout):
    layout.text(
        "annotations/train.csv", HEADER, "zumba,--abcdefghi,3,13,train", '"opening a, box",_xyz_xyz_xy,120,130,train'
    )
    layout.text("annotations/val.csv", HEADER, "zumba,vvvvvvvvvvv,1000,1010,val")
    layout.video("train/--abcdefghi_000003_000013.mp4", "train/opening a, box/_xyz_xyz_xy_000120_000130.mp4")
    layout.video("val/vvvvvvvvvvv_001000_001010.mp4")
    return layout


def test_kinetics_flat_and_in_class_folders(kinetics, opened):
    train, val = opened("kinetics", "train"), opened("kinetics", "val")
    assert train.class_names["label"] == val.class_names["label"] == ("opening a, box", "zumba")
    assert (train.labels["label"].tolist(), val.labels["label"].tolist()) == ([1, 0], [1])
    assert kinetics.relative(train) == [
        "train/--abcdefghi_000003_000013.mp4", "train/opening a, box/_xyz_xyz_xy_000120_000130.mp4",
    ]  # fmt: skip
    kinetics.video("replacement/replacement_for_corrupted_k400/vvvvvvvvvvv_001000_001010.mp4")
    assert kinetics.relative(opened("kinetics", "val"))[0].startswith("replacement/")


def test_kinetics_errors(kinetics, opened):
    with pytest.raises(ConfigError, match=r"no annotation file test\.csv or kinetics_test\.csv"):
        opened("kinetics", "test")
    kinetics.text("annotations/test.csv", "youtube_id,time_start,time_end,split", "a,1,2,test")
    with pytest.raises(ConfigError, match=r"test\.csv has no column 'label'; its columns: youtube_id"):
        opened("kinetics", "test")
    kinetics.text("annotations/val.csv", HEADER, "yoga,vvvvvvvvvvv,1000,1010,val")
    with pytest.raises(ConfigError, match=r"val\.csv has the class 'yoga', which is not among the 2 classes of train"):
        opened("kinetics", "val")
    kinetics.text("annotations/val.csv", HEADER, "zumba,vvvvvvvvvvv,soon,1010,val")
    with pytest.raises(ConfigError, match=r"val\.csv, row 1: 'soon' and '1010' must be numbers of seconds"):
        opened("kinetics", "val")
    kinetics.text("annotations/val.csv", HEADER, "zumba,vvvvvvvvvvv")
    with pytest.raises(ConfigError, match=r"val\.csv, row 1: 2 cells, the header has 5"):
        opened("kinetics", "val")


@pytest.fixture
def diving48(layout):
    layout.json("Diving48_vocab.json", [["Back", "15som", "05Twis", "FREE"], ["Forward", "Dive", "NoTwis", "PIKE"]])
    row = {"start_frame": 0, "end_frame": 20}
    layout.json("Diving48_V2_train.json", [{"vid_name": "_8V_00001", "label": 1, **row}])
    layout.json("Diving48_V2_test.json", [{"vid_name": "_8V_00000", "label": 0, **row}])
    layout.video("rgb/_8V_00000.mp4", "rgb/_8V_00001.mp4")
    return layout


def test_diving48(diving48, opened):
    train, test = opened("diving48", "train"), opened("diving48", "test")
    assert train.class_names["label"] == ("Back 15som 05Twis FREE", "Forward Dive NoTwis PIKE")
    assert (train.labels["label"].tolist(), test.labels["label"].tolist()) == ([1], [0])
    assert (diving48.relative(train), train.source.spans) == (["rgb/_8V_00001.mp4"], None)
    diving48.json("Diving48_V2_test.json", [{"vid_name": "_8V_00000", "label": 2}])
    with pytest.raises(ConfigError, match=r"entry 0 has the label 2, Diving48_vocab\.json has 2"):
        opened("diving48", "test")


@pytest.fixture
def jester(layout):
    layout.text("jester-v1-labels.csv", "Swiping Left", "Doing other things")
    layout.text("jester-v1-train.csv", "34870;Doing other things", "56557;Swiping Left")
    layout.text("jester-v1-validation.csv", "9223;Swiping Left")
    for video in (34870, 56557, 9223):
        for frame in range(1, 13):
            layout.picture(f"20bn-jester-v1/{video}/{frame:05d}.jpg", 20 * frame)
    return layout


def test_jester_reads_frame_folders_at_12_fps(jester, opened):
    train = opened("jester", "train")
    assert train.class_names["label"] == ("Swiping Left", "Doing other things")
    assert train.labels["label"].tolist() == [1, 0]
    clip = train.source.load_clip(0, ClipConfig(num_frames=4, fps=4.0, crop_size=16))  # every third of 12 frames
    assert np.abs(clip.frames.mean(axis=(1, 2, 3)) - [40, 100, 160, 220]).max() < 2
    assert (clip.start_s, clip.end_s, clip.label) == (1 / 12, 13 / 12, 1)


def test_jester_errors(jester, opened):
    jester.text("jester-v1-validation.csv", "9223;Waving")
    with pytest.raises(ConfigError, match=r"'Waving', which is not among the 2 classes of jester-v1-labels\.csv"):
        opened("jester", "validation")
    jester.text("jester-v1-validation.csv", "9223")
    with pytest.raises(ConfigError, match="line 1: '9223' is not ID;gesture"):
        opened("jester", "validation")
    jester.text("jester-v1-validation.csv", "")
    with pytest.raises(ConfigError, match="the split 'validation' has no entries"):
        opened("jester", "validation")
    jester.text("jester-v1-validation.csv", "1;Swiping Left")
    with pytest.raises(ConfigError, match="1 of 1 videos are missing: 1"):
        opened("jester", "validation")


def coin_video(task: str, number: int, subset: str, *steps: tuple[int, float, float, str]) -> dict:
    annotation = [{"id": str(i), "segment": [start, end], "label": label} for i, start, end, label in steps]
    return {"class": task, "recipe_type": number, "subset": subset, "duration": 2.0, "annotation": annotation}


@pytest.fixture
def coin(layout):
    database = {
        "aaaaaaaaaaa": coin_video("ReplaceCD", 131, "training", (216, 1.0, 1.5, "insert"), (212, 0.2, 0.9, "take out")),
        "bbbbbbbbbbb": coin_video("ArcWeld", 7, "training", (31, 0.0, 1.0, "insert")),
        "ccccccccccc": coin_video("ReplaceCD", 131, "testing", (212, 0.5, 1.5, "take out")),
        "ddddddddddd": coin_video("ArcWeld", 7, "validation", (31, 0.0, 2.0, "insert")),
    }
    layout.json("COIN.json", {"database": database})
    layout.video("videos/131/aaaaaaaaaaa.mp4", "videos/7/bbbbbbbbbbb.mp4", "videos/131/ccccccccccc.mp4")
    layout.video("videos/7/ddddddddddd.mp4")
    return layout, database


def test_coin_tasks(coin, opened):
    train, test = opened("coin", "training"), opened("coin", "testing")
    assert train.class_names == {"task": ("ArcWeld", "ReplaceCD")}  # 7 comes before 131
    assert (train.labels["task"].tolist(), test.labels["task"].tolist()) == ([1, 0], [1, 0])
    assert coin[0].relative(test) == ["videos/131/ccccccccccc.mp4", "videos/7/ddddddddddd.mp4"]


def test_coin_steps_have_spans(coin, opened):
    train, test = opened("coin_steps", "training"), opened("coin_steps", "testing")
    assert train.class_names["step"] == ("insert (31)", "take out", "insert (216)")
    assert train.labels["step"].tolist() == train.source.labels.tolist() == [2, 1, 0]
    assert train.labels["task"].tolist() == [1, 1, 0]
    assert train.source.spans.tolist() == [[1.0, 1.5], [0.2, 0.9], [0.0, 1.0]]
    assert (test.labels["step"].tolist(), test.class_names) == ([1, 0], train.class_names)
    clip = train.source.load_clip(0, ClipConfig(num_frames=3, fps=10.0, crop_size=16))
    assert np.abs(clip.frames[..., 0].mean(axis=(1, 2)) - [110, 120, 130]).max() < 6  # frames 11 to 13 of 10 to 14
    only = opened("coin_steps", "training", ("task",))
    assert (list(only.labels), only.source.labels.tolist()) == (["task"], [1, 1, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subset": "dev"}, "the video aaaaaaaaaaa is in the unknown subset 'dev'"),
        ({"recipe_type": 7}, "recipe_type 7 is 'ReplaceCD' and, in bbbbbbbbbbb, 'ArcWeld'"),
        ({"annotation": [{"id": 31, "segment": [0, 1], "label": "hold"}]}, "step 31 is called 'hold' and 'insert'"),
        ({"annotation": [{"id": 1, "segment": [2, 1], "label": "x"}]}, "ends at 1 s, not after its start at 2 s"),
        ({"annotation": [{"id": 1, "label": "x"}]}, "entry 0 has no 'segment'"),
    ],
)
def test_coin_errors(coin, opened, change, message):
    layout, database = coin
    database["aaaaaaaaaaa"].update(change)
    layout.json("COIN.json", {"database": database})
    with pytest.raises(ConfigError, match=message):
        opened("coin_steps", "training")
    del database["aaaaaaaaaaa"]["annotation"]
    layout.json("COIN.json", {"database": database})
    with pytest.raises(ConfigError, match=r"COIN\.json: the video aaaaaaaaaaa has no 'annotation'"):
        opened("coin", "training")
    layout.json("COIN.json", {"videos": database})
    with pytest.raises(ConfigError, match="entry 0 has no 'database'"):
        opened("coin", "training")
