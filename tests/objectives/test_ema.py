"""EMA equals its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jepa.objectives.ema import ema_distance, update_ema


def test_update_equals_the_formula() -> None:
    torch.manual_seed(0)
    target, online = nn.Linear(4, 3), nn.Linear(4, 3)
    before = [p.detach().clone() for p in target.parameters()]
    leader = [p.detach().clone() for p in online.parameters()]
    update_ema(target, online, 0.9)
    update_ema(target, online, 0.99)
    for old, goal, now in zip(before, leader, target.parameters(), strict=True):
        torch.testing.assert_close(now.detach(), 0.99 * (0.9 * old + 0.1 * goal) + 0.01 * goal)
    for goal, now in zip(leader, online.parameters(), strict=True):
        assert torch.equal(goal, now.detach())
    update_ema(target, online, 0.0)
    assert ema_distance(target, online) == 0
    frozen = [p.detach().clone() for p in target.parameters()]
    update_ema(target, nn.Linear(4, 3), 1.0)
    assert all(torch.equal(a, b) for a, b in zip(frozen, target.parameters(), strict=True))


def test_distance_is_relative_to_the_online_weights() -> None:
    target, online = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    target.weight.data, online.weight.data = torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert ema_distance(target, online).item() == pytest.approx(0.8)
