"""A dream is the model's own rollout, however long, and stays within the steps that the model was trained on."""

from __future__ import annotations

import torch
from support import small_encoder

from app.playing.dream import Dream, Seen
from jepa.models.action_predictor import ActionPredictor, ActionPredictorConfig
from jepa.models.latent_head import LatentConfig, head_for
from jepa.models.rope import RopeConfig
from jepa.models.world_model import Scaling, WorldConfig, WorldModel
from jepa.types import ClipConfig

CLIP = ClipConfig(num_frames=5, fps=10.0, crop_size=32)
CPU = torch.device("cpu")


def build(window: int | None, state_dim: int = 0) -> WorldModel:
    encoder, latent = small_encoder(), LatentConfig(pool="mean", dim=6)
    head = head_for(latent, encoder, CLIP)
    config = ActionPredictorConfig(
        embed_dim=24, depth=2, num_heads=2, action_dim=2, state_dim=state_dim, init="xavier"
    )  # fmt: skip
    predictor = ActionPredictor(config, head.dim, head.grid, RopeConfig())
    settings = WorldConfig(latent=latent, window=window, state_update="add" if state_dim else "none")
    return WorldModel(encoder, head, predictor, Scaling(2, state_dim), settings, CLIP).eval().requires_grad_(False)


def test_with_a_window_it_is_one_long_rollout() -> None:
    model, latents, actions = build(window=2), torch.randn(3, 1, 6), torch.randn(14, 2)
    dream = Dream(model, CPU)
    dream.begin([Seen(frame, None) for frame in latents], list(actions[:2]))
    assert torch.equal(dream.latents, latents[2])
    found = torch.stack([dream.step(action) for action in actions[2:]])
    torch.testing.assert_close(found, model.rollout(latents[None], actions[None])[0])
    assert dream.steps == 12


def test_without_one_it_goes_on_from_the_later_half() -> None:
    model, first, actions = build(window=None), torch.randn(1, 1, 6), torch.randn(9, 2)
    dream = Dream(model, CPU)
    dream.begin([Seen(first[0], None)], [])
    found = torch.stack([dream.step(action) for action in actions])
    # 5 frames (4 actions) fill a clip; of these the last two are the context of what follows, and so on
    part = model.rollout(first[None], actions[None, :4])[0]
    torch.testing.assert_close(found[:4], part)
    again = model.rollout(found[None, 2:4], actions[None, 3:7])[0]
    torch.testing.assert_close(found[4:7], again)
    torch.testing.assert_close(found[7:], model.rollout(found[None, 5:7], actions[None, 6:9])[0])
    assert not torch.allclose(found[4], model.rollout(first[None], actions[None, :5])[0, 4], atol=1e-5)


def test_states_follow_the_actions() -> None:
    model, latents, actions = build(window=None, state_dim=2), torch.randn(2, 1, 6), torch.randn(7, 2)
    states = torch.randn(2, 2)
    dream = Dream(model, CPU)
    dream.begin([Seen(z, s) for z, s in zip(latents, states, strict=True)], [actions[0]])
    found = torch.stack([dream.step(action) for action in actions[1:]])
    torch.testing.assert_close(found[:3], model.rollout(latents[None], actions[None, :4], states[None])[0])
    moved = torch.stack([states[1] + actions[1 : k + 1].sum(dim=0) for k in (2, 3)])  # after 2 and 3 steps
    torch.testing.assert_close(found[3:], model.rollout(found[None, 1:3], actions[None, 3:7], moved[None])[0])
