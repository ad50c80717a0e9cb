"""Metrics of pictures: numbers worked out by hand, slow formulations in numpy and scipy, invariances, mistakes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch
from support import SMALL_CLIP, small_encoder
from torch import Tensor

from evals.pixel_metrics import (
    best_of_k,
    clip_features,
    decibels,
    diversity,
    feature_distance,
    frechet_distance,
    kernel_distance,
    mean_square,
    psnr,
    spread,
    ssim,
    ssim_map,
)

SHAPE = (2, 3, 2, 14, 17)


def pictures(seed: int, *shape: int) -> Tensor:
    return torch.rand(*(shape or SHAPE), generator=torch.Generator().manual_seed(seed))


# ---- pixels ---------------------------------------------------------------------------------------------------------


def test_psnr_by_hand() -> None:
    true = torch.full(SHAPE, 0.5)
    assert psnr(true + 0.1, true).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    assert psnr(true, true).tolist() == [100.0, 100.0], "equal pictures have a number, too"
    assert decibels(torch.tensor([1.0, 0.01, 1 / (12 * 255**2)])).tolist() == pytest.approx([0, 20, 58.92], abs=0.01)


def test_psnr_agrees_with_numpy_and_takes_samples() -> None:
    true, made = pictures(0), pictures(1, 2, 4, *SHAPE[1:])
    found = psnr(made, true[:, None])
    assert found.shape == (2, 4)
    for b, s in itertools.product(range(2), range(4)):
        error = np.mean((made[b, s].double().numpy() - true[b].double().numpy()) ** 2)
        assert float(found[b, s]) == pytest.approx(-10 * math.log10(error), abs=1e-9)


def test_masked_psnr_sees_only_the_mask() -> None:
    true, made = pictures(0), pictures(1)
    mask = pictures(2, 2, 1, *SHAPE[2:]) > 0.6
    found = mean_square(made, true, mask)
    for b in range(2):
        rows = mask[b].expand(3, -1, -1, -1).numpy()
        apart = made[b].double().numpy() - true[b].double().numpy()
        assert float(found[b]) == pytest.approx(np.mean(apart[rows] ** 2), abs=1e-12)
    spoiled = torch.where(mask, made, torch.full_like(made, float("nan")))
    assert torch.equal(mean_square(spoiled, true, mask), found), "what is hidden may be anything"
    assert torch.allclose(
        mean_square(made, true, torch.ones(1, 1, 2, 14, 17, dtype=torch.bool)), mean_square(made, true)
    )


def test_mistakes_of_masks_and_shapes() -> None:
    true, empty = pictures(0), torch.zeros(2, 1, 2, 14, 17, dtype=torch.bool)
    empty[0] = True
    with pytest.raises(ValueError, match="the mask chooses no pixel of some clip: there is nothing to compare"):
        psnr(true, true, empty)
    with pytest.raises(ValueError, match=r"mask must be bool \[..., 1, T, H, W\], not float32 \[2, 1, 2, 14, 17\]"):
        psnr(true, true, empty.float())
    with pytest.raises(ValueError, match=r"clips of \[3, 2, 14, 17\] and \[3, 1, 14, 17\] cannot be compared"):
        psnr(true, true[:, :, :1])
    with pytest.raises(ValueError, match=r"SSIM needs frames of at least 11 x 11 pixels, not \[10, 17\]"):
        ssim(true[..., :10, :], true[..., :10, :])


# ---- structure ------------------------------------------------------------------------------------------------------


def slow_ssim(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """SSIM of two pictures window by window, each weighted by an outer product."""
    places = np.arange(-5, 6)
    line = np.exp(-(places**2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    found = np.zeros((x.shape[0] - 10, x.shape[1] - 10))
    for row, column in np.ndindex(found.shape):
        a, b = (side[row : row + 11, column : column + 11] for side in (x, y))
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
        both = (window * (a - mean_a) * (b - mean_b)).sum()
        light = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
        found[row, column] = light * (2 * both + 9e-4) / (var_a + var_b + 9e-4)
    return found


def test_ssim_agrees_with_a_slow_one() -> None:
    true = pictures(0)
    made = (true + 0.2 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))).clamp(0, 1)
    found = ssim_map(made, true)
    assert found.shape == (2, 3, 2, 4, 7)
    for b, c, t in itertools.product(range(2), range(3), range(2)):
        expected = slow_ssim(made[b, c, t].double().numpy(), true[b, c, t].double().numpy())
        assert np.allclose(found[b, c, t].numpy(), expected, atol=1e-10)
    assert torch.allclose(ssim(made, true), found.mean(dim=(1, 2, 3, 4)))
    smooth = scipy.ndimage.gaussian_filter(true[0, 0, 0].double().numpy(), 1.5, truncate=5 / 1.5)[5:-5, 5:-5]
    assert np.allclose(smooth, slow_mean(true[0, 0, 0].double().numpy()), atol=1e-12), "the usual window"


def slow_mean(x: np.ndarray) -> np.ndarray:
    line = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    window = np.outer(line, line) / line.sum() ** 2
    return np.array([[(window * x[r : r + 11, c : c + 11]).sum() for c in range(x.shape[1] - 10)]
                     for r in range(x.shape[0] - 10)])  # fmt: skip


def test_ssim_of_equal_flat_and_masked_pictures() -> None:
    true, made = pictures(0), pictures(1)
    assert ssim(true, true).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)
    flat = ssim(torch.full(SHAPE, 0.2), torch.full(SHAPE, 0.4))
    assert flat.tolist() == pytest.approx([(2 * 0.08 + 1e-4) / (0.2 + 1e-4)] * 2, abs=1e-6)
    assert torch.allclose(ssim(made, true), ssim(true, made), atol=1e-12)
    mask = torch.zeros(2, 1, 2, 14, 17, dtype=torch.bool)
    mask[:, :, 1, 5:7, 6] = True
    expected = ssim_map(made, true)[:, :, 1, 0:2, 1].mean(dim=(1, 2))
    assert torch.allclose(ssim(made, true, mask), expected, atol=1e-12)


# ---- features -------------------------------------------------------------------------------------------------------


def clips(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, SMALL_CLIP.num_frames, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_feature_distance_is_that_of_normed_tokens() -> None:
    encoder, one, other = small_encoder(), clips(3, 0), clips(3, 1)
    found = feature_distance(encoder, one, other)
    with torch.no_grad():
        tokens = [encoder(side).numpy().astype(np.float64) for side in (one, other)]
    normed = [(x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) for x in tokens]
    errors = np.abs(normed[0] - normed[1]).mean(-1)
    assert np.allclose(found.numpy(), errors.mean(1), atol=1e-5)
    assert feature_distance(encoder, one, one).tolist() == [0.0, 0.0, 0.0]
    ids = torch.tensor([[0, 5], [1, 2], [7, 3]])
    picked = np.take_along_axis(errors, ids.numpy(), axis=1).mean(1)
    assert np.allclose(feature_distance(encoder, one, other, ids).numpy(), picked, atol=1e-5)
    assert np.allclose(clip_features(encoder, one).numpy(), normed[0].mean(1), atol=1e-5)


@pytest.mark.parametrize("count", [6, 40])
def test_frechet_distance_agrees_with_a_matrix_root(count: int) -> None:
    """With fewer vectors than numbers in each, the covariances are singular, and scipy's root still is near."""
    rng = np.random.default_rng(3)
    mix = rng.normal(size=(8, 8))
    one, other = rng.normal(size=(count, 8)) @ mix, 1.5 * rng.normal(size=(count + 3, 8)) + 0.3
    s, r = np.cov(one.T), np.cov(other.T)
    root = scipy.linalg.sqrtm(s @ r)
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(s + r - 2 * np.real(root))
    assert frechet_distance(torch.from_numpy(one), torch.from_numpy(other)) == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_by_hand() -> None:
    x = torch.tensor([[-1.0], [1.0]])  # variance 2
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x, x + 3) == pytest.approx(9)
    assert frechet_distance(x, 2 * x) == pytest.approx((math.sqrt(8) - math.sqrt(2)) ** 2)
    turn = torch.linalg.qr(pictures(4, 5, 5)).Q
    one, other = pictures(0, 9, 5), 2 * pictures(1, 9, 5)
    assert frechet_distance(one @ turn, other @ turn) == pytest.approx(frechet_distance(one, other), abs=1e-5)


def test_kernel_distance_agrees_with_loops_and_has_no_bias() -> None:
    one, other = pictures(0, 5, 3), pictures(1, 7, 3) + 0.2

    def kernel(a: Tensor, b: Tensor) -> float:
        return (float(a.double() @ b.double()) / 3 + 1) ** 3

    within = np.mean([kernel(a, b) for i, a in enumerate(one) for j, b in enumerate(one) if i != j])
    within += np.mean([kernel(a, b) for i, a in enumerate(other) for j, b in enumerate(other) if i != j])
    across = np.mean([kernel(a, b) for a in one for b in other])
    assert kernel_distance(one, other) == pytest.approx(within - 2 * across, abs=1e-9)
    same = [kernel_distance(pictures(2 * k, 20, 3), pictures(2 * k + 1, 20, 3)) for k in range(200)]
    assert abs(np.mean(same)) < 4 * np.std(same) / math.sqrt(200)
    assert kernel_distance(one, other) > 3 * np.std(same)


def test_sets_that_are_too_small_or_of_other_widths() -> None:
    with pytest.raises(ValueError, match="needs 2 clips or more on each side, not 1 and 4"):
        frechet_distance(pictures(0, 1, 3), pictures(1, 4, 3))
    with pytest.raises(ValueError, match=r"must be \[K, D\] and \[L, D\], not \[4, 3\] and \[4, 2\]"):
        kernel_distance(pictures(0, 4, 3), pictures(1, 4, 2))


# ---- samples --------------------------------------------------------------------------------------------------------


def test_best_of_k_is_the_mean_over_all_choices() -> None:
    scores = pictures(0, 3, 5)
    found = best_of_k(scores)
    for row, k in itertools.product(range(3), range(1, 6)):
        chosen = [max(part) for part in itertools.combinations(scores[row].tolist(), k)]
        assert float(found[row, k - 1]) == pytest.approx(np.mean(chosen), abs=1e-7)
    assert torch.allclose(found[:, 0], scores.double().mean(dim=1))
    assert torch.allclose(found[:, -1], scores.double().amax(dim=1))


def test_spread_and_diversity() -> None:
    samples = pictures(0, 2, 4, *SHAPE[1:])
    found = spread(samples)
    assert found.shape == (2, 1, *SHAPE[2:])
    expected = np.sqrt(samples.double().numpy().var(axis=1, ddof=1).mean(axis=1))
    assert np.allclose(found[:, 0].numpy(), expected, atol=1e-12)
    mask = pictures(2, 2, 1, *SHAPE[2:]) > 0.5
    pairs = [mean_square(samples[:, i], samples[:, j], mask) for i, j in itertools.combinations(range(4), 2)]
    assert torch.allclose(diversity(samples, mask), torch.stack(pairs).mean(dim=0).sqrt(), atol=1e-12)
    assert torch.allclose(diversity(samples), (2 * found.square().mean(dim=(1, 2, 3, 4))).sqrt())
    with pytest.raises(ValueError, match="a spread needs 2 samples of a clip or more, not 1"):
        diversity(samples[:, :1])
