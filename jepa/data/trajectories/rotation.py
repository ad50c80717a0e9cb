"""Angles that wrap, and rotations as angles about the fixed axes x, y, z (in this order; radians)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def wrap(angles: Array) -> Array:
    """Angles brought to [-pi, pi)."""
    return (angles + np.pi) % (2 * np.pi) - np.pi


def to_matrices(euler: Array) -> Array:
    """Angles ``[N, 3]`` to rotation matrices ``[N, 3, 3]``: Rz(c) Ry(b) Rx(a) of the angles a, b, c."""
    (sa, sb, sc), (ca, cb, cc) = np.sin(euler).T, np.cos(euler).T
    rows = (
        (cc * cb, cc * sb * sa - sc * ca, cc * sb * ca + sc * sa),
        (sc * cb, sc * sb * sa + cc * ca, sc * sb * ca - cc * sa),
        (-sb, cb * sa, cb * ca),
    )
    return np.moveaxis(np.array(rows), -1, 0)


def to_euler(matrices: Array) -> Array:
    """The inverse of ``to_matrices``; where b is a right angle only a and c together are known, and c is set to 0."""
    m = matrices
    b = np.arcsin(np.clip(-m[:, 2, 0], -1, 1))
    upright = np.abs(m[:, 2, 0]) < 1 - 1e-9
    a = np.where(upright, np.arctan2(m[:, 2, 1], m[:, 2, 2]), np.arctan2(-m[:, 1, 2], m[:, 1, 1]))
    c = np.where(upright, np.arctan2(m[:, 1, 0], m[:, 0, 0]), 0.0)
    return np.stack((a, b, c), axis=1)


def rotation_steps(euler: Array) -> Array:
    """What leads from each rotation of ``[N, 3]`` to the next one, as angles ``[N-1, 3]``: R' R^T."""
    matrices = to_matrices(euler)
    return to_euler(matrices[1:] @ matrices[:-1].transpose(0, 2, 1))


def seen_from(poses: Array, viewers: Array) -> Array:
    """Poses ``[N, 6]`` (place, angles) in the frames of ``viewers`` ``[N, 6]``: inv(V) P."""
    turn = to_matrices(viewers[:, 3:]).transpose(0, 2, 1)
    place = np.einsum("nij,nj->ni", turn, poses[:, :3] - viewers[:, :3])
    return np.concatenate((place, to_euler(turn @ to_matrices(poses[:, 3:]))), axis=1)
