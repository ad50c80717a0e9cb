"""Six measures of inferred actions, each of which can be fooled alone.

An action that copies the next frame predicts perfectly, and is found by its leakage; one that says nothing leaks
nothing, and is found by its prediction error, by controllability and by its perplexity.

Shape legend: N clips, T frames, n tokens of a frame, D latent width, Z action width, A width of true actions, K codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CHUNK = 32  # clips at once


class ActionModel(Protocol):
    """``infer``: latents ``[N, T, n, D]`` to actions ``[N, T-1, Z]``, of which action k depends on frames up to k + 1
    alone. ``predict``: latents ``[N, T, n, D]`` and actions ``[N, T, Z]`` to the next frame's latents ``[N, T, n, D]``
    after each step. ``codes``: the ``[K, Z]`` vectors that actions are chosen from, or None."""

    @property
    def codes(self) -> Tensor | None: ...

    def infer(self, latents: Tensor) -> Tensor: ...

    def predict(self, latents: Tensor, actions: Tensor) -> Tensor: ...


class Errors(NamedTuple):
    """Mean absolute errors of predicted latents, per number of a latent.

    ``inferred``: each step's own inferred action. ``zero``: the action 0. ``copy``: the last frame again, no model.
    ``shuffled``: the inferred action of the same step of another clip. ``random``: a code drawn evenly (None where
    there are no codes).
    """

    inferred: float
    zero: float
    copy: float
    shuffled: float
    random: float | None

    @property
    def controllability(self) -> float:
        """Share of the error that the right action takes away: 1 - inferred / wrong, where wrong is ``random``, or
        ``shuffled`` without codes. 0: predictions do not listen to the action; 1: the right action says all."""
        wrong = self.shuffled if self.random is None else self.random
        return 1 - self.inferred / wrong if wrong > 0 else 0.0


@torch.inference_mode()
def prediction_errors(model: ActionModel, latents: Tensor, actions: Tensor, seed: int = 0) -> Errors:
    """One step ahead, with all earlier frames known, on ``latents`` ``[N, T, n, D]``; ``actions`` ``[N, T-1, Z]`` are
    what ``model.infer`` makes of them."""
    generator = torch.Generator().manual_seed(seed)
    others = derangement(len(latents), generator).to(latents.device)
    kinds = {"inferred": actions, "zero": torch.zeros_like(actions), "shuffled": actions[others]}
    if model.codes is not None:
        drawn = torch.randint(len(model.codes), actions.shape[:2], generator=generator)
        kinds["random"] = model.codes[drawn.to(model.codes.device)].to(actions)

    def errors(rows: slice) -> Tensor:
        parts = (l1(model.predict(latents[rows, :-1], z[rows]), latents[rows, 1:]).mean(dim=1) for z in kinds.values())
        return torch.stack(list(parts), dim=-1)

    found = dict(zip(kinds, _means(errors, len(latents)), strict=True))
    copy = float(l1(latents[:, :-1], latents[:, 1:]).mean())
    return Errors(found["inferred"], found["zero"], copy, found["shuffled"], found.get("random"))


class Leakage(NamedTuple):
    """Across scene cuts: from a frame of one video straight to a frame of another.

    ``cut``: error of the prediction with the action inferred across the cut. ``blind``: with an action that knows
    nothing of the other video (that of the first video's own next frame). ``natural``: within the first video.
    """

    cut: float
    blind: float
    natural: float

    @property
    def leakage(self) -> float:
        """1 - cut / blind: how much of a frame that no action leads to the action carries over. 1: all of it (it is
        a copy); 0: nothing. Lower is better."""
        return 1 - self.cut / self.blind if self.blind > 0 else 0.0


@torch.inference_mode()
def leakage(model: ActionModel, latents: Tensor, videos: Tensor, seed: int = 0) -> Leakage:
    """Cuts between clips ``[N, T, n, D]`` of different ``videos`` (int64 ``[N]``), from frame 0 of one to frame 1 of
    the other. Raises ``ValueError`` when there is one video only.

    Source: the stitched videos of arXiv 2601.05230.
    """
    others = other_videos(videos.cpu(), torch.Generator().manual_seed(seed)).to(latents.device)

    def errors(rows: slice) -> Tensor:
        first, own, other = latents[rows, 0], latents[rows, 1], latents[others[rows], 1]
        across = model.predict(first[:, None], model.infer(torch.stack((first, other), dim=1)))[:, 0]
        within = model.predict(first[:, None], model.infer(torch.stack((first, own), dim=1)))[:, 0]
        return torch.stack((l1(across, other), l1(within, other), l1(within, own)), dim=-1)

    return Leakage(*_means(errors, len(latents)))


class Cycle(NamedTuple):
    """``forth``: error of one step A to B. ``back``: distance to A after the action of A to B and that of B to A."""

    forth: float
    back: float

    @property
    def ratio(self) -> float:
        """back / forth: near 1 where actions add up as movements do; large where an action means something else on a
        predicted frame than on a real one."""
        return self.back / self.forth if self.forth > 0 else float("inf") if self.back > 0 else 1.0


@torch.inference_mode()
def cycle(model: ActionModel, latents: Tensor) -> Cycle:
    """A -> B -> A over the first two frames of every clip ``[N, T, n, D]``: both actions are inferred from real frames,
    the second is applied to the prediction of the first."""

    def errors(rows: slice) -> Tensor:
        a, b = latents[rows, 0], latents[rows, 1]
        there = model.infer(torch.stack((a, b), dim=1))
        home = model.infer(torch.stack((b, a), dim=1))
        predicted = model.predict(a[:, None], there)
        returned = model.predict(torch.cat((a[:, None], predicted), dim=1), torch.cat((there, home), dim=1))[:, 1]
        return torch.stack((l1(predicted[:, 0], b), l1(returned, a)), dim=-1)

    return Cycle(*_means(errors, len(latents)))


def usage(actions: Tensor, codes: Tensor) -> tuple[NDArray[np.float64], float]:
    """How often each of ``codes`` ``[K, Z]`` is used by ``actions`` ``[N, T-1, Z]`` (shares ``[K]``), and the
    perplexity, exp of the entropy: 1 (one code for everything) to K (all alike)."""
    ids = code_ids(actions, codes)
    shares = np.bincount(ids, minlength=len(codes)) / len(ids)
    used = shares[shares > 0]
    return shares, float(np.exp(-(used * np.log(used)).sum()))


def code_ids(actions: Tensor, codes: Tensor) -> NDArray[np.int64]:
    """The nearest of ``codes`` ``[K, Z]`` to every action ``[..., Z]``, flat int64."""
    flat = actions.flatten(0, -2)
    return torch.cdist(flat.float(), codes.to(flat).float()).argmin(dim=1).cpu().numpy()


def derangement(count: int, generator: torch.Generator) -> Tensor:
    """A permutation of ``count`` >= 2 places that leaves none where it is: int64 ``[count]``."""
    if count < 2:
        raise ValueError(f"actions of other clips are needed, but there is {count} clip")
    order = torch.randperm(count, generator=generator)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def other_videos(videos: Tensor, generator: torch.Generator) -> Tensor:
    """For every clip a clip of another video, by the number of each clip's video ``[N]``: int64 ``[N]``."""
    different = videos[:, None] != videos[None]
    if not bool(different.any(dim=1).all()):
        raise ValueError("scene cuts need clips of at least 2 videos, but all clips are of one")
    return torch.multinomial(different.double(), 1, generator=generator)[:, 0]


def l1(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute error over tokens and width: ``[..., n, D]`` to ``[...]``."""
    return (predicted.float() - wanted.float()).abs().mean(dim=(-2, -1))


def _means(errors: Callable[[slice], Tensor], count: int) -> list[float]:
    parts = [errors(slice(first, first + _CHUNK)) for first in range(0, count, _CHUNK)]
    return torch.cat(parts).double().mean(dim=0).tolist()
