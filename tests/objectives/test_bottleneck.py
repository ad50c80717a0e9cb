"""Bottlenecks: values and gradients against plain formulas, the life of a codebook, and exact continuation."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from jepa.config import ConfigError
from jepa.objectives.bottleneck import (
    Bottleneck,
    BottleneckConfig,
    NoisyConfig,
    NoneConfig,
    SparseConfig,
    VqConfig,
    ZeroConfig,
    perplexity,
)
from jepa.objectives.kmeans import nearest

WIDTH = 6


def bottleneck(config: BottleneckConfig) -> Bottleneck:
    torch.manual_seed(0)
    return Bottleneck(config, WIDTH)


def features(rows: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(rows, 3, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_none_is_a_projection_and_null_says_nothing() -> None:
    x = features()
    free = bottleneck(NoneConfig(dim=4))
    assert isinstance(free.proj, nn.Linear)
    found = free(x)
    torch.testing.assert_close(found.z, x @ free.proj.weight.T + free.proj.bias)
    assert (float(found.loss), found.terms) == (0, {})
    null = bottleneck(ZeroConfig(dim=2))
    assert torch.equal(null(x).z, torch.zeros(32, 3, 2))
    assert list(null.parameters()) == []


def test_noise_costs_its_divergence() -> None:
    model, x = bottleneck(NoisyConfig(dim=4, kl_weight=0.3)), features()
    assert isinstance(model.proj, nn.Linear)
    mean, log_variance = model.proj(x).chunk(2, dim=-1)
    known = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0, 1)).sum(dim=-1).mean()
    found = model(x)
    torch.testing.assert_close(found.terms["kl_nats"], known.detach())
    torch.testing.assert_close(found.loss, 0.3 * known)
    many = torch.stack([model(x).z for _ in range(2000)])
    torch.testing.assert_close(many.mean(dim=0), mean, atol=0.15, rtol=0)
    torch.testing.assert_close(many.std(dim=0), (0.5 * log_variance).exp(), atol=0.15, rtol=0.1)
    model.eval()
    assert torch.equal(model(x).z, mean)


def test_sparse_terms() -> None:
    config = SparseConfig(dim=4, weight=0.5, variance_weight=2, covariance_weight=3, mean_weight=5)
    model, x = bottleneck(config), features()
    assert isinstance(model.proj, nn.Linear)
    z = model.proj(x)
    rows = z.detach().flatten(0, 1).numpy()
    covariance = torch.from_numpy(np.cov(rows.T)).float()
    hinge = (1 - (covariance.diagonal() + 1e-4).sqrt()).clamp(min=0).mean()
    off = (covariance - covariance.diagonal().diag()).square().sum() / 4
    mean = torch.from_numpy(rows).mean(dim=0).square().mean()
    found = model(x)
    torch.testing.assert_close(found.z, z)
    torch.testing.assert_close(found.loss.detach(), 0.5 * z.detach().abs().mean() + 2 * hinge + 3 * off + 5 * mean)
    top = bottleneck(SparseConfig(dim=4, top_k=1))(x).z
    assert ((top != 0).sum(dim=-1) == 1).all()
    torch.testing.assert_close(top.abs().amax(dim=-1), z.abs().amax(dim=-1))


def test_without_the_spread_terms_sparse_actions_shrink_and_with_them_they_do_not() -> None:
    sizes = []
    for spread in (0.0, 1.0):
        model = bottleneck(
            SparseConfig(dim=4, weight=0.1, variance_weight=spread, covariance_weight=0, mean_weight=spread)
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        for step in range(150):
            optimizer.zero_grad()
            model(features(seed=step)).loss.backward()
            optimizer.step()
        sizes.append(model(features()).z.std(dim=(0, 1)).mean().item())
    assert sizes[0] < 0.1
    assert sizes[1] > 0.7


def vq(**changes: Any) -> Bottleneck:
    return bottleneck(VqConfig(**{"num_codes": 4, "dim": 3, "warmup": 0.25, "pool": 64, **changes}))


def four_places(seed: int, rows: int = 32) -> Tensor:
    """Features around four places far apart, each as often."""
    centres = 5 * torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
    order = torch.arange(rows * 3).view(rows, 3) % 4
    return centres[order] + 0.05 * features(rows, seed)


def test_codes_begin_as_the_clusters_of_the_warm_up() -> None:
    model = vq()
    book = model.codebook
    assert book is not None
    assert not book.is_active()
    for step in range(3):
        found = model(four_places(step))
        assert found.z.requires_grad
        assert float(found.terms["perplexity"]) == 0
        book.after_step((step + 1) / 10)
        assert book.is_active() == (step == 2)  # 0.3 is the first at 0.25 or above
    found = model(four_places(7))
    ids = nearest(found.z, book.codes)
    assert torch.equal(found.z, book.codes[ids])
    assert torch.equal(ids.flatten()[:4].unique(), torch.arange(4))
    assert float(found.terms["perplexity"]) == pytest.approx(4)
    assert isinstance(model.proj, nn.Linear)
    assert (found.z - model.proj(four_places(7))).abs().max() < 0.3


def test_codes_that_begin_at_random_stay_unused_unless_they_are_revived() -> None:
    x, found = four_places(0) * 10 + 100, []
    for revive_below in (0.0, 0.3):
        model = vq(warmup=0.0, decay=0.9, revive_below=revive_below)
        for step in range(40):
            torch.manual_seed(step)
            model(x)
            model.after_step(step / 40)
        found.append(float(model(x).terms["perplexity"]))
    assert found[0] < 2
    assert found[1] > 3


def test_the_gradient_goes_straight_through() -> None:
    model = vq(warmup=0.0, commitment=0.5)
    book, x = model.codebook, features()
    assert book is not None
    assert isinstance(model.proj, nn.Linear)
    found = model(x)
    weight = torch.randn_like(found.z)
    (found.z * weight).sum().backward()
    torch.testing.assert_close(model.proj.bias.grad, weight.sum(dim=(0, 1)))
    model.zero_grad()
    model(x).loss.backward()
    z = model.proj(x)
    off = z - book.codes[nearest(z, book.codes)]
    torch.testing.assert_close(found.terms["commitment"], off.square().mean().detach())
    torch.testing.assert_close(model.proj.bias.grad, 0.5 * 2 * off.sum(dim=(0, 1)).detach() / off.numel())


def test_ema_codes_follow_the_means_of_their_actions() -> None:
    model = vq(warmup=0.0, decay=0.5, revive_below=0.0)
    book = model.codebook
    assert book is not None
    counts, sums, codes = book.counts.clone(), book.sums.clone(), book.codes.clone()
    for step in range(3):
        z = model.proj(features(seed=step)).detach().flatten(0, 1)  # type: ignore[misc]
        ids = nearest(z, codes)
        for k in range(4):
            counts[k] = 0.5 * counts[k] + 0.5 * (ids == k).sum()
            sums[k] = 0.5 * sums[k] + 0.5 * z[ids == k].sum(dim=0)
        codes = sums / counts[:, None]
        model(features(seed=step))
        model.after_step(0.1)
    torch.testing.assert_close(book.codes, codes)


def test_loss_codes_have_a_gradient_in_every_step() -> None:
    model = vq(update="loss")
    book = model.codebook
    assert book is not None
    assert isinstance(book.codes, nn.Parameter)
    model(features()).loss.backward()
    assert book.codes.grad is not None
    assert not book.codes.grad.any()
    model.after_step(0.5)
    z = model.proj(features()).detach()  # type: ignore[misc]
    ids = nearest(z, book.codes.detach())
    model.zero_grad()
    model(features()).loss.backward()
    known = torch.stack([2 * (book.codes[k].detach() - z[ids == k]).sum(dim=0) / z.numel() for k in range(4)])
    torch.testing.assert_close(book.codes.grad, known)


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_continued_run_is_the_same(stop: int) -> None:
    """Stopped before the codes begin, in the step in which they do, and after it."""

    def go_on(model: Bottleneck, first: int, last: int) -> None:
        for step in range(first, last):
            torch.manual_seed(step)  # as the training loop seeds every step
            model(four_places(step))
            model.after_step((step + 1) / 10)

    whole = vq()
    go_on(whole, 0, stop)
    state = copy.deepcopy(whole.state_dict())
    go_on(whole, stop, 8)
    other = vq()
    other(four_places(99))  # leaves something that must be forgotten
    other.load_state_dict(state)
    go_on(other, stop, 8)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_eval_collects_nothing() -> None:
    model = vq().eval()
    model(features())
    with torch.no_grad():
        model.train()(features())
    model.after_step(0.9)
    assert model.codebook is not None
    assert int(model.codebook.seen) == 0
    assert not model.codebook.is_active()


def test_the_pool_is_a_ring() -> None:
    model = vq(pool=40, warmup=0.9)
    seen = []
    for step in range(3):
        x = features(5, seed=step)
        seen.append(model.proj(x).detach().flatten(0, 1))  # type: ignore[misc]
        model(x)
        model.after_step(0.1)
    assert model.codebook is not None
    last = torch.cat(seen)[-40:]
    assert torch.equal(model.codebook.pool.sort(dim=0).values, last.sort(dim=0).values)
    model(features(32))  # more in one step than the pool holds
    model.after_step(0.2)
    whole = model.proj(features(32)).detach().flatten(0, 1)[-40:]  # type: ignore[misc]
    assert torch.equal(model.codebook.pool.sort(dim=0).values, whole.sort(dim=0).values)


def test_too_few_actions_for_the_codes() -> None:
    model = vq(num_codes=8, warmup=0.1)
    model(features(1))
    with pytest.raises(ConfigError, match="num_codes 8: only 3 actions were seen in the warm-up"):
        model.after_step(0.5)


def test_perplexity() -> None:
    assert float(perplexity(torch.tensor([0, 1, 2, 3]), 8)) == pytest.approx(4)
    assert float(perplexity(torch.zeros(5, dtype=torch.int64), 8)) == pytest.approx(1)
    assert float(perplexity(torch.tensor([0, 0, 0, 1]), 2)) == pytest.approx(1.7547, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (VqConfig, {"num_codes": 1}, "num_codes must be at least 2, not 1: one code says nothing"),
        (VqConfig, {"warmup": 1.0}, "warmup must lie in \\[0, 1\\), not 1.0"),
        (VqConfig, {"pool": 4}, "pool must hold at least num_codes 8 actions, not 4"),
        (VqConfig, {"commitment": -1}, "commitment must not be negative, but is -1"),
        (NoisyConfig, {"kl_weight": -1}, "kl_weight must not be negative, but is -1"),
        (SparseConfig, {"top_k": 20}, "top_k must be 1 to dim 16, not 20"),
        (SparseConfig, {"weight": -1}, "weight must not be negative, but is -1"),
        (NoneConfig, {"dim": 0}, "dim must be at least 1, not 0"),
    ],
)
def test_refused(kind: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**values)
