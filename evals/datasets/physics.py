"""Sets of possible and impossible videos: IntPhys, InfLevel and GRASP, as matched pairs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from evals.datasets.base import find_folder, read_json
from jepa.config import ConfigError, suggest

log = logging.getLogger("jepa")
INTPHYS_FPS = 15.0  # 100 frames of about seven seconds
# Types of events that InfLevel's evaluator calls real, and those that it calls magic. Its files mean by the first
# letter how a scene begins, and by the second how it ends.
_POSSIBLE = {"continuity": ("vv", "ii"), "gravity": ("ui", "cv"), "solidity": ("ui", "cv")}
_IMPOSSIBLE = {"continuity": ("vi", "iv"), "gravity": ("uv", "ci"), "solidity": ("uv", "ci")}


class PhysicsPair(NamedTuple):
    """A possible and an impossible video (files, or folders of frames at ``fps``) of the same scene.

    ``condition``: what is violated ("O1", "gravity", "Collision"). ``block``: the scene; a block may give several
    pairs, which are then not independent of each other. ``matched``: True where the two are known to differ only in
    how they end, False where they are known to begin differently, ``None`` where the layout does not tell.
    """

    possible_path: str
    impossible_path: str
    condition: str
    block: str
    fps: float | None = None
    matched: bool | None = None


def open_physics(name: str, root: str | Path) -> list[PhysicsPair]:
    """The pairs of a data set in its published layout, sorted by condition and block. Nothing is decoded.

    ``name``: "intphys", "inflevel" or "grasp". Raises ``ConfigError`` for an unknown name, a missing folder or label,
    a block that has not two possible and two impossible videos (IntPhys), and when no pair is found.
    """
    if name not in PHYSICS:
        raise ConfigError(f"unknown physics data set {name!r}{suggest(name, PHYSICS)}")
    folder = Path(root)
    if not folder.is_dir():
        raise ConfigError(f"data set {name}: {folder} is not a folder")
    pairs = PHYSICS[name](folder)
    if not pairs:
        raise ConfigError(f"data set {name} in {folder} has no pair; docs/datasets.md shows the layout")
    return pairs


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def read_intphys(root: Path) -> list[PhysicsPair]:
    """IntPhys 2019, dev set (Riochet et al.): ``[dev/]O1/BLOCK/1..4/scene/*.png``, and beside ``scene`` a
    ``status.json`` whose ``header.is_possible`` tells two possible videos from two impossible ones.

    Every possible video of a block with every impossible one: four pairs. Which of them begin alike is not written
    down. The test set is published without ``status.json``.
    """
    base = root / "dev" if (root / "dev").is_dir() else root
    pairs = []
    for condition in ("O1", "O2", "O3"):
        if not (base / condition).is_dir():
            continue
        for block in _folders(base / condition):
            found: dict[bool, list[Path]] = {True: [], False: []}
            for video in _folders(block):
                found[_is_possible(video / "status.json")].append(find_folder(video, "scene"))
            if len(found[True]) != 2 or len(found[False]) != 2:
                raise ConfigError(
                    f"{block} has {len(found[True])} possible and {len(found[False])} impossible videos, not 2 and 2"
                )
            pairs += [
                PhysicsPair(str(one), str(other), condition, f"{condition}/{block.name}", INTPHYS_FPS)
                for one in found[True]
                for other in found[False]
            ]
    return pairs


def _is_possible(path: Path) -> bool:
    if not path.is_file():
        raise ConfigError(f"{path} is missing: only the dev set of IntPhys says which videos are possible")
    header = read_json(path, dict).get("header")
    value = header.get("is_possible") if isinstance(header, dict) else None
    if not isinstance(value, bool):
        raise ConfigError(f"{path} has no header.is_possible that is true or false")
    return value


def read_inflevel(root: Path) -> list[PhysicsPair]:
    """InfLevel-Lab and -Sim (Weihs et al. 2022): ``CATEGORY/CAMERA__CATEGORY__OBJECT1__OBJECT2__TYPE.mp4``, in the lab
    for continuity ``..__DIRECTION.mp4``.

    Videos that differ in TYPE only make a block; every possible one with every impossible one, as the evaluator of
    InfLevel compares them. Pairs with the same first letter of TYPE begin alike (``matched``). Blocks that lack one
    of the four types are left out, as there, and counted. ``root``: one of the two folders.
    """
    pairs: list[PhysicsPair] = []
    for category in ("continuity", "gravity", "solidity"):
        if not (root / category).is_dir():
            continue
        blocks: dict[str, dict[str, str]] = {}
        types = (*_POSSIBLE[category], *_IMPOSSIBLE[category])
        for file in sorted((root / category).glob("*.mp4")):
            parts = file.stem.split("__")
            if len(parts) not in (5, 6) or parts[1] != category or parts[4] not in types:
                raise ConfigError(
                    f"{file} is not called CAMERA__{category}__OBJECT__OBJECT__TYPE[__DIRECTION].mp4 with a TYPE of "
                    f"{', '.join(types)}"
                )
            blocks.setdefault("__".join((*parts[:4], *parts[5:])), {})[parts[4]] = str(file)
        partial = [name for name, found in blocks.items() if len(found) < 4]
        if partial:
            log.warning(
                "inflevel: %d of %d blocks of %s lack a video and are left out: %s",
                len(partial), len(blocks), category, ", ".join(partial[:3]),
            )  # fmt: skip
        for name, found in sorted(blocks.items()):
            if len(found) == 4:
                pairs += [
                    PhysicsPair(found[one], found[other], category, name, matched=one[0] == other[0])
                    for one in _POSSIBLE[category]
                    for other in _IMPOSSIBLE[category]
                ]
    return pairs


def read_grasp(root: Path) -> list[PhysicsPair]:
    """GRASP, level 2 (Jassim et al. 2024): ``[level2/]P_SCENE/000.mp4`` and ``IP_SCENE/000.mp4``, ...

    Videos of the same number are a pair: the generator seeds a scene with the number. Whether the two then show the
    same objects is up to the simulation. Numbers without a partner are left out and counted.
    """
    base = next((root / name for name in ("level2", "videos/level2") if (root / name).is_dir()), root)
    pairs = []
    for possible in (folder for folder in _folders(base) if folder.name.startswith("P_")):
        scene = possible.name.removeprefix("P_")
        impossible = find_folder(base, f"IP_{scene}")
        files = {file.stem: file for file in possible.glob("*.mp4")}
        others = {file.stem: file for file in impossible.glob("*.mp4")}
        both = sorted(files.keys() & others.keys())
        alone = len(files) + len(others) - 2 * len(both)
        if alone:
            log.warning("grasp: %d videos of %s have no partner and are left out", alone, scene)
        pairs += [PhysicsPair(str(files[n]), str(others[n]), scene, f"{scene}/{n}") for n in both]
    return pairs


PHYSICS: dict[str, Callable[[Path], list[PhysicsPair]]] = {
    "intphys": read_intphys,
    "inflevel": read_inflevel,
    "grasp": read_grasp,
}
