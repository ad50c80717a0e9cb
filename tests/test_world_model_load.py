"""World models by run, checkpoint and published file: the same numbers as in training, and clear refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from made_worlds import world_settings
from safetensors.torch import load_file
from support import tiny_settings

import jepa
from jepa.checkpoint import load_checkpoint, load_encoder
from jepa.config import from_dict, load_yaml
from jepa.logging import read_metrics
from jepa.models.pose import next_poses
from jepa.tensorfiles import CheckpointError
from jepa.train import TrainConfig, fit
from jepa.world_model import load_world_model

OWN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[1].parent / "shared" / "golden"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joint run of four steps with an EMA."""
    folder = tmp_path_factory.mktemp("world")
    fit(from_dict(TrainConfig, world_settings(folder, momentum=[0.5, 1.0], state_update="none")))
    return folder / "run"


@torch.no_grad()
def test_a_run_comes_back_as_it_was(run: Path) -> None:
    model = load_world_model(run)
    assert (model.action_dim, model.state_dim, model.latent_dim, model.grid.size) == (2, 3, 8, 4)
    assert (model.clip.fps, model.clip.crop_size) == (10, 32)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    tensors = load_checkpoint(run)["objective"]
    for name, value in model.state_dict().items():
        part = name.partition(".")[0]
        stored = f"target_{name}" if part in ("encoder", "head") else name
        assert torch.equal(value, tensors[stored]), name
    actions = torch.cat([torch.from_numpy(file) for file in _actions(run)])
    torch.testing.assert_close(model.scaling.action_mean, actions.mean(dim=0), atol=0.02, rtol=0)
    frames = torch.randn(2, 3, 3, 32, 32)
    latents = model.encode(frames)
    found = model.rollout(latents, torch.randn(2, 5, 2), torch.randn(2, 3, 3))
    assert found.shape == (2, 3, 4, 8)
    torch.testing.assert_close(load_world_model(next((run / "checkpoints").iterdir())).encode(frames), latents)


def _actions(run: Path) -> list[Any]:
    import numpy as np

    return [np.load(path)["actions"] for path in sorted((run.parent / "worlds").glob("*.npz"))]


@torch.no_grad()
def test_its_encoder_is_an_image_encoder_for_jepa_load(run: Path) -> None:
    encoder = jepa.load(run)
    assert (encoder.clip.num_frames, encoder.clip.fps) == (1, None)
    frames = torch.randn(1, 3, 1, 32, 32)
    torch.testing.assert_close(encoder(frames), load_world_model(run).encoder(frames))
    online = load_encoder(run, "encoder")(frames)
    assert not torch.allclose(online, encoder(frames))
    features = jepa.encode(torch.zeros(1, 48, 40, 3, dtype=torch.uint8), run)
    assert features.tokens.shape == (1, 16, 24)


def test_the_monitor_wrote_horizons(run: Path) -> None:
    record = next(r for r in reversed(read_metrics(run)) if "monitor/skill" in r)
    for name in ("error", "error_copy", "error_mean", "skill"):
        assert {f"monitor/{name}_h{h}" for h in (1, 2, 4)} <= set(record)
    assert "monitor/error_h8" not in record


def test_widths_and_statistics_are_in_the_config_and_the_run_goes_on(run: Path, tmp_path: Path) -> None:
    stored = from_dict(TrainConfig, load_yaml(run / "config.yaml")).objective.predictor  # type: ignore[union-attr]
    assert (stored.action_dim, stored.state_dim) == (2, 3)
    shutil.copytree(run, tmp_path / "run")
    settings = world_settings(run.parent, momentum=[0.5, 1.0], state_update="none")
    settings |= {"run_dir": str(tmp_path / "run"), "train": {**settings["train"], "steps": 5}}
    assert load_checkpoint(fit(from_dict(TrainConfig, settings)))["step"] == 5
    torch.testing.assert_close(
        load_world_model(tmp_path / "run").scaling.action_std, load_world_model(run).scaling.action_std
    )


# ---- published ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [OWN, SHARED], ids=["own", "shared"])
@torch.no_grad()
def test_published_predictor_by_teacher_forcing_and_by_rollout(folder: Path) -> None:
    if not folder.is_dir():
        pytest.skip("../shared/golden is not on this machine; the copies in tests/golden are tested")
    folder = folder / "vjepa2_ac"
    model = load_world_model(folder / "checkpoint.pt", **json.loads((folder / "config.json").read_text()))
    io = load_file(folder / "io.safetensors")
    actions, states, steps = io["actions"], io["states"], io["actions"].shape[1]
    assert (model.action_dim, model.state_dim, model.config.state_update) == (7, 7, "pose7")
    latents = io["latents"].unflatten(1, (steps, -1))
    expected = torch.nn.functional.layer_norm(io["predictor"].unflatten(1, (steps, -1)), (model.latent_dim,))
    torch.testing.assert_close(model.teacher_forced(latents, actions, states), expected, atol=1e-4, rtol=0)
    rolled = model.rollout(latents, actions, states)[:, 0]  # the last step's action leads beyond the last frame
    torch.testing.assert_close(rolled, expected[:, -1], atol=1e-4, rtol=0)
    sequence, poses = latents[:, :1], states[:, :1]
    found = model.rollout(sequence, actions, poses)
    for step in range(steps):
        predicted = model.teacher_forced(sequence, actions[:, : step + 1], poses)[:, -1:]
        torch.testing.assert_close(found[:, step], predicted[:, 0], atol=1e-5, rtol=0)
        sequence = torch.cat((sequence, predicted), dim=1)
        poses = torch.cat((poses, next_poses(poses[:, -1:], actions[:, step : step + 1])), dim=1)


def test_what_is_no_world_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="unknown model 'nothing'"):
        load_world_model("nothing")
    with pytest.raises(CheckpointError, match=r"run directory .* holds no checkpoint"):
        load_world_model(tmp_path)
    fit(from_dict(TrainConfig, tiny_settings(tmp_path, steps=1, device="cpu", precision="fp32")))
    with pytest.raises(CheckpointError, match="trained with objective 'masked': a world model needs one of"):
        load_world_model(tmp_path / "run")
    keys = json.loads((OWN / "vjepa2" / "config.json").read_text())
    with pytest.raises(CheckpointError, match="is a vjepa2 model, which predicts no actions' outcome"):
        load_world_model(OWN / "vjepa2" / "checkpoint.pt", **keys)
    with pytest.raises(CheckpointError, match=r"published vjepa2_ac checkpoint.*jepa.load_world_model\("):
        load_world_model(OWN / "vjepa2_ac" / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"go with family='vjepa2_ac' only"):
        load_world_model(tmp_path / "run", embed_dim=3)
