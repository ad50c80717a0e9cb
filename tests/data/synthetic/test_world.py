"""The simulator: closed-form physics, true labels, and no label that a single state gives away."""

import numpy as np
import pytest

from evals.probes.sklearn_bridge import logistic
from jepa.data.synthetic.world import MOTIONS, Bounds, Forces, State, rollout, simulate, step

WIDE = Bounds(np.array([-100.0, -100.0]), np.array([100.0, 100.0]))


def test_free_fall_follows_the_parabola():
    start, forces = State(np.array([0.2, 0.1]), np.array([0.3, -0.2])), Forces(np.array([0.0, 2.0]), np.zeros(2))
    position, velocity, bounced = rollout(start, forces, WIDE, num_frames=9, fps=8.0)
    t = np.arange(9)[:, None] / 8.0
    assert np.allclose(position, start.position + start.velocity * t + 0.5 * forces.gravity * t**2, atol=1e-12)
    assert np.allclose(velocity, start.velocity + forces.gravity * t, atol=1e-12)
    assert bounced == ()


def test_spring_returns_after_one_period_and_keeps_its_energy():
    omega = 2 * np.pi
    forces = Forces(np.zeros(2), np.array([0.5, 0.5]), stiffness=omega**2)
    start = State(np.array([0.7, 0.5]), np.array([0.0, 0.2 * omega]))
    position, velocity, _ = rollout(start, forces, WIDE, num_frames=17, fps=16.0)
    assert np.allclose(position[-1], position[0], atol=2e-3)
    energy = 0.5 * (velocity**2).sum(1) + 0.5 * omega**2 * ((position - 0.5) ** 2).sum(1)
    assert np.ptp(energy) < 0.01 * energy[0]
    assert np.allclose(np.linalg.norm(position - 0.5, axis=1), 0.2, atol=2e-3)  # round orbit


def test_a_bounce_mirrors_the_path_and_loses_the_stated_share_of_speed():
    bounds = Bounds(np.zeros(2), np.ones(2), restitution=0.5)
    state, hit = step(State(np.array([0.5, 0.9]), np.array([0.1, 1.0])), Forces(np.zeros(2), np.zeros(2)), bounds, 0.2)
    assert hit
    assert np.allclose(state.position, [0.52, 0.9])  # 0.9 + 0.2 - 1 = 0.1 beyond the wall, mirrored
    assert np.allclose(state.velocity, [0.1, -0.5])


def test_an_action_is_an_extra_acceleration():
    start, forces = State(np.zeros(2), np.zeros(2)), Forces(np.zeros(2), np.zeros(2))
    actions = np.array([[1.0, 0.0], [1.0, 0.0]])
    position, velocity, _ = rollout(start, forces, WIDE, num_frames=3, fps=1.0, actions=actions)
    assert np.allclose(position[-1], [2.0, 0.0])
    assert np.allclose(velocity[-1], [2.0, 0.0])


@pytest.mark.parametrize("motion", range(len(MOTIONS)), ids=MOTIONS)
def test_label_is_true_of_the_whole_clip(motion):
    for seed in range(5):
        path = simulate(np.random.default_rng(seed), motion, num_frames=24, fps=16.0)
        assert path.motion == motion
        assert bool(path.bounced) == (MOTIONS[motion] == "bounce")
        assert path.position.min() >= 0.1
        assert path.position.max() <= 0.9
        velocity = path.velocity
        if MOTIONS[motion] in ("left", "right"):
            assert np.all(np.sign(velocity[:, 0]) == (1 if MOTIONS[motion] == "right" else -1))
        if MOTIONS[motion] in ("up", "down"):
            assert np.all(np.sign(velocity[:, 1]) == (1 if MOTIONS[motion] == "down" else -1))
        if MOTIONS[motion].startswith("orbit"):
            turn = velocity[:-1, 0] * velocity[1:, 1] - velocity[:-1, 1] * velocity[1:, 0]
            assert np.all(np.sign(turn) == (1 if MOTIONS[motion] == "orbit_cw" else -1))


def test_motion_needs_time():
    """Where the body is at one moment tells little (chance is 1/8); where it goes tells much."""
    rng = np.random.default_rng(0)
    labels = rng.integers(len(MOTIONS), size=900)
    paths = np.stack([simulate(rng, int(m), num_frames=12, fps=8.0).position for m in labels])

    def accuracy(features: np.ndarray) -> float:
        x, y = features[:, :, None] * features[:, None, :], features
        x = np.concatenate([x.reshape(len(x), -1), y], axis=1)  # quadratic: means, spreads and turns
        x = ((x - x.mean(0)) / (x.std(0) + 1e-9)).astype(np.float32)
        return float((logistic(x[:600], labels[:600], len(MOTIONS))(x[600:]).labels == labels[600:]).mean())

    one_moment = accuracy(paths[:, 6] - 0.5)
    whole_path = accuracy((paths[:, ::3] - 0.5).reshape(len(paths), -1))
    assert one_moment < 0.28
    assert whole_path > 0.6


def test_simulate_is_a_function_of_its_generator():
    one, two = (simulate(np.random.default_rng(3), 4, 16, 8.0) for _ in range(2))
    assert np.array_equal(one.position, two.position)
    assert np.array_equal(one.occluders, two.occluders)
