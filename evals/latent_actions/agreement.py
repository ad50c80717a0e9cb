"""How far inferred actions agree with true ones, read out from few labels.

Shape legend: N transitions, Z width of inferred actions, A width of true actions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
STILL = 0.1  # an action shorter than this share of their root mean square has no direction
DIRECTIONS = ("right", "up right", "up", "up left", "left", "down left", "down", "down right", "still")
WAYS = ("up", "down", "still")  # of actions along one axis


class Agreement(NamedTuple):
    """``labels`` true actions were known. ``r2``: share of the true actions' variance that ridge regression from
    inferred actions explains on all other transitions, mean over axes and draws; ``spread``: standard deviation over
    draws."""

    labels: int
    r2: float
    spread: float


def few_label_r2(inferred: Floats, true: Floats, labels: int, draws: int = 3, seed: int = 0) -> Agreement:
    """Ridge regression from ``inferred`` ``[N, Z]`` to ``true`` ``[N, A]`` on ``labels`` of the transitions, drawn
    ``draws`` times, scored on the others. Raises ``ValueError`` when no transition is left to score."""
    if not 2 <= labels < len(true):
        raise ValueError(
            f"latent_action.labels {labels}: must be at least 2 and leave some of the {len(true)} transitions to score"
        )
    scores = []
    for draw in range(draws):
        order = np.random.default_rng((seed, draw)).permutation(len(true))
        fit, rest = order[:labels], order[labels:]
        scores.append(r2(ridge(inferred[fit], true[fit], inferred[rest]), true[rest]))
    return Agreement(labels, float(np.mean(scores)), float(np.std(scores)))


def ridge(x: Floats, y: Floats, asked: Floats) -> Floats:
    """Predictions ``[M, A]`` at ``asked`` ``[M, Z]``, from ``x`` ``[N, Z]`` standardised and ``y`` ``[N, A]`` centred.

    The strength is, of 13 powers of ten, the one with the least leave-one-out error, which has a closed form
    (Golub, Heath and Wahba 1979).
    """
    mean, std = x.mean(axis=0), x.std(axis=0)
    x, asked = ((part - mean) / np.where(std > 1e-9, std, 1.0) for part in (x, asked))
    centre = y.mean(axis=0)
    left, sizes, right = np.linalg.svd(x, full_matrices=False)
    along = left.T @ (y - centre)
    best, chosen = np.inf, np.zeros((x.shape[1], y.shape[1]))
    for strength in 10.0 ** np.arange(-6, 7):
        shrink = sizes**2 / (sizes**2 + strength)
        # the mean is fitted, too: each row has 1 / N of a say in it
        lever = ((left**2) @ shrink + 1 / len(x)).clip(max=1 - 1e-9)
        error = ((((y - centre) - left @ (shrink[:, None] * along)) / (1 - lever)[:, None]) ** 2).mean()
        if error < best:
            best, chosen = error, right.T @ ((sizes / (sizes**2 + strength))[:, None] * along)
    return asked @ chosen + centre


def r2(predicted: Floats, true: Floats) -> float:
    """1 - squared error / variance of ``true`` ``[N, A]``, mean over the axes that vary at all."""
    varies = true.std(axis=0) > 1e-9
    if not varies.any():
        raise ValueError("the true actions never change: there is nothing to agree with")
    left = ((predicted - true) ** 2).sum(axis=0)[varies]
    return float((1 - left / ((true - true.mean(axis=0)) ** 2).sum(axis=0)[varies]).mean())


def directions(actions: Floats, axes: tuple[int, int] = (0, 1)) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """True actions ``[N, A]`` as classes and their names: eight directions in the plane of ``axes`` (the first to the
    right, the second up) and "still"; up, down and still where there is one axis."""
    if actions.shape[1] == 1:
        x, limit = actions[:, 0], STILL * np.sqrt((actions**2).mean())
        return np.where(np.abs(x) <= limit, 2, np.where(x > 0, 0, 1)), WAYS
    if max(axes) >= actions.shape[1] or min(axes) < 0 or axes[0] == axes[1]:
        raise ValueError(f"latent_action.axes must be two of the {actions.shape[1]} axes of actions, not {list(axes)}")
    plane = actions[:, list(axes)]
    size = np.linalg.norm(plane, axis=1)
    sector = np.round(np.arctan2(plane[:, 1], plane[:, 0]) / (np.pi / 4)).astype(np.int64) % 8
    return np.where(size <= STILL * np.sqrt((size**2).mean()), 8, sector), DIRECTIONS


def contingency(a: NDArray[np.int64], b: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.int64]:
    """How often class ``a`` goes with class ``b``: int64 of ``shape``."""
    return np.bincount(a * shape[1] + b, minlength=shape[0] * shape[1]).reshape(shape)


def mutual_information(counts: NDArray[np.int64]) -> float:
    """Normalised mutual information of a table of ``counts``: over the mean of both entropies, 0 (independent, or
    everything in one class) to 1 (each determines the other)."""
    joint = counts / counts.sum()
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)

    def entropy(shares: Floats) -> float:
        used = shares[shares > 0]
        return float(-(used * np.log(used)).sum())

    both = entropy(rows) + entropy(columns)
    return 2 * (both - entropy(joint.ravel())) / both if both > 1e-12 else 0.0
