"""What the task "world_model" says of a model, as plain data, and as Markdown.

Shape legend: W windows, F features, S states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evals.metrics import bootstrap_interval, resampled_means
from evals.world_models.collecting import Frames, Windows
from evals.world_models.readout import Readout, Score, fit_readout, moves, score


class WorldModelRow(NamedTuple):
    """One model. ``prediction``: per ``horizon`` the errors ``error``, ``copy`` and ``mean`` of latents (mean over
    windows of each episode, then over episodes), each with a 95 % bootstrap interval over episodes (``..._interval``);
    ``ratio`` and ``ratio_mean``: error / copy and error / mean (None where these are 0); ``beyond``: further than the
    clips of training go.

    ``decoding``: per ``encoder`` ("trained", "random", "pixels") ``r2`` of the mean over the ``states`` with its
    ``interval``, and ``states`` by name (None: never moves). ``ahead``: per ``horizon`` the same of latents that are
    "predicted", "encoded" and "copied", by the readout of "trained". Both empty where the data has no states.
    ``planning``: ``jepa.planning.episodes.Summary`` of every agent, in the first model's row alone.
    """

    model: str
    measure: str
    context: int
    episodes: int
    windows: int
    fit_episodes: int
    prediction: list[dict[str, Any]]
    decoding: list[dict[str, Any]]
    ahead: list[dict[str, Any]]
    planning: list[dict[str, Any]]


class Decoded(NamedTuple):
    """What readouts say of the test frames: ``decoding`` and ``ahead`` of a row, the true ``states`` ``[N, S]``, what
    is ``read`` from the model's latents ``[N, S]``, and per horizon the true and the read states of predictions
    ``[W, S]``."""

    decoding: list[dict[str, Any]]
    ahead: list[dict[str, Any]]
    states: Tensor
    read: Tensor
    predicted: dict[int, tuple[Tensor, Tensor]]


def by_episode(values: Tensor, episodes: Tensor) -> Tensor:
    """Means of ``values`` ``[W]`` over the windows of each episode ``[E]``."""
    _, rows = episodes.unique(return_inverse=True)
    return torch.zeros(int(rows.max()) + 1, dtype=torch.float64).index_add(0, rows, values.double()) / rows.bincount()


def prediction_rows(windows: Windows, reach: int, seed: int = 0) -> list[dict[str, Any]]:
    """``prediction`` of a row; ``reach``: the last horizon that clips of training have room for."""
    found = []
    for horizon, errors in windows.errors.items():
        means = {name: by_episode(values, windows.episodes) for name, values in errors.items()}
        row: dict[str, Any] = {"horizon": horizon, "beyond": horizon > reach}
        for name, values in means.items():
            row[name] = values.mean().item()
            row[f"{name}_interval"] = bootstrap_interval(values, seed=seed)
        draws = {name: resampled_means(values, seed=seed) for name, values in means.items()}
        for name, other in (("ratio", "copy"), ("ratio_mean", "mean")):
            known = row[other] > 0 and bool((draws[other] > 0).all())
            row[name] = row["error"] / row[other] if known else None
            shares = draws["error"] / draws[other] if known else None
            row[f"{name}_interval"] = None if shares is None else np.quantile(shares, (0.025, 0.975)).tolist()
        found.append(row)
    return found


def decode(fit: Frames, test: Frames, windows: Windows, names: Sequence[str], seed: int = 0) -> Decoded | None:
    """None where training or test episodes have no states, or none that move."""
    if fit.states is None or test.states is None or not bool(moves(test.states).any()):
        return None
    learn, decoding = fit.thinned(), []
    fitted: dict[str, Readout] = {}
    assert learn.states is not None
    for name, features in learn.features.items():
        fitted[name] = fit_readout(features, learn.states, learn.episodes, seed)
        found = score(fitted[name](test.features[name]), test.states, test.episodes, seed)
        decoding.append({"encoder": name, **_plain(found, names), "frames": len(test.states)})
    read, ahead = fitted["trained"], []
    for horizon, states in windows.states.items():
        if not bool(moves(states).any()):
            continue
        row: dict[str, Any] = {"horizon": horizon}
        for side, features in windows.features[horizon].items():
            row[side] = _plain(score(read(features), states, windows.episodes, seed), names)
        ahead.append(row)
    said = {h: (states, read(windows.features[h]["predicted"])) for h, states in windows.states.items()}
    return Decoded(decoding, ahead, test.states, read(test.features["trained"]), said)


def _plain(found: Score, names: Sequence[str]) -> dict[str, Any]:
    return {"r2": found.mean, "interval": found.interval, "states": dict(zip(names, found.r2, strict=True))}


def table(rows: Sequence[WorldModelRow]) -> str:
    """Markdown: a table of errors, one of R2, one of success."""
    return "\n\n".join(part for part in (_errors(rows), _decoding(rows), _planning(rows)) if part)


def _lines(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    rows = ["| " + " | ".join(line) + " |" for line in (head, *cells)]
    return "\n".join([rows[0], "|" + "---|" * len(head), *rows[1:]])


def within(value: float | None, interval: Sequence[float] | None, digits: int = 3) -> str:
    """A number with its interval; a dash for none."""
    if value is None or interval is None:
        return "-"
    low, high = interval
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def error_cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table of prediction errors; ``rows`` as plain data."""
    head = ["model", "steps ahead", "error", "copy", "mean", "error / copy", "error / mean"]
    lines = [
        [row["model"], f"{part['horizon']}{' *' if part['beyond'] else ''}"]
        + [within(part[name], part[f"{name}_interval"], 4) for name in ("error", "copy", "mean")]
        + [within(part[name], part[f"{name}_interval"]) for name in ("ratio", "ratio_mean")]
        for row in rows
        for part in row["prediction"]
    ]
    return head, lines


def decoding_cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table of R2: encoded latents and baselines, then predicted latents by horizon."""
    known = [row for row in rows if row["decoding"]]
    if not known:
        return [], []
    names = list(known[0]["decoding"][0]["states"])
    lines = []
    for row in known:
        parts = [(part["encoder"], part) for part in row["decoding"]]
        parts += [(f"predicted, {part['horizon']} ahead", part["predicted"]) for part in row["ahead"]]
        parts += [(f"copied, {part['horizon']} ahead", part["copied"]) for part in row["ahead"]]
        for name, part in parts:
            cells = [part["states"].get(state) for state in names]
            shown = ["-" if cell is None else f"{cell:.3f}" for cell in cells]
            lines.append([row["model"], name, within(part["r2"], part["interval"]), *shown])
    return ["model", "read from", "R2, mean", *names], lines


def planning_cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table of agents."""
    lines = [
        [
            part["agent"], f"{part['successes']} of {part['episodes']}",
            within(*(100 * part["success_rate"], (100 * part["low"], 100 * part["high"])), 1),
            *("-" if part[key] is None else f"{part[key]:.1f}" for key in ("mean_steps", "median_ms", "p90_ms")),
        ]
        for row in rows for part in row["planning"]
    ]  # fmt: skip
    return ["agent", "reached", "success (%)", "steps when reached", "ms per action", "90 % of them below"], lines


def _errors(rows: Sequence[WorldModelRow]) -> str:
    parts = [row._asdict() for row in rows]
    words = f"Error of latents ({rows[0].measure}), {rows[0].windows} rollouts in {rows[0].episodes} episodes"
    beyond = any(part["beyond"] for row in parts for part in row["prediction"])
    return _lines(*error_cells(parts)) + f"\n\n{words}{'; * beyond the clips of training' if beyond else ''}."


def _decoding(rows: Sequence[WorldModelRow]) -> str:
    head, lines = decoding_cells([row._asdict() for row in rows])
    return _lines(head, lines) if lines else ""


def _planning(rows: Sequence[WorldModelRow]) -> str:
    head, lines = planning_cells([row._asdict() for row in rows])
    return _lines(head, lines) if lines else ""
