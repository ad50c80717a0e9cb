"""``clips.npz``: the scores of single clips behind the rows, so that two evals can be compared clip by clip."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FILE = "clips.npz"
PSNR = "psnr"  # of the one decoded clip
MEAN, BEST = "mean", "best"  # of samples: of their mean, and of the best of all


class ByClip:
    """Gathers ``arrays`` over the ``count`` items of the test source, of which models may have read a part."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.arrays: dict[str, NDArray[Any]] = {}

    def add(self, row: Mapping[str, Any], kind: str, psnr: Tensor, hidden: Tensor, items: Tensor) -> None:
        """``psnr`` ``[K]`` in dB of the clips ``items`` ``[K]`` of a row, and what was judged of them (``hidden`` int64
        ``[K]``)."""
        whole, judged = torch.full((self.count,), torch.nan), torch.zeros(self.count, dtype=torch.int64)
        whole[items], judged[items] = psnr.float(), hidden
        name = key(row, kind)
        self.arrays[name], self.arrays[f"{name}/hidden"] = whole.numpy(), judged.numpy()

    def pack(self, identities: Mapping[str, NDArray[Any]]) -> bytes:
        """The file: ``identities`` of the N items (``path`` ``[N]``, ``span_s`` ``[N, 2]``, and ``group`` ``[N]`` where
        items of a group are not independent), and of every row, under ``key``, float32 ``[N]`` (dB; NaN: not read) and
        with ``/hidden`` behind it int64 ``[N]``."""
        data = io.BytesIO()
        np.savez_compressed(data, **identities, **self.arrays)  # type: ignore[arg-type]  # its keyword is bool
        return data.getvalue()


def key(row: Mapping[str, Any], kind: str) -> str:
    """The name under which the file keeps a row of results.json."""
    parts = (row["places"], row["what"], row["model"], row.get("layer"), row["tokens"], kind)
    return "/".join("-" if part is None else str(part) for part in parts)
