"""EPIC-KITCHENS-100 (Damen et al. 2022): actions of verb and noun in long egocentric videos."""

from __future__ import annotations

import logging
from pathlib import Path

from evals.datasets.base import ANNOTATION_FOLDERS, DatasetConfig, Listing, find_file, in_order, label_ids, read_table
from jepa.config import ConfigError

log = logging.getLogger("jepa")
_FOLDERS = (*ANNOTATION_FOLDERS, "epic-kitchens-100-annotations")
_COLUMNS = ("participant_id", "video_id", "start_timestamp", "stop_timestamp", "verb_class", "noun_class")


def read_epic100(root: Path, split: str, config: DatasetConfig) -> Listing:
    """``verb`` (97 classes), ``noun`` (300) and ``action``: pairs of both that the training set has, in sorted order.

    An item is an action from ``start_timestamp`` to ``stop_timestamp``. With ``anticipation_s`` its clips end so long
    before the start; an action that starts earlier in its video shows the video's first frame only. Actions of the
    validation set that training has not are counted, and have the action -1; their verbs and nouns still count.
    """
    training = find_file(root, "EPIC_100_train.csv", folders=_FOLDERS)
    path = find_file(root, f"EPIC_100_{split}.csv", folders=_FOLDERS)
    verb_file = find_file(root, "EPIC_100_verb_classes.csv", folders=_FOLDERS)
    # ..._v2.csv adds five classes of VISOR, which no action has
    noun_file = find_file(root, "EPIC_100_noun_classes.csv", folders=_FOLDERS)
    verbs, nouns = _classes(verb_file), _classes(noun_file)
    verb_ids, noun_ids = [str(i) for i in range(len(verbs))], [str(i) for i in range(len(nouns))]
    rows = read_table(path, *_COLUMNS)
    verb = label_ids([row[4] for row in rows], verb_ids, path, verb_file.name)
    noun = label_ids([row[5] for row in rows], noun_ids, path, noun_file.name)
    seen = read_table(training, "verb_class", "noun_class")
    seen_verbs = label_ids([v for v, _ in seen], verb_ids, training, verb_file.name)
    seen_nouns = label_ids([n for _, n in seen], noun_ids, training, noun_file.name)
    pairs = sorted(set(zip(seen_verbs, seen_nouns, strict=True)))
    ids = {pair: i for i, pair in enumerate(pairs)}
    action = [ids.get(pair, -1) for pair in zip(verb, noun, strict=True)]
    if -1 in action:
        log.warning("%s: %d of %d actions are not in the training set", path.name, action.count(-1), len(action))
    spans = [_span(row[2], row[3], path, number) for number, row in enumerate(rows, 1)]
    if config.anticipation_s is not None:
        spans = _before(spans, config.anticipation_s, path)
    where = {video: _find(root, person, video) for person, video in dict.fromkeys((row[0], row[1]) for row in rows)}
    return Listing(
        names=[row[1] for row in rows],
        paths=[where[row[1]] for row in rows],
        labels={"verb": verb, "noun": noun, "action": action},
        class_names={
            "verb": verbs,
            "noun": nouns,
            "action": tuple(f"{verbs[v]} {nouns[n]}" for v, n in pairs),
        },
        spans=spans,
        span="inside" if config.anticipation_s is None else "ending",
    )


def _classes(path: Path) -> tuple[str, ...]:
    return in_order([(number, name) for number, name in read_table(path, "id", "key")], path)


def _seconds(stamp: str) -> float:
    """``HH:MM:SS.ss`` in seconds. Raises ``ValueError``."""
    hours, minutes, seconds = stamp.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _span(start: str, stop: str, path: Path, number: int) -> tuple[float, float]:
    try:
        span = _seconds(start), _seconds(stop)
    except ValueError:
        raise ConfigError(f"{path}, row {number}: {start!r} and {stop!r} must be times HH:MM:SS.ss") from None
    if span[1] <= span[0]:
        raise ConfigError(f"{path}, row {number}: the action stops at {stop}, not after its start {start}")
    return span


def _before(spans: list[tuple[float, float]], gap_s: float, path: Path) -> list[tuple[float, float]]:
    """What may be seen of the videos: all until ``gap_s`` before the action."""
    seen = [(0.0, max(0.0, start - gap_s)) for start, _ in spans]
    early = sum(end == 0 for _, end in seen)
    if early:
        log.warning(
            "%s: %d of %d actions start within %g s of their video, whose first frame alone is shown for them",
            path.name, early, len(spans), gap_s,
        )  # fmt: skip
    return seen


def _find(root: Path, person: str, video: str) -> str:
    """The places where the download scripts of EPIC-KITCHENS-55 and -100 put a video, or ''."""
    for base in (root / "EPIC-KITCHENS", root):
        for folder in (f"{person}/videos", person, "videos", f"videos/train/{person}", f"videos/test/{person}"):
            for suffix in (".MP4", ".mp4"):
                file = base / folder / f"{video}{suffix}"
                if file.is_file():
                    return str(file)
    return ""
