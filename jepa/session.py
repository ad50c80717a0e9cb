"""The parts of a training run and the four things done with them: build, restore, one step, save.

``jepa.train.fit`` is the loop around them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
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
    save_sharded,
    set_random_state,
)
from jepa.compiling import compile_parts
from jepa.config import ConfigError, to_dict
from jepa.data.loader import TrainLoader
from jepa.data.transforms import ClipTransform
from jepa.distributed import Run
from jepa.frozen_model import load_frozen_model
from jepa.masks import build_masks
from jepa.models.recompute import set_recompute
from jepa.objectives import (
    ControllerObjective,
    DecoderObjective,
    Objective,
    PolicyObjective,
    WorldModelObjective,
    build_objective,
)
from jepa.optim import apply_schedules, build_optimizer, clip_gradients
from jepa.precision import convert_to_float8
from jepa.sharded_checkpoint import ShardedTensors, numbered
from jepa.sharding import build_sharded, exchange_gradients, is_sharded, optimizer_room, put
from jepa.tensorfiles import load_strictly, refuse_misfits
from jepa.types import Batch
from jepa.world_model import load_world_model

if TYPE_CHECKING:
    from jepa.train import TrainConfig


@dataclass(slots=True)
class Session:
    """What a step works with."""

    config: TrainConfig
    run: Run
    objective: Objective
    model: nn.Module  # the objective; for several processes with copies of it, wrapped
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    transform: ClipTransform
    loader: TrainLoader

    @property
    def sharded(self) -> bool:
        """Whether the model is cut over the processes: then all of them take part wherever it computes."""
        return is_sharded(self.objective)


def build(config: TrainConfig, run: Run) -> Session:
    """Every part that the config describes, on the run's device, from the run's seed."""
    loop = config.train
    if loop.batch_size % (run.world_size * loop.accumulate):
        raise ConfigError(
            f"train.batch_size {loop.batch_size} must be a multiple of processes x accumulate "
            f"= {run.world_size} x {loop.accumulate}"
        )
    objective = build_model(config, run)
    masks = build_masks(config.masks, objective.encoder.grid)
    loader = TrainLoader(
        config.data, config.clip, masks, loop.batch_size, config.seed, run.rank, run.world_size,
        pin_memory=run.device.type == "cuda", accumulate=loop.accumulate,
    )  # fmt: skip
    optimizer = build_optimizer(objective, config.optim)
    if loop.compile:
        compile_parts(objective, masks)
    transform = ClipTransform(config.clip, config.augment)
    model = objective if is_sharded(objective) else run.wrap(objective)
    return Session(config, run, objective, model, optimizer, run.grad_scaler(), transform, loader)


def build_model(config: TrainConfig, run: Run) -> Objective:
    """The objective on the run's device, in shards where ``train.parallel`` asks for them, with the same weights for
    any number of processes."""
    loop = config.train

    def build() -> Objective:
        torch.manual_seed(config.seed)  # see seed_step for what follows
        return build_objective(config.objective, config.encoder, config.clip, len(config.masks))

    def prepare(objective: Objective) -> None:
        set_recompute(objective, loop.activation_checkpointing)
        if loop.float8:
            convert_to_float8(objective, run.device, run.precision)

    if loop.parallel == "fsdp" and run.world_size > 1:
        return build_sharded(build, prepare, run)
    objective = build().to(run.device)
    prepare(objective)
    return objective


def restore(session: Session, saved: Path | None) -> int:
    """Put everything back to where ``saved`` left it and return its step; a new run may begin from ``init_from``."""
    config, run = session.config, session.run
    if saved is None:
        if session.objective.takes_trajectories:
            session.objective.set_statistics(run.on_main(session.loader.statistics))  # it reads many episodes
        load_frozen(session)
        if config.init_from is not None:
            path = find_checkpoint(config.init_from)
            load_weights(session, load_checkpoint(path, mmap=True)["objective"], path)
        return 0
    state = load_checkpoint(saved, mmap=True)
    if state["step"] > config.train.steps:
        raise ConfigError(
            f"{saved} is already at step {state['step']}, train.steps is {config.train.steps}; raise it to go on"
        )
    load_weights(session, state["objective"], saved)
    load_optimizer(session, state["optimizer"], saved)
    session.scaler.load_state_dict(state["scaler"])
    session.loader.load_state_dict(state["loader"])
    if len(state["rng"]) == run.world_size:
        set_random_state(state["rng"][run.rank], run.device)
    return int(state["step"])


def load_weights(session: Session, tensors: Mapping[str, Tensor], path: Path) -> None:
    """``tensors``, from one file or a folder of shards, into the objective; of shards each process takes its own."""
    if not session.sharded:
        whole = tensors.whole() if isinstance(tensors, ShardedTensors) else tensors
        load_strictly(session.objective, whole, path)
        return
    own = session.objective.state_dict()
    refuse_misfits(own, tensors.empty if isinstance(tensors, ShardedTensors) else tensors, path)
    fill(own, tensors)


def load_frozen(session: Session) -> None:
    """The weights of a frozen encoder, or of the model under a controller, a policy or a decoder, where the objective
    takes them from elsewhere."""
    objective, part = session.objective, ""
    weights: Mapping[str, Tensor]
    if isinstance(objective, ControllerObjective):
        path = str(find_checkpoint(objective.control.model))
        own, weights = objective.inherited_state(), load_checkpoint(path, mmap=True)["objective"]
    elif isinstance(objective, PolicyObjective):
        path = objective.config.model
        own, weights = objective.inherited_state(), load_world_model(path).state_dict()
    elif isinstance(objective, DecoderObjective):
        path = objective.config.model
        own, weights = objective.inherited_state(), load_frozen_model(path).state()
    elif isinstance(objective, WorldModelObjective) and objective.config.encoder_from is not None:
        path, own = objective.config.encoder_from, objective.frozen_state()
        frozen = load_frozen_model(path)
        weights = (frozen if objective.config.inherit_latent else frozen._replace(head=None)).state()
    else:
        return
    refuse_misfits(own, weights.empty if isinstance(weights, ShardedTensors) else weights, path, part=part)
    fill(own, weights)
    if isinstance(objective, PolicyObjective):
        objective.set_bounds()


def load_optimizer(session: Session, saved: dict[str, Any], path: Path) -> None:
    """The optimizer's state, from one file or a folder of shards, cut as its parameters are."""
    optimizer = session.optimizer
    if "state" in saved and not session.sharded:
        optimizer.load_state_dict(saved)
        return
    moments: Mapping[str, Tensor] = (
        {f"{n}.{key}": value for n, values in saved["state"].items() for key, value in values.items()}
        if "state" in saved
        else ShardedTensors(path, "optimizer.")
    )
    shapes = numbered(moments.empty if isinstance(moments, ShardedTensors) else moments)
    room = optimizer_room(optimizer, shapes)
    fill({f"{n}.{key}": value for n, values in room.items() for key, value in values.items()}, moments)
    optimizer.load_state_dict({"state": room, "param_groups": saved["param_groups"]})


@torch.no_grad()
def fill(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy into ``own``, whole or cut, what ``tensors`` has under the same names."""
    if isinstance(tensors, ShardedTensors):
        tensors.fill(own)
        return
    for name, tensor in own.items():
        put(tensor, tensors[name])


def train_step(session: Session, batch: Batch, step: int) -> dict[str, Tensor]:
    """One update. Returns scalars on the device (``loss``, ``grad_norm``, the objective's terms); no host sync."""
    config, run, optimizer, scaler = session.config, session.run, session.optimizer, session.scaler
    progress = step / config.train.steps
    seed_step(config.seed, step, run.rank)
    apply_schedules(optimizer, config.optim, step, config.train.steps)
    parts = batch.to(run.device).chunk(config.train.accumulate)
    values: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        with exchanging(session, number == len(parts) - 1):
            part = session.transform(part)
            with run.autocast():
                loss = session.model(part, progress)
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


@contextlib.contextmanager
def exchanging(session: Session, last: bool) -> Iterator[None]:
    """Gradients travel between processes with the last micro-batch of a step only."""
    if session.sharded:
        exchange_gradients(session.objective, last)
    copies = isinstance(session.model, nn.parallel.DistributedDataParallel)
    with session.model.no_sync() if copies and not last else contextlib.nullcontext():  # type: ignore[operator]
        yield


def seed_step(seed: int, step: int, rank: int) -> None:
    """Give every step of every process its own random numbers.

    Then it does not matter who drew before (a data loader draws one number each time it starts, the monitor might),
    and a continued run draws what the uninterrupted one would have.
    """
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def save(session: Session, step: int) -> Path:
    """Write a checkpoint: rank 0 one file, or all processes their shards; an error is raised on every process."""
    config, run = session.config, session.run
    keep_last, keep_every = config.train.keep_last, config.train.keep_every
    states = run.gather(random_state(run.device))

    def state() -> dict[str, Any]:
        return {
            "config": to_dict(config),
            "clip": to_dict(session.objective.encoder.clip),
            "encoder_config": to_dict(session.objective.encoder.config),
            "objective": session.objective.state_dict(),
            "optimizer": session.optimizer.state_dict(),
            "scaler": session.scaler.state_dict(),
            "rng": states,
            "loader": session.loader.state_dict(),
        }

    if session.sharded:
        return save_sharded(config.run_dir, step, state(), run, keep_last=keep_last, keep_every=keep_every)
    return run.on_main(
        lambda: save_checkpoint(config.run_dir, step, state(), keep_last=keep_last, keep_every=keep_every)
    )
