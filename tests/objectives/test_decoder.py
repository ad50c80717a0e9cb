"""The objective decoder: which latents are decoded, that nothing of the frozen model moves, losses, settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from jepa.config import ConfigError
from jepa.models.encoder import EncoderConfig
from jepa.models.flops import block_flops, encoder_flops, linear_flops
from jepa.models.flow_decoder import FlowDecoder, FlowDecoderConfig
from jepa.models.latent_head import LatentConfig
from jepa.models.pixel_decoder import PixelDecoder, PixelDecoderConfig
from jepa.monitor import pictures
from jepa.objectives import DecoderBase, DecoderConfig, DecoderObjective
from jepa.objectives.world_flops import frame_flops
from jepa.types import Batch, ClipConfig, TokenGrid

CLIP = ClipConfig(num_frames=4, fps=5.0, crop_size=16, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
IMAGE = ClipConfig(num_frames=1, crop_size=16)
ENCODER = EncoderConfig(embed_dim=24, depth=3, num_heads=2, patch_size=8, tubelet_size=2)
FRAME_ENCODER = EncoderConfig(embed_dim=24, depth=2, num_heads=2, patch_size=8, tubelet_size=1)
TINY: dict[str, Any] = {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8, "tubelet_size": 2}


def objective(flow: bool = False, decoder: dict[str, Any] | None = None, **changes: Any) -> DecoderObjective:
    """Over an encoder of clips."""
    torch.manual_seed(0)
    shape = {**TINY, **(decoder or {})}
    made = FlowDecoderConfig(**shape) if flow else PixelDecoderConfig(**shape)
    values = {"model": "runs/m", "base": DecoderBase(clip=CLIP), "decoder": made, **changes}
    return DecoderObjective(DecoderConfig(**values), ENCODER, CLIP, 0)


def of_frames(pool: Any = "flat", **decoder: Any) -> DecoderObjective:
    """Over a world model of frames."""
    torch.manual_seed(0)
    latent = LatentConfig(pool=pool, dim=5)
    shape = PixelDecoderConfig(**{**TINY, "tubelet_size": 1, **decoder})
    config = DecoderConfig(model="runs/w", base=DecoderBase(clip=IMAGE, latent=latent), decoder=shape)
    return DecoderObjective(config, FRAME_ENCODER, CLIP, 0)


def batch(clips: int = 3) -> Batch:
    return Batch(clip=torch.randn(clips, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1)))


def normed(tokens: torch.Tensor) -> torch.Tensor:
    return (tokens - tokens.mean(dim=-1, keepdim=True)) / (tokens.var(dim=-1, keepdim=True, correction=0) + 1e-5).sqrt()


# ---- latents ---------------------------------------------------------------------------------------------------------


def test_latents_are_the_targets_of_the_model() -> None:
    clip = batch().clip
    made = objective()
    latents, grid = made.latents(clip)
    assert grid == (2, 2, 2)
    torch.testing.assert_close(latents, normed(made.encoder(clip)).detach())
    assert made.layers is None
    assert objective(layers=(-1,)).layers is None  # the same
    for layers in ((0, 2), (-3, -1)):
        both = objective(layers=layers)
        assert both.layers == (0, 2)
        found = both.latents(clip)[0]
        first, last = both.encoder(clip, layers=(0, 2))
        torch.testing.assert_close(found, torch.cat((normed(first), normed(last)), dim=-1).detach())
        assert both.decoder.latent_dim == 48
    levels = objective(base=DecoderBase(clip=CLIP, levels=(1, 2)))
    assert levels.layers == (1, 2)
    assert objective(base=DecoderBase(clip=CLIP, levels=(1, 2)), layers=(0,)).layers == (0,)


@pytest.mark.parametrize(("pool", "count"), [("flat", 1), ("none", 4), ("mean", 1), ((2, 1), 2)])
def test_frames_are_encoded_and_decoded_one_by_one(pool: Any, count: int) -> None:
    made, clip = of_frames(pool), batch().clip
    assert made.per_frame
    assert made.head is not None
    rows = made.rows(clip)
    assert rows.shape == (12, 3, 1, 16, 16)
    latents, grid = made.latents(rows)
    assert latents.shape == (12, count, 5)
    assert grid.t == 1
    for number in (0, 5, 11):
        frame = clip[number // 4, :, number % 4][None, :, None]
        torch.testing.assert_close(latents[number], made.head(made.encoder(frame))[0].detach())
    decoded = made.decode(rows)
    torch.testing.assert_close(decoded[5:6], made.decode(rows[5:6]))
    loss = made(Batch(clip=clip), 0.0).total
    torch.testing.assert_close(loss.detach(), (decoded - rows).abs().mean())


# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["l1", "perceptual", "flow", "frames"])
def test_nothing_reaches_the_model(kind: str) -> None:
    extra = {"perceptual_weight": 0.5} if kind == "perceptual" else {}
    made = of_frames() if kind == "frames" else objective(flow=kind == "flow", **extra)
    if kind == "flow":  # its zeros let nothing through in the first step
        for parameter in made.decoder.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    before = {name: value.clone() for name, value in made.inherited_state().items()}
    assert {name.split(".")[0] for name in before} == ({"encoder", "head"} if kind == "frames" else {"encoder"})
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for step in range(3):
        made(batch(), 0.0).total.backward()
        for name, parameter in made.named_parameters():
            own = name.startswith("decoder.")
            assert parameter.requires_grad == own, name
            assert (parameter.grad is not None) == own, name
            assert not own or name == "decoder.null" or step or parameter.grad.any(), name  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(value, before[name]) for name, value in made.inherited_state().items())
    assert made.training
    assert made.decoder.training
    assert not made.encoder.training
    assert made.target_encoder is made.encoder


def test_losses() -> None:
    clip = batch().clip
    for name, measure in (("l1", F.l1_loss), ("mse", F.mse_loss)):
        made = objective(loss=name)
        loss = made(Batch(clip=clip), 0.0)
        decoded = made.decode(clip)
        torch.testing.assert_close(loss.total.detach(), measure(decoded, clip))
        assert torch.equal(loss.terms[name], loss.total.detach())
        error = ((decoded - clip) * torch.tensor(CLIP.std).view(3, 1, 1, 1)).square().mean(dim=(1, 2, 3, 4))
        torch.testing.assert_close(loss.terms["psnr"], (-10 * error.log10()).mean())
    assert made.psnr(clip, clip) == 100  # as far as it goes
    flow = objective(flow=True)
    torch.manual_seed(3)
    loss = flow(Batch(clip=clip), 0.0)
    torch.manual_seed(3)
    assert isinstance(flow.decoder, FlowDecoder)
    torch.testing.assert_close(loss.total, flow.decoder.loss(clip, *flow.latents(clip)))
    assert list(loss.terms) == ["velocity"]


def test_perceptual_distance() -> None:
    made, clip = objective(perceptual_weight=0.5), batch().clip
    assert made.perceptual_layers == (1, 2)  # the middle and the last
    assert objective(perceptual_weight=0.5, perceptual_layers=(0, -1)).perceptual_layers == (0, 2)
    assert made.perceptual(clip, clip) == 0
    other = clip.roll(1, dims=0).requires_grad_()
    distance = made.perceptual(other, clip)
    pairs = zip(made.encoder(other, layers=(1, 2)), made.encoder(clip, layers=(1, 2)), strict=True)
    torch.testing.assert_close(distance, sum((normed(x) - normed(y)).abs().mean() for x, y in pairs) / 2)
    (gradient,) = torch.autograd.grad(distance, other)
    assert (gradient.flatten(1).abs().amax(dim=1) > 0).all()
    loss = made(Batch(clip=clip), 0.0)
    torch.testing.assert_close(loss.total.detach(), loss.terms["l1"] + 0.5 * loss.terms["perceptual"])


def test_what_the_monitor_draws() -> None:
    clip = batch().clip.clamp(-1, 1)
    for made in (objective(), of_frames()):
        decoded = made.reconstruct(clip)
        assert decoded.shape == clip.shape
        one = made.decode(made.rows(clip)[6:7])[0, :, 0] if made.per_frame else made.decode(clip[1:2])[0, :, 2]
        torch.testing.assert_close(decoded[1, :, 2], one)
        picture = pictures(made, Batch(clip=clip), CLIP, clips=2)["decoded"]
        assert picture.shape == (4 * 68, 4 * 68, 3)  # frames of 16 pixels are enlarged to 64, with gaps of 4
        for row, frame in ((2, clip[1, :, 2]), (3, one)):
            drawn = torch.from_numpy(picture)[68 * row : 68 * row + 64 : 4, 2 * 68 : 2 * 68 + 64 : 4].movedim(-1, 0)
            std, mean = (torch.tensor(values)[:, None, None] for values in (CLIP.std, CLIP.mean))
            assert (drawn - 255 * (frame * std + mean).clamp(0, 1)).abs().max() <= 0.5 + 1e-3


def test_what_the_monitor_measures() -> None:
    clip = batch(20).clip
    made = objective()
    found = made.measure(clip)
    mean = clip.mean(dim=(0, 2), keepdim=True).expand_as(clip)
    torch.testing.assert_close(found["psnr_mean_frame"], made.psnr(mean, clip))
    torch.testing.assert_close(found["psnr"], made.psnr(made.decode(clip), clip))
    flow = objective(flow=True)
    assert flow.measure(clip) == flow.measure(clip)


@pytest.mark.parametrize("flow", [False, True])
def test_under_autocast(flow: bool) -> None:
    made = objective(flow=flow)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = made(batch(), 0.0).total
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.decoder.parameters())


def test_work_counts_encoding_and_decoder() -> None:
    made = objective(decoder={"patch_size": 4})
    assert isinstance(made.decoder, PixelDecoder)
    decoder, clips = made.decoder, batch()
    assert decoder.out == TokenGrid(2, 4, 4)
    ends = linear_flops(decoder.cells, 8) + linear_flops(decoder.proj, 32)
    block: Any = decoder.blocks[0]
    learned = 3 * (ends + block_flops(block, 32))
    encoding: Any = encoder_flops(made.encoder, 8, trained=False)
    assert made.work(clips).flops == pytest.approx(3 * (encoding + learned))
    assert made.work(clips).tokens == 24
    uncropped = Batch(clip=torch.zeros(3, 3, 4, 19, 23))  # as it leaves the loader
    assert made.work(uncropped).flops == made.work(clips).flops
    perceptual = objective(decoder={"patch_size": 4}, perceptual_weight=0.1)
    assert perceptual.work(clips).flops == pytest.approx(3 * (4 * encoding + learned))
    frames = of_frames()
    one: Any = frames.decoder.blocks[0]
    ends = linear_flops(frames.decoder.cells, 1) + linear_flops(frames.decoder.proj, 4)
    own = frame_flops(frames.encoder, 16, 16, trained=False) + 3 * (ends + block_flops(one, 4))
    assert frames.work(clips).flops == pytest.approx(12 * own)


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "message"), [
    ({"model": ""}, "model must name what is decoded: a run, a published model or timm:NAME"),
    ({"layers": ()}, "layers is empty: name at least one block, or leave it out"),
    ({"perceptual_weight": 0.1, "perceptual_layers": ()}, "perceptual_layers is empty: name at least one block"),
    ({"perceptual_weight": -1}, "perceptual_weight must not be negative, but is -1"),
    ({"perceptual_layers": (1,)}, "perceptual_layers have no meaning with perceptual_weight 0: set a weight"),
    ({"decoder": FlowDecoderConfig(), "loss": "mse"}, "loss has no meaning with a flow decoder"),
    ({"decoder": FlowDecoderConfig(), "perceptual_weight": 1}, "perceptual_weight has no meaning with a flow decoder"),
])  # fmt: skip
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**{"model": "runs/m", **changes})


def test_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective.model is not settled: call jepa.settling"):
        objective(base=None)
    with pytest.raises(ConfigError, match=r"objective.layers: layers names block 3, but the encoder has blocks 0 to 2"):
        objective(layers=(3,))
    with pytest.raises(ConfigError, match=r"objective.perceptual_layers: layers names block 7"):
        objective(perceptual_weight=1.0, perceptual_layers=(7,))
    with pytest.raises(ConfigError, match=r"objective.decoder: clip height 16 is not divisible by decoder.patch_si"):
        objective(decoder={"patch_size": 6})
    with pytest.raises(
        ConfigError, match=r"objective.decoder: 1 output patches over the clip's rows .* lower decoder.p"
    ):
        objective(decoder={"patch_size": 16})
    with pytest.raises(ConfigError, match=r"decoder.tubelet_size is 2, but objective.model runs/w is a world model"):
        of_frames(tubelet_size=2)
    world = DecoderConfig(
        model="runs/w", base=DecoderBase(clip=IMAGE, latent=LatentConfig()), layers=(0,),
        decoder=PixelDecoderConfig(**{**TINY, "tubelet_size": 1}),
    )  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"objective.layers: objective.model runs/w is a world model, which has latents"
    ):
        DecoderObjective(world, FRAME_ENCODER, CLIP, 0)


@pytest.mark.parametrize("kind", [PixelDecoderConfig, FlowDecoderConfig])
def test_a_decoder_is_at_most_a_tenth_of_a_large_encoder(kind: type[PixelDecoderConfig]) -> None:
    """It could else learn what the latents do not hold."""

    def build(size: str, dim: int, depth: int) -> DecoderObjective:
        decoder = kind(embed_dim=dim, depth=depth, num_heads=8, patch_size=8, tubelet_size=2)
        config = DecoderConfig(model="runs/m", base=DecoderBase(clip=CLIP), decoder=decoder)
        with torch.device("meta"):  # sizes without memory
            return DecoderObjective(config, EncoderConfig(size=size, patch_size=8), CLIP, 0)

    with pytest.raises(
        ConfigError, match=r"objective.decoder: the decoder has \d+ M parameters, more than a tenth of the encoder's 30"
    ):
        build("vit_large", 768, 6)
    fits = build("vit_large", 512, 4)
    own, other = (sum(p.numel() for p in part.parameters()) for part in (fits.decoder, fits.encoder))
    assert 300e6 < other < 310e6
    assert own <= other / 10
    assert build("vit_base", 768, 6).decoder.latent_dim == 768, "small encoders are not held to it"
