"""Probes on frozen features: linear, attentive, kNN, logistic. Heads are chosen on held-out training data.

Every probe goes the same way: (1) standardise each feature dimension with statistics of the clips it is fitted on,
(2) fit every head of the grid on a part of the training clips, (3) take the head that does best on the held-out
rest, (4) fit again on all training clips, (5) report that one head on the test clips, once. Test labels are read in
step 5 only. The other heads of the grid are fitted again too, so that the best of them on the test clips can be named
beside the honest number, as papers that choose on their test set report it; nothing is chosen by that.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evals import heads, metrics, preprocess, sklearn_bridge
from jepa.distributed import to_float64
from jepa.types import TokenGrid

Setting = dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """Which probe, and the grid of heads.

    ``kind``: "linear" (softmax regression on mean-pooled tokens, AdamW), "attentive" (cross-attention over all tokens,
    then linear, AdamW), "knn" or "logistic" (scikit-learn, on mean-pooled tokens).
    ``learning_rates`` x ``weight_decays`` is the grid of the first two (``None``: the kind's own), trained for
    ``steps`` batches of ``batch_size`` clips. ``neighbours`` is the grid of "knn", ``penalties`` of "logistic".
    ``holdout``: share of the training clips, class by class, on which the head is chosen. ``refit``: fit the
    heads again on all training clips. ``attention_heads``: of the attentive probe, lowered to a divisor of the width.
    ``token_pool``: average tokens over (time, rows, columns) before an attentive probe; (1, 1, 1) keeps all tokens.
    ``standardise`` False skips step 1 (for ablations: an attentive probe on low-variance features then stays at
    chance).
    """

    kind: Literal["linear", "attentive", "knn", "logistic"] = "linear"
    learning_rates: tuple[float, ...] | None = None
    weight_decays: tuple[float, ...] | None = None
    steps: int | None = None
    batch_size: int = 128
    holdout: float = 0.2
    refit: bool = True
    attention_heads: int = 4
    token_pool: tuple[int, int, int] = (1, 1, 1)
    neighbours: tuple[int, ...] = (3, 5, 10, 20, 40)
    penalties: tuple[float, ...] = (1e-1, 1.0, 1e1, 1e2, 1e3)
    standardise: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.holdout < 1.0:
            raise ValueError(f"holdout must lie between 0 and 1, not {self.holdout}: heads are chosen on that share")
        if self.batch_size < 1 or (self.steps is not None and self.steps < 1):
            raise ValueError(f"batch_size and steps must be at least 1, not {self.batch_size} and {self.steps}")
        if min(self.token_pool) < 1 or self.attention_heads < 1:
            raise ValueError(f"token_pool {self.token_pool} and attention_heads {self.attention_heads} must be >= 1")

    def settings(self) -> list[Setting]:
        """The grid, one dict of named numbers per head."""
        if self.kind == "knn":
            return [{"neighbours": k} for k in self.neighbours]
        if self.kind == "logistic":
            return [{"penalty": penalty} for penalty in self.penalties]
        rates, decays, _ = _GRIDS[self.kind]
        pairs = itertools.product(self.learning_rates or rates, self.weight_decays or decays)
        return [{"learning_rate": rate, "weight_decay": decay} for rate, decay in pairs]

    def num_steps(self) -> int:
        """Training steps of the gradient probes."""
        return self.steps or _GRIDS[self.kind][2]


# (learning rates, weight decays, steps) of the gradient probes
_GRIDS = {
    "linear": ((1e-3, 3e-3, 1e-2, 3e-2), (0.01, 0.1, 1.0, 3.0), 600),
    "attentive": ((3e-4, 1e-3, 3e-3, 1e-2), (0.01, 0.3), 250),
}


class HeadScore(NamedTuple):
    """One head of the grid on the held-out training clips: share of right answers, and mean cross-entropy (nats)."""

    setting: Setting
    accuracy: float
    loss: float


class ProbeResult(NamedTuple):
    """A probe's outcome. ``accuracy`` and ``chance`` (the commonest training class) are shares on the test clips;
    ``error`` is the standard error of ``accuracy``; ``heads`` are the grid's scores on held-out *training* clips and
    ``chosen`` the setting reported; ``predictions`` int64 ``[K_test]`` and ``probabilities`` float32 ``[K_test, C]``
    are the chosen head's, ``head_predictions`` int64 ``[G, K_test]`` those of every head of the grid."""

    kind: str
    accuracy: float
    error: float
    chance: float
    chosen: Setting
    heads: list[HeadScore]
    predictions: Tensor
    probabilities: Tensor
    head_predictions: Tensor
    num_train: int
    num_test: int
    num_classes: int
    seconds: float


def fit_probe(
    config: ProbeConfig,
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    grid: TokenGrid | None = None,
    num_classes: int | None = None,
) -> ProbeResult:
    """Fit a probe on frozen features.

    ``train`` and ``test``: tokens ``[K, N, D]`` or pooled features ``[K, D]``, on the device to train on; labels int64
    ``[K]``, 0-based. ``grid`` is needed when ``config.token_pool`` is not (1, 1, 1). Deterministic for a given
    ``config.seed`` on CPU. Raises ``ValueError`` when the shapes, the labels or the number of clips cannot work.
    """
    began = time.perf_counter()
    classes = preprocess.check(train, train_labels, test, test_labels, num_classes)
    x_train, x_test = (
        preprocess.arrange(x, config.kind == "attentive", config.token_pool, grid) for x in (train, test)
    )
    fit_rows, held_rows = preprocess.split_rows(train_labels, config.holdout, config.seed)
    settings = config.settings()
    fitted = _fit(config, settings, x_train, train_labels, fit_rows, classes)
    scores = _score(settings, fitted(x_train, held_rows), train_labels[held_rows])
    best = max(range(len(settings)), key=lambda g: (scores[g].accuracy, -scores[g].loss))
    if config.refit:
        fitted = _fit(config, settings, x_train, train_labels, torch.arange(len(x_train)), classes)
    head_predictions, probabilities = _predict(fitted, x_test, best)
    predictions, labels = head_predictions[best], test_labels.cpu()
    accuracy = metrics.accuracy(predictions, labels)
    return ProbeResult(
        kind=config.kind,
        accuracy=accuracy,
        error=metrics.standard_error(accuracy, len(labels)),
        chance=metrics.chance(train_labels.cpu(), labels),
        chosen=settings[best],
        heads=scores,
        predictions=predictions,
        probabilities=probabilities,
        head_predictions=head_predictions,
        num_train=len(x_train),
        num_test=len(labels),
        num_classes=classes,
        seconds=time.perf_counter() - began,
    )


class _Fitted(NamedTuple):
    """Heads with the statistics of the clips they were fitted on; calling it gives log-probabilities [G, K, C]."""

    predict: functools.partial[Tensor]
    mean: Tensor
    inverse: Tensor

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        parts = [(x[part.to(x.device)].float() - self.mean) * self.inverse for part in rows.split(256)]
        with torch.inference_mode():
            return torch.cat([self.predict(part) for part in parts], dim=1)


def _predict(fitted: _Fitted, x: Tensor, best: int) -> tuple[Tensor, Tensor]:
    """Classes ``[G, K]`` by every head, and probabilities ``[K, C]`` by the chosen one; in parts, for many classes."""
    classes, probabilities = [], []
    for rows in torch.arange(len(x)).split(256):
        scores = fitted(x, rows)
        classes.append(scores.argmax(dim=-1).cpu())
        probabilities.append(scores[best].softmax(dim=-1).float().cpu())  # the votes of kNN were floored: sum to 1
    return torch.cat(classes, dim=1), torch.cat(probabilities)


def _fit(config: ProbeConfig, settings: list[Setting], x: Tensor, y: Tensor, rows: Tensor, classes: int) -> _Fitted:
    if config.standardise:
        mean, inverse = preprocess.standardiser(x, rows)
    else:
        mean, inverse = (torch.full(x.shape[-1:], value, device=x.device) for value in (0.0, 1.0))
    if config.kind in ("knn", "logistic"):
        bank = (x[rows.to(x.device)].float() - mean) * inverse
        predict = functools.partial(_classical, settings, bank, y[rows.to(y.device)], classes)
        return _Fitted(predict, mean, inverse)
    forward, start = _architecture(config, x.shape[-1], classes)
    params = {
        name: p.to(x.device)[None].repeat(len(settings), *[1] * p.dim()).requires_grad_() for name, p in start.items()
    }
    rates, decays = (
        torch.tensor([s[name] for s in settings], device=x.device) for name in ("learning_rate", "weight_decay")
    )
    optimizer = heads.HeadAdamW(params, rates, decays)
    batches = _batches(rows, config.batch_size, config.seed + 1)
    for step in range(config.num_steps()):
        part = next(batches).to(x.device)
        logits = forward(params, (x[part].float() - mean) * inverse)
        target = y[part.to(y.device)].to(x.device).expand(len(settings), -1)
        # a mean over clips and a sum over heads: no head's gradient depends on another head
        F.cross_entropy(logits.flatten(0, 1), target.flatten()).mul(len(settings)).backward()
        optimizer.step(schedule(step, config.num_steps()))
    return _Fitted(functools.partial(_log_probabilities, forward, params), mean, inverse)


def _batches(rows: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of row numbers: every pass over ``rows`` in a new random order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from rows[torch.randperm(len(rows), generator=generator)].split(size)


def schedule(step: int, steps: int) -> float:
    """Linear warm-up over the first twentieth, then half a cosine to zero."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _architecture(config: ProbeConfig, width: int, classes: int) -> tuple[heads.Forward, heads.Params]:
    if config.kind == "linear":
        return heads.linear_forward, heads.linear_params(width, classes, config.seed)
    count = max(m for m in range(1, min(config.attention_heads, width) + 1) if width % m == 0)
    start = heads.attentive_params(width, classes, config.seed)
    return functools.partial(heads.attentive_forward, num_heads=count), start


def _log_probabilities(forward: heads.Forward, params: heads.Params, x: Tensor) -> Tensor:
    return forward(params, x).log_softmax(dim=-1)


def _classical(settings: list[Setting], bank: Tensor, labels: Tensor, classes: int, x: Tensor) -> Tensor:
    """The scikit-learn probes, as log-probabilities [G, K, C] (floored at 1e-6: a vote can be unanimous and wrong)."""
    data = (bank.cpu().numpy(), labels.cpu().numpy(), x.cpu().numpy(), classes)
    found = [
        sklearn_bridge.knn(*data, neighbours=int(s["neighbours"]))
        if "neighbours" in s
        else sklearn_bridge.logistic(*data, penalty=s["penalty"])
        for s in settings
    ]
    return torch.stack([torch.from_numpy(f.probabilities) for f in found]).clamp_min(1e-6).log()


def _score(settings: list[Setting], log_probabilities: Tensor, labels: Tensor) -> list[HeadScore]:
    labels = labels.to(log_probabilities.device)
    right = to_float64(log_probabilities.argmax(dim=-1) == labels).mean(dim=1).tolist()
    loss = [F.nll_loss(row, labels).item() for row in log_probabilities]
    return [HeadScore(s, a, b) for s, a, b in zip(settings, right, loss, strict=True)]
