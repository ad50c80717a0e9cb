"""The official checkpoint files: which entry holds what, and how their keys are called here.

A trainer's file is a dict with ``encoder``, ``target_encoder`` (or ``ema_encoder``), ``predictor`` and the optimizer's
state; a probe's has ``classifier`` or ``classifiers``. Keys bear the wrappers that they were saved in
(``module.``, ``backbone.``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from jepa.config import ConfigError
from jepa.tensorfiles import CheckpointError

Weights = Literal["target_encoder", "encoder", "ema_encoder"]
# Entries that hold the averaged encoder, whatever the file calls it: the B and L of V-JEPA 2.1 say ema_encoder.
_AVERAGED = ("target_encoder", "ema_encoder")
# Keys that these families' files hold and their models never use.
UNUSED: dict[str, tuple[str, ...]] = {
    "vjepa2": ("encoder.pos_embed", "predictor.predictor_pos_embed"),
    "vjepa2_ac": ("encoder.pos_embed", "predictor.predictor_pos_embed"),
    "probe": ("probe.pooler.cross_attention_block.xattn.proj.*",),
}


def unwrap(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys without the names of the wrappers that they begin with."""
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        while key.startswith(("module.", "backbone.")):
            key = key.partition(".")[2]
        out[key] = value
    return out


def choose_weights(entries: Mapping[str, Any], weights: str, path: str | Path) -> str:
    """The entry of a trainer's file that ``weights`` means. Raises ``CheckpointError`` when it is not there.

    "target_encoder" and "ema_encoder" are two names for the averaged encoder, so either finds the other.
    """
    if weights not in get_args(Weights):
        raise ConfigError(f"weights must be one of {', '.join(get_args(Weights))}, not {weights!r}")
    names = (weights, *(n for n in _AVERAGED if n != weights)) if weights in _AVERAGED else (weights,)
    found = next((name for name in names if isinstance(entries.get(name), Mapping)), None)
    if found is None:
        there = [name for name in (*_AVERAGED, "encoder") if name in entries]
        raise CheckpointError(f"{path} holds no {weights}; it has: {', '.join(there) or 'no encoder at all'}")
    return found


def encoder_tensors(tensors: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """An official encoder's state by our names."""
    out = unwrap(tensors)
    if family in ("ijepa", "vjepa") and "pos_embed" in out:
        out["positions.table"] = out.pop("pos_embed").squeeze(0)
    weight = out.get("patch_embed.proj.weight")
    if weight is not None and weight.dim() == 4:  # an image model's patches are tubelets of one frame
        out["patch_embed.proj.weight"] = weight.unsqueeze(2)
    return out


def predictor_tensors(tensors: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """An official predictor's state by our names."""
    out = unwrap(tensors)
    if family in ("ijepa", "vjepa") and "predictor_pos_embed" in out:
        out["positions.table"] = out.pop("predictor_pos_embed").squeeze(0)
    if "mask_token" in out:
        out["mask_tokens.0"] = out.pop("mask_token")
    return out


def probe_tensors(entries: Mapping[str, Any], classifier: int | None, path: str | Path) -> dict[str, Tensor] | None:
    """The state of one probe of a file, by our names; None if there is none.

    ``classifier``: which one of several (a sweep saves them all). Raises ``CheckpointError`` when the choice is open.
    """
    several = entries.get("classifiers")
    if several is None:
        tensors = entries.get("classifier")
    else:
        if classifier is None and len(several) != 1:
            last = len(several) - 1
            raise CheckpointError(f"{path} holds {last + 1} probes: choose one by classifier=0 to {last}")
        if classifier is not None and not 0 <= classifier < len(several):
            raise CheckpointError(f"{path} has no probe {classifier}: it holds {len(several)}, counted from 0")
        tensors = several[classifier or 0]
    if tensors is None:
        return None
    out = {}
    for key, value in unwrap(tensors).items():
        head, _, rest = key.partition("_classifier.")  # verb_classifier.weight is classifiers.verb.weight here
        out[f"classifiers.{head}.{rest}" if rest else key] = value
    return out


def classifier_sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Classes of an anticipation probe's named classifiers, in the order of its queries; of other probes, nothing.

    They are counted in the training annotations and published nowhere but in the file.
    """
    names = ("verb", "noun", "action")
    return {n: len(tensors[f"classifiers.{n}.weight"]) for n in names if f"classifiers.{n}.weight" in tensors}


def recognise(entries: Any) -> str | None:
    """The family that a file's keys look like, for error messages only: nothing is ever loaded by such a guess."""
    if not isinstance(entries, Mapping):
        return None
    if "classifier" in entries or "classifiers" in entries:
        return "probe"
    encoder = next((entries[n] for n in ("encoder", *_AVERAGED) if isinstance(entries.get(n), Mapping)), None)
    if encoder is None:
        return None
    keys = unwrap(encoder)
    if "norms_block.0.weight" in keys:
        return "vjepa2_1"
    predictor = entries.get("predictor")
    if isinstance(predictor, Mapping) and "action_encoder.weight" in unwrap(predictor):
        return "vjepa2_ac"
    weight = keys.get("patch_embed.proj.weight")
    if weight is None:
        return None
    if weight.dim() == 4:
        return "ijepa"
    return "vjepa" if "pos_embed" in keys else "vjepa2"


def check_family(entries: Any, family: str, path: str | Path) -> Mapping[str, Any]:
    """``entries``, if they can be a file of ``family``. Raises ``CheckpointError`` saying what they look like."""
    if not isinstance(entries, Mapping):
        raise CheckpointError(f"{path} holds a {type(entries).__name__}, not the entries of a checkpoint")
    looks = recognise(entries)
    alike = {"vjepa2", "vjepa"}  # a V-JEPA 2 file may hold an unused position table
    if looks is None:
        listed = ", ".join(str(k) for k in list(entries)[:8])
        raise CheckpointError(f"{path} is no checkpoint of the published JEPA layouts (its entries: {listed})")
    if looks != family and not {looks, family} <= alike:
        raise CheckpointError(f"{path} looks like a {looks} checkpoint, not {family}: say family={looks!r}")
    return entries
