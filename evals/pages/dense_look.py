"""A closer look at a chosen head's answers on test images: confused classes or errors by range of depth, and maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evals import metrics
from evals.dense_data import DenseSet, Pool
from evals.dense_metrics import DEPTH_SUMS, depth_sums
from evals.dense_probe import DenseHeads, upsample
from evals.dense_rows import read_checked
from evals.pages import drawing
from evals.task_configs import DenseConfig
from jepa.data.image import ImageReader

RANGES = 5
HEIGHT = 160  # pixels of a picture in the report


class Look(NamedTuple):
    """``counts``: pixels by true and by predicted class, int64 ``[C, C]``, or the sums of ``dense_metrics.depth_sums``
    by range of true depth, ``[R, 4]``. ``maps``: small answers for the images to be shown."""

    counts: Tensor
    maps: list[NDArray[Any]]


class Picture(NamedTuple):
    """An image to be drawn, small: pixels uint8 ``[H, W, 3]``, the ``label`` and the ``answers`` by encoder: classes
    (-1: none) or metres (NaN: not measured)."""

    path: str
    pixels: drawing.Frames
    label: NDArray[Any]
    answers: dict[str, NDArray[Any]]


def depth_edges(pools: Sequence[Pool]) -> list[float]:
    """Edges of ranges that hold equally many of the training pixels, in metres (of classes: no use is made of it).
    Where many pixels have the same depth, ranges without width are left out: there are fewer then, at least one."""
    values = torch.cat([pool.values for pool in pools]).double()
    edges = torch.quantile(values, torch.linspace(0, 1, RANGES + 1, dtype=torch.float64)).unique().tolist()
    return edges if len(edges) > 1 else edges * 2


def look(
    fitted: DenseHeads, head: int, config: DenseConfig, patches: Tensor, images: DenseSet, shown: Sequence[int],
    outputs: int, edges: Sequence[float],
) -> Look:  # fmt: skip
    """The answers of one head on all images, added up, and those of the rows ``shown`` as they are."""
    depth = config.target == "depth"
    shape, kind = ((len(edges) - 1, DEPTH_SUMS), torch.float64) if depth else ((outputs, outputs), torch.int64)
    counts = torch.zeros(shape, dtype=kind)
    maps: dict[int, NDArray[Any]] = {}
    for row in range(len(images.images)):
        label = read_checked(images, row, config, outputs)
        output = upsample(fitted.outputs(patches[row])[head], (label.shape[0], label.shape[1])).cpu()
        answer = output[0] if depth else output.argmax(dim=0)
        if depth:
            counts += by_range(answer, label, edges)
        else:
            counts += metrics.confusion(answer[label >= 0], label[label >= 0], outputs)
        if row in shown:
            maps[row] = drawing.shrink(answer.numpy(), HEIGHT)
    return Look(counts, [maps[row] for row in shown])


def by_range(answer: Tensor, depths: Tensor, edges: Sequence[float]) -> Tensor:
    """``depth_sums`` of the pixels in every range of true depth, ``[R, 4]``; the outer ranges have no outer edge."""
    place = torch.bucketize(depths, torch.tensor(edges[1:-1], dtype=depths.dtype), right=True)
    parts = [depth_sums(answer, torch.where(place == number, depths, torch.nan)) for number in range(len(edges) - 1)]
    return torch.stack(parts)


def picture_of(images: DenseSet, row: int, config: DenseConfig, answers: Mapping[str, NDArray[Any]]) -> Picture:
    """An image with its label and the answers to it."""
    pixels = drawing.shrink(ImageReader(images.images[row]).read([0])[0], HEIGHT)
    label = drawing.shrink(read_checked(images, row, config, np.iinfo(np.int32).max).numpy(), HEIGHT)
    return Picture(images.images[row], pixels, label, {**answers})
