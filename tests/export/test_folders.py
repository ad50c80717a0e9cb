"""Exported folders, read back by jepa.load and by transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exportable import GOLDEN, TILED, golden, made, predicted_there
from safetensors.torch import load_file
from torch import Tensor

import jepa
from jepa.export import export
from jepa.models.attentive import AttentiveConfig, AttentiveProbe
from jepa.predictive import load_predictive
from jepa.pretrained import load_pretrained
from jepa.pretrained.loader import Pretrained
from jepa.pretrained.transformers_config import _our_ratio, _their_ratio
from jepa.tensorfiles import CheckpointError
from jepa.types import ClipConfig

transformers = pytest.importorskip("transformers")


def same_weights(a: torch.nn.Module | None, b: torch.nn.Module | None) -> bool:
    assert a is not None
    assert b is not None
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@torch.no_grad()
@pytest.mark.parametrize("weights", ["target_encoder", "encoder"])
def test_a_run_goes_through_transformers_and_back(tiled_run: Path, tmp_path: Path, weights: str) -> None:
    folder = export(tiled_run, tmp_path / "out", "transformers", weights=weights)
    model, info = transformers.VJEPA2Model.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    encoder = jepa.load(tiled_run, weights)
    clip = torch.randn(2, 3, 4, 32, 32)
    theirs = model.eval()(clip.transpose(1, 2), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(encoder(clip), theirs, atol=1e-4, rtol=0)
    other = jepa.load(tiled_run, "encoder" if weights == "target_encoder" else "target_encoder")
    assert not torch.equal(other.patch_embed.proj.weight, encoder.patch_embed.proj.weight)  # type: ignore[union-attr]
    predictor = load_predictive(tiled_run).predictor
    ids = torch.randperm(32).expand(2, -1)
    context, target = ids[:, :20], ids[:, 20:]
    for k in range(2):
        ours = predictor(encoder(clip, None)[:, context[0]], context, target, mask_token=k)
        torch.testing.assert_close(ours, predicted_there(model, clip, context, target, k), atol=1e-4, rtol=0)
    back = load_pretrained(folder, "transformers")
    assert same_weights(back.encoder, encoder)
    assert same_weights(back.predictor, predictor)
    assert jepa.load(folder).clip == encoder.clip


@torch.no_grad()
def test_golden_outputs_come_out_of_transformers(tmp_path: Path) -> None:
    """An official checkpoint, by way of this toolkit, in the library of others: the official code's numbers."""
    expected = load_file(GOLDEN / "vjepa2" / "io.safetensors")
    model = transformers.VJEPA2Model.from_pretrained(export(golden("vjepa2"), tmp_path / "out", "transformers")).eval()
    clip = expected["clip"]
    theirs = model(clip.transpose(1, 2), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(theirs, expected["encoder_full"], atol=1e-4, rtol=0)


def test_transformers_refuses_what_it_cannot_be(interleaved_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"interleaved rotary.*encoder.rope.frequencies=tiled.*safetensors"):
        export(interleaved_run, tmp_path / "out", "transformers")
    cases: list[tuple[Pretrained, str]] = [
        (golden("ijepa"), "positions are 'table'"),
        (golden("vjepa2_1"), r"base grid.*levels is .*image_tokenizer is True.*modality_embedding.*context_head"),
        (golden("vjepa2_ac"), "action-conditioned"),
        (made(rope=TILED, mlp="swiglu"), "encoder.mlp is 'swiglu'"),
        (made(rope=TILED, probe={"num_classes": 3}), "probe.norm_eps is 1e-05"),
        (Pretrained(family="made", path="made", encoder=made(rope=TILED).encoder), "there is no predictor"),
        (replace(made(rope=TILED), predictor=made().predictor), "positions are not those of its encoder"),
        (replace(made(rope=TILED), predictor=made(rope=TILED, embed_dim=48).predictor), "output is 48 wide"),
    ]
    for model, words in cases:
        with pytest.raises(ValueError, match=words):
            export(model, tmp_path / "out", "transformers")
    assert list(tmp_path.iterdir()) == []


@torch.no_grad()
def test_a_classifier_goes_through_transformers_and_back(tmp_path: Path) -> None:
    model = made(rope=TILED, probe={"num_classes": 3, "norm_eps": 1e-6}, mlp_ratio=3.3)
    folder = export(model, tmp_path / "out", "transformers")
    theirs = transformers.VJEPA2ForVideoClassification.from_pretrained(folder).eval()
    clip = torch.randn(2, 3, 4, 32, 32)
    assert model.encoder is not None
    assert model.probe is not None
    logits = model.probe(model.encoder(clip))
    torch.testing.assert_close(logits, theirs(clip.transpose(1, 2)).logits, atol=1e-4, rtol=0)
    back = load_pretrained(folder, "transformers")
    assert same_weights(back.probe, model.probe)
    assert back.probe is not None
    assert back.probe.config == model.probe.config


def test_their_processor_prepares_clips_as_ours_does(tmp_path: Path) -> None:
    clip = ClipConfig(num_frames=4, fps=4.0, crop_size=32, short_side=36, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    model = made(rope=TILED, clip=clip)
    folder = export(model, tmp_path / "out", "transformers")
    processor = transformers.AutoVideoProcessor.from_pretrained(folder)
    frames = np.random.default_rng(0).integers(0, 256, (4, 40, 60, 3), dtype=np.uint8)
    theirs = processor(frames, return_tensors="pt")["pixel_values_videos"].transpose(1, 2)
    assert model.encoder is not None
    seen: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    jepa.encode(frames, model.encoder, fps=4.0)
    assert seen[0].shape == theirs.shape == (1, 3, 4, 32, 32)
    # one grey level of 255, which the rounding of a resized picture may make, is 0.02 of a standard deviation
    assert (seen[0] - theirs).abs().max() < 0.025


@pytest.mark.parametrize("kind", ["ijepa", "vjepa", "vjepa2", "vjepa2_1", "vjepa2_ac"])
def test_safetensors_read_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    model = golden(kind)
    folder = export(model, tmp_path / "out", "safetensors")
    back = load_pretrained(folder, "transformers")
    assert same_weights(back.encoder, model.encoder)
    assert same_weights(back.predictor, model.predictor)
    assert (back.family, back.weights) == (kind, model.weights)
    encoder = jepa.load(folder)
    assert model.encoder is not None
    side = 2 * model.encoder.config.patch_size
    clip = torch.randn(2, 3, encoder.clip.num_frames, side, side)
    assert torch.equal(encoder(clip), model.encoder(clip))
    assert (encoder.clip, encoder.config) == (model.encoder.clip, model.encoder.config)  # type: ignore[attr-defined]


def test_safetensors_of_a_run_and_of_an_export(interleaved_run: Path, tmp_path: Path) -> None:
    first = export(interleaved_run, tmp_path / "first", "safetensors")
    second = export(first, tmp_path / "second", "safetensors")
    for folder in (first, second):
        back = load_pretrained(folder, "transformers")
        assert same_weights(back.encoder, jepa.load(interleaved_run))
        assert same_weights(back.predictor, load_predictive(interleaved_run).predictor)
        assert (back.family, back.weights) == ("run", "target_encoder")


def test_safetensors_with_probes(tmp_path: Path) -> None:
    for number, probe in enumerate(({"num_classes": 3}, {"classifiers": {"verb": 2, "noun": 4}})):
        model = made(probe=probe, position="sincos")
        back = load_pretrained(export(model, tmp_path / str(number), "safetensors"), "transformers")
        assert same_weights(back.probe, model.probe)
        assert isinstance(back.probe, AttentiveProbe)
        assert back.probe.config == AttentiveConfig(embed_dim=24, num_heads=2, depth=2, **probe)  # type: ignore[arg-type]


def test_safetensors_are_read_strictly(tmp_path: Path) -> None:
    folder = export(made(), tmp_path / "out", "safetensors")
    path = folder / "config.json"
    config = json.loads(path.read_text())

    def write(change: dict[str, Any]) -> None:
        path.write_text(json.dumps(config | change))

    write({"encoder": config["encoder"] | {"depth": 3}})
    with pytest.raises(CheckpointError, match=r"encoder.blocks.2.norm1.weight is missing"):
        jepa.load(folder)
    write({"encoder": config["encoder"] | {"dept": 3}})
    with pytest.raises(CheckpointError, match=r"encoder.dept.*did you mean 'depth'"):
        jepa.load(folder)
    write({"jepa_format": 2})
    with pytest.raises(CheckpointError, match="jepa_format 2, this version reads 1"):
        jepa.load(folder)
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "clip"}))
    with pytest.raises(CheckpointError, match=r"config.json lacks 'clip'"):
        jepa.load(folder)


@pytest.mark.parametrize(("dim", "hidden"), [(1408, 6144), (1664, 8192), (24, 79), (1280, 5120), (384, 1537)])
def test_hidden_widths_survive_their_way_of_rounding(dim: int, hidden: int) -> None:
    assert int(dim * _their_ratio(dim, hidden / dim)) == hidden
    assert round(dim * _our_ratio(dim, _their_ratio(dim, hidden / dim))) == hidden
