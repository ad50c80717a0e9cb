"""Nearest neighbours in feature space: which training clips look alike to an encoder, as pictures and as a number."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from evals import metrics
from evals.features.harness import FeatureSet
from evals.labelled import Labelled
from evals.pages import drawing, page
from evals.probes.preprocess import standardiser
from jepa.search import nearest
from jepa.types import ClipConfig

COUNT = 5


class Neighbours(NamedTuple):
    """``found`` int64 ``[K_test, n]``: rows of the training features nearest to every test clip, by name of encoder."""

    found: dict[str, Tensor]
    train_items: Tensor
    test_items: Tensor


def find_neighbours(train: Mapping[str, FeatureSet], test: Mapping[str, FeatureSet], count: int = COUNT) -> Neighbours:
    """The ``count`` nearest training clips of every test clip, by cosine of vectors (standardised on the former)."""
    found = {}
    for name, features in train.items():
        vectors = features.matrix()
        mean, inverse = standardiser(vectors.split(256))
        bank, queries = ((x - mean) * inverse for x in (vectors, test[name].matrix()))
        # A collapsed encoder's vectors are zero: they are as near to any other (0), and no reason to stop.
        directions = normalize(bank), normalize(queries)
        found[name] = torch.from_numpy(nearest(*directions, count, "dot").ids)
    first = next(iter(train))
    return Neighbours(found, train[first].items, test[first].items)


def agreement_table(neighbours: Neighbours, train: Labelled, test: Labelled) -> str:
    """Share of the neighbours that carry the query's label, over all test clips, per label and encoder."""
    names = list(neighbours.found)
    rows, best = [], []
    for label, ids in train.labels.items():
        bank, own = ids[neighbours.train_items], test.labels[label][neighbours.test_items]
        keep = own >= 0
        shares = [metrics.same_label_share(neighbours.found[name][keep], bank, own[keep]) for name in names]
        by_luck = sum(
            ((bank == c).double().mean() * (own[keep] == c).double().mean()).item() for c in own[keep].unique()
        )
        rows.append([label, *(f"{100 * share:.1f} %" for share in shares), f"{100 * by_luck:.1f} %"])
        best.append(1 + max(range(len(shares)), key=shares.__getitem__))
    return page.table(["same label among the 5 nearest", *names, "by luck"], rows, best)


def gallery(
    neighbours: Neighbours, names: Sequence[str], queries: Sequence[int], train: Labelled, test: Labelled,
    clip: ClipConfig, fps: float,
) -> str:  # fmt: skip
    """One row per query: the clip, then its nearest training clips by every encoder. Frames: green for the same first
    label, red for another."""

    def cell(side: Labelled, item: int, own: dict[str, str] | None) -> str:
        raw = side.source.load_clip(item, clip).frames
        words = describe(side, item)
        same = own is not None and bool(words) and all(own[k] == v for k, v in list(words.items())[:1])
        lines = (
            f"<b>{html.escape(v)}</b>" if own is not None and own.get(k) == v else html.escape(v)
            for k, v in words.items()
        )
        uri = drawing.gif(drawing.enlarge(raw, 64), fps)
        frame = "" if own is None else " same" if same else " other"
        picture = f'<img class="pixel{frame}" alt="clip" src="{uri}">'
        return f"<td>{picture}<small>{'<br>'.join(lines)}</small></td>"

    heads = "".join(
        f'<td class="gap"></td><th colspan="{COUNT}">nearest by the {html.escape(n)} encoder</th>' for n in names
    )
    rows = [f"<tr><th>query</th>{heads}</tr>"]
    for row in queries:
        item = int(neighbours.test_items[row])
        own = describe(test, item)
        cells = [cell(test, item, None)]
        for name in names:
            found = neighbours.train_items[neighbours.found[name][row]].tolist()
            cells += ['<td class="gap"></td>', *(cell(train, number, own) for number in found)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table class="near">{"".join(rows)}</table></div>'


def describe(side: Labelled, item: int) -> dict[str, str]:
    """A clip's classes by label, for captions."""
    return {label: side.class_names[label][int(ids[item])] for label, ids in side.labels.items() if int(ids[item]) >= 0}
