"""What a world model is compared with: its own architecture, with weights that nobody trained."""

from __future__ import annotations

from dataclasses import replace

import torch

from evals.features.representations import random_twin
from jepa.models.base import ClipEncoder
from jepa.models.latent_head import LatentHead, head_for
from jepa.models.world_model import WorldModel
from jepa.objectives.prediction import fresh_predictor


def untrained_latents(world: WorldModel, seed: int) -> tuple[ClipEncoder, LatentHead]:
    """The encoder and the latent head of ``world`` with fresh weights, frozen, where the world model is."""
    device = next(world.parameters()).device
    encoder = random_twin(world.encoder, seed).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = head_for(world.head.config, encoder, world.clip).to(device)
    return encoder, head.requires_grad_(False)


def untrained_world(world: WorldModel, seed: int) -> WorldModel:
    """``world`` with fresh weights and its own statistics of actions and states. A predictor that a controller speaks
    for takes inferred actions; the fresh one takes the real ones, as nothing is there that it could be told instead."""
    encoder, head = untrained_latents(world, seed)
    known, device = world.predictor, next(world.parameters()).device
    config = replace(known.config, action_dim=world.action_dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        predictor = fresh_predictor(config, head, known.rope, world.config.residual).to(device)
    predictor.eval().requires_grad_(False)
    return WorldModel(encoder, head, predictor, world.scaling, world.config, world.clip)
