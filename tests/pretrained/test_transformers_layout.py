"""Folders in the transformers V-JEPA 2 layout, against that library's own models on the same random weights."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from exportable import predicted_there
from safetensors.torch import load_file, save_file

import jepa
from jepa.pretrained import load_pretrained
from jepa.pretrained.transformers_layout import TABLE, from_transformers, to_transformers
from jepa.tensorfiles import CheckpointError
from jepa.types import ClipConfig

transformers = pytest.importorskip("transformers")
SHAPE: dict[str, Any] = {
    "crop_size": 32, "patch_size": 8, "frames_per_clip": 4, "hidden_size": 24, "num_attention_heads": 2,
    "num_hidden_layers": 3, "pred_hidden_size": 36, "pred_num_attention_heads": 3, "pred_num_hidden_layers": 2,
    "pred_num_mask_tokens": 3, "pred_zero_init_mask_tokens": False, "num_pooler_layers": 2, "num_labels": 5,
    "mlp_ratio": 3.3,
}  # fmt: skip


def random_model(kind: str, **shape: Any) -> Any:
    """A tiny model of theirs with every parameter random, so that no name can be mixed up unseen."""
    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.VJEPA2Config(**{**SHAPE, **shape})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return random_model("VJEPA2Model")


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, **values: Any) -> Path:
    """The folder with other values in its config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@torch.no_grad()
def test_features_layers_and_any_batch_are_equal(model: Any, folder: Path) -> None:
    clip = torch.randn(3, 3, 4, 32, 32)
    encoder = jepa.load(folder)
    theirs = model(clip.transpose(1, 2), skip_predictor=True, output_hidden_states=True)
    torch.testing.assert_close(encoder(clip), theirs.last_hidden_state, atol=1e-4, rtol=0)
    outputs = encoder(clip, layers=[0, 1])  # theirs are not normed
    for ours, hidden in zip(outputs, theirs.hidden_states[1:3], strict=True):
        torch.testing.assert_close(ours, model.encoder.layernorm(hidden), atol=1e-4, rtol=0)
    image = clip[:, :, :1]
    theirs = model(image.transpose(1, 2), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(encoder(image), theirs, atol=1e-4, rtol=0)


@torch.no_grad()
def test_clips_that_are_not_square_or_native_sit_at_their_true_places(model: Any, folder: Path) -> None:
    """Their model numbers tokens by its square grid; told the true places, it agrees."""
    encoder = jepa.load(folder)
    clip = torch.randn(2, 3, 6, 16, 24)  # a grid of 3 x 2 x 3 inside theirs of 4 x 4 cells
    t, h, w = torch.meshgrid(torch.arange(3), torch.arange(2), torch.arange(3), indexing="ij")
    places = (t * 16 + h * 4 + w).flatten().expand(2, -1)
    hidden = model.encoder.embeddings(clip.transpose(1, 2))
    for layer in model.encoder.layer:
        hidden = layer(hidden, places)[0]
    torch.testing.assert_close(encoder(clip), model.encoder.layernorm(hidden), atol=1e-4, rtol=0)
    wide = transformers.VJEPA2Model.from_pretrained(folder, crop_size=48).eval()  # as the model card advises
    clip = torch.randn(2, 3, 4, 48, 48)
    theirs = wide(clip.transpose(1, 2), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(encoder(clip), theirs, atol=1e-4, rtol=0)


@torch.no_grad()
def test_predictor_is_equal_for_every_mask_token(model: Any, folder: Path) -> None:
    loaded = load_pretrained(folder, "transformers")
    assert loaded.encoder is not None
    assert loaded.predictor is not None
    clip = torch.randn(2, 3, 4, 32, 32)
    ids = torch.stack([torch.randperm(32), torch.randperm(32)])
    context, target = ids[:, :20], ids[:, 20:]
    tokens = loaded.encoder(clip).gather(1, context[..., None].expand(-1, -1, 24))
    outputs = []
    for k in range(3):
        ours = loaded.predictor(tokens, context, target, mask_token=k)
        torch.testing.assert_close(ours, predicted_there(model, clip, context, target, k), atol=1e-4, rtol=0)
        outputs.append(ours)
    assert (outputs[0] - outputs[1]).abs().max() > 0.01  # the mask tokens do differ


@torch.no_grad()
def test_classifier_is_equal(tmp_path: Path) -> None:
    model = random_model("VJEPA2ForVideoClassification")
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path, "transformers")
    assert loaded.encoder is not None
    assert loaded.probe is not None
    assert loaded.predictor is not None
    clip = torch.randn(2, 3, 4, 32, 32)
    logits = loaded.probe(loaded.encoder(clip))
    assert logits.shape == (2, 5)
    torch.testing.assert_close(logits, model(clip.transpose(1, 2)).logits, atol=1e-4, rtol=0)
    with torch.no_grad():  # the port's norms have their own eps, which shows where the variance is small
        vector = torch.randn(1, 24) * 1e-3
        torch.testing.assert_close(
            loaded.probe.pooler.blocks[0].norm1(vector), model.pooler.self_attention_layers[0].layer_norm1(vector)
        )


def test_shards_are_read_and_must_hold_what_the_index_says(model: Any, folder: Path, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 2
    whole, sharded = jepa.load(folder).state_dict(), jepa.load(tmp_path / "sharded").state_dict()
    assert all(torch.equal(whole[key], sharded[key]) for key in whole)
    shards[0].rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=shards[0].name):
        jepa.load(tmp_path / "sharded")
    save_file({"odd": torch.zeros(1)}, shards[0])
    with pytest.raises(CheckpointError, match=r"does not hold what .* says"):
        jepa.load(tmp_path / "sharded")
    index = tmp_path / "sharded" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="no file of this folder"):
        jepa.load(tmp_path / "sharded")


def test_names_there_and_back(model: Any, folder: Path) -> None:
    loaded = load_pretrained(folder, "transformers")
    parts = torch.nn.ModuleDict({"encoder": loaded.encoder, "predictor": loaded.predictor})  # type: ignore[dict-item]
    state = parts.state_dict()
    theirs = to_transformers(state)
    assert set(theirs) == set(model.state_dict())
    assert all(torch.equal(theirs[name], tensor) for name, tensor in model.state_dict().items())
    back = from_transformers(theirs, list(state))
    assert all(torch.equal(back[key], state[key]) for key in state)
    names = [name for group in TABLE.values() for name in group]
    assert len(names) == len(set(names))


def test_wrong_keys_are_listed_by_their_names_unless_allowed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["encoder.layer.0.attention.key.weight"]
    tensors["encoder.layernorm.weight"] = torch.zeros(3)
    save_file(tensors | {"surplus": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError) as error:
        jepa.load(folder)
    for words in ("encoder.layer.0.attention.key.weight is missing", "surplus is unexpected", r"has shape (3,)"):
        assert words in str(error.value)
    with caplog.at_level(logging.WARNING, "jepa"):
        loaded = load_pretrained(folder, "transformers", allow=["*.key.weight", "surplus", "encoder.layernorm.*"])
    assert set(loaded.ignored) == {"encoder.layer.0.attention.key.weight", "surplus", "encoder.layernorm.weight"}
    assert loaded.encoder is not None
    query = loaded.encoder.blocks[0].attn.qkv.weight[:24]
    assert torch.equal(query, tensors["encoder.layer.0.attention.query.weight"])  # its neighbours are loaded
    assert "surplus" in caplog.text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_act": "gelu_pytorch_tanh"}, "hidden_act 'gelu_pytorch_tanh'"),
        ({"attention_dropout": 0.1}, "setting it to 0 there changes no feature"),
        ({"qkv_bias": False}, "qkv_bias False"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05"),
        ({"use_SiLU": True}, "use_SiLU True"),
        ({"model_type": "ijepa"}, 'family="ijepa"'),
        ({"model_type": "videomae"}, "model_type 'videomae'"),
        ({"architectures": ["VJEPA2ForPlanning"]}, "VJEPA2ForPlanning"),
        ({"hidden_size": "wide"}, "embed_dim is hidden_size there"),
        ({"num_hidden_layers": 4}, "encoder.layer.3.norm1.weight is missing"),
    ],
)
def test_values_that_are_not_known_are_named(folder: Path, values: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError) as error:
        jepa.load(edit(folder, **values))
    assert words in str(error.value)
    assert str(folder) in str(error.value)


def test_damaged_folders(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="0 bytes"):
        jepa.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        jepa.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="no JSON"):
        jepa.load(folder)


def test_untrained_mask_tokens_are_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = random_model("VJEPA2Model")
    with torch.no_grad():
        model.predictor.embeddings.mask_tokens[2] = 0
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path, "transformers")
    assert loaded.predictor is not None
    ids = torch.arange(8)[None]
    with caplog.at_level(logging.WARNING, "jepa"):
        loaded.predictor(torch.randn(1, 4, 24), ids[:, :4], ids[:, 4:], mask_token=2)
    assert "mask token 2 is all zero" in caplog.text


def test_preprocessing_is_that_of_the_folder(folder: Path) -> None:
    assert jepa.load(folder).clip == ClipConfig(num_frames=4, fps=4.0, crop_size=32, short_side=36)  # 32 * 256 // 224
    transformers.VJEPA2VideoProcessor(crop_size=32, image_mean=[0.1, 0.2, 0.3], resample=3).save_pretrained(folder)
    clip = jepa.load(folder).clip
    assert (clip.crop_size, clip.short_side, clip.mean, clip.interpolation) == (32, 36, (0.1, 0.2, 0.3), "bicubic")
    assert clip.std == pytest.approx((0.229, 0.224, 0.225))
    own = ClipConfig(num_frames=8, fps=2.0, crop_size=16)
    loaded = load_pretrained(folder, "transformers", clip=own)
    assert loaded.encoder is not None
    assert (loaded.encoder.clip, loaded.encoder.grid) == (own, (4, 2, 2))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"do_normalize": False}, "do_normalize False"),
        ({"rescale_factor": 1.0}, "rescale_factor 1.0"),
        ({"resample": 1}, "resample 1"),
        ({"crop_size": {"height": 32, "width": 48}}, "only square crops"),
        ({"size": {"shortest_edge": 16}}, "shortest_edge of at least the crop, 32"),
    ],
)
def test_preprocessing_that_is_not_known_is_named(folder: Path, values: dict[str, Any], words: str) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=words):
        jepa.load(folder)


def test_a_folder_holds_one_encoder(folder: Path) -> None:
    assert jepa.load(folder).embed_dim == 24
    with pytest.raises(CheckpointError, match=r"holds one encoder.*weights='encoder' cannot"):
        jepa.load(folder, weights="encoder")
