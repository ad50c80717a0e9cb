"""Every published layout: outputs equal those of the original implementations, and nothing is loaded by guessing."""

from __future__ import annotations

import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import jepa
from jepa.config import ConfigError
from jepa.models.action_predictor import ActionPredictor
from jepa.models.predictor import Predictor
from jepa.pretrained import Pretrained, load_pretrained
from jepa.tensorfiles import CheckpointError

OWN = Path(__file__).parent.parent / "golden"
SHARED = Path(__file__).parents[2].parent / "shared" / "golden"
TOLERANCE = {"atol": 1e-4, "rtol": 0.0}
FAMILIES = ("ijepa", "vjepa", "vjepa2", "vjepa2_ac", "vjepa2_1", "probe")


@pytest.fixture(params=["own", "shared"])
def golden(request: pytest.FixtureRequest) -> Path:
    if request.param == "shared" and not SHARED.is_dir():
        pytest.skip("../shared/golden is not on this machine; the copies in tests/golden are tested")
    return OWN if request.param == "own" else SHARED


def keys_of(folder: Path, family: str) -> dict[str, Any]:
    return json.loads((folder / family / "config.json").read_text())


def load(folder: Path, family: str, **changes: Any) -> tuple[Pretrained, dict[str, Tensor]]:
    model = load_pretrained(folder / family / "checkpoint.pt", **{**keys_of(folder, family), **changes})
    return model, load_file(folder / family / "io.safetensors")


def same(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, **TOLERANCE)


# ---- golden outputs --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_ijepa(golden: Path) -> None:
    model, io = load(golden, "ijepa")
    assert model.encoder is not None
    image = io["image"][:, :, None]  # an image is a clip of one frame
    same(model.encoder(image), io["encoder_full"])
    context = model.encoder(image, io["context_index"])
    same(context, io["encoder_masked"])
    assert isinstance(model.predictor, Predictor)
    same(model.predictor(context, io["context_index"], io["target_index"]), io["predictor"])
    assert model.ignored == {}


@torch.no_grad()
@pytest.mark.parametrize(("family", "tokens"), [("vjepa", (0, 1)), ("vjepa2", (0, 1, 7))])
def test_vjepa_and_vjepa2(golden: Path, family: str, tokens: tuple[int, ...]) -> None:
    model, io = load(golden, family)
    assert model.encoder is not None
    same(model.encoder(io["clip"]), io["encoder_full"])
    context = model.encoder(io["clip"], io["context_index"])
    same(context, io["encoder_masked"])
    assert isinstance(model.predictor, Predictor)
    for k in tokens:
        predicted = model.predictor(context, io["context_index"], io["target_index"], mask_token=k)
        same(predicted, io[f"predictor_mask{k}"])
    with pytest.raises(AssertionError):  # the tokens differ, so the comparison can fail
        same(model.predictor(context, io["context_index"], io["target_index"], mask_token=1), io["predictor_mask0"])


@torch.no_grad()
def test_vjepa2_other_shapes_and_layers(golden: Path) -> None:
    model, io = load(golden, "vjepa2")
    assert model.encoder is not None
    same(model.encoder(io["clip_nonsquare"]), io["encoder_nonsquare"])
    first, last = model.encoder(io["clip"], layers=[0, -1])
    same(first, io["encoder_layer0_normed"])
    same(last, io["encoder_full"])


@torch.no_grad()
def test_vjepa2_1(golden: Path) -> None:
    model, io = load(golden, "vjepa2_1")
    encoder, levels = model.encoder, keys_of(golden, "vjepa2_1")["hierarchical_layers"]
    assert encoder is not None
    assert list(encoder.config.levels) == levels
    same(encoder(io["clip"]), io["encoder_full"])
    same(encoder(io["image"]), io["encoder_image"])  # its own tokenizer and modality embedding
    same(torch.cat(encoder(io["clip"], layers=levels), dim=-1), io["encoder_hierarchical"])
    context = torch.cat(encoder(io["clip"], io["context_index"], layers=levels), dim=-1)
    same(context, io["encoder_masked_hierarchical"])
    if "clip_nonsquare" in io:
        same(encoder(io["clip_nonsquare"]), io["encoder_nonsquare"])
    assert isinstance(model.predictor, Predictor)
    args = (context, io["context_index"], io["target_index"], 1)
    targets, at_context = model.predictor.forward_dense(*args)
    same(targets, io["predictor_target"])
    same(at_context, io["predictor_context"])
    same(model.predictor(*args), io["predictor_target"])


@torch.no_grad()
def test_vjepa2_ac(golden: Path) -> None:
    model, io = load(golden, "vjepa2_ac")
    predictor = model.predictor
    assert isinstance(predictor, ActionPredictor)
    latents, actions, states = io["latents"], io["actions"], io["states"]
    same(predictor(latents, actions, states), io["predictor"])
    same(predictor(latents[:, :48], actions[:, :3], states[:, :3]), io["predictor_shorter"])


@torch.no_grad()
def test_probe(golden: Path) -> None:
    model, io = load(golden, "probe")
    assert model.probe is not None
    assert model.encoder is None
    assert model.predictor is None
    same(model.probe(io["tokens"]), io["logits"])


# ---- which weights, which probe --------------------------------------------------------------------------------------


def rewritten(tmp_path: Path, family: str, change: Any) -> Path:
    """A copy of the family's checkpoint after ``change(entries)``."""
    entries = torch.load(OWN / family / "checkpoint.pt", weights_only=True)
    change(entries)
    torch.save(entries, tmp_path / "checkpoint.pt")
    return tmp_path / "checkpoint.pt"


def test_weights_are_chosen_by_name(tmp_path: Path) -> None:
    def add_online(entries: dict[str, Any]) -> None:
        entries["encoder"] = {k: -v for k, v in entries["target_encoder"].items()}

    path, keys = rewritten(tmp_path, "vjepa2", add_online), keys_of(OWN, "vjepa2")
    keys.pop("expected_outputs_from")
    target, online = load_pretrained(path, **keys), load_pretrained(path, **keys, weights="encoder")
    assert (target.weights, online.weights) == ("target_encoder", "encoder")
    assert target.encoder is not None
    assert online.encoder is not None
    assert torch.equal(target.encoder.norm.weight, -online.encoder.norm.weight)
    with pytest.raises(ConfigError, match="weights must be one of target_encoder, encoder, ema_encoder, not 'teacher'"):
        load_pretrained(path, **keys, weights="teacher")


def test_the_averaged_encoder_has_two_names(tmp_path: Path) -> None:
    path = rewritten(tmp_path, "vjepa2_1", lambda e: e.update(ema_encoder=e.pop("target_encoder")))
    model = load_pretrained(path, **keys_of(OWN, "vjepa2_1"))
    assert model.weights == "ema_encoder"
    with pytest.raises(CheckpointError, match=r"holds no encoder; it has: ema_encoder"):
        load_pretrained(path, **{**keys_of(OWN, "vjepa2_1"), "weights": "encoder"})


def test_one_of_several_probes(tmp_path: Path) -> None:
    def several(entries: dict[str, Any]) -> None:
        first = entries["classifiers"][0]
        entries["classifiers"] = [first, {k: v + 1 for k, v in first.items()}]

    path, keys = rewritten(tmp_path, "probe", several), keys_of(OWN, "probe")
    with pytest.raises(CheckpointError, match="holds 2 probes: choose one by classifier=0 to 1"):
        load_pretrained(path, **keys)
    with pytest.raises(CheckpointError, match="no probe 2"):
        load_pretrained(path, **keys, classifier=2)
    first, second = (load_pretrained(path, **keys, classifier=k).probe for k in (0, 1))
    assert first is not None
    assert second is not None
    torch.testing.assert_close(second.linear.bias, first.linear.bias + 1)


def test_v_jepa_probe_with_an_unused_projection_and_anticipation(tmp_path: Path) -> None:
    """V-JEPA's own: one entry ``classifier`` with an output projection that is never used; three queries for EK100."""

    def anticipation(entries: dict[str, Any]) -> None:
        own = entries.pop("classifiers")[0]
        dim = own["module.pooler.query_tokens"].shape[-1]
        own["module.pooler.query_tokens"] = torch.randn(1, 3, dim)
        own["module.pooler.cross_attention_block.xattn.proj.weight"] = torch.randn(dim, dim)
        weight, bias = own.pop("module.linear.weight"), own.pop("module.linear.bias")
        for name, classes in (("verb", 3), ("noun", 5), ("action", 7)):
            own[f"module.{name}_classifier.weight"] = weight[:classes]
            own[f"module.{name}_classifier.bias"] = bias[:classes]
        entries["classifier"] = own

    keys = keys_of(OWN, "probe")
    del keys["num_classes"]
    keys["classifiers"] = {"verb": 3, "noun": 5, "action": 7}
    model = load_pretrained(rewritten(tmp_path, "probe", anticipation), **keys)
    assert list(model.ignored) == ["probe.pooler.cross_attention_block.xattn.proj.weight"]
    assert model.probe is not None
    tokens = torch.randn(2, 9, 64)
    logits = model.probe(tokens)
    assert {name: tuple(x.shape) for name, x in logits.items()} == {"verb": (2, 3), "noun": (2, 5), "action": (2, 7)}
    queries = model.probe.pooler(tokens)
    torch.testing.assert_close(logits["noun"], model.probe.classifiers["noun"](queries[:, 1]))


# ---- strictness ------------------------------------------------------------------------------------------------------


def test_wrong_keys_are_all_listed(tmp_path: Path) -> None:
    def spoil(entries: dict[str, Any]) -> None:
        own = entries["target_encoder"]
        del own["module.backbone.blocks.1.norm2.bias"]
        own["module.backbone.cls_token"] = torch.zeros(1)
        own["module.backbone.norm.weight"] = torch.zeros(3)

    path, keys = rewritten(tmp_path, "vjepa2", spoil), keys_of(OWN, "vjepa2")
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(path, **keys)
    text = str(caught.value)
    assert str(path) in text
    for part in (
        "encoder.blocks.1.norm2.bias is missing", "encoder.cls_token is unexpected",
        "encoder.norm.weight has shape (3,), the model needs (64,)",
    ):  # fmt: skip
        assert part in text
    with pytest.raises(CheckpointError) as caught:  # a part of the allowance is not enough
        load_pretrained(path, **keys, allow=["encoder.cls_token"])
    assert "cls_token" not in str(caught.value)


def test_an_allowance_is_said_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = rewritten(tmp_path, "vjepa2", lambda e: e["target_encoder"].update(head=torch.zeros(2)))
    caplog.set_level(logging.WARNING, "jepa")
    model = load_pretrained(path, **keys_of(OWN, "vjepa2"), allow=["*.head"])
    assert model.ignored == {"encoder.head": "is unexpected"}
    assert "encoder.head is unexpected" in caplog.text


def test_a_stale_position_table_of_vjepa2_is_known(tmp_path: Path) -> None:
    def stale(entries: dict[str, Any]) -> None:
        entries["target_encoder"]["module.backbone.pos_embed"] = torch.zeros(1, 64, 64)
        entries["predictor"]["module.backbone.predictor_pos_embed"] = torch.zeros(1, 64, 32)

    model = load_pretrained(rewritten(tmp_path, "vjepa2", stale), **keys_of(OWN, "vjepa2"))
    assert set(model.ignored) == {"encoder.pos_embed", "predictor.predictor_pos_embed"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("asked", FAMILIES)
def test_another_family_is_named(family: str, asked: str) -> None:
    keys = {**keys_of(OWN, asked), "family": asked}
    if family == asked:
        assert load_pretrained(OWN / family / "checkpoint.pt", **keys).family == family
    else:
        with pytest.raises(CheckpointError, match=f"say family='{family}'|does not fit the configured"):
            load_pretrained(OWN / family / "checkpoint.pt", **keys)


def test_architecture_keys_are_checked() -> None:
    path, keys = OWN / "vjepa" / "checkpoint.pt", keys_of(OWN, "vjepa")
    with pytest.raises(ConfigError, match=r"'embed_dims'.*did you mean 'embed_dim'"):
        load_pretrained(path, **keys, embed_dims=3)
    with pytest.raises(ConfigError, match="lacks depth"):
        load_pretrained(path, **{k: v for k, v in keys.items() if k != "depth"})
    with pytest.raises(ConfigError, match="family is missing"):
        load_pretrained(path, embed_dim=64)
    with pytest.raises(ConfigError, match="unknown family 'vjepa3'"):
        load_pretrained(path, **{**keys, "family": "vjepa3"})
    with pytest.raises(CheckpointError, match=r"encoder.positions.table has shape"):
        load_pretrained(path, **{**keys, "img_size": 64})


def test_jepa_load_says_what_a_published_file_needs() -> None:
    with pytest.raises(CheckpointError, match=r"looks like a published vjepa2 checkpoint.*load_pretrained"):
        jepa.load(OWN / "vjepa2" / "checkpoint.pt")


class RunsCode:
    """A pickle that would call a function of its author's choice."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("pickled-code-ran").touch, ())


def test_unusable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys, path = keys_of(OWN, "vjepa2"), tmp_path / "weights.pt"
    with pytest.raises(CheckpointError, match=r"weights.pt is neither a file nor a published model"):
        load_pretrained(path, **keys)
    path.touch()
    with pytest.raises(CheckpointError, match=r"weights.pt is empty \(0 bytes\)"):
        load_pretrained(path, **keys)
    path.write_bytes((OWN / "vjepa2" / "checkpoint.pt").read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r"weights.pt is damaged"):
        load_pretrained(path, **keys)
    torch.save({"target_encoder": RunsCode()}, path)
    with pytest.raises(CheckpointError, match=r"weights.pt is refused: .* would run"):
        load_pretrained(path, **keys)
    for code in (os.getcwd, json.loads):  # of a module that torch blocks by name, and of one that it does not know
        torch.save({"target_encoder": code}, path)
        with pytest.raises(CheckpointError, match=r"weights.pt is refused"):
            load_pretrained(path, **keys)
    path.write_bytes(pickle.dumps({"target_encoder": RunsCode()}))  # not by torch.save, of another protocol
    with pytest.raises(CheckpointError, match=r"weights.pt is refused"):
        load_pretrained(path, **keys)
    path.write_text("<html>404</html>")
    with pytest.raises(CheckpointError, match=r"weights.pt is damaged"):
        load_pretrained(path, **keys)
    assert not (tmp_path / "pickled-code-ran").exists()
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"no checkpoint of the published JEPA layouts \(its entries: weights\)"):
        load_pretrained(path, **keys)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="holds a list"):
        load_pretrained(path, **keys)


# ---- mask tokens -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_untrained_mask_token_is_pointed_out_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = rewritten(tmp_path, "vjepa2", lambda e: e["predictor"]["module.backbone.mask_tokens.3"].zero_())
    predictor = load_pretrained(path, **keys_of(OWN, "vjepa2")).predictor
    assert isinstance(predictor, Predictor)
    caplog.set_level(logging.WARNING, "jepa")
    tokens, ids = torch.randn(1, 2, 64), torch.tensor([[0, 1]])
    predictor(tokens, ids, ids + 2, mask_token=2)
    assert "mask token" not in caplog.text
    for _ in range(2):
        predictor(tokens, ids, ids + 2, mask_token=3)
    assert caplog.text.count("mask token 3 is all zero: it was never trained") == 1
    assert "trained: 0, 1, 2, 4" in caplog.text


@torch.no_grad()
def test_wrong_widths_and_modalities_are_clear() -> None:
    predictor = load(OWN, "vjepa2_1")[0].predictor
    assert isinstance(predictor, Predictor)
    ids = torch.tensor([[0, 1]])
    with pytest.raises(ValueError, match=r"128 wide \(4 levels of the encoder side by side\), not 32"):
        predictor(torch.zeros(1, 2, 32), ids, ids + 2)
    with pytest.raises(ValueError, match="modality must be 'video' or 'image'"):
        predictor(torch.zeros(1, 2, 128), ids, ids + 2, modality="sound")  # type: ignore[arg-type]
    plain = load(OWN, "vjepa2")[0].predictor
    assert isinstance(plain, Predictor)
    with pytest.raises(ValueError, match="no context_head"):
        plain.forward_dense(torch.zeros(1, 2, 64), ids, ids + 2)
