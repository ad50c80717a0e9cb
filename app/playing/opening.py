"""The world model that ``jepa play`` is called with, and the codes of one that has actions of its own."""

from __future__ import annotations

from torch import Tensor

from app.playing.steering import PlayError
from evals.subjects import run_state
from jepa.checkpoint import find_checkpoint
from jepa.models.world_model import WorldModel
from jepa.objectives import LatentActionObjective
from jepa.world_model import load_objective, load_world_model


def open_model(name: str) -> tuple[WorldModel, Tensor | None]:
    """The model, frozen; codes ``[K, Z]`` of a run of ``latent_action``, None for models that take real actions.

    Raises ``ValueError`` for what is no world model, and for latent actions that are not chosen from codes.
    """
    state = run_state(name)
    if state is None or state["config"]["objective"]["kind"] != "latent_action":
        return load_world_model(name), None
    objective = load_objective(find_checkpoint(name), state)
    assert isinstance(objective, LatentActionObjective)
    codes, kind = objective.codes, objective.config.bottleneck.kind
    if codes is None:
        why = "codes that have not begun (bottleneck.warmup): train it on" if kind == "vq" else (
            f"no codes to choose from (bottleneck {kind!r}): train a controller on it, and play that run"
        )  # fmt: skip
        raise PlayError(f"{name} has {why}")
    return objective.world_model.eval().requires_grad_(False), codes
