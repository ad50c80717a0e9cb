"""The objective latent_action: what conditions the predictor, gradients, the start of codes in a run, continuation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jepa.config import ConfigError, from_dict
from jepa.models.action_predictor import ActionPredictorConfig
from jepa.models.encoder import EncoderConfig
from jepa.models.latent_action import InverseDynamicsConfig
from jepa.models.latent_head import LatentConfig
from jepa.objectives import LatentActionConfig, LatentActionObjective, VarianceCovarianceConfig
from jepa.objectives.bottleneck import BottleneckConfig, NoisyConfig, NoneConfig, SparseConfig, VqConfig, ZeroConfig
from jepa.tensorfiles import read_torch_file
from jepa.train import TrainConfig, fit
from jepa.types import Batch, ClipConfig
from tests.support import tiny_settings

CLIP = ClipConfig(num_frames=4, fps=5.0, crop_size=32)
ENCODER = EncoderConfig(embed_dim=24, depth=1, num_heads=2, patch_size=16, tubelet_size=1)
KINDS: list[BottleneckConfig] = [
    VqConfig(num_codes=4, dim=3), VqConfig(num_codes=4, dim=3, update="loss"), NoisyConfig(dim=3), SparseConfig(dim=3),
    NoneConfig(dim=3), ZeroConfig(),
]  # fmt: skip


def config(bottleneck: BottleneckConfig | None = None, **changes: Any) -> LatentActionConfig:
    small: dict[str, Any] = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    values: dict[str, Any] = {
        "bottleneck": bottleneck or NoneConfig(dim=3),
        "inverse": InverseDynamicsConfig(**small),
        "predictor": ActionPredictorConfig(**small),
        "latent": LatentConfig(pool=(1, 2)),
        "regularizer": VarianceCovarianceConfig(),
    }
    return LatentActionConfig(**{**values, **changes})


def objective(bottleneck: BottleneckConfig | None = None, **changes: Any) -> LatentActionObjective:
    torch.manual_seed(0)
    return LatentActionObjective(config(bottleneck, **changes), ENCODER, CLIP, 0)


def batch(seed: int = 0, clips: int = 4) -> Batch:
    return Batch(clip=torch.randn(clips, 3, 4, 32, 32, generator=torch.Generator().manual_seed(seed)))


def test_the_loss_is_that_of_the_world_model_with_inferred_actions() -> None:
    model, data = objective(rollout_steps=2, rollout_weight=0.5, regularizer=None, momentum=(0.9, 1.0)), batch()
    found = model(data, 0.0)
    latents = model.learner.encode(data.clip)
    targets = model.world_model.encode(data.clip)[:, 1:]
    assert model.inverse is not None
    z = model.bottleneck(model.inverse(latents)).z
    forced = model.learner.teacher_forced(latents[:, :-1], z)
    rolled = torch.stack((forced[:, 0], model.learner.rollout(latents[:, :1], z[:, :2])[:, 1]), dim=1)
    error, rollout = (forced - targets).abs().mean(), (rolled - targets[:, :2]).abs().mean()
    torch.testing.assert_close(found.terms["prediction"], error.detach())
    torch.testing.assert_close(found.terms["rollout"], rollout.detach())
    torch.testing.assert_close(found.total, error + 0.5 * rollout)


@pytest.mark.parametrize("bottleneck", KINDS, ids=lambda kind: kind.kind)
def test_every_trainable_parameter_gets_gradient(bottleneck: BottleneckConfig) -> None:
    model = objective(bottleneck)
    for step in range(2):  # codes begin after the first one
        model.zero_grad()
        found = model(batch(step), step / 2)
        found.total.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            quiet = name == "bottleneck.codebook.codes" and step == 0  # still continuous
            quiet |= bottleneck.kind == "zero" and name == "predictor.action_encoder.weight"
            assert quiet or parameter.grad.any(), name
        model.after_step((step + 1) / 2)
    assert list(found.terms) == list(model(batch(5), 0.9).terms)  # the log has the same columns throughout


def test_null_has_no_inverse_dynamics_and_its_prediction_no_action() -> None:
    model = objective(ZeroConfig())
    assert model.inverse is None
    latents = model.learner.encode(batch().clip)
    assert torch.equal(model.infer(latents).z, torch.zeros(4, 3, 1))
    assert not any("inverse" in name or "bottleneck" in name for name, _ in model.named_parameters())


@torch.no_grad()
def test_an_action_depends_on_no_later_frame() -> None:
    """From pixels on: encoder, inverse dynamics and bottleneck together."""
    model = objective().eval()
    clip = batch().clip
    whole = model.infer(model.learner.encode(clip)).z
    for frame in range(4):
        other = clip.clone()
        other[:, :, frame] = batch(1).clip[:, :, frame]
        changed = (model.infer(model.learner.encode(other)).z != whole).any(dim=-1).all(dim=0)
        assert changed.tolist() == [frame in (k, k + 1) for k in range(3)]


def test_no_actions_in_the_data_are_looked_at() -> None:
    model, data = objective(), batch()
    plain = model(data, 0.0).total
    data.actions, data.states = torch.randn(4, 3, 2), torch.randn(4, 4, 5)
    assert torch.equal(model(data, 0.0).total, plain)
    assert not model.takes_trajectories


@pytest.mark.parametrize("attention", ["joint", "factorised"])
@pytest.mark.parametrize(("history", "change_only"), [(False, False), (True, False), (False, True)])
def test_work_counts_the_products_that_are_made(attention: Any, history: bool, change_only: bool) -> None:
    inverse = InverseDynamicsConfig(
        embed_dim=24, depth=1, num_heads=2, attention=attention, history=history, change_only=change_only
    )
    model, data = objective(inverse=inverse, regularizer=None, momentum=(0.9, 1.0)), batch()
    with FlopCounterMode(display=False) as counter:
        model(data, 0.0).total.backward()
    assert model.work(data).flops == pytest.approx(counter.get_total_flops(), rel=0.03)


def run_settings(folder: Path, **bottleneck: Any) -> dict[str, Any]:
    settings = tiny_settings(folder, steps=6, save_every=3)
    small = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    settings["encoder"] |= {"tubelet_size": 1, "depth": 1}
    settings["masks"] = []
    settings["objective"] = {
        "kind": "latent_action", "predictor": small, "inverse": small, "latent": {"pool": "mean"},
        "regularizer": {"kind": "variance_covariance"},
        "bottleneck": {"kind": "vq", "num_codes": 3, "dim": 4, "warmup": 0.5, **bottleneck},
    }  # fmt: skip
    return settings


def weights(path: Path) -> dict[str, Tensor]:
    return read_torch_file(path)["objective"]


def test_a_run_on_plain_video_begins_its_codes_and_goes_on_exactly(tmp_path: Path) -> None:
    """Stopped at step 3, right after the codes began (progress 0.5)."""
    settings = run_settings(tmp_path)
    straight = fit(from_dict(TrainConfig, settings))
    middle = weights(straight.parent / "step_00000003.pt")
    assert bool(middle["bottleneck.codebook.active"])
    again = {**settings, "run_dir": str(tmp_path / "again")}
    fit(from_dict(TrainConfig, {**again, "train": {**settings["train"], "steps": 6}}))
    (tmp_path / "again" / "checkpoints" / "step_00000006.pt").unlink()
    continued = fit(from_dict(TrainConfig, again))
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(continued)[name]), name
    assert int(weights(straight)["bottleneck.codebook.seen"]) == 6 * 4 * 3


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"predictor\.action_dim is 3 here, .*: leave action_dim 2 out"):
        config(predictor=ActionPredictorConfig(action_dim=2))
    with pytest.raises(ValueError, match=r"predictor\.state_dim is 0 here, .*: leave state_dim 4 out"):
        config(predictor=ActionPredictorConfig(state_dim=4))
    with pytest.raises(ValueError, match="inverse_weight is for known actions and states"):
        config(inverse_weight=0.1)
    with pytest.raises(ConfigError, match=r"clip\.num_frames must be at least 2, as actions lie between frames, not 1"):
        LatentActionObjective(config(), ENCODER, ClipConfig(num_frames=1, crop_size=32), 0)
    with pytest.raises(ConfigError, match=r"config key 'objective\.bottleneck': num_codes must be at least 2, not 1"):
        from_dict(LatentActionConfig, {"bottleneck": {"kind": "vq", "num_codes": 1}}, "objective")
