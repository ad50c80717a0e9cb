"""A track from arrays that say when things were, or of which this follows from their lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa.data.trajectories.base import TrajectoryError
from jepa.data.trajectories.timeline import Times, Track, median_gap


def assemble(
    name: str, num_frames: int, fps: float | None, actions: NDArray[Any] | None, states: NDArray[Any] | None,
    times: Times | None = None, action_times: Times | None = None, state_times: Times | None = None,
    action_fps: float | None = None,
) -> Track:  # fmt: skip
    """``num_frames`` frames at ``times``, else at ``fps``; ``actions`` ``[K, A]`` from ``action_times`` ``[K]`` on (or
    between the edges ``[K+1]``), else at ``action_fps``, else one for each frame, of which the last may be missing;
    ``states`` ``[N, S]`` at ``state_times``, else at ``action_fps``, else one for each frame or action.

    Raises ``TrajectoryError`` for lengths that fit neither.
    """
    if times is None:
        if fps is None:
            raise TrajectoryError(f"{name} does not say its frame rate: set trajectory.fps")
        times = np.arange(num_frames) / fps
    if len(times) != num_frames:
        raise TrajectoryError(f"{name} has {num_frames} frames but {len(times)} times of frames")
    if not num_frames:
        raise TrajectoryError(f"{name} has no frames")
    edges = None if actions is None else _edges(name, len(actions), times, action_times, action_fps)
    state_times = None if states is None else _moments(name, len(states), times, state_times, edges, action_fps)
    return Track(
        name=name, frame_times=times, action_edges=edges, actions=actions, state_times=state_times, states=states
    )


def closed(starts: Times) -> Times:
    """Times ``[K]`` at which things begin, and the one at which the last of them ends ``[K+1]``."""
    return np.append(starts, starts[-1] + median_gap(starts)) if len(starts) else np.zeros(1)


def _edges(name: str, count: int, times: Times, action_times: Times | None, action_fps: float | None) -> Times:
    if action_times is not None:
        if len(action_times) not in (count, count + 1):
            raise TrajectoryError(f"{name} has {count} actions but {len(action_times)} times of actions")
        return action_times if len(action_times) == count + 1 else closed(action_times)
    if action_fps is not None:
        return times[0] + np.arange(count + 1) / action_fps
    frames = len(times)
    if count not in (frames - 1, frames):
        raise TrajectoryError(
            f"{name} has {count} actions for {frames} frames: it should have {frames - 1} or {frames}, or times of "
            "their own (action_times in the file, or trajectory.action_fps)"
        )
    return times if count == frames - 1 else closed(times)


def _moments(
    name: str, count: int, times: Times, state_times: Times | None, edges: Times | None, action_fps: float | None
) -> Times:
    if state_times is not None:
        if len(state_times) != count:
            raise TrajectoryError(f"{name} has {count} states but {len(state_times)} times of states")
        return state_times
    if action_fps is not None:
        return times[0] + np.arange(count) / action_fps
    if count == len(times):
        return times
    if edges is not None and count in (len(edges) - 1, len(edges)):
        return edges[:count]
    raise TrajectoryError(
        f"{name} has {count} states for {len(times)} frames: it should have one for each, or times of their own "
        "(state_times in the file, or trajectory.action_fps)"
    )
