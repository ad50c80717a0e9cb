"""Probes on frozen features: linear, attentive, kNN, logistic. Heads are chosen on held-out training data.

Every probe goes the same way: (1) standardise each feature dimension with statistics of the clips it is fitted on,
(2) fit every head of the grid on a part of the training clips, (3) take the head that does best on the held-out
rest, (4) fit again on all training clips, (5) report that one head on the test clips, once. Test labels are read in
step 5 only. The other heads of the grid are fitted again too, so that the best of them on the test clips can be named
beside the honest number, as papers that choose on their test set report it; nothing is chosen by that.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from evals import metrics
from evals.features.rows import Rows
from evals.probes import heads, preprocess
from evals.probes.attentive import FittedProbe, attentive_head
from evals.probes.classical import ClassicalHeads
from evals.probes.fitting import GridHeads, Schedule, Setting, Standard, fit_grid
from jepa.models.attentive import AttentiveConfig
from jepa.types import TokenGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """Which probe, and the grid of heads.

    ``kind``: "linear" (softmax regression on mean-pooled tokens, AdamW), "attentive" (learned queries ask all tokens,
    then linear, AdamW), "knn" or "logistic" (scikit-learn, on mean-pooled tokens), or "published": the attentive probe
    in ``file``, or of that name in ``jepa models``, as it is (``evals.probes.published``).
    ``learning_rates`` x ``weight_decays`` is the grid of the first two (``None``: the kind's own), trained for
    ``steps`` batches of ``batch_size`` clips. ``neighbours`` is the grid of "knn", ``penalties`` of "logistic".
    ``holdout``: share of the training clips, class by class, on which the head is chosen. ``refit``: fit the
    heads again on all training clips.
    The attentive probe is ``jepa.models.attentive.AttentiveProbe``: ``depth`` blocks, the last of cross-attention
    (1: V-JEPA, 4: V-JEPA 2), in which ``queries`` learned queries ask all tokens, whose answers stand side by side
    before the linear layer; ``attention_heads`` (4), lowered to a divisor of the width; ``mlp_ratio`` of every block.
    ``token_pool``: average tokens over (time, rows, columns) before it; (1, 1, 1) keeps all tokens.
    ``standardise`` False skips step 1, as the published protocols do.
    """

    kind: Literal["linear", "attentive", "knn", "logistic", "published"] = "linear"
    file: str | None = None
    learning_rates: tuple[float, ...] | None = None
    weight_decays: tuple[float, ...] | None = None
    steps: int | None = None
    batch_size: int = 128
    holdout: float = 0.2
    refit: bool = True
    depth: int = 1
    queries: int = 1
    attention_heads: int | None = None
    mlp_ratio: float = 4.0
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
        if min(self.token_pool) < 1 or (self.attention_heads is not None and self.attention_heads < 1):
            raise ValueError(f"token_pool {self.token_pool} and attention_heads {self.attention_heads} must be >= 1")
        if (self.kind == "published") != (self.file is not None):
            raise ValueError(
                "the probe 'published' needs file: a published probe's weights, or its name in `jepa models`"
                if self.file is None
                else f"file is for the probe 'published', not for {self.kind!r}"
            )
        if self.depth < 1 or self.queries < 1 or self.mlp_ratio <= 0:
            raise ValueError(
                f"depth and queries must be at least 1 and mlp_ratio positive, not {self.depth}, {self.queries} and "
                f"{self.mlp_ratio:g}"
            )
        for name, (least, words) in _GRID_FIELDS.items():
            values = getattr(self, name)
            if values == ():
                raise ValueError(f"{name} is empty: a grid needs at least one value (null: the probe's own)")
            wrong = [value for value in values or () if not least <= value < math.inf]
            if wrong:
                raise ValueError(f"{name} must be {words}, not {wrong[0]:g}")

    def settings(self) -> list[Setting]:
        """The grid, one dict of named numbers per head."""
        if self.kind == "knn":
            return [{"neighbours": k} for k in self.neighbours]
        if self.kind == "logistic":
            return [{"penalty": penalty} for penalty in self.penalties]
        rates, decays, _ = _GRIDS[self.kind]
        pairs = itertools.product(self.learning_rates or rates, self.weight_decays or decays)
        return [{"learning_rate": rate, "weight_decay": decay} for rate, decay in pairs]

    @property
    def reads_tokens(self) -> bool:
        """Whether it sees all tokens of a clip, not one vector."""
        return self.kind in ("attentive", "published")

    def num_steps(self) -> int:
        """Training steps of the gradient probes."""
        return self.steps or _GRIDS[self.kind][2]


# (learning rates, weight decays, steps) of the gradient probes
_GRIDS = {
    "linear": ((1e-3, 3e-3, 1e-2, 3e-2), (0.01, 0.1, 1.0, 3.0), 600),
    "attentive": ((3e-4, 1e-3, 3e-3, 1e-2), (0.01, 0.3), 250),
}


_POSITIVE = (math.ulp(0.0), "positive numbers")
_GRID_FIELDS = {  # the least that a value may be, and in words
    "learning_rates": _POSITIVE, "weight_decays": (0.0, "numbers of at least 0"), "neighbours": (1, "at least 1"),
    "penalties": _POSITIVE,
}  # fmt: skip


class HeadScore(NamedTuple):
    """One head of the grid on the held-out training clips: share of right answers, and mean cross-entropy (nats); both
    None where nothing could be held out."""

    setting: Setting
    accuracy: float | None
    loss: float | None


class ProbeResult(NamedTuple):
    """A probe's outcome. ``accuracy`` and ``chance`` (the commonest training class) are shares on the test clips;
    ``error`` is the standard error of ``accuracy``; ``heads`` are the grid's scores on held-out *training* clips and
    ``chosen`` the setting reported; ``predictions`` int64 ``[K_test]`` and ``probabilities`` float32 ``[K_test, C]``
    are the chosen head's, ``head_predictions`` int64 ``[G, K_test]`` those of every head of the grid. ``head``: of an
    attentive probe the chosen head itself, which takes an encoder's tokens as they are."""

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
    head: FittedProbe | None = None


def fit_probe(
    config: ProbeConfig, train: Tensor | Rows, train_labels: Tensor, test: Tensor | Rows, test_labels: Tensor,
    grid: TokenGrid | None = None, num_classes: int | None = None, device: torch.device | None = None,
    memory_bytes: float = math.inf,
) -> ProbeResult:  # fmt: skip
    """Fit a probe on frozen features.

    ``train`` and ``test``: tokens ``[K, N, D]``, pooled features ``[K, D]``, several views of each clip
    ``[K, R, N, D]``, or ``Rows`` of them; labels int64 ``[K]``, 0-based. Training sees one view of a clip at a time,
    drawn at random; held-out and test clips are scored by the mean of the probabilities of their views, and kNN and
    logistic regression see the mean of their features. With one clip of each class nothing can be held out: then the
    middle head of the grid, as ``config.settings()`` lists it, is taken.

    ``device``: where to compute (default: where the features are). Training features of at most ``memory_bytes``
    are loaded there; of larger ones only what a step needs, and test features always a few clips at a time.
    ``grid`` is needed when ``config.token_pool`` is not (1, 1, 1). Deterministic for a given ``config.seed`` on CPU.
    Raises ``ValueError`` when the shapes, the labels or the number of clips cannot work.
    """
    began = time.perf_counter()
    rows, rows_test = Rows.of(train), Rows.of(test)
    classes = preprocess.check(rows, train_labels, rows_test, test_labels, num_classes)
    place = device or rows.device
    arranged = preprocess.arrangement(config.kind == "attentive", rows.shape, config.token_pool, grid)
    x, x_test = preprocess.Inputs(rows, place, arranged), preprocess.Inputs(rows_test, place, arranged, "test")
    x = x.load(memory_bytes)
    y, labels = train_labels.cpu(), test_labels.cpu()
    settings = config.settings()
    scores, best, fitted = [HeadScore(s, None, None) for s in settings], len(settings) // 2, None
    if int(torch.bincount(y).max()) > 1:
        fit_rows, held_rows = preprocess.split_rows(y, config.holdout, config.seed)
        fitted = _fit(config, settings, x, y, fit_rows, classes)
        right, loss = _score(len(settings), fitted, x, y, held_rows)
        scores = [HeadScore(*score) for score in zip(settings, right, loss, strict=True)]
        best = max(range(len(settings)), key=lambda g: (right[g], -loss[g]))
    if config.refit or fitted is None:
        fitted = _fit(config, settings, x, y, torch.arange(len(rows)), classes)
    head_predictions, probabilities = _predict(fitted, x_test, best)
    predictions = head_predictions[best]
    accuracy = metrics.accuracy(predictions, labels)
    return ProbeResult(
        kind=config.kind,
        accuracy=accuracy,
        error=metrics.standard_error(accuracy, len(labels)),
        chance=metrics.chance(y, labels),
        chosen=settings[best],
        heads=scores,
        predictions=predictions,
        probabilities=probabilities,
        head_predictions=head_predictions,
        num_train=len(y),
        num_test=len(labels),
        num_classes=classes,
        seconds=time.perf_counter() - began,
        head=_export(config, fitted, best, classes, grid),
    )


def _export(config: ProbeConfig, fitted: Fitted, best: int, classes: int, grid: TokenGrid | None) -> FittedProbe | None:
    if config.kind != "attentive":
        return None
    assert isinstance(fitted, GridHeads)
    shape = attentive_config(config, len(fitted.standard.mean), classes)
    return FittedProbe(shape, fitted.head(best), fitted.standard, grid, config.token_pool)


Fitted = Callable[[Tensor], Tensor]  # features [B, R, N, D] to log-probabilities [G, B, C]


def _predict(fitted: Fitted, x: preprocess.Inputs, best: int) -> tuple[Tensor, Tensor]:
    """Classes ``[G, K]`` by every head, and probabilities ``[K, C]`` by the chosen one."""
    classes, probabilities = [], []
    for part in x.chunks(torch.arange(len(x.rows))):
        scores = fitted(part)
        classes.append(scores.argmax(dim=-1).cpu())
        probabilities.append(scores[best].softmax(dim=-1).float().cpu())  # the votes of kNN were floored: sum to 1
    return torch.cat(classes, dim=1), torch.cat(probabilities)


def _fit(
    config: ProbeConfig, settings: list[Setting], x: preprocess.Inputs, y: Tensor, rows: Tensor, classes: int
) -> Fitted:
    width = x.shape[-1]
    if config.standardise:
        standard = Standard(*preprocess.standardiser(x.chunks(rows)))
    else:
        standard = Standard(*(torch.full((width,), value, device=x.device) for value in (0.0, 1.0)))
    if config.kind in ("knn", "logistic"):
        return ClassicalHeads.fit(settings, standard, x, y, rows, classes)
    head = _architecture(config, *x.shape[2:], classes)
    schedule = Schedule(config.num_steps(), config.batch_size, config.seed + 1)
    return fit_grid(head, settings, x, y, rows, schedule, standard)


def _architecture(config: ProbeConfig, tokens: int, width: int, classes: int) -> heads.Head:
    if config.kind == "linear":
        return heads.linear_head(width, classes)
    return attentive_head(attentive_config(config, width, classes), tokens, config.seed)


def attentive_config(config: ProbeConfig, width: int, classes: int) -> AttentiveConfig:
    """The shape of an attentive probe on tokens of this width: its attention heads are a divisor of it."""
    count = max(m for m in range(1, min(config.attention_heads or 4, width) + 1) if width % m == 0)
    return AttentiveConfig(
        embed_dim=width, num_heads=count, depth=config.depth, mlp_ratio=config.mlp_ratio, num_classes=classes,
        num_queries=config.queries,
    )  # fmt: skip


def _score(
    count: int, fitted: Fitted, x: preprocess.Inputs, y: Tensor, rows: Tensor
) -> tuple[list[float], list[float]]:
    """Share of right answers and mean cross-entropy on the clips ``rows``, of each of ``count`` heads."""
    right = loss = torch.zeros(count, dtype=torch.float64)
    done = 0
    for part in x.chunks(rows):
        scores, labels = fitted(part).cpu().double(), y[rows[done : done + len(part)]]
        right = right + (scores.argmax(dim=-1) == labels).sum(dim=1)
        loss = loss - scores[:, torch.arange(len(labels)), labels].sum(dim=1)
        done += len(part)
    return (right / done).tolist(), (loss / done).tolist()
