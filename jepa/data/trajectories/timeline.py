"""Frames, actions and states of an episode brought together by time: pure functions of numbers, no files.

Frame k is on screen from its time until that of frame k+1. Action k is in force from edge k to edge k+1. A clip's
instants are t0 + k * spacing, where t0 is the time of a frame; its k-th action is that of the interval from instant k
to instant k+1.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa.data.sampling import ShortVideoError
from jepa.data.trajectories.config import StateRule
from jepa.data.trajectories.rotation import rotation_steps, wrap
from jepa.types import ClipConfig

Times = NDArray[np.float64]
_SLACK = 0.05  # of a frame's time: clocks that are written down with few digits are not exact


@dataclass(frozen=True, kw_only=True)
class Track:
    """One episode without its pictures. Times in seconds, rising: ``frame_times`` ``[F]``; ``actions`` float32
    ``[K, A]``, in force between ``action_edges`` ``[K+1]``; ``states`` float32 ``[N, S]`` at ``state_times`` ``[N]``,
    and the camera's pose ``extrinsics`` ``[N, 6]`` with them, where there are any."""

    name: str
    frame_times: Times
    action_edges: Times | None = None
    actions: NDArray[np.float32] | None = None
    state_times: Times | None = None
    states: NDArray[np.float32] | None = None
    extrinsics: NDArray[np.float32] | None = None

    @functools.cached_property
    def gap(self) -> float:
        """Seconds from a frame to the next one."""
        return median_gap(self.frame_times)

    @functools.cached_property
    def state_gap(self) -> float:
        """Seconds from a state to the next one."""
        return 1.0 if self.state_times is None else median_gap(self.state_times)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How actions and states are taken from a track (``TrajectoryConfig``)."""

    action: Literal["mean", "sum", "last", "state_difference"] = "mean"
    state: StateRule = "nearest"
    angles: tuple[int, ...] = ()
    euler: tuple[int, ...] = ()


class Window(NamedTuple):
    """A clip of a track: frame numbers ``[T]``, ``actions`` ``[T-1, A]``, ``states`` ``[T, S]``, ``instants`` ``[T]``,
    and the seconds it covers."""

    indices: NDArray[np.int64]
    actions: NDArray[np.float32]
    states: NDArray[np.float32] | None
    instants: Times
    start_s: float
    end_s: float


def median_gap(times: Times) -> float:
    """Seconds from one of these times to the next; 1 where there is only one."""
    return float(np.median(np.diff(times))) if len(times) > 1 else 1.0


def spacing_s(track: Track, clip: ClipConfig) -> float:
    """Seconds between the frames of a clip."""
    if clip.fps is not None:
        return 1 / clip.fps
    if clip.duration_s is not None:
        return clip.duration_s / clip.num_frames
    return (clip.frame_step or 1) * track.gap


def usable_s(track: Track, rules: Rules) -> tuple[float, float]:
    """First and last second of which frames, actions and states are known."""
    low, high = [track.frame_times[0]], [track.frame_times[-1]]
    if rules.action != "state_difference" and track.action_edges is not None:
        low.append(track.action_edges[0])
        high.append(track.action_edges[-1])
    if track.state_times is not None:
        # the nearest state counts for half a gap beyond the last one
        beyond = track.state_gap / 2 if rules.state == "nearest" else 0.0
        low.append(track.state_times[0] - beyond)
        high.append(track.state_times[-1] + beyond)
    slack = _SLACK * track.gap
    return float(max(low)) - slack, float(min(high)) + slack


def choose_window(
    track: Track, rules: Rules, clip: ClipConfig, rng: np.random.Generator | None = None,
    segment: tuple[int, int] = (0, 1),
) -> Window:  # fmt: skip
    """One clip of an episode. ``rng`` None gives the middle one, else it begins at any frame; ``segment`` (k, K) is
    the k-th of K clips spread over the episode. Raises ``ShortVideoError`` for an episode that is too short: frames
    could be held, but the actions that would have led to them are not known."""
    spacing = spacing_s(track, clip)
    low, high = usable_s(track, rules)
    length = (clip.num_frames - 1) * spacing
    first = int(np.searchsorted(track.frame_times, low))
    last = int(np.searchsorted(track.frame_times, high - length, side="right")) - 1  # of the frames it can begin with
    if last < first:
        known = max(0.0, high - low - 2 * _SLACK * track.gap)
        raise ShortVideoError(
            f"{track.name} has {known:.3g} s of frames with actions, the clip needs {length:.3g} s "
            f"({clip.num_frames} frames {spacing:.3g} s apart)"
        )
    room = last - first
    part, parts = segment
    at = 0.5 if rng is None else float(rng.random())
    start = first + min(int((room + 1) * (part + at) / parts), room)
    start_s = float(track.frame_times[start])
    instants = start_s + np.arange(clip.num_frames, dtype=np.float64) * spacing
    return cut(track, rules, instants, start_s + clip.num_frames * spacing)


def whole(track: Track, rules: Rules, clip: ClipConfig) -> Window:
    """All of an episode at the clip's rate. Raises ``ShortVideoError`` where that is not even one frame."""
    low, high = usable_s(track, rules)
    start = int(np.searchsorted(track.frame_times, low))
    spacing = spacing_s(track, clip)
    if start >= len(track.frame_times) or track.frame_times[start] > high:
        raise ShortVideoError(f"{track.name} has no frame with actions and states at the same time")
    start_s = float(track.frame_times[start])
    instants = start_s + np.arange(int((high - start_s) / spacing) + 1, dtype=np.float64) * spacing
    return cut(track, rules, instants, float(instants[-1]) + spacing)


def cut(track: Track, rules: Rules, instants: Times, end_s: float) -> Window:
    """What belongs to these instants: the frame on screen, the state, and the action of every interval."""
    shown = np.searchsorted(track.frame_times, instants + _SLACK * track.gap, side="right") - 1
    states = states_at(track, rules, instants)
    if rules.action == "state_difference":
        assert states is not None  # the reader has checked
        actions = state_differences(states, rules)
    else:
        actions = interval_actions(track, rules, instants)
    return Window(
        shown.astype(np.int64), actions.astype(np.float32), None if states is None else states.astype(np.float32),
        instants, float(instants[0]), end_s,
    )  # fmt: skip


def interval_actions(track: Track, rules: Rules, instants: Times) -> NDArray[np.float64]:
    """``[T]`` instants to the actions of the T-1 intervals between them ``[T-1, A]``."""
    assert track.action_edges is not None
    assert track.actions is not None
    edges, count = track.action_edges, len(track.actions)
    if not count:  # of a single frame
        return np.zeros((len(instants) - 1, track.actions.shape[1]))
    first = int(np.clip(np.searchsorted(edges, instants[0], side="right") - 1, 0, count - 1))
    last = int(np.clip(np.searchsorted(edges, instants[-1], side="left"), first + 1, count))
    edges, actions = edges[first : last + 1], track.actions[first:last].astype(np.float64)
    if rules.action == "last":
        slack = _SLACK * median_gap(track.action_edges)
        number = np.searchsorted(edges, instants[1:] - slack, side="right") - 1
        return actions[np.clip(number, 0, len(actions) - 1)]
    lengths = np.diff(edges)
    density = actions if rules.action == "mean" else actions / lengths[:, None]
    # the integral of the actions up to an instant: up to the edge before it, and from there on; the first and the last
    # action reach as far as the slack does
    integral = np.concatenate((np.zeros_like(density[:1]), np.cumsum(density * lengths[:, None], axis=0)))
    before = np.clip(np.searchsorted(edges, instants, side="right") - 1, 0, len(lengths) - 1)
    until = integral[before] + (instants - edges[before])[:, None] * density[before]
    total = np.diff(until, axis=0)
    return total / np.diff(instants)[:, None] if rules.action == "mean" else total


def states_at(track: Track, rules: Rules, instants: Times) -> NDArray[np.float64] | None:
    """States at these instants ``[T, S]``, None for an episode without. An interpolated angle may lie a little beyond
    the range of those between which it lies."""
    if track.states is None or track.state_times is None:
        return None
    times, count = track.state_times, len(track.state_times)
    after = np.clip(np.searchsorted(times, instants), 1, max(1, count - 1))
    before, after = after - 1, np.minimum(after, count - 1)
    gap = np.where(after > before, times[after] - times[before], 1.0)
    share = np.clip((instants - times[before]) / gap, 0.0, 1.0)[:, None]
    low, high = track.states[before].astype(np.float64), track.states[after].astype(np.float64)
    if rules.state == "nearest":
        return np.where(share <= 0.5, low, high)
    change = high - low
    turning = [*rules.angles, *rules.euler]
    change[:, turning] = wrap(change[:, turning])
    return low + share * change


def state_differences(states: NDArray[np.float64], rules: Rules) -> NDArray[np.float64]:
    """``[T, S]`` to ``[T-1, S]``; angles take the short way round, rotations are composed (V-JEPA 2-AC, section 3)."""
    steps = np.diff(states, axis=0)
    steps[:, list(rules.angles)] = wrap(steps[:, list(rules.angles)])
    if rules.euler:
        steps[:, list(rules.euler)] = rotation_steps(states[:, list(rules.euler)])
    return steps
