"""Intuitive physics: of a possible and an impossible video, which one surprises a model more?

A pair is right when the impossible video has the higher surprise (the mean, or the largest, of its windows). Beside
the model stand the same architecture with fresh weights, the last seen latents unchanged, and predictors of pixels.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evals.datasets.physics import open_physics
from evals.features.representations import encoder_hash
from evals.outcome import versions
from evals.pages import physics_page
from evals.pages.physics_picture import draw_pairs
from evals.pairwise import auroc, binomial_interval, bootstrap_interval, pairs_right
from evals.physics import LatentWatcher, Pair, PixelWatcher, Watched, Watcher, read_pairs, untrained, watch
from evals.probes.sklearn_bridge import digit_images
from evals.settings import EvalConfig, TaskResult
from evals.subjects import TRAINED, facts, open_subjects, results_folder
from evals.watching import watched_clip
from jepa.config import ConfigError
from jepa.data.sampling import frame_spacing
from jepa.data.synthetic.dataset import Glyphs
from jepa.data.synthetic.physics import PhysicsConfig, write_physics
from jepa.distributed import Run
from jepa.predictive import load_predictive
from jepa.types import ClipConfig

OVER = ("mean", "max")
ALL = "all"


class PhysicsRow(NamedTuple):
    """One predictor's score on one condition ("all": every pair), judging ``over`` the "mean" or "max" of windows.

    ``accuracy``: share of the pairs whose impossible video surprises more (a tie counts half, a pair with an unreadable
    video is wrong), with a 95 % bootstrap interval over scenes (``low``, ``high``) and the binomial one, which takes
    pairs as independent. ``auroc``: over all possible and impossible videos of the condition, in whatever pair.
    ``unreadable``: pairs with a video that could not be read.
    """

    predictor: str
    condition: str
    over: str
    accuracy: float
    low: float
    high: float
    binomial_low: float
    binomial_high: float
    auroc: float
    pairs: int
    scenes: int
    unreadable: int


def judge_physics(config: EvalConfig) -> TaskResult:
    """Watch the pairs and score every predictor; under torchrun the processes share the videos, and each has all
    results. Raises ``ValueError`` for models that cannot predict, missing data, or surprise that is not finite."""
    began = time.perf_counter()
    with Run.start(config.device, config.precision) as run:
        subjects = open_subjects(config)
        clip = watched_clip(subjects[0].encoder.clip, config.watching)
        pairs = run.on_main(lambda: open_pairs(config, clip))
        watchers = build_watchers(config, [(subject.name, subject.model) for subject in subjects], run)
        seconds = {"pairs": time.perf_counter() - began}
        began = time.perf_counter()
        watched = watch(pairs, watchers, config.watching, run, config.workers)
    if not any(watched.curves.values()):
        raise ConfigError(f"no video can be read; the first: {next(iter(watched.failures.values()))}")
    seconds["surprise"] = time.perf_counter() - began
    began = time.perf_counter()
    rows = score(pairs, watched, config.random_seed)
    contexts = score_contexts(pairs, watched, config.random_seed)
    picture = draw_pairs(pairs, watched, TRAINED) if run.is_main else b""
    seconds["scores"] = time.perf_counter() - began
    models = {subject.name: facts(subject, encoder_hash(subject.encoder)) for subject in subjects}
    about = {
        **models[TRAINED], "models": models, "device": str(run.device), "precision": run.precision,
        "contexts": contexts_of(watched), "unreadable": watched.failures,
        "by_context": by_context(pairs, watched), "context_rows": contexts,
        "pairs": [listed(pair, watched) for pair in pairs], "versions": versions(),
    }  # fmt: skip
    report = functools.partial(physics_page.draw, picture=picture)
    return TaskResult(
        rows, seconds, about, table(rows), {"physics.png": picture} if picture else {}, report=report
    )  # fmt: skip


def open_pairs(config: EvalConfig, clip: ClipConfig) -> list[Pair]:
    """A published set (``config.dataset``), a CSV of pairs (``config.test``), or pairs of the built-in world, rendered
    for windows of ``clip`` into the folder of the results. Raises ``ConfigError``."""
    if config.dataset is not None:
        found = open_physics(config.dataset.name, config.dataset.root)
        return [Pair(p.condition, p.possible_path, p.impossible_path, p.block, None, p.fps) for p in found]
    if config.test is not None:
        return read_pairs(config.test.path)
    own = world_for(clip, config.watching.pairs)
    folder = results_folder(config) / f"pairs-{own.pairs}-{own.num_frames}x{own.side}"
    return read_pairs(write_physics(folder, Glyphs(*digit_images()), own))


def world_for(clip: ClipConfig, pairs: int) -> PhysicsConfig:
    """Pairs as large as the model's pictures and twice as long as its windows, which then can end before the event."""
    own = PhysicsConfig(pairs=pairs)
    frames = math.ceil(2 * clip.num_frames * frame_spacing(own.fps, clip))
    return replace(own, num_frames=max(8, frames), side=max(16, clip.crop_size // 2 * 2))


def build_watchers(config: EvalConfig, models: Sequence[tuple[str, str]], run: Run) -> list[Watcher]:
    """The models by name, the first one's copy of the last latents, and the baselines asked for."""
    watching, watchers = config.watching, list[Watcher]()
    for number, (name, model) in enumerate(models):
        parts = load_predictive(model)
        if not parts.comparable:
            raise ConfigError(f"{model} predicts the latents of a teacher that its file lacks: it has no surprise")
        watchers.append(LatentWatcher(name, parts, run, watching, copy=number == 0))
        if number == 0 and "random" in config.baselines:
            watchers.append(LatentWatcher("random", untrained(parts, config.random_seed), run, watching))
    if "pixels" in config.baselines:
        watchers.append(PixelWatcher(watchers[0]))
    return watchers


def score(pairs: Sequence[Pair], watched: Watched, seed: int = 0) -> list[PhysicsRow]:
    """Rows for every condition and, where there are several, for all pairs."""
    rows = []
    for predictor in watched.curves:
        for over in OVER:
            surprise = {path: curve.score(over) for path, curve in watched.curves[predictor].items()}  # type: ignore[arg-type]
            rows += _rows(predictor, over, pairs, surprise, seed)
    return rows


def score_contexts(pairs: Sequence[Pair], watched: Watched, seed: int = 0) -> list[dict[str, Any]]:
    """The same rows, as plain data, by the surprise of every context length (``context``, in tubelets) alone."""
    rows = []
    for predictor, contexts in contexts_of(watched).items():
        for place, seen in enumerate(contexts):
            windows = {path: curve.window_surprise[place] for path, curve in watched.curves[predictor].items()}
            for over in OVER:
                surprise = {path: float(getattr(values, over)()) for path, values in windows.items()}
                rows += [{"context": seen, **r._asdict()} for r in _rows(predictor, over, pairs, surprise, seed)]
    return rows


def _rows(
    predictor: str, over: str, pairs: Sequence[Pair], surprise: dict[str, float], seed: int
) -> list[PhysicsRow]:  # fmt: skip
    names = list(dict.fromkeys(pair.condition for pair in pairs))
    return [
        _row(predictor, name, over, [pair for pair in pairs if name in (pair.condition, ALL)], surprise, seed)
        for name in ((*names, ALL) if len(names) > 1 else names)
    ]


def _row(
    predictor: str, condition: str, over: str, pairs: Sequence[Pair], surprise: dict[str, float], seed: int
) -> PhysicsRow:
    possible, impossible = sides(pairs, surprise)
    right = pairs_right(possible, impossible)
    share, scenes = float(right.mean()), [f"{pair.condition} {pair.scene}" for pair in pairs]
    lone = [list(dict.fromkeys(getattr(pair, kind) for pair in pairs)) for kind in ("possible", "impossible")]
    negatives, positives = (
        np.array([surprise.get(path, unread) for path in paths]) for paths, unread in zip(lone, (np.inf, -np.inf))
    )  # videos that stand in several pairs count once
    return PhysicsRow(
        predictor, condition, over, share, *bootstrap_interval(right, scenes, seed=seed),
        *binomial_interval(share, len(pairs)), auroc(negatives, positives), len(pairs), len(set(scenes)),
        int(np.isinf(possible).sum() + np.isinf(impossible).sum() - (np.isinf(possible) & np.isinf(impossible)).sum()),
    )  # fmt: skip


def sides(pairs: Sequence[Pair], surprise: dict[str, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Surprise of the possible and the impossible videos ``[N]``; an unreadable one makes its pair wrong."""
    possible = np.array([surprise.get(pair.possible, np.inf) for pair in pairs])
    impossible = np.array([surprise.get(pair.impossible, -np.inf) for pair in pairs])
    return possible, impossible


def contexts_of(watched: Watched) -> dict[str, list[int]]:
    """The context lengths of every predictor, in tubelets."""
    return {n: list(next(iter(c.values())).context_tubelets) for n, c in watched.curves.items() if c}


def by_context(pairs: Sequence[Pair], watched: Watched) -> dict[str, dict[str, float]]:
    """Accuracy over all pairs by the mean surprise of one context length (in tubelets) alone."""
    found: dict[str, dict[str, float]] = {}
    for predictor, contexts in contexts_of(watched).items():
        for row, seen in enumerate(contexts):
            surprise = {p: float(c.window_surprise[row].mean()) for p, c in watched.curves[predictor].items()}
            found.setdefault(predictor, {})[str(seen)] = float(pairs_right(*sides(pairs, surprise)).mean())
    return found


def listed(pair: Pair, watched: Watched) -> dict[str, Any]:
    """A pair as plain data, with every predictor's surprise at both videos (None: unreadable)."""
    scores = {
        predictor: {
            over: [curves[path].score(over) if path in curves else None for path in (pair.possible, pair.impossible)]  # type: ignore[arg-type]
            for over in OVER
        }
        for predictor, curves in watched.curves.items()
    }
    return {**pair._asdict(), "surprise": scores}


def table(rows: Sequence[PhysicsRow]) -> str:
    """Markdown: a line per condition and score, a column per predictor: accuracy in per cent, its bootstrap interval,
    and AUROC."""
    names = list(dict.fromkeys(row.predictor for row in rows))
    head = ["condition", "surprise", *names, "pairs"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for over in OVER:
        for condition in dict.fromkeys(row.condition for row in rows):
            found = {row.predictor: row for row in rows if (row.condition, row.over) == (condition, over)}
            cells = [cell(found[name]) for name in names]
            lines.append("| " + " | ".join([condition, over, *cells, str(found[names[0]].pairs)]) + " |")
    note = (
        "Accuracy of pairs in per cent (50: chance) [95 % bootstrap interval over scenes], AUROC over videos. `mean`, "
        "`max`: of the windows of a video."
    )
    unread = max(row.unreadable for row in rows)
    if unread:
        note += f" {unread} pairs have an unreadable video and count as wrong."
    return "\n".join([*lines, "", note])


def cell(row: PhysicsRow) -> str:
    """One cell of the table."""
    return f"{100 * row.accuracy:.1f} [{100 * row.low:.0f}, {100 * row.high:.0f}] {row.auroc:.2f}"
