"""The controller: labels collected once, codes or numbers matched, and a world model that takes real actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa.config import ConfigError, from_dict
from jepa.models.action_predictor import ActionPredictorConfig
from jepa.models.encoder import EncoderConfig
from jepa.models.latent_action import ControllerNetConfig, InverseDynamicsConfig
from jepa.models.latent_head import LatentConfig
from jepa.objectives import ControllerConfig, ControllerObjective, LatentActionConfig, VarianceCovarianceConfig
from jepa.objectives.bottleneck import BottleneckConfig, NoneConfig, VqConfig, ZeroConfig
from jepa.objectives.controller import transition_keys
from jepa.tensorfiles import read_torch_file
from jepa.train import TrainConfig, fit
from jepa.types import Batch, ClipConfig, Statistics
from jepa.world_model import load_world_model
from tests.moving_agent import write_agent

CLIP = ClipConfig(num_frames=4, fps=5.0, crop_size=32)
ENCODER = EncoderConfig(embed_dim=24, depth=1, num_heads=2, patch_size=16, tubelet_size=1)
SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 1, "num_heads": 2}


def base(bottleneck: BottleneckConfig | None = None) -> LatentActionConfig:
    return LatentActionConfig(
        bottleneck=bottleneck or NoneConfig(dim=3), inverse=InverseDynamicsConfig(**SMALL),
        predictor=ActionPredictorConfig(**SMALL), latent=LatentConfig(pool=(1, 2)), momentum=(0.9, 1.0),
        regularizer=VarianceCovarianceConfig(),
    )  # fmt: skip


def controller(bottleneck: BottleneckConfig | None = None, **changes: Any) -> ControllerObjective:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "model": "runs/la", "labels": 10, "batch": 16, "net": ControllerNetConfig(hidden_dim=16),
        "base": base(bottleneck), "action_dim": 2,
    }  # fmt: skip
    made = ControllerObjective(ControllerConfig(**{**values, **changes}), ENCODER, CLIP, 0)
    made.set_statistics(
        Statistics(
            torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5]), torch.zeros(2), torch.ones(2), torch.zeros(0),
            torch.zeros(0),
        )
    )  # fmt: skip
    return made


def batch(seed: int = 0, clips: int = 2, start_s: float = 0.0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    start = torch.full((clips,), start_s, dtype=torch.float64)
    return Batch(
        clip=torch.randn(clips, 3, 4, 32, 32, generator=generator),
        actions=torch.randn(clips, 3, 2, generator=generator),
        index=torch.arange(clips) + 10 * seed, start_s=start, end_s=start + 0.8,
    )  # fmt: skip


def test_only_the_controller_learns() -> None:
    model = controller()
    model(batch(), 0.0).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.startswith("controller."), name
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.any(), name
    assert model.training
    assert model.controller.training
    assert not model.encoder.training
    assert not model.bottleneck.training
    before = {name: value.clone() for name, value in model.inherited_state().items()}
    model.after_step(0.5)  # no EMA, no codes move
    assert all(torch.equal(value, before[name]) for name, value in model.inherited_state().items())


def test_labels_are_the_first_different_transitions() -> None:
    model = controller()
    model(batch(0), 0.0)
    model(batch(0), 0.0)  # the same again
    assert model.known() == 6
    model(batch(1), 0.0)
    assert model.known() == 10
    first, second = batch(0), batch(1)
    assert first.actions is not None
    assert second.actions is not None
    whole = torch.cat((first.actions.flatten(0, 1), second.actions.flatten(0, 1)))
    assert torch.equal(model.actions, whole[:10])
    latents = model.world_model.encode(first.clip)
    torch.testing.assert_close(model.pooled[:6], latents[:, :3].mean(dim=2).flatten(0, 1))
    torch.testing.assert_close(model.wanted[:6], model.infer(latents).z.flatten(0, 1))
    torch.testing.assert_close(model.controller.mean, model.wanted.mean(dim=0))
    torch.testing.assert_close(model.controller.std, model.wanted.std(dim=0))
    kept = model.actions.clone()
    model(batch(2), 0.0)  # there are enough: no more
    assert torch.equal(model.actions, kept)


def test_overlapping_clips_share_transitions() -> None:
    early, late = transition_keys(batch(0)), transition_keys(batch(0, start_s=0.2))
    assert early[0].tolist() == [[0, 0], [0, 200], [0, 400]]
    assert torch.equal(early[:, 1:], late[:, :2])
    model = controller()
    model(batch(0), 0.0)
    model(batch(0, start_s=0.2), 0.0)
    assert model.known() == 8


def test_the_loss_is_the_mean_square_in_units_of_spread_or_cross_entropy() -> None:
    model = controller(labels=6, batch=4096)
    model(batch(), 0.0)
    torch.manual_seed(3)
    found = model(batch(), 0.0).total
    torch.manual_seed(3)
    rows = torch.randint(6, (4096,))
    scaled = (model.actions[rows] - torch.tensor([1.0, -1.0])) / torch.tensor([2.0, 0.5])
    outputs = model.controller.pooled_outputs(model.pooled[rows], scaled)
    wanted = (model.wanted[rows] - model.wanted.mean(dim=0)) / model.wanted.std(dim=0)
    torch.testing.assert_close(found, (outputs - wanted).square().mean())


def test_codes() -> None:
    model = controller(VqConfig(num_codes=4, dim=3, warmup=0.0), labels=6)
    assert model.codes is not None
    found = model(batch(), 0.0)
    assert model.controller.codes is not None
    assert torch.equal(model.controller.codes, model.codes)
    assert all((row == model.codes).all(dim=1).any() for row in model.wanted)  # inferred actions are codes
    assert found.total.item() < 3  # nats
    with pytest.raises(
        ConfigError, match=r"model runs/la: its codes have not begun \(bottleneck.warmup\): train it on"
    ):
        controller(VqConfig(num_codes=4, dim=3, warmup=0.5))(batch(), 0.0)


def test_the_world_model_goes_through_the_controller() -> None:
    model = controller()
    model(batch(), 0.0)
    world = model.world_model
    assert (world.action_dim, world.state_dim) == (2, 0)
    latents, actions = world.encode(batch().clip), torch.randn(2, 4, 2, requires_grad=True)
    scaled = (actions - torch.tensor([1.0, -1.0])) / torch.tensor([2.0, 0.5])
    z = torch.stack([model.controller(latents[:, k], scaled[:, k]) for k in range(4)], dim=1)
    forced = world.teacher_forced(latents, actions)
    torch.testing.assert_close(forced, model.learner.teacher_forced(latents, z))
    rolled = world.rollout(latents[:, :3], actions[:, :4])
    torch.testing.assert_close(rolled[:, 0], forced[:, 2])
    torch.testing.assert_close(rolled[:, 1], _next(model, latents[:, :3], rolled[:, 0], scaled))
    rolled.sum().backward()
    assert actions.grad is not None
    assert actions.grad[:, 3].any()  # planners follow it


def _next(model: ControllerObjective, latents: Tensor, predicted: Tensor, scaled: Tensor) -> Tensor:
    """The fourth step: the controller sees the prediction where there is no frame."""
    known = torch.cat((latents, predicted[:, None]), dim=1)
    z = torch.stack([model.controller(known[:, k], scaled[:, k]) for k in range(4)], dim=1)
    return model.learner.teacher_forced(known, z)[:, 3]


def test_more_labels_than_there_are() -> None:
    model = controller(labels=100)
    for _ in range(21):  # 20 times the 6 that are known, and one batch for them
        model(batch(), 0.0)
    with pytest.raises(ConfigError, match=r"objective\.labels 100: the data has no more than 6 different transitions"):
        model(batch(), 0.0)
    model = controller(labels=100)
    model(batch(), 0.0)
    model.after_step(0.9)
    with pytest.raises(ConfigError, match=r"labels 100: the run ended after 6 different transitions; raise train"):
        model.after_step(1.0)


def test_refused() -> None:
    with pytest.raises(ValueError, match="model must name a run of the objective latent_action"):
        ControllerConfig()
    with pytest.raises(ValueError, match="labels must be at least 2 and batch at least 1, not 1 and 256"):
        ControllerConfig(model="runs/la", labels=1)
    with pytest.raises(ValueError, match="model runs/la has the bottleneck 'zero': there are no actions"):
        ControllerConfig(model="runs/la", base=base(ZeroConfig()))
    with pytest.raises(ConfigError, match=r"objective\.model is not settled"):
        ControllerObjective(ControllerConfig(model="runs/la"), ENCODER, CLIP, 0)
    data = batch()
    data.actions = None
    with pytest.raises(ConfigError, match="the data has no actions: a controller is trained on trajectories"):
        controller()(data, 0.0)
    data.actions = torch.zeros(2, 2, 2)
    with pytest.raises(ConfigError, match=r"clips of 4 frames need actions \[2, 3, 2\], but have \[2, 2, 2\]"):
        controller()(data, 0.0)


def run_settings(folder: Path, name: str, objective: dict[str, Any], steps: int = 4) -> dict[str, Any]:
    loop = {"steps": steps, "batch_size": 4, "log_every": 2, "save_every": 2, "progress": "off", "tensorboard": False}
    return {
        "run_dir": str(folder / name), "clip": {"num_frames": 4, "fps": 5.0, "crop_size": 32},
        "data": {"sources": [{"path": str(folder / "data"), "trajectory": {}}], "workers": 0, "holdout": 2},
        "encoder": {**SMALL, "patch_size": 16, "tubelet_size": 1}, "masks": [], "objective": objective,
        "augment": {"flip": 0.0}, "train": loop, "monitor": {"every": 1000},
    }  # fmt: skip


def test_runs_one_after_the_other(tmp_path: Path) -> None:
    """A latent-action run, its controller, stopped and gone on with, and the world model in the end."""
    write_agent(tmp_path / "data")
    latent = {
        "kind": "latent_action", "predictor": SMALL, "inverse": SMALL, "regularizer": {"kind": "variance_covariance"},
        "bottleneck": {"kind": "vq", "num_codes": 3, "dim": 4, "warmup": 0.5},
    }  # fmt: skip
    first = fit(from_dict(TrainConfig, run_settings(tmp_path, "la", latent)))
    assert load_world_model(first).action_dim == 4  # inferred actions
    control = {"kind": "controller", "model": str(tmp_path / "la"), "labels": 20, "net": {"hidden_dim": 16}}
    settings = run_settings(tmp_path, "control", control)
    settings.pop("encoder")
    straight = fit(from_dict(TrainConfig, settings))
    own, inherited = (read_torch_file(path)["objective"] for path in (straight, first))
    assert all(torch.equal(own[name], value) for name, value in inherited.items())
    assert int(own["count"]) == 20
    world = load_world_model(tmp_path / "control")
    assert world.action_dim == 2
    assert world.scaling.action_low.tolist() == [-1, -1]
    latents = world.encode(torch.randn(1, 3, 2, 32, 32))
    assert world.rollout(latents, torch.randn(1, 4, 2)).shape == (1, 3, *latents.shape[2:])
    straight.unlink()
    again = read_torch_file(fit(from_dict(TrainConfig, settings)))["objective"]  # from step 2, without looking at `la`
    assert all(torch.equal(value, again[name]) for name, value in own.items())


def test_wrong_models(tmp_path: Path) -> None:
    write_agent(tmp_path / "data", episodes=4)
    control = {"kind": "controller", "model": str(tmp_path / "nothing")}
    with pytest.raises(ConfigError, match=r"objective\.model: .*nothing is neither a run directory nor a checkpoint"):
        fit(from_dict(TrainConfig, run_settings(tmp_path, "control", control)))
    world = {"kind": "world_model", "predictor": SMALL, "regularizer": {"kind": "variance_covariance"}}
    fit(from_dict(TrainConfig, run_settings(tmp_path, "world", world, steps=1)))
    control["model"] = str(tmp_path / "world")
    with pytest.raises(ConfigError, match="was trained with objective 'world_model', not 'latent_action'"):
        fit(from_dict(TrainConfig, run_settings(tmp_path, "control", control)))
