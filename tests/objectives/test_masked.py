"""Masked latent prediction: against a slow formulation, and who gets a gradient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from jepa.config import ConfigError, from_dict, to_dict
from jepa.masks import IJepaConfig, MaskConfig, MultiBlockConfig, build_masks
from jepa.models.encoder import EncoderConfig
from jepa.models.predictor import PredictorConfig
from jepa.objectives import (
    OBJECTIVES,
    MaskedConfig,
    MaskedObjective,
    SigRegConfig,
    VarianceCovarianceConfig,
    build_objective,
)
from jepa.objectives.regularizers import regularize
from jepa.types import Batch, ClipConfig

CLIP = ClipConfig(num_frames=4, fps=8, crop_size=32)
ENCODER = EncoderConfig(embed_dim=24, depth=2, num_heads=2, patch_size=4)
PREDICTOR = PredictorConfig(embed_dim=24, depth=2, num_heads=2)
VJEPA: list[MaskConfig] = [MultiBlockConfig(), MultiBlockConfig(num_blocks=2, scale=(0.7, 0.7))]


def make(families: list[MaskConfig], **options: object) -> tuple[MaskedObjective, Batch]:
    torch.manual_seed(0)
    config = MaskedConfig(predictor=PREDICTOR, **options)  # type: ignore[arg-type]
    objective = build_objective(config, ENCODER, CLIP, len(families))
    assert isinstance(objective, MaskedObjective)
    for parameter in objective.encoder.parameters():  # so that the two encoders differ
        parameter.data += 0.02 * torch.randn_like(parameter)
    rng = np.random.default_rng(0)
    masks = [family.draw(rng, 3) for family in build_masks(families, objective.encoder.grid)]
    return objective, Batch(torch.randn(3, 3, 4, 32, 32), masks)


def slow_loss(objective: MaskedObjective, batch: Batch, measure: object) -> float:
    """One sample, one family, one block at a time."""
    total = 0.0
    with torch.no_grad():
        for family, mask in enumerate(batch.masks):
            values = []
            for row in range(len(batch.clip)):
                clip = batch.clip[row : row + 1]
                features = objective.target_encoder(clip)[0]
                centred = features - features.mean(dim=-1, keepdim=True)
                targets = centred / torch.sqrt(features.var(dim=-1, unbiased=False, keepdim=True) + 1e-5)
                ids = mask.context_ids[row : row + 1]
                context = objective.encoder(clip, ids)
                for block in mask.target_ids[row]:
                    prediction = objective.predictor(context, ids, block[None], mask_token=family)[0]
                    values.append(measure(prediction, targets[block]))  # type: ignore[operator]
            total += torch.stack(values).mean().item() / len(batch.masks)
    return total


@pytest.mark.parametrize("families", [VJEPA, [IJepaConfig()]], ids=["vjepa", "ijepa"])
def test_the_loss_equals_a_slow_recomputation(families: list[MaskConfig]) -> None:
    objective, batch = make(families)
    loss = objective(batch, 0.0)
    assert loss.total.item() == pytest.approx(slow_loss(objective, batch, lambda p, t: (p - t).abs().mean()), rel=1e-4)
    assert loss.terms["prediction"].item() == pytest.approx(loss.total.item())
    parts = [loss.terms[f"prediction_{family}"].item() for family in range(len(families))]
    assert sum(parts) / len(parts) == pytest.approx(loss.total.item(), rel=1e-5)
    assert not any(term.requires_grad for term in loss.terms.values())


def test_smooth_l1_equals_its_formula() -> None:
    objective, batch = make([IJepaConfig()], loss="smooth_l1")

    def smooth(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        gap = (prediction - target).abs()
        return torch.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean()

    assert objective(batch, 0.0).total.item() == pytest.approx(slow_loss(objective, batch, smooth), rel=1e-4)


@pytest.mark.parametrize("families", [VJEPA, [IJepaConfig()]], ids=["vjepa", "ijepa"])
def test_every_trainable_parameter_gets_a_gradient_and_the_target_encoder_none(families: list[MaskConfig]) -> None:
    objective, batch = make(families)
    objective(batch, 0.0).total.backward()
    for name, parameter in objective.named_parameters():
        if name.startswith("target_encoder."):
            assert not parameter.requires_grad, name
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_after_step_moves_the_target_by_the_scheduled_momentum() -> None:
    objective, _ = make(VJEPA, momentum=(0.9, 1.0), momentum_schedule="linear")
    old = [p.detach().clone() for p in objective.target_encoder.parameters()]
    assert objective.momentum(0.5) == pytest.approx(0.95)
    objective.after_step(0.5)
    rows = zip(old, objective.encoder.parameters(), objective.target_encoder.parameters(), strict=True)
    for before, online, now in rows:
        torch.testing.assert_close(now.detach(), 0.95 * before + 0.05 * online.detach())


def test_a_frozen_target_stands_still_from_its_step_on() -> None:
    objective, _ = make(VJEPA, momentum=(0.9, 1.0), momentum_schedule="linear", freeze_target=0.25)
    assert objective.momentum(0.24) == pytest.approx(0.924)
    old = [p.detach().clone() for p in objective.target_encoder.parameters()]
    for progress in (0.25, 0.6, 1.0):
        assert objective.momentum(progress) == 1.0
        with torch.no_grad():
            for parameter in objective.encoder.parameters():
                parameter.add_(0.1)
        objective.after_step(progress)
    assert all(torch.equal(a, b) for a, b in zip(old, objective.target_encoder.parameters(), strict=True))
    objective.after_step(0.2)
    assert not any(torch.equal(a, b) for a, b in zip(old, objective.target_encoder.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"freeze_target is a share of the training in \[0, 1\], not 1.5"):
        MaskedConfig(freeze_target=1.5)


@pytest.mark.parametrize("regularizer", [VarianceCovarianceConfig(weight=0.7), SigRegConfig(weight=0.3)])
def test_the_regularizer_adds_to_the_prediction_error(regularizer: VarianceCovarianceConfig | SigRegConfig) -> None:
    objective, batch = make(VJEPA, regularizer=regularizer)
    loss = objective(batch, 0.0)
    terms = {name: value.item() for name, value in loss.terms.items()}
    if isinstance(regularizer, SigRegConfig):
        extra = sum(0.3 * terms[f"sigreg_tokens_{family}"] for family in (0, 1)) / 2
    else:
        names = ((0.7, "variance"), (0.04, "covariance"))
        extra = sum(weight * terms[f"{name}_tokens_{family}"] for weight, name in names for family in (0, 1)) / 2
    assert loss.total.item() == pytest.approx(terms["prediction"] + extra, rel=1e-5)
    assert extra > 0


def test_targets_are_layer_normed_and_the_same_whatever_the_masks() -> None:
    objective, batch = make(VJEPA)
    targets = objective.targets(batch.clip)
    assert targets.shape == (3, objective.encoder.grid.size, 24)
    torch.testing.assert_close(targets, F.layer_norm(objective.target_encoder(batch.clip), (24,)))
    torch.testing.assert_close(targets.mean(dim=-1), torch.zeros(3, 128), atol=1e-5, rtol=0)
    assert not torch.allclose(targets[0], targets[1])


def test_the_step_runs_in_bfloat16_with_losses_in_fp32() -> None:
    objective, batch = make(VJEPA, regularizer=VarianceCovarianceConfig())
    exact = objective(batch, 0.0).total.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(batch, 0.0)
    assert loss.total.dtype == torch.float32
    assert loss.total.item() == pytest.approx(exact, rel=0.02)


def test_configs_survive_a_round_trip_and_errors_name_the_field() -> None:
    config = MaskedConfig(regularizer=SigRegConfig(num_slices=8))
    assert from_dict(MaskedConfig, to_dict(config)) == config
    assert from_dict(OBJECTIVES["masked"][0], {"regularizer": {"kind": "variance_covariance"}}).regularizer is not None
    with pytest.raises(ConfigError, match="momentum"):
        from_dict(MaskedConfig, {"momentum": [0.9, 1.1]})
    objective, batch = make(VJEPA)
    with pytest.raises(ConfigError, match="2 mask families, the batch 1"):
        objective(Batch(batch.clip, batch.masks[:1]), 0.0)


def leveled(count: int, **options: object) -> MaskedObjective:
    """An objective that predicts the last ``count`` of the blocks 0 and 1."""
    torch.manual_seed(0)
    config = MaskedConfig(predictor=replace(PREDICTOR, levels=count), **options)  # type: ignore[arg-type]
    objective = build_objective(config, replace(ENCODER, levels=(0, 1)), CLIP, 1)
    assert isinstance(objective, MaskedObjective)
    return objective


def test_levels_are_predicted_side_by_side_each_normed_by_itself() -> None:
    objective = leveled(2, loss="mse", regularizer=VarianceCovarianceConfig())
    masks = [build_masks([MultiBlockConfig()], objective.encoder.grid)[0].draw(np.random.default_rng(0), 2)]
    batch = Batch(torch.randn(2, 3, 4, 32, 32), masks)
    loss = objective(batch, 0.0)
    errors = []
    with torch.no_grad():
        low, high = objective.target_encoder(batch.clip, layers=(0, 1))
        context = torch.cat(objective.encoder(batch.clip, masks[0].context_ids, layers=(0, 1)), dim=-1)
        for row in range(2):
            for block in masks[0].target_ids[row]:
                found = objective.predictor(context[row][None], masks[0].context_ids[row][None], block[None])[0]
                for predicted, level in zip(found.split(24, dim=-1), (low, high), strict=True):
                    tokens = level[row, block]
                    centred = tokens - tokens.mean(dim=-1, keepdim=True)
                    target = centred / torch.sqrt(tokens.var(dim=-1, unbiased=False, keepdim=True) + 1e-5)
                    errors.append((predicted - target).square().mean())
        alone = regularize(VarianceCovarianceConfig(), context[..., 24:])[0]  # of the last level
    assert loss.terms["prediction"].item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-4)
    assert loss.total.item() == pytest.approx(torch.stack(errors).mean().item() + alone.item(), rel=1e-4)
    loss.total.backward()
    assert all(p.grad is not None and p.grad.any() for p in objective.encoder.norms_block.parameters())


def test_one_level_of_an_encoder_with_several_is_the_last_block_alone() -> None:
    objective = leveled(1)
    assert objective.levels is None
    clip = torch.randn(2, 3, 4, 32, 32)
    expected = F.layer_norm(objective.target_encoder(clip), (24,))
    torch.testing.assert_close(objective.targets(clip), expected)


def test_more_levels_than_the_encoder_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"predictor\.levels: 3 levels .* encoder\.levels names 2: \[0, 1\]"):
        leveled(3)
    with pytest.raises(ConfigError, match=r"encoder\.levels names 0"):
        build_objective(MaskedConfig(predictor=replace(PREDICTOR, levels=2)), ENCODER, CLIP, 1)


def test_squared_errors() -> None:
    objective, batch = make([IJepaConfig()], loss="mse")
    expected = slow_loss(objective, batch, lambda p, t: (p - t).square().mean())
    assert objective(batch, 0.0).total.item() == pytest.approx(expected, rel=1e-4)
