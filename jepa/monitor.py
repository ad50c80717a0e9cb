"""Collapse is visible: what is measured on a held-out batch during training, what to do about it, and pictures.

All numbers are about the frozen state of the networks on clips that are not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from jepa.collapse import RULES
from jepa.distributed import to_float64
from jepa.models.base import ClipEncoder
from jepa.models.latent_head import encode_frames
from jepa.objectives.base import Objective
from jepa.objectives.decoder import DecoderObjective
from jepa.objectives.ema import ema_distance
from jepa.objectives.horizons import horizon_errors
from jepa.objectives.masked import MaskedObjective, gather_tokens
from jepa.objectives.pixels import PixelsObjective
from jepa.objectives.policy import PolicyObjective
from jepa.objectives.world_model import WorldModelObjective
from jepa.types import Batch, ClipConfig, TokenGrid

Picture = NDArray[np.uint8]
_CHUNK = 16  # clips encoded at once
_MAX_TOKENS = 4096  # tokens whose singular values are computed


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorConfig:
    """``every`` so many steps ``clips`` held-out clips are measured, every ``pictures_every`` steps they are drawn.

    ``neighbours``: k of the online nearest-neighbour probe (used where clips have labels).
    """

    every: int = 200
    clips: int = 64
    pictures_every: int = 1000
    neighbours: int = 5

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("clips", 2), ("pictures_every", 1), ("neighbours", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")


class CollapseMonitor:
    """Measures an objective on a held-out batch (float clips, with masks and labels where there are some)."""

    def __init__(self, config: MonitorConfig) -> None:
        self.config = config

    @torch.no_grad()
    def measure(self, objective: Objective, batch: Batch) -> dict[str, Tensor]:
        """Scalars on the device.

        Of the target encoder's output on whole clips: ``feature_std`` (mean over dimensions of the standard deviation
        over all tokens), ``pooled_std`` (over mean-pooled clips), ``cosine`` (mean over pairs of clips), ``rankme``
        and ``rankme_pooled`` (effective ranks); ``online_...``: the same of the context encoder. ``knn`` (leave one
        out accuracy) and ``knn_chance`` where labels exist. Where hidden places are predicted ``error``,
        ``error_mean_target``, ``error_context_mean`` and ``skill`` (see ``prediction_errors``). Without a target
        encoder of its own (pixels) there is neither ``online_...`` nor ``ema_distance``. Of a world model: spread and
        ranks of the latents of single frames, and the errors of ``horizon_errors``. Of a policy: the latents'
        spread, and the energies of its rollouts.
        """
        if isinstance(objective, WorldModelObjective):
            return world_values(objective, batch)
        if isinstance(objective, PolicyObjective):
            return policy_values(objective, batch)
        if isinstance(objective, DecoderObjective):
            latents = torch.cat([objective.latents(part)[0] for part in objective.rows(batch.clip).split(_CHUNK)])
            return feature_statistics(latents) | objective.measure(batch.clip)
        tokens = encode_in_chunks(objective.target_encoder, batch.clip)
        values = feature_statistics(tokens)
        if batch.label is not None and bool((batch.label >= 0).any()):
            values |= knn_probe(tokens.mean(dim=1), batch.label, self.config.neighbours)
        if objective.target_encoder is not objective.encoder:
            online = feature_statistics(encode_in_chunks(objective.encoder, batch.clip))
            values |= {f"online_{name}": online[name] for name in ("feature_std", "rankme")}
            values["ema_distance"] = ema_distance(objective.target_encoder, objective.encoder)
        if isinstance(objective, MaskedObjective) and batch.masks:
            values |= prediction_errors(objective, batch, levels_of(objective, batch.clip, tokens))
        elif isinstance(objective, PixelsObjective) and batch.masks:
            values |= prediction_errors(objective, batch, objective.targets(batch.clip))
        return values

    def warnings(self, history: Sequence[Mapping[str, float]], pixels: bool = False) -> list[str]:
        """What looks like collapse in the measurements so far (oldest first), and which setting to turn; with
        ``pixels`` those of an objective without target encoder and regularizer. There likeness alone is no warning: a
        vector common to all clips costs a loss on pixels nothing."""
        if not history:
            return []
        found = [(rule(history[0], history[-1], len(history)), *turns) for rule, *turns in RULES]
        named = [(text, of_pixels if pixels else of_latents) for text, of_latents, of_pixels in found]
        return [f"{text}; {turn}" for text, turn in named if text and turn]


def world_values(objective: WorldModelObjective, batch: Batch) -> dict[str, Tensor]:
    """What is measured of a world model."""
    world = objective.world_model
    latents = torch.cat([world.encode(part) for part in batch.clip.split(_CHUNK)])
    values = feature_statistics(latents.flatten(0, 1))
    if objective.follows:
        values["ema_distance"] = ema_distance(objective.target_encoder, objective.encoder)
    if objective.takes_trajectories and batch.actions is not None:
        context = objective.config.rollout_context
        values |= horizon_errors(world, latents, batch.actions, batch.states, objective.error, context)
    return values


def policy_values(objective: PolicyObjective, batch: Batch) -> dict[str, Tensor]:
    """What is measured of a policy; the latents, which are frozen, are those of its world model."""
    latents = torch.cat([objective.world_model.encode(part) for part in batch.clip.split(_CHUNK)])
    return feature_statistics(latents.flatten(0, 1)) | objective.measure(latents, batch.states)


def encode_in_chunks(encoder: ClipEncoder, clip: Tensor) -> Tensor:
    """Tokens, fp32 ``[B, N, D]``, of clips ``[B, C, T, H, W]``, a few clips at a time."""
    return torch.cat([encoder(part).float() for part in clip.split(_CHUNK)])


def feature_statistics(tokens: Tensor) -> dict[str, Tensor]:
    """Spread, likeness and effective rank of features ``[B, N, D]``; scalars."""
    flat, pooled = tokens.flatten(0, 1), tokens.mean(dim=1)
    rows = torch.arange(min(len(flat), _MAX_TOKENS), device=flat.device) * len(flat) // min(len(flat), _MAX_TOKENS)
    return {
        "feature_std": flat.std(dim=0).mean(),
        "pooled_std": pooled.std(dim=0).mean(),
        "cosine": mean_cosine(pooled),
        "rankme": rankme(flat[rows]),
        "rankme_pooled": rankme(pooled),
    }


def mean_cosine(features: Tensor) -> Tensor:
    """Mean cosine between different rows of ``features`` ``[n, D]``; a scalar, 1 when all point the same way."""
    unit = F.normalize(features, dim=1)
    count = len(unit)
    return (unit.sum(dim=0).square().sum() - unit.square().sum()) / (count * (count - 1))


def rankme(features: Tensor) -> Tensor:
    """RankMe (arXiv 2210.02885, equation 2): exp of the entropy of the normalised singular values of ``[n, D]``."""
    # eigenvalues of the small Gram matrix: much cheaper than an SVD of many rows; fp64, as squaring halves the digits
    device, features = features.device, to_float64(features)
    gram = features.T @ features if features.shape[0] > features.shape[1] else features @ features.T
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = values / values.sum().clamp(min=1e-12) + 1e-7
    return torch.exp(-(share * share.log()).sum()).float().to(device)


def knn_probe(features: Tensor, labels: Tensor, neighbours: int) -> dict[str, Tensor]:
    """Leave-one-out accuracy of the ``neighbours`` most similar other clips' vote, and the most common label's share.

    ``features`` ``[B, D]`` are centred and compared by cosine; clips with label -1 are left out.
    """
    known = labels >= 0
    features, labels = features[known], labels[known]
    unit = F.normalize(features - features.mean(dim=0), dim=1)
    with torch.autocast(unit.device.type, enabled=False):  # neighbours differ in digits that 16 bits do not have
        likeness = (unit @ unit.T).fill_diagonal_(-float("inf"))
    nearest = likeness.topk(min(neighbours, max(len(labels) - 1, 1)), dim=1)
    one_hot = F.one_hot(labels).float()
    votes = (one_hot[nearest.indices] * (1 + nearest.values.clamp(min=-1)[..., None])).sum(dim=1)
    return {"knn": (votes.argmax(dim=1) == labels).float().mean(), "knn_chance": one_hot.mean(dim=0).max()}


def levels_of(objective: MaskedObjective, clip: Tensor, tokens: Tensor) -> Tensor:
    """The targets at all places of ``clip``, ``[B, N, L*D]``; ``tokens`` are the last level's, not yet normed."""
    if objective.levels is None:
        return F.layer_norm(tokens, (tokens.shape[-1],))
    return torch.cat([objective.targets(part) for part in clip.split(_CHUNK)])


def prediction_errors(
    objective: MaskedObjective | PixelsObjective, batch: Batch, targets: Tensor
) -> dict[str, Tensor]:
    """The objective's error and that of two predictors which know nothing about where they look; scalars.

    ``targets``: of all places, ``[B, N, D]``. ``error_mean_target`` predicts the mean of all targets everywhere,
    ``error_context_mean`` the mean of the clip's own targets at the context's places. ``skill`` is 1 - error / the
    better of the two: 0 when the predictor is no use.
    """
    everywhere = targets.mean(dim=(0, 1))
    sums: dict[str, list[Tensor]] = {"error": [], "error_mean_target": [], "error_context_mean": []}
    for family, mask in enumerate(batch.masks):
        wanted = gather_tokens(targets, mask.target_ids)
        predictions = []
        for start in range(0, len(batch.clip), _CHUNK):
            rows = slice(start, start + _CHUNK)
            part = mask._replace(context_ids=mask.context_ids[rows], target_ids=mask.target_ids[rows])
            context = objective.context(batch.clip[rows], part.context_ids)
            predictions.append(objective.predict(context, part, family, batch.clip[rows]))
        own = gather_tokens(targets, mask.context_ids[:, None]).mean(dim=2, keepdim=True)
        sums["error"].append(objective.error(torch.cat(predictions), wanted))
        sums["error_mean_target"].append(objective.error(everywhere.expand_as(wanted), wanted))
        sums["error_context_mean"].append(objective.error(own.expand_as(wanted), wanted))
    values = {name: torch.stack(parts).mean() for name, parts in sums.items()}
    trivial = torch.minimum(values["error_mean_target"], values["error_context_mean"])
    return values | {"skill": 1 - values["error"] / trivial.clamp(min=1e-12)}


# ---- pictures --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def pictures(objective: Objective, batch: Batch, clip: ClipConfig, clips: int = 3) -> dict[str, Picture]:
    """``masks``: one clip over time, then what each mask family leaves of it. ``pca``: ``clips`` clips over time, each
    above the first three principal components of its patch features. Of a decoder ``decoded``: each clip above what its
    latents are decoded to. uint8 ``[H, W, 3]``, time runs to the right."""
    chosen = batch.clip[:clips]
    if isinstance(objective, DecoderObjective):
        every = TokenGrid(chosen.shape[2], 1, 1)
        both = [tubelet_frames(part, every, clip) for part in (chosen, objective.reconstruct(chosen))]
        return {"decoded": _tile([row for pair in zip(*both, strict=True) for row in pair])}
    if isinstance(objective, WorldModelObjective | PolicyObjective):
        grid = objective.head.cells._replace(t=chosen.shape[2])
        tokens = encode_frames(objective.target_encoder, chosen).flatten(1, 2)
    else:
        grid = objective.encoder.grid_of(chosen.shape)
        tokens = encode_in_chunks(objective.target_encoder, chosen)
    frames = tubelet_frames(chosen, grid, clip)
    drawn: dict[str, Picture] = {"pca": _pca_picture(tokens, frames, grid)}
    if batch.masks:
        rows = [frames[0]]
        for mask in batch.masks:
            shown = torch.zeros(grid.size, dtype=torch.bool)
            shown[mask.context_ids[0].cpu()] = True
            cells = _upscale(shown.view(*grid, 1).numpy(), frames.shape[2:4])
            rows.append(np.where(cells, frames[0], (frames[0] // 6 + 24).astype(np.uint8)))
        drawn["masks"] = _tile(rows)
    return drawn


def tubelet_frames(clip: Tensor, grid: TokenGrid, config: ClipConfig, least: int = 64) -> Picture:
    """The first frame of every tubelet of normalised clips ``[B, C, T, H, W]`` as uint8 ``[B, t, H', W', 3]``.

    Small frames are enlarged by a whole number to at least ``least`` pixels.
    """
    step = max(clip.shape[2] // grid.t, 1)
    frames = clip[:, :3, ::step][:, :, : grid.t].float().cpu().movedim(1, -1)
    colours = frames * torch.tensor(config.std) + torch.tensor(config.mean)
    pixels = (colours.clamp(0, 1) * 255).round().byte().numpy()
    scale = -(-least // min(pixels.shape[2:4]))
    return _enlarge(pixels, scale, scale)


def pca_colours(tokens: Tensor) -> Tensor:
    """Features ``[..., D]`` to their first three principal components, each scaled to [0, 1]: ``[..., 3]``."""
    flat = tokens.flatten(0, -2).double()
    mean, axes = principal_axes(flat, 3)
    main = (flat - mean) @ axes
    low, high = main.quantile(0.02, dim=0), main.quantile(0.98, dim=0)
    return ((main - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).float().unflatten(0, tokens.shape[:-1])


def principal_axes(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean ``[D]`` and the first ``count`` principal axes ``[D, count]`` of ``rows`` ``[N, D]``, float64.

    An axis has length 1 and points so that its entry of largest magnitude is positive: the same rows give the same
    signs, whatever the linear algebra library.
    """
    rows = rows.double()
    mean = rows.mean(dim=0)
    axes = torch.linalg.eigh((rows - mean).T @ (rows - mean)).eigenvectors[:, -count:].flip(-1)
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    return mean, axes * largest.sign()


def _pca_picture(tokens: Tensor, frames: Picture, grid: TokenGrid) -> Picture:
    colours = (pca_colours(tokens.float().cpu()) * 255).round().byte().view(len(tokens), *grid, 3).numpy()
    rows = []
    for number in range(len(tokens)):
        rows += [frames[number], _upscale(colours[number], frames.shape[2:4])]
    return _tile(rows)


def _enlarge(images: NDArray[np.generic], down: int, right: int) -> Picture:
    return np.repeat(np.repeat(images, down, axis=-3), right, axis=-2)  # type: ignore[return-value]


def _upscale(cells: NDArray[np.generic], size: tuple[int, ...]) -> Picture:
    """Cells ``[t, h, w, c]`` to pictures ``[t, *size, c]`` by nearest neighbour."""
    return _enlarge(cells, size[0] // cells.shape[1], size[1] // cells.shape[2])


def _tile(rows: Sequence[Picture], gap: int = 4) -> Picture:
    """Rows of frames ``[t, H, W, 3]`` as one picture with a white gap between frames."""
    padded = [np.pad(row, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255) for row in rows]
    return np.concatenate([np.concatenate(list(row), axis=1) for row in padded], axis=0)
