"""Our own export layout: a folder of config.json and model.safetensors with this toolkit's own keys.

config.json holds ``jepa_format`` (its version), ``family``, ``weights``, ``clip`` and, for every part, the config that
rebuilds it; the tensors are the parts' state dicts behind ``encoder.``, ``predictor.`` and ``probe.``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from jepa.config import ConfigError, from_dict, to_dict
from jepa.models.action_predictor import ActionPredictor, ActionPredictorConfig
from jepa.models.attentive import AttentiveConfig, AttentiveProbe
from jepa.models.encoder import Encoder, EncoderConfig, Position
from jepa.models.positions import SinCos
from jepa.models.predictor import Predictor, PredictorConfig
from jepa.models.rope import RopeConfig
from jepa.pretrained.loader import Pretrained
from jepa.tensorfiles import CheckpointError, build_loaded
from jepa.types import ClipConfig

log = logging.getLogger("jepa")
MARKER, FORMAT = "jepa_format", 1


def native_config(
    encoder: Encoder, predictor: Predictor | ActionPredictor | None, probe: AttentiveProbe | None, family: str,
    weights: str | None,
) -> dict[str, Any]:  # fmt: skip
    """The config.json of these parts."""
    out: dict[str, Any] = {MARKER: FORMAT, "family": family, "weights": weights, "clip": to_dict(encoder.clip)}
    out["encoder"] = to_dict(encoder.config)
    if isinstance(predictor, ActionPredictor):
        out["action_predictor"] = {"config": to_dict(predictor.config), "rope": to_dict(predictor.rope)}
    elif predictor is not None:
        out["predictor"] = {
            "config": to_dict(predictor.config), "rope": to_dict(predictor.rope), "position": _position(predictor),
            "num_mask_tokens": len(predictor.mask_tokens),
        }  # fmt: skip
    if probe is not None:
        out["probe"] = to_dict(probe.config)
    return out


def _position(predictor: Predictor) -> Position:
    if predictor.positions is None:
        return "rope"
    return "sincos" if isinstance(predictor.positions, SinCos) else "table"


def load_native(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    clip: ClipConfig | None = None,
    allow: Sequence[str] = (),
) -> Pretrained:
    """The parts that ``config`` describes, with ``tensors`` put into them strictly. Raises ``CheckpointError``."""
    if config[MARKER] != FORMAT:
        raise CheckpointError(f"{folder} has {MARKER} {config[MARKER]}, this version reads {FORMAT}")
    try:
        parts, ignored = build_loaded(functools.partial(_build, config, clip), tensors, folder, allow=allow)
    except KeyError as error:
        raise CheckpointError(f"{folder}/config.json lacks {error}") from error
    except ConfigError as error:
        raise CheckpointError(f"{folder}/config.json: {error}") from error
    if "predictor" in parts and isinstance(parts["predictor"], Predictor):
        parts["predictor"].note_untrained()
    for key, why in ignored.items():
        log.warning("%s: %s %s; left as it is", folder, key, why)
    return Pretrained(
        family=config["family"], path=str(folder), weights=config["weights"], ignored=ignored, **dict(parts.items()),  # type: ignore[arg-type]
    )  # fmt: skip


def _build(config: Mapping[str, Any], clip: ClipConfig | None) -> nn.ModuleDict:
    own_clip = from_dict(ClipConfig, config["clip"], "clip")
    encoder = Encoder(from_dict(EncoderConfig, config["encoder"], "encoder"), clip or own_clip)
    parts = nn.ModuleDict({"encoder": encoder})
    if "predictor" in config:
        own = config["predictor"]
        parts["predictor"] = Predictor(
            from_dict(PredictorConfig, own["config"], "predictor.config"), encoder.embed_dim, encoder.grid,
            own["num_mask_tokens"], own["position"], from_dict(RopeConfig, own["rope"], "predictor.rope"),
        )  # fmt: skip
    if "action_predictor" in config:
        own = config["action_predictor"]
        parts["predictor"] = ActionPredictor(
            from_dict(ActionPredictorConfig, own["config"], "action_predictor.config"), encoder.embed_dim,
            encoder.grid, from_dict(RopeConfig, own["rope"], "action_predictor.rope"),
        )  # fmt: skip
    if "probe" in config:
        parts["probe"] = AttentiveProbe(from_dict(AttentiveConfig, config["probe"], "probe"))
    return parts
