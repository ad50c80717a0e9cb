"""Object tracking without training, as in DAVIS: the first frame's masks are propagated by patch features (J&F).

Beside the encoders stand the baselines asked for, and "still": the first frame's masks, never moved.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evals.davis import VOID, Tracked, read_davis
from evals.features.representations import encoder_hash, random_twin
from evals.mask_metrics import contour_accuracy, region_similarity
from evals.number_maps import read_numbers
from evals.outcome import versions
from evals.pages import drawing, tracking_page
from evals.pages.tracking_page import Example
from evals.pairwise import bootstrap_interval
from evals.propagate import EncoderMaps, PatchMaps, PixelMaps, propagate, to_patches, to_pixels
from evals.settings import EvalConfig, TaskResult
from evals.shares import share_out
from evals.subjects import facts, open_subjects
from evals.task_configs import TrackingConfig
from jepa.config import ConfigError
from jepa.distributed import Run
from jepa.models.base import ClipEncoder

log = logging.getLogger("jepa")
STILL = "still"
Trackers = Mapping[str, EncoderMaps | PixelMaps | None]


class ObjectScore(NamedTuple):
    """One object: J and F in every judged frame (all but the first and the last)."""

    sequence: str
    number: int
    j: list[float]
    f: list[float]


class TrackingRow(NamedTuple):
    """One encoder. ``jf``: mean of ``j_mean`` and ``f_mean``, with a 95 % bootstrap interval over sequences. Means are
    over frames, then over objects; recalls are the share of an object's frames above 0.5, then over objects."""

    encoder: str
    jf: float
    low: float
    high: float
    j_mean: float
    j_recall: float
    f_mean: float
    f_recall: float
    objects: int
    sequences: int


def track(config: EvalConfig) -> TaskResult:
    """Track every object by every encoder; under torchrun the processes share the sequences, and each has all results.

    Raises ``ValueError`` for a wrong layout or an encoder that refuses frames of this size."""
    if config.test is None:
        raise ConfigError("the task tracking needs --test ROOT, a folder with the layout of DAVIS-2017")
    if config.segments != 1 or config.cells != (1, 1, 1) or config.train is not None:
        raise ConfigError("the task tracking follows patches of whole videos: leave --segments, --cells, --train out")
    began = time.perf_counter()
    with Run.start(config.device, config.precision) as run:
        sequences = read_davis(config.test.path, config.tracking.split)
        subjects = open_subjects(config)
        trackers = build_trackers(config, {subject.name: subject.encoder for subject in subjects}, run)
        drawn = {sequences[place].name for place in tracking_page.evenly(len(sequences))}
        found = share_out(
            run, sequences, lambda one: track_sequence(one, trackers, config.tracking, one.name in drawn)
        )  # fmt: skip
    scores = {name: [one for objects, _ in found for one in objects[name]] for name in trackers}
    rows = [row_of(name, objects, config.random_seed) for name, objects in scores.items()]
    models = {subject.name: facts(subject, encoder_hash(subject.encoder)) for subject in subjects}
    about = {
        **models[subjects[0].name], "models": models, "device": str(run.device), "precision": run.precision,
        "frames": {name: tracker.mode for name, tracker in trackers.items() if tracker is not None},
        "objects": {name: [one._asdict() for one in objects] for name, objects in scores.items()},
        "versions": versions(),
    }  # fmt: skip
    examples = [example for _, example in found if example is not None]
    report = functools.partial(tracking_page.draw, examples=examples)
    return TaskResult(rows, {"tracking": time.perf_counter() - began}, about, table(rows), report=report)


def build_trackers(config: EvalConfig, encoders: Mapping[str, ClipEncoder], run: Run) -> Trackers:
    """The encoders by name, the baselines asked for, and "still" (None)."""
    own, batch = config.tracking, config.batch_size
    found = {name: EncoderMaps(name, encoder, run, own, batch) for name, encoder in encoders.items()}
    first = next(iter(encoders))
    trackers: dict[str, EncoderMaps | PixelMaps | None] = dict(found)
    if "random" in config.baselines:
        twin = random_twin(encoders[first], config.random_seed)
        trackers["random"] = EncoderMaps("random", twin, run, own, batch)
    if "pixels" in config.baselines:
        trackers["pixels"] = PixelMaps(found[first])
    trackers[STILL] = None
    return trackers


def track_sequence(
    sequence: Tracked, trackers: Trackers, config: TrackingConfig, shown: bool
) -> tuple[dict[str, list[ObjectScore]], Example | None]:
    """Scores of the objects of one sequence by every tracker (None: the first masks stay), and small pictures of their
    masks if it is to be ``shown``."""
    frames = torch.from_numpy(sequence.read_frames())
    truth = [read_numbers(path) for path in sequence.masks]
    size = (frames.shape[1], frames.shape[2])
    for path, numbers in zip(sequence.masks, truth):
        if numbers.shape != size:
            raise ConfigError(f"{path} has {numbers.shape} pixels, its picture has {size}")
    names = [int(number) for number in np.unique(truth[0]) if number not in (0, VOID)]
    if not names:
        raise ConfigError(f"{sequence.masks[0]} marks no object: there is nothing to track")
    log.info("tracking %s: %d frames of %d x %d, objects: %d", sequence.name, len(frames), *size, len(names))
    first = by_place(truth[0], names)
    scores, masks = {}, {}
    for name, tracker in trackers.items():
        if tracker is None:
            drawn = [first] * len(frames)
        else:
            drawn = draw(tracker(frames), torch.from_numpy(first), len(names) + 1, config, name)
        scores[name] = [score(sequence.name, number, i, drawn, truth) for i, number in enumerate(names, 1)]
        if shown:
            masks[name] = _small(drawn)
    if not shown:
        return scores, None
    true = _small([by_place(numbers, names) for numbers in truth])
    return scores, Example(sequence.name, names, _small(list(frames.numpy())), true, masks)


def by_place(numbers: NDArray[np.int64], names: Sequence[int]) -> NDArray[np.int64]:
    """Objects by their place in ``names``, counted from 1; 0 for all else."""
    found = np.zeros_like(numbers)
    for place, number in enumerate(names, 1):
        found[numbers == number] = place
    return found


def _small(pictures: Sequence[NDArray[Any]]) -> NDArray[np.uint8]:
    """A few frames, small, for the report."""
    chosen = tracking_page.evenly(len(pictures), tracking_page.FRAMES)
    return np.stack([drawing.shrink(pictures[n], tracking_page.HEIGHT).astype(np.uint8) for n in chosen])


def draw(found: PatchMaps, first: Tensor, objects: int, config: TrackingConfig, name: str) -> list[NDArray[np.int64]]:
    """Numbers of objects ``[H, W]`` in every frame, by propagation from the ``first`` frame's."""
    if not found.maps.isfinite().all():
        raise ValueError(f"the features of {name} hold NaN or infinity: the encoder has diverged")
    start = to_patches(first, objects, (found.maps.shape[1], found.maps.shape[2]))
    soft = propagate(found.maps, start, config)
    size = (first.shape[0], first.shape[1])
    drawn = [to_pixels(masks, size, config.sharpen).cpu().numpy() for masks in soft]
    return [drawn[int(step)] for step in found.step_of_frame]


def score(
    sequence: str, number: int, place: int, drawn: Sequence[NDArray[np.int64]], truth: Sequence[NDArray[np.int64]]
) -> ObjectScore:
    """One object, called ``number`` in the annotations and ``place`` in ``drawn``; void pixels are not judged."""
    j, f = [], []
    for mine, numbers in list(zip(drawn, truth, strict=True))[1:-1]:
        mask, target = (mine == place) & (numbers != VOID), numbers == number
        j.append(region_similarity(mask, target))
        f.append(contour_accuracy(mask, target))
    return ObjectScore(sequence, number, j, f)


def row_of(name: str, objects: Sequence[ObjectScore], seed: int) -> TrackingRow:
    """The means of one encoder."""
    means = np.array([[np.mean(one.j), np.mean(one.f)] for one in objects])
    recalls = np.array([[np.mean(np.array(values) > 0.5) for values in (one.j, one.f)] for one in objects])
    names = [one.sequence for one in objects]
    (j_mean, f_mean), (j_recall, f_recall) = means.mean(axis=0).tolist(), recalls.mean(axis=0).tolist()
    interval = bootstrap_interval(means.mean(axis=1), names, seed=seed)
    return TrackingRow(
        name, (j_mean + f_mean) / 2, *interval, j_mean, j_recall, f_mean, f_recall, len(objects), len(set(names))
    )


def table(rows: Sequence[TrackingRow]) -> str:
    """Markdown: a line per encoder, in per cent."""
    head = ["encoder", "J&F", "J mean", "J recall", "F mean", "F recall"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        whole = f"{100 * row.jf:.1f} [{100 * row.low:.0f}, {100 * row.high:.0f}]"
        shares = [f"{100 * value:.1f}" for value in (row.j_mean, row.j_recall, row.f_mean, row.f_recall)]
        lines.append("| " + " | ".join([row.encoder, whole, *shares]) + " |")
    sizes = f"sequences: {rows[0].sequences}, objects: {rows[0].objects}"
    words = f"In per cent [95 % bootstrap interval over sequences]; {sizes}."
    return "\n".join([*lines, "", f"{words} `{STILL}`: the first frame's masks, never moved."])
