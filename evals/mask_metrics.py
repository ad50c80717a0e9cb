"""How well masks agree: region similarity J and contour accuracy F, as DAVIS defines them.

F. Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016, section 5;
J. Pont-Tuset et al., "The 2017 DAVIS Challenge", arXiv 1704.00675. Masks are bool ``[H, W]``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
TOLERANCE = 0.008  # of the picture's diagonal: how far apart matching contours may lie


def region_similarity(mask: Mask, truth: Mask) -> float:
    """J: intersection over union; 1 where both are empty."""
    union = int((mask | truth).sum())
    return int((mask & truth).sum()) / union if union else 1.0


def contour(mask: Mask) -> Mask:
    """Pixels that differ from their right, lower or lower right neighbour; beyond the edge all stays as it is."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])


def dilate(mask: Mask, radius: int) -> Mask:
    """Pixels at most ``radius`` pixels away from one of ``mask``."""
    offsets = torch.arange(-radius, radius + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).float()
    near = F.conv2d(torch.from_numpy(mask).float()[None, None], disk[None, None], padding=radius)
    return (near[0, 0] > 0.5).numpy()


def contour_accuracy(mask: Mask, truth: Mask, tolerance: float = TOLERANCE) -> float:
    """F: harmonic mean of the shares of each contour that lies within ``tolerance`` (of the diagonal, rounded up to
    whole pixels) of the other; 1 where neither has a contour, 0 where one has none."""
    radius = math.ceil(tolerance * math.hypot(*mask.shape))
    own, other = contour(mask), contour(truth)
    if not own.any() or not other.any():
        return float(own.any() == other.any())
    precision = (own & dilate(other, radius)).sum() / own.sum()
    recall = (other & dilate(own, radius)).sum() / other.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0
