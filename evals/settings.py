"""What an eval is asked for and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from evals.datasets.base import DatasetConfig
from evals.probes import ProbeConfig
from evals.task_configs import DenseConfig, RetrievalConfig, TrackingConfig
from evals.watching import Watching
from jepa.data.sources import SourceConfig

BASELINES = ("random", "pixels")
UNPROBED = ("physics", "retrieval", "tracking")  # tasks that fit no probe


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """A frozen eval of one encoder, beside others if wanted.

    ``run``: the model, anything that ``jepa.load`` takes; ``weights``: which encoder of a checkpoint. ``against``:
    further models, one column of the table each, all with their own preprocessing. ``train`` and ``test``: sources of
    labelled clips (``None``: those that a run was trained with, and its validation sources). ``dataset``: a published
    data set instead of both. ``labels``: columns of these sources that are probed one by one on the same features;
    empty: the sources' own label, or all labels of the data set. ``probes``: one row
    of the table each. ``baselines``: "random" (the same architecture, fresh weights from ``random_seed``) and "pixels".
    ``cells``: what linear, logistic and kNN probes see of an encoder: the means of so many parts of time, rows and
    columns side by side, (1, 1, 1) being the mean of all tokens. More cells where place matters (a face in the middle
    of the picture); pixels always keep their place. ``segments``: clips per video. ``train_limit``: probe with only so
    many training clips, drawn by the probe's seed.
    ``cache_gb``: so much of the features is kept in the run directory, that another probe need not encode again
    (0: nothing; tokens, which only attentive probes want, are what takes room). ``out``: folder for the results, and
    for the features of a model without a run (``None``: see ``evals.subjects.home``).
    ``watching``: how the task "physics" watches videos; its pairs come from ``dataset``, ``test``, or the built-in
    world.
    ``retrieval``, ``tracking``, ``dense``: settings of the tasks of these names.
    """

    run: str
    task: str = "video"
    against: tuple[str, ...] = ()
    weights: str = "target_encoder"
    train: SourceConfig | None = None
    test: SourceConfig | None = None
    dataset: DatasetConfig | None = None
    labels: tuple[str, ...] = ()
    probes: tuple[ProbeConfig, ...] = field(default_factory=lambda: (ProbeConfig(),))
    baselines: tuple[str, ...] = BASELINES
    random_seed: int = 1
    cells: tuple[int, int, int] = (1, 1, 1)
    segments: int = 1
    train_limit: int | None = None
    batch_size: int = 16
    workers: int = 0
    device: str = "auto"
    precision: str = "auto"
    cache_gb: float = 4.0
    out: str | None = None
    watching: Watching = field(default_factory=Watching)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.baselines) - set(BASELINES))
        if unknown:
            raise ValueError(f"baselines: {unknown[0]!r} is unknown; known: {', '.join(BASELINES)}")
        if self.dataset is not None and (self.train is not None or self.test is not None):
            raise ValueError("dataset brings its own splits: leave train and test out")
        if not self.probes:
            raise ValueError("probes must name at least one probe: linear, attentive, knn or logistic")
        if min(self.cells) < 1:
            raise ValueError(f"cells must be at least 1 of time, rows and columns, not {self.cells}")
        if self.segments < 1 or self.batch_size < 1:
            raise ValueError(f"segments and batch_size must be at least 1, not {self.segments} and {self.batch_size}")
        if self.train_limit is not None and self.train_limit < 2:
            raise ValueError(f"train_limit must be at least 2 clips, not {self.train_limit}")


class Row(NamedTuple):
    """One cell of the table: probe, label and encoder ("trained", "random", "pixels" or a model of ``against``),
    with the shares it scored.

    ``chance``: always the commonest training class. ``error``: standard error of ``accuracy``, ``interval``: its 95 %
    bootstrap interval over test clips. ``per_class``: accuracy of every class by name; ``confusion``: number of clips
    by true class, then by predicted class. ``chosen``: the head's setting, chosen by ``held_out`` accuracy on training
    clips; ``heads``: ``setting``, ``accuracy`` and ``loss`` there of every head of the grid. ``heads_on_test``: test
    accuracies of the same heads and ``max_on_test`` the best of them, which some papers report; nothing is chosen by
    them. ``num_undecodable`` of the ``num_test`` clips cannot be decoded, and count as errors everywhere."""

    probe: str
    label: str
    encoder: str
    accuracy: float
    error: float
    interval: list[float]
    chance: float
    held_out: float
    chosen: dict[str, float]
    heads: list[dict[str, Any]]
    heads_on_test: list[float]
    max_on_test: float
    per_class: dict[str, float | None]
    confusion: dict[str, dict[str, int]]
    num_train: int
    num_test: int
    num_undecodable: int
    num_classes: int
    seconds: float


class TaskResult(NamedTuple):
    """``rows`` of the table, ``seconds`` per stage, and ``facts`` (plain data) about encoder, clips and data.
    ``table``: the rows as Markdown, where they are no accuracies of probes. ``files``: more to write, by name.
    ``notes``: Markdown below the table. ``report``: draws report.html from what results.json holds."""

    rows: Sequence[Any]
    seconds: dict[str, float]
    facts: dict[str, Any]
    table: str | None = None
    files: Mapping[str, bytes] = {}
    notes: str = ""
    report: Callable[[Mapping[str, Any]], str] | None = None
