"""Decoder runs and what is loaded from them: on a masked model, on a world model; samples; and what does not fit."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from made_worlds import world_settings
from support import tiny_settings

import jepa
from jepa.config import ConfigError, from_dict, load_yaml, merge
from jepa.decoding import Decoder, load_decoder
from jepa.frozen_model import fingerprint, load_frozen_model, read_base
from jepa.logging import read_metrics
from jepa.tensorfiles import CheckpointError, read_torch_file
from jepa.train import TrainConfig, fit
from jepa.world_model import load_world_model

TINY = {"embed_dim": 24, "depth": 1, "num_heads": 2}
LOOP = {"device": "cpu", "precision": "fp32"}


def of_masked(folder: Path, **objective: Any) -> dict[str, Any]:
    """Settings of a decoder on the run ``folder / "run"`` of ``tiny_settings``."""
    settings = tiny_settings(folder, steps=2, **LOOP)
    own = {"kind": "decoder", "model": str(folder / "run")}
    own |= {"decoder": {"kind": "deterministic", **TINY, "patch_size": 8}}
    for name in ("encoder", "masks"):
        del settings[name]
    settings |= {"clip": {"num_frames": 4, "frame_step": 1}, "monitor": {"every": 2, "clips": 4}}
    return {**settings, "run_dir": str(folder / "decoder"), "objective": {**own, **objective}}


def of_world(folder: Path, **decoder: Any) -> dict[str, Any]:
    """Settings of a flow decoder on the run ``folder / "run"`` of ``world_settings``."""
    settings = world_settings(folder)
    del settings["encoder"]
    own = {"kind": "flow", **TINY, "patch_size": 8, "tubelet_size": 1, **decoder}
    settings |= {"clip": {"num_frames": 3, "fps": 10}, "run_dir": str(folder / "decoder")}
    settings["train"] |= {"steps": 2, "batch_size": 2}
    settings["monitor"] = {"every": 100, "clips": 2}
    return {**settings, "objective": {"kind": "decoder", "model": str(folder / "run"), "decoder": own}}


def train(settings: dict[str, Any], **changes: Any) -> Path:
    return fit(from_dict(TrainConfig, merge(settings, changes)))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked")
    train(tiny_settings(folder, steps=2, **LOOP))
    train(of_masked(folder, perceptual_weight=0.1))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an EMA, whose latents are the ones to decode."""
    folder = tmp_path_factory.mktemp("world")
    train(world_settings(folder, momentum=[0.5, 1.0]), train={"steps": 2})
    train(of_world(folder))
    return folder


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_holds_the_model_as_it_was(masked: Path, tmp_path: Path) -> None:
    shutil.copytree(masked, tmp_path / "copy")
    tensors = read_torch_file(masked / "run" / "checkpoints" / "step_00000002.pt")["objective"]
    path = masked / "decoder" / "checkpoints" / "step_00000002.pt"
    state = read_torch_file(path)
    targets = {n.removeprefix("target_"): v for n, v in tensors.items() if n.startswith("target_encoder.")}
    kept = {n: v for n, v in state["objective"].items() if n.startswith("encoder.")}
    assert kept.keys() == targets.keys()
    assert all(torch.equal(value, targets[name]) for name, value in kept.items())  # bit for bit, after training
    learned = sum(not n.startswith("encoder.") for n in state["objective"])
    assert len(state["optimizer"]["state"]) == learned
    base = load_yaml(masked / "decoder" / "config.yaml")["objective"]["base"]
    assert (base["clip"]["crop_size"], base["latent"], base["levels"]) == (32, None, None)
    record = read_metrics(masked / "decoder")[-1]
    assert record["monitor/psnr"] > 0

    decoder, model = load_decoder(masked / "decoder"), jepa.load_predictive(masked / "run")
    clip = torch.randn(2, 3, 4, 32, 32)
    latents = decoder.encode(clip)
    assert torch.equal(latents, model.targets(clip))
    assert not any(p.requires_grad for p in decoder.objective.parameters())
    assert not decoder.objective.training
    assert torch.equal(load_decoder(path).decode(latents), decoder.decode(latents))
    assert torch.equal(jepa.load(masked / "decoder")(clip), jepa.load(masked / "run")(clip))  # its encoder
    # a run goes on without the model's own run
    settings = of_masked(tmp_path / "copy", perceptual_weight=0.1, model=str(masked / "run"))
    settings["run_dir"] = str(tmp_path / "copy" / "decoder")
    shutil.rmtree(tmp_path / "copy" / "run")
    settings["data"]["sources"][0]["path"] = str(masked / "clips.npz")
    again = read_torch_file(train(settings, train={"steps": 3}))
    assert again["step"] == 3


def test_decoded_clips_of_a_masked_model(masked: Path) -> None:
    decoder = load_decoder(masked / "decoder")
    assert (decoder.per_frame, decoder.generative, decoder.latent_dim) == (False, False, 24)
    assert decoder.clip.num_frames == 4
    clip = torch.randn(2, 3, 4, 32, 32)
    latents = decoder.encode(clip)
    assert decoder.grid_of((4, 32, 32)) == (2, 4, 4)
    pixels = decoder.decode(latents)
    assert pixels.shape == (2, 1, 3, 4, 32, 32)
    std, mean = (torch.tensor(v).view(3, 1, 1, 1) for v in (decoder.clip.std, decoder.clip.mean))
    expected = decoder.objective.decode(clip) * std + mean
    torch.testing.assert_close(pixels[:, 0], expected.clamp(0, 1))
    assert torch.equal(decoder.decode(latents, (4, 32, 32), samples=3, steps=2), pixels)  # nothing to sample
    longer = torch.randn(1, 3, 6, 48, 32)
    assert decoder.decode(decoder.encode(longer), (6, 48, 32)).shape == (1, 1, 3, 6, 48, 32)
    image = torch.randn(1, 3, 1, 32, 32)
    assert decoder.decode(decoder.encode(image), (1, 32, 32)).shape == (1, 1, 3, 1, 32, 32)


def test_decoded_frames_of_a_world_model(world: Path) -> None:
    decoder, model = load_decoder(world / "decoder"), load_world_model(world / "run")
    assert (decoder.per_frame, decoder.generative, decoder.latent_dim) == (True, True, 8)
    decoder.check(model)
    frames = torch.randn(2, 3, 5, 32, 32)
    latents = decoder.encode(frames)
    assert torch.equal(latents, model.encode(frames).flatten(1, 2))
    assert decoder.grid_of((5, 32, 32)) == (5, 2, 2)

    def drawn(given: torch.Tensor, seed: int = 0, **options: Any) -> torch.Tensor:
        return decoder.decode(given, generator=torch.Generator().manual_seed(seed), steps=2, **options)

    _stir(decoder)
    clips = drawn(latents, samples=3)
    assert clips.shape == (2, 3, 3, 5, 32, 32)
    assert torch.equal(clips, drawn(model.encode(frames), samples=3))  # [B, T, n, D] as well
    assert torch.equal(clips, drawn(latents, samples=3, size=(5, 32, 32)))
    assert (clips[:, 0] - clips[:, 1]).abs().max() > 0.01
    assert not torch.equal(clips, drawn(latents, 1, samples=3))
    assert 0 <= clips.min() < clips.max() <= 1
    # frame by frame it is the same, as all frames of a sample begin with the same noise
    one = drawn(latents[:1])
    for number in range(5):
        torch.testing.assert_close(drawn(latents[:1, 4 * number : 4 * number + 4])[:, :, :, 0], one[:, :, :, number])
    alike = drawn(latents[:1, :4].repeat(1, 3, 1))
    torch.testing.assert_close(alike[:, :, :, 0], alike[:, :, :, 2])
    assert (drawn(latents, guidance=3.0) - drawn(latents)).abs().max() > 1e-3
    assert base_kind(world) == {"pool": [2, 2], "dim": 8, "layer_norm": True}


def base_kind(folder: Path) -> Any:
    return load_yaml(folder / "decoder" / "config.yaml")["objective"]["base"]["latent"]


def _stir(decoder: Decoder) -> None:
    """Random weights in place of those that begin as zeros."""
    torch.manual_seed(0)
    for parameter in decoder.objective.decoder.parameters():
        parameter.data.normal_(std=0.2)


def test_few_patches_at_once_are_the_same(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = load_decoder(world / "decoder")
    _stir(decoder)
    latents = torch.randn(3, 8, 8)
    whole, parts = (torch.Generator().manual_seed(2) for _ in range(2))
    first = decoder.decode(latents, samples=2, generator=whole)
    monkeypatch.setattr("jepa.decoding._TOKENS_AT_ONCE", 40)
    torch.testing.assert_close(decoder.decode(latents, samples=2, generator=parts), first)


# ---- what does not fit -----------------------------------------------------------------------------------------------


def test_only_the_model_itself_is_decoded(masked: Path, world: Path, tmp_path: Path) -> None:
    decoder, own = load_decoder(masked / "decoder"), jepa.load_predictive(masked / "run")
    decoder.check(own)
    assert decoder.fingerprint == fingerprint(own.target_encoder)
    assert len(decoder.fingerprint) == 16
    other = copy.deepcopy(own)
    other.target_encoder.norm.bias.data[0] += 1e-3
    message = rf"decoder {masked}/decoder was made for another encoder than that of {masked}/run: the weights differ; "
    with pytest.raises(CheckpointError, match=message + rf"it was trained on {masked}/run"):
        decoder.check(other)
    settings = tiny_settings(tmp_path, steps=1, **LOOP)
    train(settings, encoder={"embed_dim": 36})
    wide = jepa.load_predictive(tmp_path / "run")
    with pytest.raises(
        CheckpointError, match="another encoder than that of mine: its latents are 36 wide, those of the"
    ):
        decoder.check(wide, "mine")
    model, of_frames = load_world_model(world / "run"), load_decoder(world / "decoder")
    with pytest.raises(
        CheckpointError, match="takes latents of whole clips, as a masked model makes them, but this wor"
    ):
        decoder.check(model)
    with pytest.raises(CheckpointError, match=rf"single frames, as a world model makes them, but {masked}/run makes"):
        of_frames.check(own)
    assert model.head.proj is not None
    model.head.proj.bias.data[0] += 1e-3  # the head makes the latents, too
    with pytest.raises(CheckpointError, match="than that of this world model: the weights differ"):
        of_frames.check(model)


def test_a_decoder_of_other_blocks(masked: Path, tmp_path: Path) -> None:
    settings = of_masked(masked, layers=[0])
    train({**settings, "run_dir": str(tmp_path / "first")}, train={"steps": 1})
    first = load_decoder(tmp_path / "first")
    assert first.decode(first.encode(torch.randn(1, 3, 4, 32, 32))).shape == (1, 1, 3, 4, 32, 32)
    message = rf"first was trained on block 0 of .*, but the predictor of {masked}/run predicts the last block: train a"
    with pytest.raises(CheckpointError, match=message):
        first.check(jepa.load_predictive(masked / "run"))


def test_latents_that_do_not_fit(masked: Path, world: Path) -> None:
    decoder, of_frames = load_decoder(masked / "decoder"), load_decoder(world / "decoder")
    with pytest.raises(
        ValueError, match=rf"decoder takes latents that are 24 wide, those of {masked}/run, but these are"
    ):
        decoder.decode(torch.zeros(1, 32, 30))
    with pytest.raises(
        ValueError, match=r"a clip of 4 x 32 x 32 \(frames, rows, columns\) has 32 latents \(2 x 4 x 4\), not"
    ):
        decoder.decode(torch.zeros(1, 31, 24))
    with pytest.raises(ValueError, match=r"a clip of 1 x 32 x 32 .* has 4 latents \(1 x 2 x 2\), not 6"):
        of_frames.decode(torch.zeros(1, 6, 8))
    with pytest.raises(ValueError, match=r"latents must be \[B, N, 24\], not \[1, 2, 16, 24\]"):
        decoder.decode(torch.zeros(1, 2, 16, 24))
    with pytest.raises(ValueError, match=r"clip height .*30 is not divisible by patch_size 8"):
        decoder.decode(torch.zeros(1, 32, 24), (4, 30, 32))
    with pytest.raises(ValueError, match="samples and steps must be at least 1, not 0 and 8"):
        decoder.decode(torch.zeros(1, 32, 24), samples=0)


def test_what_is_no_decoder(masked: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"run was trained with objective 'masked', not 'decoder': train one on it"
    ):
        load_decoder(masked / "run")
    with pytest.raises(CheckpointError, match="none is neither a run directory nor a checkpoint"):
        load_decoder(tmp_path / "none")
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"damaged\.pt is damaged or not a checkpoint"):
        load_decoder(damaged)


def test_what_cannot_be_decoded(masked: Path, world: Path, tmp_path: Path) -> None:
    def refused(settings: dict[str, Any], message: str, **changes: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            train({**settings, "run_dir": str(tmp_path / "refused")}, **changes)

    refused(of_masked(masked, model=str(tmp_path / "none")), r"objective\.model: unknown model .*none")
    refused(
        of_masked(masked, model=str(masked / "decoder")), "is the run of a decoder: name the model that it was trained"
    )
    refused(
        of_masked(masked), "clip.crop_size is 64, but objective.model .* was trained with 32", clip={"crop_size": 64}
    )
    refused(of_masked(masked), "has another encoder: leave the section encoder out", encoder={"patch_size": 4})
    refused(of_masked(masked), "'decoder' hides nothing: leave masks out", masks=[{"kind": "multiblock"}])
    refused(of_world(world), "clip.fps is 5.0, but objective.model .* was trained with 10.0", clip={"fps": 5})
    image = tiny_settings(tmp_path, steps=1, **LOOP)
    image["clip"] = {"num_frames": 1, "crop_size": 32}
    train(image)
    own = of_masked(masked, model=str(tmp_path / "run"))
    refused(own, "clip.num_frames is 4, but objective.model .* encodes single images: set it to 1")


def test_bases_of_other_models(masked: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, encoder, clip = read_base(str(world / "run"))
    assert base.clip.num_frames == 1
    assert clip.num_frames == 5
    assert encoder.embed_dim == 24
    state = load_frozen_model(str(world / "run")).state()
    model = load_world_model(world / "run")
    assert {name.split(".")[0] for name in state} == {"encoder", "head"}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    # the levels that a predictor predicts are those that are decoded
    levels = {"embed_dim": 24, "depth": 2, "num_heads": 2, "levels": (0, 1)}
    monkeypatch.setattr("jepa.frozen_model._predicted_levels", lambda name: 2)
    from jepa.models.encoder import Encoder, EncoderConfig
    from jepa.types import ClipConfig

    made = Encoder(EncoderConfig(**levels), ClipConfig(num_frames=4, fps=5.0, crop_size=32))
    monkeypatch.setattr("jepa.frozen_model.load", lambda name: made)
    assert read_base(str(masked / "run"))[0].levels == (0, 1)
