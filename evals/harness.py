"""The one way from clips to frozen features: read once, encoded once by every model, cached on disk.

A *representation* turns a batch of clips into tokens and one vector per clip. Three stand side by side in every eval:
the trained encoder, the same architecture with fresh random weights, and the raw pixels. Whatever a probe finds in the
last two it has not learned from pretraining. Further encoders may stand beside them; each sees clips cut and normalised
as it was made for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evals.preprocess import pool_cells
from evals.settings import EvalConfig
from jepa.config import ConfigError, to_dict
from jepa.data.batches import Failure, eval_batches
from jepa.data.loader import eval_options
from jepa.data.sources import Source
from jepa.data.transforms import ClipTransform
from jepa.distributed import Run
from jepa.models.base import ClipEncoder
from jepa.types import ClipConfig, TokenGrid

log = logging.getLogger("jepa")


class Encoded(NamedTuple):
    """What a representation makes of B clips: ``tokens`` ``[B, N, D]`` and one ``vector`` ``[B, V]`` each."""

    tokens: Tensor
    vector: Tensor


class Representation(Protocol):
    """``name`` for tables, ``fingerprint`` for the cache, the ``clip`` it wants, ``grid`` of its tokens, encoding."""

    name: str
    fingerprint: str
    clip: ClipConfig
    grid: TokenGrid

    def __call__(self, clip: Tensor) -> Encoded:
        """Encode float clips ``[B, C, T, H, W]``, cropped and normalised."""
        ...


class EncoderRepresentation:
    """A frozen encoder; the vector is the mean of its tokens, or one mean for each of ``cells`` parts of the grid."""

    def __init__(self, name: str, encoder: ClipEncoder, run: Run, cells: tuple[int, int, int] = (1, 1, 1)) -> None:
        self.name, self.run, self.cells = name, run, cells
        self.fingerprint = f"{encoder_hash(encoder)}-{run.precision}"
        if cells != (1, 1, 1):
            self.fingerprint += "-cells{}x{}x{}".format(*cells)
        self.encoder = encoder.to(run.device).eval()
        self.clip, self.grid = encoder.clip, encoder.grid

    @torch.inference_mode()
    def __call__(self, clip: Tensor) -> Encoded:
        with self.run.autocast():
            tokens = self.encoder(clip)
        tokens = tokens.float()
        if self.cells == (1, 1, 1):
            return Encoded(tokens, tokens.mean(dim=1))
        return Encoded(tokens, pool_cells(tokens, self.grid, self.cells).flatten(1))


class Pixels:
    """No encoder: the floor that an encoder must clear.

    The vector is the clip averaged down to at most ``side`` x ``side`` pixels in every frame, flattened: position and
    time are kept, as no mean over tokens is taken. A token is its tubelet averaged down to at most 4 x 4 pixels, with
    sines and cosines of its time, row and column beside it (an encoder's tokens know their place too).
    """

    def __init__(self, clip: ClipConfig, grid: TokenGrid, side: int = 16) -> None:
        self.name, self.clip, self.grid = "pixels", clip, grid
        self.side = min(side, clip.crop_size)
        self.cell = (clip.num_frames // grid.t, min(clip.crop_size // grid.h, 4))
        self.fingerprint = f"pixels-{self.side}-{self.cell}-{tuple(grid)}"

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


def source_hash(source: Source) -> str:
    """Short hash of what a source's clips are cut from: paths, sizes, times of change, and spans. Labels stay out."""
    digest = hashlib.sha256(repr((source.config.fps, source.config.span, source.options.short_side)).encode())
    for number, path in enumerate(source.paths):
        file = source.config.path if source.arrays is not None else path
        try:
            status = os.stat(file)
        except OSError:
            digest.update(f"{path} missing".encode())
            continue
        span = None if source.spans is None else source.spans[number].tolist()
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns} {span}".encode())
    return digest.hexdigest()[:16]


def build_representations(config: EvalConfig, encoders: Mapping[str, ClipEncoder], run: Run) -> list[Representation]:
    """The encoders by name, then the baselines of the first one, in the order of the table."""
    found: list[Representation] = [EncoderRepresentation(name, e, run, config.cells) for name, e in encoders.items()]
    first = next(iter(encoders.values()))
    if "random" in config.baselines:
        found.append(EncoderRepresentation("random", random_twin(first, config.random_seed), run, config.cells))
    if "pixels" in config.baselines:
        found.append(Pixels(first.clip, first.grid))
    return found


class FeatureSet(NamedTuple):
    """Features of every usable clip of a source. ``items`` int64 ``[K]``: its position there; ``tokens``
    ``[K, N, D]`` or ``None`` when no probe wants them; ``vectors`` ``[K, V]``; ``grid`` of the tokens."""

    items: Tensor
    tokens: Tensor | None
    vectors: Tensor
    grid: TokenGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureOptions:
    """``segments`` clips per item: vectors are averaged over them, tokens joined. ``tokens`` False keeps vectors only.
    ``cache_dir`` (None: nothing is kept on disk) never grows beyond ``cache_gb`` by these features."""

    batch_size: int = 16
    segments: int = 1
    tokens: bool = True
    workers: int = 0
    cache_dir: Path | None = None
    cache_gb: float = 4.0


def compute_features(
    representations: Sequence[Representation], source: Source, run: Run, options: FeatureOptions
) -> dict[str, FeatureSet]:
    """Features by every representation, by its name, in their order. The source is read once for each kind of clip.

    Raises ``ConfigError`` when no clip of the source can be decoded.
    """
    found: dict[str, FeatureSet] = {}
    for clip in dict.fromkeys(representation.clip for representation in representations):
        group = [representation for representation in representations if representation.clip == clip]
        reading = eval_options(clip, source.options.backend, source.options.short_video)
        found |= _features_of_clip(group, replace(source, options=reading), clip, run, options)
    return {representation.name: found[representation.name] for representation in representations}


def _features_of_clip(
    representations: Sequence[Representation], source: Source, clip: ClipConfig, run: Run, options: FeatureOptions
) -> dict[str, FeatureSet]:
    """Features by representations that want the same clips, decoded once for all that the cache does not hold."""
    stem = f"{source_hash(source)}-{hashlib.sha256(repr((clip, options.segments)).encode()).hexdigest()[:8]}"
    found: dict[str, FeatureSet] = {}
    missing: list[Representation] = []
    for representation in representations:
        known = _read(options, f"{representation.fingerprint}-{stem}", representation.grid)
        if known is None:
            missing.append(representation)
        else:
            found[representation.name] = known
    if missing:
        fresh = _encode_all(missing, source, clip, run, options)
        for representation in missing:
            found[representation.name] = fresh[representation.name]
            _write(options, f"{representation.fingerprint}-{stem}", fresh[representation.name])
    return found


def _encode_all(
    representations: Sequence[Representation], source: Source, clip: ClipConfig, run: Run, options: FeatureOptions
) -> dict[str, FeatureSet]:
    transform = ClipTransform(clip, None)
    failures: list[Failure] = []
    items: list[Tensor] = []
    parts: dict[str, list[Encoded]] = {r.name: [] for r in representations}
    batches = eval_batches(source, clip, options.batch_size, options.segments, options.workers, failures)
    for batch in batches:
        assert batch.index is not None
        ready = transform(batch.to(run.device))
        items.append(batch.index)
        for representation in representations:
            encoded = representation(ready.clip)
            tokens = encoded.tokens.cpu() if options.tokens else encoded.tokens[:, :0].cpu()
            parts[representation.name].append(Encoded(tokens, encoded.vector.cpu()))
    for failure in failures:
        log.warning("left out of the eval: %s", failure.reason)
    if not items:
        raise ConfigError(f"{source.config.path}: no clip can be decoded; the first: {failures[0].reason}")
    return {r.name: _gather(torch.cat(items), parts[r.name], r.grid, options) for r in representations}


def _gather(index: Tensor, parts: list[Encoded], grid: TokenGrid, options: FeatureOptions) -> FeatureSet:
    """Clips to items: the mean vector of an item's segments, and their tokens one after the other."""
    items, segments = index.unique_consecutive(), options.segments
    vectors = torch.cat([part.vector for part in parts]).unflatten(0, (len(items), segments)).mean(dim=1)
    tokens = None
    if options.tokens:
        tokens = torch.cat([part.tokens for part in parts]).unflatten(0, (len(items), segments)).flatten(1, 2)
    return FeatureSet(items, tokens, vectors, grid._replace(t=grid.t * segments))


# ---- cache: one .npy per array, so that tokens (large) are read only when a probe wants them -----------------------


def _read(options: FeatureOptions, key: str, grid: TokenGrid) -> FeatureSet | None:
    if options.cache_dir is None:
        return None
    arrays = []
    for part in ("items", "vectors", "tokens") if options.tokens else ("items", "vectors"):
        path = options.cache_dir / f"{key}.{part}.npy"
        try:
            arrays.append(torch.from_numpy(np.load(path)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError):
            log.warning("feature cache %s is damaged and will be written again", path)
            return None
    items, vectors = arrays[:2]
    grid = grid._replace(t=grid.t * options.segments)
    return FeatureSet(items, arrays[2] if options.tokens else None, vectors, grid)


def _write(options: FeatureOptions, key: str, features: FeatureSet) -> None:
    """Write beside the final place, then rename: no half file is ever read. A full disk only costs time."""
    if options.cache_dir is None:
        return
    arrays = {"items": features.items, "vectors": features.vectors, "tokens": features.tokens}
    try:
        options.cache_dir.mkdir(parents=True, exist_ok=True)
        used = sum(path.stat().st_size for path in options.cache_dir.iterdir())
        for part, value in arrays.items():
            if value is None:
                continue
            used += value.numel() * value.element_size()
            if used > options.cache_gb * 1e9:
                log.info("%s stay out of the feature cache: it would hold more than %g GB", part, options.cache_gb)
                return
            path = options.cache_dir / f"{key}.{part}.npy"
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            with temporary.open("wb") as file:
                np.save(file, value.numpy())
            temporary.replace(path)
    except OSError as error:
        log.warning("features are not cached: %s", error)
