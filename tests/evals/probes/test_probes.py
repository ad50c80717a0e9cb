from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from evals.features.rows import Rows
from evals.probes import ProbeConfig, fit_probe, preprocess, sklearn_bridge
from jepa.features.features import attentive_pool
from jepa.types import TokenGrid

KINDS = ("linear", "attentive", "knn", "logistic")


def digits(train: int = 900) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, labels = sklearn_bridge.digit_images()
    x, y = torch.from_numpy(images).float().flatten(1), torch.from_numpy(labels)
    return x[:train], y[:train], x[1297:], y[1297:]


def tokens(clips: int, seed: int, separable: bool) -> tuple[Tensor, Tensor]:
    """Tokens ``[K, 8, 12]`` of four classes: the class shows in its own dimension, or in nothing at all."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (clips,), generator=generator)
    x = torch.randn(clips, 8, 12, generator=generator)
    if separable:
        x[torch.arange(clips), :, y] += 5.0
    return x, y


def small(kind: str) -> ProbeConfig:
    return ProbeConfig(
        kind=kind,
        penalties=(1.0, 10.0),
        neighbours=(5, 20),
        steps=80,
        learning_rates=(3e-3, 3e-2),
        weight_decays=(0.01, 0.3),
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_separable_features_score_one_and_random_labels_chance(kind: str) -> None:
    result = fit_probe(small(kind), *tokens(200, 0, True), *tokens(200, 1, True))
    assert result.accuracy == 1.0
    assert 0.15 < result.chance < 0.35
    result = fit_probe(small(kind), *tokens(200, 2, False), *tokens(400, 3, False))
    assert abs(result.accuracy - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5


def test_linear_probe_agrees_with_logistic_regression_on_digits() -> None:
    ours = fit_probe(ProbeConfig(kind="linear"), *digits())
    theirs = fit_probe(ProbeConfig(kind="logistic"), *digits())
    assert theirs.accuracy > 0.85
    assert abs(ours.accuracy - theirs.accuracy) < 2 * (ours.error**2 + theirs.error**2) ** 0.5
    assert ours.error == pytest.approx((ours.accuracy * (1 - ours.accuracy) / 500) ** 0.5)


@pytest.mark.parametrize("kind", ["attentive", "knn"])
def test_test_labels_never_reach_the_choice_of_a_head(kind: str) -> None:
    x, y = tokens(120, 0, True)
    x_test, y_test = tokens(60, 1, True)
    honest = fit_probe(small(kind), x, y, x_test, y_test)
    shuffled = fit_probe(small(kind), x, y, x_test, y_test.roll(1))
    assert shuffled.chosen == honest.chosen
    assert shuffled.heads == honest.heads
    assert torch.equal(shuffled.predictions, honest.predictions)
    assert shuffled.accuracy < honest.accuracy


def test_the_best_head_on_test_is_not_the_chosen_one() -> None:
    """Classes are separable and 60 : 40, but on test the labels are swapped: a head that only counts does better."""
    x, y = torch.randn(100, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0] * 60 + [1] * 40)
    x[:, 0] += 8.0 * y
    config = ProbeConfig(kind="logistic", penalties=(1e6, 1e-3))
    result = fit_probe(config, x, y, x[60:], torch.zeros(40, dtype=torch.int64))
    assert result.chosen == {"penalty": 1e-3}
    assert [head.accuracy for head in result.heads] == [0.6, 1.0]
    assert (result.head_predictions == 0).double().mean(dim=1).tolist() == [1.0, 0.0]
    assert result.accuracy == 0.0
    assert torch.equal(result.predictions, result.head_predictions[1])
    torch.testing.assert_close(result.probabilities.sum(dim=1), torch.ones(40))
    assert torch.equal(result.probabilities.argmax(dim=1), result.predictions)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_of_the_grid_end_as_if_each_were_alone(kind: str) -> None:
    config = small(kind)
    data = *tokens(100, 2, False), *tokens(60, 3, False)
    together = fit_probe(config, *data)
    assert together.head_predictions.shape == (len(config.settings()), 60)
    for number, setting in enumerate(config.settings()):
        alone = {
            "neighbours": (int(setting.get("neighbours", 1)),), "penalties": (setting.get("penalty", 1.0),),
            "learning_rates": (setting.get("learning_rate", 1.0),),
            "weight_decays": (setting.get("weight_decay", 1.0),),
        }  # fmt: skip
        single = fit_probe(ProbeConfig(kind=config.kind, steps=80, **alone), *data)
        assert (single.predictions == together.head_predictions[number]).double().mean() > 0.98


def test_test_features_do_not_shift_the_standardisation() -> None:
    x, y = tokens(120, 0, True)
    x_test, y_test = tokens(60, 1, True)
    together = fit_probe(small("linear"), x, y, x_test, y_test).predictions
    outlier = torch.cat((x_test, torch.full_like(x_test[:1], 1e4)))
    apart = fit_probe(small("linear"), x, y, outlier, torch.cat((y_test, y_test[:1]))).predictions
    assert torch.equal(together, apart[:-1])


def test_same_seed_same_result_and_scores_cover_the_grid() -> None:
    first, second = (fit_probe(small("attentive"), *tokens(100, 0, True), *tokens(50, 1, True)) for _ in range(2))
    for mine, other in zip(
        first._replace(seconds=0.0, head=None), second._replace(seconds=0.0, head=None), strict=True
    ):
        assert torch.equal(mine, other) if isinstance(mine, Tensor) else mine == other
    assert [h.setting for h in first.heads] == small("attentive").settings()
    best = max(h.accuracy for h in first.heads)
    assert next(h for h in first.heads if h.setting == first.chosen).accuracy == best


def test_attentive_probe_needs_standardised_features() -> None:
    def scaled(clips: int, seed: int) -> tuple[Tensor, Tensor]:
        x, y = tokens(clips, seed, True)
        return torch.randn(12, generator=torch.Generator().manual_seed(9)) + 1e-3 * x, y

    raw = ProbeConfig(kind="attentive", steps=60, learning_rates=(1e-3, 3e-3), weight_decays=(0.01,), standardise=False)
    assert fit_probe(raw, *scaled(200, 0), *scaled(200, 1)).accuracy < 0.6
    assert fit_probe(small("attentive"), *scaled(200, 0), *scaled(200, 1)).accuracy == 1.0


def test_standardiser_matches_plain_statistics_and_ignores_constant_dimensions() -> None:
    x = torch.randn(300, 7, 5) * torch.tensor([1.0, 10.0, 0.1, 1.0, 0.0]) + 100.0
    rows = torch.arange(0, 300, 2)
    mean, inverse = preprocess.standardiser(x[part] for part in rows.split(64))
    flat = x[rows].flatten(0, 1)
    torch.testing.assert_close(mean, flat.mean(dim=0))
    torch.testing.assert_close(inverse[:4], 1 / flat.std(dim=0, correction=0)[:4], rtol=1e-4, atol=0.0)
    assert inverse[4] == 0


def test_split_is_stratified_disjoint_and_complete() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10 + [2])
    fit, held = preprocess.split_rows(labels, 0.2, seed=0)
    assert torch.equal(torch.cat((fit, held)).sort().values, torch.arange(61))
    assert torch.bincount(labels[held], minlength=3).tolist() == [10, 2, 0]


def test_token_pool_averages_cells_of_the_grid() -> None:
    grid = TokenGrid(2, 4, 2)
    x = torch.randn(3, grid.size, 5)
    rows = Rows.of(x)
    pool = preprocess.arrangement(True, rows.shape, (1, 2, 2), grid)
    pooled = preprocess.Inputs(rows, rows.device, pool)
    assert pooled.shape == (3, 1, 4, 5)
    found = torch.cat(list(pooled.chunks(torch.arange(3))))
    lattice = x.view(3, 2, 4, 2, 5)
    torch.testing.assert_close(found[:, 0, 3], lattice[:, 1, 2:4, 0:2].mean(dim=(1, 2)))
    with pytest.raises(ValueError, match="must divide the token grid"):
        preprocess.arrangement(True, rows.shape, (1, 3, 1), grid)


def test_bad_features_are_refused() -> None:
    x, y = tokens(40, 0, True)
    config = small("linear")
    with pytest.raises(ValueError, match="NaN or infinity"):
        fit_probe(config, x * float("nan"), y, x, y)
    with pytest.raises(ValueError, match="single class"):
        fit_probe(config, x, torch.zeros_like(y), x, y)
    with pytest.raises(ValueError, match="negative"):
        fit_probe(config, x, y - 1, x, y)
    with pytest.raises(ValueError, match="differ in shape"):
        fit_probe(config, x, y, x[:, :4], y)
    with pytest.raises(ValueError, match="holdout"):
        ProbeConfig(holdout=0.0)


@pytest.mark.parametrize(("depth", "queries", "pool"), [(1, 1, (1, 1, 1)), (3, 2, (2, 1, 2))])
def test_the_chosen_head_can_be_kept(depth: int, queries: int, pool: tuple[int, int, int]) -> None:
    grid = TokenGrid(2, 2, 2)
    (x, y), (x_test, y_test) = tokens(60, 0, True), tokens(30, 1, True)
    config = replace(small("attentive"), steps=6, depth=depth, queries=queries, token_pool=pool, batch_size=32)
    result = fit_probe(config, 3 * x + 1, y, 3 * x_test + 1, y_test, grid)
    assert result.head is not None
    torch.testing.assert_close(result.head(3 * x_test + 1).softmax(dim=-1), result.probabilities, rtol=1e-4, atol=1e-5)
    assert attentive_pool(result.head, x_test).shape == (30, queries * 12)
    assert fit_probe(small("knn"), x, y, x_test, y_test).head is None


def test_one_clip_of_each_class_is_fitted_by_the_middle_head() -> None:
    x, y = tokens(200, 0, True)
    first = torch.stack([(y == label).nonzero()[0, 0] for label in range(4)])
    for kind in KINDS:
        result = fit_probe(small(kind), x[first], y[first], x, y)
        settings = small(kind).settings()
        assert result.chosen == settings[len(settings) // 2]
        assert [(head.accuracy, head.loss) for head in result.heads] == [(None, None)] * len(settings)
        assert result.accuracy > 0.5


# ---- against scikit-learn and plain numpy ----------------------------------------------------------------------------


def overlapping() -> tuple[Tensor, Tensor, Tensor]:
    """Three classes that no line separates: features ``[240, 4]`` with labels, and 60 queries."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(240) % 3
    x = torch.randn(240, 4, generator=generator) + 0.8 * torch.eye(3, 4)[y]
    return x, y, torch.randn(60, 4, generator=generator)


def test_a_long_linear_probe_is_logistic_regression_without_penalty() -> None:
    x, y, queries = overlapping()
    config = ProbeConfig(learning_rates=(0.03,), weight_decays=(0.0,), steps=1500, batch_size=240)
    ours = fit_probe(config, x, y, queries, torch.zeros(60, dtype=torch.int64)).probabilities
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=5000).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(ours.numpy(), model.predict_proba(queries.numpy()), atol=1e-3)


def test_logistic_is_newtons_minimum_in_float64() -> None:
    """Sum of losses + penalty / 2 |W|^2, biases free, minimised by Newton's method on all parameters at once."""
    x, y, queries = overlapping()
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    data, asked = (torch.cat(((z - mean) / std, torch.ones(len(z), 1)), dim=1).double() for z in (x, queries))
    penalty = 3.0
    ridge = torch.diag(torch.tensor([penalty] * 4 + [0.0])).double()

    def loss(flat: Tensor) -> Tensor:
        weights = flat.view(5, 3)
        logs = (data @ weights).log_softmax(dim=1)
        return -logs[torch.arange(240), y].sum() + 0.5 * (weights * (ridge @ weights)).sum()

    flat = torch.zeros(15, dtype=torch.float64)
    for _ in range(12):
        slope, bend = torch.func.grad(loss)(flat), torch.autograd.functional.hessian(loss, flat)
        flat = flat - torch.linalg.lstsq(bend, slope[:, None], driver="gelsd").solution[:, 0]  # biases share a shift
    assert torch.func.grad(loss)(flat).abs().max() < 1e-9
    result = fit_probe(
        ProbeConfig(kind="logistic", penalties=(penalty,)), x, y, queries, torch.zeros(60, dtype=torch.int64)
    )
    expected = (asked @ flat.view(5, 3)).softmax(dim=1)
    torch.testing.assert_close(result.probabilities.double(), expected, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("count", [1, 7, 500])
def test_knn_is_brute_force(count: int) -> None:
    """Cosine distances to all rows, the nearest ``count`` vote with the inverse of their distance."""
    x, y, queries = (part.numpy() for part in overlapping())
    mean, std = x.mean(axis=0), x.std(axis=0)
    bank, asked = ((z - mean) / std for z in (x, queries))
    unit, other = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (bank, asked))
    distances = 1 - other.astype(np.float64) @ unit.astype(np.float64).T
    votes = np.zeros((60, 3))
    for row, distance in enumerate(distances):
        for near in np.argsort(distance)[:count]:
            votes[row, y[near]] += 1 / distance[near]
    found = fit_probe(
        ProbeConfig(kind="knn", neighbours=(count,)), *(torch.from_numpy(z) for z in (x, y, queries)),
        torch.zeros(60, dtype=torch.int64),
    )  # fmt: skip
    np.testing.assert_allclose(found.probabilities, votes / votes.sum(axis=1, keepdims=True), rtol=1e-3, atol=1e-5)


# ---- what cannot be probed -------------------------------------------------------------------------------------------


def test_impossible_settings_are_refused() -> None:
    for bad, words in (
        ({"depth": 0}, "depth and queries must be at least 1"),
        ({"queries": 0}, "depth and queries must be at least 1"),
        ({"mlp_ratio": 0.0}, "mlp_ratio positive"),
        ({"attention_heads": 0}, "attention_heads 0"),
        ({"learning_rates": ()}, "learning_rates is empty"),
        ({"neighbours": ()}, "neighbours is empty"),
        ({"penalties": ()}, "penalties is empty"),
        ({"steps": 0}, "steps must be at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            ProbeConfig(kind="attentive", **bad)  # type: ignore[arg-type]


def test_impossible_features_and_labels_are_refused() -> None:
    x, y = tokens(40, 0, True)
    config = small("attentive")
    for arguments, words in (
        ((x, y[:-1], x, y), r"training features must be at least 2 clips with one label each"),
        ((x, y[:, None], x, y), r"labels \(40, 1\)"),
        ((x, y, x[:0], y[:0]), "test features must be at least 1 clips"),
        ((x, y.float(), x, y), "class numbers from 0, int64; got torch.float32"),
        ((x[0, 0], y, x, y), r"features must be \[K, D\]"),
        ((x, y, x[..., :5], y), r"differ in shape: \(tokens, width\) \(8, 12\), \(8, 5\)"),
    ):
        with pytest.raises(ValueError, match=words):
            fit_probe(config, *arguments)
    with pytest.raises(ValueError, match="a label is 3, but there are 3 classes"):
        fit_probe(config, x, y, x, y, num_classes=3)
    broken = x.clone()
    broken[33, 2, 5] = float("inf")
    for kind in KINDS:
        with pytest.raises(ValueError, match="the training features hold NaN or infinity"):
            fit_probe(small(kind), broken, y, x, y)
        with pytest.raises(ValueError, match="the test features hold NaN or infinity"):
            fit_probe(replace(small(kind), steps=1), x, y, broken, y)
