"""Which models an eval compares, what their runs remember, and the folder where its files go."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from evals.settings import BASELINES, UNPROBED, EvalConfig
from jepa.checkpoint import CheckpointError, find_checkpoint, load_checkpoint
from jepa.config import ConfigError, to_dict
from jepa.load import load
from jepa.models.base import ClipEncoder
from jepa.models.encoder import Encoder

TRAINED = "trained"  # the name of the model that the eval is about; the others go by their own


class Subject(NamedTuple):
    """A model under evaluation: its ``name`` in tables, what was asked for (``model``), and the ``encoder``."""

    name: str
    model: str
    encoder: ClipEncoder


def open_subjects(config: EvalConfig) -> list[Subject]:
    """The model of the eval, then those that it is compared with. Raises ``ValueError`` for what cannot be loaded."""
    short = [re.sub(r"^timm:([^@?]*)(@[^?]*)?", r"\1", model) for model in config.against]  # no file of weights
    names = [TRAINED, *(s if short.count(s) == 1 else model for s, model in zip(short, config.against, strict=True))]
    taken = [name for name in names if names.count(name) > 1 or name in BASELINES]
    if taken:
        raise ConfigError(f"the name {taken[0]!r} stands for two columns of the table; write a path as ./{taken[0]}")
    models = [config.run, *config.against]
    found = [Subject(name, model, load(model, config.weights)) for name, model in zip(names, models, strict=True)]
    return [
        subject._replace(encoder=config.clip.apply(subject.encoder, subject.model))
        if subject.name == TRAINED or isinstance(subject.encoder, Encoder)
        else subject  # of timm, whose name says its clip
        for subject in found
    ]


def run_state(model: str) -> dict[str, Any] | None:
    """The checkpoint behind ``model`` (tensors mapped, not read), ``None`` for a model that no run here has made."""
    if not os.path.exists(model):
        return None
    try:
        return load_checkpoint(model, mmap=True)
    except CheckpointError:  # ``load`` reads more kinds of files, and has reported those that nobody can read
        return None


def home(config: EvalConfig) -> Path:
    """Where the features stay, and the results if nothing else is said: the run directory of the model (for a
    checkpoint file of this toolkit elsewhere, its folder). For a model without a run ``config.out``, or
    ``runs/NAME``."""
    if run_state(config.run) is not None:
        folder = find_checkpoint(config.run).parent
        return folder.parent if folder.name == "checkpoints" else folder
    if config.out is not None:
        return Path(config.out)
    name = re.sub(r"@.*/", "@", config.run.removeprefix("timm:"))  # of a path to weights its last part
    name = "-".join(name.strip("/.").split("/")[-2:])
    return Path("runs") / re.sub(r"[^\w.=-]+", "-", name)


def results_folder(config: EvalConfig) -> Path:
    """``config.out``, or at home ``evals/TASK-PROBES`` (``evals/TASK`` for a task without probes)."""
    kinds = dict.fromkeys(probe.kind for probe in config.probes if config.task not in UNPROBED)
    return Path(config.out) if config.out is not None else home(config) / "evals" / "-".join((config.task, *kinds))


def facts(subject: Subject, fingerprint: str) -> dict[str, Any]:
    """What the results say about a model, as plain data; ``fingerprint`` is the hash of its weights."""
    state, encoder = run_state(subject.model), subject.encoder
    return {
        "model": subject.model,
        "checkpoint": find_checkpoint(subject.model).name if state is not None else None,
        "step": state["step"] if state is not None else None,
        "encoder": to_dict(encoder.config),
        "encoder_hash": fingerprint,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "clip": to_dict(encoder.clip),
        "grid": list(encoder.grid),
    }
