"""What inferred actions are worth: six measures of a run of objective latent_action, beside others' (``against``).

A run with the bottleneck "zero" among them gives the lower end of prediction, one with "none" the upper end.
Definitions: ``evals.latent_actions.measures`` and ``evals.latent_actions.agreement``, docs/latent_actions.md.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evals.features.representations import encoder_hash
from evals.latent_actions import measures
from evals.latent_actions.agreement import contingency, directions, few_label_r2, mutual_information
from evals.latent_actions.opening import RunModel, Scenes, open_model, open_sources, read_scenes
from evals.outcome import versions
from evals.pages import latent_action_page
from evals.pages.latent_action_picture import Panel, draw_panels
from evals.settings import EvalConfig, TaskResult
from evals.subjects import TRAINED, Subject, facts
from evals.task_configs import LatentActionTask
from jepa.config import ConfigError
from jepa.distributed import Run


class LatentActionRow(NamedTuple):
    """One model. Errors are mean absolute errors of latents, one step ahead; ``measures.Errors`` says with which
    action. ``between``: where ``inferred`` lies from the zero model's error (0) to the unrestricted one's (1), None
    unless both are there and all three see the same latents.

    ``controllability``, ``leakage``, ``cycle`` (ratio), ``perplexity``: see ``measures``; the last is None without
    codes. ``agreement``: ``labels``, ``r2`` and ``spread`` for each number of labels, and ``information``: normalised
    mutual information of codes and true directions; empty and None without true actions (or codes).
    """

    model: str
    bottleneck: str
    inferred: float
    zero: float
    copy: float
    shuffled: float
    random: float | None
    between: float | None
    controllability: float
    leakage: float
    cut: float
    blind: float
    natural: float
    cycle: float
    forth: float
    back: float
    perplexity: float | None
    usage: list[float]
    agreement: list[dict[str, float]]
    information: float | None
    clips: int
    transitions: int


class Looked(NamedTuple):
    """One model after it was measured: its row, actions ``[N * (T-1), Z]``, ids of their codes (None: continuous)."""

    row: LatentActionRow
    actions: NDArray[np.float64]
    ids: NDArray[np.int64] | None
    fingerprint: str


def measure_actions(config: EvalConfig) -> TaskResult:
    """Measure the run and those of ``config.against`` on the same clips. Raises ``ValueError`` for a model that infers
    no actions, missing data, or fewer than two videos."""
    began, own = time.perf_counter(), config.latent_action
    with Run.start(config.device, config.precision) as run:
        names = (TRAINED, *config.against)
        if len(set(names)) < len(names):
            raise ConfigError(f"against {list(config.against)} names a model twice")
        models = {name: open_model(path, run) for name, path in zip(names, (config.run, *config.against), strict=True)}
        seconds, looked = {"models": time.perf_counter() - began}, dict[str, Looked]()
        sources = open_sources(config, models[TRAINED].objective.clip)
        began, true = time.perf_counter(), None
        for name, model in models.items():
            scenes = read_scenes(model, sources, own.clips, config.batch_size, config.workers)
            true = flat_actions(scenes) if true is None else true
            looked[name] = look(name, model, scenes, own)
        seconds["measures"] = time.perf_counter() - began
    rows = [part.row for part in with_bounds(list(looked.values()))]
    picture = draw(looked, true, own)
    subjects = {
        name: facts(Subject(name, path, models[name].objective.world_model.encoder), looked[name].fingerprint)
        for name, path in zip(models, (config.run, *config.against), strict=True)
    }
    about = {
        **subjects[TRAINED], "models": subjects, "test": [source.config.path for source in sources],
        "device": str(run.device), "precision": run.precision, "versions": versions(),
    }  # fmt: skip
    report = functools.partial(latent_action_page.draw, picture=picture)
    files = {"latent_actions.png": picture} if picture else {}
    return TaskResult(rows, seconds, about, table(rows), files, report=report)


def look(name: str, model: RunModel, scenes: Scenes, own: LatentActionTask) -> Looked:
    """All measures of one model."""
    actions = model.infer(scenes.latents)
    errors = measures.prediction_errors(model, scenes.latents, actions, own.seed)
    leak = measures.leakage(model, scenes.latents, scenes.videos, own.seed)
    circle = measures.cycle(model, scenes.latents)
    flat = actions.flatten(0, 1).double().cpu().numpy()
    ids, shares, perplexity = None, list[float](), None
    if model.codes is not None:
        ids = measures.code_ids(actions, model.codes)
        used, perplexity = measures.usage(actions, model.codes)
        shares = used.tolist()
    agreement, information = list[dict[str, float]](), None
    true = flat_actions(scenes)
    if true is not None:
        found = (few_label_r2(flat, true, count, own.draws, own.seed) for count in own.labels)
        agreement = [part._asdict() for part in found]
        if ids is not None and model.codes is not None:
            classes, names = directions(true, own.axes)
            information = mutual_information(contingency(ids, classes, (len(model.codes), len(names))))
    row = LatentActionRow(
        model=name, bottleneck=model.kind, **errors._asdict(), between=None, controllability=errors.controllability,
        leakage=leak.leakage, **leak._asdict(), cycle=circle.ratio, **circle._asdict(), perplexity=perplexity,
        usage=shares, agreement=agreement, information=information, clips=len(scenes.latents), transitions=len(flat),
    )  # fmt: skip
    return Looked(row, flat, ids, encoder_hash(model.objective.world_model.encoder))


def with_bounds(looked: Sequence[Looked]) -> list[Looked]:
    """``looked`` with ``between`` filled in, where a zero and an unrestricted model of the same latents are there (of
    several the best one)."""
    result = []
    for part in looked:
        ends: dict[str, float] = {}
        for other in looked:
            same = other.fingerprint == part.fingerprint and np.isclose(other.row.copy, part.row.copy)  # same head, too
            if same and other.row.bottleneck in ("zero", "none"):
                kind = other.row.bottleneck
                ends[kind] = min(other.row.inferred, ends.get(kind, np.inf))
        if len(ends) == 2 and ends["zero"] != ends["none"]:
            between = (ends["zero"] - part.row.inferred) / (ends["zero"] - ends["none"])
            part = part._replace(row=part.row._replace(between=between))
        result.append(part)
    return result


def flat_actions(scenes: Scenes) -> NDArray[np.float64] | None:
    """True actions ``[N * (T-1), A]``, or None."""
    return None if scenes.actions is None else scenes.actions.flatten(0, 1).double().cpu().numpy()


def draw(looked: Mapping[str, Looked], true: NDArray[np.float64] | None, own: LatentActionTask) -> bytes:
    """The picture of codes and directions; b'' without true actions."""
    if true is None:
        return b""
    classes, names = directions(true, own.axes)
    panels = [
        Panel(f"{name} ({part.row.bottleneck})", part.actions, part.ids, len(part.row.usage))
        for name, part in looked.items()
        if part.row.bottleneck != "zero"
    ]
    return draw_panels(panels, classes, names) if panels else b""


def table(rows: Sequence[LatentActionRow]) -> str:
    """Markdown: a line per model."""
    counts = [part["labels"] for part in rows[0].agreement]
    head = [
        "model", "bottleneck", "error", "copy", "error / copy", "between zero and none", "controllability", "leakage",
        "cycle", "perplexity", *(f"R2, {count} labels" for count in counts), "code information",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells: list[Any] = [
            row.model, row.bottleneck, f"{row.inferred:.4f}", f"{row.copy:.4f}", number(row.inferred / row.copy),
            number(row.between), number(row.controllability), number(row.leakage), number(row.cycle),
            number(row.perplexity), *(f"{part['r2']:.3f} ± {part['spread']:.3f}" for part in row.agreement),
            number(row.information),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    missing = "" if counts else " The data has no true actions to agree with."
    return "\n".join([*lines, "", f"{rows[0].transitions} transitions of {rows[0].clips} clips.{missing}"])


def number(value: float | None) -> str:
    """Three decimals, or nothing."""
    return "" if value is None else f"{value:.3f}"
