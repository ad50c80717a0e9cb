"""How a folder of recorded episodes is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

Layout = Literal["auto", "episodes", "lerobot", "droid"]
ActionRule = Literal["auto", "mean", "sum", "last", "state_difference"]
StateRule = Literal["nearest", "linear"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectoryConfig:
    """Recorded episodes of frames, actions and states (docs/trajectories.md).

    ``layout``: ``episodes`` (a folder of .npz or .hdf5/.h5 files, or one .npz of many episodes), ``lerobot`` (v2.1 and
    v3), ``droid``, or ``auto``, which looks for the files of each. ``camera``: which of several (None: the first).
    ``frames``, ``actions`` and ``states``: names of the arrays in the files, or of the columns of a table; several
    arrays of actions or states are put side by side (empty: the usual names of the layout; ``states: [none]``: none
    are read).

    ``fps``: the frames' rate, which counts before what the files say. ``action_fps``: the rate of actions and states in
    files of the ``episodes`` layout without times of their own, where it is not that of the frames.

    ``action_rule``: the action of an interval between two frames of a clip from those in force during it: their
    ``mean`` weighted by time, their ``sum`` (one in force for a part of its time counts in part), the ``last`` one, or
    the ``state_difference`` between the interval's ends, as V-JEPA 2-AC has it; ``auto`` is that for DROID and else
    ``mean``. ``state_rule``: the state of an instant is the ``nearest`` one or between its neighbours (``linear``).
    ``angles``: columns of the states that are angles in radians, where pi and -pi are the same. ``euler``: the three
    columns of a rotation about the fixed axes x, y, z, whose difference is that of the rotations (empty: with DROID's
    own states 3, 4, 5, else none). ``camera_frame`` (DROID only): poses as the camera sees them, by its extrinsics.
    """

    layout: Layout = "auto"
    camera: str | None = None
    frames: str | None = None
    actions: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    fps: float | None = None
    action_fps: float | None = None
    action_rule: ActionRule = "auto"
    state_rule: StateRule = "nearest"
    angles: list[int] = field(default_factory=list)
    euler: list[int] = field(default_factory=list)
    camera_frame: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("layout", Layout), ("action_rule", ActionRule), ("state_rule", StateRule)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, not {getattr(self, name)!r}")
        for name in ("fps", "action_fps"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("angles", "euler"):
            columns = getattr(self, name)
            if len(set(columns)) != len(columns) or any(column < 0 for column in columns):
                raise ValueError(f"{name} must be different columns of the states, counted from 0, not {columns}")
        if len(self.euler) not in (0, 3):
            raise ValueError(f"euler must be the three columns of a rotation, not {self.euler}")
        if set(self.euler) & set(self.angles):
            raise ValueError(f"a column cannot be both in angles {self.angles} and in euler {self.euler}")
        if self.camera_frame and self.layout not in ("auto", "droid"):
            raise ValueError(f"camera_frame needs the extrinsics of layout droid, not {self.layout}")
