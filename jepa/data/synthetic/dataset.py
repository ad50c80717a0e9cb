"""Renders the built-in world to a folder of real mp4 files with a manifest (``jepa data demo``).

Every clip shows one digit (label ``object``) that moves in one way (label ``motion``); the two labels and the looks
are drawn independently. Train and test clips use different digits of the scikit-learn set, so that a class has to
be recognised from instances never seen before.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from jepa.data.prepare import write_video
from jepa.data.synthetic.draw import draw_appearance, render
from jepa.data.synthetic.world import MOTIONS, Trajectory, simulate

Frames = NDArray[np.uint8]

DRAWING = 2  # raise it when the same settings draw other clips: worlds rendered before are then refused, not mixed


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """``train`` and ``test`` clips of ``num_frames`` frames at ``fps``, ``side`` pixels wide and high (even)."""

    train: int = 2400
    test: int = 600
    num_frames: int = 24
    fps: float = 16.0
    side: int = 64
    seed: int = 0
    test_glyphs: float = 0.25

    def __post_init__(self) -> None:
        if min(self.train, self.test) < 1 or self.num_frames < 2:
            raise ValueError(f"the world needs at least 1 clip per split and 2 frames, not {self}")
        if self.side % 2 or self.side < 16:
            raise ValueError(f"side must be even and at least 16 pixels, not {self.side}")


@dataclass(frozen=True, slots=True)
class Glyphs:
    """Pictures of the objects: ``images`` uint8 ``[K, n, n]`` (255 = ink) with class ``labels`` ``[K]``."""

    images: Frames
    labels: NDArray[np.int64]

    def part(self, split: str, test_share: float) -> Glyphs:
        """The glyphs of one split: the last ``test_share`` of the set is for ``test``, the rest for ``train``."""
        cut = round(len(self.images) * (1 - test_share))
        chosen = slice(cut, None) if split == "test" else slice(0, cut)
        return Glyphs(self.images[chosen], self.labels[chosen])


def draw_clip(glyphs: Glyphs, config: WorldConfig, split: str, number: int) -> tuple[Frames, Trajectory, int]:
    """Clip ``number`` of ``split``: frames uint8 ``[T, S, S, 3]``, its trajectory and its object class.

    A pure function of (config, split, number), so that clips can be drawn in any order and by any process.
    """
    rng = np.random.default_rng([config.seed, int(split == "test"), number])
    classes = np.unique(glyphs.labels)
    label, motion = int(rng.choice(classes)), int(rng.integers(len(MOTIONS)))
    glyph = glyphs.images[rng.choice(np.flatnonzero(glyphs.labels == label))]
    trajectory = simulate(rng, motion, config.num_frames, config.fps)
    return render(trajectory, glyph, draw_appearance(rng, config.side)), trajectory, label


def write_world(dst: str | Path, glyphs: Glyphs, config: WorldConfig, workers: int | None = None) -> Path:
    """Render ``train/`` and ``test/`` with ``train.csv`` and ``test.csv`` (``path,object,motion``) under ``dst``.

    Continues where it was interrupted; refuses a folder that holds a world of other settings (``ValueError``).
    """
    dst = claim_folder(dst, "world", json.dumps({"drawing": DRAWING, **asdict(config)}, indent=2))
    for split, count in (("train", config.train), ("test", config.test)):
        _write_split(dst, split, count, glyphs.part(split, config.test_glyphs), config, workers)
    return dst


def claim_folder(dst: str | Path, kind: str, settings: str) -> Path:
    """Make the folder ``dst`` and note there, in ``kind``.json, the ``settings`` of what it is to hold.

    Raises ``ValueError`` when it cannot be written, or holds something of the same kind with other settings.
    """
    dst = Path(dst)
    stamp = dst / f"{kind}.json"
    try:
        dst.mkdir(parents=True, exist_ok=True)
        if stamp.exists() and stamp.read_text() != settings:
            raise ValueError(
                f"{dst} holds a {kind} of other settings or drawn by another version (see {stamp}): delete that "
                "folder, or choose another"
            )
        stamp.write_text(settings)
    except OSError as error:
        raise ValueError(f"{dst} cannot be written: {error.strerror}; choose another folder") from None
    return dst


def _write_split(dst: Path, split: str, count: int, glyphs: Glyphs, config: WorldConfig, workers: int | None) -> None:
    manifest = dst / f"{split}.csv"
    if manifest.exists():
        return
    (dst / split).mkdir(exist_ok=True)
    jobs = [(dst, split, number, glyphs, config) for number in range(count)]
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        clips = pool.map(_write_clip, jobs, chunksize=16)
        rows = list(tqdm(clips, total=count, desc=f"rendering {split}", unit="clip"))
    write_manifest(manifest, [("path", "object", "motion"), *rows])


def write_manifest(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """A CSV that appears complete, or not at all: when it is there, so is every clip that it names."""
    partial = path.with_suffix(".csv.tmp")
    with partial.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    os.replace(partial, path)


def _write_clip(job: tuple[Path, str, int, Glyphs, WorldConfig]) -> tuple[str, int, str]:
    dst, split, number, glyphs, config = job
    frames, trajectory, label = draw_clip(glyphs, config, split, number)
    name = f"{split}/{number:05d}.mp4"
    if not (dst / name).exists():
        write_video(dst / name, frames, config.fps)
    return name, label, MOTIONS[trajectory.motion]
