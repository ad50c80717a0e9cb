"""Collapse metrics on features with known answers, warnings, and pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from jepa.masks import IJepaConfig, MultiBlockConfig, build_masks
from jepa.models.encoder import EncoderConfig
from jepa.models.predictor import PredictorConfig
from jepa.monitor import (
    CollapseMonitor,
    MonitorConfig,
    feature_statistics,
    knn_probe,
    mean_cosine,
    pca_colours,
    pictures,
    principal_axes,
    rankme,
)
from jepa.objectives import MaskedConfig, MaskedObjective
from jepa.types import Batch, ClipConfig

CLIP = ClipConfig(num_frames=4, fps=8, crop_size=32)


@pytest.fixture
def objective() -> MaskedObjective:
    torch.manual_seed(0)
    encoder = EncoderConfig(embed_dim=24, depth=1, num_heads=2, patch_size=4)
    predictor = PredictorConfig(embed_dim=24, depth=1, num_heads=2)
    return MaskedObjective(MaskedConfig(predictor=predictor), encoder, CLIP, 2)


@pytest.fixture
def batch(objective: MaskedObjective) -> Batch:
    rng, grid = np.random.default_rng(0), objective.encoder.grid
    masks = [family.draw(rng, 20) for family in build_masks([MultiBlockConfig(), IJepaConfig()], grid)]
    return Batch(torch.randn(20, 3, 4, 32, 32), masks, label=torch.arange(20) % 2)


def test_rankme_of_known_matrices() -> None:
    torch.manual_seed(0)
    orthogonal = torch.linalg.qr(torch.randn(50, 8)).Q
    assert rankme(orthogonal).item() == pytest.approx(8.0, rel=1e-3)
    assert rankme(orthogonal.T).item() == pytest.approx(8.0, rel=1e-3)
    assert rankme(torch.ones(50, 8)).item() == pytest.approx(1.0, rel=1e-3)
    two = orthogonal * torch.tensor([3.0, 1.0, 0, 0, 0, 0, 0, 0])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert rankme(two).item() == pytest.approx(math.exp(entropy), rel=1e-3)
    features = torch.randn(60, 12)
    share = torch.linalg.svdvals(features) / torch.linalg.svdvals(features).sum()
    assert rankme(features).item() == pytest.approx(torch.exp(-(share * share.log()).sum()).item(), rel=1e-3)


def test_mean_cosine_equals_a_loop_over_pairs() -> None:
    features = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    pairs = [F.cosine_similarity(features[i], features[j], dim=0) for i in range(7) for j in range(7) if i != j]
    assert mean_cosine(features).item() == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-6)
    assert mean_cosine(torch.ones(4, 3)).item() == pytest.approx(1.0)


def test_knn_probe_leaves_the_clip_itself_out_and_skips_unlabelled_ones() -> None:
    apart = torch.tensor([[1.0, 0.1], [1.0, 0.0], [1.0, -0.1], [-1.0, 0.1], [-1.0, 0.0], [-1.0, -0.1]])
    good, random = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 2, 3, 4, 5])
    assert knn_probe(apart, good, 2)["knn"] == 1.0
    assert knn_probe(apart, random, 2)["knn"] == 0.0
    with_unknown = torch.cat((apart, torch.tensor([[1.0, 0.05]]))), torch.tensor([0, 0, 0, 1, 1, 1, -1])
    probe = knn_probe(*with_unknown, 2)
    assert probe["knn"] == 1.0
    assert probe["knn_chance"] == 0.5


def test_measurements_equal_direct_computations(objective: MaskedObjective, batch: Batch) -> None:
    values = CollapseMonitor(MonitorConfig()).measure(objective, batch)
    tokens = objective.target_encoder(batch.clip).detach()
    assert values["feature_std"].item() == pytest.approx(tokens.flatten(0, 1).std(0).mean().item(), rel=1e-4)
    assert values["pooled_std"].item() == pytest.approx(tokens.mean(1).std(0).mean().item(), rel=1e-3)
    assert values["error"].item() == pytest.approx(objective(batch, 0.0).total.item(), rel=1e-4)
    assert values["ema_distance"].item() == 0.0  # the target encoder starts as a copy
    assert values["online_rankme"].item() == pytest.approx(values["rankme"].item(), rel=1e-4)
    targets = F.layer_norm(tokens, (24,))
    mean_target, context_mean = [], []
    for mask in batch.masks:
        for row in range(20):
            wanted = targets[row, mask.target_ids[row].flatten()]
            mean_target.append((wanted - targets.mean((0, 1))).abs().mean())
            context_mean.append((wanted - targets[row, mask.context_ids[row]].mean(0)).abs().mean())
    trivial = torch.stack(mean_target).mean().item(), torch.stack(context_mean).mean().item()
    assert values["error_mean_target"].item() == pytest.approx(trivial[0], rel=1e-4)
    assert values["error_context_mean"].item() == pytest.approx(trivial[1], rel=1e-4)
    assert values["skill"].item() == pytest.approx(1 - values["error"].item() / min(trivial), rel=1e-3)
    assert values["knn_chance"] == 0.5
    assert all(value.ndim == 0 for value in values.values())


def test_constant_features_warn_and_name_a_knob(objective: MaskedObjective, batch: Batch) -> None:
    monitor = CollapseMonitor(MonitorConfig())
    healthy = {name: value.item() for name, value in monitor.measure(objective, batch).items()}
    assert monitor.warnings([healthy, healthy]) == []
    assert monitor.warnings([]) == []
    for parameter in (objective.target_encoder.norm.weight, objective.encoder.norm.weight):
        parameter.data.zero_()
    for parameter in (objective.target_encoder.norm.bias, objective.encoder.norm.bias):
        parameter.data.fill_(0.3)
    collapsed = {name: value.item() for name, value in monitor.measure(objective, batch).items()}
    assert all(math.isfinite(value) for value in collapsed.values())
    for history in ([healthy, collapsed], [collapsed]):
        text = "\n".join(monitor.warnings(history))
        for knob in ("objective.regularizer", "covariance_weight", "objective.momentum", "optim.lr.peak"):
            assert knob in text
    assert len(monitor.warnings([healthy, collapsed])) == 3


def test_a_predictor_without_skill_is_named_once_there_is_a_history(objective: MaskedObjective, batch: Batch) -> None:
    monitor = CollapseMonitor(MonitorConfig())
    values = {name: value.item() for name, value in monitor.measure(objective, batch).items()} | {"skill": -0.1}
    assert monitor.warnings([values]) == []
    (warning,) = monitor.warnings([values] * 3)
    assert "no better than a constant" in warning


def test_collapsed_and_spread_features_differ_in_every_statistic() -> None:
    torch.manual_seed(0)
    spread, flat = torch.randn(16, 10, 8), torch.randn(1, 1, 8) + 1e-3 * torch.randn(16, 10, 8)
    good, bad = feature_statistics(spread), feature_statistics(flat)
    assert bad["feature_std"] < 0.01 * good["feature_std"]
    assert bad["cosine"] > 0.99 > 0.2 > good["cosine"]
    assert bad["rankme"] < 1.2
    assert good["rankme"] > 7.5


def test_pca_colours_follow_the_main_component() -> None:
    torch.manual_seed(0)
    height = torch.linspace(-1, 1, 50)
    tokens = height[:, None] * torch.randn(1, 6) * 5 + 0.01 * torch.randn(50, 6)
    colours = pca_colours(tokens[None])
    assert colours.shape == (1, 50, 3)
    correlation = torch.corrcoef(torch.stack((colours[0, :, 0], height)))[0, 1]
    assert correlation.abs() > 0.99


def test_principal_axes_are_those_of_the_svd_with_fixed_signs() -> None:
    rows = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7) + 3
    mean, axes = principal_axes(rows, 3)
    expected = np.linalg.svd(rows.numpy() - rows.numpy().mean(0), full_matrices=False)[2][:3]
    np.testing.assert_allclose(mean, rows.numpy().mean(0))
    for axis, other in zip(axes.T.numpy(), expected):
        np.testing.assert_allclose(axis, other * np.sign(other[np.abs(other).argmax()]), atol=1e-10)
    for same in (rows.flip(0), rows.float(), 2 * mean - rows):  # the last turns every axis round, without a rule
        torch.testing.assert_close(principal_axes(same, 3)[1], axes, atol=1e-5, rtol=0)


def test_pictures_show_what_is_kept(objective: MaskedObjective, batch: Batch) -> None:
    drawn = pictures(objective, batch, CLIP, clips=2)
    assert drawn["masks"].shape == ((64 + 4) * 3, (64 + 4) * 2, 3)  # frames, then two families; two tubelets
    assert drawn["pca"].shape == ((64 + 4) * 4, (64 + 4) * 2, 3)
    assert all(picture.dtype == np.uint8 for picture in drawn.values())
    frame, shown = drawn["masks"][:64, :64], drawn["masks"][68:132, :64]
    kept = np.zeros(64, dtype=bool)
    kept[[i for i in batch.masks[0].context_ids[0].tolist() if i < 64]] = True
    for cell in range(64):
        top, left = 8 * (cell // 8), 8 * (cell % 8)
        same = np.array_equal(frame[top : top + 8, left : left + 8], shown[top : top + 8, left : left + 8])
        assert same == kept[cell]
