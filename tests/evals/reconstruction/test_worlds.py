"""What a world model's decoded rollouts are compared with: fresh weights, a predictor trained on them, equal shares."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from made_worlds import world_settings, write_worlds
from torch import Tensor, nn

from evals.reconstruction import worlds
from evals.reconstruction.worlds import Recipe, Scale, Stretch, cut, fit_predictor, read_training, recipe_of
from evals.subjects import TRAINED
from evals.task_configs import ReconstructionTask
from evals.world_models.opening import Recorded, Seer
from evals.world_models.untrained import untrained_world
from jepa.config import ConfigError, from_dict, to_dict
from jepa.data.trajectories.opening import open_trajectories
from jepa.distributed import Run
from jepa.models.action_predictor import ActionPredictor, ActionPredictorConfig
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.models.latent_head import LatentConfig, head_for
from jepa.models.rope import RopeConfig
from jepa.models.world_model import Scaling, WorldConfig, WorldModel
from jepa.objectives import ControllerConfig, LatentActionConfig, PolicyBase, PolicyConfig, WorldModelConfig
from jepa.objectives.bottleneck import VqConfig
from jepa.objectives.prediction import prediction_loss
from jepa.objectives.regularizers import VarianceCovarianceConfig
from jepa.types import ClipConfig

CPU = Run(torch.device("cpu"), "fp32")
CLIP = ClipConfig(num_frames=4, fps=10.0, crop_size=32)
TASK = ReconstructionTask(predictor_steps=80, batch_size=8, learning_rate=3e-3)
LATENT = {"regularizer": VarianceCovarianceConfig()}


def world(residual: bool = True, action_map: nn.Module | None = None) -> WorldModel:
    """Of 2 x 2 latents of 4 numbers, actions of 2 (3 for the predictor where they are mapped)."""
    torch.manual_seed(5)
    config = WorldConfig(latent=LatentConfig(pool=(2, 2), dim=4, layer_norm=False), residual=residual, window=1)
    encoder = Encoder(EncoderConfig(embed_dim=24, depth=1, num_heads=2, patch_size=8, tubelet_size=1), CLIP)
    head = head_for(config.latent, encoder, CLIP)
    wide = 2 if action_map is None else 3
    shape = ActionPredictorConfig(embed_dim=24, depth=1, num_heads=2, action_dim=wide, state_dim=0)
    predictor, scaling = ActionPredictor(shape, head.dim, head.grid, RopeConfig()), Scaling(2, 0)
    scaling.action_std.fill_(0.5)
    made = WorldModel(encoder, head, predictor, scaling, config, CLIP, action_map=action_map)
    return made.eval().requires_grad_(False)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


class Wider(nn.Module):
    """In the place of a controller."""

    def forward(self, latents: Tensor, actions: Tensor) -> Tensor:
        return torch.cat((actions, actions[..., :1]), dim=-1)


@pytest.mark.parametrize("controlled", [False, True])
def test_fresh_weights_in_the_same_architecture(controlled: bool) -> None:
    known = world(action_map=Wider() if controlled else None)
    before = weights(known)
    fresh, again, other = (untrained_world(known, seed) for seed in (3, 3, 4))
    assert {name: value.shape for name, value in fresh.encoder.state_dict().items()} == {
        name: value.shape for name, value in known.encoder.state_dict().items()
    }
    assert torch.equal(fresh.scaling.action_std, known.scaling.action_std)
    assert all(torch.equal(value, before[name]) for name, value in known.state_dict().items())
    for part in ("encoder", "head", "predictor"):
        mine, same, others, theirs = (weights(getattr(one, part)) for one in (fresh, again, other, known))
        assert all(torch.equal(value, same[name]) for name, value in mine.items())
        drawn = [name for name, value in mine.items() if value.dim() > 1 and value.any()]
        assert drawn
        for name in drawn:
            assert not torch.equal(mine[name], others[name]), name
            assert mine[name].shape != theirs[name].shape or not torch.equal(mine[name], theirs[name]), name
    assert not any(p.requires_grad for p in fresh.parameters())
    assert (fresh.predictor.action_dim, fresh.action_map) == (2, None), "real actions, without a controller"
    latents = torch.randn(2, 1, 4, 4)
    rolled = fresh.rollout(latents, torch.randn(2, 3, 2))
    torch.testing.assert_close(rolled, latents.expand(-1, 3, -1, -1), msg="residual: at first nothing changes")


def stretches(count: int = 6, length: int = 6) -> list[Stretch]:
    """Latents that an action moves, all in the same direction."""
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(count):
        actions = torch.randn(length - 1, 2, generator=generator)
        moved = torch.cat((torch.zeros(1, 2), 0.3 * actions)).cumsum(dim=0)
        latents = torch.cat((moved, -moved), dim=-1)[:, None].expand(-1, 4, -1)
        found.append(Stretch(latents + torch.randn(4, 4, generator=generator), actions, None))
    return found


@pytest.mark.parametrize("rollout_steps", [0, 3])
def test_the_predictor_learns_by_the_recipe_and_nothing_else_changes(rollout_steps: int) -> None:
    config = WorldModelConfig(loss="mse", rollout_steps=rollout_steps, residual=True, window=1, **LATENT)
    seer, parts = Seer(untrained_world(world(), 1), CPU), stretches()
    before, frozen = weights(seer.world), weights(seer.world.encoder) | weights(seer.world.head)

    def error() -> float:
        latents, actions = torch.stack([p.latents for p in parts]), torch.stack([p.actions for p in parts])
        return prediction_loss(seer.world, config, latents, latents[:, 1:], actions, None).total.item()

    first = error()
    fit_predictor(seer, parts, Recipe(config, 4), TASK)
    assert error() < 0.3 * first
    assert (weights(seer.world.encoder) | weights(seer.world.head)).keys() == frozen.keys()
    for name, value in seer.world.state_dict().items():
        assert name.startswith("predictor.") or torch.equal(value, before[name]), name
    assert not any(p.requires_grad for p in seer.world.parameters())
    again = Seer(untrained_world(world(), 1), CPU)
    fit_predictor(again, parts, Recipe(config, 4), TASK)
    assert all(torch.equal(v, weights(again.world)[name]) for name, v in weights(seer.world).items())


def test_episodes_that_are_too_short_for_the_recipe() -> None:
    config = WorldModelConfig(rollout_steps=2, **LATENT)
    with pytest.raises(ConfigError, match=r"no training episode has the 7 frames \(clip.num_frames of the run\)"):
        fit_predictor(Seer(untrained_world(world(), 1), CPU), stretches(length=6), Recipe(config, 7), TASK)


def test_latents_are_standardised_for_every_decoder_alike() -> None:
    seer, latents = Seer(world(), CPU), 50 + 0.01 * torch.randn(30, 4, 4)
    latents[..., 2] = 7.0
    scale = Scale.of(latents)
    found = scale.latents(latents, seer)(torch.arange(30)).flatten(0, 1)
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(found.std(dim=0, correction=0)[[0, 1, 3]], torch.ones(3), atol=0.02, rtol=0)
    assert not found[:, 2].any(), "what never changes has nothing to be divided by"
    later = scale.latents(latents[:1] + 0.02, seer)(torch.tensor([0]))
    torch.testing.assert_close(later[0, :, 0] - found[:4, 0], 0.02 / scale.std[0].expand(4), atol=0.02, rtol=0)


def test_all_models_see_the_same_frames(tmp_path: Path) -> None:
    episodes = open_trajectories(str(write_worlds(tmp_path / "worlds", episodes=3, length=9)))
    recorded = [Recorded(episodes, number) for number in range(3)]
    known = Seer(world(), CPU)
    seers = {TRAINED: known, "random": Seer(untrained_world(known.world, 1), CPU)}
    found = read_training(recorded, seers, 12, 6, 0, [])
    assert found.shown.pixels.shape == (12, 1, 32, 32, 3)
    for name, seer in seers.items():
        latents = seer.world.encode(found.shown.normalised(torch.arange(12)))[:, 0]
        torch.testing.assert_close(found.latents[name], latents, atol=1e-4, rtol=1e-3)
    assert list(found.stretches) == ["random"]
    assert [part.latents.shape for part in found.stretches["random"]] == 3 * [(6, 4, 4)]
    whole = episodes.episode(1, CLIP)
    part = found.stretches["random"][1]
    at = [k for k in range(4) if torch.equal(part.actions, torch.from_numpy(whole.actions[k : k + 5]))]
    assert len(at) == 1
    assert part.states is not None
    assert torch.equal(part.states, torch.from_numpy(whole.states[at[0] : at[0] + 6]))  # type: ignore[index]
    assert read_training(recorded, seers, 12, 10, 0, []).stretches["random"] == [], "no room for 10 frames"
    windows = cut(recorded, seers, 5, 2, [])
    one, other = windows.values()
    assert one.pixels is other.pixels
    assert one.episodes == [0, 0, 1, 1, 2, 2]
    for name, seer in seers.items():
        pixels = worlds.Shown(one.pixels, torch.arange(6), [], CLIP, {}).normalised(torch.arange(6))
        torch.testing.assert_close(windows[name].latents, seer.world.encode(pixels), atol=1e-4, rtol=1e-3)
    with pytest.raises(ConfigError, match=r"no test episode of 10 frames can be read: lower world_model.horizons"):
        cut(recorded, seers, 10, 2, [])


def test_whose_loss_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {}
    monkeypatch.setattr(worlds, "run_state", lambda model: {"config": copy.deepcopy(settings)})

    def found(objective: Any) -> Recipe:
        settings.update({"objective": to_dict(objective), "clip": {"num_frames": 17}})
        return recipe_of("runs/m")

    shape = ActionPredictorConfig(action_dim=2, state_dim=0)
    own = WorldModelConfig(loss="mse", rollout_steps=5, predictor=shape, **LATENT)
    assert found(own) == (own, 17)
    latent = LatentActionConfig(loss="smooth_l1", bottleneck=VqConfig(num_codes=4, dim=2), **LATENT)
    controller = ControllerConfig(model="runs/l", base=latent, action_dim=2)
    assert found(controller) == (latent, 17)
    base = PolicyBase(objective=controller, clip=CLIP)
    assert found(PolicyConfig(model="runs/c", base=base)) == (latent, 4), "not the policy's clips"
    base = PolicyBase(objective=own, clip=CLIP)
    assert found(PolicyConfig(model="runs/w", base=base)) == (own, 4)
    plain = world_settings(tmp_path)
    settings.update(plain)
    assert recipe_of("runs/m") == (from_dict(WorldModelConfig, plain["objective"]), 5)
