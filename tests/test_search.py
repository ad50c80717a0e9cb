"""Nearest neighbours: exact search against plain numpy, the approximate index against exact search."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa import search
from jepa.search import nearest


def table(rows: int = 300, width: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def by_hand(vectors: np.ndarray, queries: np.ndarray, metric: str) -> np.ndarray:
    """Every score in float64, ``[Q, K]``."""
    v, q = vectors.astype(np.float64), queries.astype(np.float64)
    if metric == "euclidean":
        return -np.sqrt(((q[:, None] - v[None]) ** 2).sum(-1))
    if metric == "cosine":
        v, q = v / np.linalg.norm(v, axis=1, keepdims=True), q / np.linalg.norm(q, axis=1, keepdims=True)
    return q @ v.T


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("chunk_rows", [1, 7, 100, 300, 1000])
def test_exact_search_is_brute_force(metric: str, chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = table(), table(9, seed=1)
    monkeypatch.setattr(search, "_CHUNK_VALUES", chunk_rows * 12)
    monkeypatch.setattr(search, "_QUERIES", 4)
    found = nearest(vectors, queries, 10, metric)  # type: ignore[arg-type]
    scores = by_hand(vectors, queries, metric)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    assert found.ids.tolist() == expected.tolist()
    assert (found.ids.dtype, found.scores.dtype) == (np.int64, np.float32)
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, expected, 1), rtol=1e-5, atol=1e-5)
    assert (found.method, found.skipped) == ("exact", 0)


def test_arrays_tensors_halves_and_mapped_files_agree(tmp_path: Path) -> None:
    vectors, query = table(), table(1, seed=1)
    path = tmp_path / "vectors.npy"
    np.save(path, vectors)
    expected = nearest(vectors, query, 5)
    for same in (np.load(path, mmap_mode="r"), torch.from_numpy(vectors), vectors[::-1].copy()[::-1]):
        assert nearest(same, query[0], 5).ids.tolist() == expected.ids.tolist()
    half = nearest(vectors.astype(np.float16), torch.from_numpy(query), 5)
    np.testing.assert_allclose(half.scores, expected.scores, atol=2e-3)


@pytest.mark.parametrize("chunk_rows", [2, 3, 8])
def test_of_equal_scores_the_first_rows_come_first(chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_CHUNK_VALUES", chunk_rows * 2)
    vectors = np.array([[0, 1], [1, 0], [0, 3], [1, 0], [2, 0], [0, 1], [5, 0], [1, 0]], np.float32)
    for k in range(1, 9):
        found = nearest(vectors, np.array([[1, 0], [0, 1]], np.float32), k)
        assert found.ids.tolist() == [[1, 3, 4, 6, 7, 0, 2, 5][:k], [0, 2, 5, 1, 3, 4, 6, 7][:k]]


def test_k_beyond_the_table_gives_the_whole_table() -> None:
    found = nearest(table(4), table(2, seed=1), 10)
    assert found.ids.shape == found.scores.shape == (2, 4)
    assert np.sort(found.ids, axis=1).tolist() == [[0, 1, 2, 3]] * 2
    assert nearest(table(0), table(2, seed=1), 3).ids.shape == (2, 0)


def test_rows_without_a_direction_are_never_found() -> None:
    vectors = table(20)
    vectors[3] = 0
    vectors[7, 2] = np.nan
    vectors[9, 0] = np.inf
    found = nearest(vectors, table(2, seed=1), 50)
    assert found.ids.shape == (2, 17)
    assert not {3, 7, 9} & set(found.ids.flatten().tolist())
    assert np.isfinite(found.scores).all()
    assert found.skipped == 3
    assert nearest(vectors, table(1, seed=1), 50, "euclidean").skipped == 2  # zero is a place like any other


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 0}, "k must be at least 1, not 0"),
        ({"metric": "cosinus"}, "metric must be one of cosine, dot, euclidean, not 'cosinus'"),
        ({"method": "fast"}, "method must be one of auto, exact, approximate, not 'fast'"),
        ({"queries": table(2, 11)}, r"one width, not \[300, 12\] and \[2, 11\]"),
        ({"queries": np.zeros((1, 12), np.float32)}, "query 0 is zero or not finite"),
        ({"queries": np.array([[1.0] * 12, [np.nan] * 12])}, "query 1 is zero or not finite"),
    ],
)
def test_mistakes(changed: dict[str, object], message: str) -> None:
    arguments = {"vectors": table(), "queries": table(2, seed=1), "k": 3, **changed}
    with pytest.raises(ValueError, match=message):
        nearest(**arguments)  # type: ignore[arg-type]


# ---- approximate -----------------------------------------------------------------------------------------------------


def clustered(rows: int = 6000, width: int = 16, seed: int = 0) -> np.ndarray:
    """Vectors in 60 clusters, as features are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(60, width))
    return (centres[rng.integers(0, 60, rows)] + 0.3 * rng.normal(size=(rows, width))).astype(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_approximate_recall(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(search, "_PROBED", 16)  # of 150 cells
    vectors, queries = clustered(), clustered(50, seed=0) + 0.05
    exact = nearest(vectors, queries, 10, metric, method="exact")  # type: ignore[arg-type]
    quick = nearest(vectors, queries, 10, metric, threshold=5999)  # type: ignore[arg-type]
    assert (exact.method, quick.method) == ("exact", "approximate")
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.ids.tolist(), quick.ids.tolist())])
    assert recall > 0.95
    scores = np.take_along_axis(by_hand(vectors, queries, metric), quick.ids, 1)
    np.testing.assert_allclose(quick.scores, scores, atol=1e-5)  # of what is found, the scores are exact
    assert (np.diff(quick.scores, axis=1) <= 0).all()
    assert nearest(vectors, queries, 10, threshold=6000).method == "exact"


def test_approximate_search_finds_k_rows_and_leaves_unusable_ones_out() -> None:
    pytest.importorskip("faiss")
    vectors = clustered(400)
    vectors[::2] = 0
    found = nearest(vectors, vectors[1], 300, method="approximate")
    assert found.ids.shape == (1, 200)
    assert found.skipped == 200
    assert set(found.ids[0].tolist()) == set(range(1, 400, 2))
    assert found.ids[0, 0] == 1
    assert nearest(np.zeros((90, 4), np.float32), np.ones(4), 3, method="approximate").ids.shape == (1, 0)


def test_the_index_is_kept_and_follows_the_vectors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("faiss")
    caplog.set_level(logging.INFO, logger="jepa")
    vectors, path = clustered(), tmp_path / "table.parquet.index"

    def search_built(table: np.ndarray) -> tuple[list[int], int]:
        caplog.clear()
        found = nearest(table, clustered(1, seed=2), 5, method="approximate", index_path=path)
        return found.ids[0].tolist(), caplog.text.count("building an approximate index")

    first, built = search_built(vectors)
    assert built == 1
    assert search_built(vectors) == (first, 0)
    assert len(list(tmp_path.iterdir())) == 1
    other, built = search_built(vectors[::-1].copy())
    assert (sorted(5999 - i for i in other), built) == (sorted(first), 1)
    (file,) = tmp_path.iterdir()  # the index of the old vectors is gone
    file.write_bytes(b"no index")
    assert search_built(vectors[::-1].copy()) == (other, 1)
    assert "cannot be read and is built again" in caplog.text


def test_missing_faiss_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    search._faiss.cache_clear()
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"pip install 'jepa-toolkit\[search\]', or search exactly \(--exact"):
        nearest(table(), table(1, seed=1), 3, threshold=100)
    assert nearest(table(), table(1, seed=1), 3, threshold=100, method="exact").method == "exact"
