"""What teaches the predictor of a world model: the error of teacher forcing, and that of a rollout. The objectives use
it, and the evals for a predictor of latents that nobody trained.

Shape legend: B batch, T frames, n latent tokens per frame, D width of a latent, A action width, S state width, R steps
of the rollout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa.models.action_predictor import ActionPredictor, ActionPredictorConfig
from jepa.models.latent_head import LatentHead
from jepa.models.rope import RopeConfig
from jepa.models.world_model import WorldModel
from jepa.objectives.base import MEASURES
from jepa.objectives.world_config import Measure, WorldModelConfig
from jepa.types import Loss


def fresh_predictor(
    config: ActionPredictorConfig, head: LatentHead, rope: RopeConfig, residual: bool
) -> ActionPredictor:
    """A predictor of the latents of ``head``, with the weights that training begins with: a ``residual`` one says that
    nothing changes. Raises ``ValueError`` where ``config`` leaves the widths of actions or states open."""
    predictor = ActionPredictor(config, head.dim, head.grid, rope)
    if residual:
        nn.init.zeros_(predictor.predictor_proj.weight)  # its bias is 0 already
    return predictor


def prediction_loss(
    world: WorldModel, config: WorldModelConfig, latents: Tensor, targets: Tensor, actions: Tensor,
    states: Tensor | None,
) -> Loss:  # fmt: skip
    """The weighted errors of teacher forcing and, where there is one, of the rollout.

    ``latents`` ``[B, T, n, D]`` (the last frame's are not looked at), ``targets`` ``[B, T-1, n, D]`` of frames 1..,
    ``actions`` ``[B, T-1, A]``, ``states`` ``[B, T, S]`` (None: the model has none).
    """
    last = actions.shape[1]
    before = None if states is None else states[:, :last]
    error = latent_error(config.loss, world.teacher_forced(latents[:, :last], actions, before), targets)
    total, terms = config.teacher_weight * error, {"prediction": error.detach()}
    if config.rolls_out:
        error = latent_error(config.loss, *rolled_out(world, config, latents, targets, actions, states))
        total, terms["rollout"] = total + config.rollout_weight * error, error.detach()
    return Loss(total, terms)


def rolled_out(
    world: WorldModel, config: WorldModelConfig, latents: Tensor, targets: Tensor, actions: Tensor,
    states: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Predictions ``[B, R, n, D]`` of ``rollout_steps`` steps from the first frames, each from the ones before it, with
    true states; and their targets. Shapes as for ``prediction_loss``."""
    first, steps = config.rollout_context - 1, config.rollout_steps
    past = None if states is None else states[:, : first + 1]
    memory = world.begin(latents[:, : first + 1], actions[:, :first], past)
    predictions = []
    for step in range(first, first + steps):
        predicted, memory = world.step(memory, actions[:, step])
        if states is not None:
            memory = memory._replace(state=states[:, step + 1].float())
        predictions.append(predicted)
    return torch.stack(predictions, dim=1), targets[:, first : first + steps]


def latent_error(measure: Measure, predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean error over everything, in fp32; a scalar."""
    return MEASURES[measure](predictions.float(), targets.float())
