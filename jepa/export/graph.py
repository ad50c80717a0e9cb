"""Graphs: the encoder (and its probe) as ONNX or as a ``torch.export`` program, for clips of any batch size.

Shape legend: B batch, C channels, T frames, H/W pixels, N tokens, D width, K classes.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from jepa.config import to_dict
from jepa.export.source import Source
from jepa.export.staging import ExportError
from jepa.types import ClipConfig

METADATA = "jepa"  # the name under which both kinds of file carry their metadata, as JSON
OPSETS = (18, 23)
_ONE_FILE = 2**31 - 2**28  # bytes of weights; protocol buffers end at 2 GiB


class FeatureGraph(nn.Module):
    """Clip ``[B, C, T, H, W]`` to tokens ``[B, N, D]`` and, with a probe, logits ``[B, K]`` for each classifier."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.encoder, self.probe = source.encoder, source.probe

    def forward(self, clip: Tensor) -> Tensor | tuple[Tensor, ...]:
        tokens = self.encoder(clip)
        if self.probe is None:
            return tokens
        logits = self.probe(tokens)
        return (tokens, *logits.values()) if isinstance(logits, dict) else (tokens, logits)


def output_names(source: Source) -> list[str]:
    """What the graph's outputs are called, in their order."""
    if source.probe is None:
        return ["tokens"]
    return ["tokens", *([f"logits_{name}" for name in source.probe.config.classifiers] or ["logits"])]


def graph_clip(source: Source, frames: int | None, resolution: int | None) -> ClipConfig:
    """The model's clip with another length or size. Raises ``ValueError`` where patches do not divide it."""
    native = source.encoder.clip
    if native.num_frames == 1 and (frames or 1) > 1:
        raise ExportError(f"{source.name} is an image model: --frames {frames} has no meaning for it")
    side = resolution or native.crop_size
    short_side = native.short_side and round(native.short_side * side / native.crop_size)
    clip = replace(native, num_frames=frames or native.num_frames, crop_size=side, short_side=short_side)
    source.encoder.grid_of((source.encoder.config.in_channels, clip.num_frames, side, side))
    return clip


def trace(source: Source, clip: ClipConfig, dynamic_size: bool) -> ExportedProgram:
    """The program for clips ``[B, C, T, H, W]`` of any B, and with ``dynamic_size`` of any T, H, W that patches divide.

    Raises ``ExportError`` for a model whose positions are made for one size.
    """
    config = source.encoder.config
    if dynamic_size and (config.position != "rope" or config.rope.base_grid is not None):
        kind = f"{config.position!r} positions" if config.position != "rope" else "rotary positions over a base grid"
        raise ExportError(f"{source.name} has {kind}, which depend on the size: export one file per --resolution")
    dims: dict[int, Any] = {0: Dim("batch", min=1)}
    frames = clip.num_frames
    side = clip.crop_size
    if dynamic_size:
        if frames > 1:
            dims[2] = config.tubelet_size * Dim("tubelets", min=2)
            frames = max(frames, 2 * config.tubelet_size)
        dims |= {3: config.patch_size * Dim("rows", min=2), 4: config.patch_size * Dim("columns", min=2)}
        side = max(side, 2 * config.patch_size)
    # Two clips, and sides that differ: what is equal by chance in the example must not become a rule of the graph.
    wider = side + config.patch_size if dynamic_size else side
    example = torch.zeros(2, config.in_channels, frames, side, wider)
    graph = FeatureGraph(source).eval().requires_grad_(False)
    with torch.no_grad():
        return torch.export.export(graph, (example,), dynamic_shapes=(dims,))


def graph_metadata(source: Source, clip: ClipConfig, dynamic_size: bool) -> dict[str, Any]:
    """What a program needs to know to prepare clips, as plain data; it travels inside the file."""
    grid = source.encoder.grid_of((source.encoder.config.in_channels, clip.num_frames, clip.crop_size, clip.crop_size))
    return {
        "model": source.name, "input": "clip [batch, channels RGB, frames, height, width], float32, normalised",
        "outputs": output_names(source), "clip": to_dict(clip), "grid": list(grid), "dynamic_size": dynamic_size,
    }  # fmt: skip


def torch_export(source: Source, clip: ClipConfig, dynamic_size: bool) -> Callable[[Path], None]:
    """What writes a ``.pt2`` file for ``torch.export.load``; its extra file ``jepa`` holds the metadata."""
    program = trace(source, clip, dynamic_size)
    files = {METADATA: json.dumps(graph_metadata(source, clip, dynamic_size))}

    def save(path: Path) -> None:
        packed = io.BytesIO()  # in memory first: writing to a full disk, torch's writer aborts the whole process
        torch.export.save(program, packed, extra_files=files)
        path.write_bytes(packed.getbuffer())

    return save


def onnx_export(
    source: Source, clip: ClipConfig, dynamic_size: bool, opset: int | None
) -> Callable[[Path], None]:  # fmt: skip
    """What writes an ``.onnx`` file, with the metadata as its property ``jepa``; weights beyond 2 GiB lie beside it."""
    if opset is not None and not OPSETS[0] <= opset <= OPSETS[1]:
        raise ExportError(f"opset must lie between {OPSETS[0]} and {OPSETS[1]}, not {opset}")
    program = trace(source, clip, dynamic_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's advice to itself
        onnx = torch.onnx.export(
            program, dynamo=True, input_names=["clip"], output_names=output_names(source), opset_version=opset,
            custom_translation_table=_translations(), verbose=False,
        )  # fmt: skip
    assert onnx is not None
    onnx.model.metadata_props[METADATA] = json.dumps(graph_metadata(source, clip, dynamic_size))
    size = sum(tensor.nbytes for tensor in FeatureGraph(source).state_dict().values())
    return lambda path: onnx.save(os.fspath(path), external_data=size > _ONE_FILE)


def _translations() -> dict[Any, Any]:
    """The exporter's own translation of ``ids % cells`` fails where ``cells`` is a size that varies."""
    from onnxscript import opset18

    def remainder(ids: Any, cells: Any) -> Any:
        return opset18.Mod(ids, opset18.CastLike(cells, ids))

    return {torch.ops.aten.remainder.Scalar: remainder}
