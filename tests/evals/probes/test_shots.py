"""Few labels: which clips are drawn."""

from __future__ import annotations

import pytest
import torch

from evals.probes.shots import Shots

LABELS = torch.tensor([0] * 200 + [1] * 40 + [3] * 4)[torch.randperm(244, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(
    ("text", "counts"),
    [("1%", [2, 1, 0, 1]), ("10%", [20, 4, 0, 1]), ("50 %", [100, 20, 0, 2]), ("100%", [200, 40, 0, 4]),
     ("1", [1, 1, 0, 1]), ("4", [4, 4, 0, 4])],
)  # fmt: skip
def test_every_class_keeps_its_share_and_at_least_one(text: str, counts: list[int]) -> None:
    rows = Shots.parse(text).draw(LABELS, seed=0)
    assert torch.bincount(LABELS[rows], minlength=4).tolist() == counts
    assert torch.equal(rows, rows.unique())


def test_a_seed_draws_the_same_again_and_less_is_part_of_more() -> None:
    for seed in range(3):
        drawn = [set(Shots.parse(text).draw(LABELS, seed).tolist()) for text in ("1%", "1", "3", "10%", "50%")]
        assert drawn[0] <= drawn[3] <= drawn[4]
        assert drawn[1] <= drawn[2]
        assert drawn[0] == set(Shots.parse("1%").draw(LABELS, seed).tolist())
    one, other = (Shots.parse("10%").draw(LABELS, seed) for seed in (0, 1))
    assert not torch.equal(one, other)


def test_bad_wishes_are_refused() -> None:
    for text in ("", "few", "0", "-3", "0%", "101%", "2.5", "%", "nan%"):
        with pytest.raises(ValueError, match="neither a share like '10%' nor a number of clips per class"):
            Shots.parse(text)
    with pytest.raises(ValueError, match="5 clips per class, but class 'cat' has 4"):
        Shots.parse("5").draw(LABELS, 0, ("dog", "cow", "pig", "cat"))
    with pytest.raises(ValueError, match="5 clips per class, but class 3 has 4"):
        Shots.parse("5").draw(LABELS, 0)
