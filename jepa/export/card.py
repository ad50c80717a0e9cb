"""Model cards: what the model is, how its input is prepared, how it was trained, how it is loaded. Facts only."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import yaml
from torch import nn

from jepa.checkpoint import code_version
from jepa.export.graph import output_names
from jepa.export.snippets import snippet
from jepa.export.source import RunFacts, Source
from jepa.models.action_predictor import ActionPredictor
from jepa.models.predictor import Predictor
from jepa.models.rope import RopeConfig
from jepa.pretrained.zoo import PublishedModel
from jepa.types import ClipConfig

_LICENCES = {"MIT": "mit", "Apache-2.0": "apache-2.0", "CC BY-NC 4.0": "cc-by-nc-4.0"}  # as model hubs write them
_SHOWN = ("seed", "clip", "augment", "encoder", "masks", "objective", "optim", "train", "init_from")


def model_card(source: Source, format: str, file_name: str, clip: ClipConfig, dynamic_size: bool) -> str:
    """The card as Markdown. ``clip``: what the exported model takes; ``file_name``: of the export."""
    sections = [
        _head(source, format),
        f"# {source.name}\n\n{_first_words(source, format)}",
        "## Model\n\n" + "\n".join(f"* {line}" for line in _model_lines(source)),
        "## Preprocessing\n\n" + "\n".join(f"* {line}" for line in _clip_lines(source, format, clip, dynamic_size)),
        "## Training\n\n" + _training(source),
        "## Use\n\n```python\n" + snippet(source, format, file_name, clip) + "```\n\n" + _remarks(source, format),
        "## Intended use\n\nFeatures of " + ("images" if clip.num_frames == 1 else "videos") + " from a frozen model: "
        "probes, search, clustering, prediction of hidden parts in latent space. It generates neither pixels nor text. "
        "This card states no evaluation results; `jepa eval` measures them on your data.",
        "## Licence\n\n" + _licence(source),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(source: Source, format: str) -> str:
    """The lines of metadata that model hubs read; a card beside a single file needs none."""
    if format not in ("transformers", "safetensors"):
        return ""
    head = {"library_name": "transformers" if format == "transformers" else "jepa-toolkit", "tags": ["jepa", "video"]}
    if source.published is not None and source.published.licence in _LICENCES:
        head["license"] = _LICENCES[source.published.licence]
    return "---\n" + yaml.safe_dump(head, sort_keys=False) + "---"


def _first_words(source: Source, format: str) -> str:
    kind = {
        "transformers": "the `transformers` V-JEPA 2 layout", "safetensors": "this toolkit's safetensors layout",
        "onnx": "ONNX", "torch-export": "a `torch.export` program",
    }[format]  # fmt: skip
    what = "image" if source.encoder.clip.num_frames == 1 else "video"
    return (
        f"A joint-embedding predictive architecture: an encoder that turns {what} clips into one feature vector per "
        f"token. Exported by jepa-toolkit {code_version()} as {kind}."
    )


# ---- the model and its input -----------------------------------------------------------------------------------------


def _model_lines(source: Source) -> list[str]:
    encoder, shape = source.encoder, source.encoder.config.shape
    config = encoder.config
    lines = [
        f"Encoder: vision transformer, {_count(encoder)} parameters, width {shape.embed_dim}, depth {shape.depth}, "
        f"{shape.num_heads} heads, MLP {config.mlp}",
        f"Tokens: patches of {config.patch_size} x {config.patch_size} pixels, {config.tubelet_size} frames deep; "
        f"the native clip is a grid of {' x '.join(map(str, encoder.grid))} (time, rows, columns) = "
        f"{encoder.grid.size} tokens",
        f"Positions: {_positions(config.position, config.rope)}",
        f"Weights: {_weights(source)}",
    ]
    if config.levels:
        lines.append(f"Blocks with a norm of their own (counted from 0): {', '.join(map(str, config.levels))}")
    if isinstance(source.predictor, ActionPredictor):
        lines.append(f"Action-conditioned predictor: {_count(source.predictor)} parameters")
    elif source.predictor is not None:
        width = source.predictor.config
        lines.append(
            f"Predictor: {_count(source.predictor)} parameters, width {width.embed_dim}, depth {width.depth}, "
            f"{width.num_heads} heads, {len(source.predictor.mask_tokens)} mask tokens"
        )
    if source.probe is not None:
        classes = source.probe.config.classifiers or source.probe.config.num_classes
        lines.append(f"Attentive probe: {_count(source.probe)} parameters, classes: {classes}")
    return lines


def _count(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()):,}"


def _positions(position: str, rope: RopeConfig) -> str:
    if position == "sincos":
        return "fixed sines and cosines, computed"
    if position == "table":
        return "a stored table, interpolated for other sizes"
    kind = {
        "interleaved": "interleaved frequencies: both halves of a pair of dimensions turn by one angle",
        "tiled": "tiled frequencies, as in the published V-JEPA 2: the halves of a pair turn by angles of their own",
    }[rope.frequencies]
    base = ""
    if rope.base_grid is not None:
        base = f"; rows and columns are spread over {rope.base_grid} cells a side ({rope.spread})"
    return f"rotary over time, row and column, {kind}{base}"


def _weights(source: Source) -> str:
    if source.weights is None:
        return "those of the file, which holds one encoder"
    averaged = source.weights in ("target_encoder", "ema_encoder")
    what = "the target encoder, a moving average of the trained one" if averaged else "the trained context encoder"
    return f"`{source.weights}`, {what}"


def _clip_lines(source: Source, format: str, clip: ClipConfig, dynamic_size: bool) -> list[str]:
    side = clip.crop_size
    fitted = {
        "crop": f"the shorter side is resized to {clip.short_side or side} pixels, then the centre of {side} x {side} "
        "is cut out",
        "keep": f"the shorter side is resized to {side} pixels, and both are cut to whole patches",
        "stretch": f"the picture is resized to {side} x {side}",
    }[clip.fit]
    layout = "[batch, frames, channels, height, width]" if format == "transformers" else (
        "[batch, channels, frames, height, width]"
    )  # fmt: skip
    lines = [
        f"Frames: {sampling(clip)}",
        f"Size: {fitted} ({clip.interpolation}, antialiased)",
        f"Values: RGB, divided by 255, then minus {list(clip.mean)} and divided by {list(clip.std)} for each channel",
        f"Layout: float32 {layout}",
    ]
    native = source.encoder.clip
    if dynamic_size:
        lines.append("The graph takes every length and size that its patches divide, from two tokens a side on")
    if (clip.num_frames, clip.crop_size) != (native.num_frames, native.crop_size):
        lines.append(f"The model's own clip is {native.num_frames} frames of {native.crop_size} x {native.crop_size}")
    return lines


def sampling(clip: ClipConfig) -> str:
    """How the frames of a clip are chosen, in words."""
    if clip.num_frames == 1:
        return "1 (an image)"
    if clip.fps is not None:
        return f"{clip.num_frames}, {clip.fps:g} per second"
    if clip.frame_step is not None:
        step = "consecutive" if clip.frame_step == 1 else f"one frame of the video in {clip.frame_step}"
        return f"{clip.num_frames}, {step}"
    return f"{clip.num_frames}, spread evenly over {clip.duration_s:g} seconds"


# ---- where it comes from ---------------------------------------------------------------------------------------------


def _training(source: Source) -> str:
    if source.run is not None:
        return _run_training(source.run)
    if source.published is not None:
        return _published_training(source.published)
    return f"Not known to this export: the model was read from files that do not say it (family {source.family})."


def _run_training(run: RunFacts) -> str:
    config, loop = run.config, run.config["train"]
    objective = config["objective"]
    masks = ", ".join(mask["kind"] for mask in config["masks"])
    lines = [
        f"Code: jepa-toolkit {run.code_version}",
        f"Checkpoint: step {run.step:,} of {loop['steps']:,}, batches of {loop['batch_size']} clips: "
        f"{run.step * loop['batch_size']:,} clips seen",
        f"Data: {', '.join(_data_source(entry) for entry in config['data']['sources'])}",
        f"Masks: {masks}",
        f"Objective: {objective['kind']}" + (f", loss {objective['loss']}" if "loss" in objective else ""),
    ]
    if "momentum" in objective:
        first, last = objective["momentum"]
        lines.append(f"Target encoder: moving average, momentum {first:g} to {last:g} over the run")
    lines.append(f"Optimizer: AdamW, {_optimizer(config['optim'])}")
    if config.get("init_from"):
        lines.append(f"Began from the weights of {PurePath(config['init_from']).name}")
    shown = {key: config[key] for key in _SHOWN if config.get(key) is not None} | {"train": _without_places(loop)}
    if "init_from" in shown:
        shown["init_from"] = PurePath(shown["init_from"]).name
    dump = yaml.safe_dump(shown, sort_keys=False, default_flow_style=None, width=110)
    return "\n".join(f"* {line}" for line in lines) + f"\n\nThe configuration:\n\n```yaml\n{dump}```"


def _optimizer(optim: dict[str, Any]) -> str:
    rate = optim["lr"]
    warmup = f"{rate['start']:g} to {rate['peak']:g} in {rate['warmup_steps']:,} steps of warm-up"
    first = warmup if rate["warmup_steps"] else f"{rate['peak']:g}"
    then = "" if rate["kind"] == "constant" else f", then {rate['kind']} to {rate['final']:g}"
    return f"learning rate {first}{then}; weight decay {optim['weight_decay']:g}"


def _data_source(entry: dict[str, Any]) -> str:
    """Its last name only: where it lay on somebody's disk is nobody's business."""
    return f"`{PurePath(entry['path']).name}` (weight {entry.get('weight', 1.0):g})"


def _without_places(loop: dict[str, Any]) -> dict[str, Any]:
    bookkeeping = ("progress", "tensorboard", "log_every", "save_every", "keep_last", "keep_every")
    return {key: value for key, value in loop.items() if key not in bookkeeping}


def _published_training(model: PublishedModel) -> str:
    where = model.url or f"{model.hub_repo} on the Hugging Face hub"
    notes = f"\n* Note: {model.notes}" if model.notes else ""
    return (
        f"A published checkpoint, converted, not trained here.\n\n* Name: {model.name}\n* Paper, which says how it was "
        f"trained: {model.source}\n* Repository: {model.repository}\n* File: {where}{notes}"
    )


def _remarks(source: Source, format: str) -> str:
    if format == "safetensors":
        parts = [name for name in ("predictor", "probe") if getattr(source, name) is not None]
        more = f"; the {' and the '.join(parts)}: `jepa.load_pretrained(FOLDER, 'transformers')`" if parts else ""
        return f"`encoder.clip` is the preprocessing, which `jepa.encode` does{more}."
    if format != "transformers":
        outputs = ", ".join(f"`{name}`" for name in output_names(source))
        return f"Outputs: {outputs}. The batch size is free. The file carries its preprocessing as the metadata `jepa`."
    return (
        "`VJEPA2Model` numbers tokens by the square grid of `crop_size`: for clips of another size give "
        "`from_pretrained(..., crop_size=SIDE)`; clips that are not square get other positions there than in "
        f"jepa-toolkit. Its predictor always takes mask token {_their_mask_token(source)}. One encoder serves for "
        "context and targets, as in the published models"
        + ("." if source.run is None else "; the predictor was trained on the tokens of the context encoder.")
    )


def _their_mask_token(source: Source) -> int:
    """VJEPA2Model numbers them from 0 and asks for 1, modulo their count."""
    assert isinstance(source.predictor, Predictor), "check_transformers refuses any other"
    return 1 % len(source.predictor.mask_tokens)


def _licence(source: Source) -> str:
    if source.published is not None:
        return f"{source.published.licence}, as its publisher states ({source.published.repository})."
    if source.run is not None:
        return "Not stated: it is yours to choose, as far as the training data's terms allow."
    return "Not stated in the files that the model was read from; its publisher's terms hold."
