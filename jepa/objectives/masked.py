"""Masked latent prediction: I-JEPA (arXiv 2301.08243), V-JEPA (2404.08471), V-JEPA 2 (2506.09985).

The predictor sees the context encoder's tokens and predicts, at the target positions, what the target encoder (an EMA
of the context encoder) makes of the whole clip. With ``predictor.levels`` L > 1 both are the outputs of the last L of
the encoder's ``levels`` side by side, as in V-JEPA 2.1: what lies near the pixels has to be predicted, too, and cannot
be dropped on the way up.

Shape legend: B batch, N tokens, Nc context, M target blocks, Nt targets per block, L levels, D width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.config import ConfigError
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.models.flops import Work, encoder_flops
from jepa.models.predictor import Predictor, PredictorConfig
from jepa.objectives.base import MEASURES, Objective, check_families, masked_work, predict_blocks
from jepa.objectives.ema import update_ema
from jepa.objectives.regularizers import RegularizerConfig, regularize
from jepa.schedules import RampKind, ramp
from jepa.types import Batch, ClipConfig, Loss, Mask


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedConfig:
    """``loss``: L1 (V-JEPA), smooth L1 (I-JEPA), or the squared error, whose best answer is the mean of what may be
    there. ``momentum``: of the EMA, at the first and the last step. ``freeze_target``: the share of the training after
    which the target encoder stands still (None: never), as the teacher of arXiv 2509.24317 does, which was trained on
    pixels.

    ``regularizer``: an extra term on the context encoder's last output that keeps features apart.
    """

    kind: Literal["masked"] = "masked"
    loss: Literal["l1", "smooth_l1", "mse"] = "l1"
    momentum: tuple[float, float] = (0.998, 1.0)
    momentum_schedule: RampKind = "linear"
    freeze_target: float | None = None
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    regularizer: RegularizerConfig | None = None

    def __post_init__(self) -> None:
        if not all(0 <= m <= 1 for m in self.momentum):
            raise ValueError(f"momentum must lie in [0, 1], not {list(self.momentum)}")
        if self.freeze_target is not None and not 0 <= self.freeze_target <= 1:
            raise ValueError(f"freeze_target is a share of the training in [0, 1], not {self.freeze_target:g}")


class MaskedObjective(Objective):
    """Context encoder, predictor with one mask token per mask family, EMA target encoder. Raises ``ConfigError`` for a
    predictor of more levels than the encoder has."""

    def __init__(self, config: MaskedConfig, encoder: EncoderConfig, clip: ClipConfig, num_families: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(encoder, clip)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.predictor = Predictor(
            config.predictor, self.encoder.embed_dim, self.encoder.grid, num_families, encoder.position, encoder.rope,
        )  # fmt: skip
        self.num_families = num_families
        self.levels = target_levels(encoder.levels, config.predictor.levels)

    def forward(self, batch: Batch, progress: float) -> Loss:
        """Mean over mask families of the prediction error, plus the regularizer; ``batch.clip`` ``[B, C, T, H, W]``."""
        check_families(batch, self.num_families)
        targets = self.targets(batch.clip)
        terms: dict[str, Tensor] = {}
        errors, penalties = [], []
        for family, mask in enumerate(batch.masks):
            context = self.context(batch.clip, mask.context_ids)
            predictions = self.predict(context, mask, family, batch.clip)
            errors.append(self.error(predictions, gather_tokens(targets, mask.target_ids)))
            terms[f"prediction_{family}"] = errors[-1].detach()
            if self.config.regularizer is not None:
                penalty, parts = regularize(self.config.regularizer, context[..., -self.encoder.embed_dim :])
                penalties.append(penalty)
                terms |= {f"{name}_{family}": value for name, value in parts.items()}
        prediction = torch.stack(errors).mean()
        total = prediction + torch.stack(penalties).mean() if penalties else prediction
        terms |= {  # filled on the device: no copy, no sync
            "discarded": total.new_full((), sum(mask.discarded for mask in batch.masks) / len(batch.masks)),
            "momentum": total.new_full((), self.momentum(progress)),
        }
        return Loss(total, {"prediction": prediction.detach(), **terms})

    def work(self, batch: Batch) -> Work:
        """The target encoder on whole clips, context encoder and predictor; regularizers are left out."""
        clips, tokens = len(batch.clip), self.encoder.grid.size
        rest = masked_work(self.encoder, self.predictor, batch.masks)
        targets = encoder_flops(self.target_encoder, tokens, trained=False)
        return Work(clips * targets + rest.flops, clips * tokens + rest.tokens)

    def tokens(self, encoder: Encoder, clip: Tensor, ids: Tensor | None = None) -> Tensor:
        """What ``encoder`` makes of the tokens ``ids`` ``[B, Nc]`` of ``clip`` (None: of all), its levels side by side:
        ``[B, Nc or N, L*D]``."""
        if self.levels is None:
            return encoder(clip, ids)
        return torch.cat(encoder(clip, ids, layers=self.levels), dim=-1)

    def context(self, clip: Tensor, ids: Tensor) -> Tensor:
        """What the predictor is given of the tokens ``ids`` ``[B, Nc]``: ``[B, Nc, L*D]``."""
        return self.tokens(self.encoder, clip, ids)

    @torch.no_grad()
    def targets(self, clip: Tensor) -> Tensor:
        """Output of the target encoder on the whole clip, each level layer-normed by itself, fp32 ``[B, N, L*D]``."""
        width = self.encoder.embed_dim
        levels = self.tokens(self.target_encoder, clip).float().split(width, dim=-1)
        return torch.cat([F.layer_norm(level, (width,)) for level in levels], dim=-1)

    def predict(self, context: Tensor, mask: Mask, family: int, clip: Tensor) -> Tensor:
        """Predictions ``[B, M, Nt, L*D]`` from context tokens ``[B, Nc, L*D]``; the M blocks are predicted apart."""
        return predict_blocks(self.predictor, context, mask, family, self.encoder.grid_of(clip.shape))

    def error(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Mean prediction error over everything, in fp32; a scalar."""
        return MEASURES[self.config.loss](predictions.float(), targets)

    def after_step(self, progress: float) -> None:
        """Move the target encoder towards the context encoder."""
        update_ema(self.target_encoder, self.encoder, self.momentum(progress))

    def momentum(self, progress: float) -> float:
        """Momentum of the EMA at ``progress`` in [0, 1]; 1 where the target stands still."""
        if self.config.freeze_target is not None and progress >= self.config.freeze_target:
            return 1.0
        return ramp(self.config.momentum_schedule, *self.config.momentum, progress)


def target_levels(levels: tuple[int, ...], count: int) -> tuple[int, ...] | None:
    """The last ``count`` of an encoder's ``levels``, or None where the last block alone is predicted. Raises
    ``ConfigError`` where there are not so many."""
    if count == 1:
        return None
    if count > len(levels):
        raise ConfigError(
            f"objective.predictor.levels: {count} levels are to be predicted, and encoder.levels names "
            f"{len(levels)}: {list(levels)}. Name as many blocks there, the last one among them"
        )
    return levels[-count:]


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Tokens ``[B, N, D]`` at ids ``[B, M, Nt]`` as ``[B, M, Nt, D]``."""
    flat = ids.flatten(1)
    return tokens.gather(1, flat[..., None].expand(-1, -1, tokens.shape[-1])).unflatten(1, ids.shape[1:])
