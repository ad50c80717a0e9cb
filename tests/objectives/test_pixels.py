"""Masked prediction of pixels: against a slow formulation, and from training to what is done with a run afterwards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import error_of, tiny_settings

import jepa
from app.cli import main
from evals.pages.sections import describe_objective
from jepa.checkpoint import load_checkpoint, load_encoder
from jepa.config import ConfigError, from_dict, merge, to_dict
from jepa.export.source import load_source
from jepa.logging import read_metrics
from jepa.masks import IJepaConfig, MaskConfig, TubeConfig, build_masks
from jepa.models.encoder import EncoderConfig
from jepa.models.predictor import PredictorConfig
from jepa.monitor import CollapseMonitor, MonitorConfig
from jepa.objectives import ObjectiveConfig, PixelsConfig, PixelsObjective, build_objective
from jepa.predictive import load_predictive
from jepa.tensorfiles import CheckpointError
from jepa.train import TrainConfig, fit
from jepa.types import Batch, ClipConfig

CLIP = ClipConfig(num_frames=4, fps=8, crop_size=32)
ENCODER = EncoderConfig(embed_dim=24, depth=2, num_heads=2, patch_size=4)
DECODER = PredictorConfig(embed_dim=24, depth=2, num_heads=2)
FAMILIES: list[list[MaskConfig]] = [[TubeConfig()], [TubeConfig(), TubeConfig(ratio=0.5)], [IJepaConfig()]]
NAMES = ["tube", "two families", "four blocks"]


def make(families: list[MaskConfig], frames: int = 4, **options: Any) -> tuple[PixelsObjective, Batch]:
    torch.manual_seed(0)
    clip = CLIP if frames > 1 else ClipConfig(num_frames=1, crop_size=32)
    objective = build_objective(PixelsConfig(decoder=DECODER, **options), ENCODER, clip, len(families))
    assert isinstance(objective, PixelsObjective)
    rng = np.random.default_rng(0)
    masks = [family.draw(rng, 3) for family in build_masks(families, objective.encoder.grid)]
    return objective, Batch(0.5 + 2 * torch.randn(3, 3, frames, 32, 32), masks)


def cut(clip: torch.Tensor, place: int, channel: int) -> torch.Tensor:
    """The pixels ``[pt, p, p]`` of one channel of one tubelet of ``[C, T, H, W]``, found by counting."""
    time, row, column = place // 64, place % 64 // 8, place % 8
    return clip[channel, 2 * time : 2 * time + 2, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]


def slow_loss(objective: PixelsObjective, batch: Batch, norm: bool) -> float:
    """One sample, one family, one block, one tubelet, one channel at a time."""
    total = 0.0
    for family, mask in enumerate(batch.masks):
        errors = []
        for row, clip in enumerate(batch.clip):
            ids = mask.context_ids[row : row + 1]
            for block in mask.target_ids[row]:
                with torch.no_grad():
                    context = objective.encoder(clip[None], ids)
                    predicted = objective.decoder(context, ids, block[None], mask_token=family)[0]
                for place, values in zip(block.tolist(), predicted, strict=True):
                    for channel in range(3):
                        pixels = cut(clip, place, channel)
                        if norm:
                            pixels = (pixels - pixels.mean()) / torch.sqrt(pixels.var(unbiased=False) + 1e-6)
                        errors.append((values.view(3, 2, 4, 4)[channel] - pixels).square().mean().item())
        total += float(np.mean(errors)) / len(batch.masks)
    return total


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("families", FAMILIES, ids=NAMES)
def test_the_loss_equals_a_slow_loop_over_hidden_tubelets(families: list[MaskConfig], norm: bool) -> None:
    objective, batch = make(families, norm_pix_loss=norm)
    loss = objective(batch, 0.0)
    assert loss.total.item() == pytest.approx(slow_loss(objective, batch, norm), rel=1e-5)
    assert loss.terms["prediction"].item() == loss.total.item()
    parts = [loss.terms[f"prediction_{family}"].item() for family in range(len(families))]
    assert sum(parts) / len(parts) == pytest.approx(loss.total.item(), rel=1e-6)
    assert not any(term.requires_grad for term in loss.terms.values())


def test_targets_are_normalised_by_tubelet_and_channel_and_flat_ones_are_zero() -> None:
    objective, batch = make([TubeConfig()])
    batch.clip[:, 1, :2, :4, :4] = 0.1
    targets = objective.targets(batch.clip)
    assert targets.shape == (3, 2 * 8 * 8, 3 * 2 * 4 * 4)
    channels = targets.unflatten(-1, (3, -1))
    assert channels.mean(dim=-1).abs().max() < 1e-5
    assert channels[:, 0, 1].abs().max() < 1e-3
    torch.testing.assert_close(channels[:, 1:].var(dim=-1, unbiased=False), torch.ones(3, 127, 3), atol=1e-3, rtol=0)
    ids = batch.masks[0].target_ids.flatten(1)
    torch.testing.assert_close(objective.targets(batch.clip, ids), targets.gather(1, ids[..., None].expand(-1, -1, 96)))
    mean, std = torch.tensor(CLIP.mean).view(3, 1, 1, 1), torch.tensor(CLIP.std).view(3, 1, 1, 1)
    torch.testing.assert_close(objective.targets(batch.clip * std + mean)[:, 1:], targets[:, 1:], atol=1e-3, rtol=0)


def test_a_linear_decoder_of_the_embedding_s_inverse_reaches_zero() -> None:
    """The order of the targets is that of the embedding's weights: what one puts in, the other's inverse takes out."""
    config = PixelsConfig(norm_pix_loss=False, decoder=DECODER)
    objective = PixelsObjective(config, replace(ENCODER, embed_dim=96), CLIP, 1)
    clip, embed = torch.randn(2, 3, 4, 32, 32), objective.encoder.patch_embed
    with torch.no_grad():
        weight = torch.linalg.qr(torch.randn(96, 96))[0]
        embed.proj.weight.copy_(weight.view_as(embed.proj.weight))
        decoded = (embed(clip) - embed.proj.bias) @ weight  # the inverse of a rotation is its transpose
    assert objective.error(decoded, objective.targets(clip)).item() < 1e-10
    assert objective.error(decoded.roll(1, dims=-1), objective.targets(clip)).item() > 0.5


def test_only_hidden_places_count_and_they_are_hidden() -> None:
    objective, batch = make([TubeConfig()])
    objective.requires_grad_(False)
    mask = batch.masks[0]
    before = objective(batch, 0.0).total.item()
    context = objective.encoder(batch.clip, mask.context_ids)
    places = torch.zeros(3, 128, dtype=torch.bool).scatter_(1, mask.target_ids.flatten(1), True)
    pixels = places.view(3, 1, 2, 8, 8).repeat_interleave(2, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    clip = torch.where(pixels, torch.randn_like(batch.clip), batch.clip)
    assert torch.equal(objective.encoder(clip, mask.context_ids), context)
    assert objective(Batch(clip, batch.masks), 0.0).total.item() != pytest.approx(before, rel=1e-4)
    objective.decoder.predictor_proj.weight.zero_()
    objective.decoder.predictor_proj.bias.zero_()
    seen = torch.where(pixels, batch.clip, torch.randn_like(batch.clip))  # then the context has no say in the loss
    losses = [objective(Batch(clip, batch.masks), 0.0).total.item() for clip in (batch.clip, seen)]
    assert losses[0] == losses[1] == pytest.approx(1.0, abs=1e-4)  # zeros against targets of variance 1


@pytest.mark.parametrize("families", FAMILIES, ids=NAMES)
def test_every_parameter_is_trained_and_gets_a_gradient(families: list[MaskConfig]) -> None:
    objective, batch = make(families)
    objective(batch, 0.0).total.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert objective.target_encoder is objective.encoder
    assert {name.split(".")[0] for name in objective.state_dict()} == {"encoder", "decoder"}
    assert len(objective.decoder.mask_tokens) == len(families)


def test_images_are_predicted_as_their_repeated_frame() -> None:
    objective, batch = make([TubeConfig(ratio=0.75)], frames=1)
    loss = objective(batch, 0.0).total
    still = Batch(batch.clip.expand(-1, -1, 2, -1, -1), batch.masks)
    assert loss.item() == pytest.approx(objective(still, 0.0).total.item(), rel=1e-6)


def test_the_step_runs_in_bfloat16_with_losses_in_fp32() -> None:
    objective, batch = make([TubeConfig()])
    exact = objective(batch, 0.0).total.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(batch, 0.0).total
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.02)


def test_configs_are_told_apart_by_kind_and_wrong_ones_name_the_key() -> None:
    config = PixelsConfig(norm_pix_loss=False)
    both: Any = ObjectiveConfig
    assert from_dict(both, to_dict(config)) == config
    assert from_dict(both, {"kind": "masked"}).loss == "l1"
    with pytest.raises(ConfigError, match=r"objective.kind' is 'pixel', did you mean 'pixels'"):
        from_dict(both, {"kind": "pixel"}, "objective")
    with pytest.raises(ConfigError, match=r"decoder.out_dim 5 has no meaning"):
        from_dict(both, {"kind": "pixels", "decoder": {"out_dim": 5}}, "objective")
    with pytest.raises(ConfigError, match=r"unknown config key 'objective.momentum'"):
        from_dict(both, {"kind": "pixels", "momentum": [0.9, 1.0]}, "objective")
    with pytest.raises(ConfigError, match="norm_pix_loss: tubelets of one pixel"):
        PixelsObjective(config=PixelsConfig(), encoder=EncoderConfig(patch_size=1, tubelet_size=1), clip=CLIP,
                        num_families=1)  # fmt: skip
    objective, batch = make([TubeConfig()])
    with pytest.raises(ConfigError, match="1 mask families, the batch 0"):
        objective(Batch(batch.clip, []), 0.0)


def test_the_monitor_measures_what_there_is_and_names_knobs_that_exist() -> None:
    objective, batch = make([TubeConfig()])
    monitor = CollapseMonitor(MonitorConfig())
    values = {name: value.item() for name, value in monitor.measure(objective, batch).items()}
    assert values["error"] == pytest.approx(objective(batch, 0.0).total.item(), rel=1e-5)
    assert values["error_mean_target"] == pytest.approx(1.0, abs=0.1)
    assert not any(name.startswith(("online", "ema")) for name in values)
    dead = values | {"pooled_std": 0.0, "rankme": 1.0, "cosine": 1.0, "skill": -0.1}
    warnings = monitor.warnings([values, values, dead], pixels=True)
    assert len(warnings) == 3
    assert monitor.warnings([values, values | {"cosine": 1.0}], pixels=True) == []
    for text in warnings:
        assert "optim.lr.peak" in text
        assert "momentum" not in text
        assert "objective.regularizer" not in text
    assert all(len(text) < 250 for text in warnings)


# ---- a run, and what is done with it ---------------------------------------------------------------------------------


def write_ramps(path: Path, clips: int, seed: int = 0) -> Path:
    """Clips that brighten to the right or to the left, by label: what is hidden follows from anything that is seen."""
    rng, labels = np.random.default_rng(seed), np.arange(clips) % 2
    grey = 127 + np.where(labels, 4, -4)[:, None] * (np.arange(32) - 15.5) + rng.integers(-20, 20, (clips, 1))
    clip = np.broadcast_to(grey.clip(0, 255).astype(np.uint8)[:, None, None, :, None], (clips, 4, 32, 32, 3))
    np.savez(path, clips=clip, labels=labels.astype(np.int64))
    return path


def settings_of(folder: Path, **train: Any) -> dict[str, Any]:
    write_ramps(folder / "clips.npz", clips=24)  # where ``tiny_settings`` looks for its source
    changes = {
        "masks": [{"kind": "tube", "ratio": 0.5}],
        "objective": {"kind": "pixels", "decoder": {"embed_dim": 24, "depth": 1, "num_heads": 2, "init": "xavier"}},
        "encoder": {"init": "xavier"},
        "optim": {"lr": {"start": 3e-3, "peak": 3e-3, "warmup_steps": 0}},
        "augment": {"scale": [1.0, 1.0], "ratio": [1.0, 1.0], "flip": 0.0},
    }
    return merge(tiny_settings(folder, **train), changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pixels")
    settings = settings_of(folder, steps=40, save_every=20, log_every=10, keep_last=5)
    fit(from_dict(TrainConfig, settings))
    return folder / "run"


def test_the_loss_falls_and_the_monitor_sees_it(run: Path) -> None:
    records = read_metrics(run)
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < 0.3 * losses[0], losses
    first, last = (record for record in records if "monitor/error" in record)
    assert last["monitor/error"] < 0.3 * first["monitor/error"]
    assert last["monitor/error"] < 0.3 * last["monitor/error_mean_target"]
    assert (run / "pictures" / "masks.png").exists()


def test_a_continued_run_equals_a_straight_one_bit_for_bit(run: Path, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, steps=40, save_every=20, log_every=10, keep_last=5)
    fit(from_dict(TrainConfig, settings))
    last = tmp_path / "run" / "checkpoints" / "step_00000040.pt"
    last.unlink()  # as if it had been stopped after step 20
    fit(from_dict(TrainConfig, settings))
    straight, continued = load_checkpoint(run)["objective"], load_checkpoint(last)["objective"]
    assert straight.keys() == continued.keys()
    assert all(torch.equal(straight[name], continued[name]) for name in straight)


def test_its_encoder_is_loaded_and_encodes(run: Path) -> None:
    model = jepa.load(run)
    own = load_checkpoint(run)["objective"]
    assert torch.equal(model.state_dict()["norm.weight"], own["encoder.norm.weight"])
    assert torch.equal(load_encoder(run, "encoder").state_dict()["norm.weight"], own["encoder.norm.weight"])
    clip = torch.randn(2, 3, 4, 32, 32)
    features = jepa.encode(clip, run, normalised=True)
    with torch.no_grad():
        torch.testing.assert_close(torch.as_tensor(features.tokens), model(clip), atol=1e-4, rtol=1e-4)
    source = load_source(run)
    assert (source.predictor, source.weights) == (None, "encoder")


def test_what_needs_latents_says_so(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match=r"objective 'pixels' has no predictor of latents.*jepa.load"):
        load_predictive(run)
    clips = str(write_ramps(tmp_path / "clips.npz", clips=4))
    assert "no predictor of latents" in error_of(["predict", str(run), clips], capsys)


def test_jepa_eval_probes_it(run: Path, tmp_path: Path) -> None:
    test, train = write_ramps(tmp_path / "test.npz", 8, seed=1), write_ramps(tmp_path / "train.npz", 24)
    arguments = ["eval", str(run), "--train", str(train), "--test", str(test), "--probe", "knn"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["accuracy"] for row in results["rows"] if row["encoder"] == "trained"] == [1.0]
    assert (results["step"], results["checkpoint"]) == (40, "step_00000040.pt")
    words = describe_objective(load_checkpoint(run)["config"]["objective"])
    assert "predicts the pixels of hidden tubelets (each channel of a tubelet normalised by itself)" in words


def test_masks_are_needed_by_what_fills_in_hidden_places() -> None:
    clip = ClipConfig(num_frames=4, frame_step=1, crop_size=32)
    with pytest.raises(ConfigError, match="at least one mask family"):
        build_objective(PixelsConfig(), EncoderConfig(patch_size=8), clip, 0)
