"""Poses move as rotations do: against matrices and scipy-free identities."""

from __future__ import annotations

import math

import pytest
import torch

from jepa.models.pose import check_state_update, euler_angles, next_poses, next_states, rotation_matrix


def turn(axis: int, angle: float) -> torch.Tensor:
    """Rotation about one axis, from its definition."""
    matrix = torch.eye(3, dtype=torch.float64)
    a, b = [(1, 2), (2, 0), (0, 1)][axis]
    matrix[a, a] = matrix[b, b] = math.cos(angle)
    matrix[a, b], matrix[b, a] = -math.sin(angle), math.sin(angle)
    return matrix


def test_angles_turn_about_fixed_axes_in_the_order_x_y_z() -> None:
    angles = torch.tensor([0.3, -0.7, 2.1], dtype=torch.float64)
    slow = turn(2, 2.1) @ turn(1, -0.7) @ turn(0, 0.3)
    torch.testing.assert_close(rotation_matrix(angles), slow)
    torch.testing.assert_close(euler_angles(slow), angles)


def test_poses_compose_and_wrap() -> None:
    torch.manual_seed(0)
    poses, actions = torch.randn(20, 7, dtype=torch.float64), 0.3 * torch.randn(20, 7, dtype=torch.float64)
    moved = next_poses(poses, actions)
    torch.testing.assert_close(moved[:, :3], poses[:, :3] + actions[:, :3])
    together = rotation_matrix(actions[:, 3:6]) @ rotation_matrix(poses[:, 3:6])
    torch.testing.assert_close(rotation_matrix(moved[:, 3:6]), together)
    assert moved[:, 3:6].abs().max() <= math.pi
    torch.testing.assert_close(moved[:, 6], (poses[:, 6] + actions[:, 6]).clamp(0, 1))
    once = next_poses(torch.tensor([0.0, 0, 0, 0, 0, 3.0, 0.5]), torch.tensor([1.0, 2, 3, 0, 0, 1.0, 0.7]))
    torch.testing.assert_close(once, torch.tensor([1.0, 2, 3, 0, 0, 4.0 - 2 * math.pi, 1.0]))


def test_the_rules_and_their_widths() -> None:
    states, actions = torch.randn(4, 7), torch.randn(4, 7)
    assert next_states("none", states, actions) is states
    torch.testing.assert_close(next_states("add", states, actions), states + actions)
    torch.testing.assert_close(next_states("pose7", states, actions), next_poses(states, actions))
    check_state_update("add", 2, 0)
    with pytest.raises(ValueError, match="'pose7' moves states of 7 numbers by actions of 7, not 4 by 2"):
        check_state_update("pose7", 2, 4)
    with pytest.raises(ValueError, match="'add' needs actions as wide as states, not 2 and 4"):
        check_state_update("add", 2, 4)


def test_gradients_are_finite_at_rest() -> None:
    actions = torch.zeros(1, 7, requires_grad=True)
    next_poses(torch.zeros(1, 7) + 0.5, actions).sum().backward()
    assert actions.grad is not None
    assert actions.grad.isfinite().all()
    torch.testing.assert_close(actions.grad[0, :3], torch.ones(3))
