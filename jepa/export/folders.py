"""Folders of config.json and model.safetensors: the ``transformers`` V-JEPA 2 layout, and our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from jepa.checkpoint import code_version
from jepa.export.source import Source
from jepa.export.staging import ExportError
from jepa.models.predictor import Predictor
from jepa.pretrained.native_layout import native_config
from jepa.pretrained.transformers_config import refusals, write_config, write_processor
from jepa.pretrained.transformers_layout import CONFIG, PROCESSORS, WEIGHTS, to_transformers

CARD = "README.md"
FOLDER_FILES = (CONFIG, WEIGHTS, PROCESSORS[0], CARD)


def check_transformers(source: Source) -> None:
    """Raise ``ExportError`` saying why ``VJEPA2Model`` cannot be this model; an equal one only is written."""
    reasons = refusals(source.encoder, source.predictor, source.probe)
    if reasons:
        raise ExportError(
            f"{source.name} cannot become a transformers VJEPA2Model with equal features: {'; '.join(reasons)}. "
            "The formats safetensors, onnx and torch-export take it as it is"
        )


def write_transformers(source: Source, folder: Path) -> None:
    """config.json, model.safetensors and video_preprocessor_config.json of ``VJEPA2Model`` (with a probe, of
    ``VJEPA2ForVideoClassification``)."""
    assert isinstance(source.predictor, Predictor), "check_transformers refuses any other"
    _write_tensors(folder, to_transformers(_state(source)))
    _write_json(folder / CONFIG, write_config(source.encoder, source.predictor, source.probe))
    _write_json(folder / PROCESSORS[0], write_processor(source.encoder.clip))


def write_safetensors(source: Source, folder: Path) -> None:
    """config.json and model.safetensors that ``jepa.load`` and ``jepa.load_pretrained`` read back."""
    _write_tensors(folder, _state(source))
    config = native_config(source.encoder, source.predictor, source.probe, source.family, source.weights)
    _write_json(folder / CONFIG, config | {"code_version": code_version()})


def _state(source: Source) -> dict[str, Tensor]:
    parts = {"encoder": source.encoder, "predictor": source.predictor, "probe": source.probe}
    return nn.ModuleDict({name: part for name, part in parts.items() if part is not None}).state_dict()


def _write_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    # Copies, as the format takes no two tensors of one storage, such as query and key out of one matrix.
    save_file({name: tensor.detach().clone() for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
