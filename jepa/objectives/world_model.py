"""Action-conditioned prediction in latent space: V-JEPA 2-AC over a frozen encoder (arXiv 2506.09985, section 3), and
encoder and predictor trained together for small worlds, as PLDM (arXiv 2502.14819) does with variance and covariance.

Every frame is encoded by itself. The predictor sees latents, actions and states of steps 0..k and predicts the latents
of step k+1: from true latents at every step (teacher forcing), and from its own predictions (rollout).

Shape legend: B batch, C channels, T frames, n latent tokens per frame, D width of a latent, A action width, S state
width.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.config import ConfigError
from jepa.models.base import ClipEncoder
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.models.flops import TRAINED, Work, linear_flops
from jepa.models.latent_head import LatentHead, encode_frames, head_for
from jepa.models.linear import Linear
from jepa.models.world_model import Scaling, WorldModel
from jepa.objectives.base import Objective
from jepa.objectives.ema import update_ema
from jepa.objectives.prediction import fresh_predictor, latent_error, prediction_loss
from jepa.objectives.regularizers import regularize
from jepa.objectives.world_config import WorldModelConfig
from jepa.objectives.world_flops import frame_flops, head_flops, steps_flops
from jepa.schedules import ramp
from jepa.types import Batch, ClipConfig, Loss, Statistics


class WorldModelObjective(Objective):
    """Encoder (frozen, or trained along, with an EMA of it or without), latent head, statistics, action predictor."""

    takes_masks = False
    takes_trajectories = True
    follow_up = "jepa eval {run} --task world_model"

    def __init__(self, config: WorldModelConfig, encoder: EncoderConfig, clip: ClipConfig, num_families: int) -> None:
        super().__init__()
        if clip.num_frames < 2 + max(0, config.rollout_steps + config.rollout_context - 2):
            raise ConfigError(
                f"objective.rollout_steps {config.rollout_steps} after rollout_context {config.rollout_context} needs "
                f"clips of {max(2, config.rollout_steps + config.rollout_context)} frames, but clip.num_frames is "
                f"{clip.num_frames}"
            )
        if config.encoder_from is not None and config.frozen is None:
            raise ConfigError("objective.encoder_from is not settled: call jepa.settling.settled(config) first")
        self.config, self.clip = config, clip
        self.frozen = config.frozen is not None
        self.encoder = build_encoder(config, encoder, clip)  # type: ignore[assignment]
        self.head = head_for(config.latent, self.encoder, clip)
        self.predictor = fresh_predictor(config.predictor, self.head, config.rope, config.residual)
        self.scaling = Scaling(self.predictor.action_dim, self.predictor.state_dim)
        self.action_reader = None
        if config.inverse_weight > 0:
            self.action_reader = ActionReader(self.head.grid.size * self.head.dim, self.predictor.action_dim)
        self.follows = config.momentum is not None
        if self.follows:
            self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
            self.target_head = copy.deepcopy(self.head).requires_grad_(False)
        else:  # other names for the same modules, past nn.Module, which would count their weights twice
            object.__setattr__(self, "target_encoder", self.encoder)
            object.__setattr__(self, "target_head", self.head)
        if self.frozen:
            self.encoder.requires_grad_(False).eval()
            self.head.requires_grad_(False)  # it has weights where they are inherited
        # the same modules as a world model: what learns, and what is used in the end
        object.__setattr__(self, "learner", self._world(self.encoder, self.head))
        object.__setattr__(self, "world_model", self._world(self.target_encoder, self.target_head))

    learner: WorldModel
    world_model: WorldModel

    def _world(self, encoder: ClipEncoder, head: LatentHead) -> WorldModel:
        return WorldModel(encoder, head, self.predictor, self.scaling, self.config.world, self.clip)

    def train(self, mode: bool = True) -> WorldModelObjective:
        """A frozen encoder stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def frozen_state(self) -> dict[str, Tensor]:
        """The part of the state dict that ``encoder_from`` has, too."""
        parts = ("encoder.", "head.") if self.config.inherit_latent else ("encoder.",)
        return {name: value for name, value in self.state_dict().items() if name.startswith(parts)}

    def set_statistics(self, statistics: Statistics) -> None:
        """Raises ``ConfigError`` where actions or states are not as wide as the model's."""
        self.scaling.set(statistics)

    def forward(self, batch: Batch, progress: float) -> Loss:
        """``batch.clip`` ``[B, C, T, H, W]``, ``batch.actions`` ``[B, T-1, A]``, ``batch.states`` ``[B, T, S]``."""
        actions, states = self._conditions(batch)
        latents, targets = self.latents(batch.clip)
        total, terms = self.prediction_loss(latents, targets, actions, states)
        if self.action_reader is not None:
            read = self.action_reader(latents)
            error = F.mse_loss(read.float(), self.scaling.actions(actions))
            total, terms["inverse"] = total + self.config.inverse_weight * error, error.detach()
        return self.regularized(Loss(total, terms), latents, progress)

    def prediction_loss(self, latents: Tensor, targets: Tensor, actions: Tensor, states: Tensor | None) -> Loss:
        """The weighted errors of teacher forcing and, where there is one, of the rollout."""
        return prediction_loss(self.learner, self.config, latents, targets, actions, states)

    def regularized(self, loss: Loss, latents: Tensor, progress: float) -> Loss:
        """``loss`` with what shapes the latents of an encoder that is trained along: they change little from frame to
        frame, and are kept apart (by the regularizer, or by the EMA, whose momentum is shown)."""
        total, terms = loss
        if self.config.similarity_weight > 0:
            change = F.mse_loss(latents[:, 1:].float(), latents[:, :-1].float())
            total, terms["change"] = total + self.config.similarity_weight * change, change.detach()
        if self.config.regularizer is not None:
            penalty, parts = regularize(self.config.regularizer, as_samples(latents))
            total, terms = total + penalty, terms | parts
            if self.config.within_weight > 0:
                centred = (latents - latents.mean(dim=1, keepdim=True)) / self.config.within_std
                penalty, parts = regularize(self.config.regularizer, as_samples(centred))
                total = total + self.config.within_weight * penalty
                terms |= {f"{name}_within": value for name, value in parts.items()}
        if self.follows:
            terms["momentum"] = total.new_full((), self.momentum(progress))
        return Loss(total, terms)

    def latents(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """What the predictor sees of the frames ``[B, T, n, D]`` (the last one only where something else needs it), and
        its targets: of frames 1.. ``[B, T-1, n, D]``."""
        if self.frozen:
            with torch.no_grad():
                latents = self.learner.encode(clip)
            return latents, latents[:, 1:]
        latents = self.learner.encode(clip[:, :, : self._frames_learned(clip.shape[2])])
        if not self.follows:
            return latents, latents[:, 1:]
        with torch.no_grad():
            return latents, encode_frames(self.target_encoder, clip[:, :, 1:], self.target_head)

    def _frames_learned(self, frames: int) -> int:
        """How many frames go through the encoder that learns."""
        reads_all = not self.takes_trajectories  # then actions are inferred, the last one from the last two frames
        needed = reads_all or not self.follows or self.config.regularizer is not None or self.action_reader is not None
        needed = needed or self.config.similarity_weight > 0
        return frames if needed else frames - 1

    def error(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Mean error over everything, in fp32; a scalar."""
        return latent_error(self.config.loss, predictions, targets)

    def work(self, batch: Batch) -> Work:
        """Encoders, projection, predictor and action reader; regularizers are left out."""
        clips, frames = len(batch.clip), batch.clip.shape[2]
        height = width = self.clip.crop_size  # the batch is as the loader made it, not cropped yet
        cells, tokens, joint = self.head.cells.size, self.head.grid.size, not self.frozen
        learned = self._frames_learned(frames) if joint else frames
        flops = learned * frame_flops(self.encoder, height, width, trained=joint)
        flops += head_flops(self.head, learned, trained=joint)
        if self.follows:
            flops += (frames - 1) * frame_flops(self.target_encoder, height, width, trained=False)
            flops += head_flops(self.target_head, frames - 1, trained=False)
            learned += frames - 1
        if self.action_reader is not None:
            flops += TRAINED * linear_flops(self.action_reader, frames - 1)
        return Work(clips * (flops + self._predictor_flops(frames - 1, tokens, joint)), clips * learned * cells)

    def _predictor_flops(self, steps: int, tokens: int, joint: bool) -> float:
        """Of one clip: teacher forcing and rollout."""
        predictor, window = self.predictor, self.config.window
        flops = steps_flops(predictor, steps, tokens, window=window, input_grad=joint)
        if not self.config.rolls_out:
            return flops
        first = self.config.rollout_context - 1
        if first:
            flops += steps_flops(
                predictor, first, tokens, window=window, input_grad=joint, remembered_only=True,
            )  # fmt: skip
        for step in range(self.config.rollout_steps):
            flops += steps_flops(
                predictor, 1, tokens, earlier=first + step, window=window, input_grad=joint or step > 0,
            )  # fmt: skip
        return flops

    def after_step(self, progress: float) -> None:
        """Move the target encoder, where there is one, towards the encoder."""
        if self.follows:
            update_ema(self.target_encoder, self.encoder, self.momentum(progress))
            if self.config.latent.dim is not None:
                update_ema(self.target_head, self.head, self.momentum(progress))

    def momentum(self, progress: float) -> float:
        """Momentum of the EMA at ``progress`` in [0, 1]."""
        assert self.config.momentum is not None, "asked for where there is an EMA"
        return ramp(self.config.momentum_schedule, *self.config.momentum, progress)

    def _conditions(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Actions and, where the model has any, states of a batch. Raises ``ConfigError`` for other shapes."""
        frames, wanted = batch.clip.shape[2], {"action": self.predictor.action_dim, "state": self.predictor.state_dim}
        for kind, value, length in (("action", batch.actions, frames - 1), ("state", batch.states, frames)):
            if kind == "state" and wanted[kind] == 0:
                continue
            if value is None:
                raise ConfigError(f"the data has no {kind}s, but the model has objective.predictor.{kind}_dim "
                                  f"{wanted[kind]}")  # fmt: skip
            if value.shape[1] != length:
                raise ConfigError(f"clips of {frames} frames need {length} {kind}s, but have {value.shape[1]}")
            if value.shape[2] != wanted[kind]:
                raise ConfigError(
                    f"the data has {kind}s of {value.shape[2]} numbers, the model (objective.predictor.{kind}_dim) of "
                    f"{wanted[kind]}"
                )
        assert batch.actions is not None
        return batch.actions, batch.states if wanted["state"] else None


def as_samples(latents: Tensor) -> Tensor:
    """``[B, T, n, D]`` to ``[B*T, 1, n*D]``: each frame is one sample to a regularizer."""
    return latents.flatten(0, 1).flatten(1)[:, None]


class ActionReader(nn.Module):
    """Inverse dynamics: latents ``[B, T, n, D]`` to the normalised actions ``[B, T-1, A]`` between them."""

    def __init__(self, frame_dim: int, action_dim: int, hidden_dim: int = 256) -> None:
        super().__init__()
        self.fc1 = Linear(2 * frame_dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, action_dim)

    def forward(self, latents: Tensor) -> Tensor:
        """The action between frames k and k+1, from the two."""
        frames = latents.flatten(2)
        return self.fc2(F.gelu(self.fc1(torch.cat((frames[:, :-1], frames[:, 1:]), dim=-1))))


def build_encoder(config: WorldModelConfig, encoder: EncoderConfig, clip: ClipConfig) -> ClipEncoder:
    """The encoder of ``config`` with fresh weights."""
    if config.frozen is None:
        return Encoder(encoder, replace(clip, num_frames=1, fps=None, frame_step=None, duration_s=None))
    if config.frozen.timm is not None:
        from jepa.models.timm_encoder import TimmEncoder

        return TimmEncoder(config.frozen.timm, config.frozen.clip)
    return Encoder(encoder, config.frozen.clip)
