"""``export``: a model, in another program's format, with its model card."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Literal, get_args

from jepa.checkpoint import find_checkpoint, load_checkpoint, write_checkpoint
from jepa.config import suggest
from jepa.export.card import model_card
from jepa.export.folders import CARD, FOLDER_FILES, check_transformers, write_safetensors, write_transformers
from jepa.export.graph import graph_clip, onnx_export, torch_export
from jepa.export.source import Source, load_source
from jepa.export.staging import ExportError, check_free, place_files, place_folder, staged
from jepa.pretrained.loader import Pretrained

Format = Literal["transformers", "safetensors", "onnx", "torch-export", "checkpoint"]
FORMATS: tuple[Format, ...] = get_args(Format)
_SUFFIX = {"onnx": ".onnx", "torch-export": ".pt2"}  # graphs


def export(
    model: str | os.PathLike[str] | Pretrained,
    destination: str | os.PathLike[str],
    format: Format,  # the word of the command line
    *,
    weights: str = "target_encoder",
    frames: int | None = None,
    resolution: int | None = None,
    dynamic_size: bool = False,
    opset: int | None = None,
    force: bool = False,
) -> Path:
    """Write ``model`` to ``destination``: a folder (transformers, safetensors) or file (.onnx, .pt2, .pt). Returns it.

    Format "checkpoint" makes one file of a checkpoint in shards, with everything in it: training goes on from
    ``RUN_DIR/checkpoints/step_00001000.pt`` as it would from the shards. It has no model card and no further options.

    ``model``: a run directory, a checkpoint, a published name, a folder in the ``transformers`` layout or our own, or
    what ``jepa.load_pretrained`` returned. ``weights``: "target_encoder" or "encoder". ``frames``, ``resolution`` (in
    pixels): the clip that a graph is made for, where it is not the model's own. ``dynamic_size``: one graph for clips
    of every length and size that patches divide; the batch size is free in any case. ``opset``: of ONNX. ``force``:
    replace an export that is there.

    The destination appears complete or not at all, with its model card: ``README.md`` in a folder, else beside the
    file, with ``.md`` behind the file's name. Raises ``ExportError`` (a ``ValueError``).
    """
    path = Path(destination)
    _check_options(path, format, frames, resolution, dynamic_size, opset)
    if format == "checkpoint":
        return _one_file(model, path, weights, force)
    graph = format in _SUFFIX
    check_free(path, () if graph else FOLDER_FILES, force)
    card = path.with_name(f"{path.name}.md")
    if graph:
        check_free(card, (), force)
    source = load_source(model, weights)
    clip = graph_clip(source, frames, resolution)
    if format == "transformers":
        check_transformers(source)
    text = model_card(source, format, path.name, clip, dynamic_size)
    if graph:  # before anything is written: what goes wrong from there on is the disk's fault
        save = onnx_export(source, clip, dynamic_size, opset) if format == "onnx" else (
            torch_export(source, clip, dynamic_size)
        )  # fmt: skip
    with staged(path) as stage:
        if graph:
            save(stage / path.name)
            (stage / card.name).write_text(text, encoding="utf-8")
            place_files(stage, path)
        else:
            _write_folder(source, format, stage / "export", text)
            place_folder(stage, path)
    return path


def _one_file(model: str | os.PathLike[str] | Pretrained, path: Path, weights: str, force: bool) -> Path:
    if isinstance(model, Pretrained) or not os.path.exists(model):
        raise ExportError("format checkpoint needs a run directory or a checkpoint: nothing else holds a training run")
    if weights != "target_encoder":
        raise ExportError(f"format checkpoint has no use for weights {weights!r}: it holds all of them")
    source = find_checkpoint(Path(model))
    if path.resolve() == source.resolve():
        raise ExportError(f"{path} is the checkpoint itself; choose another destination")
    check_free(path, (), force)
    state = load_checkpoint(source)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, state)
    except (OSError, RuntimeError) as error:  # torch's own writer turns a full disk into a RuntimeError
        raise ExportError(f"{path} could not be written: {str(error).splitlines()[0]}") from error
    return path


def _write_folder(source: Source, format: Format, folder: Path, card: str) -> None:
    folder.mkdir()
    (write_transformers if format == "transformers" else write_safetensors)(source, folder)
    (folder / CARD).write_text(card, encoding="utf-8")


def _check_options(
    path: Path, format: str, frames: int | None, resolution: int | None, dynamic_size: bool, opset: int | None
) -> None:  # fmt: skip
    if format not in FORMATS:
        raise ExportError(f"unknown format {format!r}{suggest(format, FORMATS)}; known: {', '.join(FORMATS)}")
    suffix = {**_SUFFIX, "checkpoint": ".pt"}.get(format)
    if suffix is not None and path.suffix != suffix:
        raise ExportError(f"the destination of format {format} is a file *{suffix}, not {path}")
    for name, value in (("frames", frames), ("resolution", resolution)):
        if value is not None and value < 1:
            raise ExportError(f"{name} must be at least 1, not {value}")
    given = {"frames": frames, "resolution": resolution, "dynamic_size": dynamic_size or None}
    useless = [name for name, value in given.items() if value is not None and format not in _SUFFIX]
    if opset is not None and format != "onnx":
        useless.append("opset")
    if useless:
        raise ExportError(f"format {format} has no use for {', '.join(useless)}: leave it out")
    if format == "onnx":
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise ExportError(f"format onnx needs {', '.join(missing)}: pip install 'jepa-toolkit[export]'")
