"""The configuration of ``transformers``' V-JEPA 2 port (VJEPA2Config, its video processor) in our terms, both ways."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from jepa.config import from_dict, to_dict
from jepa.models.action_predictor import ActionPredictor
from jepa.models.attentive import AttentiveConfig, AttentiveProbe
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.models.predictor import Predictor, PredictorConfig
from jepa.models.rope import RopeConfig
from jepa.tensorfiles import CheckpointError
from jepa.types import ClipConfig

MODEL, CLASSIFIER = "VJEPA2Model", "VJEPA2ForVideoClassification"
CLIP = "jepa_clip"  # our own key in config.json: theirs do not say how frames are chosen
ROPE = RopeConfig(frequencies="tiled")  # the only kind the port knows
_NORM_EPS = 1e-6
_POOLER_MLP_RATIO = 4.0
_LABELS = 2  # what transformers takes where a classifier's config says nothing

# Our name to theirs and its default (VJEPA2Config of transformers 5), for the keys that are free to choose.
_KEYS: dict[str, tuple[str, Any]] = {
    "crop_size": ("crop_size", 256),
    "num_frames": ("frames_per_clip", 64),
    "patch_size": ("patch_size", 16),
    "tubelet_size": ("tubelet_size", 2),
    "in_channels": ("in_chans", 3),
    "embed_dim": ("hidden_size", 1024),
    "depth": ("num_hidden_layers", 24),
    "num_heads": ("num_attention_heads", 16),
    "mlp_ratio": ("mlp_ratio", 4.0),
    "predictor_embed_dim": ("pred_hidden_size", 384),
    "predictor_depth": ("pred_num_hidden_layers", 12),
    "predictor_num_heads": ("pred_num_attention_heads", 12),
    "predictor_mlp_ratio": ("pred_mlp_ratio", 4.0),
    "num_mask_tokens": ("pred_num_mask_tokens", 10),
    "probe_blocks": ("num_pooler_layers", 3),
}
# Keys whose other values mean a model that this toolkit does not have, or that does not exist.
_FIXED: dict[str, Any] = {
    "hidden_act": "gelu", "qkv_bias": True, "layer_norm_eps": _NORM_EPS, "use_SiLU": False, "drop_path_rate": 0.0,
    "attention_dropout": 0.0, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0,
}  # fmt: skip
_FIXED_PROCESSING: dict[str, Any] = {
    "do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255,
}  # fmt: skip
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class PortShape:
    """What a VJEPA2Config says, by our names. ``num_classes``: None without a classifier; ``probe_blocks``: its
    self-attention blocks, below the one of cross-attention."""

    crop_size: int
    num_frames: int
    patch_size: int
    tubelet_size: int
    in_channels: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    predictor_embed_dim: int
    predictor_depth: int
    predictor_num_heads: int
    predictor_mlp_ratio: float
    num_mask_tokens: int
    probe_blocks: int
    num_classes: int | None = None


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_config(config: Mapping[str, Any], path: str) -> PortShape:
    """Their config.json, checked. Raises ``CheckpointError`` naming ``path`` and the value that is not known here."""
    _check_fixed(config, _FIXED, path)
    values = {ours: config.get(theirs, default) for ours, (theirs, default) in _KEYS.items()}
    patch = values["patch_size"]
    if isinstance(patch, list) and len(set(patch)) == 1:
        values["patch_size"] = patch[0]
    architectures = config.get("architectures") or [MODEL]
    if architectures not in ([MODEL], [CLASSIFIER]):
        raise CheckpointError(f"{path} has architectures {architectures}; known are [{MODEL!r}] and [{CLASSIFIER!r}]")
    if architectures == [CLASSIFIER]:
        labels = config.get("id2label")
        values["num_classes"] = len(labels) if labels else config.get("num_labels", _LABELS)
    try:
        return from_dict(PortShape, values)
    except ValueError as error:
        theirs = ", ".join(f"{ours} is {name} there" for ours, (name, _) in _KEYS.items() if ours in str(error))
        raise CheckpointError(f"{path}: {error}{f' ({theirs})' if theirs else ''}") from error


def _check_fixed(config: Mapping[str, Any], fixed: Mapping[str, Any], path: str) -> None:
    for key, needed in fixed.items():
        found = config.get(key, needed)
        same = math.isclose(found, needed) if _are_numbers(found, needed) else found == needed
        if not same:
            hint = ""
            if "drop" in key:
                hint = ": dropout acts in training only, so setting it to 0 there changes no feature"
            raise CheckpointError(f"{path} has {key} {found!r}, this toolkit reads {needed!r} only{hint}")


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def read_clip(config: Mapping[str, Any], processor: Mapping[str, Any], folder: str) -> ClipConfig:
    """The preprocessing that the folder's files describe.

    What neither says is V-JEPA 2's own: 4 frames per second, a short side of 256/224 of the crop (rounded down, as by
    VJEPA2VideoProcessor). Raises ``CheckpointError`` for a step that this toolkit does not have.
    """
    if CLIP in config:
        return from_dict(ClipConfig, config[CLIP], f"{folder}: {CLIP}")
    where = f"the preprocessor of {folder}"
    _check_fixed(processor, _FIXED_PROCESSING | {"do_center_crop": True}, where)
    side = _square(processor.get("crop_size", config.get("crop_size", _KEYS["crop_size"][1])), where)
    size = processor.get("size", {"shortest_edge": side * 256 // 224})
    short_side = size.get("shortest_edge") if isinstance(size, Mapping) else size
    if not isinstance(short_side, int) or short_side < side:
        raise CheckpointError(f"{where} has size {size}; a shortest_edge of at least the crop, {side}, is needed")
    interpolation = _INTERPOLATIONS.get(processor.get("resample", 2))
    if interpolation is None:
        raise CheckpointError(f"{where} has resample {processor['resample']}; known are 2 (bilinear) and 3 (bicubic)")
    num_frames = config.get("frames_per_clip", _KEYS["num_frames"][1])
    values = {
        "num_frames": num_frames, "fps": 4.0 if num_frames > 1 else None, "crop_size": side, "short_side": short_side,
        "interpolation": interpolation,
    }  # fmt: skip
    values |= {ours: processor[theirs] for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))
               if theirs in processor}  # fmt: skip
    return from_dict(ClipConfig, values, where)


def _square(crop: Any, where: str) -> int:
    sides = set(crop.values()) if isinstance(crop, Mapping) else {crop}
    if len(sides) != 1 or not isinstance(next(iter(sides)), int):
        raise CheckpointError(f"{where} has crop_size {crop}; only square crops are known")
    return int(sides.pop())


def build_parts(shape: PortShape, clip: ClipConfig) -> nn.ModuleDict:
    """``encoder``, ``predictor`` and, for a classifier, ``probe``, with fresh weights."""
    encoder = Encoder(
        EncoderConfig(
            embed_dim=shape.embed_dim, depth=shape.depth, num_heads=shape.num_heads, patch_size=shape.patch_size,
            mlp_ratio=_our_ratio(shape.embed_dim, shape.mlp_ratio), tubelet_size=shape.tubelet_size,
            in_channels=shape.in_channels, rope=ROPE,
        ),
        clip,
    )  # fmt: skip
    predictor = PredictorConfig(
        embed_dim=shape.predictor_embed_dim, depth=shape.predictor_depth, num_heads=shape.predictor_num_heads,
        mlp_ratio=_our_ratio(shape.predictor_embed_dim, shape.predictor_mlp_ratio),
    )  # fmt: skip
    parts = nn.ModuleDict({"encoder": encoder})
    parts["predictor"] = Predictor(predictor, shape.embed_dim, encoder.grid, shape.num_mask_tokens, "rope", ROPE)
    if shape.num_classes is not None:
        probe = AttentiveConfig(
            embed_dim=shape.embed_dim, num_heads=shape.num_heads, depth=shape.probe_blocks + 1,
            mlp_ratio=_POOLER_MLP_RATIO, num_classes=shape.num_classes, norm_eps=_NORM_EPS,
        )  # fmt: skip
        parts["probe"] = AttentiveProbe(probe)
    return parts


def _our_ratio(dim: int, ratio: float) -> float:
    """They cut the hidden width to an integer, we round it."""
    return int(dim * ratio) / dim


def _their_ratio(dim: int, ratio: float) -> float:
    hidden = round(dim * ratio)
    found = hidden / dim
    return found if int(dim * found) == hidden else math.nextafter(found, math.inf)


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_config(encoder: Encoder, predictor: Predictor, probe: AttentiveProbe | None) -> dict[str, Any]:
    """The config.json of these parts; ``refusals`` must be empty."""
    width, shape = predictor.config, encoder.config.shape
    ours = PortShape(
        crop_size=encoder.clip.crop_size, num_frames=encoder.clip.num_frames, patch_size=encoder.config.patch_size,
        tubelet_size=encoder.config.tubelet_size, in_channels=encoder.config.in_channels, embed_dim=shape.embed_dim,
        depth=shape.depth, num_heads=shape.num_heads, mlp_ratio=_their_ratio(shape.embed_dim, shape.mlp_ratio),
        predictor_embed_dim=width.embed_dim, predictor_depth=width.depth, predictor_num_heads=width.num_heads,
        predictor_mlp_ratio=_their_ratio(width.embed_dim, width.mlp_ratio),
        num_mask_tokens=len(predictor.mask_tokens), probe_blocks=0 if probe is None else probe.config.depth - 1,
    )  # fmt: skip
    out: dict[str, Any] = {"model_type": "vjepa2", "architectures": [MODEL if probe is None else CLASSIFIER]}
    out |= {theirs: getattr(ours, name) for name, (theirs, _) in _KEYS.items()}
    out |= {key: value for key, value in _FIXED.items() if key not in ("use_SiLU", "hidden_dropout_prob")}
    if probe is not None:
        names = [f"LABEL_{k}" for k in range(probe.config.num_classes or 0)]
        out |= {"id2label": dict(enumerate(names)), "label2id": {name: k for k, name in enumerate(names)}}
    return out | {"dtype": "float32", CLIP: to_dict(encoder.clip)}


def write_processor(clip: ClipConfig) -> dict[str, Any]:
    """The video_preprocessor_config.json of this clip."""
    side = {"height": clip.crop_size, "width": clip.crop_size}
    size = side if clip.fit == "stretch" else {"shortest_edge": clip.short_side or clip.crop_size}
    return {
        "video_processor_type": "VJEPA2VideoProcessor", **_FIXED_PROCESSING, "do_center_crop": clip.fit == "crop",
        "do_sample_frames": False, "crop_size": side, "size": size,
        "resample": next(number for number, name in _INTERPOLATIONS.items() if name == clip.interpolation),
        "image_mean": list(clip.mean), "image_std": list(clip.std),
    }  # fmt: skip


def refusals(
    encoder: Encoder, predictor: Predictor | ActionPredictor | None, probe: AttentiveProbe | None
) -> list[str]:
    """Why VJEPA2Config cannot express these parts, each with what to do; empty when it can."""
    config, out = encoder.config, []
    if config.position != "rope":
        out.append(f"the encoder's positions are {config.position!r}, VJEPA2Model has rotary positions alone")
    elif config.rope != ROPE:
        out.append(
            f"the encoder was trained with {_rope_words(config.rope)}, VJEPA2Model has tiled frequencies without a "
            "base grid only, and no permutation of weights turns one into the other (a run trained with "
            "encoder.rope.frequencies=tiled can be exported)"
        )
    wanted = {"mlp": "gelu", "levels": (), "image_tokenizer": False, "modality_embedding": False}
    out += [f"encoder.{name} is {getattr(config, name)!r}, VJEPA2Model has {value!r}"
            for name, value in wanted.items() if getattr(config, name) != value]  # fmt: skip
    if not isinstance(predictor, Predictor):
        kind = "there is no predictor" if predictor is None else "the predictor is action-conditioned"
        return [*out, f"{kind}, VJEPA2Model always has one that fills in masked tokens"]
    wanted = {"mlp": "gelu", "levels": 1, "context_head": False, "modality_embedding": False}
    out += [f"predictor.{name} is {getattr(predictor.config, name)!r}, VJEPA2Model has {value!r}"
            for name, value in wanted.items() if getattr(predictor.config, name) != value]  # fmt: skip
    if not out and (predictor.positions is not None or predictor.rope != ROPE):
        out.append("the predictor's positions are not those of its encoder, VJEPA2Model has one kind for both")
    if predictor.out_dim != encoder.embed_dim:
        out.append(f"the predictor's output is {predictor.out_dim} wide, VJEPA2Model's as wide as its encoder")
    if probe is not None:
        shape = {"num_heads": config.shape.num_heads, "mlp_ratio": _POOLER_MLP_RATIO, "norm_eps": _NORM_EPS,
                 "classifiers": {}}  # fmt: skip
        out += [f"probe.{name} is {getattr(probe.config, name)!r}, {CLASSIFIER} has {value!r}"
                for name, value in shape.items() if getattr(probe.config, name) != value]  # fmt: skip
    return out


def _rope_words(rope: RopeConfig) -> str:
    base = "" if rope.base_grid is None else f" over a base grid of {rope.base_grid}"
    return f"{rope.frequencies} rotary frequencies{base}"
