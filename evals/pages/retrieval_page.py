"""report.html of the task "retrieval": scores, queries with their nearest answers, the hardest ones, copies."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from evals.labelled import Labelled
from evals.pages import page, task_page
from evals.pages.neighbours import COUNT, Neighbours, gallery
from evals.pages.sections import frame_rate
from evals.pages.tables import share
from jepa.types import ClipConfig

SHOWN = 6  # queries


class Ranking(NamedTuple):
    """How one encoder answers: ``queries`` ``[Q]``, items of the test source; their average ``precisions`` ``[Q]``;
    and the nearest ``answers`` ``[Q, n]``, items of the gallery's source, nearest first."""

    queries: NDArray[np.int64]
    precisions: NDArray[np.float64]
    answers: NDArray[np.int64]


class Asked(NamedTuple):
    """What the pictures come from: both sides, the clip to be shown, rankings by encoder (of the first label), and the
    seed that draws queries."""

    test: Labelled
    bank: Labelled
    clip: ClipConfig
    rankings: Mapping[str, Ranking]
    seed: int


def draw(results: Mapping[str, Any], asked: Asked) -> str:
    """The whole page. ``results``: what results.json holds."""
    found = [row for row in results["rows"] if "map" in row]
    copies = [row for row in results["rows"] if "micro_ap" in row]
    first = found[0]
    others = ", ".join(
        f"{row['encoder']} {share(row['map'])}" for row in found[1:] if row["label"] == first["label"]
    )  # fmt: skip
    headline = (
        f"Ranked by the cosine of the {first['encoder']} encoder's features, clips of the query's {first['label']} "
        f"come first with a mean average precision of {share(first['map'])} % ({others}). Nothing was fitted."
    )
    facts = {"queries": f"{first['queries']:,}", "clips in the gallery": f"{first['gallery']:,}"}
    body = [_scores(found), _drawn(asked, first["label"]), _hardest(asked, first["label"]), _copies(copies)]
    return task_page.draw(results, "retrieval", headline, facts, body)


def _scores(rows: Sequence[Mapping[str, Any]]) -> str:
    bars, cuts = [], list(rows[0]["recall"])
    for label in dict.fromkeys(row["label"] for row in rows):
        own = [row for row in rows if row["label"] == label]
        bars.append(page.bars(f"{label}, mean average precision", [(r["encoder"], r["map"], r["error"]) for r in own]))
    lines = [
        [row["label"], row["encoder"], f"{share(row['map'])} ± {share(row['error'])}",
         *(share(row["recall"][cut]) for cut in cuts), row["unreadable"], row["unanswerable"]]
        for row in rows
    ]  # fmt: skip
    head = ["label", "encoder", "mAP", *(f"recall@{cut}" for cut in cuts), "unreadable", "without an answer"]
    return page.section(
        "Scores",
        page.text(
            "In per cent ± standard error over queries. Recall@k: share of queries with a right answer among the first "
            "k. Queries that cannot be read score 0; those whose class the gallery lacks are left out."
        ),
        page.card(f'<div class="bars">{"".join(bars)}</div>'),
        page.card(page.table(head, lines)),
    )


def _drawn(asked: Asked, label: str) -> str:
    queries = next(iter(asked.rankings.values())).queries
    order = np.random.default_rng(asked.seed).permutation(len(queries))[:SHOWN]
    return page.section(
        "Queries and their nearest answers",
        page.text(
            f"{len(order)} queries drawn at random. Green frame: an answer of the query's {label}; red: of another."
        ),
        page.card(_gallery(asked, list(asked.rankings), [int(queries[place]) for place in order])),
    )


def _hardest(asked: Asked, label: str) -> str:
    """Queries with the lowest average precision by the first encoder."""
    name, ranking = next(iter(asked.rankings.items()))
    order = np.argsort(ranking.precisions, kind="stable")[:SHOWN]
    names, ids = asked.test.class_names[label], asked.test.labels[label]
    lines = []
    for place in order:
        item = int(ranking.queries[place])
        path = os.path.basename(asked.test.source.paths[item])
        lines.append([path, names[int(ids[item])], share(float(ranking.precisions[place]))])
    return page.section(
        f"The hardest queries of the {name} encoder",
        page.text("Those with the lowest average precision."),
        page.card(_gallery(asked, [name], [int(ranking.queries[place]) for place in order])),
        page.card(page.table(["query", label, "average precision (%)"], lines)),
    )


def _gallery(asked: Asked, names: Sequence[str], items: Sequence[int]) -> str:
    found = {}
    for name in names:
        ranking = asked.rankings[name]
        rows = torch.zeros(len(asked.test.source), min(COUNT, ranking.answers.shape[1]), dtype=torch.int64)
        rows[torch.from_numpy(ranking.queries)] = torch.from_numpy(ranking.answers)
        found[name] = rows
    every = (torch.arange(len(side.source)) for side in (asked.bank, asked.test))
    neighbours = Neighbours(found, *every)
    return gallery(neighbours, names, items, asked.bank, asked.test, asked.clip, frame_rate(asked.clip))


def _copies(rows: Sequence[Mapping[str, Any]]) -> str:
    """Bars by degradation, micro-AP and recall@1."""
    bars = []
    for kind in dict.fromkeys(row["degradation"] for row in rows):
        own = [row for row in rows if row["degradation"] == kind]
        values = [(r["encoder"], r["micro_ap"], f"{share(r['micro_ap'])} / {share(r['recall_at_1'])}") for r in own]
        bars.append(page.bars(kind, values))
    if not bars:
        return ""
    one = rows[0]
    return page.section(
        "Degraded copies that have to find themselves",
        page.text(
            f"Bars: micro-AP over all pairs of {one['copies']:,} copies, {one['distractors']:,} distractors and "
            f"{one['gallery']:,} clips; beside them micro-AP / recall@1, in per cent."
        ),
        page.card(f'<div class="bars">{"".join(bars)}</div>'),
    )
