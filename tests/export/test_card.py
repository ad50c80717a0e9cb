"""Model cards: their facts are the model's, and their code runs as it stands."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from exportable import TILED, made

import jepa
from jepa.export import export
from jepa.export.card import model_card, sampling
from jepa.export.source import Source, load_source
from jepa.pretrained.loader import Pretrained
from jepa.pretrained.zoo import find_model
from jepa.types import ClipConfig

FORMATS = {"transformers": "out", "safetensors": "out", "onnx": "out.onnx", "torch-export": "out.pt2"}


def card_of(path: Path) -> str:
    return (path / "README.md" if path.is_dir() else path.with_name(f"{path.name}.md")).read_text()


def run_snippet(card: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the card's Python as a reader would who stands beside the export; its variables."""
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def black_clip(clip: ClipConfig) -> torch.Tensor:
    values = -torch.tensor(clip.mean) / torch.tensor(clip.std)
    return values.view(1, 3, 1, 1, 1).expand(1, 3, clip.num_frames, clip.crop_size, clip.crop_size).contiguous()


@pytest.mark.parametrize("format", FORMATS)
def test_the_code_runs_and_gives_the_stated_shape(
    tiled_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    if format in ("transformers", "onnx"):
        pytest.importorskip({"onnx": "onnxruntime"}.get(format, format))
    card = card_of(export(tiled_run, tmp_path / FORMATS[format], format))  # type: ignore[arg-type]
    names = run_snippet(card, tmp_path, monkeypatch)
    assert "# [1, 32, 24]" in card or "# tokens [1, 32, 24]" in card
    encoder = jepa.load(tiled_run)
    with torch.no_grad():
        expected = encoder(black_clip(encoder.clip))
    torch.testing.assert_close(torch.as_tensor(names["tokens"]), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_the_code_for_a_classifier_and_another_way_of_fitting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit: Any
) -> None:
    pytest.importorskip("transformers")
    clip = ClipConfig(num_frames=4, frame_step=3, crop_size=32, fit=fit)
    model = made(rope=TILED, probe={"num_classes": 3, "norm_eps": 1e-6}, clip=clip)
    card = card_of(export(model, tmp_path / "out", "transformers"))
    names = run_snippet(card, tmp_path, monkeypatch)
    assert model.encoder is not None
    assert model.probe is not None
    with torch.no_grad():
        expected = model.probe(model.encoder(black_clip(clip)))
    torch.testing.assert_close(names["logits"], expected, atol=1e-4, rtol=0)
    assert "one frame of the video in 3" in card


def test_the_card_of_a_run_says_how_it_was_trained(interleaved_run: Path, tmp_path: Path) -> None:
    card = card_of(export(interleaved_run, tmp_path / "out", "safetensors"))
    encoder = jepa.load(interleaved_run)
    parameters = f"{sum(p.numel() for p in encoder.parameters()):,}"
    for fact in (
        "step 2 of 2, batches of 4 clips: 8 clips seen", "`clips.npz` (weight 1)", "multiblock, multiblock",
        "masked, loss l1", "momentum 0.998 to 1", "learning rate 0.001, then cosine to 0; weight decay 0.04",
        f"{parameters} parameters, width 24, depth 2, 2 heads", "interleaved frequencies", "`target_encoder`",
        "2 mask tokens", "grid of 2 x 4 x 4 (time, rows, columns) = 32 tokens", "4, consecutive",
        "resized to 32 pixels, then the centre of 32 x 32", "Not stated: it is yours to choose",
    ):  # fmt: skip
        assert fact in card, fact
    (text,) = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    config = yaml.safe_load(text)
    assert config["encoder"]["rope"]["frequencies"] == "interleaved"
    assert config["train"]["steps"] == 2
    assert str(interleaved_run.parent) not in card  # nobody's folders
    head = yaml.safe_load(card.split("---")[1])
    assert head == {"library_name": "jepa-toolkit", "tags": ["jepa", "video"]}


def test_the_card_of_a_published_model_names_its_source_and_licence() -> None:
    parts = made(rope=TILED)
    assert parts.encoder is not None
    for name, licence, head in (
        ("vjepa2_vit_large", "MIT", "mit"),
        ("vjepa_vit_large", "CC BY-NC 4.0", "cc-by-nc-4.0"),
    ):
        model = find_model(name)
        source = Source(
            name=name, encoder=parts.encoder, predictor=None, probe=None, family=model.family,
            weights="target_encoder", published=model,
        )  # fmt: skip
        card = model_card(source, "safetensors", "out", parts.encoder.clip, dynamic_size=False)
        for fact in (model.source, model.repository, str(model.url), f"{licence}, as its publisher states"):
            assert fact in card
        assert yaml.safe_load(card.split("---")[1])["license"] == head
        assert "not trained here" in card


def test_a_card_beside_a_graph_says_what_the_graph_takes() -> None:
    parts = made()
    assert parts.encoder is not None
    source = load_source(parts)
    clip = replace(parts.encoder.clip, num_frames=8, crop_size=40, short_side=45)
    card = model_card(source, "onnx", "a.onnx", clip, dynamic_size=True)
    assert "The model's own clip is 4 frames of 32 x 32" in card
    assert "np.zeros((8, 40, 40, 3)" in card
    assert "[1, 100, 24]" in card  # 4 x 5 x 5 tokens
    assert "every length and size that its patches divide" in card
    assert "Not known to this export" in card


def test_ways_of_choosing_frames() -> None:
    assert sampling(ClipConfig(num_frames=1)) == "1 (an image)"
    assert sampling(ClipConfig(num_frames=16, fps=4.0)) == "16, 4 per second"
    assert sampling(ClipConfig(num_frames=16, duration_s=2.5)) == "16, spread evenly over 2.5 seconds"


def test_sources_that_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"timm:resnet18 is timm's own"):
        load_source("timm:resnet18")
    with pytest.raises(ValueError, match=r"unknown model 'vjepa2_vit_larg'.*vjepa2_vit_large"):
        load_source("vjepa2_vit_larg")
    with pytest.raises(ValueError, match="a probe without an encoder"):
        load_source(Pretrained(family="probe", path="probe.pt"))
    with pytest.raises(ValueError, match="holds no choice of weights, its encoder is target_encoder"):
        load_source(replace(made(), weights="target_encoder"), "encoder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no checkpoint"):
        load_source(tmp_path / "empty")
