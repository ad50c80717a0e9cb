"""Arrays by name in .npz and HDF5 files, without reading more of them than is asked for."""

from __future__ import annotations

import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from jepa.data.array_reader import ArrayReader
from jepa.data.source_config import ReadOptions
from jepa.data.trajectories.base import TrajectoryError
from jepa.data.video import resize_frames

HDF5_SUFFIXES = (".hdf5", ".h5")
FRAMES = (
    "frames", "images", "observations/frames", "observations/images", "observation/frames", "observation/images",
    "observations/image", "observation/image", "pixels", "rgb", "image",
)  # fmt: skip
ACTIONS = ("actions", "action")
STATES = (
    "states", "state", "observations/states", "observations/state", "observations/qpos", "observation/states",
    "observation/state",
)  # fmt: skip


class ArrayFile(ABC):
    """An open file; ``names`` of its arrays, with slashes where they lie in groups."""

    path: str
    names: list[str]

    @abstractmethod
    def get(self, name: str) -> NDArray[Any]:
        """An array as a whole. Raises ``TrajectoryError`` when it cannot be read."""

    @abstractmethod
    def part(self, name: str) -> Any:
        """An array of which only what is indexed is read: it has a shape, a dtype, a length and items."""

    def close(self) -> None:  # noqa: B027 - a file that is closed already has nothing to close
        """Free the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def find(self, candidates: Sequence[str]) -> str | None:
        """The first of these names that there is, or that has arrays below it."""
        return next((c for c in candidates if c in self.names or self.below(c)), None)

    def below(self, group: str) -> list[str]:
        """Names of the arrays in a group, without its own."""
        return [name.removeprefix(f"{group}/") for name in self.names if name.startswith(f"{group}/")]

    def numbers(self, wanted: Sequence[str], usual: Sequence[str], what: str) -> NDArray[Any] | None:
        """The ``wanted`` arrays side by side ``[..., W]``, or the first ``usual`` one; None where it is not there."""
        names = list(wanted)
        if not wanted:
            name = self.find(usual)
            names = [] if name is None else [f"{name}/{n}" for n in self.below(name)] or [name]
        if names in ([], ["none"]):
            return None
        arrays = []
        for name in names:
            self.check(name, what)
            arrays.append(self.get(name))
            if arrays[-1].dtype.kind not in "fiub":
                raise TrajectoryError(f"{self.path}: {what} {name!r} hold {arrays[-1].dtype}, not numbers")
            if arrays[-1].ndim < 2:
                arrays[-1] = arrays[-1].reshape(-1, 1)
        lengths = {array.shape[:-1] for array in arrays}
        if len(lengths) > 1:
            raise TrajectoryError(f"{self.path}: {what} {', '.join(names)} have different lengths {sorted(lengths)}")
        return np.concatenate(arrays, axis=-1).astype(np.float32)

    def check(self, name: str, what: str) -> None:
        """Raises ``TrajectoryError`` where there is no array of this name."""
        if name not in self.names:
            raise TrajectoryError(f"{self.path} has no array {name!r} ({what}); it has: {', '.join(self.names)}")

    def times(self, names: Sequence[str]) -> NDArray[np.float64] | None:
        """Seconds ``[T]`` under the first of these names."""
        name = next((name for name in names if name in self.names), None)
        return None if name is None else np.asarray(self.get(name), dtype=np.float64).reshape(-1)


class NpzFile(ArrayFile):
    """A ``.npz``; arrays that are not compressed are mapped from the disk."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self._members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        except (OSError, zipfile.BadZipFile) as error:
            raise TrajectoryError(f"{path} cannot be read as .npz: {error}") from None
        self.names = list(self._members)

    def get(self, name: str) -> NDArray[Any]:
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                return arrays[name]
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise TrajectoryError(f"{self.path}: the array {name!r} cannot be read: {error}") from None

    def part(self, name: str) -> Any:
        info = self._members[name]
        if info.compress_type != zipfile.ZIP_STORED:
            return self.get(name)
        try:
            with open(self.path, "rb") as file:
                file.seek(info.header_offset + 26)  # the lengths of two fields that stand before the data
                lengths = file.read(4)
                file.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), os.SEEK_CUR)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                header = read.get(np.lib.format.read_magic(file))
                if header is None:
                    return self.get(name)
                shape, fortran, dtype = header(file)
                if dtype.hasobject or 0 in shape:
                    return self.get(name)
                order: Any = "F" if fortran else "C"
                return np.memmap(self.path, dtype, "r", file.tell(), shape, order)
        except (OSError, ValueError) as error:
            raise TrajectoryError(f"{self.path}: the array {name!r} cannot be read: {error}") from None


class Hdf5File(ArrayFile):
    """A ``.hdf5`` or ``.h5``."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._file = h5py.File(path, "r")
            names: list[str] = []
            self._file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        except (OSError, RuntimeError) as error:
            raise TrajectoryError(f"{path} cannot be read as HDF5: {error}") from None
        self.names = names

    def get(self, name: str) -> NDArray[Any]:
        try:
            return np.asarray(self._file[name][()])
        except (OSError, RuntimeError) as error:
            raise TrajectoryError(f"{self.path}: the array {name!r} cannot be read: {error}") from None

    def part(self, name: str) -> Any:
        return self._file[name]

    def close(self) -> None:
        self._file.close()


def open_arrays(path: str) -> ArrayFile:
    """The file of arrays ``path``. Raises ``TrajectoryError``."""
    return Hdf5File(path) if path.lower().endswith(HDF5_SUFFIXES) else NpzFile(path)


def pick_pictures(file: ArrayFile, wanted: str | None, camera: str | None) -> tuple[str, int | None] | None:
    """The array of the frames and, where it has an axis of cameras, the number of one. None: there are no frames.

    Raises ``TrajectoryError`` for an unknown name or camera.
    """
    name = file.find([wanted] if wanted else FRAMES)
    if name is None:
        if wanted is not None:
            file.check(wanted, "frames")
        return None
    cameras = file.below(name)
    if cameras:
        if camera is not None and camera not in cameras:
            raise TrajectoryError(f"{file.path} has no camera {camera!r}; it has: {', '.join(cameras)}")
        return f"{name}/{camera or cameras[0]}", None
    return name, None if camera is None else int(camera) if camera.isdecimal() else -1


def camera_axis(name: str, shape: Sequence[int], ndim: int, camera: int | None) -> int | None:
    """The camera of frames that should have ``ndim`` axes, or one more for the cameras. Raises ``TrajectoryError``."""
    if len(shape) == ndim:
        if camera is not None:
            raise TrajectoryError(f"{name} has pictures of one camera only: leave 'camera' out")
        return None
    count = shape[ndim - 4]
    if camera is not None and not 0 <= camera < count:
        raise TrajectoryError(f"{name} has no such camera; it has: {', '.join(map(str, range(count)))}")
    return camera or 0


class PartReader(ArrayReader):
    """Frames of an array of which only those asked for are read, and a file that stays open until it is closed."""

    def __init__(self, path: str, frames: Any, fps: float, options: ReadOptions, file: ArrayFile | None = None) -> None:
        super().__init__(path, frames, fps, options.short_side, options.interpolation)
        self._file = file

    def _read_sorted(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        first, last = int(indices[0]), int(indices[-1])
        try:  # HDF5 reads neighbours far quicker than single ones
            near = last - first < 4 * len(indices)
            found = self._frames[first : last + 1][indices - first] if near else self._frames[indices]
        except (OSError, RuntimeError) as error:
            raise TrajectoryError(f"{self.path}: frames {first} to {last} cannot be read: {error}") from None
        return resize_frames(np.asarray(found), self.height, self.width, self._interpolation)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
