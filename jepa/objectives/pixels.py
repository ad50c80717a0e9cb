"""Masked prediction of pixels: VideoMAE (arXiv 2203.12602), with images MAE (arXiv 2111.06377).

The encoder sees the context's tubelets; a narrow decoder fills in the pixels of the hidden ones. There is no second
encoder, and nothing but the data to learn from: the baseline that latent prediction is measured against.

Shape legend: B batch, C channels, N tokens, Nc context, M target blocks, Nt targets per block, D width,
P pixel values of a tubelet: C x tubelet_size x patch_size x patch_size.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.config import ConfigError
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.models.flops import Work
from jepa.models.predictor import Predictor, PredictorConfig
from jepa.objectives.base import Objective, check_families, masked_work, predict_blocks
from jepa.types import Batch, ClipConfig, Loss, Mask

_EPS = 1e-6  # of the variance: a tubelet of one colour has the target 0, not its amplified rounding errors


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelsConfig:
    """``norm_pix_loss``: each channel of each tubelet is brought to mean 0 and variance 1 before it is a target.

    ``decoder``: width, depth and heads (VideoMAE: 4 blocks of half the encoder's width); its output width follows from
    the tubelet. ``out_dim``, ``levels`` and ``context_head`` belong to predictors of latents and are refused.
    """

    kind: Literal["pixels"] = "pixels"
    norm_pix_loss: bool = True
    decoder: PredictorConfig = field(default_factory=lambda: PredictorConfig(depth=4, num_heads=6))

    def __post_init__(self) -> None:
        for name, only in (("out_dim", None), ("levels", 1), ("context_head", False)):
            if getattr(self.decoder, name) != only:
                raise ValueError(
                    f"decoder.{name} {getattr(self.decoder, name)} has no meaning where pixels are predicted: leave it "
                    "out"
                )


class PixelsObjective(Objective):
    """Encoder, and a decoder with one mask token per mask family: the predictor's architecture, put out in pixels."""

    def __init__(self, config: PixelsConfig, encoder: EncoderConfig, clip: ClipConfig, num_families: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(encoder, clip)
        values = encoder.tubelet_size * encoder.patch_size**2
        if config.norm_pix_loss and values == 1:
            raise ConfigError(
                "objective.norm_pix_loss: tubelets of one pixel are all alike once normalised; raise "
                "encoder.patch_size, or set norm_pix_loss to false"
            )
        self.decoder = Predictor(
            replace(config.decoder, out_dim=encoder.in_channels * values), self.encoder.embed_dim, self.encoder.grid,
            num_families, encoder.position, encoder.rope,
        )  # fmt: skip
        self.num_families = num_families

    @property
    def target_encoder(self) -> Encoder:  # type: ignore[override]  # read only: a second name, not a second module
        """The encoder itself: nothing follows it."""
        return self.encoder

    def forward(self, batch: Batch, progress: float) -> Loss:
        """Mean over mask families of the error at hidden places; ``batch.clip`` ``[B, C, T, H, W]``."""
        check_families(batch, self.num_families)
        errors = []
        for family, mask in enumerate(batch.masks):
            context = self.context(batch.clip, mask.context_ids)
            predictions = self.predict(context, mask, family, batch.clip)
            targets = self.targets(batch.clip, mask.target_ids.flatten(1))
            errors.append(self.error(predictions, targets.unflatten(1, mask.target_ids.shape[1:])))
        total = torch.stack(errors).mean()
        discarded = sum(mask.discarded for mask in batch.masks) / len(batch.masks)
        terms = {f"prediction_{family}": error.detach() for family, error in enumerate(errors)}
        return Loss(total, {"prediction": total.detach(), **terms, "discarded": total.new_full((), discarded)})

    def work(self, batch: Batch) -> Work:
        """Encoder and decoder."""
        return masked_work(self.encoder, self.decoder, batch.masks)

    @torch.no_grad()
    def targets(self, clip: Tensor, ids: Tensor | None = None) -> Tensor:
        """What is predicted of all tubelets of ``clip``, or of those of ``ids`` ``[B, N]``: fp32 ``[B, N, P]``.

        The pixels are those the encoder gets, after the clip's own ``mean`` and ``std``, which are not undone: with
        ``norm_pix_loss`` the result is the same up to the epsilon, as both are constants of a channel. The variance
        divides by the number of values n; dividing by n - 1 would scale targets by 1 - 1 / 2n, 0.1 % at 2 x 16 x 16.
        """
        pixels = self.encoder.patch_embed.tubelets(clip, ids).float()
        if not self.config.norm_pix_loss:
            return pixels
        channels = pixels.unflatten(-1, (self.encoder.config.in_channels, -1))
        return F.layer_norm(channels, channels.shape[-1:], eps=_EPS).flatten(-2)

    def context(self, clip: Tensor, ids: Tensor) -> Tensor:
        """What the decoder is given of the tokens ``ids`` ``[B, Nc]``: ``[B, Nc, D]``."""
        return self.encoder(clip, ids)

    def predict(self, context: Tensor, mask: Mask, family: int, clip: Tensor) -> Tensor:
        """Predictions ``[B, M, Nt, P]`` from context tokens ``[B, Nc, D]``; the M blocks are predicted apart."""
        return predict_blocks(self.decoder, context, mask, family, self.encoder.grid_of(clip.shape))

    def error(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error over everything, in fp32; a scalar."""
        return F.mse_loss(predictions.float(), targets)
