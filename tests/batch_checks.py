"""Batches taken from a loader, and whether two are the same."""

from __future__ import annotations

import dataclasses

import torch

from jepa.data.loader import TrainLoader
from jepa.types import Batch


def take(source: TrainLoader, steps: int, start: int = 0) -> list[Batch]:
    batches = source.iterate(start)
    return [next(batches) for _ in range(steps)]


def assert_same(one: Batch, other: Batch) -> None:
    for field in dataclasses.fields(Batch):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b), field.name
    for a, b in zip(one.masks, other.masks, strict=True):
        assert torch.equal(a.context_ids, b.context_ids)
        assert torch.equal(a.target_ids, b.target_ids)
