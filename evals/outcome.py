"""What chosen heads say about every test clip, as it is kept beside the results for later comparisons."""

from __future__ import annotations

import importlib.metadata
import io
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evals import metrics
from evals.features.harness import FeatureSet
from evals.labelled import Labelled
from evals.pages import tables
from evals.probes import ProbeResult
from evals.settings import Row
from jepa.data.sources import Source
from jepa.data.video import is_url

PREDICTIONS = "predictions.npz"
_LISTED = 20  # reasons below the table; results.json has all
MAX_ON_TEST = "max over heads on test, as some papers report it; not used"


class Outcome(NamedTuple):
    """One cell of the table, clip by clip: true ``labels`` int64 ``[N]`` of the N items of the test source (-1: none,
    not counted), ``predictions`` int64 ``[N]`` and ``probabilities`` float32 ``[N, C]`` of the chosen head (-1 and 0
    where the clip has no label or cannot be decoded), and its ``row``."""

    row: Row
    labels: Tensor
    predictions: Tensor
    probabilities: Tensor


def judge(
    result: ProbeResult, label: str, encoder: str, labels: Tensor, items: Tensor, names: Sequence[str], chance: float
) -> Outcome:
    """The outcome of a probe on the test clips ``items`` ``[K]`` of a source with ``labels`` ``[N]``.

    Items with a label that are not among ``items`` could not be decoded, and count as errors.
    """
    predictions = torch.full_like(labels, -1)
    probabilities = torch.zeros(len(labels), result.num_classes)
    predictions[items], probabilities[items] = result.predictions, result.probabilities
    counted = labels >= 0
    own, said = labels[counted], predictions[counted]
    right = own == said
    five = metrics.among_top(probabilities[counted], own, 5) * (said >= 0) if result.num_classes > 5 else None
    on_test = ((result.head_predictions == labels[items]).sum(dim=1).double() / len(own)).tolist()
    accuracy = metrics.accuracy(said, own)
    table = metrics.confusion(said, own, result.num_classes)
    row = Row(
        probe=result.kind, label=label, encoder=encoder, accuracy=accuracy,
        error=metrics.standard_error(accuracy, len(own)), interval=metrics.bootstrap_interval(right), chance=chance,
        held_out=next(head.accuracy for head in result.heads if head.setting == result.chosen), chosen=result.chosen,
        heads=[head._asdict() for head in result.heads], heads_on_test=on_test, max_on_test=max(on_test),
        per_class=dict(zip(names, metrics.class_accuracy(said, own, result.num_classes))),
        confusion={
            names[c]: {names[int(k)]: int(counts[k]) for k in counts.nonzero().flatten()}
            for c, counts in enumerate(table) if counts.any()
        },
        num_train=result.num_train, num_test=len(own), num_undecodable=len(own) - len(items),
        num_classes=result.num_classes, seconds=result.seconds,
        top5=None if five is None else five.mean().item(),
        recall_at_5=None if five is None else metrics.class_mean(five, own),
    )  # fmt: skip
    return Outcome(row, labels, predictions, probabilities)


def undecodable(side: Labelled, features: Mapping[str, FeatureSet]) -> list[Any]:
    """Path, span and reason of every labelled item that some representation has no features of."""
    wanted = torch.stack(list(side.labels.values())).amax(dim=0) >= 0
    found: dict[int, str] = {}
    for known in features.values():
        found = {**{item: reason for item, reason in known.failures.items() if wanted[item]}, **found}
    return [
        {"path": side.source.paths[item], "span_s": side.source.span_s(item), "reason": reason}
        for item, reason in sorted(found.items())
    ]


def key(probe: str, label: str, encoder: str, variant: str = "") -> str:
    """The name under which ``predictions.npz`` keeps an outcome; ``variant`` as in ``Row.variant``."""
    return f"{probe} {variant}/{label}/{encoder}" if variant else f"{probe}/{label}/{encoder}"


def identities(source: Source) -> dict[str, NDArray[Any]]:
    """What tells the N items of ``source`` apart in files of results: ``path`` ``[N]`` (absolute) and ``span_s``
    ``[N, 2]`` (NaN: the whole video)."""
    paths = [path if is_url(path) else os.path.abspath(path) for path in source.paths]
    spans = np.full((len(source), 2), np.nan) if source.spans is None else source.spans
    return {"path": np.array(paths), "span_s": spans}


def pack(source: Source, outcomes: Sequence[Outcome]) -> bytes:
    """``predictions.npz``: ``path`` ``[N]`` (absolute), ``span_s`` ``[N, 2]`` (NaN: the whole video),
    ``labels/LABEL`` ``[N]``, and ``PROBE/LABEL/ENCODER/predictions`` ``[N]`` and ``.../probabilities`` ``[N, C]``;
    for few labels and single layers "PROBE VARIANT" in place of ``PROBE``."""
    arrays: dict[str, Any] = identities(source)
    for outcome in outcomes:
        name = key(*outcome.row[:3], outcome.row.variant)
        arrays[f"labels/{outcome.row.label}"] = outcome.labels.numpy()
        arrays[f"{name}/predictions"] = outcome.predictions.numpy()
        arrays[f"{name}/probabilities"] = outcome.probabilities.numpy()
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    return data.getvalue()


def notes(rows: Sequence[Row], lists: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Markdown below the table: heads on the test set beside the honest number, and files that cannot be decoded."""
    lines = [
        "± is the binomial standard error, [ , ] the 95 % bootstrap interval over test clips.", "",
        f"| probe | label | encoder | held out | test | {MAX_ON_TEST} |", "|" + "---|" * 6,
    ]  # fmt: skip
    for row in rows:
        shares = (tables.share(share) for share in (row.held_out, row.accuracy, row.max_on_test))
        probe = f"{row.probe}, {row.variant}" if row.variant else row.probe
        lines.append("| " + " | ".join([probe, row.label, row.encoder, *shares]) + " |")
    for split, what in (("test", "count as errors"), ("train", "are left out")):
        if lists[split]:
            lines += ["", f"{len(lists[split])} {split} clips cannot be decoded and {what}:", ""]
            lines += [f"- {clip['reason']}" for clip in lists[split][:_LISTED]]
            lines += [f"- and {more} more, in results.json"] if (more := len(lists[split]) - _LISTED) > 0 else []
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Of Python and of the libraries that the numbers depend on."""
    libraries = ("torch", "numpy", "scikit-learn", "timm")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in libraries}}
