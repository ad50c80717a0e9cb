"""``jepa eval MODEL --dataset NAME --data ROOT``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evals.labelled import open_labelled
from evals.main import main
from jepa.checkpoint import save_checkpoint
from jepa.config import ConfigError, to_dict
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.types import ClipConfig

CLIP = ClipConfig(num_frames=4, fps=6.0, crop_size=16)
COLOURS = {"Swiping Left": (200, 40, 40), "Stop Sign": (40, 40, 200)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(embed_dim=24, depth=1, num_heads=2, patch_size=8, tubelet_size=2), CLIP)
    weights = {f"target_encoder.{name}": value for name, value in encoder.state_dict().items()}
    root = tmp_path_factory.mktemp("run")
    state = {"config": {}, "clip": to_dict(CLIP), "encoder_config": to_dict(encoder.config), "objective": weights}
    save_checkpoint(root, 3, state)
    return root


@pytest.fixture(scope="module")
def jester(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty training and six validation videos of noisy pictures in two colours."""
    root, rng = tmp_path_factory.mktemp("jester"), np.random.default_rng(0)
    (root / "jester-v1-labels.csv").write_text("\n".join(COLOURS))
    for split, numbers in (("train", range(20)), ("validation", range(20, 26))):
        lines = []
        for number in numbers:
            label = list(COLOURS)[number % 2]
            lines.append(f"{number};{label}")
            folder = root / "20bn-jester-v1" / str(number)
            folder.mkdir(parents=True)
            for frame in range(1, 13):
                noise = rng.integers(-30, 30, (16, 16, 3)) + COLOURS[label]
                Image.fromarray(noise.astype(np.uint8)).save(folder / f"{frame:05d}.jpg")
        (root / f"jester-v1-{split}.csv").write_text("\n".join(lines))
    return root


def test_fits_on_train_and_reports_validation(model: Path, jester: Path, tmp_path: Path) -> None:
    asked = [str(model), "--task", "video", "--dataset", "jester", "--data", str(jester), "--out", str(tmp_path)]
    assert main([*asked, "--probe", "knn"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    row = next(row for row in results["rows"] if row["encoder"] == "pixels")
    assert (row["num_train"], row["num_test"], row["num_classes"], row["accuracy"]) == (20, 6, 2, 1.0)
    assert results["classes"] == {"label": list(COLOURS)}
    assert (results["train"]["split"], results["test"]["split"]) == ("train", "validation")
    assert results["test"]["dataset"]["name"] == results["config"]["dataset"]["name"] == "jester"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "jester"], "--dataset NAME and --data ROOT go together"),
        (["--data", "."], "--dataset NAME and --data ROOT go together"),
        (["--anticipation-s", "1"], "--splits and --anticipation-s are for --dataset NAME"),
        (["--dataset", "jester", "--data", ".", "--splits", "train"], "--splits needs two names FIT,REPORT"),
        (["--dataset", "jester", "--data", ".", "--span", "centred"], "--where and --span are for CSV files"),
        (["--dataset", "jester", "--data", ".", "--train", "x.csv"], "dataset brings its own splits"),
        (["--dataset", "jesters", "--data", "."], "unknown data set 'jesters', did you mean 'jester'"),
        (["--dataset", "jester", "--data", "nothing"], "data set jester: nothing is not a folder"),
        (["--dataset", "jester", "--data", ".", "--max-missing", "2"], "max_missing must lie between 0 and 1"),
    ],
)
def test_wrong_options(
    model: Path, options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([str(model), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_column_without_labels_is_refused(layout) -> None:
    """EPIC-KITCHENS whose validation actions training has none of."""
    from evals.datasets import DatasetConfig, SplitConfig

    header = "participant_id,video_id,start_timestamp,stop_timestamp,verb_class,noun_class"
    layout.text("EPIC_100_verb_classes.csv", "id,key", "0,take", "1,put")
    layout.text("EPIC_100_noun_classes.csv", "id,key", "0,tap")
    layout.text("EPIC_100_train.csv", header, "P01,P01_01,00:00:00.0,00:00:01.0,0,0")
    layout.text("EPIC_100_validation.csv", header, "P01,P01_02,00:00:00.0,00:00:01.0,1,0")
    layout.video("P01/P01_02.MP4")
    split = SplitConfig(dataset=DatasetConfig(name="epic100", root=str(layout.root)), split="validation")
    assert open_labelled(split, ("verb",), CLIP).labels["verb"].tolist() == [1]
    with pytest.raises(ConfigError, match="the split validation has no labels for 'action'"):
        open_labelled(split, (), CLIP)
