"""The predictor: token order, mask tokens, the target-only last block, layout, gradients, errors."""

import pytest
import torch
from torch import Tensor

from jepa.models import Predictor, PredictorConfig
from jepa.models.rope import rope_table
from jepa.types import TokenGrid

GRID = TokenGrid(2, 4, 4)
CONFIG = PredictorConfig(embed_dim=48, depth=3, num_heads=4)


def build(position: str = "rope", families: int = 2, **changes: object) -> Predictor:
    torch.manual_seed(0)
    config = PredictorConfig(**{"embed_dim": 48, "depth": 3, "num_heads": 4, **changes})  # type: ignore[arg-type]
    predictor = Predictor(config, 32, GRID, families, position)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return predictor


def inputs(batch: int = 2, context: int = 10, targets: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.stack([torch.randperm(GRID.size)[: context + targets] for _ in range(batch)])
    return torch.randn(batch, context, 32), ids[:, :context], ids[:, context:]


@pytest.mark.parametrize("position", ["rope", "sincos"])
def test_token_order_does_not_matter(position: str) -> None:
    predictor, (tokens, context, targets) = build(position), inputs()
    out = predictor(tokens, context, targets)
    assert out.shape == (2, 7, 32)
    order = torch.randperm(10)
    torch.testing.assert_close(predictor(tokens[:, order], context[:, order], targets), out, rtol=1e-4, atol=1e-5)
    order = torch.randperm(7)
    torch.testing.assert_close(predictor(tokens, context, targets[:, order]), out[:, order], rtol=1e-4, atol=1e-5)
    assert (predictor(tokens, context[:, torch.randperm(10)], targets) - out).abs().max() > 1e-3


def test_last_block_equals_all_queries() -> None:
    """Asking for the targets alone gives what the whole block gives at the targets."""
    predictor, (tokens, context, targets) = build(), inputs()
    x = torch.cat((predictor.predictor_embed(tokens), predictor.mask_tokens[1].expand(2, 7, -1)), dim=1)
    table = rope_table(GRID, torch.cat((context, targets), dim=1), 12)
    for block in predictor.predictor_blocks:
        x = block(x, table)
    expected = predictor.predictor_proj(predictor.predictor_norm(x[:, -7:]))
    torch.testing.assert_close(predictor(tokens, context, targets, mask_token=1), expected, rtol=1e-4, atol=1e-5)


def test_rope_sees_coordinate_differences_only() -> None:
    """Moving context and targets together changes nothing; sine-cosine positions are absolute and do notice."""
    tokens, ids = torch.randn(1, 3, 32), torch.tensor([[0, 1, 4, 5, 6]])  # in the upper left, ids in a 4 x 4 frame
    for position, same in (("rope", True), ("sincos", False)):
        predictor = build(position)
        near, far = (predictor(tokens, moved[:, :3], moved[:, 3:]) for moved in (ids, ids + 16 + 4 + 1))
        assert torch.allclose(near, far, rtol=1e-4, atol=1e-4) is same


def test_families_targets_and_rows_differ() -> None:
    predictor, (tokens, context, targets) = build(), inputs()
    out = predictor(tokens, context, targets)
    assert (predictor(tokens, context, targets, mask_token=1) - out).abs().mean() > 1e-2
    assert (out[0] - out[1]).abs().mean() > 1e-2
    assert (out[:, 0] - out[:, 1]).abs().mean() > 1e-3


def test_other_grid() -> None:
    for position in ("rope", "sincos"):
        predictor, (tokens, context, targets) = build(position), inputs()
        native = predictor(tokens, context, targets)
        torch.testing.assert_close(predictor(tokens, context, targets, grid=GRID), native)
        assert (predictor(tokens, context, targets, grid=TokenGrid(1, 4, 8)) - native).abs().max() > 1e-3


@pytest.mark.parametrize("position", ["rope", "sincos"])
def test_every_parameter_gets_a_gradient(position: str) -> None:
    predictor, (tokens, context, targets) = build(position), inputs()
    sum(predictor(tokens, context, targets, mask_token=k).square().mean() for k in (0, 1)).backward()  # type: ignore[union-attr]
    for name, parameter in predictor.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_activation_checkpointing_gives_equal_gradients() -> None:
    (tokens, context, targets), grads = inputs(), []
    for checkpointing in (False, True):
        predictor = build(families=1, activation_checkpointing=checkpointing)
        predictor(tokens, context, targets).square().mean().backward()
        grads.append([p.grad for p in predictor.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_published_key_names() -> None:
    blocks = [f"predictor_blocks.0.{n}" for n in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")]
    names = [*blocks, "predictor_embed", "predictor_norm", "predictor_proj"]
    expected = {f"{n}.{kind}" for n in names for kind in ("weight", "bias")} | {"mask_tokens.0", "mask_tokens.1"}
    for position in ("rope", "sincos"):
        state = build(position, depth=1).state_dict()
        assert set(state) == expected
        assert state["mask_tokens.1"].shape == (1, 1, 48)


def test_mask_tokens_start_apart() -> None:
    predictor = Predictor(CONFIG, 32, GRID, 2)
    assert 0.01 < float(predictor.mask_tokens[0].detach().std()) < 0.03
    assert not torch.equal(predictor.mask_tokens[0], predictor.mask_tokens[1])


def test_errors_are_clear() -> None:
    predictor, (tokens, context, targets) = build(), inputs()
    for wrong in (2, -1):
        with pytest.raises(ValueError, match=f"mask_token {wrong} does not exist: the predictor has 2"):
            predictor(tokens, context, targets, mask_token=wrong)
    with pytest.raises(ValueError, match="num_mask_tokens must be at least 1"):
        Predictor(CONFIG, 32, GRID, 0)
    with pytest.raises(ValueError, match="embed_dim 50 is not divisible by num_heads 4"):
        PredictorConfig(embed_dim=50, num_heads=4)
    with pytest.raises(ValueError, match="head width"):
        Predictor(PredictorConfig(embed_dim=16, num_heads=4), 32, GRID, 1)


def test_levels_dense_head_and_modalities() -> None:
    """V-JEPA 2.1's predictor: several levels in, several out, at the context's places, too."""
    predictor = build(levels=2, context_head=True, modality_embedding=True)
    tokens, context_ids, target_ids = inputs()
    tokens = torch.cat((tokens, tokens.flip(-1)), dim=-1)
    targets, context = predictor.forward_dense(tokens, context_ids, target_ids)
    assert targets.shape == (2, 7, 64)
    assert context.shape == (2, 10, 64)
    torch.testing.assert_close(targets, predictor(tokens, context_ids, target_ids))
    image = predictor(tokens, context_ids, target_ids, modality="image")
    assert not torch.allclose(image, targets)
    (targets.square().mean() + context.square().mean() + image.square().mean()).backward()
    idle = [name for name, p in predictor.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == ["mask_tokens.1"]


def test_another_teacher_width() -> None:
    """The small 2.1 models predict the features of a larger teacher."""
    predictor = build(out_dim=50, context_head=True)
    assert predictor(*inputs()).shape == (2, 7, 50)


def test_ids_outside_the_grid() -> None:
    predictor = build()
    tokens, context_ids, target_ids = inputs()
    with pytest.raises(ValueError, match="target_ids holds 32, but a grid of 2 x 4 x 4 has 0 to 31"):
        predictor(tokens, context_ids, target_ids.clone().fill_(32))
    with pytest.raises(ValueError, match="context_ids holds -1"):
        predictor(tokens, context_ids.clone().fill_(-1), target_ids)
