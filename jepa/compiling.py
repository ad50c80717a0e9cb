"""torch.compile for a training run: one graph per shape, where the masks have one."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from jepa.masks.base import MaskFamily
from jepa.objectives import Objective
from jepa.sharding import blocks_of, is_sharded

log = logging.getLogger("jepa")

_DRAWS = 64
_GRAPHS = 64  # per function: context, target and monitor shapes of two encoders pass torch's own limit of 8


def mask_shapes(family: MaskFamily, draws: int = _DRAWS) -> set[tuple[int, ...]]:
    """(Nc, M, Nt) of the batches that ``family`` draws: seen in ``draws`` of them."""
    rng = np.random.default_rng(0)
    masks = [family.draw(rng, 1) for _ in range(draws)]
    return {(mask.context_ids.shape[1], *mask.target_ids.shape[1:]) for mask in masks}


def graphs_made() -> int:
    """How many graphs torch.compile has made in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def compile_parts(objective: Objective, families: Sequence[MaskFamily]) -> bool:
    """Compile the objective's encoders and predictor; returns whether for static shapes.

    Masks that always have the same numbers of tokens give static shapes, one graph for each family. Where the numbers
    vary from batch to batch, a graph for each would take hours, so torch makes one for any number of tokens, which is
    slower; a log line says how to change that.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
    counts = [len(mask_shapes(family)) for family in families]
    static = all(count == 1 for count in counts)
    # hooks bring the weights of a block together where they are cut over processes, so graphs end there anyway
    for part in blocks_of(objective) if is_sharded(objective) else objective.children():
        part.compile(dynamic=False if static else None)
    if not static:
        log.info(
            "torch.compile: the mask families have %s different numbers of tokens, so graphs are made for any number; "
            "for static shapes set levels to 1 and both ends of scale, aspect_ratio and duration alike",
            " and ".join(map(str, counts)),
        )  # fmt: skip
    return static
