"""Action spaces: clipping, sampling, and bounds that make no sense."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jepa.planning import action_space
from jepa.planning.space import check_units


def test_clip_goes_into_the_box_then_to_the_longest_step() -> None:
    space = action_space([-1.0, -1.0, 0.0], [1.0, 1.0, 1.0], max_norm=1.0, norm_axes=[0, 1])
    actions = torch.tensor([[3.0, 4.0, 5.0], [0.3, 0.4, -1.0], [0.0, 0.0, 0.5]])
    side = 0.5**0.5
    expected = torch.tensor([[side, side, 1.0], [0.3, 0.4, 0.0], [0.0, 0.0, 0.5]])
    torch.testing.assert_close(space.clip(actions), expected)
    torch.testing.assert_close(space.clip(space.clip(actions)), expected)


def test_per_axis_clips_narrow_the_bounds() -> None:
    space = action_space([-1.0, -0.02], [1.0, 3.0], clip=0.05)
    torch.testing.assert_close(space.low, torch.tensor([-0.05, -0.02]))
    torch.testing.assert_close(space.high, torch.tensor([0.05, 0.05]))
    assert action_space([-1.0, -1.0], [1.0, 1.0], clip=[0.5, 2.0]).high.tolist() == [0.5, 1.0]


def test_samples_fill_the_box_and_nothing_else() -> None:
    space = action_space([-1.0, 2.0, 5.0], [1.0, 4.0, 9.0], frozen={2: 6.0})
    drawn = space.sample(4000, 2, torch.Generator().manual_seed(0))
    assert drawn.shape == (4000, 2, 3)
    assert bool(((drawn >= space.low) & (drawn <= space.high)).all())
    torch.testing.assert_close(drawn.mean(dim=(0, 1)), torch.tensor([0.0, 3.0, 6.0]), atol=0.03, rtol=0.0)
    torch.testing.assert_close(drawn.std(dim=(0, 1)), torch.tensor([3**-0.5, 3**-0.5, 0.0]), atol=0.03, rtol=0.0)
    assert space.centre.tolist() == [0.0, 3.0, 6.0]
    assert space.half_range.tolist() == [1.0, 1.0, 0.0]


def test_the_gradient_flows_inside_and_stops_outside() -> None:
    space = action_space([-1.0, -1.0], [1.0, 1.0])
    actions = torch.tensor([0.5, 3.0], requires_grad=True)
    space.clip(actions).sum().backward()
    assert actions.grad is not None
    assert actions.grad.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("low", "high", "options", "message"),
    [
        ([0.0], [1.0, 2.0], {}, r"low and high must be two lists of one length, not \[1\], \[2\]"),
        ([-1.0], [float("inf")], {}, r"high is \[inf\]: planning needs finite bounds"),
        ([float("nan")], [1.0], {}, r"low is \[nan\]"),
        ([2.0], [1.0], {}, r"low \[2.0\] must not be above high \[1.0\]"),
        ([0.0], [1.0], {"clip": -1.0}, r"clip \[-1.0\] must not be negative"),
        ([0.0], [1.0], {"clip": [1.0, 2.0]}, "clip has 2 values, but the actions have 1 axes"),
        ([2.0], [3.0], {"clip": 1.0}, r"clip \[1.0\] leaves no action on axis 0"),
        ([0.0], [1.0], {"frozen": {1: 0.0}}, "frozen names axis 1, but the actions have axes 0 to 0"),
        ([0.0], [1.0], {"frozen": {0: 2.0}}, "frozen axis 0 at 2 is outside 0 to 1"),
        ([0.0], [1.0], {"max_norm": 0.0}, "max_norm must be positive, not 0"),
        ([0.0], [1.0], {"norm_axes": [0]}, "norm_axes has no meaning without max_norm"),
        ([0.0], [1.0], {"max_norm": 1.0, "norm_axes": [3]}, "norm_axes names axis 3"),
        ([1.0], [2.0], {"max_norm": 1.0}, "max_norm shortens steps towards 0, which is outside"),
    ],
)
def test_bounds_are_checked(low: list[float], high: list[float], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        action_space(low, high, **options)


def test_units_other_than_the_models_are_noticed() -> None:
    low, high = torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0])
    for fitting in (([-1.0, -1.0], [1.0, 1.0]), ([-0.05, 0.2], [0.05, 0.2]), ([-10.0, -3.0], [10.0, 3.0])):
        check_units(action_space(*fitting), low, high)
    for wrong, axis in ((([-1.0, 0.0], [1.0, 512.0]), "axis 1 of the actions lies in [0, 512]"),
                        (([2.0, -1.0], [3.0, 1.0]), "axis 0 of the actions lies in [2, 3]")):  # fmt: skip
        with pytest.raises(ValueError) as error:
            check_units(action_space(*wrong), low, high)
        assert str(error.value).startswith(f"{axis}, but the model was trained on actions in [-1, 1]: other units?")
    check_units(action_space([-9.0], [9.0]), torch.zeros(1), torch.zeros(1))  # it never moved along this axis
