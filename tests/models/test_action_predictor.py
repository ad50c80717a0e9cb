"""Block-causal over steps, equal to a dense mask, conditioned on every action, and no wasted parameters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.models.action_predictor import ActionPredictor, ActionPredictorConfig, step_coordinates
from jepa.models.linear import attend, attend_steps
from jepa.models.rope import RopeConfig, rope_table
from jepa.types import TokenGrid

GRID = TokenGrid(4, 2, 3)
ROPE = RopeConfig(frequencies="tiled", base_grid=2, spread="cells")
CONFIG = ActionPredictorConfig(embed_dim=24, depth=2, num_heads=2, action_dim=3, state_dim=5, extrinsics_dim=6)


def predictor(**changes: object) -> ActionPredictor:
    torch.manual_seed(0)
    values = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
    return ActionPredictor(ActionPredictorConfig(**{**values, **changes}), 16, GRID, ROPE)  # type: ignore[arg-type]


def inputs(steps: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, steps * 6, 16), torch.randn(2, steps, 3), torch.randn(2, steps, 5)


def test_steps_equal_a_dense_mask() -> None:
    q, k, v = torch.randn(3, 2, 12, 2, 8).unbind(0)
    step = torch.arange(12) // 3
    mask = step[:, None] >= step[None]
    slow = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask).transpose(1, 2)
    torch.testing.assert_close(attend_steps(q, k, v, 4), slow)
    assert not torch.allclose(attend(q, k, v), slow)
    with pytest.raises(ValueError, match="12 tokens are not 5 equal steps"):
        attend_steps(q, k, v, 5)


@torch.no_grad()
def test_no_step_sees_a_later_one() -> None:
    model = predictor()
    latents, actions, states = inputs()
    whole = model(latents, actions, states)
    assert whole.shape == (2, 24, 16)
    shorter = model(latents[:, :12], actions[:, :2], states[:, :2])
    torch.testing.assert_close(whole[:, :12], shorter)
    later = actions.clone()
    later[:, 2] += 1
    changed = (model(latents, later, states) - whole).abs().amax(dim=(0, 2)).unflatten(0, (4, 6)).amax(dim=1)
    assert (changed[:2] == 0).all()
    assert (changed[2:] > 0).all()


def test_conditioning_tokens_lie_at_t_0_0_and_patches_are_spread_over_the_native_grid() -> None:
    place = step_coordinates(TokenGrid(2, 4, 1), 2, ROPE, torch.device("cpu"))
    rows = [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0.5, 0], [0, 1, 0], [0, 1.5, 0]]
    assert place.tolist() == rows + [[1, h, w] for _, h, w in rows]


def test_every_parameter_learns_except_unused_extrinsics() -> None:
    model = predictor()
    model(*inputs()).square().mean().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == ["extrinsics_encoder.weight", "extrinsics_encoder.bias"]
    model = predictor(use_extrinsics=True)
    model(*inputs(), torch.randn(2, 4, 6)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        model = predictor(activation_checkpointing=recompute).train()
        model(*inputs()).square().mean().backward()
        gradients.append(model.action_encoder.weight.grad)
    torch.testing.assert_close(*gradients)


def test_wrong_shapes_are_named() -> None:
    model, (latents, actions, states) = predictor(), inputs()
    with pytest.raises(ValueError, match=r"24 latents are not 3 steps .* of 2 x 3 tokens"):
        model(latents, actions[:, :3], states)
    with pytest.raises(ValueError, match=r"states must be \[2, 4, 5\], not \[2, 4, 3\]"):
        model(latents, actions, actions)
    with pytest.raises(ValueError, match="trained without camera extrinsics"):
        model(latents, actions, states, torch.zeros(2, 4, 6))
    with pytest.raises(ValueError, match="trained with camera extrinsics"):
        predictor(use_extrinsics=True)(latents, actions, states)


@torch.no_grad()
def test_another_grid() -> None:
    _, actions, states = inputs()
    out = predictor()(torch.randn(2, 4 * 20, 16), actions, states, grid=TokenGrid(4, 4, 5))
    assert out.shape == (2, 80, 16)
    table = rope_table(TokenGrid(1, 4, 5), torch.arange(20)[None], 12, ROPE)
    assert table.shape == (1, 20, 2, 12)


@torch.no_grad()
def test_how_far_an_action_goes_is_seen_from_the_start() -> None:
    """The norm before attention takes the length of a token away: without an offset only directions would count."""
    torch.manual_seed(0)
    config = ActionPredictorConfig(embed_dim=48, depth=2, num_heads=4, action_dim=2, state_dim=0, init="xavier")
    predictor = ActionPredictor(config, 8, TokenGrid(1, 1, 1), RopeConfig())
    latents, action = torch.randn(1, 1, 8), torch.tensor([[[0.6, -0.3]]])
    short, long, turned = (predictor(latents, a) for a in (action, 3 * action, action.flip(-1)))
    assert float((short - long).norm()) > 0.4 * float((short - turned).norm())
