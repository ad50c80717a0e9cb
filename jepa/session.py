"""The parts of a training run and the four things done with them: build, restore, one step, save.

``jepa.train.fit`` is the loop around them.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from jepa.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from jepa.compiling import compile_parts
from jepa.config import ConfigError, to_dict
from jepa.data.loader import TrainLoader
from jepa.data.transforms import ClipTransform
from jepa.distributed import Run
from jepa.masks import build_masks
from jepa.models.recompute import set_recompute
from jepa.objectives import Objective, build_objective
from jepa.optim import apply_schedules, build_optimizer, clip_gradients
from jepa.precision import convert_to_float8
from jepa.tensorfiles import load_strictly
from jepa.types import Batch

if TYPE_CHECKING:
    from jepa.train import TrainConfig


@dataclass(slots=True)
class Session:
    """What a step works with."""

    config: TrainConfig
    run: Run
    objective: Objective
    model: nn.Module  # the objective, wrapped for several processes
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    transform: ClipTransform
    loader: TrainLoader


def build(config: TrainConfig, run: Run) -> Session:
    """Every part that the config describes, on the run's device, from the run's seed."""
    loop = config.train
    if loop.batch_size % (run.world_size * loop.accumulate):
        raise ConfigError(
            f"train.batch_size {loop.batch_size} must be a multiple of processes x accumulate "
            f"= {run.world_size} x {loop.accumulate}"
        )
    torch.manual_seed(config.seed)  # the same weights on every process; see seed_step for what follows
    objective = build_objective(config.objective, config.encoder, config.clip, len(config.masks)).to(run.device)
    set_recompute(objective, loop.activation_checkpointing)
    if loop.float8:
        convert_to_float8(objective, run.device, run.precision)
    masks = build_masks(config.masks, objective.encoder.grid)
    pin = run.device.type == "cuda"
    loader = TrainLoader(
        config.data, config.clip, masks, loop.batch_size, config.seed, run.rank, run.world_size, pin_memory=pin
    )
    optimizer = build_optimizer(objective, config.optim)
    if loop.compile:
        compile_parts(objective, masks)
    transform = ClipTransform(config.clip, config.augment)
    return Session(config, run, objective, run.wrap(objective), optimizer, run.grad_scaler(), transform, loader)


def restore(session: Session, saved: Path | None) -> int:
    """Put everything back to where ``saved`` left it and return its step; a new run may begin from ``init_from``."""
    config, run = session.config, session.run
    if saved is None:
        if config.init_from is not None:
            path = find_checkpoint(config.init_from)
            load_strictly(session.objective, load_checkpoint(path)["objective"], path)
        return 0
    state = load_checkpoint(saved)
    if state["step"] > config.train.steps:
        raise ConfigError(
            f"{saved} is already at step {state['step']}, train.steps is {config.train.steps}; raise it to go on"
        )
    load_strictly(session.objective, state["objective"], saved)
    session.optimizer.load_state_dict(state["optimizer"])
    session.scaler.load_state_dict(state["scaler"])
    session.loader.load_state_dict(state["loader"])
    if len(state["rng"]) == run.world_size:
        set_random_state(state["rng"][run.rank], run.device)
    return int(state["step"])


def train_step(session: Session, batch: Batch, step: int) -> dict[str, Tensor]:
    """One update. Returns scalars on the device (``loss``, ``grad_norm``, the objective's terms); no host sync."""
    config, run, optimizer, scaler = session.config, session.run, session.optimizer, session.scaler
    progress = step / config.train.steps
    seed_step(config.seed, step, run.rank)
    apply_schedules(optimizer, config.optim, step, config.train.steps)
    parts = batch.to(run.device).chunk(config.train.accumulate)
    values: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        # Only the last micro-batch exchanges gradients between processes.
        model, last = session.model, number == len(parts) - 1
        quiet = isinstance(model, nn.parallel.DistributedDataParallel) and not last
        with model.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
            part = session.transform(part)
            with run.autocast():
                loss = model(part, progress)
            scaler.scale(loss.total / len(parts)).backward()
        for name, value in {"loss": loss.total, **loss.terms}.items():
            share = value.detach() / len(parts)
            values[name] = values[name] + share if name in values else share
    scaler.unscale_(optimizer)
    grad_norm = clip_gradients(session.objective, config.optim)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    session.objective.after_step((step + 1) / config.train.steps)
    return {"loss": values.pop("loss"), "grad_norm": grad_norm, **values}


def seed_step(seed: int, step: int, rank: int) -> None:
    """Give every step of every process its own random numbers.

    Then it does not matter who drew before (a data loader draws one number each time it starts, the monitor might),
    and a continued run draws what the uninterrupted one would have.
    """
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def save(session: Session, step: int) -> Path:
    """Write a checkpoint on rank 0; an error there is raised on every process."""
    config, run = session.config, session.run
    states = run.gather(random_state(run.device))

    def write() -> Path:
        state: dict[str, Any] = {
            "config": to_dict(config),
            "clip": to_dict(config.clip),
            "encoder_config": to_dict(config.encoder),
            "objective": session.objective.state_dict(),
            "optimizer": session.optimizer.state_dict(),
            "scaler": session.scaler.state_dict(),
            "rng": states,
            "loader": session.loader.state_dict(),
        }
        return save_checkpoint(
            config.run_dir, step, state, keep_last=config.train.keep_last, keep_every=config.train.keep_every
        )

    return run.on_main(write)
