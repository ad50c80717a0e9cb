"""Few labels: subsets of the training clips drawn class by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Shots(NamedTuple):
    """How many clips of each class: a ``share`` of them, or a ``count``."""

    share: float | None
    count: int | None

    @classmethod
    def parse(cls, text: str) -> Shots:
        """ "10%" or "5". Raises ``ValueError`` for anything else."""
        number = text.strip().removesuffix("%")
        try:
            if text.strip().endswith("%"):
                share = float(number) / 100
                if 0 < share <= 1:
                    return cls(share, None)
            elif int(number) >= 1:
                return cls(None, int(number))
        except ValueError:
            pass  # no number at all: the same message
        raise ValueError(f"few_shot: {text!r} is neither a share like '10%' nor a number of clips per class like '5'")

    def draw(self, labels: Tensor, seed: int, names: Sequence[str] = ()) -> Tensor:
        """Row numbers, ascending, of the clips drawn from ``labels`` int64 ``[K]``; of every class at least one.

        A function of the labels and the seed alone, and nested: what a seed draws is among all that it draws of more.
        Raises ``ValueError`` where a class has fewer clips than asked for.
        """
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        shuffled = labels.cpu()[order]
        found = []
        for label in shuffled.unique().tolist():
            rows = order[shuffled == label]
            if self.count is not None and self.count > len(rows):
                name = names[label] if label < len(names) else label
                raise ValueError(f"few_shot: {self.count} clips per class, but class {name!r} has {len(rows)}")
            count = self.count if self.share is None else max(1, round(self.share * len(rows)))
            found.append(rows[:count])
        return torch.cat(found).sort().values
