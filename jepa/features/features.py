"""``Features``: what an encoder makes of clips, with the grid, the times and the story of every token.

Shape legend: B clips, N tokens, D width, L layers, t/h/w token grid, q queries of an attentive pooler.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jepa.features.store import FeatureFileError, blocks_of, open_rows, write_rows
from jepa.types import TokenGrid

Pool = Literal["none", "mean", "attentive"]


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Frozen features of B clips.

    ``tokens`` ``[B, N, D]`` in the order of ``grid`` (``grid.size == N``); features that are pooled already
    (``pool`` not "none") have one token per clip, and ``grid`` tells what was pooled (0 rows and columns where clips
    differ). ``start_s`` and ``end_s`` float64 ``[B, t]``: the seconds that every tubelet covers in its video.
    ``sources``: where each clip came from. ``layers``: the blocks that the tokens were taken from, as they were asked
    for; L layers stand side by side along D (``layer`` takes one out), each as wide as ``widths`` says (empty: all
    alike); empty: the last block's output.
    ``metadata``: the model and what was done to its input.
    """

    tokens: Tensor
    grid: TokenGrid
    start_s: Tensor | None = None
    end_s: Tensor | None = None
    sources: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    pool: Pool = "none"
    widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        expected = self.grid.size if self.pool == "none" else 1
        if self.tokens.dim() != 3 or self.tokens.shape[1] != expected:
            told = f"grid {tuple(self.grid)}, pool {self.pool}"
            raise ValueError(f"tokens must be [B, {expected}, D] ({told}), not {list(self.tokens.shape)}")
        if self.layers and self.pool != "attentive" and sum(self._widths) != self.tokens.shape[2]:
            raise ValueError(f"layers of widths {list(self._widths)} do not make {self.tokens.shape[2]}")

    def __len__(self) -> int:
        return len(self.tokens)

    def pooled(self, probe: nn.Module | None = None) -> Tensor:
        """One vector per clip, ``[B, D]``: the mean over tokens, or what ``probe`` makes of them.

        ``probe``: a module with a ``pooler`` (an attentive probe) or a method ``pool``, called as ``pooler(tokens
        [B, N, D]) -> [B, q, D]``; q vectors are joined to ``[B, q * D]``. Features that are pooled already come as
        they are. Raises ``ValueError`` for a probe of another width.
        """
        if self.pool != "none":
            if probe is not None:
                raise ValueError(f"features are pooled already ({self.pool}): encode with pool='none' for a probe")
            return self.tokens.flatten(1)
        return self.tokens.mean(dim=1) if probe is None else attentive_pool(probe, self.tokens)

    def maps(self) -> Tensor:
        """Tokens on their lattice, ``[B, t, h, w, D]``. Raises ``ValueError`` for pooled features."""
        if self.pool != "none":
            raise ValueError(f"these features are pooled ({self.pool}) and have no maps: encode with pool='none'")
        return self.tokens.unflatten(1, tuple(self.grid))

    def layer(self, layer: int) -> Features:
        """The features of one of ``layers``, named as it was asked for. Raises ``ValueError`` for another one."""
        if layer not in self.layers:
            raise ValueError(f"layer {layer} is not among the encoded layers {list(self.layers)}: name it in layers")
        if self.pool == "attentive":
            raise ValueError("attentive pooling mixes layers: encode each layer apart")
        part = self.tokens.split(self._widths, dim=2)[self.layers.index(layer)]
        return dataclasses.replace(self, tokens=part, layers=(layer,), widths=())

    @property
    def _widths(self) -> tuple[int, ...]:
        return self.widths or (self.tokens.shape[2] // len(self.layers),) * len(self.layers)

    def numpy(self) -> NDArray[np.float32]:
        """Tokens as a float32 numpy array ``[B, N, D]``."""
        return cast("NDArray[np.float32]", self.tokens.detach().float().cpu().numpy())

    to_numpy = numpy

    def save(self, path: str | Path) -> None:
        """Write to ``.parquet``, ``.safetensors`` or ``.npz``; the file appears complete or not at all.

        Raises ``ValueError`` for another suffix, for features without times and sources, and (naming the file) when it
        cannot be written.
        """
        if self.start_s is None or self.end_s is None or len(self.sources) != len(self):
            raise ValueError("features need start_s, end_s and one source per clip to be saved")
        rows = self.numpy() if self.pool == "none" else self.numpy()[:, 0]
        header = {
            **self.metadata, "shape": list(rows.shape[1:]), "grid": list(self.grid), "pool": self.pool,
            "layers": list(self.layers), "widths": list(self.widths),
        }  # fmt: skip
        start, end = self.start_s[:, 0].double().cpu().numpy(), self.end_s[:, -1].double().cpu().numpy()
        write_rows(Path(path), list(self.sources), start, end, blocks_of(rows), header)

    @classmethod
    def load(cls, path: str | Path) -> Features:
        """Read what ``save`` or ``encode_files`` wrote, all of it into memory; ``open_features`` does not.

        Raises ``ValueError`` naming the file when it is missing, damaged or holds no features.
        """
        with open_rows(Path(path)) as rows:
            header = dict(rows.metadata)
            table = np.empty((len(rows.sources), *rows.shape), dtype=np.float32)
            filled = 0
            for block in rows.blocks():
                table[filled : filled + len(block)] = block
                filled += len(block)
        try:
            pool, grid = header.get("pool", "none"), TokenGrid(*header["grid"])
            layers, widths = (tuple(header.get(name) or ()) for name in ("layers", "widths"))
            tokens = torch.from_numpy(table if pool == "none" else table[:, None])
            start_s, end_s = tubelet_times(rows.start_s.tolist(), rows.end_s.tolist(), grid)
            return cls(tokens, grid, start_s, end_s, tuple(rows.sources), header, layers, pool, widths)
        except (KeyError, TypeError) as error:
            raise FeatureFileError(f"{path} has no usable grid in its metadata: {error}") from None


def attentive_pool(probe: nn.Module, tokens: Tensor) -> Tensor:
    """``tokens`` ``[B, N, D]`` to ``[B, q * D]`` by the pooler of ``probe``. Raises ``ValueError`` where it cannot."""
    found: Any = getattr(probe, "pooler", None) or getattr(probe, "pool", None)
    if not callable(found):
        raise ValueError(f"probe {type(probe).__name__} has neither a 'pooler' nor a method 'pool'")
    pooler = cast("Callable[[Tensor], Tensor]", found)
    with torch.inference_mode():
        try:
            vectors = pooler(tokens)
        except RuntimeError as error:  # torch's word for shapes that do not fit
            raise ValueError(f"the probe does not fit tokens of width {tokens.shape[-1]}: {error}") from None
    return vectors.flatten(1)


def tubelet_times(start_s: Sequence[float], end_s: Sequence[float], grid: TokenGrid) -> tuple[Tensor, Tensor]:
    """Start and end of every tubelet, float64 ``[B, t]``: each clip's seconds ``[B]`` in ``grid.t`` equal parts."""
    start, end = (torch.tensor(list(x), dtype=torch.float64)[:, None] for x in (start_s, end_s))
    edges = start + (end - start) * torch.linspace(0, 1, grid.t + 1, dtype=torch.float64)
    return edges[:, :-1], edges[:, 1:]
