"""The encoder: masked encoding, sizes, layers, layout, gradients, errors."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.config import ConfigError, from_dict, to_dict
from jepa.models import SIZES, Encoder, EncoderConfig
from jepa.models import linear as linear_module
from jepa.models.rope import rope_table, rotate
from jepa.types import ClipConfig, TokenGrid

CLIP = ClipConfig(num_frames=4, fps=4, crop_size=16)  # with patch 4, tubelet 2: 2 x 4 x 4 tokens
CONFIG = EncoderConfig(size="vit_nano", embed_dim=48, depth=3, num_heads=4, patch_size=4)


def build(**changes: object) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(dataclasses.replace(CONFIG, **changes), CLIP)  # type: ignore[arg-type]
    with torch.no_grad():  # weights large enough that attention is not uniform, biases and norms that count
        for parameter in encoder.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return encoder


def random_ids(batch: int, count: int, total: int = 32) -> Tensor:
    return torch.stack([torch.randperm(total)[:count] for _ in range(batch)])


def restricted_full_forward(encoder: Encoder, clip: Tensor, ids: Tensor) -> Tensor:
    """All tokens go through every block, but attention may look at the tokens ``ids`` only; then those are read."""
    grid = encoder.grid_of(clip.shape)
    x = encoder.patch_embed.proj(clip).flatten(2).transpose(1, 2)
    visible = torch.zeros(len(clip), grid.size, dtype=torch.bool).scatter(1, ids, True)[:, None, None]
    table = rope_table(grid, grid.ids()[None], encoder.head_dim)
    if encoder.positions is not None:
        x = x + encoder.positions(grid)
    for block in encoder.blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, block.attn.num_heads, -1)).unbind(2)
        if encoder.positions is None:
            q, k = rotate(q, table), rotate(k, table)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        x = x + block.attn.proj(attended.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return encoder.norm(x).gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))


@pytest.mark.parametrize("position", ["rope", "sincos"])
def test_masked_encoding_equals_restricted_attention(position: str) -> None:
    encoder, clip, ids = build(position=position), torch.randn(2, 3, 4, 16, 16), random_ids(2, 9)
    expected = restricted_full_forward(encoder, clip, ids)
    torch.testing.assert_close(encoder(clip, ids), expected, rtol=1e-4, atol=1e-4)
    everything = torch.stack([torch.randperm(32) for _ in range(2)])
    whole = encoder(clip).gather(1, everything[..., None].expand(-1, -1, 48))
    torch.testing.assert_close(encoder(clip, everything), whole, rtol=1e-4, atol=1e-4)


def test_positions_matter_and_rows_differ() -> None:
    for position in ("rope", "sincos"):
        encoder, clip = build(position=position), torch.randn(2, 3, 4, 16, 16)
        tokens = encoder(clip)
        assert (tokens[0] - tokens[1]).abs().mean() > 0.1
        alike = encoder(torch.ones(1, 3, 4, 16, 16))[0]
        spread = (alike - alike[0]).abs().max()
        # Equal patches: rotary attention averages equal values, while sine-cosine positions tell tokens apart.
        assert (spread > 0.1) if position == "sincos" else (spread < 1e-4)
        shifted = encoder(clip.roll(4, dims=-1)).unflatten(1, (2, 4, 4)).roll(-1, dims=3).flatten(1, 3)
        assert (shifted - tokens).abs().max() > 0.01


def test_shapes_of_images_and_other_sizes() -> None:
    encoder = build()
    assert encoder.grid == TokenGrid(2, 4, 4)
    for shape, grid in (((1, 16, 16), (1, 4, 4)), ((8, 16, 16), (4, 4, 4)), ((4, 8, 24), (2, 2, 6))):
        clip = torch.randn(2, 3, *shape)
        assert encoder.grid_of(clip.shape) == TokenGrid(*grid)
        assert encoder(clip).shape == (2, TokenGrid(*grid).size, 48)
        assert build(position="sincos")(clip).shape == (2, TokenGrid(*grid).size, 48)
    image = torch.randn(2, 3, 1, 16, 16)
    torch.testing.assert_close(encoder(image), encoder(image.expand(-1, -1, 2, -1, -1)))
    assert encoder(image, random_ids(2, 3, 16)).shape == (2, 3, 48)


@pytest.mark.parametrize("wrong", [torch.rand(2, 3, 16, 16), torch.zeros(1, 3, 4, 16, 16, dtype=torch.uint8)])
def test_what_is_no_clip_is_named(wrong: Tensor) -> None:
    given = rf"{str(wrong.dtype).removeprefix('torch.')} \[{wrong.shape[0]}, 3,"
    with pytest.raises(ValueError, match=rf"clip must be float \[B, C, T, H, W\] \(an image has T = 1\), not {given}"):
        build()(wrong)


def test_image_encoder() -> None:
    clip = ClipConfig(num_frames=1, crop_size=16)
    encoder = Encoder(dataclasses.replace(CONFIG, tubelet_size=1, position="sincos"), clip)
    assert encoder.grid == TokenGrid(1, 4, 4)
    assert encoder(torch.randn(2, 3, 1, 16, 16)).shape == (2, 16, 48)
    assert encoder.patch_embed.proj.weight.shape == (48, 3, 1, 4, 4)


def test_layers_are_normed_block_outputs() -> None:
    encoder, clip = build(), torch.randn(2, 3, 4, 16, 16)
    first, last, middle = encoder(clip, None, layers=[0, -1, 1])
    torch.testing.assert_close(last, encoder(clip))
    x = encoder.patch_embed(clip)
    table = rope_table(encoder.grid, encoder.grid.ids()[None], encoder.head_dim)
    for expected, block in zip((first, middle), encoder.blocks, strict=False):
        x = block(x, table)
        torch.testing.assert_close(expected, encoder.norm(x))
    for wrong in (3, -4):
        with pytest.raises(ValueError, match=f"names block {wrong}, but the encoder has blocks 0 to 2"):
            encoder(clip, layers=[wrong])
    with pytest.raises(ValueError, match="layers is empty"):
        encoder(clip, layers=[])


def test_published_key_names() -> None:
    encoder = build(depth=1)
    names = [f"blocks.0.{n}" for n in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")]
    names += ["patch_embed.proj", "norm"]
    expected = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    assert set(encoder.state_dict()) == expected
    assert set(build(depth=1, position="sincos").state_dict()) == expected
    assert encoder.patch_embed.proj.weight.shape == (48, 3, 2, 4, 4)
    assert encoder.blocks[0].attn.qkv.weight.shape == (144, 48)


@pytest.mark.parametrize("position", ["rope", "sincos"])
def test_every_parameter_gets_a_gradient(position: str) -> None:
    encoder = build(position=position)
    encoder(torch.randn(2, 3, 4, 16, 16), random_ids(2, 9)).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_activation_checkpointing_gives_equal_gradients() -> None:
    clip, ids, grads = torch.randn(2, 3, 4, 16, 16), random_ids(2, 9), []
    for checkpointing in (False, True):
        encoder = build(activation_checkpointing=checkpointing)
        encoder(clip, ids).square().mean().backward()
        grads.append([p.grad for p in encoder.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_initialisation_has_the_documented_scale() -> None:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(size="vit_nano"), ClipConfig(num_frames=2, fps=4, crop_size=32))
    for number, block in enumerate(encoder.blocks, start=1):
        assert float(block.attn.qkv.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
        assert float(block.mlp.fc2.weight.detach().std()) == pytest.approx(0.02 / (2 * number) ** 0.5, rel=0.05)
        assert float(block.attn.proj.weight.detach().std()) == pytest.approx(0.02 / (2 * number) ** 0.5, rel=0.05)
        assert float(block.mlp.fc1.bias.detach().abs().max()) == 0
    assert encoder.norm.eps == 1e-6
    weight = Encoder(dataclasses.replace(CONFIG, init="xavier"), CLIP).blocks[2].mlp.fc2.weight.detach()
    assert float(weight.std()) == pytest.approx((2 / (48 + 192)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("has_bf16", [True, False])
def test_bf16_is_close_to_fp32(has_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "CPU_HAS_BF16", has_bf16)
    encoder, clip = build(), torch.randn(2, 3, 4, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encoder(clip)
    error = (rounded.float() - encoder(clip)).abs().mean() / encoder(clip).abs().mean()
    assert 1e-4 < error < 0.05
    half = build().bfloat16()(clip.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - encoder(clip)).abs().mean() / encoder(clip).abs().mean() < 0.05


@pytest.mark.parametrize("size", SIZES)
def test_size_table(size: str) -> None:
    """Parameters in millions: the published counts, less V-JEPA 2.1's second patch embedding (D x 768) in B and G."""
    with torch.device("meta"):
        count = sum(p.numel() for p in Encoder(EncoderConfig(size=size), ClipConfig(fps=4)).parameters()) / 1e6
    known = {
        "vit_base": 86.8 - 0.59,
        "vit_large": 303.9,
        "vit_huge": 631.6,
        "vit_giant": 1012.2,
        "vit_gigantic": 1845.2 - 1.28,
    }
    assert count == pytest.approx(known.get(size, count), abs=0.06)
    assert count < 23 or size in known


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": "vit_bas"}, "did you mean 'vit_base'"),
        ({"embed_dim": 50}, "embed_dim 50 is not divisible by num_heads 4"),
        ({"embed_dim": 16}, "embed_dim 16 over num_heads 4 gives 4"),
        ({"depth": 0}, "depth 0"),
        ({"patch_size": 0}, "patch_size 0"),
        ({"position": "learned"}, "rope, sincos, table, not 'learned'"),
        ({"position": "sincos", "embed_dim": 42, "num_heads": 2}, "divisible by 4, not 42"),
    ],
)
def test_bad_configs_are_clear(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError) as error:
        dataclasses.replace(CONFIG, **changes)  # type: ignore[arg-type]
    assert words in str(error.value)
    with pytest.raises(ConfigError):
        from_dict(EncoderConfig, {**to_dict(CONFIG), **changes})


def test_native_clip_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match=r"crop_size\) 18 is not divisible by patch_size 4; use 16 or 20"):
        Encoder(CONFIG, ClipConfig(num_frames=4, fps=4, crop_size=18))
    with pytest.raises(ValueError, match=r"num_frames\) 5 is not divisible by tubelet_size 2; use 4 or 6"):
        Encoder(CONFIG, ClipConfig(num_frames=5, fps=4, crop_size=16))


def test_levels_have_norms_of_their_own() -> None:
    """Block n's output goes through the norm of the next level up; the last block's through the last one."""
    encoder = build(levels=(0, 2))
    clip = torch.randn(1, 3, 4, 16, 16)
    raw: dict[int, Tensor] = {}
    for number, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda _m, _i, out, n=number: raw.__setitem__(n, out))
    outputs = encoder(clip, layers=[0, 1, 2])
    for number, norm in ((0, 0), (1, 1), (2, 1)):
        torch.testing.assert_close(outputs[number], encoder.norms_block[norm](raw[number]))
    torch.testing.assert_close(encoder(clip), outputs[2])
    assert not any(name.startswith("norm.") for name in encoder.state_dict())


def test_images_have_a_tokenizer_and_a_modality_of_their_own() -> None:
    encoder = build(image_tokenizer=True, modality_embedding=True)
    image, clip = torch.randn(2, 3, 1, 16, 16), torch.randn(2, 3, 4, 16, 16)
    before = encoder(image), encoder(clip)
    assert before[0].shape == (2, 16, 48)
    with torch.no_grad():
        assert encoder.patch_embed_img is not None
        encoder.patch_embed_img.proj.weight.add_(1)
        encoder.img_mod_embed.add_(1)
    assert not torch.allclose(encoder(image), before[0])
    assert torch.equal(encoder(clip), before[1])
    assert encoder.patch_embed_img.proj.weight.shape == (48, 3, 1, 4, 4)


@pytest.mark.parametrize("kind", ["swiglu", "swiglu_full"])
def test_gated_mlp(kind: str) -> None:
    encoder = build(mlp=kind)
    mlp = encoder.blocks[0].mlp
    assert mlp.fc1.out_features == {"swiglu": 128, "swiglu_full": 192}[kind]  # 2/3 of 4 x 48, a multiple of 8
    x = torch.randn(3, 48)
    gate = mlp.fc1(x)
    torch.testing.assert_close(mlp(x), mlp.fc3(gate * torch.sigmoid(gate) * mlp.fc2(x)))
    encoder(torch.randn(1, 3, 4, 16, 16)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in mlp.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"levels": (2, 1)}, "ascending"), ({"levels": (0, 1)}, "the last of levels must be the last block, 2, not 1"),
     ({"mlp": "relu"}, "mlp 'relu' is unknown")],
)  # fmt: skip
def test_bad_published_options(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_context_ids_outside_the_grid() -> None:
    with pytest.raises(ValueError, match="context_ids holds 40, but a grid of 2 x 4 x 4 has 0 to 31"):
        build()(torch.randn(1, 3, 4, 16, 16), torch.tensor([[0, 40]]))
