"""Rows of the task "dense": sums over test images to scores, the constant answer, the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evals import dense_metrics
from evals.dense_data import DenseSet, Pool, read_label
from evals.dense_probe import DenseHeads, upsample
from evals.task_configs import DenseConfig
from jepa.config import ConfigError

CONSTANT = "constant"


class DenseRow(NamedTuple):
    """One encoder. ``score``: mIoU, or RMSE in metres, of the head chosen on held-out training images (``held_out``),
    with a 95 % bootstrap interval over test images. ``second``: pixel accuracy, or the share of depths within a factor
    of 1.25. ``heads``: scores of the whole grid on held-out images, ``heads_on_test`` on the test images, fitted on all
    training images; ``best_on_test`` of these is what some papers report, and nothing is chosen by it. ``classes``: IoU
    of each class (None: neither labelled nor predicted). ``unreadable``: test images that cannot be read: all their
    labelled pixels are wrong, of no class; depth has no such answer, so its ``num_test`` images are without them."""

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
    unreadable: int = 0


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


def lost_sums(lost: DenseSet, config: DenseConfig, outputs: int) -> Tensor:
    """Sums ``[L, ...]`` of images that cannot be read: every labelled pixel is wrong, its answer none of the classes.
    No depth is wrong by a known amount: there such images are left out (L = 0)."""
    if config.target == "depth":
        return torch.zeros(0, dense_metrics.DEPTH_SUMS, dtype=torch.float64)
    sums = torch.zeros(len(lost.images), 3, outputs, dtype=torch.float64)
    for row in range(len(lost.images)):
        label = read_checked(lost, row, config, outputs)
        sums[row, 1] = dense_metrics.class_counts(label, label, outputs)[1]
    return sums


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
    config: DenseConfig, train: DenseSet, test: DenseSet, pools: Sequence[Pool], outputs: int, seed: int, lost: Tensor
) -> DenseRow:
    """Always the commonest class, or the mean depth, of the training pixels; ``lost`` images count for it as well."""
    values = torch.cat([pool.values for pool in pools])
    answer = torch.full((outputs,), float(values.double().mean()))
    if config.target == "segmentation":
        answer = torch.bincount(values, minlength=outputs).float()
    sums = []
    for row in range(len(test.images)):
        label = read_checked(test, row, config, outputs)
        sums.append(image_sums(answer[:, None, None].expand(-1, *label.shape), label, config))
    return row_of(CONSTANT, config, torch.cat((torch.stack(sums), lost)), len(train.images), seed)


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
    if rows[0].unreadable:
        what = "more are left out" if depth else "of them count as wrong"
        note += f" {rows[0].unreadable} {what}: they cannot be read."
    words = "the mean depth" if depth else "the commonest class"
    return "\n".join([*lines, "", f"{note} `{CONSTANT}`: always {words}. The best head on test chooses nothing."])
