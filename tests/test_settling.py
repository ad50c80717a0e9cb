"""A run writes down what it took from elsewhere, and refuses what contradicts it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from made_worlds import world_settings
from safetensors.torch import save_file
from support import write_clips

import jepa
from jepa.checkpoint import load_checkpoint
from jepa.config import ConfigError, from_dict, load_yaml, merge
from jepa.models.encoder import Encoder
from jepa.models.timm_encoder import TimmEncoder
from jepa.objectives import WorldModelConfig
from jepa.settling import settled
from jepa.train import TrainConfig, fit
from jepa.world_model import load_world_model


def frozen_settings(folder: Path, name: str | Path, **changes: Any) -> dict[str, Any]:
    """A world model over the frozen encoder ``name``, which says by itself what the encoder is."""
    settings = world_settings(folder, encoder_from=str(name), regularizer=None, latent={"pool": [2, 2]})
    settings.pop("encoder")
    settings["clip"].pop("crop_size")
    return merge({**settings, "run_dir": str(folder / "frozen")}, changes)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A V-JEPA run on clips of its own size and colours, to be frozen."""
    folder = tmp_path_factory.mktemp("teacher")
    settings = {
        "run_dir": str(folder / "run"),
        "clip": {"num_frames": 4, "frame_step": 1, "crop_size": 48, "mean": [0.5, 0.5, 0.5]},
        "data": {"sources": [{"path": str(write_clips(folder / "c.npz", side=48))}], "workers": 0},
        "encoder": {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8, "position": "table"},
        "masks": [{"kind": "multiblock", "num_blocks": 1, "scale": [0.4, 0.4]}],
        "objective": {"kind": "masked", "predictor": {"embed_dim": 24, "depth": 1, "num_heads": 2}},
        "train": {"steps": 1, "batch_size": 4, "progress": "off", "tensorboard": False, "device": "cpu",
                  "precision": "fp32"},
    }  # fmt: skip
    fit(from_dict(TrainConfig, settings))
    return folder / "run"


def test_a_frozen_run_needs_its_teacher_only_once(teacher: Path, tmp_path: Path) -> None:
    copy = tmp_path / "teacher"
    shutil.copytree(teacher, copy)
    settings = frozen_settings(tmp_path, copy)
    fit(from_dict(TrainConfig, settings))
    stored = from_dict(TrainConfig, load_yaml(tmp_path / "frozen" / "config.yaml"))
    assert (stored.clip.crop_size, stored.clip.mean, stored.clip.num_frames) == (48, (0.5, 0.5, 0.5), 5)
    assert (stored.encoder.position, stored.encoder.depth) == ("table", 2)
    source = jepa.load(teacher)
    shutil.rmtree(copy)
    frames = torch.randn(2, 3, 1, 48, 48)
    for encoder in (jepa.load(tmp_path / "frozen"), load_world_model(tmp_path / "frozen").encoder):
        assert isinstance(encoder, Encoder)
        assert encoder.clip == source.clip  # as a clip encoder it is what it was
        torch.testing.assert_close(encoder(frames), source(frames))
    settings["train"]["steps"] = 6
    state = load_checkpoint(fit(from_dict(TrainConfig, settings)))
    assert state["step"] == 6
    assert all(torch.equal(t, state["objective"][f"encoder.{name}"]) for name, t in source.state_dict().items())
    moments = {tuple(v["exp_avg"].shape) for v in state["optimizer"]["state"].values()}
    assert (24, 3, 2, 8, 8) not in moments  # the patch embedding is not in the optimizer


def test_a_timm_model_is_rebuilt_without_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = {key: value.contiguous() for key, value in timm.create_model("test_vit").state_dict().items()}
    save_file(weights, tmp_path / "w.safetensors")
    name = f"timm:test_vit@{tmp_path / 'w.safetensors'}?size=48"
    source = jepa.load(name)
    fit(from_dict(TrainConfig, frozen_settings(tmp_path, name)))
    (tmp_path / "w.safetensors").unlink()
    frames = torch.randn(2, 3, 1, 48, 48)
    for encoder in (jepa.load(tmp_path / "frozen"), load_world_model(tmp_path / "frozen").encoder):
        assert isinstance(encoder, TimmEncoder)
        torch.testing.assert_close(encoder(frames), source(frames))
    assert load_world_model(tmp_path / "frozen").clip.mean == source.clip.mean


KEYPOINTS = {"pool": "keypoints", "dim": 3, "layer_norm": False}


def test_latents_of_another_world_model_are_taken_over(tmp_path: Path) -> None:
    """A second predictor on the same latents, whose head is not trained; it needs the first run only once."""
    fit(from_dict(TrainConfig, world_settings(tmp_path, latent=KEYPOINTS)))
    first = (tmp_path / "run").rename(tmp_path / "first")
    own = {"encoder_from": str(first), "inherit_latent": True, "regularizer": None, "latent": {}}
    settings = world_settings(tmp_path, **own)
    settings.pop("encoder")
    state = load_checkpoint(fit(from_dict(TrainConfig, settings)))["objective"]
    source = load_world_model(first)
    shutil.rmtree(first)
    frames = torch.randn(2, 3, 4, *[source.clip.crop_size] * 2)
    found = load_world_model(tmp_path / "run")
    assert found.encode(frames).shape == (2, 4, 1, 6)
    assert bool(found.to("cpu").encode(frames).isfinite().all())  # and nothing is left on the device "meta"
    torch.testing.assert_close(found.encode(frames), source.encode(frames))
    assert torch.equal(state["head.proj.weight"], source.head.proj.weight)
    assert not torch.equal(state["predictor.predictor_proj.weight"], source.predictor.predictor_proj.weight)
    settings["train"]["steps"] += 1
    fit(from_dict(TrainConfig, settings))  # goes on without it
    torch.testing.assert_close(load_world_model(tmp_path / "run").encode(frames), source.encode(frames))


def test_latents_that_cannot_be_taken_over(teacher: Path, tmp_path: Path) -> None:
    fit(from_dict(TrainConfig, world_settings(tmp_path, latent=KEYPOINTS)))
    own = {"inherit_latent": True, "regularizer": None}
    for source, latent, message in (
        (teacher, {}, "encoder_from .* is no world model and has no latent"),
        (tmp_path / "run", {"dim": 4}, r"takes that of encoder_from .* \(.*latent.dim.*\): leave latent out"),
    ):
        settings = world_settings(tmp_path, encoder_from=str(source), latent=latent, **own)
        settings.pop("encoder")
        settings["clip"] = {"num_frames": 5, "fps": settings["clip"].get("fps")}
        with pytest.raises(ConfigError, match=message):
            settled(from_dict(TrainConfig, {**settings, "run_dir": str(tmp_path / "second")}))
    with pytest.raises(ConfigError, match="inherit_latent takes the latents of a run: name it as encoder_from"):
        from_dict(TrainConfig, world_settings(tmp_path, inherit_latent=True))


@pytest.mark.parametrize(("changes", "message"), [
    ({"encoder": {"depth": 3}}, "objective.encoder_from .* is another encoder .*encoder.depth: 3 -> 2"),
    ({"clip": {"crop_size": 32}}, "clip.crop_size is 32, but encoder_from .* was trained with 48: leave it out"),
    ({"clip": {"std": [0.5, 0.5, 0.5]}}, r"clip.std is \(0.5, 0.5, 0.5\), but encoder_from .* was trained with"),
    ({"augment": {"flip": 0.5}}, "augment.flip is 0.5, but a mirrored picture no longer fits its actions: set it to 0"),
])  # fmt: skip
def test_what_contradicts_the_encoder_is_named(
    teacher: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    settings = frozen_settings(tmp_path, teacher)
    with pytest.raises(ConfigError, match=message):
        settled(from_dict(TrainConfig, merge(settings, changes)))


def test_widths_come_from_the_data_unless_they_are_given(tmp_path: Path) -> None:
    for given, expected in (({}, (2, 3)), ({"state_dim": 0}, (2, 0)), ({"action_dim": 5}, (5, 3))):
        config = from_dict(TrainConfig, merge(world_settings(tmp_path), {"objective": {"predictor": given}}))
        objective = settled(config).objective
        assert isinstance(objective, WorldModelConfig)
        assert (objective.predictor.action_dim, objective.predictor.state_dim) == expected
    with pytest.raises(ConfigError, match=r"actions of 2 numbers, the model \(objective.predictor.action_dim\) of 5"):
        fit(config)


def test_clips_without_actions_are_refused(tmp_path: Path) -> None:
    changes = {"data": {"sources": [{"path": str(write_clips(tmp_path / "c.npz", frames=6)), "fps": 10}]}}
    with pytest.raises(ConfigError, match=r"c.npz has no actions: a world model is trained on trajectories"):
        fit(from_dict(TrainConfig, merge(world_settings(tmp_path), changes)))


def test_what_a_run_writes_is_not_for_users(tmp_path: Path) -> None:
    settings = world_settings(tmp_path, frozen={"clip": {"num_frames": 1}})
    with pytest.raises(ConfigError, match=r"objective.frozen is written by a run with encoder_from: leave it out"):
        settled(from_dict(TrainConfig, settings))


def test_other_objectives_are_left_alone(settings: dict[str, Any]) -> None:
    config = from_dict(TrainConfig, settings)
    assert settled(config) is config
    assert np.isclose(config.augment.flip, 0.5)


@pytest.mark.parametrize("spoilt", ["short", "broken"])
def test_the_widths_are_those_of_the_first_episode_that_can_be_used(tmp_path: Path, spoilt: str) -> None:
    settings = merge(world_settings(tmp_path), {"data": {"max_failed": 0.3}})
    first = tmp_path / "worlds" / "episode_00000.npz"
    if spoilt == "broken":
        first.write_bytes(b"no archive")
    else:
        arrays = dict(np.load(first))
        np.savez(first, **{name: array[:2] for name, array in arrays.items()})
    model = load_world_model(fit(from_dict(TrainConfig, settings)).parent.parent)
    assert (model.scaling.action_mean.shape, model.scaling.state_mean.shape) == ((2,), (3,))
