"""Masked latent prediction: I-JEPA (arXiv 2301.08243), V-JEPA (2404.08471), V-JEPA 2 (2506.09985).

The predictor sees the context encoder's tokens and predicts, at the target positions, what the target encoder (an EMA
of the context encoder) makes of the whole clip.

Shape legend: B batch, N tokens, Nc context, M target blocks, Nt targets per block, D width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.models.encoder import Encoder, EncoderConfig
from jepa.models.flops import Work, encoder_flops
from jepa.models.predictor import Predictor, PredictorConfig
from jepa.objectives.base import Objective, check_families, masked_work, predict_blocks
from jepa.objectives.ema import update_ema
from jepa.objectives.regularizers import RegularizerConfig, regularize
from jepa.schedules import RampKind, ramp
from jepa.types import Batch, ClipConfig, Loss, Mask


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedConfig:
    """``loss``: L1 (V-JEPA) or smooth L1 (I-JEPA). ``momentum``: of the EMA, at the first and the last step.

    ``regularizer``: an extra term on the context encoder's output that keeps features apart.
    """

    kind: Literal["masked"] = "masked"
    loss: Literal["l1", "smooth_l1"] = "l1"
    momentum: tuple[float, float] = (0.998, 1.0)
    momentum_schedule: RampKind = "linear"
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    regularizer: RegularizerConfig | None = None

    def __post_init__(self) -> None:
        if not all(0 <= m <= 1 for m in self.momentum):
            raise ValueError(f"momentum must lie in [0, 1], not {list(self.momentum)}")


class MaskedObjective(Objective):
    """Context encoder, predictor with one mask token per mask family, EMA target encoder."""

    def __init__(self, config: MaskedConfig, encoder: EncoderConfig, clip: ClipConfig, num_families: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(encoder, clip)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.predictor = Predictor(
            config.predictor, self.encoder.embed_dim, self.encoder.grid, num_families, encoder.position, encoder.rope,
        )  # fmt: skip
        self.num_families = num_families

    def forward(self, batch: Batch, progress: float) -> Loss:
        """Mean over mask families of the prediction error, plus the regularizer; ``batch.clip`` ``[B, C, T, H, W]``."""
        check_families(batch, self.num_families)
        targets = self.targets(batch.clip)
        terms: dict[str, Tensor] = {}
        errors, penalties = [], []
        for family, mask in enumerate(batch.masks):
            context = self.encoder(batch.clip, mask.context_ids)
            predictions = self.predict(context, mask, family, batch.clip)
            errors.append(self.error(predictions, gather_tokens(targets, mask.target_ids)))
            terms[f"prediction_{family}"] = errors[-1].detach()
            if self.config.regularizer is not None:
                penalty, parts = regularize(self.config.regularizer, context)
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

    @torch.no_grad()
    def targets(self, clip: Tensor) -> Tensor:
        """Layer-normed output of the target encoder on the whole clip, fp32 ``[B, N, D]``."""
        tokens = self.target_encoder(clip)
        return F.layer_norm(tokens.float(), (tokens.shape[-1],))

    def predict(self, context: Tensor, mask: Mask, family: int, clip: Tensor) -> Tensor:
        """Predictions ``[B, M, Nt, D]`` from context tokens ``[B, Nc, D]``; the M blocks are predicted apart."""
        return predict_blocks(self.predictor, context, mask, family, self.encoder.grid_of(clip.shape))

    def error(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Mean prediction error over everything, in fp32; a scalar."""
        measure = F.l1_loss if self.config.loss == "l1" else F.smooth_l1_loss
        return measure(predictions.float(), targets)

    def after_step(self, progress: float) -> None:
        """Move the target encoder towards the context encoder."""
        update_ema(self.target_encoder, self.encoder, self.momentum(progress))

    def momentum(self, progress: float) -> float:
        """Momentum of the EMA at ``progress`` in [0, 1]."""
        return ramp(self.config.momentum_schedule, *self.config.momentum, progress)


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Tokens ``[B, N, D]`` at ids ``[B, M, Nt]`` as ``[B, M, Nt, D]``."""
    flat = ids.flatten(1)
    return tokens.gather(1, flat[..., None].expand(-1, -1, tokens.shape[-1])).unflatten(1, ids.shape[1:])
