"""An encoder that looks ahead: the tokens of a clip, and behind them what a predictor expects of the time of an action.

Shape legend: B batch, C channels, T frames, N tokens of the clip, Nt tokens of one tubelet, D width, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa.models.base import ClipEncoder
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.models.predictor import Predictor, PredictorConfig
from jepa.types import ClipConfig, TokenGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class AnticipatingConfig:
    """An encoder, a predictor made for clips of ``native`` tubelets with ``mask_tokens``, of which ``mask_token`` is
    used, and how many ``tubelets`` lie between the clip and the one that is predicted."""

    encoder: EncoderConfig
    predictor: PredictorConfig
    native: tuple[int, int, int]
    mask_tokens: int
    mask_token: int
    tubelets: int


class AnticipatingEncoder(ClipEncoder):
    """Clips ``[B, C, T, H, W]`` to ``[B, N + Nt, D]``: the encoder's tokens, then those that the predictor expects of
    the tubelet that begins ``config.tubelets`` tubelets after the clip. ``grid`` counts it as one more step of time.

    Source: V-JEPA 2 (arXiv 2506.09985, section on action anticipation). Raises ``ValueError`` where the predictor
    cannot do that (see ``obstacle``).
    """

    def __init__(
        self, config: AnticipatingConfig, clip: ClipConfig, encoder: Encoder | None = None,
        predictor: Predictor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config, self.clip = config, clip
        self.encoder = Encoder(config.encoder, clip) if encoder is None else encoder
        self.embed_dim, self.depth = self.encoder.embed_dim, self.encoder.depth
        self.predictor = predictor or Predictor(
            config.predictor, self.embed_dim, TokenGrid(*config.native), config.mask_tokens, config.encoder.position,
            config.encoder.rope,
        )  # fmt: skip
        reason = obstacle(self.encoder, self.predictor, config.tubelets)
        if reason is not None:
            raise ValueError(reason)
        if not 0 <= config.mask_token < len(self.predictor.mask_tokens):
            count = len(self.predictor.mask_tokens)
            raise ValueError(f"mask_token {config.mask_token} does not exist: the predictor has {count}")
        self.grid = self.encoder.grid._replace(t=self.encoder.grid.t + 1)

    @classmethod
    def around(cls, encoder: Encoder, predictor: Predictor, tubelets: int, mask_token: int) -> AnticipatingEncoder:
        """The two parts at work together, frozen, in eval mode."""
        config = AnticipatingConfig(
            encoder=encoder.config, predictor=predictor.config, native=tuple(predictor.grid),
            mask_tokens=len(predictor.mask_tokens), mask_token=mask_token, tubelets=tubelets,
        )  # fmt: skip
        return cls(config, encoder.clip, encoder, predictor).eval().requires_grad_(False)

    def grid_of(self, clip_shape: Sequence[int]) -> TokenGrid:
        """Token grid of a clip with the predicted step. Raises ``ValueError`` if patches do not divide it."""
        grid = self.encoder.grid_of(clip_shape)
        return grid._replace(t=grid.t + 1)

    def forward(  # type: ignore[override]  # the base's overloads say which of the two it returns
        self, clip: Tensor, context_ids: Tensor | None = None, layers: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """Tokens of the whole clip and of what follows. Raises ``ValueError`` for ``context_ids`` and ``layers``,
        of which nothing can be predicted."""
        if context_ids is not None or layers is not None:
            raise ValueError("an encoder that looks ahead sees whole clips and gives its last block: no ids, no layers")
        count = self.predictor.config.levels
        levels = [self.encoder(clip)] if count == 1 else self.encoder(clip, layers=self.encoder.config.levels[-count:])
        grid = self.encoder.grid_of(clip.shape)
        longer = self._longer(grid)
        ids = longer.ids(clip.device).expand(len(clip), -1)
        first = (grid.t + self.config.tubelets) * grid.h * grid.w
        predicted = self.predictor(
            torch.cat(levels, dim=-1), ids[:, : grid.size], ids[:, first : first + grid.h * grid.w],
            mask_token=self.config.mask_token, grid=longer, modality="image" if clip.shape[2] == 1 else "video",
        )  # fmt: skip
        own = predicted[..., -self.embed_dim :]  # of several levels the last block's
        return torch.cat((levels[-1], own.to(levels[-1].dtype)), dim=1)

    def _longer(self, grid: TokenGrid) -> TokenGrid:
        """A grid that holds the clip and the predicted tubelet. Positions that are spread over the native length must
        not be squeezed, so they keep it."""
        needed = grid.t + self.config.tubelets + 1
        return grid._replace(t=needed if self.predictor.positions is None else self.predictor.grid.t)


def obstacle(encoder: Encoder, predictor: Predictor, tubelets: int) -> str | None:
    """Why ``predictor`` cannot expect the tubelet that begins ``tubelets`` tubelets after the encoder's clip; ``None``
    if it can. Rotary positions go on for ever, tables of positions end with the clip that they were made for."""
    levels = predictor.config.levels
    if predictor.in_dim != levels * encoder.embed_dim or predictor.out_dim != predictor.in_dim:
        return (
            f"its predictor turns {predictor.in_dim} numbers into {predictor.out_dim}: these are latents of another "
            f"model than this encoder of width {encoder.embed_dim}"
        )
    needed, known = encoder.grid.t + tubelets + 1, predictor.grid.t
    if predictor.positions is not None and needed > known:
        return (
            f"its predictor knows the positions of {known} tubelets, and the action is in tubelet {needed}: shorten "
            f"the clip (clip.num_frames) by {needed - known} tubelets"
        )
    return None


def tubelets_ahead(encoder: ClipEncoder, seconds: float) -> int:
    """How many whole tubelets of the encoder's clip end within ``seconds``. Raises ``ValueError`` where the clip goes
    by numbers of frames, whose time depends on the file."""
    clip = encoder.clip
    if clip.fps is None and clip.duration_s is None:
        raise ValueError("the clip goes by frame_step, so the time of its tubelets is not known: set clip.fps")
    if clip.fps is not None:
        frame_s = 1 / clip.fps
    else:
        assert clip.duration_s is not None
        frame_s = clip.duration_s / clip.num_frames
    tubelet_s = frame_s * clip.num_frames / encoder.grid.t
    return math.floor(seconds / tubelet_s + 1e-6)
