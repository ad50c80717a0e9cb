"""Nearest neighbours among feature vectors: exact in constant memory, or by an approximate index for large tables.

Exact search multiplies chunks of the table with the queries and keeps the best ``k``. Past ``APPROXIMATE_FROM`` rows
an inverted file (J. Sivic and A. Zisserman, "Video Google", ICCV 2003, in faiss: J. Johnson et al., "Billion-scale
similarity search with GPUs", 2017) looks only into the cells nearest to a query; the scores of what it finds are then
computed exactly.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.distributed import choose_device

log = logging.getLogger("jepa")

Metric = Literal["cosine", "dot", "euclidean"]
Method = Literal["auto", "exact", "approximate"]
Vectors: TypeAlias = NDArray[Any] | Tensor

APPROXIMATE_FROM = 1_000_000
_CHUNK_VALUES = 1 << 23  # numbers of the table in memory at once
_QUERIES = 512  # queries multiplied at once
_CANDIDATES = 4  # an index is asked for so many times k, because it keeps half-precision vectors
_PROBED = 64  # cells of the index that a query looks into
_PER_CELL = 40  # training vectors per cell; faiss warns below 39


class Neighbours(NamedTuple):
    """``ids`` int64 ``[Q, n]``: rows of the table, nearest first; ``scores`` float32 ``[Q, n]``, larger is nearer.

    ``n`` is ``k``, or the number of usable rows where that is smaller. ``method``: what was used. ``skipped``: rows
    that could not be compared (not finite, or for the cosine of length zero); they are never found.
    """

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    method: Literal["exact", "approximate"]
    skipped: int


def nearest(
    vectors: Vectors, queries: Vectors, k: int, metric: Metric = "cosine", *, device: str = "cpu",
    method: Method = "auto", threshold: int = APPROXIMATE_FROM, index_path: str | Path | None = None,
) -> Neighbours:  # fmt: skip
    """The ``k`` rows of ``vectors`` ``[K, D]`` nearest to every row of ``queries`` ``[Q, D]`` (or one query ``[D]``).

    ``vectors`` may be mapped from disk (``np.memmap``): it is read once, in chunks. ``metric``: "cosine", "dot", or
    "euclidean", whose score is minus the distance. Of equal scores the smaller row comes first.

    ``method`` "auto" is exact up to ``threshold`` rows and approximate above; the latter needs faiss. ``index_path``:
    an approximate index is kept in a file of this name, with a fingerprint of the vectors in it, and used again.
    ``device`` is for exact search: "auto", "cpu", "cuda", "mps".

    Raises ``ValueError`` for shapes that do not fit, a query that is zero or not finite, or when faiss is missing.
    """
    queries = _tensor(queries).cpu()
    queries = queries[None] if queries.ndim == 1 else queries
    _check(vectors, queries, k, metric, method)
    bad = torch.nonzero(~_usable(queries, metric)).flatten().tolist()
    if bad:
        why = "zero or not finite" if metric == "cosine" else "not finite"
        raise ValueError(f"query {bad[0]} is {why}: its neighbours by {metric} are not defined")
    queries = _prepare(queries, metric)
    if method == "approximate" or (method == "auto" and len(vectors) > threshold):
        return _approximate(vectors, queries, k, metric, index_path)
    return _exact(vectors, queries, k, metric, choose_device(device))


def _tensor(values: Vectors) -> Tensor:
    """float32; an array is copied, because one that is mapped from disk cannot be written to."""
    return (values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))).float()


def _check(vectors: Vectors, queries: Tensor, k: int, metric: str, method: str) -> None:
    if metric not in get_args(Metric):
        raise ValueError(f"metric must be one of {', '.join(get_args(Metric))}, not {metric!r}")
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, not {method!r}")
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if vectors.ndim != 2 or queries.ndim != 2 or vectors.shape[1] != queries.shape[1]:
        shapes = f"{list(vectors.shape)} and {list(queries.shape)}"
        raise ValueError(f"vectors [K, D] and queries [Q, D] must have one width, not {shapes}")


# ---- exact -----------------------------------------------------------------------------------------------------------


def _exact(vectors: Vectors, queries: Tensor, k: int, metric: Metric, device: torch.device) -> Neighbours:
    parts = queries.to(device).split(_QUERIES)
    best: list[tuple[Tensor, Tensor]] = [
        (torch.empty(len(q), 0, device=device), torch.empty(len(q), 0, dtype=torch.int64, device=device)) for q in parts
    ]
    usable_rows = 0
    for rows, ids in _chunks(vectors, metric, device):
        usable_rows += len(rows)
        for number, part in enumerate(parts):
            scores, place = _top(_scores(rows, part, metric), k)
            merged = torch.cat((best[number][0], scores), dim=1), torch.cat((best[number][1], ids[place]), dim=1)
            scores, place = _top(merged[0], k)  # earlier chunks stand first: ties stay in order of rows
            best[number] = scores, merged[1].gather(1, place)
    return Neighbours(
        torch.cat([ids for _, ids in best]).cpu().numpy(), torch.cat([scores for scores, _ in best]).cpu().numpy(),
        "exact", len(vectors) - usable_rows,
    )  # fmt: skip


def _chunks(vectors: Vectors, metric: Metric, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Usable rows, ready to be compared, float32 ``[n, D]``, and their numbers, int64 ``[n]``."""
    size = max(1, _CHUNK_VALUES // max(1, vectors.shape[1]))
    for start in range(0, len(vectors), size):
        part = vectors[start : start + size]
        rows = _tensor(part).to(device)
        keep = torch.nonzero(_usable(rows, metric)).flatten()
        yield _prepare(rows if len(keep) == len(rows) else rows[keep], metric), keep + start


def _usable(rows: Tensor, metric: Metric) -> Tensor:
    length = rows.norm(dim=1)
    return torch.isfinite(length) & (length > 0) if metric == "cosine" else torch.isfinite(length)


def _prepare(rows: Tensor, metric: Metric) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True) if metric == "cosine" else rows


def _scores(rows: Tensor, queries: Tensor, metric: Metric) -> Tensor:
    """``[n, D]`` and ``[Q, D]`` to ``[Q, n]``."""
    if metric == "euclidean":  # differences, not squares and products, which cancel between near vectors
        return -torch.cdist(queries, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return queries @ rows.T


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest of every row ``[Q, n]``, largest first, and their columns; of equal ones the first columns."""
    k = min(k, scores.shape[1])
    if k == 0:
        return scores[:, :0], torch.empty(len(scores), 0, dtype=torch.int64, device=scores.device)
    found, place = scores.topk(k, dim=1)
    tied = torch.nonzero((scores >= found[:, -1:]).sum(dim=1) > k).flatten()
    if len(tied):  # topk may take any of those that equal the last
        ordered = scores[tied].sort(dim=1, descending=True, stable=True)
        found[tied], place[tied] = ordered.values[:, :k], ordered.indices[:, :k]
    place = place.sort(dim=1).values
    found, order = scores.gather(1, place).sort(dim=1, descending=True, stable=True)
    return found, place.gather(1, order)


# ---- approximate -----------------------------------------------------------------------------------------------------


@functools.cache
def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise ValueError(
            "a table of this size is searched by an approximate index, which needs faiss: "
            "pip install 'jepa-toolkit[search]', or search exactly (--exact, method=\"exact\")"
        ) from None
    return faiss


def _approximate(
    vectors: Vectors, queries: Tensor, k: int, metric: Metric, index_path: str | Path | None
) -> Neighbours:
    index = _open_index(vectors, metric, Path(index_path) if index_path else None)
    count = min(_CANDIDATES * k, index.ntotal)
    if count == 0:
        return Neighbours(
            np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32), "approximate", len(vectors)
        )
    index.nprobe = min(_PROBED, index.nlist)
    found = index.search(queries.numpy(), count)[1]
    if (found < 0).any():  # the cells looked into hold too few
        index.nprobe = index.nlist
        found = index.search(queries.numpy(), count)[1]
    shape = len(queries), min(k, count)
    ids, scores = np.empty(shape, np.int64), np.empty(shape, np.float32)
    for row, candidates in enumerate(found):
        candidates = np.sort(candidates)
        rows = _prepare(_tensor(vectors[candidates]).cpu(), metric)
        exact, place = _top(_scores(rows, queries[row : row + 1], metric), k)
        ids[row], scores[row] = candidates[place[0].numpy()], exact[0].numpy()
    return Neighbours(ids, scores, "approximate", len(vectors) - index.ntotal)


def _open_index(vectors: Vectors, metric: Metric, path: Path | None) -> Any:
    """The index of these vectors: the file that an earlier search left, or a new one (written to ``path``)."""
    if path is None:
        return _build_index(vectors, metric)
    faiss = _faiss()
    own = path.with_name(f"{path.name}.{_fingerprint(vectors, metric)}")
    if own.exists():
        try:
            return faiss.read_index(str(own), faiss.IO_FLAG_MMAP)
        except RuntimeError as error:  # faiss's word for a file that it cannot read
            log.warning("index %s cannot be read and is built again (%s)", own, str(error).splitlines()[-1])
    index = _build_index(vectors, metric)
    temporary = own.with_name(f".{own.name}.tmp")
    try:
        faiss.write_index(index, str(temporary))
        os.replace(temporary, own)
        for stale in path.parent.glob(f"{path.name}.????????"):  # of vectors that have changed since
            if stale != own:
                stale.unlink()
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        log.warning("the index cannot be kept in %s, the next search builds it again (%s)", own, error)
    return index


def _fingerprint(vectors: Vectors, metric: Metric) -> str:
    """Eight characters from the shape, the metric and 256 evenly spaced rows."""
    rows = np.unique(np.linspace(0, len(vectors) - 1, 256).round().astype(np.int64))
    sample = torch.as_tensor(vectors[rows]).cpu().numpy()
    words = f"{metric} {list(vectors.shape)} {sample.dtype}".encode()
    return hashlib.sha256(words + np.ascontiguousarray(sample).tobytes()).hexdigest()[:8]


def _build_index(vectors: Vectors, metric: Metric) -> Any:
    """An inverted file over about ``4 sqrt(K)`` cells with half-precision vectors."""
    faiss = _faiss()
    total, width = vectors.shape
    cells = max(1, min(round(4 * total**0.5), total // _PER_CELL))
    log.info("building an approximate index of %s vectors in %s cells", f"{total:,}", f"{cells:,}")
    kind = faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
    index = faiss.index_factory(width, f"IVF{cells},SQfp16", kind)
    cpu = torch.device("cpu")
    sample = np.unique(np.linspace(0, max(0, total - 1), min(total, cells * _PER_CELL)).round().astype(np.int64))
    rows = torch.cat([part for part, _ in _chunks(vectors[sample], metric, cpu)] or [torch.empty(0, width)])
    if len(rows) < cells:  # nearly every row is unusable
        index = faiss.index_factory(width, "IVF1,SQfp16", kind)
    if len(rows):
        index.train(rows.numpy())
    for part, ids in _chunks(vectors, metric, cpu):
        if len(part):
            index.add_with_ids(part.numpy(), ids.numpy())
    return index
