"""What the training loop needs from a method."""

from __future__ import annotations

from torch import nn

from jepa.models.encoder import Encoder
from jepa.types import Batch, Loss


class Objective(nn.Module):
    """One method. The loop calls ``forward``, steps the optimizer, then calls ``after_step``; nothing else.

    ``encoder`` is what gets trained. ``target_encoder`` is what ``encode()`` and evals load by default; a method
    without a separate one points it at ``encoder``.
    """

    encoder: Encoder
    target_encoder: Encoder

    def forward(self, batch: Batch, progress: float) -> Loss:
        """The loss of a batch whose clip is float and on the device; ``progress`` in [0, 1] is the share of training
        that is done."""
        raise AssertionError(f"{type(self).__name__} must define forward")

    def after_step(self, progress: float) -> None:
        """Called after every optimizer step with the progress after it; for what is not trained by gradient."""
