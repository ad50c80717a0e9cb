"""How an action moves a robot's pose: what a rollout feeds the predictor as the next state.

A pose is 7 numbers: position (metres), orientation as Euler angles about the fixed axes x, y, z (radians), gripper
(0 open to 1 closed). An action is the change of each over one step; orientations compose as rotations, R(action)
R(pose). Source: V-JEPA 2-AC (arXiv 2506.09985, section 3 and appendix).

Shape legend: ... any batch.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

StateUpdate = Literal["none", "add", "pose7"]


def check_state_update(kind: StateUpdate, action_dim: int, state_dim: int) -> None:
    """Raise ``ValueError`` where actions ``[A]`` cannot move states ``[S]`` in this way."""
    if kind == "pose7" and (action_dim, state_dim) != (7, 7):
        raise ValueError(
            f"state_update 'pose7' moves states of 7 numbers by actions of 7, not {state_dim} by {action_dim}: use "
            "'none' or 'add'"
        )
    if kind == "add" and state_dim and action_dim != state_dim:
        raise ValueError(
            f"state_update 'add' needs actions as wide as states, not {action_dim} and {state_dim}: use 'none'"
        )


def next_states(kind: StateUpdate, states: Tensor, actions: Tensor) -> Tensor:
    """States ``[..., S]`` after actions ``[..., A]``, both in their own units. "none": as they are."""
    if kind == "none":
        return states
    return states + actions if kind == "add" else next_poses(states, actions)


def next_poses(poses: Tensor, actions: Tensor) -> Tensor:
    """Poses ``[..., 7]`` moved by actions ``[..., 7]``; angles in (-pi, pi], the gripper cut to [0, 1]."""
    turned = rotation_matrix(actions[..., 3:6]) @ rotation_matrix(poses[..., 3:6])
    gripper = (poses[..., 6:] + actions[..., 6:]).clamp(0, 1)
    return torch.cat((poses[..., :3] + actions[..., :3], euler_angles(turned), gripper), dim=-1)


def rotation_matrix(angles: Tensor) -> Tensor:
    """Euler angles about the fixed axes x, then y, then z ``[..., 3]`` to matrices ``[..., 3, 3]``: Rz Ry Rx."""
    (sx, sy, sz), (cx, cy, cz) = angles.sin().unbind(-1), angles.cos().unbind(-1)
    rows = (
        cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx,
        sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx,
        -sy, cy * sx, cy * cx,
    )  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def euler_angles(matrix: Tensor) -> Tensor:
    """The inverse of ``rotation_matrix`` for y in [-pi/2, pi/2]; x and z in (-pi, pi]."""
    sine = -matrix[..., 2, 0]
    level = torch.hypot(matrix[..., 0, 0], matrix[..., 1, 0])
    x = torch.atan2(matrix[..., 2, 1], matrix[..., 2, 2])
    z = torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0])
    return torch.stack((x, torch.atan2(sine, level), z), dim=-1)
