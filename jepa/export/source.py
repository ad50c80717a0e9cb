"""What is exported: the parts of a run or of a published checkpoint, and what is known about them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepa.checkpoint import load_encoder
from jepa.load import check_published, read_run
from jepa.models.action_predictor import ActionPredictor
from jepa.models.attentive import AttentiveProbe
from jepa.models.encoder import Encoder
from jepa.models.predictor import Predictor
from jepa.predictive import load_predictive
from jepa.pretrained import load_pretrained
from jepa.pretrained.loader import Pretrained
from jepa.pretrained.zoo import MODELS, PublishedModel
from jepa.tensorfiles import CheckpointError


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """How a run of ours was trained: its whole config as plain data, the step of the checkpoint, the code."""

    config: dict[str, Any]
    step: int
    code_version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The parts to export, frozen, on the CPU, and where they come from.

    ``family``: "run" or that of ``jepa.load_pretrained``. ``weights``: the entry of the file that the encoder came
    from; None where it holds one only. ``run`` and ``published``: what is known about the training; None otherwise.
    """

    name: str
    encoder: Encoder
    predictor: Predictor | ActionPredictor | None
    probe: AttentiveProbe | None
    family: str
    weights: str | None
    run: RunFacts | None = None
    published: PublishedModel | None = None


def load_source(model: str | os.PathLike[str] | Pretrained, weights: str = "target_encoder") -> Source:
    """The parts of a run directory, a checkpoint of ours, a published model's name, a folder in the ``transformers``
    layout or our own, or of what ``jepa.load_pretrained`` returned.

    Raises ``CheckpointError`` (a ``ValueError``) naming what cannot be loaded, or has no encoder of this toolkit.
    """
    if isinstance(model, Pretrained):
        return _from_pretrained(model, model.path, weights)
    name = os.fspath(model)
    if name.startswith("timm:"):
        raise CheckpointError(f"{name} is timm's own model: export it with timm, its weights are in timm's layout")
    if os.path.isfile(os.path.join(name, "config.json")):
        return _from_pretrained(load_pretrained(name, "transformers"), name, weights)
    if os.path.exists(name):
        return _from_run(name, weights)
    check_published(name)
    loaded = load_pretrained(name, weights=None if weights == "target_encoder" else weights)
    return _from_pretrained(loaded, name, weights)


def _from_pretrained(loaded: Pretrained, name: str, weights: str) -> Source:
    """``weights`` "target_encoder", the default, is what every published file means when nothing is said."""
    if loaded.encoder is None:
        raise CheckpointError(f"{name} is a probe without an encoder: export the model that it reads")
    if weights not in ("target_encoder", loaded.weights):
        raise CheckpointError(f"{name} holds no choice of weights, its encoder is {loaded.weights or 'the only one'}")
    return Source(
        name=Path(name).name, encoder=loaded.encoder, predictor=loaded.predictor, probe=loaded.probe,
        family=loaded.family, weights=loaded.weights, published=MODELS.get(name),
    )  # fmt: skip


def _from_run(path: str, weights: str) -> Source:
    file, state = read_run(path, "jepa.export.export(jepa.load_pretrained")
    names = state["objective"]
    encoder = load_encoder(file, weights)  # type: ignore[arg-type]  # it checks the name itself
    if not isinstance(encoder, Encoder):
        raise CheckpointError(f"{path} holds a frozen encoder of timm: export it with timm, under its own name")
    masked = state["config"]["objective"]["kind"] == "masked"  # a world model's predictor is of no use without it
    predictor = load_predictive(file).predictor if masked else None
    found = weights if any(key.startswith(f"{weights}.") for key in names) else "encoder"
    facts = RunFacts(config=state["config"], step=state["step"], code_version=str(state.get("code_version", "unknown")))
    return Source(
        name=file.resolve().parent.parent.name if Path(path).resolve() == file.resolve() else Path(path).resolve().name,
        encoder=encoder,
        predictor=predictor, probe=None, family="run", weights=found,
        run=facts,
    )  # fmt: skip
