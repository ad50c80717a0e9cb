"""Writes the folder of episodes that ``jepa data record`` makes and the layout ``episodes`` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa.config import differences
from jepa.files import atomic_write

META = "trajectories.json"
_NAME = re.compile(r"episode_(\d+)\.npz")


class EpisodeWriter:
    """Episodes as ``episode_00000.npz``, and ``trajectories.json`` with what is true of all of them.

    ``meta`` is plain data: ``fps`` (frames per second, needed), and what is known of ``action_low``, ``action_high``,
    ``state_names``, ``env``, ... Every file appears complete or not at all, so that a recording continues where it was
    interrupted: the numbers in ``done`` need not be written again. Arrays are not compressed: readers map the frames
    from the disk. Raises ``ValueError`` for a folder that holds episodes of other settings or cannot be written.
    """

    def __init__(self, folder: str | Path, meta: Mapping[str, Any]) -> None:
        if not isinstance(meta.get("fps"), (int, float)) or not meta["fps"] > 0:
            raise ValueError(f"the episodes' fps must be a positive number, not {meta.get('fps')!r}")
        self.folder = Path(folder)
        settings = json.loads(json.dumps(dict(meta)))  # as it will be read back: tuples are lists
        stamp = self.folder / META
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            old = json.loads(stamp.read_text()) if stamp.exists() else None
            changed = differences(old, settings) if old is not None else []
            if old is None or all(path == stamp for path in self.folder.iterdir()):  # nothing was written with the old
                changed = []
                with atomic_write(stamp) as file:
                    file.write(json.dumps(settings, indent=2).encode())
        except OSError as error:
            raise ValueError(f"{self.folder} cannot be written: {error.strerror}; choose another folder") from None
        except json.JSONDecodeError:
            raise ValueError(f"{stamp} is not valid JSON: delete that folder, or choose another") from None
        if changed:
            raise ValueError(
                f"{self.folder} holds episodes of other settings ({'; '.join(changed[:3])}): delete that folder, or "
                "choose another"
            )

    @property
    def done(self) -> set[int]:
        """Numbers of the episodes that are there."""
        names = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return {int(name[1]) for name in names if name is not None}

    def path(self, number: int) -> Path:
        """The file of an episode."""
        return self.folder / f"episode_{number:05d}.npz"

    def write(
        self, number: int, frames: NDArray[np.uint8], actions: NDArray[Any], states: NDArray[Any] | None = None,
        times: NDArray[Any] | None = None,
    ) -> Path:  # fmt: skip
        """Write an episode: ``frames`` uint8 ``[T, H, W, 3]``, ``actions`` ``[T-1, A]`` or ``[T, A]`` (the k-th is in
        force from frame k on), ``states`` ``[T, S]``, ``times`` ``[T]`` in seconds (None: k / fps).

        Raises ``ValueError`` for arrays that do not belong together or are not finite, or where it cannot be written.
        """
        arrays: dict[str, NDArray[Any]] = {"frames": np.asarray(frames), "actions": np.asarray(actions, dtype="f4")}
        if states is not None:
            arrays["states"] = np.asarray(states, dtype=np.float32)
        if times is not None:
            arrays["times"] = np.asarray(times, dtype=np.float64)
        _check(number, arrays)
        path = self.path(number)
        try:
            with atomic_write(path) as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
        except OSError as error:
            raise ValueError(f"{path} cannot be written: {error.strerror}; choose another folder") from None
        return path


def _check(number: int, arrays: Mapping[str, NDArray[Any]]) -> None:
    frames = arrays["frames"]
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.shape[0]:
        raise ValueError(
            f"episode {number}: frames must be uint8 [T, H, W, 3], not {frames.dtype} {list(frames.shape)}"
        )
    count = len(frames)
    for name, ndim, lengths in (("actions", 2, (count - 1, count)), ("states", 2, (count,)), ("times", 1, (count,))):
        array = arrays.get(name)
        if array is None:
            continue
        if array.ndim != ndim or len(array) not in lengths:
            wanted = " or ".join(map(str, lengths))
            raise ValueError(f"episode {number}: {name} must have {wanted} rows for {count} frames, not {array.shape}")
        if not np.isfinite(array).all():
            step = int(np.argwhere(~np.isfinite(array))[0][0])
            raise ValueError(f"episode {number}: {name} are not finite at step {step}")
    times = arrays.get("times")
    if times is not None and (np.diff(times) <= 0).any():
        raise ValueError(f"episode {number}: times must rise from frame to frame")
