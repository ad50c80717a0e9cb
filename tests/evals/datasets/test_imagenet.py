"""ImageNet in class folders, and as Kaggle has it."""

from __future__ import annotations

import pytest

from jepa.config import ConfigError
from jepa.types import ClipConfig

TRAIN = ("train/n02/n02_1.JPEG", "train/n01/n01_7.JPEG", "train/n01/n01_3.JPEG", "train/n03/n03_1.JPEG")


def test_class_folders(layout, opened):
    for number, name in enumerate((*TRAIN, "val/n03/ILSVRC2012_val_00000002.JPEG", "val/n01/v1.JPEG")):
        layout.picture(name, 40 * number)
    train, val = opened("imagenet", "train"), opened("imagenet", "val")
    assert layout.relative(train) == sorted(TRAIN)
    assert train.class_names == val.class_names == {"label": ("n01", "n02", "n03")}
    assert (train.labels["label"].tolist(), val.labels["label"].tolist()) == ([0, 0, 1, 2], [0, 2])
    clip = train.source.load_clip(1, ClipConfig(num_frames=1, crop_size=16))
    assert (clip.frames.shape, clip.label) == ((1, 16, 16, 3), 0)
    assert abs(float(clip.frames.mean()) - 40) < 3
    layout.picture("val/n09/v2.JPEG")
    with pytest.raises(ConfigError, match=r"val has the class 'n09', which is not among the 3 classes of .*train"):
        opened("imagenet", "val")
    layout.picture("val/stray.JPEG")
    with pytest.raises(ConfigError, match=r"stray\.JPEG lies beside the class folders"):
        opened("imagenet", "val")


@pytest.fixture
def kaggle(layout):
    layout.text("LOC_synset_mapping.txt", "n01 tench, Tinca tinca", "n02 crane", "n03 crane")
    layout.text(
        "LOC_val_solution.csv", "ImageId,PredictionString", "ILSVRC2012_val_1,n03 85 1 499 272 n03 1 2 3 4 ",
        "ILSVRC2012_val_2,n01 1 2 3 4 ",
    )  # fmt: skip
    for number in (1, 2):
        layout.picture(f"ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{number}.JPEG")
    layout.picture("ILSVRC/Data/CLS-LOC/train/n02/n02_1.JPEG")
    return layout


def test_flat_validation_folder_of_kaggle(kaggle, opened):
    val, train = opened("imagenet", "val"), opened("imagenet", "train")
    assert val.class_names == train.class_names == {"label": ("tench", "crane (n02)", "crane (n03)")}
    assert (val.labels["label"].tolist(), train.labels["label"].tolist()) == ([2, 0], [1])
    assert kaggle.relative(val)[0] == "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_1.JPEG"
    (kaggle.root / kaggle.relative(val)[0]).unlink()
    with pytest.raises(ConfigError, match=r"1 of 2 videos are missing, .*: ILSVRC2012_val_1"):
        opened("imagenet", "val")


def test_kaggle_errors(kaggle, opened):
    (kaggle.root / "LOC_val_solution.csv").unlink()
    with pytest.raises(ConfigError, match=r"no annotation file LOC_val_solution\.csv"):
        opened("imagenet", "val")
    kaggle.picture("val/n01/1.JPEG")
    (kaggle.root / "LOC_synset_mapping.txt").unlink()
    with pytest.raises(ConfigError, match=r"neither LOC_synset_mapping\.txt nor .*train, which would tell the classes"):
        opened("imagenet", "val")
