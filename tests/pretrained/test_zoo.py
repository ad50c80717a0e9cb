"""The table of published models: complete, of one piece with what their importers build, and shown by `jepa models`."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import jepa
from app.cli import main
from jepa.pretrained import zoo
from jepa.pretrained.architecture import Architecture, build_encoder, build_predictor, build_probe, read_architecture
from jepa.pretrained.zoo import PublishedModel, find_model, list_models

MODELS = list_models()
ENCODERS = [model for model in MODELS if model.family != "probe"]
PROBES = list_models("probe")


def architecture_of(model: PublishedModel) -> Architecture:
    """Read as the importers read it; the hub's layout is V-JEPA 2's, its classifier a probe beside the encoder."""
    if model.family == "transformers":
        keys = {name: value for name, value in model.architecture.items() if name != "num_classes"}
        return read_architecture("vjepa2", keys)
    return read_architecture(model.family, model.architecture)


def count(module: nn.Module) -> int:
    """Values in a state dict, as a file has them."""
    return sum(tensor.numel() for tensor in module.state_dict().values())


def test_every_family_and_size_is_there() -> None:
    families = ("ijepa", "vjepa", "vjepa2", "vjepa2_ac", "vjepa2_1", "probe", "transformers")
    assert [len(list_models(family)) for family in families] == [4, 3, 4, 1, 4, 21, 8]
    assert len({model.name for model in MODELS}) == len({model.url or model.hub_repo for model in MODELS}) == 45
    assert {model.architecture["embed_dim"] for model in list_models("vjepa2_1")} == {768, 1024, 1408, 1664}
    assert {model.encoder for model in PROBES} <= {model.name for model in MODELS}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_row_is_of_one_piece(model: PublishedModel) -> None:
    assert (model.url is None) != (model.hub_repo is None)
    assert model.url is None or model.url.startswith("https://dl.fbaipublicfiles.com/")
    assert model.sha256 is None or re.fullmatch("[0-9a-f]{64}", model.sha256)
    assert model.licence
    assert re.fullmatch(r"arXiv \d{4}\.\d{5}", model.source)
    assert model.clip.short_side == (None if model.family == "vjepa2_ac" else model.resolution * 256 // 224)
    if model.family == "probe":
        assert model.encoder is not None
        encoder = find_model(model.encoder)
        assert encoder.resolution == model.resolution
        assert encoder.architecture["embed_dim"] == model.architecture["embed_dim"]
        assert all(layer < encoder.architecture["depth"] for layer in model.layers or ())
        return
    keys = model.architecture
    assert (keys["img_size"], keys["num_frames"]) == (model.resolution, model.frames)
    assert model.resolution % keys["patch_size"] == 0
    assert model.frames == 1 or model.frames % keys["tubelet_size"] == 0


@pytest.mark.parametrize("model", ENCODERS, ids=lambda model: model.name)
def test_the_architecture_has_the_published_number_of_parameters(model: PublishedModel) -> None:
    with torch.device("meta"):
        encoder = build_encoder(architecture_of(model), model.clip)
    assert count(encoder) == pytest.approx(model.parameters, rel=0.01)


@pytest.mark.parametrize(
    ("name", "tensors", "values"),
    [("vjepa2_1_vit_large_384", 302, 304_680_960), ("vjepa2_1_vit_base_384", 158, None)],
)
def test_the_averaged_encoder_has_as_many_tensors_as_the_file(name: str, tensors: int, values: int | None) -> None:
    """Counted in the real files by people who have them."""
    model = find_model(name)
    with torch.device("meta"):
        encoder = build_encoder(architecture_of(model), model.clip)
    assert len(encoder.state_dict()) == tensors
    assert values is None or count(encoder) == values


@pytest.mark.parametrize(
    ("name", "millions"),
    [("vjepa2_vit_large", 326.0), ("vjepa2_vit_huge", 653.9), ("vjepa2_vit_giant", 1034.6),
     ("vjepa2_vit_giant_384", 1034.6), ("vjepa2_ac_vit_giant", 1317.4), ("ijepa_vit_huge_14_in1k", 630.8 + 22.4)],
)  # fmt: skip
def test_encoder_and_predictor_have_the_published_sum(name: str, millions: float) -> None:
    """The sums stand on the cards of others' conversions of the same files."""
    model = find_model(name)
    with torch.device("meta"):
        architecture = architecture_of(model)
        encoder = build_encoder(architecture, model.clip)
        total = count(encoder) + count(build_predictor(architecture, encoder))
    assert total / 1e6 == pytest.approx(millions, abs=0.15)


@pytest.mark.parametrize("model", PROBES, ids=lambda model: model.name)
def test_a_probe_has_the_stated_number_of_parameters(model: PublishedModel) -> None:
    keys, heads = model.architecture, 0
    if "ek100" in model.name:  # the numbers of classes are in the file alone: count one each, then take them off
        keys = {**keys, "classifiers": {"verb": 1, "noun": 1, "action": 1}}
        heads = 3 * (keys["embed_dim"] + 1)
    with torch.device("meta"):
        probe = build_probe(read_architecture("probe", keys))
    assert count(probe) - heads == model.parameters


def test_a_named_probe_put_there_by_hand_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the name to logits, with a small file in the published layout; its classes are read from the file."""
    name = "vjepa2_vit_large_ek100_probe"
    small = {"embed_dim": 16, "num_heads": 2, "depth": 2}
    classes = {"verb": 5, "noun": 7, "action": 11}
    probe = build_probe(read_architecture("probe", {**small, "classifiers": classes}))
    published = {
        "module." + re.sub(r"classifiers\.(\w+)\.", r"\1_classifier.", key): value
        for key, value in probe.state_dict().items()
    }
    monkeypatch.setenv("JEPA_CACHE", str(tmp_path))
    monkeypatch.setitem(zoo.MODELS, name, dataclasses.replace(find_model(name), architecture=small))
    (tmp_path / name).mkdir()
    torch.save({"classifiers": [published]}, tmp_path / name / "ek100-vitl-256.pt")
    loaded = jepa.load_pretrained(name).probe
    tokens = torch.randn(2, 6, 16)
    logits = loaded(tokens)
    assert {key: value.shape for key, value in logits.items()} == {key: (2, n) for key, n in classes.items()}
    torch.testing.assert_close(logits, probe(tokens))


def test_a_typo_gets_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'vjepa2_vit_large'"):
        find_model("vjepa2_vit_larg")
    with pytest.raises(ValueError, match="unknown family 'vjepa3'"):
        list_models("vjepa3")


def test_models_lists_and_shows(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JEPA_CACHE", str(tmp_path))
    (tmp_path / "vjepa_vit_huge").mkdir()
    (tmp_path / "vjepa_vit_huge" / "vith16.pth.tar").touch()
    assert main(["models", "--family", "vjepa"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[:4]] == ["name", "vjepa_vit_large", "vjepa_vit_huge", "vjepa_vit_huge_384"]
    assert lines[2][1:5] == ["631.6", "M", "224", "16"]
    assert [line[-1] for line in lines[1:4]] == ["-", "yes", "-"]
    assert main(["models", "vjepa_vit_huge"]) == 0
    shown = capsys.readouterr().out
    for fact in ("https://dl.fbaipublicfiles.com/jepa/vith16/vith16.pth.tar", str(tmp_path), "frame_step", "1280"):
        assert fact in shown
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows if row["cached"]] == ["vjepa_vit_huge"]
    assert sum(row["resolution"] * row["frames"] for row in rows) == sum(m.resolution * m.frames for m in MODELS)


def test_models_download_and_mistakes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JEPA_CACHE", str(tmp_path))
    monkeypatch.setenv("JEPA_OFFLINE", "1")
    assert main(["models", "vjepa_vit_large", "--download"]) == 2
    assert f"vitl16.pth.tar into {tmp_path / 'vjepa_vit_large'}" in capsys.readouterr().err
    (tmp_path / "vjepa_vit_large").mkdir()
    (tmp_path / "vjepa_vit_large" / "vitl16.pth.tar").touch()
    assert main(["models", "vjepa_vit_large", "--download"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "vjepa_vit_large" / "vitl16.pth.tar")
    for wrong in (["--download"], ["vjepa_vit_large", "--family", "vjepa"], ["vjepa_vit_lage"]):
        assert main(["models", *wrong]) == 2
        assert capsys.readouterr().err.startswith("jepa: error: ")
