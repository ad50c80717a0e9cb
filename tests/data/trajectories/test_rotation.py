"""Rotations against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jepa.data.trajectories.rotation import rotation_steps, seen_from, to_euler, to_matrices, wrap

ANGLES = np.random.default_rng(0).uniform(-3, 3, (50, 3))


def test_matrices_and_angles_are_those_of_scipy():
    reference = Rotation.from_euler("xyz", ANGLES)
    np.testing.assert_allclose(to_matrices(ANGLES), reference.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(to_euler(to_matrices(ANGLES)), reference.as_euler("xyz"), atol=1e-9)


@pytest.mark.parametrize("pitch", [np.pi / 2, -np.pi / 2])
def test_a_right_angle_loses_no_rotation(pitch):
    angles = np.array([[0.3, pitch, 0.8], [-2.0, pitch, 1.5]])
    found = to_euler(to_matrices(angles))
    np.testing.assert_allclose(found[:, 2], 0, atol=1e-12)
    np.testing.assert_allclose(to_matrices(found), to_matrices(angles), atol=1e-7)


def test_steps_lead_from_one_rotation_to_the_next():
    turns = Rotation.from_euler("xyz", rotation_steps(ANGLES))
    led = turns * Rotation.from_euler("xyz", ANGLES[:-1])
    np.testing.assert_allclose(led.as_matrix(), to_matrices(ANGLES[1:]), atol=1e-9)


def test_poses_seen_from_a_camera_are_those_of_4x4_matrices():
    rng = np.random.default_rng(1)
    poses, cameras = rng.normal(size=(9, 6)), rng.normal(size=(9, 6))

    def matrix(pose):
        full = np.eye(4)
        full[:3, :3], full[:3, 3] = Rotation.from_euler("xyz", pose[3:]).as_matrix(), pose[:3]
        return full

    for pose, camera, seen in zip(poses, cameras, seen_from(poses, cameras), strict=True):
        np.testing.assert_allclose(np.linalg.inv(matrix(camera)) @ matrix(pose), matrix(seen), atol=1e-9)


def test_wrap():
    np.testing.assert_allclose(wrap(np.array([0.1, np.pi + 0.1, -np.pi - 0.1, 7.0])), [
        0.1, 0.1 - np.pi, np.pi - 0.1, 7 - 2 * np.pi
    ])  # fmt: skip
