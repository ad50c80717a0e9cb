"""What an eval is asked for and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from evals.datasets.base import DatasetConfig
from evals.probes import ProbeConfig
from evals.probes.shots import Shots
from evals.task_configs import (
    AnticipationConfig,
    ClipChanges,
    DenseConfig,
    LatentActionTask,
    ReconstructionTask,
    RetrievalConfig,
    TrackingConfig,
    WorldModelTask,
)
from evals.watching import Watching
from jepa.data.sources import SourceConfig
from jepa.data.transforms import AugmentConfig

BASELINES = ("random", "pixels")
Allowance = Literal["leak", "unseen_classes"]
UNPROBED = (  # tasks that fit no probe of labels
    "physics", "retrieval", "tracking", "latent_action", "world_model", "reconstruction",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """A frozen eval of one encoder, beside others if wanted.

    ``run``: the model, anything that ``jepa.load`` takes; ``weights``: which encoder of a checkpoint. ``against``:
    further models, one column of the table each, all with their own preprocessing. ``train`` and ``test``: sources of
    labelled clips (``None``: those that a run was trained with, and its validation sources). ``dataset``: a published
    data set instead of both. ``labels``: columns of these sources that are probed one by one on the same features;
    empty: the sources' own label, or all labels of the data set. ``probes``: one row
    of the table each. ``baselines``: "random" (the same architecture, fresh weights from ``random_seed``) and "pixels".
    ``clip``: what is different from the models' own clips (frames, rate, size).
    ``cells``: what linear, logistic and kNN probes see of an encoder: the means of so many parts of time, rows and
    columns side by side, (1, 1, 1) being the mean of all tokens. More cells where place matters (a face in the middle
    of the picture); pixels always keep their place.
    ``layers``: the outputs of these blocks side by side instead of the encoder's own output; ``sweep_layers``: every
    block of ``layers`` (None: all blocks) also on its own, a row of the table each.
    ``segments``: clips spread over each video, whose tokens are joined and whose vectors are averaged
    (``join_segments`` False: each is classified on its own, and their probabilities are averaged). ``views``: crops of
    every test clip along its longer side, whose probabilities are averaged (1: the centre). ``train_views``: views of
    every training clip, the plain one and others augmented as ``augment`` says; a probe sees one of them at a time.
    ``train_limit``: probe with only so many training clips, drawn by the probe's seed. ``few_shot``: also with so few
    of them, class by class: "1%", "10%", or "5" clips of each class, each drawn ``few_shot_seeds`` times.
    ``allow``: what is refused otherwise: "leak" (the same video in training and test), "unseen_classes" (test classes
    that no training clip has).
    ``cache``: encode once and keep the features on disk, for other probes too; False encodes anew in every step, with
    ``augment`` and random times, as the published protocols do. Encoding stops before it starts if the features would
    take more than ``cache_gb`` on disk (0: they are kept in memory only). ``memory_gb``: features larger than that are
    read from the disk batch by batch, never all at once. ``out``: folder for the results, and
    for the features of a model without a run (``None``: see ``evals.subjects.home``).
    ``watching``: how the task "physics" watches videos; its pairs come from ``dataset``, ``test``, or the built-in
    world.
    ``anticipation``, ``retrieval``, ``tracking``, ``dense``, ``latent_action``, ``world_model``, ``reconstruction``:
    settings of the tasks of these names.
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
    clip: ClipChanges = field(default_factory=ClipChanges)
    cells: tuple[int, int, int] = (1, 1, 1)
    layers: tuple[int, ...] | None = None
    sweep_layers: bool = False
    segments: int = 1
    join_segments: bool = True
    views: int = 1
    train_views: int = 1
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train_limit: int | None = None
    few_shot: tuple[str, ...] = ()
    few_shot_seeds: int = 3
    allow: tuple[Allowance, ...] = ()
    batch_size: int = 16
    workers: int = 0
    device: str = "auto"
    precision: str = "auto"
    cache: bool = True
    cache_gb: float = 20.0
    memory_gb: float = 4.0
    out: str | None = None
    watching: Watching = field(default_factory=Watching)
    anticipation: AnticipationConfig = field(default_factory=AnticipationConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    latent_action: LatentActionTask = field(default_factory=LatentActionTask)
    world_model: WorldModelTask = field(default_factory=WorldModelTask)
    reconstruction: ReconstructionTask = field(default_factory=ReconstructionTask)

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
        if min(self.views, self.train_views, self.few_shot_seeds) < 1:
            raise ValueError(
                f"views, train_views and few_shot_seeds must be at least 1, not {self.views}, {self.train_views} and "
                f"{self.few_shot_seeds}"
            )
        if not (self.cache_gb >= 0 and self.memory_gb >= 0):  # nor NaN
            raise ValueError(f"cache_gb and memory_gb must not be negative: {self.cache_gb:g}, {self.memory_gb:g}")
        if self.layers == ():
            raise ValueError("layers is empty; leave it out for the encoder's own output, or name at least one block")
        if self.clip and self.task == "physics":
            raise ValueError("the task physics cuts windows: set watching.num_frames and watching.clip_fps, not clip")
        for text in self.few_shot:
            Shots.parse(text)  # raises
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
    them. ``num_undecodable`` of the ``num_test`` clips cannot be decoded, and count as errors everywhere.
    ``top5``: share of clips whose class is among the five most probable; ``recall_at_5``: the same class by class, mean
    over the classes that the test set has (both None below six classes).
    ``shots``: which part of the training clips, "all", "10%" or "5" of each class; ``seeds``: accuracy of each draw,
    ``spread`` their standard deviation, and ``accuracy`` their mean; ``confusion``, ``per_class`` and ``chosen`` are
    the first draw's. ``layer``: the block that was probed, of a sweep over layers. ``held_out`` is None where nothing
    could be held out (one clip of each class, a published probe): then the middle head of the grid is reported."""

    probe: str
    label: str
    encoder: str
    accuracy: float
    error: float
    interval: list[float]
    chance: float
    held_out: float | None
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
    top5: float | None = None
    recall_at_5: float | None = None
    shots: str = "all"
    seeds: list[float] | None = None
    spread: float | None = None
    layer: int | None = None

    @property
    def variant(self) -> str:
        """What sets this row apart from the plain one of the same probe: "", "10%", "5 per class" or "layer 3"."""
        return variant_words(self.shots, self.layer)


def variant_words(shots: str, layer: int | None) -> str:
    """``Row.variant`` of a row that is plain data."""
    if shots != "all":
        return shots if shots.endswith("%") else f"{shots} per class"
    return "" if layer is None else f"layer {layer}"


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
