"""What looks at a run from outside, and the settings of the online probes (the probes themselves are in ``evals``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from jepa.data.sources import SourceConfig
from jepa.logging import RunLog

if TYPE_CHECKING:
    from jepa.session import Session

OnlineProbe = Literal["linear", "attentive", "knn", "logistic"]


class Observer(Protocol):
    """Looks at a session now and then, logs what it saw and changes nothing. ``summary``: the last look in a few words
    ("" before the first)."""

    summary: str

    def due(self, step: int, trained_s: float) -> bool:
        """Whether to look after ``step``; ``trained_s``: seconds that this process spent on steps, looks and saves
        left out. Called after every step."""
        ...

    def look(self, step: int) -> None:
        """Measure and log."""
        ...


OpenObserver = Callable[["Session", RunLog], Observer]


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineConfig:
    """Frozen probes of the target encoder during training.

    Every ``every`` steps, before the first and after the last one, ``probes`` are fitted on ``train_clips`` labelled
    clips and scored on ``test_clips`` others, always the same clips, drawn class by class with ``seed``. ``train`` and
    ``test``: where they come from (None: the run's ``data.sources``, and its ``data.validation`` or ``data.holdout``).
    ``labels``: columns that are probed one by one (empty: the sources' own label).

    ``max_share``: seconds of probing per second of training, over the whole run. A look that would exceed it waits.
    The first and the last look do not wait. ``steps``: of linear and attentive probes. ``token_pool``: tokens are
    averaged over (time, rows, columns) before attentive probes. ``batch_size``: clips encoded at once. ``memory_mb``
    MiB keep decoded clips between looks; what is beyond is read again each time. ``allow``: "leak" permits the same
    video in training and test.
    """

    every: int = 1000
    train: SourceConfig | None = None
    test: SourceConfig | None = None
    labels: tuple[str, ...] = ()
    probes: tuple[OnlineProbe, ...] = ("linear", "attentive", "knn")
    train_clips: int = 256
    test_clips: int = 128
    max_share: float = 0.05
    steps: int = 100
    token_pool: tuple[int, int, int] = (1, 2, 2)
    batch_size: int = 16
    memory_mb: float = 2048.0
    seed: int = 0
    allow: tuple[Literal["leak"], ...] = ()

    def __post_init__(self) -> None:
        least = {"every": 1, "train_clips": 4, "test_clips": 2, "steps": 1, "batch_size": 1, "memory_mb": 0, "seed": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} must be at least {value}, not {getattr(self, name)}")
        if not self.probes or len(set(self.probes)) < len(self.probes) or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"probes {self.probes} and labels {self.labels} must differ, and there must be a probe")
        if not 0 < self.max_share <= 1:
            raise ValueError(f"max_share must be a share of the training time above 0, at most 1, not {self.max_share}")
        if min(self.token_pool) < 1:
            raise ValueError(f"token_pool must be at least 1 in time, rows and columns, not {self.token_pool}")
