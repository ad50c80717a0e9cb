"""A grid of probe heads trained by AdamW as one computation, on features of any size, and what the heads then say.

G heads of the grid, B clips, R views, N tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evals.probes import heads
from evals.probes.preprocess import Inputs

# Of activations kept for a backward pass: beyond it the grid, then the batch, goes in parts. Larger ones make a GPU no
# faster, and a CPU slower, whose caches they leave.
MOST_BYTES = {"cpu": 2**28, "other": 2**32}
Setting = dict[str, float]


class Standard(NamedTuple):
    """Mean and inverse standard deviation ``[D]`` by which features are standardised."""

    mean: Tensor
    inverse: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean) * self.inverse


class Schedule(NamedTuple):
    """``steps`` of ``batch_size`` clips in an order drawn by ``seed``."""

    steps: int
    batch_size: int
    seed: int

    def plan(self, rows: Tensor, draws: int) -> list[tuple[Tensor, Tensor]]:
        """Row numbers and one of ``draws`` views of each, batch by batch: every pass over ``rows`` in a new order."""
        generator = torch.Generator().manual_seed(self.seed)
        found: list[tuple[Tensor, Tensor]] = []
        while len(found) < self.steps:
            for part in rows[torch.randperm(len(rows), generator=generator)].split(self.batch_size):
                # one view needs no drawing, and no random number
                views = torch.randint(draws, (len(part),), generator=generator) if draws > 1 else torch.zeros_like(part)
                found.append((part, views))
        return found[: self.steps]


class GridHeads(NamedTuple):
    """Fitted heads: parameters in parts of the grid, one after the other along G. ``at_once``: views of clips that are
    computed together."""

    forward: heads.Forward
    parts: Sequence[heads.Params]
    standard: Standard
    at_once: int

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Features ``[B, R, N, D]`` to log-probabilities ``[G, B, C]``: probabilities are means over the views."""
        pieces = [
            torch.cat([self.forward(params, views) for params in self.parts])
            for views in self.standard(x.flatten(0, 1)).split(self.at_once)
        ]
        logits = torch.cat(pieces, dim=1)
        return mean_probability(logits.log_softmax(dim=-1).unflatten(1, x.shape[:2]))

    def head(self, number: int) -> heads.Params:
        """The parameters of one head of the grid, without G."""
        for params in self.parts:
            count = len(next(iter(params.values())))
            if number < count:
                return {name: p[number].detach() for name, p in params.items()}
            number -= count
        raise IndexError(number)


def mean_probability(logs: Tensor) -> Tensor:
    """Log-probabilities of views ``[G, B, R, C]`` to those of their mean ``[G, B, C]``."""
    return logs.logsumexp(dim=2) - torch.tensor(logs.shape[2]).log()


def fit_grid(
    head: heads.Head, settings: Sequence[Setting], inputs: Inputs, y: Tensor, rows: Tensor, schedule: Schedule,
    standard: Standard, most_bytes: float | None = None,
) -> GridHeads:  # fmt: skip
    """Train every head of the grid on the clips ``rows`` with labels ``y`` ``[K]``, all on the same batches.

    Activations take about ``most_bytes`` (default: 256 MiB on a CPU, else 4 GiB): a larger grid is computed part by
    part in every step, then a larger batch piece by piece, whose gradients are added. Neither changes what is computed.
    Parameters, their gradients and both moments of AdamW are kept for the whole grid: 16 bytes per parameter and head.
    """
    if most_bytes is None:
        most_bytes = MOST_BYTES.get(inputs.device.type, MOST_BYTES["other"])
    each = 4 * head.activations
    count = int(max(1, min(len(settings), most_bytes // (each * schedule.batch_size))))
    piece = int(max(1, min(schedule.batch_size, most_bytes // each)))
    parts = list(_stack(head.start, settings, count, inputs.device))
    plan = schedule.plan(rows, inputs.rows.draws)
    for step, ((batch, _), x) in enumerate(zip(plan, inputs.batches(plan), strict=True)):
        target = y[batch.to(y.device)].to(inputs.device)
        for params, optimizer in parts:
            size = len(optimizer.learning_rates)
            for some, aim in zip(x.split(piece), target.split(piece), strict=True):
                logits = head.forward(params, standard(some))
                # a mean over clips and a sum over heads: no head's gradient depends on another head
                loss = F.cross_entropy(logits.flatten(0, 1), aim.expand(size, -1).flatten())
                loss.mul(size * len(some) / len(x)).backward()
            optimizer.step(heads.schedule(step, schedule.steps))
    at_once = int(max(1, most_bytes // (each * count)))
    return GridHeads(head.forward, [params for params, _ in parts], standard, at_once)


def _stack(
    start: heads.Params, settings: Sequence[Setting], count: int, device: torch.device
) -> Iterator[tuple[heads.Params, heads.HeadAdamW]]:
    """``start`` as parameters with a leading dimension of at most ``count`` heads, with their optimizers."""
    for first in range(0, len(settings), count):
        some = settings[first : first + count]
        params = heads.stack(start, len(some), device)
        rates, decays = (torch.tensor([s[k] for s in some], device=device) for k in ("learning_rate", "weight_decay"))
        yield params, heads.HeadAdamW(params, rates, decays)
