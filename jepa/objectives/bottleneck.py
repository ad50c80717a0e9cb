"""How much an inferred action may say about the next step: the bottlenecks between inverse dynamics and prediction.

Without one the action can carry the whole next step, and prediction is solved by copying.
Compared in "Learning latent action world models in the wild" (arXiv 2601.05230).

Shape legend: B batch, P width of the inverse dynamics' output, Z width of an action, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.distributed import process_place
from jepa.models.linear import Linear
from jepa.objectives.codebook import Codebook, Update
from jepa.objectives.regularizers import covariance_term, variance_term


@dataclass(frozen=True, kw_only=True, slots=True)
class VqConfig:
    """One of ``num_codes`` learned vectors, ``dim`` wide; the gradient goes straight through (VQ-VAE, arXiv 1711.00937,
    section 3).

    Actions stay continuous for the share ``warmup`` of training; then codes begin as the k-means of the last ``pool``
    actions, as codes that begin at random are mostly never used. ``update``: codes follow the mean of their actions
    ("ema", with ``decay``; appendix A.1 there) or the gradient ("loss"). ``commitment`` weighs the term that keeps
    actions near their codes. A code with less than ``revive_below`` of an equal share is moved to a recent action.
    """

    kind: Literal["vq"] = "vq"
    num_codes: int = 8
    dim: int = 16
    warmup: float = 0.1
    update: Update = "ema"
    decay: float = 0.99
    commitment: float = 0.25
    revive_below: float = 0.1
    pool: int = 2048

    def __post_init__(self) -> None:
        if self.num_codes < 2:
            raise ValueError(f"num_codes must be at least 2, not {self.num_codes}: one code says nothing")
        _check_dim(self.dim)
        for name in ("warmup", "decay", "revive_below"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        if self.commitment < 0:
            raise ValueError(f"commitment must not be negative, but is {self.commitment}")
        if self.pool < self.num_codes:
            raise ValueError(f"pool must hold at least num_codes {self.num_codes} actions, not {self.pool}")


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisyConfig:
    """A Gaussian whose divergence from N(0, 1) costs ``kl_weight`` per nat (arXiv 1312.6114, section 2.3); its mean
    where nothing is trained."""

    kind: Literal["noisy"] = "noisy"
    dim: int = 16
    kl_weight: float = 1e-3

    def __post_init__(self) -> None:
        _check_dim(self.dim)
        if self.kl_weight < 0:
            raise ValueError(f"kl_weight must not be negative, but is {self.kl_weight}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseConfig:
    """Few large numbers: ``weight`` times the mean absolute value (arXiv 2601.05230).

    Actions could be made small instead, so terms for their variance, covariance (``variance_weight``,
    ``covariance_weight``: those of VICReg, arXiv 2105.04906, section 4.1) and mean (``mean_weight``, squared) hold
    their scale. ``top_k``: besides, all but the k largest numbers are set to 0.
    """

    kind: Literal["sparse"] = "sparse"
    dim: int = 16
    weight: float = 0.1
    variance_weight: float = 1.0
    covariance_weight: float = 0.04
    mean_weight: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        _check_dim(self.dim)
        for name in ("weight", "variance_weight", "covariance_weight", "mean_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")
        if self.top_k is not None and not 1 <= self.top_k <= self.dim:
            raise ValueError(f"top_k must be 1 to dim {self.dim}, not {self.top_k}")


@dataclass(frozen=True, kw_only=True, slots=True)
class NoneConfig:
    """Continuous and unrestricted: the upper bound of what an action can say in ``dim`` numbers."""

    kind: Literal["none"] = "none"
    dim: int = 16

    def __post_init__(self) -> None:
        _check_dim(self.dim)


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroConfig:
    """Always 0: prediction without actions, the lower bound."""

    kind: Literal["zero"] = "zero"
    dim: int = 1

    def __post_init__(self) -> None:
        _check_dim(self.dim)


BottleneckConfig = VqConfig | NoisyConfig | SparseConfig | NoneConfig | ZeroConfig


def _check_dim(dim: int) -> None:
    if dim < 1:
        raise ValueError(f"dim must be at least 1, not {dim}")


class Squeezed(NamedTuple):
    """Actions ``z`` fp32 ``[..., Z]``, the ``loss`` that goes with them (a scalar, weighted) and its ``terms``."""

    z: Tensor
    loss: Tensor
    terms: dict[str, Tensor]


class Bottleneck(nn.Module):
    """Features ``[..., P]`` of a transition to its action ``[..., Z]``. In training mode it may draw noise and collects
    what ``after_step`` needs; in eval mode it is a function."""

    def __init__(self, config: BottleneckConfig, in_dim: int) -> None:
        super().__init__()
        self.config, self.dim = config, config.dim
        width = {"noisy": 2 * config.dim, "zero": 0}.get(config.kind, config.dim)
        self.proj = Linear(in_dim, width) if width else None
        self.codebook = Codebook(
            config.num_codes, config.dim, config.warmup, config.update, config.decay, config.revive_below, config.pool
        ) if isinstance(config, VqConfig) else None  # fmt: skip

    def forward(self, features: Tensor) -> Squeezed:
        """``features`` ``[..., P]``, of which "zero" looks at the shape only."""
        config = self.config
        if self.proj is None:
            zeros = features.new_zeros((*features.shape[:-1], self.dim), dtype=torch.float32)
            return Squeezed(zeros, zeros.new_zeros(()), {})
        found = self.proj(features)
        with torch.autocast(features.device.type, enabled=False):
            found = found.float()
            if isinstance(config, VqConfig):
                return self._quantise(found, config)
            if isinstance(config, NoisyConfig):
                return self._noisy(found, config)
            if isinstance(config, SparseConfig):
                return self._sparse(found, config)
            return Squeezed(found, found.new_zeros(()), {})

    def after_step(self, progress: float) -> None:
        """What is not trained by gradient: the codes. ``progress`` in [0, 1] after the step."""
        if self.codebook is not None:
            self.codebook.after_step(progress)

    def _quantise(self, found: Tensor, config: VqConfig) -> Squeezed:
        assert self.codebook is not None
        z, ids, commitment, own = self.codebook(found)
        used = found.new_zeros(()) if ids is None else perplexity(ids, config.num_codes)  # 0: still continuous
        terms = {"commitment": commitment.detach(), "perplexity": used}
        return Squeezed(z, config.commitment * commitment + own, terms)

    def _noisy(self, found: Tensor, config: NoisyConfig) -> Squeezed:
        mean, log_variance = found.chunk(2, dim=-1)
        nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=-1).mean()
        z = mean
        if self.training:
            z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return Squeezed(z, config.kl_weight * nats, {"kl_nats": nats.detach()})

    def _sparse(self, found: Tensor, config: SparseConfig) -> Squeezed:
        if config.top_k is not None:
            kept = found.abs().topk(config.top_k, dim=-1).indices
            found = found * torch.zeros_like(found).scatter(-1, kept, 1.0)
        size = found.abs().mean()
        rows = found.flatten(0, -2)
        if not self.training or len(rows) < 2:  # no statistics of one action
            return Squeezed(found, config.weight * size, {"l1": size.detach(), "spread": size.new_zeros(())})
        total = len(rows) * process_place()[1]
        spread = (
            config.variance_weight * variance_term(rows, total=total)
            + config.covariance_weight * covariance_term(rows, total=total)
            + config.mean_weight * rows.mean(dim=0).square().mean()
        )
        return Squeezed(found, config.weight * size + spread, {"l1": size.detach(), "spread": spread.detach()})


def perplexity(ids: Tensor, num_codes: int) -> Tensor:
    """Exponential of the entropy of how often the codes ``ids`` (int64, any shape) are used: 1 to ``num_codes``."""
    share = F.one_hot(ids.flatten(), num_codes).float().mean(dim=0)
    return torch.special.entr(share).sum().exp()
