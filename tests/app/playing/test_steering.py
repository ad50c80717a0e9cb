"""Keys to actions: directions, cancelling, strength, frozen axes, codes."""

from __future__ import annotations

import pytest
import torch

from app.playing.steering import AxisSteering, CodeSteering, PlayError
from jepa.planning.space import action_space


def test_axes_go_from_the_middle_to_the_edge() -> None:
    steering = AxisSteering(action_space([-1.0, 0.0], [1.0, 10.0]))
    assert [control.name for control in steering.controls] == ["left", "right", "up", "down"]
    for pressed, strength, expected in (
        ([], 1.0, [0.0, 5.0]), (["left"], 1.0, [-1.0, 5.0]), (["right"], 0.25, [0.25, 5.0]),
        (["right", "down"], 0.5, [0.5, 7.5]), (["up"], 1.0, [0.0, 0.0]), (["left", "right", "down"], 1.0, [0.0, 10.0]),
        (["left", "left"], 1.0, [-1.0, 5.0]),
    ):  # fmt: skip
        assert steering.action(pressed, strength).tolist() == pytest.approx(expected)


def test_a_longest_step_holds_for_diagonals() -> None:
    steering = AxisSteering(action_space([-1.0, -1.0], [1.0, 1.0], max_norm=1.0))
    assert steering.action(["left", "up"]).norm().item() == pytest.approx(1.0)


def test_axes_that_stand_still_have_no_controls() -> None:
    steering = AxisSteering(action_space([-1.0] * 9, [1.0] * 9, frozen={0: 0.5, 3: 0.0}))
    names = [control.name for control in steering.controls]
    assert names[:4] == ["up", "down", "axis 2 -", "axis 2 +"]
    assert "axis 3 -" not in names
    assert names[-2:] == ["axis 8 -", "axis 8 +"]
    keys = [key for control in steering.controls for key in control.keys]
    assert len(keys) == len(set(keys)) == 4 + 2 * 4, "the last two axes have buttons alone"
    assert steering.action(["axis 8 +"]).tolist() == [0.5, *[0.0] * 7, 1.0]
    with pytest.raises(PlayError, match="there is nothing to steer"):
        AxisSteering(action_space([1.0], [1.0]))


def test_the_last_code_pressed_counts() -> None:
    codes = torch.arange(24.0).view(12, 2)
    steering = CodeSteering(codes)
    assert steering.action(["3", "11"]).tolist() == [22.0, 23.0]
    assert [control.keys for control in steering.controls][9:] == [("Digit9", "Numpad9"), (), ()]
    with pytest.raises(PlayError, match="press a code, 0 to 11"):
        steering.action([])


@pytest.mark.parametrize("steering", [AxisSteering(action_space([-1.0], [1.0])), CodeSteering(torch.ones(2, 3))])
def test_unknown_controls(steering: AxisSteering | CodeSteering) -> None:
    known = ", ".join(control.name for control in steering.controls)
    with pytest.raises(PlayError, match=f"there is no control 'fly'; there are {known}"):
        steering.action(["fly"])


@pytest.mark.parametrize("strength", [-0.1, 1.01, float("nan"), float("inf")])
def test_strengths_outside(strength: float) -> None:
    with pytest.raises(PlayError, match="strength must lie between 0 and 1"):
        AxisSteering(action_space([-1.0], [1.0])).action([], strength)
