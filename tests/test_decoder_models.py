"""Decoders on models that others made: of timm, and published checkpoints in their own layouts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from support import write_clips
from torch.nn import functional as F

import jepa
from jepa.config import ConfigError, from_dict
from jepa.decoding import load_decoder
from jepa.frozen_model import target_layers
from jepa.models.encoder import Encoder
from jepa.pretrained import zoo
from jepa.tensorfiles import CheckpointError, read_torch_file
from jepa.train import TrainConfig, fit
from jepa.types import ClipConfig
from jepa.world_model import load_world_model

GOLDEN = Path(__file__).parent / "golden"
SHAPE_ALONE = ("family", "expected_outputs_from")
# golden files, and the published models in whose place they stand
NAMES = {
    "ijepa": "ijepa_vit_huge_14_in1k", "vjepa": "vjepa_vit_large", "vjepa2": "vjepa2_vit_large",
    "vjepa2_1": "vjepa2_1_vit_giant_384", "vjepa2_ac": "vjepa2_ac_vit_giant",
}  # fmt: skip


def settings_of(folder: Path, model: str, clip: dict[str, Any], **objective: Any) -> dict[str, Any]:
    """A decoder on ``model``, trained for two steps on clips of ``clip``."""
    side, frames = clip["crop_size"], clip["num_frames"]
    source = {"path": str(write_clips(folder / "clips.npz", clips=8, frames=frames, side=side)), "fps": 4.0}
    net = {"kind": "deterministic", "embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8, "tubelet_size": 1}
    loop = {"steps": 2, "batch_size": 2, "log_every": 1, "save_every": 100, "progress": "off", "tensorboard": False}
    return {
        "run_dir": str(folder / "decoder"), "augment": {"flip": 0.0},
        "clip": {"num_frames": frames, "fps": None if frames == 1 else 4.0},
        "data": {"sources": [source], "workers": 0},
        "objective": {"kind": "decoder", "model": model, "decoder": net, **objective},
        "train": {**loop, "device": "cpu", "precision": "fp32"}, "monitor": {"every": 2, "clips": 2},
    }  # fmt: skip


def published(family: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path, ClipConfig]:
    """The golden file of ``family`` where a published model's would be: the name, the file and the clip."""
    shape = json.loads((GOLDEN / family / "config.json").read_text())
    architecture = {key: value for key, value in shape.items() if key not in SHAPE_ALONE}
    model = zoo.find_model(NAMES[family])
    frames = 1 if family == "ijepa" else architecture["num_frames"]
    clip = dataclasses.replace(
        model.clip, num_frames=frames, crop_size=architecture["img_size"], short_side=architecture["img_size"],
        fps=None if frames == 1 else 4.0, frame_step=None,
    )  # fmt: skip
    own = dataclasses.replace(
        model,
        architecture=architecture,
        clip=clip,
        size_bytes=None,
        sha256=None,
        weights=shape["expected_outputs_from"],
    )
    monkeypatch.setitem(zoo.MODELS, model.name, own)
    monkeypatch.setenv("JEPA_CACHE", str(folder / "cache"))
    assert own.url is not None
    file = folder / "cache" / model.name / own.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    shutil.copy(GOLDEN / family / "checkpoint.pt", file)
    return model.name, file, clip


def pixels(clip: ClipConfig, frames: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=(2, 3, frames, clip.crop_size, clip.crop_size)).astype(np.float32))


@pytest.mark.parametrize("family", ["ijepa", "vjepa", "vjepa2", "vjepa2_1"])
def test_published_models_of_clips(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, file, clip = published(family, tmp_path, monkeypatch)
    fit(
        from_dict(
            TrainConfig, settings_of(tmp_path, name, {"num_frames": clip.num_frames, "crop_size": clip.crop_size})
        )
    )
    encoder, parts = jepa.load(name), jepa.load_predictive(name)
    assert isinstance(encoder, Encoder)
    decoder = load_decoder(tmp_path / "decoder")
    decoder.check(parts, name)
    levels = target_layers(encoder, parts.predictor.config.levels)
    assert (levels is not None) == (family == "vjepa2_1"), "of which several blocks are predicted"
    assert decoder.latent_dim == encoder.embed_dim * (1 if levels is None else len(levels))
    shown = pixels(clip, clip.num_frames)
    outputs = [encoder(shown)] if levels is None else encoder(shown, layers=levels)
    wanted = torch.cat([F.layer_norm(tokens, tokens.shape[-1:]) for tokens in outputs], dim=-1)
    file.unlink()  # the run holds what it needs
    decoder = load_decoder(tmp_path / "decoder")
    latents = decoder.encode(shown)
    torch.testing.assert_close(latents, wanted)
    assert decoder.decode(latents).shape == (2, 1, 3, *shown.shape[2:])


def test_a_published_world_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, file, clip = published("vjepa2_ac", tmp_path, monkeypatch)
    fit(from_dict(TrainConfig, settings_of(tmp_path, name, {"num_frames": 4, "crop_size": clip.crop_size})))
    world, decoder = load_world_model(name), load_decoder(tmp_path / "decoder")
    decoder.check(world, name)
    assert decoder.per_frame
    shown = pixels(clip, 4)
    latents = world.encode(shown)
    file.unlink()
    decoder = load_decoder(tmp_path / "decoder")
    torch.testing.assert_close(decoder.encode(shown), latents.flatten(1, 2))
    found = world.rollout(latents[:, :1], torch.zeros(2, 3, 7), torch.zeros(2, 1, 7))
    assert decoder.decode(found).shape == (2, 1, 3, 3, clip.crop_size, clip.crop_size)


@pytest.mark.parametrize(
    "extra", [{}, {"layers": [0, -1]}, {"perceptual_weight": 0.1}], ids=["last", "two", "perceptual"]
)
def test_a_model_of_timm(extra: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = {key: value.contiguous() for key, value in timm.create_model("test_vit").state_dict().items()}
    save_file(weights, tmp_path / "w.safetensors")
    name = f"timm:test_vit@{tmp_path / 'w.safetensors'}?size=48&frames=2&fps=4"
    encoder = jepa.load(name)
    path = fit(from_dict(TrainConfig, settings_of(tmp_path, name, {"num_frames": 2, "crop_size": 48}, **extra)))
    kept = read_torch_file(path)["objective"]
    assert all(torch.equal(value, kept[f"encoder.{name}"]) for name, value in encoder.state_dict().items())
    (tmp_path / "w.safetensors").unlink()
    decoder, shown = load_decoder(tmp_path / "decoder"), pixels(encoder.clip, 2)
    outputs = encoder(shown, layers=(0, 5)) if "layers" in extra else [encoder(shown)]
    wanted = torch.cat([F.layer_norm(tokens, tokens.shape[-1:]) for tokens in outputs], dim=-1)
    torch.testing.assert_close(decoder.encode(shown), wanted)
    assert decoder.decode(wanted).shape == (2, 1, 3, 2, 48, 48)
    with pytest.raises(CheckpointError, match="has no predictor"):
        jepa.load_predictive(name)


def test_published_files_by_path_say_how_they_are_named(tmp_path: Path) -> None:
    file = str(GOLDEN / "vjepa2" / "checkpoint.pt")
    settings = settings_of(tmp_path, file, {"num_frames": 8, "crop_size": 32})
    with pytest.raises(
        ConfigError, match=r"checkpoint\.pt looks like a published vjepa2 checkpoint, which does not say"
    ):
        fit(from_dict(TrainConfig, settings))
