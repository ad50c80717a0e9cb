"""What the training loop needs from a method, and what methods that fill in hidden places share.

Shape legend: B batch, Nc context tokens, M target blocks, Nt targets per block, D width, O output width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from jepa.config import ConfigError
from jepa.models.encoder import Encoder
from jepa.models.flops import Work, encoder_flops, predictor_flops
from jepa.models.predictor import Predictor
from jepa.types import Batch, Loss, Mask, Statistics, TokenGrid

MEASURES = {"l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss, "mse": F.mse_loss}  # errors of predicted latents


class Objective(nn.Module):
    """One method. The loop calls ``forward``, steps the optimizer, then calls ``after_step``; nothing else.

    ``encoder`` is what gets trained. ``target_encoder`` is what ``encode()`` and evals load by default; a method
    without a separate one points it at ``encoder``.
    """

    encoder: Encoder
    target_encoder: Encoder
    takes_masks: bool = True
    takes_trajectories: bool = False  # batches need actions; ``set_statistics`` is called before the first step
    follow_up: str = "jepa eval {run}"  # what a user may want to do with the finished run
    learns: str | None = None  # the one part that is trained, where all others are those of a frozen model

    def train(self, mode: bool = True) -> Objective:
        """Beside a part that ``learns`` all others stay in eval mode."""
        super().train(mode)
        if self.learns is not None:
            part = getattr(self, self.learns, None)  # None: it is still being built
            for child in self.children():
                child.train(mode and child is part)
        return self

    def inherited_state(self) -> dict[str, Tensor]:
        """The part of the state dict that the frozen model has, too, under the same names."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith(f"{self.learns}.")}

    def set_statistics(self, statistics: Statistics) -> None:
        """Keep, as buffers, what normalises actions and states; called once, when a new run begins."""
        raise AssertionError(f"{type(self).__name__} must define set_statistics")

    def forward(self, batch: Batch, progress: float) -> Loss:
        """The loss of a batch whose clip is float and on the device; ``progress`` in [0, 1] is the share of training
        that is done."""
        raise AssertionError(f"{type(self).__name__} must define forward")

    def work(self, batch: Batch) -> Work:
        """What a step on clips and masks of these shapes costs, forward and backward, for the run's throughput."""
        raise AssertionError(f"{type(self).__name__} must define work")

    def after_step(self, progress: float) -> None:
        """Called after every optimizer step with the progress after it; for what is not trained by gradient."""


def check_families(batch: Batch, num_families: int) -> None:
    """Raise ``ConfigError`` unless ``batch`` has one mask per mask family of the objective."""
    if len(batch.masks) != num_families:
        raise ConfigError(f"the objective has {num_families} mask families, the batch {len(batch.masks)}")


def predict_blocks(predictor: Predictor, context: Tensor, mask: Mask, family: int, grid: TokenGrid) -> Tensor:
    """Predictions ``[B, M, Nt, O]`` from context tokens ``[B, Nc, D]``; the M blocks are predicted apart."""
    batch_size, blocks, _ = mask.target_ids.shape
    ids = mask.context_ids
    if blocks > 1:  # blocks do not see each other: each one is a row of its own
        context, ids = context.repeat_interleave(blocks, dim=0), ids.repeat_interleave(blocks, dim=0)
    predictions: Tensor = predictor(context, ids, mask.target_ids.flatten(0, 1), mask_token=family, grid=grid)
    return predictions.unflatten(0, (batch_size, blocks))


def masked_work(encoder: Encoder, predictor: Predictor, masks: Sequence[Mask]) -> Work:
    """Context encoder and predictor on every mask family, forward and backward; not the targets."""
    flops, tokens = 0.0, 0
    for mask in masks:
        clips, context = mask.context_ids.shape
        _, blocks, targets = mask.target_ids.shape
        row = encoder_flops(encoder, context, trained=True) + blocks * predictor_flops(predictor, context, targets)
        flops, tokens = flops + clips * row, tokens + clips * context
    return Work(flops, tokens)
