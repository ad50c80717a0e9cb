"""How far pictures are from true ones: pixel by pixel, by structure, by frozen features, and as whole sets.

Pictures are clips of values in 0..1. A mask says which pixels are judged; what it hides changes no number but those of
windows of ``ssim`` that reach into it.

Shape legend: B clips, S samples of each, C channels, T frames, H/W pixels, K clips of a set, D feature width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.models.base import ClipEncoder
from jepa.predictive import Measure, token_errors

MOST_DB = 100.0  # of equal pictures, so that means over clips stay numbers; 8-bit rounding alone is 59 dB
WINDOW, SIGMA = 11, 1.5  # of SSIM
_C1, _C2 = 0.01**2, 0.03**2  # for values in 0..1


def mean_square(predicted: Tensor, true: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of clips ``[..., C, T, H, W]`` over all channels of the pixels that ``mask`` (bool,
    broadcast to ``[..., 1, T, H, W]``) chooses: float64 ``[...]``. Raises ``ValueError`` for shapes that do not fit and
    for a clip without a chosen pixel."""
    if predicted.shape[-4:] != true.shape[-4:]:
        raise ValueError(f"clips of {list(predicted.shape[-4:])} and {list(true.shape[-4:])} cannot be compared")
    squares = (predicted.double() - true.double()).square()
    return squares.mean(dim=(-4, -3, -2, -1)) if mask is None else _over(squares, mask)


def _over(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``[..., C, T, H, W]`` over the pixels of ``mask`` ``[..., 1, T, H, W]``."""
    if mask.dtype != torch.bool or mask.shape[-4] != 1:
        kind = str(mask.dtype).removeprefix("torch.")
        raise ValueError(f"mask must be bool [..., 1, T, H, W], not {kind} {list(mask.shape)}")
    chosen = mask.expand(*values.shape[:-4], 1, *values.shape[-3:])
    count = chosen.sum(dim=(-4, -3, -2, -1)) * values.shape[-4]
    if not bool((count > 0).all()):
        raise ValueError("the mask chooses no pixel of some clip: there is nothing to compare")
    return torch.where(chosen, values, values.new_zeros(())).sum(dim=(-4, -3, -2, -1)) / count


def decibels(mean_squares: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of mean squared errors of values in 0..1; at most ``MOST_DB``."""
    return -10 * mean_squares.clamp(min=10 ** (-MOST_DB / 10)).log10()


def psnr(predicted: Tensor, true: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in decibels of every clip, ``[...]``; arguments and errors as in ``mean_square``."""
    return decibels(mean_square(predicted, true, mask))


def ssim_map(predicted: Tensor, true: Tensor) -> Tensor:
    """Structural similarity of clips ``[..., C, T, H, W]`` at every place where a whole window fits, ``[..., C, T,
    H - 10, W - 10]``, float64.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, section III:
    Gaussian windows of 11 x 11 with standard deviation 1.5, moments weighted by the window, constants 0.01 and 0.03;
    frames and channels one by one, nothing is made smaller first. Raises ``ValueError`` for frames below 11 pixels.
    """
    if predicted.shape[-4:] != true.shape[-4:]:
        raise ValueError(f"clips of {list(predicted.shape[-4:])} and {list(true.shape[-4:])} cannot be compared")
    if min(true.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs frames of at least {WINDOW} x {WINDOW} pixels, not {list(true.shape[-2:])}")
    x, y = torch.broadcast_tensors(predicted.double(), true.double())
    moments = _blurred(torch.stack((x, y, x * x, y * y, x * y)))
    mean_x, mean_y, square_x, square_y, product = moments
    across, spread = product - mean_x * mean_y, square_x - mean_x**2 + square_y - mean_y**2
    same = (2 * mean_x * mean_y + _C1) * (2 * across + _C2)
    return same / ((mean_x**2 + mean_y**2 + _C1) * (spread + _C2))


def _blurred(values: Tensor) -> Tensor:
    """Means ``[..., H - 10, W - 10]`` of ``values`` ``[..., H, W]`` under the window."""
    places = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-places.square() / (2 * SIGMA**2))
    first, *others = (weights / weights.sum()).tolist()
    for axis in (-2, -1):  # shifted sums: several times faster than conv2d on a CPU, above all in float64
        size = values.shape[axis] - WINDOW + 1
        blurred = first * values.narrow(axis, 0, size)
        for place, weight in enumerate(others, start=1):
            blurred.add_(values.narrow(axis, place, size), alpha=weight)
        values = blurred
    return values


def ssim(predicted: Tensor, true: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of ``ssim_map`` of every clip, ``[...]``; with ``mask`` (as in ``mean_square``) over the windows whose
    middle it chooses."""
    found = ssim_map(predicted, true)
    if mask is None:
        return found.mean(dim=(-4, -3, -2, -1))
    rim = WINDOW // 2
    return _over(found, mask[..., rim:-rim, rim:-rim])


@torch.no_grad()
def feature_distance(
    encoder: ClipEncoder, predicted: Tensor, true: Tensor, ids: Tensor | None = None, measure: Measure = "l1"
) -> Tensor:
    """How far the layer-normed tokens of ``encoder`` are apart, of clips ``[B, C, T, H, W]`` that are normalised as it
    wants them: the mean over its tokens, or over those of ``ids`` ``[B, N]``; float32 ``[B]``."""
    made, real = (F.layer_norm(tokens, tokens.shape[-1:]) for tokens in (encoder(predicted), encoder(true)))
    errors = token_errors(made.float(), real.float(), measure)
    return (errors if ids is None else errors.gather(1, ids)).mean(dim=1)


@torch.no_grad()
def clip_features(encoder: ClipEncoder, clips: Tensor) -> Tensor:
    """One vector per clip for distances of sets: the mean of the layer-normed tokens, float32 ``[B, D]``."""
    tokens = encoder(clips).float()
    return F.layer_norm(tokens, tokens.shape[-1:]).mean(dim=1)


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Frechet distance between normal distributions fitted to feature vectors ``[K, D]`` and ``[L, D]``: the squared
    distance of the means plus the trace of S + R - 2 (S R)^(1/2).

    Few clips make it too large: compare sets of equal size, beside that of real against real. Source: Heusel et al.,
    arXiv 1706.08500, section 2, where features are Inception's. The trace of the root is taken as the nuclear norm of
    the product of both centred sets, which is exact where K or L are below D, too. Raises ``ValueError`` for less than
    two vectors.
    """
    x, y = _sets(one, other)
    apart = (x.mean(dim=0) - y.mean(dim=0)).square().sum()
    x, y = ((part - part.mean(dim=0)) / math.sqrt(len(part) - 1) for part in (x, y))
    root = torch.linalg.svdvals(x @ y.T).sum()
    return float(apart + x.square().sum() + y.square().sum() - 2 * root)


def kernel_distance(one: Tensor, other: Tensor, degree: int = 3) -> float:
    """Squared maximum mean discrepancy of feature vectors ``[K, D]`` and ``[L, D]`` under the kernel (x y / D + 1) to
    the power ``degree``, by the estimator without bias: 0 on average for equal distributions, so it may be negative.

    Source: Binkowski et al., arXiv 1801.01401, sections 2 and 4. Raises ``ValueError`` for less than two vectors.
    """
    x, y = _sets(one, other)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** degree

    within = [(k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1)) for k in (kernel(x, x), kernel(y, y))]
    return float(within[0] + within[1] - 2 * kernel(x, y).mean())


def _sets(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    if one.dim() != 2 or other.dim() != 2 or one.shape[1] != other.shape[1]:
        raise ValueError(f"sets of features must be [K, D] and [L, D], not {list(one.shape)} and {list(other.shape)}")
    if min(len(one), len(other)) < 2:
        raise ValueError(f"a distance of sets needs 2 clips or more on each side, not {len(one)} and {len(other)}")
    return one.double(), other.double()


def best_of_k(scores: Tensor) -> Tensor:
    """What the best of k of S samples scores on average, for k = 1..S: ``[..., S]`` from ``scores`` ``[..., S]``, where
    higher is better.

    The mean over all choices of k samples, not over a single one: the j-th lowest is the best of a share
    C(j - 1, k - 1) / C(S, k) of them.
    """
    count = scores.shape[-1]
    ordered = scores.double().sort(dim=-1).values
    shares = [[math.comb(j, k) / math.comb(count, k + 1) for j in range(count)] for k in range(count)]
    return ordered @ torch.tensor(shares, dtype=torch.float64, device=scores.device).T


def spread(samples: Tensor) -> Tensor:
    """Standard deviation over samples ``[..., S, C, T, H, W]`` of every pixel, root mean square over its channels:
    ``[..., 1, T, H, W]``, float64. Raises ``ValueError`` for a single sample."""
    if samples.shape[-5] < 2:
        raise ValueError("a spread needs 2 samples of a clip or more, not 1")
    return samples.double().var(dim=-5).mean(dim=-4, keepdim=True).sqrt()


def diversity(samples: Tensor, mask: Tensor | None = None) -> Tensor:
    """Root mean square difference of two samples, over all pairs of samples ``[..., S, C, T, H, W]`` and the pixels of
    ``mask`` (as in ``mean_square``): ``[...]``, float64. It is sqrt(2) times the root mean square of ``spread``."""
    squares = spread(samples).square()
    whole = squares.mean(dim=(-4, -3, -2, -1)) if mask is None else _over(squares, mask)
    return (2 * whole).sqrt()
