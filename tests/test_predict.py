"""predict: the objective's own numbers, the published predictors' own outputs, and every kind of model it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import tiny_settings
from torch.nn import functional as F

import jepa
from jepa.checkpoint import CheckpointError
from jepa.config import from_dict
from jepa.masks import CausalConfig, MultiBlockConfig, build_masks
from jepa.models.encoder import EncoderConfig
from jepa.models.predictor import Predictor, PredictorConfig
from jepa.objectives import MaskedConfig, MaskedObjective
from jepa.predictive import Predictive, load_predictive
from jepa.pretrained import load_pretrained
from jepa.train import TrainConfig, fit
from jepa.types import Batch, ClipConfig

GOLDEN = Path(__file__).parent / "golden"
CLIP = ClipConfig(num_frames=4, fps=8.0, crop_size=32)
FAMILIES = [MultiBlockConfig(), MultiBlockConfig(num_blocks=2, scale=(0.7, 0.7)), CausalConfig()]


def objective(loss: str = "l1") -> MaskedObjective:
    torch.manual_seed(0)
    encoder = EncoderConfig(embed_dim=24, depth=2, num_heads=2, patch_size=4)
    made = MaskedObjective(
        MaskedConfig(predictor=PredictorConfig(embed_dim=24, depth=2, num_heads=2), loss=loss), encoder, CLIP, 3,  # type: ignore[arg-type]
    )  # fmt: skip
    for parameter in made.encoder.parameters():  # so that the two encoders differ
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made.eval()


def parts_of(made: MaskedObjective) -> Predictive:
    return Predictive(context_encoder=made.encoder, target_encoder=made.target_encoder, predictor=made.predictor)


@pytest.mark.parametrize("loss", ["l1", "smooth_l1"])
def test_errors_are_the_objectives_own(loss: str) -> None:
    made, rng = objective(loss), np.random.default_rng(1)
    masks = [family.draw(rng, 5) for family in build_masks(FAMILIES, made.encoder.grid)]
    clip = torch.randn(5, 3, 4, 32, 32)
    terms = made(Batch(clip, masks), 0.0).terms
    for token, mask in enumerate(masks):
        prediction = jepa.predict(
            clip, parts_of(made), mask.context_ids, mask.target_ids[:, 0], mask_token=token, measure=loss,  # type: ignore[arg-type]
            device="cpu", batch_size=2,
        )  # fmt: skip
        assert prediction.error is not None
        assert prediction.error.shape == mask.target_ids[:, 0].shape
        assert prediction.error.mean().item() == pytest.approx(terms[f"prediction_{token}"].item(), rel=1e-5)


def test_surprise_and_maps_put_errors_where_they_belong() -> None:
    made = objective()
    clip, grid = torch.randn(2, 3, 4, 32, 32), made.encoder.grid
    context = [[0, 70, 3], [100, 64, 1]]
    target = [[127, 5, 64, 65], [2, 66, 9, 127]]
    prediction = jepa.predict(clip, parts_of(made), context, target, device="cpu", measure="cosine")  # type: ignore[arg-type]
    latents = made.target_encoder(clip)
    spread = torch.sqrt(latents.var(-1, unbiased=False, keepdim=True) + 1e-5)
    latents = (latents - latents.mean(-1, keepdim=True)) / spread
    maps, surprise = prediction.maps(), prediction.surprise()
    assert (maps.shape, surprise.shape, len(prediction)) == ((2, *grid), (2, 2), 2)
    for row in range(2):
        ids = torch.tensor(context)[row : row + 1]
        wanted = torch.tensor(target)[row : row + 1]
        guess = made.predictor(made.encoder(clip[row : row + 1], ids), ids, wanted)[0]
        for place, token in enumerate(target[row]):
            error = 1 - F.cosine_similarity(guess[place], latents[row, token], dim=0)
            t, h, w = token // 64, token % 64 // 8, token % 8
            assert maps[row, t, h, w].item() == pytest.approx(error.item(), abs=1e-5)
        for t in (0, 1):
            there = [maps[row].flatten()[token].item() for token in target[row] if token // 64 == t]
            assert surprise[row, t].item() == pytest.approx(np.mean(there), abs=1e-5)
    assert int(maps.isnan().sum()) == 2 * 128 - 8
    early = jepa.predict(clip, parts_of(made), 1, device="cpu").surprise()
    assert early.isnan().tolist() == [[True, False]] * 2


def test_only_the_context_is_seen() -> None:
    made = objective()
    clip = torch.randn(1, 3, 4, 32, 32)
    other = clip.clone()
    other[:, :, 2:] = torch.randn(1, 3, 2, 32, 32)
    first, second = (jepa.predict(x, parts_of(made), 1, device="cpu") for x in (clip, other))
    torch.testing.assert_close(first.predicted, second.predicted)
    assert first.target is not None
    assert second.target is not None
    assert (first.target - second.target).abs().max() > 0.1


def test_a_clip_is_completed_from_its_context_alone() -> None:
    made = objective()
    parts, clip, context = parts_of(made), torch.randn(2, 3, 4, 32, 32), torch.tensor([[70, 3, 0], [1, 64, 100]])
    found = parts.completed(clip, context)
    assert found.shape == (2, 128, 24)
    for row in range(2):
        one, ids = clip[row : row + 1], context[row : row + 1]
        rest = torch.tensor([[token for token in range(128) if token not in ids[0].tolist()]])
        seen = F.layer_norm(made.target_encoder(one, ids), (24,))
        torch.testing.assert_close(found[row, ids[0]], seen[0], atol=1e-5, rtol=1e-4)
        guess = made.predictor(made.encoder(one, ids), ids, rest)
        torch.testing.assert_close(found[row, rest[0]], guess[0], atol=1e-5, rtol=1e-4)
    first = torch.arange(64)[None].expand(2, -1)
    other = clip.clone()
    other[:, :, 2:] = torch.randn(2, 3, 2, 32, 32)
    torch.testing.assert_close(parts.completed(clip, first), parts.completed(other, first))


def test_bytes_and_pixels_are_normalised_and_times_known() -> None:
    made = objective()
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    video = jepa.predict(frames, parts_of(made), "2 frames", fps=8.0, device="cpu")
    batch = torch.from_numpy(frames).movedim(-1, 0)[None]
    pixels = jepa.predict(batch.float() / 255, parts_of(made), "0.25 s", normalised=False, device="cpu")
    scaled = (batch / 255 - torch.tensor(CLIP.mean).view(3, 1, 1, 1)) / torch.tensor(CLIP.std).view(3, 1, 1, 1)
    as_they_are = [jepa.predict(clip, parts_of(made), 1, device="cpu") for clip in (batch, scaled)]
    for same in (pixels, *as_they_are):
        torch.testing.assert_close(same.predicted, video.predicted, atol=1e-4, rtol=1e-4)
    assert video.start_s.tolist() == [[0.0, 0.25]]
    assert video.end_s.tolist() == [[0.25, 0.5]]
    assert video.metadata["mask_token"] == 0
    two = jepa.predict([frames, frames[::-1].copy()], parts_of(made), 1, fps=8.0, device="cpu", batch_size=1)
    torch.testing.assert_close(two.predicted[:1], video.predicted)
    with pytest.raises(ValueError, match=r"float clips hold pixel values in \[0, 1\]"):
        jepa.predict(scaled, parts_of(made), 1, normalised=False, device="cpu")


def test_a_run_is_rebuilt_from_its_checkpoint(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, steps=2, device="cpu", precision="fp32")
    fit(from_dict(TrainConfig, settings))
    parts = load_predictive(tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "step_00000002.pt"
    state = torch.load(file, weights_only=True)["objective"]
    for name in ("encoder", "target_encoder", "predictor"):
        own = {"encoder": parts.context_encoder}.get(name) or getattr(parts, name)
        for key, value in own.state_dict().items():
            torch.testing.assert_close(value, state[f"{name}.{key}"])
        assert not own.training
        assert not any(parameter.requires_grad for parameter in own.parameters())
    assert parts.metadata["mask_families"] == ["multiblock", "multiblock"]
    assert parts.metadata["weights"] == {"context": "encoder", "target": "target_encoder"}
    clip = torch.randn(2, 3, 4, 32, 32)
    by_file = jepa.predict(clip, file, 1, mask_token=1, device="cpu")
    torch.testing.assert_close(by_file.predicted, jepa.predict(clip, parts, 1, mask_token=1, device="cpu").predicted)
    assert (by_file.predicted - jepa.predict(clip, parts, 1, device="cpu").predicted).abs().max() > 1e-5
    with pytest.raises(ValueError, match="mask_token 2 does not exist: the predictor has 2"):
        jepa.predict(clip, parts, 1, mask_token=2, device="cpu")


def golden(family: str) -> tuple[Path, dict[str, Any], dict[str, torch.Tensor]]:
    folder = GOLDEN / family
    config = json.loads((folder / "config.json").read_text())
    return folder / "checkpoint.pt", config, load_file(folder / "io.safetensors")


@pytest.mark.parametrize(
    ("family", "token", "expected"),
    [
        ("ijepa", 0, "predictor"), ("vjepa", 1, "predictor_mask1"), ("vjepa2", 0, "predictor_mask0"),
        ("vjepa2", 7, "predictor_mask7"), ("vjepa2_1", 1, "predictor_target"),
    ],
)  # fmt: skip
def test_published_predictors_give_their_own_outputs(family: str, token: int, expected: str, tmp_path: Path) -> None:
    file, config, io = golden(family)
    clip = io["clip"] if "clip" in io else io["image"][:, :, None]
    loaded = load_pretrained(file, **config)
    prediction = jepa.predict(clip, loaded, io["context_index"], io["target_index"], mask_token=token, device="cpu")
    torch.testing.assert_close(prediction.predicted, io[expected], atol=1e-4, rtol=0)
    latents = io["encoder_hierarchical"] if family == "vjepa2_1" else io["encoder_full"]
    width = config["embed_dim"]
    for level in range(latents.shape[-1] // width):  # each level is normed by itself
        part = slice(level * width, (level + 1) * width)
        normed = F.layer_norm(latents[0, io["target_index"][0], part], (width,))
        assert prediction.target is not None
        torch.testing.assert_close(prediction.target[0, :, part], normed, atol=1e-4, rtol=0)
    assert prediction.metadata["note"].startswith("one encoder for both")
    entries = torch.load(file, weights_only=True)
    entries["encoder"] = {key: 1.1 * value for key, value in entries["target_encoder"].items()}
    torch.save(entries, tmp_path / "both.pt")
    both = load_predictive(tmp_path / "both.pt", **config)  # the trained encoder sees, the averaged one makes targets
    assert both.metadata["weights"] == {"context": "encoder", "target": "target_encoder"}
    assert "note" not in both.metadata
    other = jepa.predict(clip, both, io["context_index"], io["target_index"], mask_token=token, device="cpu")
    torch.testing.assert_close(other.target, prediction.target)
    assert (other.predicted - prediction.predicted).abs().max() > 1e-3


def test_a_file_with_one_encoder_says_so() -> None:
    file, config, io = golden("vjepa2")
    parts = load_predictive(file, **config)
    assert parts.context_encoder is parts.target_encoder
    assert parts.metadata["note"].startswith("one encoder for both")
    prediction = jepa.predict(io["clip"], parts, io["context_index"], io["target_index"], device="cpu")
    torch.testing.assert_close(prediction.predicted, io["predictor_mask0"], atol=1e-4, rtol=0)


def test_another_models_latents_can_be_predicted_but_not_compared() -> None:
    made = objective()
    own = Predictor(PredictorConfig(embed_dim=24, depth=1, num_heads=2, out_dim=40), 24, made.encoder.grid, 1)
    parts = Predictive(context_encoder=made.encoder, target_encoder=made.target_encoder, predictor=own.eval())
    prediction = jepa.predict(torch.randn(1, 3, 4, 32, 32), parts, 1, device="cpu")
    assert prediction.predicted.shape == (1, 64, 40)
    assert prediction.target is None
    assert prediction.metadata["comparable"] is False
    with pytest.raises(ValueError, match="there is no error to look at"):
        prediction.surprise()
    with pytest.raises(ValueError, match="surprise is not defined for this model: its predictor gives 40 numbers"):
        jepa.surprise(np.zeros((8, 32, 32, 3), np.uint8), parts, device="cpu")


def test_models_that_do_not_predict_are_refused(tmp_path: Path) -> None:
    file, config, _ = golden("vjepa2_ac")
    with pytest.raises(CheckpointError, match=r"action-conditioned predictor.*`jepa plan`, a later command"):
        load_predictive(file, **config)
    probe, shape, _ = golden("probe")
    with pytest.raises(CheckpointError, match="holds no encoder"):
        load_predictive(load_pretrained(probe, **shape))
    with pytest.raises(CheckpointError, match=r"looks like a published vjepa2 checkpoint.*jepa.load_predictive"):
        load_predictive(GOLDEN / "vjepa2" / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="unknown model 'vjepa9'"):
        load_predictive("vjepa9")
    with pytest.raises(CheckpointError, match="timm models are encoders only"):
        load_predictive("timm:resnet18")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_predictive(tmp_path)


def test_wrong_arguments_are_named() -> None:
    parts, clip = parts_of(objective()), torch.randn(1, 3, 4, 32, 32)
    with pytest.raises(ValueError, match="measure must be one of l1, smooth_l1, cosine, not 'l2'"):
        jepa.predict(clip, parts, 1, measure="l2", device="cpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        jepa.predict(clip, parts, 1, batch_size=0, device="cpu")
    with pytest.raises(ValueError, match="clips have different shapes"):
        jepa.predict([clip, torch.randn(1, 3, 4, 16, 16)], parts, 1, device="cpu")
    with pytest.raises(ValueError, match="context and target overlap"):
        jepa.predict(clip, parts, 1, [0], device="cpu")


def test_an_encoder_alone_does_not_predict() -> None:
    with pytest.raises(CheckpointError, match="an object of class Encoder has no predictor: give the run directory"):
        jepa.predict(torch.zeros(1, 3, 4, 32, 32), objective().encoder, context=1)  # type: ignore[arg-type]
