"""A linear layer on frozen patch tokens, upsampled bilinearly to the label's size: a grid of heads trained at once.

The layer and the upsampling are both linear and bilinear weights sum to 1, so a head's output at a pixel is the head on
the features interpolated there. Training draws labelled pixels and interpolates features at these alone: the loss of
the full-size output on a random part of its pixels, at a fraction of its memory.

K images, h x w patches, D width, G heads, C outputs (classes; 1 for depth).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evals.dense_data import Pool
from evals.probes import ProbeConfig, heads, preprocess
from evals.task_configs import DenseConfig


class DenseHeads(NamedTuple):
    """Fitted heads: parameters, the features' statistics, and the depths' (``offset`` + ``scale`` * output)."""

    params: heads.Params
    mean: Tensor
    inverse: Tensor
    offset: float
    scale: float

    @torch.no_grad()
    def outputs(self, patches: Tensor) -> Tensor:
        """Patches ``[h, w, D]`` to maps ``[G, C, h, w]``: logits, or metres."""
        x = (patches.to(self.mean.device).float() - self.mean) * self.inverse
        maps = heads.linear_forward(self.params, x.flatten(0, 1)).transpose(1, 2)
        return (maps * self.scale + self.offset).unflatten(2, patches.shape[:2])


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """``[C, h, w]`` to ``[C, H, W]``, bilinear."""
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def sample(patches: Tensor, places: Tensor) -> Tensor:
    """Features ``[B, h, w, D]`` at ``places`` ``[B, P, 2]`` as ``upsample`` would give them: ``[B, P, D]``."""
    maps = patches.permute(0, 3, 1, 2)
    found = F.grid_sample(maps, places[:, None], mode="bilinear", padding_mode="border", align_corners=False)
    return found[:, :, 0].transpose(1, 2)


def fit_heads(
    probe: ProbeConfig, config: DenseConfig, patches: Tensor, pools: Sequence[Pool], rows: Tensor, outputs: int,
    device: torch.device,
) -> DenseHeads:  # fmt: skip
    """Fit the whole grid on the images ``rows`` of ``patches`` ``[K, h, w, D]``, by cross-entropy or (depth) squared
    error. Raises ``ValueError`` where no pixel of these images has a label."""
    rows = torch.tensor([row for row in rows.tolist() if len(pools[row].values)], dtype=torch.int64)
    if not len(rows):
        raise ValueError("no pixel of the training images has a label")
    mean, inverse = (values.to(device) for values in preprocess.standardiser(patches[some] for some in rows.split(256)))
    offset, scale = 0.0, 1.0
    if config.target == "depth":
        metres = torch.cat([pools[row].values for row in rows.tolist()]).double()
        offset, scale = float(metres.mean()), float(metres.std(correction=0)) or 1.0
    settings = probe.settings()
    start = heads.linear_params(patches.shape[-1], outputs)
    params = heads.stack(start, len(settings), device)
    rates, decays = (
        torch.tensor([s[key] for s in settings], device=device) for key in ("learning_rate", "weight_decay")
    )
    optimizer = heads.HeadAdamW(params, rates, decays)
    generator = torch.Generator().manual_seed(probe.seed + 1)
    for step in range(probe.num_steps()):
        chosen = rows[torch.randperm(len(rows), generator=generator)[: config.images]]
        places, values = _draw(pools, chosen, config.pixels, generator)
        x = sample(patches[chosen].to(device).float(), places.to(device)).flatten(0, 1)
        found = heads.linear_forward(params, (x - mean) * inverse)  # [G, B * P, C]
        target = values.to(device).flatten().expand(len(settings), -1)
        # a mean over pixels and a sum over heads: no head's gradient depends on another head
        if config.target == "depth":
            loss = F.mse_loss(found[..., 0], (target - offset) / scale)
        else:
            loss = F.cross_entropy(found.flatten(0, 1), target.flatten())
        loss.mul(len(settings)).backward()
        optimizer.step(heads.schedule(step, probe.num_steps()))
    return DenseHeads(params, mean, inverse, offset, scale)


def _draw(pools: Sequence[Pool], rows: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count`` pixels of each image, with repeats: places ``[B, count, 2]`` and values ``[B, count]``."""
    places, values = [], []
    for row in rows.tolist():
        pool = pools[row]
        chosen = torch.randint(len(pool.values), (count,), generator=generator)
        places.append(pool.places[chosen])
        values.append(pool.values[chosen])
    return torch.stack(places), torch.stack(values)
