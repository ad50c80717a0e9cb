"""Images with a label for every pixel: ``images/STEM.*`` beside ``masks/STEM.png`` or ``depth/STEM.npy``."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evals.number_maps import read_numbers
from evals.task_configs import DenseConfig
from jepa.config import ConfigError
from jepa.data.image import IMAGE_SUFFIXES
from jepa.data.settings import eval_options
from jepa.data.sources import Source, SourceConfig
from jepa.types import ClipConfig

_POOL = 8  # so many times the pixels of a step are kept of every image


class DenseSet(NamedTuple):
    """Images and the files of their labels, in the same order."""

    folder: str
    images: list[str]
    labels: list[Path]

    def subset(self, rows: list[int]) -> DenseSet:
        """Only these images."""
        return DenseSet(self.folder, [self.images[i] for i in rows], [self.labels[i] for i in rows])

    def source(self, clip: ClipConfig) -> Source:
        """The images as videos that hold still."""
        return Source(
            config=SourceConfig(path=self.folder), options=eval_options(clip), paths=self.images,
            labels=np.full(len(self.images), -1, np.int64),
        )  # fmt: skip


class Pool(NamedTuple):
    """Labelled pixels of one image, drawn once: ``places`` (x, y) in -1..1 from edge to edge, float32 ``[P, 2]``, and
    their ``values`` ``[P]`` (classes int64, or metres float32)."""

    places: Tensor
    values: Tensor


def open_dense(folder: str, config: DenseConfig) -> DenseSet:
    """List a folder. Raises ``ConfigError`` for a missing folder, and for images without labels or labels without."""
    root = Path(folder)
    suffixes = {".png"} if config.target == "segmentation" else {".npy", ".png"}
    found: list[dict[str, Path]] = []
    for name, known in (("images", IMAGE_SUFFIXES), (config.folder, suffixes)):
        if not (root / name).is_dir():
            raise ConfigError(f"{root / name} is missing: {root} must hold the folders images and {config.folder}")
        files = sorted(p for p in (root / name).iterdir() if p.suffix.lower() in known and p.name[0] != ".")
        stems = {path.stem: path for path in files}
        if len(stems) < len(files):
            raise ConfigError(f"{root / name} holds two files of one stem: labels could not be told apart")
        found.append(stems)
    images, labels = found
    alone = sorted(images.keys() ^ labels.keys())
    if alone:
        missing = config.folder if alone[0] in images else "images"
        raise ConfigError(f"{root / missing} has no file {alone[0]} ({len(alone)} images or labels stand alone)")
    if not images:
        raise ConfigError(f"{root / 'images'} holds no image")
    return DenseSet(folder, [str(path) for path in images.values()], [labels[stem] for stem in images])


def read_label(path: Path, config: DenseConfig) -> Tensor:
    """Classes int64 ``[H, W]`` (-1: none), or depths in metres float32 ``[H, W]`` (NaN: not measured).

    Raises ``ConfigError`` naming the file."""
    if config.target == "segmentation":
        numbers = read_numbers(path)
        classes = numbers - 1 if config.zero_is_ignored else numbers  # 0 becomes -1
        return torch.from_numpy(np.where(numbers == config.ignore, -1, classes))
    if path.suffix.lower() == ".npy":
        try:
            metres = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ConfigError(f"{path} cannot be read as a numpy file: {error}") from None
        if metres.ndim != 2 or not np.issubdtype(metres.dtype, np.floating):
            raise ConfigError(f"{path} must hold metres as floats [H, W], not {metres.dtype} {list(metres.shape)}")
    elif config.depth_scale is None:
        raise ConfigError(f"{path}: say how many metres a step is, as --set dense.depth_scale=0.001 for millimetres")
    else:
        metres = read_numbers(path) * config.depth_scale
    measured = np.isfinite(metres) & (metres > 0) & (metres <= (config.max_depth or np.inf))
    return torch.from_numpy(np.where(measured, metres, np.nan).astype(np.float32))


def draw_pools(found: DenseSet, config: DenseConfig, seed: int) -> list[Pool]:
    """Labelled pixels of every image, at random without repeats (fewer where fewer are labelled)."""
    pools = []
    for number, path in enumerate(found.labels):
        label = read_label(path, config)
        known = label >= 0 if config.target == "segmentation" else ~label.isnan()
        rows, columns = torch.nonzero(known, as_tuple=True)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        chosen = torch.randperm(len(rows), generator=generator)[: _POOL * config.pixels]
        rows, columns = rows[chosen], columns[chosen]
        height, width = label.shape
        places = torch.stack(((2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1), dim=1)
        pools.append(Pool(places.float(), label[rows, columns]))
    return pools
