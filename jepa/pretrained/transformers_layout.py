"""The V-JEPA 2 layout of the ``transformers`` library: a folder of config.json and safetensors, read and written.

Neither needs that library. Encoder, predictor and the probe of ``VJEPA2ForVideoClassification`` are mapped by one table
of names (``TABLE``) and one of configuration keys (``jepa.pretrained.transformers_config``), used in both directions.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepa.models.predictor import Predictor
from jepa.pretrained import native_layout
from jepa.pretrained.loader import Pretrained
from jepa.pretrained.transformers_config import PortShape, build_parts, read_clip, read_config
from jepa.tensorfiles import CheckpointError, build_loaded, read_safetensors, refuse_misfits
from jepa.types import ClipConfig

log = logging.getLogger("jepa")
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")
_MASK_TOKENS = "predictor.embeddings.mask_tokens"  # one tensor [K, 1, 1, P] there, K parameters [1, 1, P] here
_INNER = "vjepa2."  # what the encoder's and predictor's names begin with in a model with a classifier

_BLOCK = (
    ("norm1", ("norm1",)),
    ("attn.qkv", ("attention.query", "attention.key", "attention.value")),
    ("attn.proj", ("attention.proj",)),
    ("norm2", ("norm2",)),
    ("mlp.fc1", ("mlp.fc1",)),
    ("mlp.fc2", ("mlp.fc2",)),
)
_POOLER_BLOCK = (
    ("norm1", ("layer_norm1",)),
    ("attn.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("attn.proj", ("self_attn.out_proj",)),
    ("xattn.q", ("cross_attn.q_proj",)),
    ("xattn.kv", ("cross_attn.k_proj", "cross_attn.v_proj")),
    ("norm2", ("layer_norm2",)),
    ("mlp.fc1", ("mlp.fc1",)),
    ("mlp.fc2", ("mlp.fc2",)),
)
_BLOCKS = (
    ("encoder.blocks.#", "encoder.layer.#", _BLOCK),
    ("predictor.predictor_blocks.#", "predictor.layer.#", _BLOCK),
    ("probe.pooler.blocks.#", "pooler.self_attention_layers.#", _POOLER_BLOCK),
    ("probe.pooler.cross_attention_block", "pooler.cross_attention_layer", _POOLER_BLOCK),
)
# Our module to theirs, # being a block's number. Several of theirs are ours one below the other (query, key, value).
TABLE: dict[str, tuple[str, ...]] = {
    "encoder.patch_embed.proj": ("encoder.embeddings.patch_embeddings.proj",),
    "encoder.norm": ("encoder.layernorm",),
    "predictor.predictor_embed": ("predictor.embeddings.predictor_embeddings",),
    "predictor.predictor_norm": ("predictor.layernorm",),
    "predictor.predictor_proj": ("predictor.proj",),
    "probe.pooler": ("pooler",),  # the query tokens
    "probe.linear": ("classifier",),
} | {
    f"{ours}.{module}": tuple(f"{theirs}.{name}" for name in names)
    for ours, theirs, block in _BLOCKS
    for module, names in block
}


# ---- names, both ways ------------------------------------------------------------------------------------------------


def their_names(key: str, probe: bool) -> tuple[str, ...]:
    """What our key is called there: the names of the tensors that, one below the other, are ours."""
    module, _, leaf = key.rpartition(".")
    number = re.search(r"\.(\d+)\.", module)
    pattern = module if number is None else re.sub(r"\.\d+\.", ".#.", module, count=1)
    names = [f"{name}.{leaf}" if number is None else f"{name.replace('#', number[1])}.{leaf}"
             for name in TABLE[pattern]]  # fmt: skip
    return tuple(names if not probe or key.startswith("probe.") else (_INNER + name for name in names))


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state (keys ``encoder.``, ``predictor.``, ``probe.``) by their names; tensors are views where they can be."""
    probe = any(key.startswith("probe.") for key in state)
    tokens = [tensor for key, tensor in state.items() if key.startswith("predictor.mask_tokens.")]
    out = {(_INNER if probe else "") + _MASK_TOKENS: torch.stack(tokens)} if tokens else {}
    for key, tensor in state.items():
        if not key.startswith("predictor.mask_tokens."):
            names = their_names(key, probe)
            out |= dict(zip(names, tensor.chunk(len(names)), strict=True))
    return out


def from_transformers(tensors: Mapping[str, Tensor], keys: Sequence[str]) -> dict[str, Tensor]:
    """Their tensors as the state of ours that has these ``keys``; the inverse of ``to_transformers``."""
    probe = any(key.startswith("probe.") for key in keys)
    out = {}
    for key in keys:
        if key.startswith("predictor.mask_tokens."):
            out[key] = tensors[(_INNER if probe else "") + _MASK_TOKENS][int(key.rpartition(".")[2])]
        else:
            parts = [tensors[name] for name in their_names(key, probe)]
            out[key] = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out


# ---- reading a folder ------------------------------------------------------------------------------------------------


def load_transformers(
    folder: str | os.PathLike[str], clip: ClipConfig | None = None, allow: Sequence[str] = ()
) -> Pretrained:
    """A folder with config.json and model.safetensors (or shards): ``VJEPA2Model``, ``VJEPA2ForVideoClassification``,
    or what ``jepa export --format safetensors`` wrote.

    ``clip``: the preprocessing, where it is not that of the folder's preprocessor file. ``allow``: patterns of keys (of
    the file) that may be missing, unexpected or mis-shaped. Raises ``CheckpointError`` naming the file, and the keys or
    the configuration values that do not fit.
    """
    path = Path(folder)
    config = _read_json(path / CONFIG)
    if native_layout.MARKER in config:
        return native_layout.load_native(path, config, _read_tensors(path), clip, allow)
    kind = config.get("model_type")
    if kind == "ijepa":
        raise CheckpointError(
            f"{path} is the transformers port of I-JEPA, which is not read: take the official file, "
            'jepa.load_pretrained(FILE, family="ijepa", ...) or a name that `jepa models --family ijepa` lists'
        )
    if kind != "vjepa2":
        raise CheckpointError(f"{path / CONFIG} has model_type {kind!r}; of the transformers layouts vjepa2 is read")
    shape = read_config(config, str(path / CONFIG))
    processor = next((_read_json(path / name) for name in PROCESSORS if (path / name).is_file()), {})
    parts, ignored = _load_parts(shape, clip or read_clip(config, processor, str(path)), path, allow)
    predictor = parts["predictor"]
    assert isinstance(predictor, Predictor)
    predictor.note_untrained()
    for key, why in ignored.items():
        log.warning("%s: %s %s; left as it is", path, key, why)
    return Pretrained(family="transformers", path=os.fspath(folder), ignored=ignored, **dict(parts.items()))  # type: ignore[arg-type]


def _load_parts(
    shape: PortShape, clip: ClipConfig, path: Path, allow: Sequence[str]
) -> tuple[nn.ModuleDict, dict[str, str]]:
    """The parts with the folder's tensors in them; and what does not fit but is allowed, named as in the file."""
    tensors, build = _read_tensors(path), functools.partial(build_parts, shape, clip)
    with torch.device("meta"):
        state = build().state_dict()
    own = to_transformers(state)
    wrong = refuse_misfits(own, tensors, path, allow=allow)
    if any(name in own for name in wrong):  # what the file lacks needs its initial values
        own = to_transformers(build().state_dict())
    usable = own | {name: tensor for name, tensor in tensors.items() if name not in wrong}
    parts, _ = build_loaded(build, from_transformers(usable, list(state)), path)
    return parts, wrong


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # no UTF-8, or no JSON
        raise CheckpointError(f"{path} is damaged or no JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, not the keys of a configuration")
    return found


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of model.safetensors, or of the shards that its index names."""
    if (folder / WEIGHTS).is_file():
        return read_safetensors(folder / WEIGHTS)[0]
    if not (folder / INDEX).is_file():
        raise CheckpointError(f"{folder} holds neither {WEIGHTS} nor {INDEX}: download its safetensors files again")
    places = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise CheckpointError(f"{folder / INDEX} has no weight_map that says which file holds which tensor")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"{folder / INDEX} names {shard!r}, which is no file of this folder")
        found = read_safetensors(folder / shard)[0]
        listed = {name for name, place in places.items() if place == shard}
        if listed != set(found):
            odd = ", ".join(sorted(listed ^ set(found))[:8])
            raise CheckpointError(f"{folder / shard} does not hold what {INDEX} says: {odd}")
        tensors |= found
    return tensors
