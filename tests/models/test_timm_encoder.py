"""timm models as frozen encoders: the same numbers as timm frame by frame, its preprocessing, and strict loading."""

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.data
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from evals.features.representations import encoder_hash, random_twin
from jepa.config import from_dict, to_dict
from jepa.data.transforms import ClipTransform
from jepa.load import load
from jepa.models import timm_encoder as module
from jepa.models.timm_config import TimmConfig, parse_timm_name
from jepa.models.timm_encoder import timm_encoder
from jepa.types import Batch, TokenGrid

REGISTERS = "vit_small_patch14_reg4_dinov2"  # a class token, four registers, patches of 14 pixels, made for 518 pixels
# name, side in pixels, prefix tokens, side of the grid, width, blocks or stages
MODELS = (
    ("test_vit", 160, 1, 10, 64, 6),
    (REGISTERS, 56, 5, 4, 384, 12),
    ("test_resnet", 160, 0, 5, 96, 5),
    ("convnext_atto", 96, 0, 3, 320, 4),
    ("test_mambaout", 160, 0, 5, 64, 4),  # channels last
    ("swin_tiny_patch4_window7_224", 112, 0, 4, 768, 4),  # channels last, windows
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights of every model, as a file, with batch norm statistics that are not the initial ones."""
    root, files = tmp_path_factory.mktemp("weights"), {}
    for number, (name, *_) in enumerate(MODELS):
        torch.manual_seed(number)
        state = timm.create_model(name).state_dict()
        for key, value in state.items():
            if key.endswith("running_mean"):
                value.normal_()
            if key.endswith(".gamma") and value.max() < 1e-3:
                value.fill_(1.0)  # layer scale starts at almost nothing
        files[name] = root / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, files[name])
    return files


def reference(name: str, weights: dict[str, Path]) -> torch.nn.Module:
    """The model as timm itself builds it."""
    options = {"dynamic_img_size": True} if "vit" in name or "swin" in name else {}
    model = timm.create_model(name, pretrained=False, **options).eval()
    model.load_state_dict(timm.models.load_state_dict(str(weights[name])))
    return model


def clip_of(size: int, batch: int = 2, frames: int = 3) -> Tensor:
    return torch.randn(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "size", "prefix", "side", "width", "depth"), MODELS)
@torch.no_grad()
def test_tokens_and_layers_equal_timm_frame_by_frame(
    weights: dict[str, Path], name: str, size: int, prefix: int, side: int, width: int, depth: int
) -> None:
    encoder = timm_encoder(name, weights[name], num_frames=3, size=size)
    model, clip = reference(name, weights), clip_of(size)
    assert (encoder.grid, encoder.embed_dim, encoder.depth) == (TokenGrid(3, side, side), width, depth)
    tokens, layers = encoder(clip), encoder(clip, layers=[-1, 0])
    assert tokens.shape == (2, encoder.grid.size, width)
    maps = tokens.unflatten(1, tuple(encoder.grid))
    for row in range(2):
        for time in range(3):
            frame = clip[row : row + 1, :, time]
            features = model.forward_features(frame)
            if features.dim() == 3:
                expected = features[0, prefix:].unflatten(0, (side, side))
            else:
                expected = features[0] if features.shape[-1] == width else features[0].permute(1, 2, 0)
            torch.testing.assert_close(maps[row, time], expected, rtol=1e-4, atol=1e-4)
            found = model.forward_intermediates(frame, norm=True, intermediates_only=True)
            for own, theirs in zip(layers, (found[-1], found[0]), strict=True):
                cells = theirs[0].shape[1] // side  # an early stage has a finer map: the mean of cells x cells
                coarse = theirs[0].unflatten(1, (side, cells)).unflatten(3, (side, cells)).mean(dim=(2, 4))
                mine = own.unflatten(1, tuple(encoder.grid))[row, time]
                torch.testing.assert_close(mine, coarse.permute(1, 2, 0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layers[0], tokens)
    assert not torch.allclose(maps[:, 0], maps[:, 1])


@torch.no_grad()
def test_time_pooling_and_tokens_of_a_frame_against_a_loop(weights: dict[str, Path]) -> None:
    text, clip, model = f"timm:test_vit@{weights['test_vit']}", clip_of(160), reference("test_vit", weights)
    rows = [[model.forward_features(clip[b : b + 1, :, t])[0] for t in range(3)] for b in range(2)]
    mean = load(f"{text}?frames=3&time=mean")
    assert mean.grid == (1, 10, 10)
    expected = torch.stack([sum(row[1:] for row in frames) / 3 for frames in rows])
    torch.testing.assert_close(mean(clip), expected, rtol=1e-4, atol=1e-5)
    assert mean.grid_of((3, 7, 160, 160)).size == 100
    token = load(f"{text}?frames=3&pool=token")
    assert token.grid == (3, 1, 1)
    expected = torch.stack([torch.stack([row[0] for row in frames]) for frames in rows])
    torch.testing.assert_close(token(clip), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(token(clip, layers=[-1])[0], expected, rtol=1e-4, atol=1e-5)
    pooled = load(f"{text}?frames=3&pool=model&time=mean")
    heads = torch.stack([model.forward_head(torch.stack(frames), pre_logits=True).mean(dim=0) for frames in rows])
    torch.testing.assert_close(pooled(clip), heads[:, None], rtol=1e-4, atol=1e-5)
    assert pooled.config.temporal_pool == "mean"


@torch.no_grad()
def test_chunks_and_other_sizes_change_nothing_but_the_grid(
    weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, clip = timm_encoder("test_vit", weights["test_vit"], num_frames=3), clip_of(160)
    whole = encoder(clip)
    monkeypatch.setattr(module, "_PIXELS_AT_ONCE", 2 * 160 * 160)
    torch.testing.assert_close(encoder(clip), whole, rtol=1e-4, atol=1e-5)
    wide = torch.randn(1, 3, 2, 32, 64)
    assert encoder.grid_of(wide.shape) == (2, 2, 4)
    expected = reference("test_vit", weights).forward_features(wide[0].transpose(0, 1))[:, 1:].flatten(0, 1)
    torch.testing.assert_close(encoder(wide)[0], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"cannot encode frames of 50 x 64 pixels: Input height \(50\)"):
        encoder.grid_of((3, 2, 50, 64))


def test_preprocessing_is_that_of_timm(weights: dict[str, Path]) -> None:
    for name, size in (("test_vit", None), ("test_resnet", None), ("convnext_atto", 96)):
        encoder = timm_encoder(name, weights[name], num_frames=1, size=size)
        data = timm.data.resolve_model_data_config(encoder.model)
        if size is not None:
            data["input_size"] = (3, size, size)
        clip = encoder.clip
        assert clip.short_side == math.floor(clip.crop_size / data["crop_pct"])
        assert (clip.mean, clip.std, clip.interpolation) == (data["mean"], data["std"], data["interpolation"])
        rows, columns = np.mgrid[:230, :340]
        picture = np.stack([127 + 120 * np.sin(rows / a + columns / b) for a, b in ((9, 7), (30, 5), (4, 50))], axis=-1)
        picture = picture.astype(np.uint8)
        theirs = timm.data.create_transform(**data, is_training=False)(Image.fromarray(picture))
        ours = ClipTransform(clip)(Batch(clip=torch.from_numpy(picture).permute(2, 0, 1)[None, :, None])).clip[0, :, 0]
        level = 1 / (255 * min(clip.std))
        assert (ours - theirs).abs().max() < 3 * level
        assert (ours - theirs).abs().mean() < 0.3 * level


def test_it_is_frozen_and_its_config_can_be_stored(weights: dict[str, Path]) -> None:
    encoder = timm_encoder("test_resnet", weights["test_resnet"], temporal_pool="mean")
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    encoder.train()(clip_of(160))
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not any(m.training for m in encoder.modules())
    assert encoder.config.name == "test_resnet.r160_in1k"
    assert from_dict(TimmConfig, to_dict(encoder.config)) == encoder.config
    twin = random_twin(encoder, 3)
    assert (twin.config, twin.clip, twin.grid) == (encoder.config, encoder.clip, encoder.grid)
    assert encoder_hash(twin) == encoder_hash(random_twin(encoder, 3)) != encoder_hash(encoder)
    with pytest.raises(ValueError, match="sees whole frames"):
        encoder(clip_of(160), torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="layers names block 5"):
        encoder(clip_of(160), layers=[5])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "timm:vit_small_patch14_dinvo2",
            r"no model 'vit_small_patch14_dinvo2'; did you mean .*vit_small_patch14_",
        ),
        ("timm:resnet18.a1_in2k", r"no weights 'a1_in2k' for resnet18, did you mean 'a1_in1k'"),
        ("timm:test_vit?frame=3", r"option 'frame' is unknown, did you mean 'frames'"),
        ("timm:test_vit?frames=3&frames=4", "given twice"),
        ("timm:test_vit?frames=x", "frames must be a whole number, not 'x'"),
        ("timm:test_vit?time=avg", "temporal_pool 'avg' .* is unknown; known: mean, none"),
        ("timm:test_vit@", "must look like timm:NAME"),
        ("timm:test_vit@/nowhere/w.safetensors", "/nowhere/w.safetensors .* does not exist"),
        ("timm:vit_7b_patch14_reg8_nowhere", "has no model"),
        ("timm:resnet26t.untrained", "no weights"),
        ("timm:vit_tiny_patch16_384.untrained", "no weights"),
    ],
)
def test_names_are_strict(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(text)


def test_every_part_of_a_name() -> None:
    assert parse_timm_name("timm:resnet18.a1_in1k@/a/b@1.pth?frames=4&fps=2.5&time=mean&size=96") == {
        "name": "resnet18.a1_in1k", "weights_file": "/a/b@1.pth", "num_frames": 4, "fps": 2.5,
        "temporal_pool": "mean", "size": 96,
    }  # fmt: skip


def test_models_that_do_not_suit_say_so(weights: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="no class token"):
        timm_encoder("test_resnet", weights["test_resnet"], pool="token")
    with pytest.raises(ValueError, match="takes clips of 3 channels, not 1"):
        timm_encoder("test_resnet", weights["test_resnet"]).grid_of((1, 8, 160, 160))


def test_weights_are_loaded_strictly(weights: dict[str, Path], tmp_path: Path) -> None:
    good = timm.models.load_state_dict(str(weights["test_vit"]))
    headless = {key: value for key, value in good.items() if not key.startswith("head.")}
    wrapped = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in headless.items()}}
    torch.save(wrapped, tmp_path / "wrapped.pth")
    same = timm_encoder("test_vit", tmp_path / "wrapped.pth")
    assert encoder_hash(same) == encoder_hash(timm_encoder("test_vit", weights["test_vit"]))
    gone = "blocks.2.mlp.fc1.bias"
    for change, message in (
        ({gone: None}, rf"does not fit .*Missing key.*{gone}"),
        ({"extra.weight": torch.zeros(2)}, r"Unexpected key.*extra\.weight"),
        ({gone: torch.zeros(3)}, rf"size mismatch for {gone}"),
    ):
        state = {key: value for key, value in {**headless, **change}.items() if value is not None}
        torch.save(state, tmp_path / "bad.pth")
        with pytest.raises(ValueError, match=message):
            timm_encoder("test_vit", tmp_path / "bad.pth")
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"a": print}, protocol=2))
    with pytest.raises(ValueError, match=r"code\.pth"):
        timm_encoder("test_vit", tmp_path / "code.pth")
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(ValueError, match="empty"):
        timm_encoder("test_vit", tmp_path / "empty.safetensors")


def test_offline_says_which_file_to_put_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("cannot find the requested files in the local cache")

    monkeypatch.setattr(timm, "create_model", no_network)
    message = r"repository timm/resnet18.a1_in1k elsewhere, copy it here and load timm:resnet18.a1_in1k@/path/to/FILE"
    with pytest.raises(ValueError, match=message):
        load("timm:resnet18")
