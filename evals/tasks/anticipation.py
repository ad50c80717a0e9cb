"""Action anticipation: what will be done, from a clip that ends before it begins; for EPIC-KITCHENS-100.

The measure is mean-class recall at 5 (Damen et al. 2022): several actions may well follow, and classes are unequal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from evals.anticipating import AnticipatingEncoder, tubelets_ahead
from evals.labelled import Labelled
from evals.pages.tables import Table, error_words, share
from evals.settings import EvalConfig, Row, TaskResult
from evals.subjects import Subject, open_subjects
from evals.task_configs import AnticipationConfig
from evals.tasks.video import classify_videos
from jepa.config import ConfigError
from jepa.models.encoder import Encoder
from jepa.predictive import load_predictive
from jepa.tensorfiles import CheckpointError

CONTEXT_ONLY = "the clip alone"


def anticipate(config: EvalConfig) -> TaskResult:
    """Probe the encoders and the baselines for every label. Raises ``ValueError`` for sources whose clips do not end
    before an action, and settings that prediction does not go with."""
    config = with_gap(config)
    own = config.anticipation
    seen: dict[str, str] = {}
    subjects = []
    for subject in open_subjects(config):
        ready, seen[subject.name] = look_ahead(subject, own)
        subjects.append(ready)
    check_predicting(config, subjects)
    result = classify_videos(config, subjects, check_ending)
    facts = {**result.facts, "anticipation": {"anticipation_s": own.anticipation_s, "seen": seen}}
    return result._replace(
        facts=facts, table=table(result.rows), notes="\n\n".join((seen_words(own, seen), result.notes))
    )


def with_gap(config: EvalConfig) -> EvalConfig:
    """The config, whose data set ends its clips before the actions. Raises ``ConfigError`` for two different gaps."""
    dataset, gap = config.dataset, config.anticipation.anticipation_s
    if dataset is None:
        return config
    if dataset.anticipation_s not in (None, gap):
        raise ConfigError(
            f"dataset.anticipation_s is {dataset.anticipation_s:g} and anticipation.anticipation_s {gap:g}: leave the "
            "first one out"
        )
    return replace(config, dataset=replace(dataset, anticipation_s=gap))


def check_ending(split: Labelled) -> None:
    """Raise ``ConfigError`` for a source whose clips may show the action."""
    source = split.source
    if source.config.span != "ending" or source.spans is None:
        raise ConfigError(
            f"{source.config.path}: anticipation needs clips that end before the action: a CSV with start_s and end_s "
            "(what may be seen of the video) and span 'ending' (--span ending), or the data set epic100"
        )


def look_ahead(subject: Subject, config: AnticipationConfig) -> tuple[Subject, str]:
    """The model with its predictor at work, where it is asked for and there is one; and in words what probes see."""
    if not config.predict:
        return subject, f"{CONTEXT_ONLY}, as anticipation.predict is false"
    if not isinstance(subject.encoder, Encoder):
        return subject, f"{CONTEXT_ONLY}: {subject.model} has no predictor"
    try:
        predictor = load_predictive(subject.model).predictor
    except CheckpointError as error:  # the encoder could be loaded, so it is the predictor that is missing
        return subject, f"{CONTEXT_ONLY}: {error}"
    try:
        tubelets = tubelets_ahead(subject.encoder, config.anticipation_s)
    except ValueError as error:
        raise ConfigError(f"{subject.model} cannot look ahead: {error}") from None
    if not config.mask_token < len(predictor.mask_tokens):
        raise ConfigError(
            f"anticipation.mask_token {config.mask_token} does not exist: the predictor of {subject.model} has "
            f"{len(predictor.mask_tokens)}, counted from 0"
        )
    try:
        encoder = AnticipatingEncoder.around(subject.encoder, predictor, tubelets, config.mask_token)
    except ValueError as error:
        return subject, f"{CONTEXT_ONLY}: {error}"
    return subject._replace(encoder=encoder), f"the clip, and the tubelet predicted {tubelets} tubelets after it"


def check_predicting(config: EvalConfig, subjects: Sequence[Subject]) -> None:
    """Raise ``ConfigError`` for settings that predicted tokens do not go with."""
    if not any(isinstance(subject.encoder, AnticipatingEncoder) for subject in subjects):
        return
    if config.segments != 1:
        raise ConfigError(f"a prediction follows a single clip: set segments to 1, not {config.segments}")
    if config.layers is not None or config.sweep_layers:
        raise ConfigError("predictions follow the last block: leave layers out, or set anticipation.predict=false")
    first = subjects[0].encoder
    if "pixels" in config.baselines and first.grid.t > first.clip.num_frames:
        raise ConfigError("tubelets of one frame leave no frame for the predicted one: leave the baseline pixels out")


def seen_words(config: AnticipationConfig, seen: Mapping[str, str]) -> str:
    """Markdown: what the probes of every model see."""
    lines = [f"Clips end {config.anticipation_s:g} s before the action. Probes see:", ""]
    return "\n".join([*lines, *(f"- {name}: {words}" for name, words in seen.items())])


def table(rows: Sequence[Row]) -> str:
    """Markdown: for every probe and label (and part of the labels, or layer) mean-class recall at 5, then accuracy and
    top-5 accuracy, a column per encoder; in per cent. Recall at 5 says nothing of fewer than six classes: a dash."""
    names = list(dict.fromkeys(row.encoder for row in rows))
    found = Table(["probe", "label", "measure", *names, "classes", "train clips", "test clips"], [], [])
    groups: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((row.probe, f"{row.label} {row.variant}".strip()), {})[row.encoder] = row
    for (probe, label), group in groups.items():
        one = next(iter(group.values()))
        sizes = [str(number) for number in (one.num_classes, one.num_train, one.num_test)]
        measures = {
            "mean-class recall at 5": {name: share(row.recall_at_5) for name, row in group.items()},
            "accuracy": {name: error_words(row._asdict()) for name, row in group.items()},
            "top-5 accuracy": {name: share(row.top5) for name, row in group.items()},
        }
        for measure, words in measures.items():
            found.lines.append([probe, label, measure, *(words.get(name, share(None)) for name in names), *sizes])
            found.best.append(-1)
    return found.markdown()
