"""Variance, covariance and SIGReg against slow formulations and known cases."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from jepa.objectives.regularizers import (
    SigRegConfig,
    VarianceCovarianceConfig,
    covariance_term,
    regularize,
    sigreg_term,
    variance_term,
)


def test_variance_and_covariance_equal_loops() -> None:
    torch.manual_seed(0)
    features = torch.randn(40, 6) @ torch.randn(6, 6) * 0.4
    rows = features.tolist()
    means = [sum(row[d] for row in rows) / 40 for d in range(6)]
    cov = [[sum((r[i] - means[i]) * (r[j] - means[j]) for r in rows) / 39 for j in range(6)] for i in range(6)]
    variance = sum(max(0.0, 1.0 - math.sqrt(cov[d][d] + 1e-4)) for d in range(6)) / 6
    covariance = sum(cov[i][j] ** 2 for i in range(6) for j in range(6) if i != j) / 6
    assert variance_term(features).item() == pytest.approx(variance, rel=1e-4)
    assert covariance_term(features).item() == pytest.approx(covariance, rel=1e-4)
    assert variance_term(features, target_std=0.1).item() < variance
    assert variance_term(torch.ones(8, 3)).item() == pytest.approx(0.99)


def test_sigreg_equals_a_loop_over_slices_and_knots() -> None:
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    value = sigreg_term(features, num_slices=3, num_knots=9).item()
    torch.manual_seed(5)
    directions = torch.randn(4, 3)
    knots, total = [5.0 * k / 8 for k in range(9)], 0.0
    for s in range(3):
        direction = directions[:, s] / directions[:, s].norm()
        projected = [float(x @ direction) for x in features]
        heights = []
        for t in knots:
            real = sum(math.cos(t * y) for y in projected) / 30 - math.exp(-t * t / 2)
            imaginary = sum(math.sin(t * y) for y in projected) / 30
            heights.append((real**2 + imaginary**2) * math.exp(-t * t / 2))
        total += sum((a + b) / 2 * 5.0 / 8 for a, b in itertools.pairwise(heights)) * 2
    assert value == pytest.approx(total / 3, rel=1e-4)


def test_sigreg_tells_a_normal_from_collapsed_and_stretched_features() -> None:
    torch.manual_seed(0)
    normal = sigreg_term(torch.randn(2000, 16)).item()
    constant = sigreg_term(torch.zeros(2000, 16)).item()
    line = sigreg_term(torch.randn(2000, 1) * torch.ones(1, 16) * 2).item()
    wide = sigreg_term(torch.randn(2000, 16) * 4).item()
    assert normal < 2e-3
    assert constant > 0.3
    assert line > 0.05
    assert wide > 0.2


@pytest.mark.parametrize("config", [VarianceCovarianceConfig(), SigRegConfig(num_slices=64)], ids=["vicreg", "sigreg"])
def test_descending_the_term_spreads_collapsed_features(config: VarianceCovarianceConfig | SigRegConfig) -> None:
    torch.manual_seed(0)
    tokens = (0.05 * torch.randn(64, 1, 1) * torch.ones(8) + 0.01 * torch.randn(64, 2, 8)).requires_grad_()
    optimizer = torch.optim.Adam([tokens], lr=0.05)
    before = regularize(config, tokens)[0].item()
    for _ in range(60):
        optimizer.zero_grad()
        regularize(config, tokens)[0].backward()
        optimizer.step()
    assert regularize(config, tokens)[0].item() < 0.3 * before
    assert tokens.detach().flatten(0, 1).std(dim=0).mean() > 0.5


def test_views_and_weights_add_up() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(10, 6, 5) * 0.5
    config = VarianceCovarianceConfig(weight=0.5, covariance_weight=0.04, tokens=1.0, pooled=2.0)
    total, terms = regularize(config, tokens)
    flat, pooled = tokens.flatten(0, 1), tokens.mean(dim=1)
    expected = 0.5 * variance_term(flat) + 0.04 * covariance_term(flat)
    expected = expected + 2.0 * (0.5 * variance_term(pooled) + 0.04 * covariance_term(pooled))
    torch.testing.assert_close(total, expected)
    assert sorted(terms) == ["covariance_pooled", "covariance_tokens", "variance_pooled", "variance_tokens"]
    assert sorted(regularize(SigRegConfig(), tokens)[1]) == ["sigreg_tokens"]


def test_thinning_spreads_over_the_batch() -> None:
    tokens = torch.arange(24.0).view(4, 6, 1).expand(4, 6, 2)
    few = VarianceCovarianceConfig(max_tokens=4, covariance_weight=0.0, weight=1.0, target_std=100.0)
    expected = variance_term(torch.tensor([0.0, 6.0, 12.0, 18.0])[:, None].expand(4, 2), 100.0)
    torch.testing.assert_close(regularize(few, tokens)[0], expected)


def test_wrong_values_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="tokens and pooled are both 0"):
        VarianceCovarianceConfig(tokens=0.0)
    with pytest.raises(ValueError, match="covariance_weight"):
        VarianceCovarianceConfig(covariance_weight=-1.0)
    with pytest.raises(ValueError, match="num_slices"):
        SigRegConfig(num_slices=0)
