"""Actions from video that has none: inverse dynamics says what happened between two frames, through a bottleneck, and
the world model predicts the second frame from the first with nothing but that.

The answer, in latent space, to Genie (arXiv 2402.15391); compare arXiv 2601.05230. Frames are encoded one by one: the
latents of a clip encoder already contain what comes, and there would be nothing left for an action to say.

Shape legend: B batch, C channels, T frames, n latent tokens per frame, D width of a latent, Z width of an action.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from jepa.config import ConfigError
from jepa.models.encoder import EncoderConfig
from jepa.models.flops import TRAINED, Work, linear_flops
from jepa.models.latent_action import InverseDynamics, InverseDynamicsConfig
from jepa.models.layers import Block
from jepa.objectives.bottleneck import Bottleneck, BottleneckConfig, Squeezed, VqConfig
from jepa.objectives.world_config import WorldModelConfig
from jepa.objectives.world_model import WorldModelObjective
from jepa.types import Batch, ClipConfig, Loss


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentActionConfig(WorldModelConfig):
    """As ``WorldModelConfig``, but data needs no actions: those that condition the predictor are inferred by
    ``inverse`` and pass through ``bottleneck``, whose ``dim`` is the predictor's ``action_dim``. There are no states.
    """

    kind: Literal["latent_action"] = "latent_action"  # type: ignore[assignment]  # each method has its own name
    inverse: InverseDynamicsConfig = field(default_factory=InverseDynamicsConfig)
    bottleneck: BottleneckConfig = field(default_factory=VqConfig)

    def __post_init__(self) -> None:
        WorldModelConfig.__post_init__(self)  # super() does not work in a dataclass with slots
        for name, value, given in (
            ("action_dim", self.bottleneck.dim, self.predictor.action_dim),
            ("state_dim", 0, self.predictor.state_dim),
        ):
            if given not in (None, value):
                raise ValueError(
                    f"predictor.{name} is {value} here, as actions are inferred (bottleneck.dim) and states unknown: "
                    f"leave {name} {given} out"
                )
        for name, idle in (("inverse_weight", 0.0), ("state_update", "none")):
            if getattr(self, name) != idle:
                raise ValueError(f"{name} is for known actions and states, which are not used here: leave it out")
        known = replace(self.predictor, action_dim=self.bottleneck.dim, state_dim=0)
        object.__setattr__(self, "predictor", known)


class LatentActionObjective(WorldModelObjective):
    """A world model whose actions are inferred: the parts of ``WorldModelObjective``, inverse dynamics and bottleneck.

    ``inverse`` is None where the bottleneck lets nothing through.
    """

    takes_trajectories = False
    follow_up = "jepa eval {run} --task latent_action"
    config: LatentActionConfig

    def __init__(self, config: LatentActionConfig, encoder: EncoderConfig, clip: ClipConfig, num_families: int) -> None:
        if clip.num_frames < 2:
            raise ConfigError(
                f"clip.num_frames must be at least 2, as actions lie between frames, not {clip.num_frames}"
            )
        super().__init__(config, encoder, clip, num_families)
        self.inverse = None
        if config.bottleneck.kind != "zero":
            self.inverse = InverseDynamics(config.inverse, self.head.dim, self.head.grid.size)
        self.bottleneck = Bottleneck(config.bottleneck, config.inverse.embed_dim)

    def forward(self, batch: Batch, progress: float) -> Loss:
        """``batch.clip`` ``[B, C, T, H, W]``; actions and states, where there are some, are not looked at."""
        latents, targets = self.latents(batch.clip)
        squeezed = self.infer(latents)
        total, terms = self.prediction_loss(latents, targets, squeezed.z, None)
        return self.regularized(Loss(squeezed.loss + total, terms | squeezed.terms), latents, progress)

    def infer(self, latents: Tensor) -> Squeezed:
        """The actions ``[B, T-1, Z]`` between the frames of ``latents`` ``[B, T, n, D]``, with the bottleneck's loss.
        In eval mode without noise. Raises ``ValueError`` for fewer than 2 frames."""
        if self.inverse is None:
            return self.bottleneck(latents[:, 1:, 0])  # of which the shape matters
        found: Squeezed = self.bottleneck(self.inverse(latents))
        return found

    @property
    def codes(self) -> Tensor | None:
        """The ``[K, Z]`` vectors that actions are chosen from; None where they are continuous."""
        codebook = self.bottleneck.codebook
        return None if codebook is None or not codebook.is_active() else codebook.codes.detach()

    def work(self, batch: Batch) -> Work:
        """Encoders, predictor and inverse dynamics; bottleneck and regularizers are left out."""
        rest = super().work(batch)
        if self.inverse is None:
            return rest
        length, frames, rows = 1 + self.inverse.num_tokens, batch.clip.shape[2], len(batch.clip)
        if not self.config.inverse.history:
            rows, frames = rows * (frames - 1), 2
        flops = 0.0
        for number, block in enumerate(self.inverse.blocks):
            if self.config.inverse.attention == "joint":
                flops += rows * _causal_flops(block, length, frames)
            elif number % 2 == 0:
                flops += rows * frames * _causal_flops(block, length, 1)
            else:
                flops += rows * length * _causal_flops(block, 1, frames)
        embed = linear_flops(self.inverse.change, rows * frames * self.inverse.num_tokens)
        embed *= 1 if self.inverse.embed is None else 2
        steps = len(batch.clip) * (batch.clip.shape[2] - 1 + self.config.rolls_out * self.config.rollout_steps)
        asked = linear_flops(self.predictor.action_encoder, steps)  # the gradient that inferred actions get
        learned = TRAINED - 1 if self.frozen else TRAINED
        return Work(rest.flops + asked + learned * embed + TRAINED * flops, rest.tokens)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the target encoder, where there is one, and the codes."""
        super().after_step(progress)
        self.bottleneck.after_step(progress)


def _causal_flops(block: nn.Module, length: int, steps: int) -> float:
    """A block over so many steps of ``length`` tokens, none of which sees a later step; forward."""
    assert isinstance(block, Block)
    pairs = length * length * steps * (steps + 1) / 2
    return linear_flops(block, length * steps) + 4.0 * pairs * block.attn.proj.in_features
