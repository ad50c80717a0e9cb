"""What a world model is worth: errors of its rollouts by horizon, true states in its latents, goals that it reaches.

Definitions: ``evals.world_models``, docs/evaluation.md.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import NamedTuple

from evals.features.representations import encoder_hash
from evals.outcome import versions
from evals.pages import world_model_page
from evals.pages.world_model_picture import draw_states
from evals.settings import EvalConfig, TaskResult
from evals.subjects import TRAINED, Subject, facts
from evals.world_models.acting import open_goal_task, play
from evals.world_models.collecting import choose_horizons, collect, folded_grid, look_ahead, readers
from evals.world_models.opening import Parts, Seer, check_widths, lengths_of, open_model, open_parts, state_names
from evals.world_models.rows import Decoded, WorldModelRow, decode, prediction_rows, table
from jepa.config import ConfigError
from jepa.data.batches import Failure
from jepa.distributed import Run

_LISTED = 20  # reasons in the notes


class Looked(NamedTuple):
    """One model after it was measured; ``decoded`` None: the data has no states."""

    row: WorldModelRow
    decoded: Decoded | None
    states: list[str]
    notes: list[str]
    unreadable: list[Failure]


def measure_world_model(config: EvalConfig) -> TaskResult:
    """Measure the run, and those of ``config.against`` on the same episodes at their own rates. Raises ``ValueError``
    for what is no world model, data that does not fit it or is too short, or an environment of other actions."""
    began, own = time.perf_counter(), config.world_model
    with Run.start(config.device, config.precision) as run:
        seers: dict[str, Seer] = {}
        for name, path in zip((TRAINED, *config.against), (config.run, *config.against), strict=True):
            if name in seers:
                raise ConfigError(f"against names {name!r} twice")
            seers[name] = open_model(path, run, own.context)
        parts = open_parts(config, seers[TRAINED].world.clip)
        for name, seer in seers.items():
            check_widths(name, seer.world, [*parts.fit, *parts.test])
        task = open_goal_task(own, seers)
        seconds, began = {"models and data": time.perf_counter() - began}, time.perf_counter()
        looked = [look(name, seer, parts, config) for name, seer in seers.items()]
        seconds["episodes"], began = time.perf_counter() - began, time.perf_counter()
        rows, notes = [part.row for part in looked], list(dict.fromkeys(n for part in looked for n in part.notes))
        if task is not None:
            try:
                summaries, more = play(own, task, seers)
            finally:
                task.close()
            rows[0] = rows[0]._replace(planning=[asdict(summary) for summary in summaries])
            notes += more
            seconds["planning"] = time.perf_counter() - began
    return _result(config, run, seers, looked, rows, seconds, notes)


def _result(
    config: EvalConfig, run: Run, seers: dict[str, Seer], looked: Sequence[Looked], rows: list[WorldModelRow],
    seconds: dict[str, float], notes: list[str],
) -> TaskResult:  # fmt: skip
    subjects = {}
    for name, path in zip(seers, (config.run, *config.against), strict=True):
        encoder = seers[name].world.encoder
        subjects[name] = facts(Subject(name, path, encoder), encoder_hash(encoder))
    failures = {failure.path: failure.reason for part in looked for failure in part.unreadable}
    lists = [f"- {reason}" for reason in list(failures.values())[:_LISTED]]
    if lists:
        notes.append("\n".join([f"{len(failures)} episodes cannot be read and are left out:", "", *lists]))
    first = looked[0]
    picture = b"" if first.decoded is None else draw_states(first.decoded, first.states)
    about = {
        **subjects[TRAINED], "models": subjects, "device": str(run.device), "precision": run.precision,
        "versions": versions(), "unreadable": failures,
    }  # fmt: skip
    return TaskResult(
        rows, seconds, about, table(rows), {"states.png": picture} if picture else {}, "\n\n".join(notes),
        functools.partial(world_model_page.draw, picture=picture),
    )  # fmt: skip


def look(name: str, seer: Seer, parts: Parts, config: EvalConfig) -> Looked:
    """All that is measured of one model without an environment."""
    own, world = config.world_model, seer.world
    lengths = lengths_of(parts.test, world.clip)
    horizons = choose_horizons(own.horizons, lengths, seer.context)
    least, notes, failures = seer.context + max(horizons), list[str](), list[Failure]()
    short = sum(length < least for length in lengths.values())
    if short:
        notes.append(f"{name}: {short} of {len(lengths)} test episodes have fewer than {least} frames: no rollouts.")
    read = readers(world, config.baselines if name == TRAINED else (), config.random_seed)
    fit = collect(parts.fit, seer, read, failures)
    test, windows = look_ahead(
        parts.test, seer, read, fit.mean, horizons, own.windows, own.measure, config.batch_size, failures
    )
    names = [] if test.states is None else state_names(parts.test, test.states.shape[1])
    decoded = decode(fit, test, windows, names, own.seed)
    if decoded is None:
        why = "no states" if fit.states is None or test.states is None else "states that never change"
        notes.append(f"The episodes have {why}: nothing is decoded.")
    kept = folded_grid(world.grid, world.latent_dim)
    if decoded is not None and kept != (world.grid.h, world.grid.w):
        notes.append(f"{name}: states are read from {kept[0]} x {kept[1]} averages of latents.")
    row = WorldModelRow(
        model=name, measure=own.measure, context=seer.context, episodes=len(windows.episodes.unique()),
        windows=len(windows.episodes), fit_episodes=len(fit.episodes.unique()),
        prediction=prediction_rows(windows, world.clip.num_frames - seer.context, own.seed),
        decoding=decoded.decoding if decoded else [], ahead=decoded.ahead if decoded else [], planning=[],
    )  # fmt: skip
    return Looked(row, decoded, names, notes, failures)
