"""``load_world_model``: a world model by run directory, checkpoint, or the name or file of a published V-JEPA 2-AC."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from jepa.checkpoint import find_checkpoint, load_checkpoint
from jepa.config import from_dict
from jepa.load import check_published, read_run
from jepa.models.action_predictor import ActionPredictor
from jepa.models.encoder import EncoderConfig
from jepa.models.latent_head import LatentConfig, head_for
from jepa.models.policy import Policy
from jepa.models.world_model import Scaling, WorldConfig, WorldModel
from jepa.objectives import OBJECTIVES, PolicyObjective, WorldModelObjective, build_objective
from jepa.pretrained import Pretrained, load_pretrained
from jepa.tensorfiles import CheckpointError, build_loaded
from jepa.types import ClipConfig


def load_world_model(
    path: str | os.PathLike[str], family: str | None = None, *, clip: ClipConfig | None = None, **architecture: Any
) -> WorldModel:
    """A world model, frozen, on the CPU, in eval mode.

    ``path``: the run directory or a checkpoint of a ``world_model`` run (of a ``controller`` run: the model that it
    controls, taking real actions; of ``latent_action``: it takes inferred ones; of ``policy``: the one it acts in), or
    the name of a published V-JEPA 2-AC (``jepa models``). Its file under another name needs ``family="vjepa2_ac"`` and
    the ``architecture``, as ``load_pretrained`` does. Where a run has an EMA of its encoder, that one is taken.

    Raises ``CheckpointError`` (a ``ValueError``) naming the path where it is missing, damaged, or no world model.
    """
    name = os.fspath(path)
    if family is not None:
        return from_pretrained(load_pretrained(name, family, clip=clip, **architecture))
    if architecture or clip is not None:
        raise CheckpointError(f"{name}: clip and {list(architecture)} go with family='vjepa2_ac' only")
    if not os.path.exists(name):
        check_published(name)
        return from_pretrained(load_pretrained(name))
    return _from_run(name)


def from_pretrained(model: Pretrained) -> WorldModel:
    """The world model of a published V-JEPA 2-AC: every token of a frame, actions and states in metres and radians, and
    poses that follow the actions. Raises ``CheckpointError`` for another family."""
    encoder, predictor = model.encoder, model.predictor
    if encoder is None or not isinstance(predictor, ActionPredictor):
        raise CheckpointError(f"{model.path} is a {model.family} model, which predicts no actions' outcome: a world "
                              "model is a run of objective world_model, or a vjepa2_ac model")  # fmt: skip
    head = head_for(LatentConfig(), encoder, encoder.clip)
    pose = predictor.action_dim == 7 and predictor.state_dim == 7
    config = WorldConfig(state_update="pose7" if pose else "add")
    scaling = Scaling(predictor.action_dim, predictor.state_dim)
    world = WorldModel(encoder, head, predictor, scaling, config, encoder.clip)
    return world.eval().requires_grad_(False)


def _from_run(path: str) -> WorldModel:
    """Rebuilt strictly from the stored config."""
    if os.path.isfile(os.path.join(path, "config.json")):
        raise CheckpointError(f"{path} is an exported encoder, not a world model: name the run that it came from")
    file, state = read_run(path, "jepa.load_world_model")
    objective = load_objective(file, state)
    return objective.world_model.eval().requires_grad_(False)


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """The policy of a ``policy`` run (its directory or a checkpoint), frozen, on the CPU, in eval mode.

    Raises ``CheckpointError`` naming the path where it is missing, damaged, or of another objective.
    """
    file = find_checkpoint(os.fspath(path))
    objective = load_objective(file, load_checkpoint(file, mmap=True))
    if not isinstance(objective, PolicyObjective):
        raise CheckpointError(f"{file} was trained with objective {objective.config.kind!r}, not 'policy'")
    return objective.policy.eval().requires_grad_(False)


def is_policy(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a run, or a checkpoint, of objective ``policy``."""
    try:
        settings = load_checkpoint(find_checkpoint(os.fspath(path)), mmap=True)["config"]
    except CheckpointError:
        return False  # ``load_world_model`` says what is wrong with it, if anything is
    return bool(settings["objective"]["kind"] == "policy")


def load_objective(path: Path, state: Mapping[str, Any]) -> WorldModelObjective | PolicyObjective:
    """The objective of a checkpoint's ``state``, frozen. Raises ``CheckpointError`` for one without a world model."""
    settings = state["config"]
    kind = settings["objective"]["kind"]
    kinds = (WorldModelObjective, PolicyObjective)
    known = {name: pair for name, pair in OBJECTIVES.items() if issubclass(pair[1], kinds)}
    if kind not in known:
        raise CheckpointError(f"{path} was trained with objective {kind!r}: a world model needs one of "
                              f"{', '.join(known)}")  # fmt: skip
    config = from_dict(known[kind][0], settings["objective"], "objective")
    encoder = from_dict(EncoderConfig, settings["encoder"], "encoder")
    clip = from_dict(ClipConfig, settings["clip"], "clip")
    tensors: Mapping[str, Tensor] = state["objective"]

    def build() -> WorldModelObjective | PolicyObjective:
        objective = build_objective(config, encoder, clip, 0)
        assert isinstance(objective, WorldModelObjective | PolicyObjective)
        return objective

    return build_loaded(build, tensors, path)[0]
