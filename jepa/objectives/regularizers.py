"""Terms that keep features from collapsing, as an option next to (or instead of) the EMA target.

Both look at the context encoder's output, in two views: its tokens ``[B * Nc, D]`` and its mean-pooled clips
``[B, D]``. Statistics are those of the process's own batch and are computed in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True, slots=True)
class VarianceCovarianceConfig:
    """Variance and covariance terms of VICReg (arXiv 2105.04906, section 4.1).

    ``weight`` scales the variance hinge, ``covariance_weight`` the covariance term. ``tokens`` and ``pooled`` weigh
    the two views (0: leave out). ``target_std``: below this standard deviation a dimension is pushed apart.
    ``max_tokens``: at most so many tokens are looked at, evenly spread over the batch.
    """

    kind: Literal["variance_covariance"] = "variance_covariance"
    weight: float = 0.5
    covariance_weight: float = 0.04
    tokens: float = 1.0
    pooled: float = 0.0
    target_std: float = 1.0
    max_tokens: int | None = 4096

    def __post_init__(self) -> None:
        _check(self, ("weight", "covariance_weight", "tokens", "pooled"))
        if self.target_std <= 0:
            raise ValueError(f"target_std must be positive, not {self.target_std}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SigRegConfig:
    """Sketched isotropic Gaussian regularization of LeJEPA (arXiv 2511.08544, section 4).

    ``num_slices``: random directions, new ones every step, so that few are enough. ``num_knots``: points at which
    characteristic functions are compared. ``tokens``, ``pooled`` and ``max_tokens`` as in
    ``VarianceCovarianceConfig``. Our statistic is a mean over samples; the paper's is that times the number of
    samples, so ``weight`` here is the paper's times that number.
    """

    kind: Literal["sigreg"] = "sigreg"
    weight: float = 1.0
    num_slices: int = 64
    num_knots: int = 17
    tokens: float = 1.0
    pooled: float = 0.0
    max_tokens: int | None = 1024

    def __post_init__(self) -> None:
        _check(self, ("weight", "tokens", "pooled"))
        if self.num_slices < 1 or self.num_knots < 2:
            raise ValueError(f"num_slices must be >= 1 and num_knots >= 2, not {self.num_slices}, {self.num_knots}")


RegularizerConfig = VarianceCovarianceConfig | SigRegConfig


def _check(config: RegularizerConfig, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must not be negative, but is {getattr(config, name)}")
    if config.tokens == 0 and config.pooled == 0:
        raise ValueError("tokens and pooled are both 0: give one a weight, or leave the regularizer out")
    if config.max_tokens is not None and config.max_tokens < 2:
        raise ValueError(f"max_tokens must be at least 2, not {config.max_tokens}")


def variance_term(features: Tensor, target_std: float = 1.0) -> Tensor:
    """Mean over dimensions of ``max(0, target_std - std)`` of ``features`` ``[n, D]``; a scalar."""
    return F.relu(target_std - torch.sqrt(features.var(dim=0) + 1e-4)).mean()


def covariance_term(features: Tensor) -> Tensor:
    """Sum of the squared off-diagonal covariances of ``features`` ``[n, D]``, divided by D; a scalar."""
    centred = features - features.mean(dim=0)
    covariance = centred.T @ centred / (len(features) - 1)
    # the diagonal is removed by arithmetic, as indexing would copy a D x D matrix
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / features.shape[1]


def sigreg_term(features: Tensor, num_slices: int = 64, num_knots: int = 17) -> Tensor:
    """Distance of ``features`` ``[n, D]`` from an isotropic standard normal; a scalar, near 0 when they match.

    Epps-Pulley statistic of random one-dimensional projections: the squared difference between the empirical
    characteristic function and that of N(0, 1), weighted by exp(-t^2 / 2) and integrated over |t| <= 5.
    """
    directions = F.normalize(torch.randn(features.shape[1], num_slices, device=features.device), dim=0)
    knots = torch.linspace(0.0, 5.0, num_knots, device=features.device)  # the integrand is even: half the range
    normal = torch.exp(-0.5 * knots.square())
    angle = (features @ directions)[..., None] * knots  # [n, slices, knots]
    error = (angle.cos().mean(dim=0) - normal).square() + angle.sin().mean(dim=0).square()
    return 2.0 * torch.trapezoid(error * normal, knots, dim=-1).mean()


def regularize(config: RegularizerConfig, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted term for the context encoder's output ``[B, Nc, D]``, and its parts for the log (unweighted)."""
    total = tokens.new_zeros((), dtype=torch.float32)
    terms: dict[str, Tensor] = {}
    with torch.autocast(tokens.device.type, enabled=False):
        for name, share in (("tokens", config.tokens), ("pooled", config.pooled)):
            if share == 0:
                continue
            if name == "tokens":
                features = _thin(tokens.flatten(0, 1), config.max_tokens).float()
            else:
                features = tokens.float().mean(dim=1)
            if isinstance(config, SigRegConfig):
                parts = {"sigreg": (config.weight, sigreg_term(features, config.num_slices, config.num_knots))}
            else:
                parts = {
                    "variance": (config.weight, variance_term(features, config.target_std)),
                    "covariance": (config.covariance_weight, covariance_term(features)),
                }
            total = total + share * sum(weight * value for weight, value in parts.values())
            terms |= {f"{key}_{name}": value.detach() for key, (_, value) in parts.items()}
    return total, terms


def _thin(features: Tensor, limit: int | None) -> Tensor:
    if limit is None or len(features) <= limit:
        return features
    rows = torch.arange(limit, device=features.device) * len(features) // limit
    return features[rows]
