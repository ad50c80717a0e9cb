"""Masks in the user's words: different ways to say the same places, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch

from jepa.masks.chosen import Tubelet, chosen_mask
from jepa.types import TokenGrid

GRID = TokenGrid(4, 2, 3)  # 6 tokens per tubelet
TUBELET = Tubelet(2, 0.25)
FIRST, REST = list(range(6)), list(range(6, 24))


def ids(context: Any, target: Any, batch: int = 2) -> tuple[list[list[int]], list[list[int]]]:
    mask = chosen_mask(GRID, context, target, batch, TUBELET)
    assert mask.target_ids.shape[:2] == (batch, 1)
    return mask.context_ids.tolist(), mask.target_ids[:, 0].tolist()


def cells(tubelets: slice) -> np.ndarray:
    mask = np.zeros(GRID, dtype=bool)
    mask[tubelets] = True
    return mask


@pytest.mark.parametrize(
    "context", [1, "2 frames", "2f", "0.25 s", "0.25s", slice(0, 1), slice(-4, -3), FIRST, range(6), np.arange(6),
    torch.arange(6).repeat(2, 1), cells(slice(1)), torch.from_numpy(cells(slice(1))).repeat(2, 1, 1, 1)],
)  # fmt: skip
def test_every_way_to_say_the_first_tubelet(context: Any) -> None:
    assert ids(context, None) == ([FIRST] * 2, [REST] * 2)
    assert ids(context, "future") == ([FIRST] * 2, [REST] * 2)
    assert ids(context, 1) == ([FIRST] * 2, [list(range(6, 12))] * 2)
    assert ids(context, "4 frames") == ([FIRST] * 2, [list(range(6, 18))] * 2)
    assert ids(context, slice(2, 3))[1] == [list(range(12, 18))] * 2
    if not isinstance(context, (int, str)):  # a number of target tubelets follows the context
        assert ids(None, context) == ([REST] * 2, [FIRST] * 2)


def test_defaults_order_and_rows() -> None:
    assert ids(None, None, 1) == ([list(range(12))], [list(range(12, 24))])
    assert ids(None, 1, 1) == ([list(range(12))], [list(range(12, 18))])
    assert ids([9, 2, 5], [1, 0], 1) == ([[9, 2, 5]], [[1, 0]])  # the user's order stays
    own = torch.tensor([[0, 1], [7, 3]])
    assert ids(own, [[2], [22]]) == (own.tolist(), [[2], [22]])
    context, target = ids(own, None)
    assert [sorted(a + b) for a, b in zip(context, target, strict=True)] == [list(range(24))] * 2
    each = np.stack([cells(slice(1)), cells(slice(1, 2))])
    assert ids(each, None)[0] == [FIRST, list(range(6, 12))]


@pytest.mark.parametrize(
    ("context", "target", "message"),
    [
        (2, [11, 12], "context and target overlap, in token 11"),
        ([0, 24], None, r"context has the token id 24; the grid \(4, 2, 3\) has ids 0 to 23"),
        ([0, -1], None, "token id -1"),
        ([3, 3], None, "context names a token twice"),
        (None, [[1, 2]] * 3, "target has ids for 3 clips, there are 2"),
        (0, None, "context of 0 tubelets: the clip has 4, and 4 to choose from"),
        (5, None, "context of 5 tubelets"),
        (2, 3, "target of 3 tubelets: the clip has 4, and 2 to choose from"),
        (4, None, "context is the whole clip: nothing is left to predict"),
        (None, slice(None), "target is the whole clip: nothing is left to see"),
        (slice(3, None), "future", "reaches the last of 4 tubelets"),
        (slice(4, 9), None, "holds none of the clip's 4 tubelets"),
        ("3 frames", None, r"'3 frames' ends inside a tubelet of 2 frames \(0.25 s\): use 2 or 4 frames"),
        ("0.6 s", None, "use 0.5 or 0.75 s"),
        ("later", None, "context 'later' is not understood"),
        ([0.5, 1.0], None, r"context must be token ids \[N\] or \[B, N\] or a bool mask"),
        (np.zeros((4, 2, 2), bool), None, r"context must be a mask \[4, 2, 3\]"),
        (np.zeros((4, 2, 3), bool), None, r"at least one, not \[0, 0\]"),
        (np.stack([cells(slice(1)), cells(slice(2))]), None, r"as many cells in every clip, .* not \[6, 12\]"),
        ([[0], [6]], "future", "contexts end at different times"),
    ],
)  # fmt: skip
def test_impossible_places_are_refused(context: Any, target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ids(context, target)


def test_an_image_needs_places() -> None:
    with pytest.raises(ValueError, match="one tubelet long and has no second half"):
        chosen_mask(TokenGrid(1, 4, 4), None, None, 1, Tubelet(1, 1.0))
