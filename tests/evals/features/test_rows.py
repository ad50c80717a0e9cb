"""Rows of features: what is gathered from blocks, mapped or not, is what stands in the whole tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evals.features.rows import Rows

WHOLE = torch.arange(7 * 2 * 3 * 4, dtype=torch.float32).view(7, 2, 3, 4)


@pytest.fixture(params=["memory", "mapped"])
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> Rows:
    if request.param == "memory":
        return Rows.of(WHOLE)
    blocks = []
    for number, part in enumerate(WHOLE.split([3, 1, 3])):
        np.save(tmp_path / f"{number}.npy", part.numpy())
        blocks.append(torch.from_numpy(np.load(tmp_path / f"{number}.npy", mmap_mode="c")))
    return Rows(blocks, torch.arange(7))


def test_gather_reads_the_rows_asked_for(rows: Rows) -> None:
    wanted, view = torch.tensor([6, 0, 3, 2, 6]), torch.tensor([1, 0, 0, 1, 0])
    assert rows.shape == (7, 2, 3, 4)
    assert rows.nbytes == WHOLE.nbytes
    assert torch.equal(rows.gather(wanted), WHOLE[wanted])
    assert torch.equal(rows.gather(wanted, view), WHOLE[wanted, view])
    assert torch.equal(torch.cat(list(rows.chunks(2))), WHOLE)


def test_take_and_part_narrow_the_view(rows: Rows) -> None:
    narrow = rows.take(torch.tensor([5, 1, 4])).part(1, 4).part(0, 2)
    assert narrow.shape == (3, 2, 3, 2)
    assert torch.equal(narrow.gather(torch.tensor([2, 0])), WHOLE[[4, 5]][..., 1:3])
    assert torch.equal(rows.take(torch.arange(7) > 4).gather(torch.tensor([0, 1])), WHOLE[5:])


def test_tokens_and_vectors_are_rows_with_one_view() -> None:
    assert Rows.of(torch.zeros(5, 3, 2)).shape == (5, 1, 3, 2)
    assert Rows.of(torch.zeros(5, 2)).shape == (5, 1, 1, 2)
    with pytest.raises(ValueError, match=r"\[K, D\]"):
        Rows.of(torch.zeros(5))
