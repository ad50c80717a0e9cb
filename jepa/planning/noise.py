"""Noise whose power falls with frequency: neighbouring actions of a sequence go together."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor


def coloured(white: Tensor, beta: float) -> Tensor:
    """White standard normal noise ``[N, H, A]`` to noise over H with power ~ 1/f^beta and variance 1 at every step.

    ``beta`` 0: unchanged; 2: a random walk, about. iCEM draws its actions so (arXiv 2008.06389, section 3.1). The
    correlations are those of a circle of 2H steps, so that the ends of a sequence are not tied together; frequencies
    below 1/H count as 1/H.
    """
    if beta == 0 or white.shape[1] == 1:
        return white
    return torch.einsum("hk,nka->nha", _filter(white.shape[1], beta, white.device), white)


@functools.lru_cache(maxsize=32)
def _filter(horizon: int, beta: float, device: torch.device) -> Tensor:
    """``[H, H]``: L with L L^T the correlation of coloured noise between steps, so that L times white noise is it.

    Noise of power 1/f^beta over a circle of 2H steps has the spectrum's cosine transform as correlation; H neighbouring
    steps are taken of it.
    """
    frequency = np.maximum(np.fft.rfftfreq(2 * horizon), 1 / horizon)
    correlation = np.fft.irfft(frequency**-beta, n=2 * horizon)
    step = np.arange(horizon)
    matrix = (correlation / correlation[0])[np.abs(step[:, None] - step[None])]
    return torch.from_numpy(np.linalg.cholesky(matrix).astype(np.float32)).to(device)
