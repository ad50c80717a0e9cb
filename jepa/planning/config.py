"""What a planner is: its kind and its numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from jepa.config import suggest

Kind = Literal["cem", "mppi", "icem", "gradient", "random"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannerConfig:
    """``samples`` action sequences of ``horizon`` model steps are tried in each of ``iterations`` rounds.

    ``chunk``: how many of them are rolled out at once (None: all; fewer need less memory). ``init_std``: spread of the
    first round, in half-widths of the action bounds; ``min_std``: the least one, in the same unit.

    CEM and iCEM: the ``elites`` best samples make the next round's mean and spread; ``momentum`` and ``std_momentum``
    are the shares of the old mean and spread that stay. iCEM also: ``noise_beta``, the colour of the noise over time (0
    white, 1 pink, 2 red; smooth sequences); ``keep``, the share of the elites that is tried again in the next round and
    in the next plan; ``sample_decay``, by which the number of samples falls from round to round.
    MPPI: ``temperature``, in standard deviations of the samples' costs; ``std_decay``, the spread's factor per round.
    Gradient: ``starts`` sequences (the first is the warm start) follow Adam with step size ``lr``, in half-widths of
    the bounds; one round is one step.
    Random: all rounds draw uniformly, and the best sample is taken.
    """

    kind: str = "cem"  # a Kind; text, so that a wrong one gets a suggestion
    samples: int = 256
    iterations: int = 5
    horizon: int = 8
    elites: int = 32
    chunk: int | None = None
    init_std: float = 0.75
    min_std: float = 0.02
    momentum: float = 0.1
    std_momentum: float = 0.1
    noise_beta: float = 2.0
    keep: float = 0.3
    sample_decay: float = 1.25
    temperature: float = 0.2
    std_decay: float = 0.7
    starts: int = 8
    lr: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"planner kind {self.kind!r} is unknown{suggest(str(self.kind), get_args(Kind))}")
        for name in ("samples", "iterations", "horizon", "elites", "starts", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.kind in ("cem", "icem") and self.elites > self.samples:
            raise ValueError(f"elites {self.elites} must not be more than samples {self.samples}")
        for name in ("init_std", "temperature", "lr"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be positive, not {getattr(self, name):g}")
        for name in ("min_std", "noise_beta"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must not be negative, not {getattr(self, name):g}")
        for name in ("momentum", "std_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name):g}")
        if not 0 <= self.keep <= 1:
            raise ValueError(f"keep must be a share between 0 and 1, not {self.keep:g}")
        if not 0 < self.std_decay <= 1:
            raise ValueError(f"std_decay must be above 0 and at most 1, not {self.std_decay:g}")
        if not self.sample_decay >= 1:
            raise ValueError(f"sample_decay must be at least 1, not {self.sample_decay:g}")

    def samples_in(self, iteration: int) -> int:
        """Samples drawn in round ``iteration``; iCEM needs fewer and fewer (arXiv 2008.06389, section 3)."""
        if self.kind != "icem":
            return self.samples
        least = min(self.samples, 2 * self.elites)
        return max(round(self.samples * self.sample_decay**-iteration), least)
