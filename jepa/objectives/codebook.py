"""The learned vectors of a vector-quantised bottleneck: how they begin, move, and are brought back to use.

Every process has the same codes: whatever moves them is computed from the actions of all processes.

Shape legend: N actions, Z width, K codes.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.config import ConfigError
from jepa.distributed import process_place
from jepa.objectives.kmeans import kmeans, nearest

Update = Literal["ema", "loss"]
_EPS = 1e-5  # a code with a smaller count stays where it is


class Coded(NamedTuple):
    """``z`` ``[..., Z]`` (its value is a code, its gradient the input's), ``ids`` int64 ``[...]`` (None: continuous),
    and two scalars: how far actions are from codes, with a gradient for the actions, and for the codes."""

    z: Tensor
    ids: Tensor | None
    commitment: Tensor
    own: Tensor


class Codebook(nn.Module):
    """``num_codes`` vectors. The state dict holds all that decides what comes next, so a continued run is the same."""

    codes: Tensor
    counts: Tensor
    sums: Tensor
    pool: Tensor
    seen: Tensor
    active: Tensor

    def __init__(
        self, num_codes: int, dim: int, warmup: float, update: Update, decay: float, revive_below: float, pool: int
    ) -> None:
        super().__init__()
        self.warmup, self.update, self.decay, self.revive_below = warmup, update, decay, revive_below
        codes = torch.randn(num_codes, dim) * dim**-0.5
        if update == "loss":
            self.codes = nn.Parameter(codes)
        else:
            self.register_buffer("codes", codes)
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("sums", codes.clone())
        self.register_buffer("pool", torch.zeros(pool, dim))  # a ring of the last actions
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # how many actions went into it
        self.register_buffer("active", torch.tensor(warmup == 0))
        self._active: bool | None = None  # what ``active`` says, without asking the device at every step
        self._recent: list[Tensor] = []
        self.register_load_state_dict_post_hook(_forget)

    def is_active(self) -> bool:
        """Whether actions are codes by now."""
        if self._active is None:
            self._active = bool(self.active)
        return self._active

    def forward(self, found: Tensor) -> Coded:
        """``found`` ``[..., Z]``: actions as they were inferred."""
        if self.training and torch.is_grad_enabled():
            self._recent.append(found.detach().flatten(0, -2))
        zero = found.new_zeros(())
        own = 0.0 * self.codes.sum() if self.update == "loss" else zero  # a gradient in every step, for DDP
        if not self.is_active():
            return Coded(found, None, zero, own)
        ids = nearest(found.detach(), self.codes.detach())
        code = self.codes[ids]
        if self.update == "loss":
            own = own + F.mse_loss(code, found.detach())
        code = code.detach()
        return Coded(code + (found - found.detach()), ids, F.mse_loss(found, code), own)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Take in the step's actions; begin, move and revive codes. Raises ``ConfigError`` when codes are to begin and
        fewer actions were seen than there are codes."""
        if not self._recent:
            return
        actions = of_all_processes(torch.cat(self._recent))
        self._recent = []
        self._remember(actions)
        if self.is_active():
            self._follow(actions)
        elif progress >= self.warmup:
            self._begin(len(actions))

    def _remember(self, actions: Tensor) -> None:
        size = len(self.pool)
        last = actions[-size:]
        first = self.seen + len(actions) - len(last)
        places = (first + torch.arange(len(last), device=last.device)) % size
        self.pool[places] = last
        self.seen += len(actions)

    def _begin(self, per_step: int) -> None:
        filled = min(int(self.seen), len(self.pool))
        if filled < len(self.codes):
            raise ConfigError(
                f"bottleneck.num_codes {len(self.codes)}: only {filled} actions were seen in the warm-up; raise "
                "bottleneck.warmup or the batch size"
            )
        found = kmeans(self.pool[:filled], len(self.codes))
        sizes = torch.bincount(found.ids, minlength=len(self.codes)).to(self.counts)
        self.codes.copy_(found.centres)
        self.counts.copy_(sizes * per_step / filled)
        self.sums.copy_(self.codes * self.counts[:, None])
        self.active.fill_(True)
        self._active = True

    def _follow(self, actions: Tensor) -> None:
        ids = nearest(actions, self.codes)
        used = F.one_hot(ids, len(self.codes)).to(actions)
        self.counts.lerp_(used.sum(dim=0), 1 - self.decay)
        self.sums.lerp_(used.T @ actions, 1 - self.decay)
        if self.update == "ema":
            means = self.sums / self.counts.clamp(min=_EPS)[:, None]
            self.codes.copy_(torch.where(self.counts[:, None] > _EPS, means, self.codes))
        self._revive(actions)

    def _revive(self, actions: Tensor) -> None:
        """Codes that are hardly used take the places of actions drawn by squared distance from their codes."""
        distance = torch.cdist(actions, self.codes).amin(dim=1).square() + 1e-12
        drawn = torch.multinomial(distance, len(self.codes), replacement=True)
        if process_place()[1] > 1:
            dist.broadcast(drawn, 0)  # each process has its own random numbers
        mean = self.counts.mean()
        dead = self.counts < self.revive_below * mean  # nobody asks the device whether there is one
        self.codes.copy_(torch.where(dead[:, None], actions[drawn], self.codes))
        self.counts.copy_(torch.where(dead, mean, self.counts))
        self.sums.copy_(torch.where(dead[:, None], actions[drawn] * mean, self.sums))


def _forget(module: nn.Module, incompatible: Any) -> None:
    """After other weights were loaded."""
    assert isinstance(module, Codebook)
    module._active, module._recent = None, []


def of_all_processes(rows: Tensor) -> Tensor:
    """Rows ``[N, Z]`` of every process, in rank order, on each of them; N is the same everywhere."""
    rank, count = process_place()
    if count == 1:
        return rows
    every = rows.new_zeros(count, *rows.shape)
    every[rank] = rows
    dist.all_reduce(every)
    return every.flatten(0, 1)
