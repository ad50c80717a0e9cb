"""Schedules at known points."""

from __future__ import annotations

import math

import pytest

from jepa.schedules import ScheduleConfig, constant_cooldown, ramp, warmup_cosine


def test_ramps_at_known_points() -> None:
    assert [ramp("linear", 2.0, 6.0, p) for p in (-1.0, 0.0, 0.25, 1.0, 2.0)] == [2.0, 2.0, 3.0, 6.0, 6.0]
    assert [ramp("constant", 2.0, 6.0, p) for p in (0.0, 1.0)] == [2.0, 2.0]
    assert ramp("cosine", 2.0, 6.0, 0.5) == pytest.approx(4.0)
    assert ramp("cosine", 0.0, 1.0, 0.25) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)


def test_warmup_cosine_at_known_points() -> None:
    ends = {"start": 2e-4, "peak": 1e-3, "final": 1e-6, "warmup_steps": 10}
    values = {step: warmup_cosine(step, 110, **ends) for step in (0, 5, 10, 60, 110, 200)}  # type: ignore[arg-type]
    assert values[0] == pytest.approx(2e-4)
    assert values[5] == pytest.approx(6e-4)
    assert values[10] == pytest.approx(1e-3)
    assert values[60] == pytest.approx((1e-3 + 1e-6) / 2)
    assert values[110] == values[200] == pytest.approx(1e-6)


def test_constant_cooldown_at_known_points() -> None:
    ends = {"start": 1.0, "peak": 5.0, "final": 1.0, "warmup_steps": 4, "cooldown_steps": 20}
    steps = (0, 2, 4, 79, 80, 90, 100)
    values = [constant_cooldown(step, 100, **ends) for step in steps]  # type: ignore[arg-type]
    assert values == pytest.approx([1.0, 3.0, 5.0, 5.0, 5.0, 3.0, 1.0])


def test_config_picks_the_schedule() -> None:
    cosine = ScheduleConfig(start=0.0, peak=1.0, final=0.0, warmup_steps=2)
    assert [cosine.value(step, 12) for step in (0, 1, 2, 7, 12)] == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])
    linear = ScheduleConfig(kind="linear", peak=1.0, final=0.0, warmup_steps=2)
    assert [linear.value(step, 12) for step in (1, 2, 7, 12)] == pytest.approx([0.5, 1.0, 0.5, 0.0])
    constant = ScheduleConfig(kind="constant", peak=1.0, final=0.0, cooldown_steps=4)
    assert [constant.value(step, 12) for step in (0, 8, 10, 12)] == pytest.approx([1.0, 1.0, 0.5, 0.0])
    assert ScheduleConfig(kind="constant", peak=1.0).value(12, 12) == 1.0
    stretched = ScheduleConfig(peak=1.0, final=0.0, stretch=2.0)
    assert stretched.value(10, 10) == pytest.approx(0.5)


def test_wrong_values_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="peak must not be negative"):
        ScheduleConfig(peak=-1.0)
    with pytest.raises(ValueError, match="peak must not be negative"):
        ScheduleConfig(peak=float("nan"))
    with pytest.raises(ValueError, match="stretch"):
        ScheduleConfig(stretch=0.5)
    with pytest.raises(ValueError, match="cooldown_steps goes with kind 'constant'"):
        ScheduleConfig(kind="cosine", cooldown_steps=5)
