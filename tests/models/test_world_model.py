"""A world model: frame by frame, causal, the same by memory as by a full pass, and in the units of the data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import small_encoder
from torch import Tensor
from torch.nn import functional as F

from jepa.models.action_predictor import ActionPredictor, ActionPredictorConfig
from jepa.models.latent_head import LatentConfig, LatentHead, head_for
from jepa.models.pose import next_poses
from jepa.models.rope import RopeConfig
from jepa.models.world_model import Scaling, WorldConfig, WorldModel
from jepa.types import ClipConfig, Statistics, TokenGrid

CLIP = ClipConfig(num_frames=4, fps=10.0, crop_size=64)


def build(
    latent: LatentConfig = LatentConfig(), action_dim: int = 3, state_dim: int = 4, **world: Any  # noqa: B008 - frozen
) -> WorldModel:
    encoder = small_encoder()  # patches of 16: 4 x 4 cells of 24 numbers
    torch.manual_seed(1)
    head = head_for(latent, encoder, CLIP)
    config = ActionPredictorConfig(
        embed_dim=24, depth=2, num_heads=2, action_dim=action_dim, state_dim=state_dim, init="xavier"
    )
    predictor = ActionPredictor(config, head.dim, head.grid, RopeConfig())
    scaling, settings = Scaling(action_dim, state_dim), WorldConfig(latent=latent, **world)
    return WorldModel(encoder, head, predictor, scaling, settings, CLIP).eval()


def trajectory(steps: int = 7, batch: int = 2, action_dim: int = 3, state_dim: int = 4) -> tuple[Tensor, ...]:
    torch.manual_seed(2)
    return (
        torch.randn(batch, 3, steps, 64, 64), torch.randn(batch, steps - 1, action_dim),
        torch.randn(batch, steps, state_dim),
    )  # fmt: skip


@torch.no_grad()
def test_frames_are_encoded_one_by_one() -> None:
    model, (frames, _, _) = build(), trajectory()
    latents = model.encode(frames)
    assert latents.shape == (2, 7, 16, 24)
    slow = model.encoder(frames[1:, :, 3:4])[0]
    torch.testing.assert_close(latents[1, 3], F.layer_norm(slow, (24,)))
    changed = frames.clone()
    changed[:, :, 4:] += 1
    torch.testing.assert_close(model.encode(changed)[:, :4], latents[:, :4])


@torch.no_grad()
def test_a_residual_model_adds_what_the_predictor_says() -> None:
    plain, residual, (frames, actions, states) = build(), build(residual=True), trajectory()
    latents = plain.encode(frames)
    change = plain.predictor(latents[:, :6].flatten(1, 2), actions, plain.scaling.states(states[:, :6]))
    expected = F.layer_norm(latents[:, :6] + change.unflatten(1, (6, 16)), (24,))
    torch.testing.assert_close(residual.teacher_forced(latents[:, :6], actions, states[:, :6]), expected)
    rolled = residual.rollout(latents[:, :6], actions, states[:, :6])  # the same by way of the memory
    torch.testing.assert_close(rolled[:, 0], expected[:, -1], atol=1e-5, rtol=1e-5)
    residual.predictor.predictor_proj.weight.zero_()
    torch.testing.assert_close(residual.rollout(latents[:, :3], actions, states[:, :3])[:, -1], latents[:, 2])


@torch.no_grad()
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (frames, _, _) = build(), trajectory()
    whole = model.encode(frames)
    monkeypatch.setattr("jepa.models.latent_head._PIXELS_AT_ONCE", 3 * 64 * 64)
    torch.testing.assert_close(model.encode(frames), whole)


@pytest.mark.parametrize(("pool", "cells"), [("mean", 1), ((2, 2), 4), ((4, 1), 4)])
@torch.no_grad()
def test_pooled_latents_are_means_of_cells(pool: Any, cells: int) -> None:
    model, (frames, _, _) = build(LatentConfig(pool=pool, layer_norm=False)), trajectory()
    latents = model.encode(frames)
    assert latents.shape == (2, 7, cells, 24)
    maps = model.encoder(frames[0, :, 0:1][None])[0].unflatten(0, (4, 4))
    rows, columns = (1, 1) if pool == "mean" else pool
    slow = maps.unflatten(0, (rows, -1)).unflatten(2, (columns, -1)).mean(dim=(1, 3)).flatten(0, 1)
    torch.testing.assert_close(latents[0, 0], slow)


@torch.no_grad()
def test_a_flat_latent_is_one_projection_of_all_tokens() -> None:
    model, (frames, actions, states) = build(LatentConfig(pool="flat", dim=6, layer_norm=False)), trajectory()
    latents = model.encode(frames)
    assert (model.latent_dim, model.grid.size, latents.shape) == (6, 1, (2, 7, 1, 6))
    weight, bias = model.head.proj.weight.unflatten(1, (16, 24)), model.head.proj.bias
    slow = torch.einsum("ne,dne->d", model.encoder(frames[1:, :, 2:3])[0], weight) + bias
    torch.testing.assert_close(latents[1, 2, 0], slow, rtol=1e-4, atol=1e-5)
    assert model.rollout(latents[:, :2], actions[:, :4], states[:, :2]).shape == (2, 3, 1, 6)


@torch.no_grad()
def test_keypoints_are_mean_places() -> None:
    config = LatentConfig(pool="keypoints", dim=3, layer_norm=False)
    model, (frames, actions, states) = build(config), trajectory()
    latents = model.encode(frames)
    assert (model.latent_dim, model.grid.size, latents.shape) == (6, 1, (2, 7, 1, 6))
    logits = model.encoder(frames[1:, :, 2:3])[0] @ model.head.proj.weight.T + model.head.proj.bias
    unit = [3**0.5 * (k - 1.5) / 1.5 for k in range(4)]
    for point in range(3):
        share = logits[:, point].exp() / logits[:, point].exp().sum()
        row = sum(share[4 * r + c].item() * unit[r] for r in range(4) for c in range(4))
        column = sum(share[4 * r + c].item() * unit[c] for r in range(4) for c in range(4))
        assert latents[1, 2, 0, 2 * point : 2 * point + 2].tolist() == pytest.approx([row, column], abs=1e-5)
    assert not any("places" in name for name in model.state_dict())
    assert model.rollout(latents[:, :2], actions[:, :4], states[:, :2]).shape == (2, 3, 1, 6)


@torch.no_grad()
def test_a_keypoint_follows_its_feature() -> None:
    """One step of a patch moves it by one unit of the grid, whatever the rest of the picture shows."""
    head = LatentHead(LatentConfig(pool="keypoints", dim=1, layer_norm=False), 5, TokenGrid(1, 6, 4))
    head.proj.weight.copy_(torch.tensor([[40.0, 0, 0, 0, 0]]))
    tokens = torch.rand(6 * 4, 5)
    tokens[:, 0] = 0.0
    seen = tokens.expand(6, -1, -1).clone()
    seen[range(6), [4 * row + 2 for row in range(6)], 0] = 1.0
    rows, columns = head(seen)[:, 0].T
    torch.testing.assert_close(rows.diff(), torch.full((5,), 2 * 3**0.5 / 5))
    torch.testing.assert_close(columns, torch.full((6,), 3**0.5 / 3))


@torch.no_grad()
def test_a_projection_and_its_norm() -> None:
    model, (frames, actions, states) = build(LatentConfig(pool=(2, 2), dim=8)), trajectory()
    latents = model.encode(frames)
    assert (model.latent_dim, model.grid.size, latents.shape) == (8, 4, (2, 7, 4, 8))
    for values in (latents, model.rollout(latents[:, :2], actions[:, :4], states[:, :2])):
        torch.testing.assert_close(values.mean(dim=-1), torch.zeros(values.shape[:-1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(values.std(dim=-1, unbiased=False), torch.ones(values.shape[:-1]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("context", [1, 3])
@torch.no_grad()
def test_a_rollout_equals_full_passes(context: int, window: int | None) -> None:
    """Each step by the whole sequence so far, with the last known state."""
    model, (frames, actions, states) = build(window=window), trajectory()
    latents = model.encode(frames[:, :, :context])
    found = model.rollout(latents, actions, states[:, :context])
    assert found.shape == (2, 7 - context, 16, 24)
    held = torch.cat((states[:, :context], states[:, context - 1 : context].expand(-1, 7 - context, -1)), dim=1)
    sequence = latents
    for step in range(context, 7):
        predicted = model.teacher_forced(sequence, actions[:, :step], held[:, :step])[:, -1]
        assert (found[:, step - context] - predicted).abs().max() < 1e-5
        sequence = torch.cat((sequence, predicted[:, None]), dim=1)


@torch.no_grad()
def test_one_row_serves_many_samples() -> None:
    model, (frames, actions, states) = build(), trajectory(batch=1)
    latents = model.encode(frames[:, :, :3])
    memory = model.begin(latents, actions[:, :2], states[:, :3])
    choices = torch.randn(20, 4, 3)
    many, found = memory.repeat(20), []
    assert many.latents.untyped_storage().data_ptr() == memory.latents.untyped_storage().data_ptr()
    for action in choices.unbind(dim=1):
        predicted, many = model.step(many, action)
        found.append(predicted)
    for row in (0, 19):
        chosen = torch.cat((actions[:, :2], choices[row : row + 1]), dim=1)
        slow = model.rollout(latents, chosen, states[:, :3])[0]
        assert (torch.stack(found, dim=1)[row] - slow).abs().max() < 1e-5
    again, _ = model.step(memory, actions[:, 2])  # what others did with it has not changed it
    torch.testing.assert_close(again, model.step(model.begin(latents, actions[:, :2], states[:, :3]), actions[:, 2])[0])


@torch.no_grad()
def test_rows_do_not_mix_and_nothing_sees_what_comes_later() -> None:
    model, (frames, actions, states) = build(), trajectory()
    latents = model.encode(frames)
    found = model.teacher_forced(latents[:, :-1], actions, states[:, :-1])
    alone = model.teacher_forced(latents[1:, :-1], actions[1:], states[1:, :-1])
    torch.testing.assert_close(found[1:], alone, atol=1e-5, rtol=1e-4)
    for changed in ("latents", "actions", "states"):
        given = {"latents": latents[:, :-1].clone(), "actions": actions.clone(), "states": states[:, :-1].clone()}
        given[changed][:, 3] += 1
        moved = (model.teacher_forced(**given) - found).abs().amax(dim=(0, 2, 3))
        assert (moved[:3] == 0).all()
        assert (moved[3:] > 1e-6).all()


@torch.no_grad()
def test_units_of_actions_and_states_do_not_matter() -> None:
    model, (frames, actions, states) = build(), trajectory()
    latents = model.encode(frames)
    plain = model.rollout(latents[:, :2], actions, states[:, :2])
    scale, shift = torch.tensor([2.0, 0.1, 5.0]), torch.tensor([1.0, -3.0, 0.0])
    model.scaling.set(Statistics(shift, scale, shift - scale, shift + scale, torch.ones(4), torch.full((4,), 3.0)))
    scaled = model.rollout(latents[:, :2], actions * scale + shift, states[:, :2] * 3 + 1)
    torch.testing.assert_close(scaled, plain, atol=1e-5, rtol=1e-4)
    assert model.scaling.action_high.tolist() == [3.0, pytest.approx(-2.9), 5.0]


@torch.no_grad()
def test_an_axis_that_never_moves_keeps_its_unit() -> None:
    scaling = Scaling(2, 0)
    one, zero = torch.ones(2), torch.tensor([2.0, 0.0])
    scaling.set(Statistics(one, zero, one, one, torch.ones(3), torch.ones(3)))  # states that the model leaves out
    assert scaling.actions(torch.tensor([3.0, 4.0])).tolist() == [1.0, 3.0]
    with pytest.raises(ValueError, match=r"actions of 3 numbers, the model \(objective.predictor.action_dim\) of 2"):
        scaling.set(Statistics(*[torch.ones(3)] * 6))


@torch.no_grad()
def test_states_advance_with_the_actions() -> None:
    model = build(action_dim=7, state_dim=7, state_update="pose7")
    frames, actions, states = trajectory(5, 2, 7, 7)
    latents = model.encode(frames[:, :, :1])
    found = model.rollout(latents, actions, states[:, :1])
    poses = [states[:, 0]]
    for action in actions.unbind(dim=1):
        poses.append(next_poses(poses[-1], action))
    true = torch.stack(poses, dim=1)
    sequence = latents
    for step in range(1, 5):
        predicted = model.teacher_forced(sequence, actions[:, :step], true[:, :step])[:, -1]
        assert (found[:, step - 1] - predicted).abs().max() < 1e-5
        sequence = torch.cat((sequence, predicted[:, None]), dim=1)


def test_gradients_reach_actions() -> None:
    model, (frames, actions, states) = build(), trajectory()
    actions.requires_grad_()
    with torch.no_grad():
        latents = model.encode(frames[:, :, :2])
    model.rollout(latents, actions, states[:, :2])[:, -1].square().sum().backward()
    assert actions.grad is not None
    assert (actions.grad.abs().sum(dim=(0, 2)) > 0).all()


@torch.no_grad()
def test_a_model_without_states_takes_no_notice_of_them() -> None:
    model, (frames, actions, states) = build(state_dim=0), trajectory()
    latents = model.encode(frames[:, :, :2])
    torch.testing.assert_close(model.rollout(latents, actions, states[:, :2]), model.rollout(latents, actions))


def test_wrong_input_is_named() -> None:
    model, (frames, actions, states) = build(), trajectory()
    latents = torch.zeros(2, 3, 16, 24)
    with pytest.raises(ValueError, match=r"frames must be float \[B, C, T, H, W\], not uint8"):
        model.encode(frames.byte())
    with pytest.raises(ValueError, match="3 frames have 2 actions between them, not 6"):
        model.begin(latents, actions, states[:, :3])
    with pytest.raises(ValueError, match="3 frames need more than 2 actions to roll out, not 2"):
        model.rollout(latents, actions[:, :2], states[:, :3])
    with pytest.raises(ValueError, match=r"give states \[2, 3, 4\], not none"):
        model.rollout(latents, actions)
    with pytest.raises(ValueError, match="actions have 2 numbers, the model's have 3"):
        model.begin(latents, actions[:, :2, :2], states[:, :3])
    with pytest.raises(ValueError, match=r"latent.pool 5 x 5 is finer than the encoder's 4 x 4"):
        build(LatentConfig(pool=(5, 5)))
    with pytest.raises(ValueError, match="window must be at least 1 step, not 0"):
        WorldConfig(window=0)
    with pytest.raises(ValueError, match="pool must be"):
        LatentConfig(pool=(0, 1))
    with pytest.raises(ValueError, match="pool 'flat' is a learned projection of all tokens: give it a dim"):
        LatentConfig(pool="flat")
    for config in ({"dim": None, "layer_norm": False}, {"dim": 3}):
        with pytest.raises(ValueError, match="pool 'keypoints' gives places: give it a dim"):
            LatentConfig(pool="keypoints", **config)
    with pytest.raises(ValueError, match="'pose7' moves states of 7"):
        build(state_update="pose7")
