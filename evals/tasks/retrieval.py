"""Retrieval by cosine of pooled features, and detection of copies: nothing is fitted, test labels only score.

Retrieval: a gallery clip is right when it is of the query's class. Copy detection: queries are degraded copies of the
gallery's clips, and only the clip itself is right; copies of clips that the gallery lacks must score below them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evals.degrade import degraded, shift_frames
from evals.features.encoding import Views
from evals.features.harness import FeatureOptions, FeatureSet, Split, compute_features, compute_splits
from evals.features.representations import Representation, build_representations, encoder_hash
from evals.labelled import Labelled, choose_sources, open_labelled
from evals.metrics import standard_error
from evals.outcome import versions
from evals.pages import retrieval_page
from evals.pages.neighbours import COUNT
from evals.pages.retrieval_page import Ranking
from evals.probes.preprocess import standardiser
from evals.ranking import average_precision, cosines, recall_at
from evals.settings import EvalConfig, TaskResult
from evals.split_checks import leaks
from evals.subjects import facts, home, open_subjects
from evals.task_configs import Degrade, RetrievalConfig
from jepa.config import ConfigError, to_dict
from jepa.distributed import Run

LUCK = "by luck"
_QUERIES = 512  # scored at once


class RetrievalRow(NamedTuple):
    """One encoder's retrieval by one label. ``map``: mean over the queries of their average precision; ``error``: its
    standard error. ``recall``: share of the queries with a right answer among the k first, by k. A query that cannot
    be read scores 0 (``unreadable``); one whose class the gallery lacks is left out (``unanswerable``)."""

    label: str
    encoder: str
    map: float
    error: float
    recall: dict[str, float]
    queries: int
    gallery: int
    unreadable: int
    unanswerable: int


class CopyRow(NamedTuple):
    """One encoder's detection of one kind of copies. ``micro_ap``: average precision over all pairs of query and
    gallery clip; ``recall_at_1``: share of the copies whose nearest clip is theirs, with its standard error. An
    unreadable copy is never found. ``distractors``: copies of clips that the gallery lacks."""

    degradation: str
    encoder: str
    micro_ap: float
    recall_at_1: float
    error: float
    copies: int
    distractors: int
    gallery: int


def retrieve(config: EvalConfig) -> TaskResult:
    """Score every model and baseline; under torchrun the processes share the encoding, and each has all results.

    Raises ``ValueError`` for missing labels, broken features, or a clip that is both query and gallery.
    """
    if config.train_limit is not None:
        raise ConfigError("the task retrieval fits nothing: leave --train-limit out")
    with Run.start(config.device, config.precision) as run:
        return _retrieve(config, run)


def _retrieve(config: EvalConfig, run: Run) -> TaskResult:
    began, own = time.perf_counter(), config.retrieval
    subjects = open_subjects(config)
    if own.protocol == "leave_one_out" and config.dataset is None and config.train is None:
        config = replace(config, train=config.test)  # never read
    train_config, test_config = choose_sources(config)
    clip = subjects[0].encoder.clip
    train = open_labelled(train_config, config.labels, clip)
    test = open_labelled(test_config, config.labels, clip, train.class_names)
    representations = build_representations(config, {s.name: s.encoder for s in subjects}, run)
    options = FeatureOptions(
        batch_size=config.batch_size, views=Views(config.segments), workers=config.workers, tokens=False,
        cache_dir=home(config) / "features" if config.cache_gb else None, cache_gb=config.cache_gb,
    )  # fmt: skip
    alone = own.protocol == "leave_one_out"
    sides = {"test": Split(test.source, options)} if alone else {
        "test": Split(test.source, options), "train": Split(train.source, options)
    }  # fmt: skip
    if not alone and "leak" not in config.allow:
        check_apart(train, test)
    features = compute_splits(representations, sides, run)
    found, gallery = features["test"], features["test" if alone else "train"]
    seconds = {"features": time.perf_counter() - began}
    began = time.perf_counter()
    scores, rankings = class_rows(own, train, test, found, gallery)
    rows: list[RetrievalRow | CopyRow] = [*scores]
    seconds["retrieval"] = time.perf_counter() - began
    began = time.perf_counter()
    distractors = None if alone else train
    rows += copy_rows(own, representations, test, distractors, found, run, replace(options, cache_dir=None))
    seconds["copies"] = time.perf_counter() - began
    models = {subject.name: facts(subject, encoder_hash(subject.encoder)) for subject in subjects}
    about = {
        **models[subjects[0].name], "models": models, "train": None if alone else to_dict(train_config),
        "test": to_dict(test_config), "device": str(run.device), "precision": run.precision,
        "versions": versions(),
    }  # fmt: skip
    shown = retrieval_page.Asked(test, test if alone else train, clip, rankings, own.seed)
    report = functools.partial(retrieval_page.draw, asked=shown)
    return TaskResult(rows, seconds, about, table(rows), report=report)


def check_apart(train: Labelled, test: Labelled) -> None:
    """Raise ``ConfigError`` where a clip would find itself."""
    both = leaks([train.source], [test.source])
    if both:
        raise ConfigError(
            f"{both[0]} is a query and in the gallery ({len(both)} such clips): use other splits, or "
            "retrieval.protocol=leave_one_out"
        )


def vectors_of(
    queries: FeatureSet, gallery: FeatureSet, standardise: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors of both sides, as they are compared."""
    asked, bank = queries.matrix(), gallery.matrix()
    if not standardise:
        return asked.numpy(), bank.numpy()
    mean, inverse = standardiser(bank.split(256))
    return ((asked - mean) * inverse).numpy(), ((bank - mean) * inverse).numpy()


def class_rows(
    config: RetrievalConfig, train: Labelled, test: Labelled, found: Mapping[str, FeatureSet],
    gallery: Mapping[str, FeatureSet],
) -> tuple[list[RetrievalRow], dict[str, Ranking]]:  # fmt: skip
    """A row for every label and encoder, and one for guessing; and how the encoders rank by the first label."""
    rows, alone = list[RetrievalRow](), config.protocol == "leave_one_out"
    rankings: dict[str, Ranking] = {}
    for label, own in test.labels.items():
        bank = own if alone else train.labels[label]
        for name, queries in found.items():
            pair = vectors_of(queries, gallery[name], config.standardise)
            row, ranking = class_row(config, label, name, queries, gallery[name], own.numpy(), bank.numpy(), pair)
            rows.append(row)
            rankings.setdefault(name, ranking)
        first = next(iter(found))
        nothing = np.zeros((len(found[first].items), 1)), np.zeros((len(gallery[first].items), 1))  # all ties
        guess = class_row(config, label, LUCK, found[first], gallery[first], own.numpy(), bank.numpy(), nothing)
        rows.append(guess[0])
    return rows, rankings


def class_row(
    config: RetrievalConfig, label: str, name: str, queries: FeatureSet, gallery: FeatureSet, own: NDArray[np.int64],
    bank: NDArray[np.int64], vectors: tuple[NDArray[np.floating], NDArray[np.floating]],
) -> tuple[RetrievalRow, Ranking]:  # fmt: skip
    """One encoder and one label: ids of all clips of the test source (``own``) and of the gallery's source (``bank``),
    -1 for those that take no part."""
    alone = config.protocol == "leave_one_out"
    query_rows = np.flatnonzero(own[queries.items.numpy()] >= 0)
    gallery_rows = np.flatnonzero(bank[gallery.items.numpy()] >= 0)
    query_items, gallery_items = queries.items.numpy()[query_rows], gallery.items.numpy()[gallery_rows]
    classes = bank[gallery_items]
    asked, precisions, hits, answers, unanswerable = [], [], [], [], 0
    for start in range(0, len(query_rows), _QUERIES):
        part = slice(start, start + _QUERIES)
        table = cosines(vectors[0][query_rows[part]], vectors[1][gallery_rows])
        for item, scores in zip(query_items[part], table):
            others = gallery_items != item if alone else slice(None)
            relevant = classes[others] == own[item]
            if not relevant.any():
                unanswerable += 1
                continue
            asked.append(item)
            precisions.append(average_precision([scores[others]], scores[others][relevant]))
            hits.append([recall_at(scores[others], relevant, k) for k in config.recall_at])
            answers.append(gallery_items[others][np.argsort(-scores[others], kind="stable")[:COUNT]])
    missing = np.setdiff1d(np.flatnonzero(own >= 0), query_items)
    unreadable = int(np.isin(own[missing], classes).sum())
    if not precisions:
        raise ConfigError(f"{label}: no query has a clip of its class in the gallery")
    every = np.array(precisions + [0.0] * unreadable)
    recall = np.array(hits).sum(axis=0) / len(every)
    row = RetrievalRow(
        label, name, float(every.mean()), float(every.std() / np.sqrt(len(every))),
        {str(k): float(share) for k, share in zip(config.recall_at, recall)},
        len(every), len(gallery_rows) - alone, unreadable, unanswerable,
    )  # fmt: skip
    return row, Ranking(np.array(asked), np.array(precisions), np.stack(answers))


def copy_rows(
    config: RetrievalConfig, representations: list[Representation], test: Labelled, distractors: Labelled | None,
    found: Mapping[str, FeatureSet], run: Run, options: FeatureOptions,
) -> list[CopyRow]:  # fmt: skip
    """A row for every degradation and encoder. The gallery are the test clips; ``distractors``: as many clips at most,
    evenly spaced, whose copies have nothing to be found. Images have no "shift"."""
    rows, images = [], all(shift_frames(r.clip) == 0 for r in representations)
    for kind in (kind for kind in config.copies if not (kind == "shift" and images)):
        asked = degraded(test.source, kind, config.seed)
        copies = compute_features(representations, asked, run, options, f"test ({kind})")
        strangers: dict[str, FeatureSet] = {}
        if distractors is not None:
            count = min(len(distractors.source), len(test.source))
            chosen = np.linspace(0, len(distractors.source) - 1, count).round().astype(np.int64)
            others = degraded(distractors.source, kind, config.seed + 1).subset(chosen)
            strangers = compute_features(representations, others, run, options, f"train ({kind})")
        for name, gallery in found.items():
            rows.append(copy_row(config, kind, name, copies[name], strangers.get(name), gallery, len(test.source)))
    return rows


def copy_row(
    config: RetrievalConfig, kind: Degrade, name: str, copies: FeatureSet, strangers: FeatureSet | None,
    gallery: FeatureSet, total: int,
) -> CopyRow:  # fmt: skip
    """One encoder and one degradation; ``total``: how many copies there should be."""
    sides = [copies] if strangers is None else [copies, strangers]
    queries = [vectors_of(side, gallery, config.standardise)[0] for side in sides]
    bank = vectors_of(gallery, gallery, config.standardise)[1]
    positives, hits = [], []
    for start in range(0, len(copies.items), _QUERIES):
        items = copies.items.numpy()[start : start + _QUERIES]
        right = items[:, None] == gallery.items.numpy()
        scores = cosines(queries[0][start : start + _QUERIES], bank)
        positives.append(scores[right])
        hits += [recall_at(row, own, 1) for row, own in zip(scores, right)]

    def parts() -> Iterator[NDArray[np.float64]]:
        for side in queries:
            for start in range(0, len(side), _QUERIES):
                yield cosines(side[start : start + _QUERIES], bank)

    recall = sum(hits) / total
    return CopyRow(
        kind, name, average_precision(parts(), np.concatenate(positives), total), recall,
        standard_error(recall, total), total, 0 if strangers is None else len(strangers.items), len(bank),
    )  # fmt: skip


def table(rows: list[RetrievalRow | CopyRow]) -> str:
    """Markdown: retrieval, a line per label and encoder; copy detection, a line per degradation, a column each."""
    retrieval = [row for row in rows if isinstance(row, RetrievalRow)]
    copies = [row for row in rows if isinstance(row, CopyRow)]
    cuts = list(retrieval[0].recall)
    head = ["label", "encoder", "mAP", *(f"recall@{k}" for k in cuts), "queries", "gallery"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in retrieval:
        shares = [f"{100 * row.recall[k]:.1f}" for k in cuts]
        cells = [row.label, row.encoder, f"{100 * row.map:.1f} ± {100 * row.error:.1f}", *shares, row.queries]
        lines.append("| " + " | ".join(str(cell) for cell in [*cells, row.gallery]) + " |")
    notes = [
        f"{max(getattr(row, name) for row in retrieval)} queries {words}."
        for name, words in (
            ("unreadable", "cannot be read and score 0"),
            ("unanswerable", "are left out, because the gallery lacks their class"),
        )
        if any(getattr(row, name) for row in retrieval)
    ]
    lines += ["", " ".join(["In per cent.", *notes])]
    if copies:
        names = list(dict.fromkeys(row.encoder for row in copies))
        lines += ["", "| copies: micro-AP / recall@1 | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
        for kind in dict.fromkeys(row.degradation for row in copies):
            of = {row.encoder: row for row in copies if row.degradation == kind}
            scores = [f"{100 * of[n].micro_ap:.1f} / {100 * of[n].recall_at_1:.1f}" for n in names]
            lines.append(f"| {kind} | " + " | ".join(scores) + " |")
        one = copies[0]
        lines += ["", f"{one.copies} copies and {one.distractors} distractors against {one.gallery} clips."]
    return "\n".join(lines)
