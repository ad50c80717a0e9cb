"""What turns clips into features: frozen encoders, random twins of them, and raw pixels.

A *representation* turns a batch of clips into tokens and one vector per clip. Three stand side by side in every eval:
the trained encoder, the same architecture with fresh random weights, and the raw pixels. Whatever a probe finds in the
last two it has not learned from pretraining. Further encoders may stand beside them; each sees clips cut and normalised
as it was made for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from evals.probes.preprocess import pool_cells
from evals.settings import EvalConfig
from jepa.config import ConfigError, to_dict
from jepa.distributed import Run
from jepa.models.base import ClipEncoder
from jepa.types import ClipConfig, TokenGrid


class Encoded(NamedTuple):
    """What a representation makes of B clips: ``tokens`` ``[B, N, D]`` and one ``vector`` ``[B, V]`` each."""

    tokens: Tensor
    vector: Tensor


class Representation(Protocol):
    """``name`` for tables, ``fingerprint`` for the cache, the ``clip`` it wants, ``grid`` of its tokens, encoding.

    ``levels``: the blocks whose outputs stand side by side along the width, None: one output of no particular block.
    """

    name: str
    fingerprint: str
    clip: ClipConfig
    grid: TokenGrid
    levels: tuple[int, ...] | None

    def widths(self) -> tuple[tuple[int, ...], int]:
        """Widths of the levels of a token (of the whole token where there are none), and the vector's whole width."""
        ...

    def __call__(self, clip: Tensor) -> Encoded:
        """Encode float clips ``[B, C, T, H, W]``, cropped and normalised."""
        ...


class EncoderRepresentation:
    """A frozen encoder; the vector is the mean of its tokens, or one mean for each of ``cells`` parts of the grid.

    ``layers``: the outputs of these blocks side by side, from a single forward pass, tokens and vectors alike (of each
    level one mean per cell, then the next level's). Raises ``ConfigError`` for a block that the encoder has not.
    """

    def __init__(
        self, name: str, encoder: ClipEncoder, run: Run, cells: tuple[int, int, int] = (1, 1, 1),
        layers: tuple[int, ...] | None = None,
    ) -> None:  # fmt: skip
        self.name, self.run, self.cells = name, run, cells
        try:
            self.levels = None if layers is None else tuple(encoder.layer_number(layer) for layer in layers)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from None
        self.fingerprint = f"{encoder_hash(encoder)}-{run.precision}"
        if cells != (1, 1, 1):
            self.fingerprint += "-cells{}x{}x{}".format(*cells)
        if self.levels is not None:
            self.fingerprint += f"-layers{'+'.join(map(str, self.levels))}"
        self.encoder = encoder.to(run.device).eval()
        self.clip, self.grid = encoder.clip, encoder.grid
        self._widths: tuple[int, ...] | None = (encoder.embed_dim,) if self.levels is None else None

    def widths(self) -> tuple[tuple[int, ...], int]:
        """Widths of the levels of a token, and the vector's. Stages of other libraries' models differ in width, so the
        first call encodes a black clip."""
        if self._widths is None:
            size = self.clip.crop_size
            self(torch.zeros(1, 3, self.clip.num_frames, size, size, device=self.run.device))
        assert self._widths is not None
        return self._widths, sum(self._widths) * torch.Size(self.cells).numel()

    @torch.inference_mode()
    def __call__(self, clip: Tensor) -> Encoded:
        with self.run.autocast():
            outputs = [self.encoder(clip)] if self.levels is None else self.encoder(clip, layers=self.levels)
        levels = [tokens.float() for tokens in outputs]
        self._widths = tuple(tokens.shape[-1] for tokens in levels)
        if self.cells == (1, 1, 1):
            pooled = [tokens.mean(dim=1) for tokens in levels]
        else:
            pooled = [pool_cells(tokens, self.grid, self.cells).flatten(1) for tokens in levels]
        return Encoded(torch.cat(levels, dim=-1), torch.cat(pooled, dim=-1))


class Pixels:
    """No encoder: the floor that an encoder must clear.

    The vector is the clip averaged down to at most ``side`` x ``side`` pixels in every frame, flattened: position and
    time are kept, as no mean over tokens is taken. A token is its tubelet averaged down to at most 4 x 4 pixels, with
    sines and cosines of its time, row and column beside it (an encoder's tokens know their place too).
    """

    levels: tuple[int, ...] | None = None

    def __init__(self, clip: ClipConfig, grid: TokenGrid, side: int = 16) -> None:
        self.name, self.clip, self.grid = "pixels", clip, grid
        self.side = min(side, clip.crop_size)
        self.cell = (clip.num_frames // grid.t, min(clip.crop_size // grid.h, 4))
        self.fingerprint = f"pixels-{self.side}-{self.cell}-{tuple(grid)}"

    def widths(self) -> tuple[tuple[int, ...], int]:
        """Width of a token, and of the vector."""
        frames, side = self.cell
        return (3 * frames * side**2 + _places(self.grid).shape[-1],), 3 * self.clip.num_frames * self.side**2

    @torch.inference_mode()
    def __call__(self, clip: Tensor) -> Encoded:
        vector = F.adaptive_avg_pool3d(clip, (clip.shape[2], self.side, self.side)).flatten(1)
        (t, h, w), (pt, p) = self.grid, self.cell
        small = F.adaptive_avg_pool3d(clip, (t * pt, h * p, w * p))
        small = small.view(len(clip), clip.shape[1], t, pt, h, p, w, p)
        tokens = small.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(len(clip), self.grid.size, -1)
        place = _places(self.grid).to(clip).expand(len(clip), -1, -1)
        return Encoded(torch.cat((tokens, place), dim=-1), vector)


def _places(grid: TokenGrid, octaves: int = 4) -> Tensor:
    """Sines and cosines of every token's relative time, row and column, ``[N, 6 * octaves]``."""
    relative = (grid.coordinates(grid.ids()) + 0.5) / torch.tensor(grid)
    angles = relative[..., None] * torch.pi * 2.0 ** torch.arange(octaves)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(1)


def random_twin(encoder: ClipEncoder, seed: int) -> ClipEncoder:
    """The same architecture with fresh weights: every encoder is built from its config and clip."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(encoder)(encoder.config, encoder.clip).eval().requires_grad_(False)


def encoder_hash(encoder: ClipEncoder) -> str:
    """Short hash of configuration and weights."""
    digest = hashlib.sha256(json.dumps([to_dict(encoder.config), to_dict(encoder.clip)]).encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def build_representations(config: EvalConfig, encoders: Mapping[str, ClipEncoder], run: Run) -> list[Representation]:
    """The encoders by name, then the baselines of the first one, in the order of the table. Encoders give the outputs
    of ``config.layers``; for ``sweep_layers`` without these, of all blocks, the last being their own output."""
    first = next(iter(encoders.values()))
    named = dict(encoders)
    if "random" in config.baselines:
        named["random"] = random_twin(first, config.random_seed)
    found: list[Representation] = []
    for name, encoder in named.items():
        layers = tuple(range(encoder.depth)) if config.sweep_layers and config.layers is None else config.layers
        found.append(EncoderRepresentation(name, encoder, run, config.cells, layers))
    if "pixels" in config.baselines:
        found.append(Pixels(first.clip, first.grid))
    return found
