"""Dense linear probes on patch features: semantic segmentation (mIoU) and depth (RMSE in metres).

Images are stretched to the model's square and held for its clip, tokens are averaged over time, and predictions are
upsampled to each label's own size, so that every labelled pixel counts once.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evals import dense_metrics
from evals.dense_data import DenseSet, Pool, draw_pools, open_dense, read_label
from evals.dense_probe import DenseHeads, fit_heads, upsample
from evals.harness import FeatureOptions, FeatureSet, Split, compute_splits
from evals.preprocess import split_rows
from evals.probes import ProbeConfig
from evals.representations import EncoderRepresentation, Pixels, Representation, build_representations, encoder_hash
from evals.settings import EvalConfig, TaskResult
from evals.subjects import facts, home, open_subjects
from evals.task_configs import DenseConfig
from jepa.config import ConfigError
from jepa.distributed import Run, choose_device, choose_precision

log = logging.getLogger("jepa")
CONSTANT = "constant"


class DenseRow(NamedTuple):
    """One encoder. ``score``: mIoU, or RMSE in metres, of the head chosen on held-out training images (``held_out``),
    with a 95 % bootstrap interval over test images. ``second``: pixel accuracy, or the share of depths within a factor
    of 1.25. ``heads``: scores of the whole grid on held-out images, ``heads_on_test`` on the test images, fitted on all
    training images; ``best_on_test`` of these is what some papers report, and nothing is chosen by it. ``classes``: IoU
    of each class (None: neither labelled nor predicted)."""

    encoder: str
    measure: str
    score: float
    low: float
    high: float
    second: float
    held_out: float | None
    chosen: dict[str, float]
    heads: list[float]
    heads_on_test: list[float]
    best_on_test: float | None
    classes: list[float | None]
    num_train: int
    num_test: int


def predict_densely(config: EvalConfig) -> TaskResult:
    """Probe every model and baseline. Raises ``ValueError`` for folders, labels or images that cannot be used."""
    began, own = time.perf_counter(), config.dense
    probe = check(config)
    assert config.train is not None
    assert config.test is not None
    train, test = open_dense(config.train.path, own), open_dense(config.test.path, own)
    check_apart(train, test)
    if config.train_limit is not None:
        order = torch.randperm(len(train.images), generator=torch.Generator().manual_seed(probe.seed))
        train = train.subset(order[: config.train_limit].sort().values.tolist())
    pools = draw_pools(train, own, probe.seed)
    outputs = count_outputs(train, pools, own)
    for row in range(len(test.images)):
        read_checked(test, row, own, outputs)  # before anything is encoded
    place = choose_device(config.device)
    run = Run(place, choose_precision(config.precision, place))
    subjects = open_subjects(config)
    found = build_representations(replace(config, cells=(1, 1, 1)), {s.name: s.encoder for s in subjects}, run)
    representations = [stretched(one, own, subjects[0].encoder.grid_of) for one in found]
    options = FeatureOptions(
        batch_size=config.batch_size, workers=config.workers, cache_gb=config.cache_gb,
        cache_dir=home(config) / "features" if config.cache_gb else None,
    )  # fmt: skip
    clip = representations[0].clip
    splits = {name: Split(part.source(clip), options) for name, part in (("train", train), ("test", test))}
    features = list(compute_splits(representations, splits, run).values())
    seconds = {"features": time.perf_counter() - began}
    began = time.perf_counter()
    rows = []
    for name in features[0]:
        patches = [patches_of(side[name], part, name) for side, part in zip(features, (train, test))]
        rows.append(probe_one(probe, own, name, (train, test), (patches[0], patches[1]), pools, outputs, place))
        log.info("dense probe, %s: %s %.4g", name, rows[-1].measure, rows[-1].score)
    rows.append(constant_row(own, train, test, pools, outputs, probe.seed))
    seconds["probes"] = time.perf_counter() - began
    models = {subject.name: facts(subject, encoder_hash(subject.encoder)) for subject in subjects}
    about: dict[str, Any] = {
        **models[subjects[0].name], "models": models, "device": str(place), "precision": run.precision,
        "grids": {one.name: list(one.grid) for one in representations},
    }  # fmt: skip
    return TaskResult(rows, seconds, about, table(rows))


def check(config: EvalConfig) -> ProbeConfig:
    """The probe, or ``ConfigError`` for what this task cannot do."""
    if config.train is None or config.test is None:
        raise ConfigError(
            f"the task dense needs --train FOLDER and --test FOLDER with images and {config.dense.folder}"
        )
    if len(config.probes) != 1 or config.probes[0].kind != "linear":
        raise ConfigError("the task dense has one probe, a linear layer on patches: leave --probe at linear")
    if config.segments != 1 or config.cells != (1, 1, 1):
        raise ConfigError("the task dense predicts every pixel of an image: leave --segments and --cells out")
    return config.probes[0]


def check_apart(train: DenseSet, test: DenseSet) -> None:
    """Raise ``ConfigError`` where an image is in both sets."""
    known = {os.path.realpath(path) for path in train.images}
    both = [path for path in test.images if os.path.realpath(path) in known]
    if both:
        raise ConfigError(f"{both[0]} is in the training and in the test images ({len(both)} are in both)")


def count_outputs(train: DenseSet, pools: Sequence[Pool], config: DenseConfig) -> int:
    """How many outputs a head has: the classes, or 1 for depth. Raises ``ConfigError``."""
    if len(train.images) < 2:
        raise ConfigError(
            f"{train.folder} holds {len(train.images)} image: heads are chosen on held-out ones, give more"
        )
    if not any(len(pool.values) for pool in pools):
        raise ConfigError(f"{train.folder}: no pixel of {config.folder} has a label")
    if config.target == "depth":
        return 1
    largest = max(int(read_label(path, config).max()) for path in train.labels)
    if config.num_classes is not None and largest >= config.num_classes:
        raise ConfigError(f"{train.folder} has the class {largest}, but dense.num_classes is {config.num_classes}")
    if (config.num_classes or largest + 1) < 2:
        raise ConfigError(f"{train.folder}: the training masks hold a single class; a probe needs at least two")
    return config.num_classes or largest + 1


def stretched(found: Representation, config: DenseConfig, grid_of: Any) -> Representation:
    """The representation, of whole images stretched to a square. Raises ``ValueError`` for a side that it refuses."""
    side, frames = config.side or found.clip.crop_size, config.num_frames or found.clip.num_frames
    clip = replace(found.clip, fit="stretch", short_side=None, crop_size=side, num_frames=frames)
    if isinstance(found, EncoderRepresentation):
        found.clip, found.grid = clip, found.encoder.grid_of((3, frames, side, side))
        return found
    return Pixels(clip, grid_of((3, frames, side, side)))


def patches_of(features: FeatureSet, images: DenseSet, name: str) -> Tensor:
    """Tokens averaged over time ``[K, h, w, D]``. Raises ``ValueError`` for an unreadable image or NaN."""
    assert features.tokens is not None
    missing = sorted(set(range(len(images.images))) - set(features.items.tolist()))
    if missing:
        raise ConfigError(
            f"{images.images[missing[0]]} cannot be read ({len(missing)} such images): repair or remove it"
        )
    grid = tuple(features.grid)
    patches = torch.cat([part[:, 0].unflatten(1, grid).mean(dim=1) for part in features.tokens.chunks()])
    if not torch.isfinite(patches.sum(dtype=torch.float64)):
        raise ValueError(f"the features of {name} hold NaN or infinity: the encoder has diverged")
    return patches


def probe_one(
    probe: ProbeConfig, config: DenseConfig, name: str, sets: tuple[DenseSet, DenseSet],
    patches: tuple[Tensor, Tensor], pools: Sequence[Pool], outputs: int, device: torch.device,
) -> DenseRow:  # fmt: skip
    """Choose a head on held-out training images, fit the grid again on all of them, report the test images once."""
    everything = torch.arange(len(patches[0]))
    fit_rows, held_rows = split_rows(torch.zeros_like(everything), probe.holdout, probe.seed)
    fitted = fit_heads(probe, config, patches[0], pools, fit_rows, outputs, device)
    held = judge(fitted, config, patches[0], sets[0], held_rows.tolist(), outputs)
    scores = [score_of(sums, config) for sums in held.sum(dim=1)]
    if math.isnan(scores[0]):
        raise ConfigError(f"{sets[0].folder}: no pixel of the held-out images has a label; give more images")
    better = 1 if config.target == "segmentation" else -1
    best = max(range(len(scores)), key=lambda g: better * scores[g])
    if probe.refit:
        fitted = fit_heads(probe, config, patches[0], pools, everything, outputs, device)
    found = judge(fitted, config, patches[1], sets[1], list(range(len(patches[1]))), outputs)
    on_test = [score_of(sums, config) for sums in found.sum(dim=1)]
    row = row_of(name, config, found[best], len(patches[0]), probe.seed)
    best_on_test = max(on_test, key=lambda score: better * score)
    return row._replace(
        held_out=scores[best], chosen=probe.settings()[best], heads=scores, heads_on_test=on_test,
        best_on_test=best_on_test,
    )  # fmt: skip


def judge(
    fitted: DenseHeads, config: DenseConfig, patches: Tensor, images: DenseSet, rows: list[int], outputs: int
) -> Tensor:
    """Sums of ``dense_metrics`` for every head and image, ``[G, K, ...]``."""
    sums = []
    for row in rows:
        label = read_checked(images, row, config, outputs).to(fitted.mean.device)
        size = (label.shape[0], label.shape[1])
        found = [upsample(maps, size) for maps in fitted.outputs(patches[row])]
        sums.append(torch.stack([image_sums(one, label, config) for one in found]))
    return torch.stack(sums, dim=1)


def read_checked(images: DenseSet, row: int, config: DenseConfig, outputs: int) -> Tensor:
    """A label. Raises ``ConfigError`` for a class that no head knows."""
    label = read_label(images.labels[row], config)
    if config.target == "segmentation" and int(label.max()) >= outputs:
        raise ConfigError(
            f"{images.labels[row]} has the class {int(label.max())}, but the classes are 0 to {outputs - 1}: set "
            "dense.num_classes, or dense.ignore"
        )
    return label


def image_sums(output: Tensor, label: Tensor, config: DenseConfig) -> Tensor:
    """Sums of one image from a head's output ``[C, H, W]``."""
    if config.target == "depth":
        return dense_metrics.depth_sums(output[0], label)
    return dense_metrics.class_counts(output.argmax(dim=0), label, len(output))


def score_of(sums: Tensor, config: DenseConfig) -> float:
    """The number that heads are chosen by and rows report."""
    return float((dense_metrics.rmse if config.target == "depth" else dense_metrics.mean_iou)(sums))


def row_of(name: str, config: DenseConfig, sums: Tensor, num_train: int, seed: int) -> DenseRow:
    """The row of one head from the sums of the test images ``[K, ...]``."""
    total, depth = sums.sum(dim=0), config.target == "depth"
    if not (total[0] if depth else total[1].sum()) > 0:
        raise ConfigError(f"no pixel of the test images has a label in {config.folder}")
    interval = dense_metrics.bootstrap(sums, dense_metrics.rmse if depth else dense_metrics.mean_iou, seed=seed)
    classes = [] if depth else [None if value.isnan() else float(value) for value in dense_metrics.class_iou(total)]
    second = float(total[3] / total[0] if depth else dense_metrics.pixel_accuracy(total))
    return DenseRow(
        name, "RMSE (m)" if depth else "mIoU", score_of(total, config), *interval, second, None, {}, [], [], None,
        classes, num_train, len(sums),
    )  # fmt: skip


def constant_row(
    config: DenseConfig, train: DenseSet, test: DenseSet, pools: Sequence[Pool], outputs: int, seed: int
) -> DenseRow:
    """Always the commonest class, or the mean depth, of the training pixels."""
    values = torch.cat([pool.values for pool in pools])
    answer = torch.full((outputs,), float(values.double().mean()))
    if config.target == "segmentation":
        answer = torch.bincount(values, minlength=outputs).float()
    sums = []
    for row in range(len(test.images)):
        label = read_checked(test, row, config, outputs)
        sums.append(image_sums(answer[:, None, None].expand(-1, *label.shape), label, config))
    return row_of(CONSTANT, config, torch.stack(sums), len(train.images), seed)


def table(rows: Sequence[DenseRow]) -> str:
    """Markdown: a line per encoder; shares in per cent, errors in metres."""
    depth = rows[0].measure != "mIoU"
    unit, digits = (1, 3) if depth else (100, 1)
    head = ["encoder", rows[0].measure, "within 1.25" if depth else "pixel accuracy", "held out", "best head on test"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        low, high = (f"{unit * value:.{digits}f}" for value in (row.low, row.high))
        others = ["" if value is None else f"{unit * value:.{digits}f}" for value in (row.held_out, row.best_on_test)]
        cells = [row.encoder, f"{unit * row.score:.{digits}f} [{low}, {high}]", f"{100 * row.second:.1f}", *others]
        lines.append("| " + " | ".join(cells) + " |")
    note = (
        f"[95 % bootstrap interval over test images]; {rows[0].num_train} training and {rows[0].num_test} test images."
    )
    words = "the mean depth" if depth else "the commonest class"
    return "\n".join([*lines, "", f"{note} `{CONSTANT}`: always {words}. The best head on test chooses nothing."])
