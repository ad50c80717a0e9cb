"""Reading true states from latents: ridge regression, and the share of the states' variance that it explains.

Shape legend: N frames, F features, S state coordinates, E episodes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STRENGTHS = tuple(10.0**k for k in range(-8, 4))  # times the number of frames; features are standardised
HELD_OUT = 0.2  # share of the training episodes that choose the strength
_STILL = 1e-6  # a coordinate whose spread is less than this share of its size never moves
_DRAWS = 2000


class Readout(NamedTuple):
    """A linear map of standardised features to states; ``strengths``: those that were chosen, one per coordinate."""

    mean: Tensor
    std: Tensor
    weights: Tensor
    bias: Tensor
    strengths: list[float]

    def __call__(self, features: Tensor) -> Tensor:
        """``[N, F]`` to states ``[N, S]``, float64."""
        return (features.double() - self.mean) / self.std @ self.weights + self.bias


def fit_readout(features: Tensor, states: Tensor, episodes: Tensor, seed: int = 0) -> Readout:
    """Ridge regression from ``features`` ``[N, F]`` to ``states`` ``[N, S]`` of the frames of ``episodes`` ``[N]``.

    The strength is chosen for every coordinate by its error on a fifth of the episodes, which the regression has not
    seen; then all episodes are fitted. Raises ``ValueError`` for fewer than two episodes.
    """
    names = episodes.unique()
    if len(names) < 2:
        raise ValueError(f"a readout of states needs at least 2 episodes to learn from, not {len(names)}")
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    held = torch.isin(episodes, names[order[: max(1, round(HELD_OUT * len(names)))]])
    tried = ridges(features[~held], states[~held])
    errors = torch.stack([(one(features[held]) - states[held]).square().mean(dim=0) for one in tried])
    chosen = errors.argmin(dim=0).tolist()
    final = ridges(features, states)
    columns = range(states.shape[1])
    weights = torch.stack([final[k].weights[:, column] for k, column in zip(chosen, columns, strict=True)], dim=1)
    return final[0]._replace(weights=weights, strengths=[STRENGTHS[k] for k in chosen])


def ridges(features: Tensor, states: Tensor) -> list[Readout]:
    """A readout for each of ``STRENGTHS``, all from one eigendecomposition of whichever Gram matrix is smaller."""
    x, y = features.double(), states.double()
    mean, std, bias = x.mean(dim=0), x.std(dim=0, correction=0), y.mean(dim=0)
    std = torch.where(std > 1e-9, std, torch.ones_like(std))
    x, y = (x - mean) / std, y - bias
    wide = x.shape[1] > len(x)
    values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    along = vectors.T @ (y if wide else x.T @ y)
    back = x.T @ vectors if wide else vectors
    found = []
    for strength in STRENGTHS:
        weights = back @ (along / (values.clamp(min=0) + strength * len(x))[:, None])
        found.append(Readout(mean, std, weights, bias, [strength] * y.shape[1]))
    return found


class Score(NamedTuple):
    """``r2`` of every coordinate (None: it never moves), their ``mean``, and its 95 % bootstrap ``interval`` over
    episodes."""

    r2: list[float | None]
    mean: float
    interval: list[float]


def moves(states: Tensor) -> Tensor:
    """Which coordinates of ``[N, S]`` move at all: bool ``[S]``."""
    states = states.double()
    return states.std(dim=0, correction=0) > _STILL * states.abs().amax(dim=0).clamp(min=1e-6)


def score(read: Tensor, states: Tensor, episodes: Tensor, seed: int = 0) -> Score:
    """R2 of ``read`` ``[N, S]``: 1 - squared error / squared distance of ``states`` from their mean over all frames.

    ``episodes`` ``[N]``: which are redrawn as a whole for the interval. Raises ``ValueError`` where no coordinate
    moves.
    """
    moving = moves(states)
    if not bool(moving.any()):
        raise ValueError("the states of the test episodes never change: there is nothing to decode")
    true, guess = (part.double().cpu().numpy()[:, moving.cpu().numpy()] for part in (states, read))
    _, rows = np.unique(episodes.cpu().numpy(), return_inverse=True)
    count = int(rows.max()) + 1
    shifted = true - true.mean(axis=0)  # sums of squares about 0 would lose digits
    own = np.eye(count)[rows].T  # [E, N]: which frames are an episode's
    sums = _Sums(own @ (guess - true) ** 2, own @ shifted, own @ shifted**2, own.sum(axis=1, keepdims=True))
    rng = np.random.default_rng(seed)
    draws = np.stack([np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(_DRAWS)])
    drawn, exact = _r2(draws, sums), _r2(np.ones((1, count)), sums)[0]
    values = iter(exact.tolist())
    interval = np.nanquantile(drawn.mean(axis=1), (0.025, 0.975))
    return Score(
        [next(values) if is_moving else None for is_moving in moving.tolist()], float(exact.mean()), interval.tolist()
    )


class _Sums(NamedTuple):
    """Of the frames of each episode: squared errors, states, squared states ``[E, S]``, and their number ``[E, 1]``."""

    squares: NDArray[np.float64]
    states: NDArray[np.float64]
    spread: NDArray[np.float64]
    frames: NDArray[np.float64]


def _r2(weights: NDArray[Any], sums: _Sums) -> NDArray[np.float64]:
    """R2 ``[draws, S]`` where every episode counts as often as ``weights`` ``[draws, E]`` say; NaN where nothing moves
    among those that were drawn."""
    around = weights @ sums.spread - (weights @ sums.states) ** 2 / (weights @ sums.frames)
    fits = around > 1e-12 * (weights @ sums.spread).max(axis=0)
    return np.where(fits, 1 - weights @ sums.squares / np.where(fits, around, 1), np.nan)
