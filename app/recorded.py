"""What a feature file says about how it was made, put to use: the same encoder, the same preprocessing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.thumbnails import Clip
from jepa.config import from_dict
from jepa.encode import encode
from jepa.features import Features, FeatureTable
from jepa.load import load
from jepa.models.base import ClipEncoder
from jepa.types import ClipConfig


def clips_of(table: FeatureTable) -> list[Clip]:
    """Every row of a table as the part of a file that it was made from."""
    return [Clip(*row) for row in zip(table.sources, table.start_s.tolist(), table.end_s.tolist(), strict=True)]


def encoded_clips(encoded: Features) -> list[Clip]:
    """Every clip of ``Features``: its source, and the seconds from its first tubelet to its last."""
    assert encoded.start_s is not None
    assert encoded.end_s is not None
    times = zip(encoded.sources, encoded.start_s[:, 0].tolist(), encoded.end_s[:, -1].tolist(), strict=True)
    return [Clip(*time) for time in times]


def rows_of_source(table: FeatureTable, path: str) -> list[int]:
    """The rows that were made from this file, by name or by place."""
    rows = [row for row, source in enumerate(table.sources) if source == path]
    if rows:
        return rows
    place = os.path.realpath(path)
    same = {source for source in set(table.sources) if os.path.realpath(source) == place}
    return [row for row, source in enumerate(table.sources) if source in same]


def open_encoder(features: str, metadata: Mapping[str, Any], model: str | None) -> ClipEncoder:
    """The encoder that ``features`` were made with, or ``model``; it reads clips as the file's metadata say.

    Raises ``ValueError`` naming the file and ``--model`` when the recorded one is not there.
    """
    recorded = metadata.get("model")
    if model is None and not recorded:
        raise ValueError(f"{features} does not say which model made it: give the model with --model")
    try:
        encoder = load(model or str(recorded), metadata.get("weights") or "target_encoder")
    except ValueError as error:
        if model is not None:
            raise
        raise ValueError(
            f"{features} was made with the model {recorded}, which cannot be loaded ({error}): give it with --model"
        ) from None
    if metadata.get("clip"):
        encoder.clip = from_dict(ClipConfig, metadata["clip"], "clip")
    return encoder


def encode_as_recorded(
    path: str, features: str, metadata: Mapping[str, Any], model: str | None, device: str
) -> tuple[list[Clip], NDArray[np.float32]]:
    """A file's clips, and their vectors ``[n, D]``, made as those in the file ``features``."""
    if metadata.get("pool") == "attentive":
        raise ValueError(
            f"{features} was pooled by an attentive probe, and does not hold it: add {path} to the inputs of "
            "`jepa encode`, then give its row ('#ROW') or its name as the query"
        )
    encoder = open_encoder(features, metadata, model)
    encoded = encode(
        path, encoder, device=device, pool="mean", layers=metadata.get("layers") or None,
        segments=metadata.get("segments") or 1, overlap=metadata.get("overlap"), merge=metadata.get("merge") or "none",
    )  # fmt: skip
    return encoded_clips(encoded), encoded.pooled().numpy()
