"""Terms that keep features from collapsing, as an option next to (or instead of) the EMA target.

Both look at the context encoder's output, in two views: its tokens ``[B * Nc, D]`` and its mean-pooled clips
``[B, D]``. Statistics are those of the micro-batch over all processes (sums that they exchange), so that the term
does not depend on the number of processes; they are computed in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from jepa.distributed import process_place, sum_over_processes


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


def variance_term(features: Tensor, target_std: float = 1.0, total: int | None = None) -> Tensor:
    """Mean over dimensions of ``max(0, target_std - std)`` of ``features`` ``[n, D]``; a scalar.

    ``total``: how many rows all processes have together, if the statistics of all of them are meant (``None``: those
    of ``features`` alone).
    """
    centred = _centred(features, total)
    variance = _sum(centred.square().sum(dim=0), total) / ((total or len(features)) - 1)
    return F.relu(target_std - torch.sqrt(variance + 1e-4)).mean()


def covariance_term(features: Tensor, total: int | None = None) -> Tensor:
    """Sum of the squared off-diagonal covariances of ``features`` ``[n, D]``, divided by D; a scalar. ``total`` as in
    ``variance_term``."""
    centred = _centred(features, total)
    covariance = _sum(centred.T @ centred, total) / ((total or len(features)) - 1)
    # the diagonal is removed by arithmetic, as indexing would copy a D x D matrix
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / features.shape[1]


def sigreg_term(features: Tensor, num_slices: int = 64, num_knots: int = 17, total: int | None = None) -> Tensor:
    """Distance of ``features`` ``[n, D]`` from an isotropic standard normal; a scalar, near 0 when they match.

    Epps-Pulley statistic of random one-dimensional projections: the squared difference between the empirical
    characteristic function and that of N(0, 1), weighted by exp(-t^2 / 2) and integrated over |t| <= 5. ``total`` as
    in ``variance_term``; the projections are then rank 0's.
    """
    directions = F.normalize(torch.randn(features.shape[1], num_slices, device=features.device), dim=0)
    if total is not None and process_place()[1] > 1:
        dist.broadcast(directions, 0)
    knots = torch.linspace(0.0, 5.0, num_knots, device=features.device)  # the integrand is even: half the range
    normal = torch.exp(-0.5 * knots.square())
    angle = (features @ directions)[..., None] * knots  # [n, slices, knots]
    waves = _sum(torch.stack((angle.cos().sum(dim=0), angle.sin().sum(dim=0))), total) / (total or len(features))
    error = (waves[0] - normal).square() + waves[1].square()
    return 2.0 * torch.trapezoid(error * normal, knots, dim=-1).mean()


def _centred(features: Tensor, total: int | None) -> Tensor:
    return features - _sum(features.sum(dim=0), total) / (total or len(features))


def _sum(own: Tensor, total: int | None) -> Tensor:
    return own if total is None else sum_over_processes(own)


def regularize(config: RegularizerConfig, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted term for the context encoder's output ``[B, Nc, D]``, and its parts for the log (unweighted).

    In a process group a collective call: the statistics are those of all processes' tokens.
    """
    total = tokens.new_zeros((), dtype=torch.float32)
    terms: dict[str, Tensor] = {}
    with torch.autocast(tokens.device.type, enabled=False):
        for name, share in (("tokens", config.tokens), ("pooled", config.pooled)):
            if share == 0:
                continue
            if name == "tokens":
                features, rows = _thin(tokens.flatten(0, 1), config.max_tokens)
                features = features.float()
            else:
                features, rows = tokens.float().mean(dim=1), len(tokens) * process_place()[1]
            if isinstance(config, SigRegConfig):
                parts = {"sigreg": (config.weight, sigreg_term(features, config.num_slices, config.num_knots, rows))}
            else:
                parts = {
                    "variance": (config.weight, variance_term(features, config.target_std, rows)),
                    "covariance": (config.covariance_weight, covariance_term(features, rows)),
                }
            total = total + share * sum(weight * value for weight, value in parts.values())
            terms |= {f"{key}_{name}": value.detach() for key, (_, value) in parts.items()}
    return total, terms


def _thin(features: Tensor, limit: int | None) -> tuple[Tensor, int]:
    """This process's share of ``limit`` rows spread evenly over those of all processes ``[n, D]`` each, and how many
    rows all of them keep."""
    rank, world_size = process_place()
    total = len(features) * world_size
    if limit is None or total <= limit:
        return features, total
    first, end = (-(-place * limit // world_size) for place in (rank, rank + 1))  # on the host: no sync
    rows = torch.arange(first, end, device=features.device) * total // limit - rank * len(features)
    return features[rows], limit
