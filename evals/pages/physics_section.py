"""The report's section on intuitive physics, from the folder of results that ``--task physics`` writes."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.pages import page

_NAMES = {
    "trained": "the trained model", "random": "the same network with random weights",
    "latents stay": "the last seen latents, unchanged", "pixels stay": "the last seen frame, unchanged",
    "pixels go on": "pixels that go on changing as they did", "pixel change": "the change from frame to frame",
}  # fmt: skip


def physics_section(folder: Path | None) -> str:
    """Scores, and surprise over time under the frames of a pair of every condition; '' without a folder."""
    if folder is None:
        return ""
    results = json.loads((folder / "results.json").read_text())
    rows, uri = results["rows"], ""
    if (folder / "physics.png").exists():
        uri = "data:image/png;base64," + base64.b64encode((folder / "physics.png").read_bytes()).decode()
    return page.section(
        "Is it surprised when a law is broken?",
        page.text(
            f"{len(results['pairs'])} pairs of videos of the built-in world, with bodies that training clips lack: "
            "the same up to an event, then one goes on and the other breaks a law (a body vanishes or appears, "
            "teleports, changes its shape, passes through a wall or turns back where there is none, turns without a "
            "cause; `hidden`: while it is behind a bar). Windows slide over each video; the first part of a window is "
            "seen and the rest is predicted. A pair is right when the impossible video surprises more; 50 % is chance."
        ),
        page.text(verdict(rows)),
        page.card(score_table(rows, "mean")),
        page.card(page.details("By the largest surprise of a video's windows, not the mean", score_table(rows, "max"))),
        page.card(
            page.image(
                uri, "surprise over time under frames of possible and impossible videos",
                "The first pair of each condition, and the trained model's surprise at both videos over time (the mean "
                "over context lengths). It can rise before the event: the target encoder looks at whole windows.",
            )
        ),
    )  # fmt: skip


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """All pairs in one sentence, by the mean surprise."""
    scores = {row["predictor"]: row for row in rows if row["over"] == "mean"}  # the last condition is that of all pairs
    parts = [f"{_share(row)} by {_NAMES.get(name, name)}" for name, row in scores.items()]
    return f"Right over all pairs, by mean surprise [95 % interval]: {'; '.join(parts)}."


def _share(row: Mapping[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f}\u00a0% [{100 * row['low']:.0f},\u00a0{100 * row['high']:.0f}]"


def score_table(rows: Sequence[Mapping[str, Any]], over: str, auroc: bool = False) -> str:
    """A line per condition, a column per predictor: accuracy with its interval or, if wanted, AUROC."""
    key = "auroc" if auroc else "accuracy"
    chosen = [row for row in rows if row["over"] == over]
    names = list(dict.fromkeys(row["predictor"] for row in chosen))
    lines, best = [], []
    for condition in dict.fromkeys(row["condition"] for row in chosen):
        found = {row["predictor"]: row for row in chosen if row["condition"] == condition}
        shares = [found[name][key] for name in names]
        words = [f"{found[name][key]:.2f}" if auroc else _share(found[name]) for name in names]
        lines.append([condition, *words, found[names[0]]["pairs"]])
        tied = shares.count(max(shares)) > 1
        best.append(-1 if tied else 1 + shares.index(max(shares)))
    return page.table(["condition", *names, "pairs"], lines, best)
