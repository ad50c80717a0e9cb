"""The task latent_action over real runs, small and untrained: its files, its rows, the bounds, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evals.latent_actions.opening import open_model, open_sources, read_scenes
from evals.main import evaluate
from evals.settings import EvalConfig
from evals.task_configs import LatentActionTask
from evals.tasks.latent_action import Looked, with_bounds
from jepa.config import ConfigError, from_dict
from jepa.distributed import Run
from jepa.train import TrainConfig, fit
from tests.moving_agent import write_agent
from tests.support import write_clips

SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 1, "num_heads": 2}


def train(folder: Path, name: str, bottleneck: dict[str, Any], **objective: Any) -> Path:
    """A run of 2 steps; the encoder is that of the run "encoder", where that is there."""
    loop = {"steps": 2, "batch_size": 4, "log_every": 1, "save_every": 100, "progress": "off", "tensorboard": False}
    values: dict[str, Any] = {"kind": "latent_action", "inverse": SMALL, "bottleneck": bottleneck, **objective}
    settings: dict[str, Any] = {
        "run_dir": str(folder / name), "clip": {"num_frames": 4, "fps": 5.0, "crop_size": 32},
        "data": {"sources": [{"path": str(folder / "data"), "trajectory": {}}], "workers": 0, "holdout": 3},
        "objective": {"predictor": SMALL, **values}, "augment": {"flip": 0.0}, "train": loop,
        "monitor": {"every": 1000},
    }  # fmt: skip
    if "encoder_from" not in objective:
        settings["encoder"] = {**SMALL, "patch_size": 16, "tubelet_size": 1}
        settings["objective"]["regularizer"] = {"kind": "variance_covariance"}
    return fit(from_dict(TrainConfig, settings)).parent.parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_agent(folder / "data", episodes=8)
    first = train(folder, "none", {"kind": "none", "dim": 3})
    train(folder, "zero", {"kind": "zero"}, encoder_from=str(first))
    train(folder, "vq", {"kind": "vq", "num_codes": 3, "dim": 4, "warmup": 0.5}, encoder_from=str(first))
    train(folder, "free", {"kind": "none", "dim": 3}, encoder_from=str(first))
    return folder


def config(runs: Path, **changes: Any) -> EvalConfig:
    task = LatentActionTask(clips=12, labels=(4, 8))
    values: dict[str, Any] = {"run": str(runs / "vq"), "task": "latent_action", "device": "cpu", "latent_action": task}
    return EvalConfig(**{**values, **changes})


def test_the_whole_panel(runs: Path) -> None:
    others = (str(runs / "zero"), str(runs / "free"), str(runs / "none"))
    results = evaluate(config(runs, against=others))
    rows = {Path(row["model"]).name: row for row in results["rows"]}
    assert [row["bottleneck"] for row in rows.values()] == ["vq", "zero", "none", "none"]
    vq, null, free = rows["trained"], rows["zero"], rows["free"]
    assert (vq["clips"], vq["transitions"], len(vq["usage"])) == (12, 36, 3)
    assert sum(vq["usage"]) == pytest.approx(1)
    assert 1 <= vq["perplexity"] <= 3
    assert null["inferred"] == null["zero"] == null["shuffled"]  # it has one action
    assert (null["controllability"], null["leakage"], null["perplexity"]) == (0, 0, None)
    best = min(free["inferred"], rows["none"]["inferred"])
    assert null["between"] == 0
    assert 1 in (free["between"], rows["none"]["between"])
    assert vq["between"] == pytest.approx((null["inferred"] - vq["inferred"]) / (null["inferred"] - best))
    assert rows["none"]["copy"] == pytest.approx(vq["copy"])  # the encoder of all of them is that run's
    assert [part["labels"] for part in vq["agreement"]] == [4, 8]
    assert all(0 <= row["information"] <= 1 for row in rows.values() if row["information"] is not None)
    folder = runs / "vq" / "evals" / "latent_action"
    assert sorted(path.name for path in folder.iterdir()) == [
        "latent_actions.png", "report.html", "results.json", "results.md",
    ]  # fmt: skip
    report = (folder / "report.html").read_text()
    assert "What actions mean" in report
    assert "Agreement with true actions" in report
    assert json.loads((folder / "results.json").read_text())["rows"][0]["bottleneck"] == "vq"
    table = results["table"].splitlines()
    assert table[0].count("|") == table[2].count("|")
    assert "R2, 4 labels" in table[0]


@torch.no_grad()
def test_scenes_are_evenly_drawn_and_encoded_frame_by_frame(runs: Path) -> None:
    model = open_model(str(runs / "none"), Run(torch.device("cpu"), "fp32"))
    sources = open_sources(config(runs), model.objective.clip)
    scenes = read_scenes(model, sources, 12, 5, 0)
    assert scenes.videos.tolist() == sorted([0, 1, 2] * 4)  # the three that the run held out
    assert scenes.latents.shape[:2] == (12, 4)
    assert scenes.actions is not None
    assert scenes.actions.shape == (12, 3, 2)
    assert set(scenes.actions.round(decimals=5).unique().tolist()) <= {-1, 0, 1}
    z = model.infer(scenes.latents)
    one = model.infer(scenes.latents[3:4, 1:3])
    torch.testing.assert_close(one[:, 0], z[3:4, 1])
    forced = model.predict(scenes.latents[:, :-1], z)
    torch.testing.assert_close(model.predict(scenes.latents[:, :1], z[:, :1])[:, 0], forced[:, 0])


def test_video_without_actions(runs: Path, tmp_path: Path) -> None:
    from jepa.data.sources import SourceConfig

    source = SourceConfig(path=str(write_clips(tmp_path / "clips.npz")))
    results = evaluate(config(runs, test=source, out=str(tmp_path / "out")))
    row = results["rows"][0]
    assert (row["agreement"], row["information"]) == ([], None)
    assert not (tmp_path / "out" / "latent_actions.png").exists()
    assert "The data has no true actions to agree with." in results["table"]


def test_bounds_need_the_same_latents(runs: Path) -> None:
    results = evaluate(config(runs, against=(str(runs / "zero"), str(runs / "free"))))
    from evals.tasks.latent_action import LatentActionRow

    looked = [
        Looked(LatentActionRow(**{**row, "between": None}), np.zeros((1, 1)), None, f"{row['bottleneck']}")
        for row in results["rows"]
    ]
    assert [part.row.between for part in with_bounds(looked)] == [None] * 3
    alike = [part._replace(fingerprint="same") for part in looked]
    assert with_bounds(alike)[0].row.between == results["rows"][0]["between"]


def test_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing is neither a run directory nor a checkpoint file"):
        evaluate(config(runs, run=str(runs / "nothing"), out=str(tmp_path)))
    with pytest.raises(ValueError, match=r"labels 99: must be at least 2 and leave some of the 36 transitions"):
        evaluate(config(runs, latent_action=LatentActionTask(clips=12, labels=(99,))))
    with pytest.raises(ConfigError, match=r"against \['x', 'x'\] names a model twice"):
        evaluate(config(runs, against=("x", "x"), out=str(tmp_path)))
    with pytest.raises(ValueError, match=r"latent_action\.labels must be numbers of at least 2, not \[1\]"):
        LatentActionTask(labels=(1,))
    with pytest.raises(ValueError, match=r"latent_action\.clips must be at least 2 and draws at least 1: 1, 3"):
        LatentActionTask(clips=1)


def test_a_world_model_infers_no_actions(runs: Path) -> None:
    loop = {"steps": 1, "batch_size": 2, "progress": "off", "tensorboard": False}
    settings = {
        "run_dir": str(runs / "world"), "clip": {"num_frames": 4, "fps": 5.0},
        "data": {"sources": [{"path": str(runs / "data"), "trajectory": {}}], "workers": 0},
        "objective": {"kind": "world_model", "encoder_from": str(runs / "none"), "predictor": SMALL},
        "augment": {"flip": 0.0}, "train": loop, "monitor": {"every": 1000},
    }  # fmt: skip
    fit(from_dict(TrainConfig, settings))
    with pytest.raises(ConfigError, match="objective 'world_model', which infers no actions"):
        evaluate(config(runs, run=str(runs / "world"), out=str(runs / "out")))
