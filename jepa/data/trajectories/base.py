"""What every layout of recorded episodes offers: tracks, pictures, and both together at a model's rate."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa.config import ConfigError, to_dict
from jepa.data.sampling import ShortVideoError
from jepa.data.source_config import ClipRequest, RawClip, ReadOptions
from jepa.data.trajectories.config import TrajectoryConfig
from jepa.data.trajectories.timeline import Rules, Track, Window, choose_window, whole
from jepa.data.video import VideoError, VideoReader
from jepa.types import ClipConfig

_KEPT = 2048  # tracks in memory, for each worker: a few KB each, where reading one takes longer than using it
_TRIED = 20  # episodes before a data set as a whole is taken to be wrong


class TrajectoryError(VideoError):
    """An episode cannot be used; the message names the file, the episode and what is wrong."""


class Episode(NamedTuple):
    """A whole episode at a model's rate: ``frames`` uint8 ``[T, H, W, 3]``, ``actions`` ``[T-1, A]``, ``states``
    ``[T, S]``, and the seconds ``times`` ``[T]``."""

    name: str
    frames: NDArray[np.uint8]
    actions: NDArray[np.float32]
    states: NDArray[np.float32] | None
    times: NDArray[np.float64]


class Trajectories(ABC):
    """Episodes by number. ``names``: of their files. ``action_low`` and ``action_high`` ``[A]``: bounds that the data
    set states; ``state_names``: of the columns of the states, where it says so."""

    def __init__(self, path: str, config: TrajectoryConfig, names: list[str]) -> None:
        self.path, self.config, self.names = path, config, names
        self.rules = make_rules(config, angles=tuple(config.angles), euler=tuple(config.euler))
        self.action_low: NDArray[np.float32] | None = None
        self.action_high: NDArray[np.float32] | None = None
        self.state_names: tuple[str, ...] = ()
        self._tracks: dict[int, Track] = {}
        self._widths: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tracks": {}}

    @abstractmethod
    def _load(self, number: int) -> Track:
        """The episode's actions, states and times, as the files have them."""

    @abstractmethod
    def open(self, number: int, options: ReadOptions) -> VideoReader:
        """The episode's pictures, one for each of its frames. Raises ``VideoError`` naming the file."""

    @abstractmethod
    def size(self, number: int) -> int:
        """A number that changes with the episode: bytes of its file, or its frames."""

    def track(self, number: int) -> Track:
        """The episode without its pictures. Raises ``TrajectoryError`` for one whose parts do not belong together."""
        known = self._tracks.get(number)
        if known is None:
            known = self._load(number)
            check_track(known, self.rules)
            if len(self._tracks) >= _KEPT:
                del self._tracks[next(iter(self._tracks))]
            self._tracks[number] = known
        return known

    def length(self, number: int) -> int:
        """How many frames the episode has, at the rate of its files."""
        return len(self.track(number).frame_times)

    def widths(self) -> tuple[int, int]:
        """Width of actions and of states (0: none), of the first episode that can be used: those of all others must be
        the same. Raises ``ConfigError`` with what is wrong with the first one where none of the first twenty can."""
        problems: list[str] = []
        for number in range(min(len(self), _TRIED)):
            if self._widths is not None:
                break
            try:
                self._widths = _widths_of(whole(self.track(number), self.rules, ClipConfig(num_frames=1)))
            except (VideoError, ShortVideoError) as error:
                problems.append(str(error))
        if self._widths is None:
            raise ConfigError(f"data source {self.path}: {problems[0] if problems else 'it holds no episode'}")
        if self._widths[1] and self.state_names and len(self.state_names) != self._widths[1]:
            raise ConfigError(
                f"data source {self.path} names {len(self.state_names)} columns of states "
                f"({', '.join(self.state_names)}), but its states have {self._widths[1]}: name each of them, or none"
            )
        return self._widths

    def _of_one_width(self, number: int, window: Window) -> Window:
        """The window, unless its episode has more or fewer columns than others, which no batch could hold."""
        for what, found, other in zip(("actions", "states"), _widths_of(window), self.widths(), strict=True):
            if found != other:
                raise TrajectoryError(f"{self.names[number]} has {what} of width {found}, other episodes of {other}")
        return window

    def window_of_all(self, number: int, clip: ClipConfig) -> Window:
        """The frame numbers, actions and states of the whole episode at the clip's rate (its number of frames does not
        matter). Raises ``VideoError`` or ``ShortVideoError``."""
        return self._of_one_width(number, whole(self.track(number), self.rules, clip))

    def read(
        self, number: int, indices: Sequence[int] | NDArray[np.integer], options: ReadOptions
    ) -> NDArray[np.uint8]:
        """Frames of an episode by their numbers in its files: uint8 ``[len(indices), H, W, 3]``."""
        with self.open(number, options) as video:
            self._check_pictures(number, video)
            return video.read(indices)

    def episode(self, number: int, clip: ClipConfig, options: ReadOptions | None = None) -> Episode:
        """A whole episode at the clip's rate. Raises ``VideoError`` or ``ShortVideoError`` naming it."""
        window = self.window_of_all(number, clip)
        frames = self.read(number, window.indices, options or ReadOptions())
        return Episode(self.names[number], frames, window.actions, window.states, window.instants)

    def cut(self, number: int, video: VideoReader, clip: ClipConfig, request: ClipRequest) -> RawClip:
        """One clip, with ``video`` what ``open`` gave. Raises ``TrajectoryError``, or ``ShortVideoError`` whatever the
        rule for short videos."""
        self._check_pictures(number, video)
        window = choose_window(self.track(number), self.rules, clip, request.rng, request.segment)
        self._of_one_width(number, window)
        return RawClip(
            video.read(window.indices), window.start_s, window.end_s, -1, video.info, len(np.unique(window.indices)),
            window.actions, window.states,
        )  # fmt: skip

    def _check_pictures(self, number: int, video: VideoReader) -> None:
        track = self.track(number)
        if video.num_frames != len(track.frame_times):
            raise TrajectoryError(
                f"{track.name}: {video.path} has {video.num_frames} frames, the data of the episode "
                f"{len(track.frame_times)}: record it again, or remove it"
            )

    def identify(self, digest: hashlib._Hash, numbers: Iterable[int]) -> None:
        """Add what the episodes are and how they are read, but not where they lie, to a hash."""
        digest.update(repr((type(self).__name__, to_dict(self.config))).encode())
        digest.update(np.array([self.size(number) for number in numbers], dtype=np.int64).tobytes())


def _widths_of(window: Window) -> tuple[int, int]:
    return window.actions.shape[1], 0 if window.states is None else window.states.shape[1]


def make_rules(config: TrajectoryConfig, angles: tuple[int, ...], euler: tuple[int, ...], auto: str = "mean") -> Rules:
    """The config's rules, with ``auto`` as the layout's own for actions."""
    rule: Any = auto if config.action_rule == "auto" else config.action_rule
    return Rules(action=rule, state=config.state_rule, angles=angles, euler=euler)


def check_track(track: Track, rules: Rules) -> None:
    """Raises ``TrajectoryError`` for values that are not finite, times that do not rise, or a rule without its data."""
    name = track.name
    for what, times in (("frames", track.frame_times), ("actions", track.action_edges), ("states", track.state_times)):
        if times is None:
            continue
        if not len(times):
            raise TrajectoryError(f"{name} has no {what}")
        bad = ~np.isfinite(times)
        bad[1:] |= np.diff(times) <= 0
        if bad.any():
            step = int(np.argmax(bad))
            raise TrajectoryError(f"{name}: the times of its {what} do not rise at step {step} ({times[step]})")
    for what, values in (("actions", track.actions), ("states", track.states), ("extrinsics", track.extrinsics)):
        if values is not None and not np.isfinite(values).all():
            step, column = np.argwhere(~np.isfinite(values))[0].tolist()
            raise TrajectoryError(f"{name}: {what} at step {step}, column {column} are {values[step, column]}")
    if (
        track.actions is not None
        and track.action_edges is not None
        and len(track.action_edges) != len(track.actions) + 1
    ):
        raise TrajectoryError(f"{name} has {len(track.actions)} actions for {len(track.action_edges) - 1} intervals")
    width = 0 if track.states is None else track.states.shape[1]
    if rules.action == "state_difference" and not width:
        raise TrajectoryError(f"{name} has no states, which action_rule state_difference needs: name them in 'states'")
    if rules.action != "state_difference" and track.actions is None:
        raise TrajectoryError(f"{name} has no actions: name them in 'actions', or set action_rule: state_difference")
    for key in ("angles", "euler"):
        if max(getattr(rules, key), default=-1) >= width:
            raise TrajectoryError(f"{name} has {width} columns of states, but {key} is {list(getattr(rules, key))}")
