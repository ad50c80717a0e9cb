"""Settings of the objective ``decoder``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jepa.models.flow_decoder import FlowDecoderConfig
from jepa.models.latent_head import LatentConfig
from jepa.models.pixel_decoder import PixelDecoderConfig
from jepa.models.timm_config import TimmConfig
from jepa.types import ClipConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderBase:
    """What a run wrote down about the model that ``model`` named: its encoder's own clip, which model of timm that is
    (None: the ``encoder`` section says what it is), the levels that its predictor predicts (None: the last block
    alone), and, of a world model, what of a frame's tokens is a latent (None: latents are those of whole clips)."""

    clip: ClipConfig
    timm: TimmConfig | None = None
    levels: tuple[int, ...] | None = None
    latent: LatentConfig | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """``model``: what is decoded, and stays as it is: anything that ``jepa.load`` takes, of which the latents are those
    of whole clips, or a world model (a run of world_model, latent_action, controller or policy, or a published
    V-JEPA 2-AC), of which they are those of single frames.

    ``layers``: the blocks whose outputs, side by side, are the latents (negative: from the last). None: what the
    model's own objective predicts, which is the last block, or the levels of V-JEPA 2.1. Each is layer-normed, as
    targets are. World models have latents of their own: leave it out.

    ``decoder``: "deterministic" gives one clip, "flow" samples (``jepa.models.flow_decoder``). ``loss``: error of the
    pixels; where latents leave something open, "l1" learns its median, which is sharper and takes longer to see what
    is small, "mse" its mean. ``perceptual_weight``: of the distance (L1), added to it, between the frozen encoder's
    features, layer-normed, of decoded and true pixels. ``perceptual_layers``: the blocks that these come from (None:
    the middle one and the last). ``base`` is written by the run, not by hand.
    """

    kind: Literal["decoder"] = "decoder"
    model: str = ""
    layers: tuple[int, ...] | None = None
    loss: Literal["l1", "mse"] = "l1"
    decoder: PixelDecoderConfig | FlowDecoderConfig = field(default_factory=PixelDecoderConfig)
    perceptual_weight: float = 0.0
    perceptual_layers: tuple[int, ...] | None = None
    base: DecoderBase | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model must name what is decoded: a run, a published model or timm:NAME")
        if self.loss != "l1" and self.decoder.kind == "flow":
            raise ValueError("loss has no meaning with a flow decoder, which learns a velocity: leave it out")
        for name in ("layers", "perceptual_layers"):
            if getattr(self, name) == ():
                raise ValueError(f"{name} is empty: name at least one block, or leave it out")
        if self.perceptual_weight < 0:
            raise ValueError(f"perceptual_weight must not be negative, but is {self.perceptual_weight:g}")
        if self.perceptual_weight and self.decoder.kind == "flow":
            raise ValueError("perceptual_weight has no meaning with a flow decoder, which samples: leave it out")
        if self.perceptual_layers is not None and not self.perceptual_weight:
            raise ValueError("perceptual_layers have no meaning with perceptual_weight 0: set a weight such as 0.1")
