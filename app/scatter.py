"""The parts of ``jepa view`` that a table of features is enough for: neighbours of a few clips, a scatter of many."""

from __future__ import annotations

import argparse
import collections
import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from app.recorded import clips_of
from app.thumbnails import Clip, thumbnails
from app.view_page import GREY, PALETTE, Group, Names, missing_note, neighbour_section, row, scatter_section, thumb
from jepa.data.sources import SourceConfig, open_source
from jepa.features import FeatureTable
from jepa.monitor import principal_axes
from jepa.search import nearest

Found = list[tuple[int, float]]


def clip_sections(table: FeatureTable, args: argparse.Namespace) -> list[str]:
    """HTML: a note about missing files, nearest neighbours, the scatter. Fewer than two usable clips have none."""
    shown = shown_rows(table.vectors, args.max_clips)
    if len(shown) < 2:
        return []
    clips, unit = clips_of(table), unit_vectors(table.vectors[shown])
    rng = np.random.default_rng(args.seed)
    queries = np.sort(rng.choice(shown, min(args.queries, len(shown)), replace=False)).tolist()
    elsewhere = len(set(table.sources)) > args.k
    found = {query: neighbours_of(query, table, args.k, elsewhere, args.device) for query in queries}
    rows = sorted({*shown.tolist(), *queries, *(other for near in found.values() for other, _ in near)})
    drawn = thumbnails([clips[i] for i in rows], (table.metadata.get("clip") or {}).get("fps"))
    uris = dict(zip(rows, drawn.uris, strict=True))
    names = Names(table.sources)
    lines = [
        row(
            [thumb(uris[query], clips[query], names(clips[query].source))],
            [thumb(uris[i], clips[i], names(clips[i].source), score) for i, score in near],
        )
        for query, near in found.items()
    ]
    explained = (
        f"{len(queries)} clips drawn at random, and of each the {args.k} most alike among all {len(table):,} clips"
        f"{', those of its own file left out' if elsewhere else ''}. The number is the cosine of the pooled features."
    )
    chosen = [clips[i] for i in shown]
    groups, group_of = colour_groups(chosen, args.labels, args.label_column)
    places, shares = projections(unit, args.tsne)
    return [
        missing_note(drawn),
        neighbour_section(lines, explained),
        scatter_section(
            chosen, [uris[i] for i in shown.tolist()], places, groups, group_of, near_each(unit, args.k),
            describe(table, shown, shares, args),
        ),
    ]  # fmt: skip


def shown_rows(vectors: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """At most ``most`` rows, evenly spaced, without those that are zero or not finite (they have no direction)."""
    rows = np.unique(np.linspace(0, len(vectors) - 1, min(most, len(vectors))).round().astype(np.int64))
    lengths = np.linalg.norm(vectors[rows], axis=1)
    return rows[np.isfinite(lengths) & (lengths > 0)]


def unit_vectors(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every row at length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def neighbours_of(query: int, table: FeatureTable, k: int, elsewhere: bool, device: str) -> Found:
    """The ``k`` rows nearest to row ``query`` and their similarities; ``elsewhere``: of other files only."""
    source = table.sources[query]
    own = {i for i, other in enumerate(table.sources) if other == source} if elsewhere else {query}
    found = nearest(table.vectors, table.vectors[query], k + len(own), device=device, method="exact")
    pairs = zip(found.ids[0].tolist(), found.scores[0].tolist(), strict=True)
    return [pair for pair in pairs if pair[0] not in own][:k]


def near_each(unit: NDArray[np.float32], k: int) -> list[Found]:
    """For every row, the ``k`` nearest others among these rows."""
    found = nearest(unit, unit, k + 1, method="exact")
    pairs = [list(zip(*both, strict=True)) for both in zip(found.ids.tolist(), found.scores.tolist(), strict=True)]
    return [[pair for pair in near if pair[0] != own][:k] for own, near in enumerate(pairs)]


def projections(unit: NDArray[np.float32], tsne: bool) -> tuple[dict[str, NDArray[np.float64]], float]:
    """Places ``[K, 2]`` in [0, 1] by name of the projection, and the share of the variance that PCA's two axes hold.

    Raises ``ValueError`` when there are too few rows for t-SNE.
    """
    rows = torch.from_numpy(unit).double()
    mean, axes = principal_axes(rows, 2)
    centred = rows - mean
    plane = centred @ axes
    total = centred.square().sum()
    share = float(plane.square().sum() / total) if total > 0 else 1.0
    places = {"PCA": _fill(plane.numpy())}
    if tsne:
        from evals.probes.sklearn_bridge import tsne as arrange

        if len(unit) < 4:
            raise ValueError(f"--tsne needs at least 4 clips, not {len(unit)}")
        places["t-SNE"] = _fill(arrange(unit).astype(np.float64))
    return places, share


def _fill(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each axis stretched to [0, 1]; everything in the middle where it has no extent."""
    low, extent = places.min(axis=0), np.ptp(places, axis=0)
    return np.where(extent > 1e-9, (places - low) / np.where(extent > 1e-9, extent, 1), 0.5)


def describe(table: FeatureTable, shown: NDArray[np.int64], share: float, args: argparse.Namespace) -> str:
    """What the scatter shows, and what it leaves out."""
    asked = min(args.max_clips, len(table))
    words = "Every dot is a clip, placed by the first two principal components of its pooled features at length 1 "
    words += f"({100 * share:.0f} % of the variance)" + (", or by t-SNE. " if args.tsne else ". ")
    if asked < len(table):
        words += f"Shown are {asked:,} of {len(table):,} clips, evenly spaced in the table (--max-clips). "
    lost = asked - len(shown)
    if lost:
        whose = "1 clip is left out: its" if lost == 1 else f"{lost:,} clips are left out: their"
        words += f"{whose} features are zero or not finite. "
    return words + f"Coloured by {'label' if args.labels else 'folder'}."


def colour_groups(clips: Sequence[Clip], labels: str | None, column: str | None) -> tuple[list[Group], list[int]]:
    """Colours by folder, or by label, and the number of every clip's: the largest groups have colours of their own,
    the others and clips without a label are grey."""
    names = Names([clip.source for clip in clips])
    own = _labels(clips, labels, column) if labels else [os.path.dirname(names(clip.source)) for clip in clips]
    ordered = [name for name, _ in collections.Counter(own).most_common() if name or not labels]
    kept = sorted(ordered[: len(PALETTE)])
    number = {name: i for i, name in enumerate(kept)}
    group_of = [number.get(name, len(kept)) for name in own]
    counts = collections.Counter(group_of)
    groups = [Group(name or ".", PALETTE[i], counts[i]) for name, i in number.items()]
    if counts[len(kept)]:
        rest = len(ordered) - len(kept)
        grey = [f"{rest} other{'s' * (rest > 1)}"] * (rest > 0) + ["no label"] * (bool(labels) and "" in own)
        groups.append(Group(" and ".join(grey), GREY, counts[len(kept)]))
    return groups, group_of


def _labels(clips: Sequence[Clip], path: str, column: str | None) -> list[str]:
    """Every clip's class in a CSV as for training ('' for none); rows with a time count for clips whose middle they
    hold. Raises ``ValueError`` when no clip is in it."""
    source = open_source(SourceConfig(path=path, label_column=column))
    rows = collections.defaultdict(list)
    for item, file in enumerate(source.paths):
        rows[os.path.realpath(file)].append(item)

    def label(clip: Clip) -> str:
        middle = (clip.start_s + clip.end_s) / 2
        for item in rows.get(os.path.realpath(clip.source), []):
            inside = source.spans is None or source.spans[item, 0] <= middle < source.spans[item, 1]
            if inside and source.labels[item] >= 0:
                return source.class_names[source.labels[item]]
        return ""

    found = [label(clip) for clip in clips]
    if not any(found):
        raise ValueError(f"{path} has a label for none of the {len(clips):,} clips: its paths must name their files")
    return found
