"""Dense linear probes on patch features: semantic segmentation (mIoU) and depth (RMSE in metres).

Images are stretched to the model's square and held for its clip, tokens are averaged over time, and predictions are
upsampled to each label's own size, so that every labelled pixel counts once.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evals.dense_data import DenseSet, Pool, draw_pools, open_dense, read_label
from evals.dense_probe import DenseHeads, fit_heads
from evals.dense_rows import DenseRow, constant_row, judge, lost_sums, read_checked, row_of, score_of, table
from evals.features.harness import FeatureOptions, FeatureSet, Split, compute_splits
from evals.features.representations import (
    EncoderRepresentation,
    Pixels,
    Representation,
    build_representations,
    encoder_hash,
)
from evals.outcome import versions
from evals.pages import dense_page
from evals.pages.dense_look import Look, depth_edges, look, picture_of
from evals.probes import ProbeConfig
from evals.probes.preprocess import split_rows
from evals.settings import EvalConfig, TaskResult
from evals.subjects import Subject, facts, home, open_subjects
from evals.task_configs import DenseConfig
from jepa.config import ConfigError
from jepa.data.image import ImageReader
from jepa.distributed import Run

log = logging.getLogger("jepa")


class Sides(NamedTuple):
    """Training and test images that every encoder could read, and those of each that could not be read."""

    train: DenseSet
    test: DenseSet
    lost_train: DenseSet
    lost_test: DenseSet


def predict_densely(config: EvalConfig) -> TaskResult:
    """Probe every model and baseline. Raises ``ValueError`` for folders or labels that cannot be used.

    A training image that cannot be read is left out, a test image counts as wrong (``dense_rows.lost_sums``)."""
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
    with Run.start(config.device, config.precision) as run:
        subjects = open_subjects(config)
        features, grids = encode(config, subjects, train, test, run)
    seconds = {"features": time.perf_counter() - began}
    began = time.perf_counter()
    sides, kept = split_readable(features, train, test)
    pools = [pools[row] for row in kept[0]]
    lost, edges = lost_sums(sides.lost_test, own, outputs), depth_edges(pools)
    shown = dense_page.chosen(len(sides.test.images))
    rows: list[DenseRow] = []
    looks: dict[str, Look] = {}
    for name in features[0]:
        patches = [patches_of(side[name], rows_, name) for side, rows_ in zip(features, kept)]
        probed = probe_one(probe, own, name, sides, (patches[0], patches[1]), pools, outputs, run.device, lost)
        rows.append(probed.row)
        looks[name] = look(probed.heads, probed.best, own, patches[1], sides.test, shown, outputs, edges)
        log.info("dense probe, %s: %s %.4g", name, rows[-1].measure, rows[-1].score)
    rows.append(constant_row(own, sides.train, sides.test, pools, outputs, probe.seed, lost))
    rows = [row._replace(unreadable=len(sides.lost_test.images)) for row in rows]
    seconds["probes"] = time.perf_counter() - began
    models = {subject.name: facts(subject, encoder_hash(subject.encoder)) for subject in subjects}
    about: dict[str, Any] = {
        **models[subjects[0].name], "models": models, "device": str(run.device), "precision": run.precision,
        "grids": grids, "unreadable": {"train": reasons(sides.lost_train), "test": reasons(sides.lost_test)},
        "looks": {name: one.counts.tolist() for name, one in looks.items()}, "depth_edges": edges,
        "versions": versions(),
    }  # fmt: skip
    pictures = [picture_of(sides.test, row, own, {n: one.maps[i] for n, one in looks.items()})
                for i, row in enumerate(shown)]  # fmt: skip
    report = functools.partial(dense_page.draw, pictures=pictures)
    return TaskResult(rows, seconds, about, table(rows), report=report)


def encode(
    config: EvalConfig, subjects: Sequence[Subject], train: DenseSet, test: DenseSet, run: Run
) -> tuple[list[dict[str, FeatureSet]], dict[str, list[int]]]:
    """Features of both sides by name of encoder, and the grid of each."""
    found = build_representations(replace(config, cells=(1, 1, 1)), {s.name: s.encoder for s in subjects}, run)
    representations = [stretched(one, config.dense, subjects[0].encoder.grid_of) for one in found]
    options = FeatureOptions(
        batch_size=config.batch_size, workers=config.workers, cache_gb=config.cache_gb,
        cache_dir=home(config) / "features" if config.cache_gb else None,
    )  # fmt: skip
    clip = representations[0].clip
    splits = {name: Split(part.source(clip), options) for name, part in (("train", train), ("test", test))}
    features = compute_splits(representations, splits, run)
    return list(features.values()), {one.name: list(one.grid) for one in representations}


def split_readable(
    features: Sequence[Mapping[str, FeatureSet]], train: DenseSet, test: DenseSet
) -> tuple[Sides, tuple[list[int], list[int]]]:
    """What every encoder has features of, and its rows. Raises ``ConfigError`` for fewer than two training images."""
    kept, lost = [], []
    for side, images in zip(features, (train, test), strict=True):
        known = set.intersection(*(set(found.items.tolist()) for found in side.values()))
        kept.append(sorted(known))
        lost.append(sorted(set(range(len(images.images))) - known))
    if len(kept[0]) < 2:
        raise ConfigError(f"{train.folder}: only {len(kept[0])} image can be read: heads are chosen on held-out ones")
    sides = Sides(train.subset(kept[0]), test.subset(kept[1]), train.subset(lost[0]), test.subset(lost[1]))
    return sides, (kept[0], kept[1])


def reasons(images: DenseSet) -> list[dict[str, str]]:
    """Path and reason of images that cannot be read."""
    found = []
    for path in images.images:
        reason = f"{path}: could not be read when it was encoded; now it can"
        try:
            ImageReader(path).read([0])
        except ValueError as error:
            reason = " ".join(str(error).split())
        found.append({"path": path, "reason": reason})
    return found


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


def patches_of(features: FeatureSet, rows: Sequence[int], name: str) -> Tensor:
    """Tokens of the images ``rows``, averaged over time: ``[K, h, w, D]``. Raises ``ValueError`` for NaN."""
    assert features.tokens is not None
    keep = torch.isin(features.items, torch.tensor(rows)).nonzero().flatten()
    grid = tuple(features.grid)
    patches = torch.cat([part[:, 0].unflatten(1, grid).mean(dim=1) for part in features.tokens.take(keep).chunks()])
    if not torch.isfinite(patches.sum(dtype=torch.float64)):
        raise ValueError(f"the features of {name} hold NaN or infinity: the encoder has diverged")
    return patches


class Probed(NamedTuple):
    """A row, and the head that it reports: number ``best`` of ``heads``."""

    row: DenseRow
    heads: DenseHeads
    best: int


def probe_one(
    probe: ProbeConfig, config: DenseConfig, name: str, sides: Sides, patches: tuple[Tensor, Tensor],
    pools: Sequence[Pool], outputs: int, device: torch.device, lost: Tensor,
) -> Probed:  # fmt: skip
    """Choose a head on held-out training images, fit the grid again on all of them, report the test images once, with
    the sums of ``lost`` ones ``[L, ...]``."""
    everything = torch.arange(len(patches[0]))
    fit_rows, held_rows = split_rows(torch.zeros_like(everything), probe.holdout, probe.seed)
    fitted = fit_heads(probe, config, patches[0], pools, fit_rows, outputs, device)
    held = judge(fitted, config, patches[0], sides.train, held_rows.tolist(), outputs)
    scores = [score_of(sums, config) for sums in held.sum(dim=1)]
    if math.isnan(scores[0]):
        raise ConfigError(f"{sides.train.folder}: no pixel of the held-out images has a label; give more images")
    better = 1 if config.target == "segmentation" else -1
    best = max(range(len(scores)), key=lambda g: better * scores[g])
    if probe.refit:
        fitted = fit_heads(probe, config, patches[0], pools, everything, outputs, device)
    found = judge(fitted, config, patches[1], sides.test, list(range(len(patches[1]))), outputs)
    found = torch.cat((found, lost.expand(len(found), *lost.shape)), dim=1)
    on_test = [score_of(sums, config) for sums in found.sum(dim=1)]
    row = row_of(name, config, found[best], len(patches[0]), probe.seed)
    best_on_test = max(on_test, key=lambda score: better * score)
    row = row._replace(
        held_out=scores[best], chosen=probe.settings()[best], heads=scores, heads_on_test=on_test,
        best_on_test=best_on_test,
    )  # fmt: skip
    return Probed(row, fitted, best)
