"""Any vision model of ``timm`` (DINO, CLIP, supervised, ...) as a frozen encoder that sees a clip frame by frame.

Shape legend: B batch, C channels, T frames, F frames of all clips together, H/W pixels, h/w grid, N tokens, D width.
"""

from __future__ import annotations

import difflib
import functools
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import timm
import timm.data
import timm.models
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.config import suggest
from jepa.models.base import ClipEncoder
from jepa.models.timm_config import PREFIX, Pool, TemporalPool, TimmConfig, parse_timm_name
from jepa.tensorfiles import CheckpointError, read_safetensors, read_torch_file
from jepa.types import ClipConfig, TokenGrid

log = logging.getLogger("jepa")

_PIXELS_AT_ONCE = 64 * 224 * 224  # frames go through the model in chunks of so many pixels: memory stays bounded
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # where training scripts keep the weights in a .pth
_LONG_LIST = re.compile(r'((?:"[^"]+", ){6})(?:"[^"]+", )*"[^"]+"')  # of keys, as torch writes them


class Layout(NamedTuple):
    """What one frame becomes: ``h`` x ``w`` cells of ``width`` numbers after ``prefix`` tokens; ``depth`` blocks."""

    h: int
    w: int
    prefix: int
    width: int
    depth: int


class TimmEncoder(ClipEncoder):
    """Clip ``[B, 3, T, H, W]`` to the tokens of its frames ``[B, N, D]``, in the order t, h, w.

    Every frame goes through the model on its own. ``grid`` is ``(T, h, w)``, or ``(1, h, w)`` with ``temporal_pool``
    "mean"; h x w are the patches of a vision transformer (class and register tokens are dropped) or the cells of the
    last feature map. The tokens are the model's ``forward_features``. Without ``model`` the weights are fresh.
    Always frozen: no gradients, eval mode. Raises ``ValueError`` for a model that gives no feature map.
    """

    def __init__(self, config: TimmConfig, clip: ClipConfig, model: Any = None) -> None:
        super().__init__()
        self.config, self.clip = config, clip
        self.model: Any = _create(config.name, clip.crop_size) if model is None else model
        self.grid = self.grid_of((3, clip.num_frames, clip.crop_size, clip.crop_size))
        layout = self._layout(clip.crop_size, clip.crop_size)
        self.depth, self.embed_dim = layout.depth, layout.width
        if config.pool == "token" and (not layout.prefix or getattr(self.model, "cls_token", None) is None):
            raise ValueError(f"timm model {config.name} has no class token: use pool=model or pool=none")
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> TimmEncoder:
        """Stays in eval mode: a frozen model's batch norm must not follow the data."""
        return super().train(False)

    def _layout(self, height: int, width: int) -> Layout:
        return _frame_layout(self.config.name, self.config.pool, self.clip.crop_size, height, width)

    def grid_of(self, clip_shape: Sequence[int]) -> TokenGrid:
        """Token grid of a clip of shape ``[..., 3, T, H, W]``. Raises ``ValueError`` for sizes the model refuses."""
        channels, num_frames, height, width = clip_shape[-4:]
        if channels != 3:
            raise ValueError(f"timm model {self.config.name} takes clips of 3 channels, not {channels}")
        layout = self._layout(height, width)
        rows, columns = (layout.h, layout.w) if self.config.pool == "none" else (1, 1)
        return TokenGrid(1 if self.config.temporal_pool == "mean" else num_frames, rows, columns)

    def forward(  # type: ignore[override]  # the base's overloads say which of the two it returns
        self, clip: Tensor, context_ids: Tensor | None = None, layers: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """Encode ``clip`` (float ``[B, 3, T, H, W]``, normalised as ``self.clip`` says).

        ``layers``: timm's ``forward_intermediates`` of these blocks or stages, in this order (negative numbers count
        from the last), after the final norm where it fits (every block of a vision transformer, the last stage of
        others). Stages with a finer map are averaged onto ``grid``, so that all have N tokens; widths may differ.
        Raises ``ValueError`` for ``context_ids``: such a model only sees whole frames.
        """
        if context_ids is not None:
            raise ValueError(f"timm model {self.config.name} sees whole frames: it cannot encode context_ids alone")
        if layers is not None and not layers:
            raise ValueError("layers is empty; leave it out for the last block's output, or name at least one block")
        height, width = clip.shape[-2:]
        grid = self.grid_of(clip.shape)
        layout = self._layout(height, width)
        encode: Callable[[Tensor], list[Tensor]] = functools.partial(self._last, layout)
        if layers is not None:
            encode = functools.partial(self._intermediate, layout, [self.layer_number(layer) for layer in layers])
        frames = clip.transpose(1, 2).flatten(0, 1)
        parts = [encode(part) for part in frames.split(max(1, _PIXELS_AT_ONCE // (height * width)))]
        outputs = [torch.cat(part).unflatten(0, (len(clip), -1)) for part in zip(*parts, strict=True)]  # [B, T, N/T, D]
        mean = self.config.temporal_pool == "mean"
        tokens = [x.mean(dim=1) if mean else x.flatten(1, 2) for x in outputs]
        assert tokens[0].shape[1] == grid.size
        return tokens[0] if layers is None else tokens

    def _last(self, layout: Layout, frames: Tensor) -> list[Tensor]:
        """The model's final features of frames ``[F, 3, H, W]``: one tensor ``[F, cells, D]``."""
        features = self.model.forward_features(frames)
        if self.config.pool == "model":
            return [self.model.forward_head(features, pre_logits=True).flatten(1)[:, None]]
        if self.config.pool == "token":
            return [features[:, :1]]
        if features.dim() == 3:
            return [features[:, layout.prefix :]]
        return [(features if _channels_last(self.model) else features.movedim(1, -1)).flatten(1, 2)]

    def _intermediate(self, layout: Layout, numbers: list[int], frames: Tensor) -> list[Tensor]:
        """Outputs of the blocks ``numbers``, ``[F, cells, D]`` each."""
        if self.config.pool == "model":
            raise ValueError("pool=model exists for the last block only: leave out layers, or use pool=none")
        wanted = sorted(set(numbers))
        options: dict[str, Any] = {"return_prefix_tokens": True} if self.config.pool == "token" else {}
        try:
            found = self.model.forward_intermediates(
                frames, indices=wanted, norm=True, stop_early=True, intermediates_only=True, **options
            )
        except AssertionError as error:  # timm's way to say that a model lacks an option
            raise ValueError(f"timm model {self.config.name} gives no layers: {error}") from None
        if self.config.pool == "token":
            tokens = [prefix[:, :1] for _, prefix in found]
        else:
            tokens = [F.adaptive_avg_pool2d(x, (layout.h, layout.w)).flatten(2).transpose(1, 2) for x in found]
        return [tokens[wanted.index(number)] for number in numbers]


def timm_encoder(
    name: str,
    weights_file: str | os.PathLike[str] | None = None,
    num_frames: int = 8,
    fps: float = 4.0,
    temporal_pool: TemporalPool = "none",
    pool: Pool = "none",
    size: int | None = None,
) -> TimmEncoder:
    """A timm model with its published weights (downloaded once by timm), or with those of ``weights_file``.

    ``name``: ``architecture`` or ``architecture.tag``. ``weights_file``: ``.safetensors`` or ``.pth``; every weight of
    the backbone must be there and fit, a classifier may be missing. Clips have ``num_frames`` frames at ``fps`` per
    second; resolution, resize rule, interpolation and normalisation are the model's own (``timm.data``). ``size``:
    another side of the square crop in pixels. ``temporal_pool`` and ``pool``: see ``TimmConfig``.
    Raises ``ValueError`` for an unknown name (with suggestions), weights that do not exist, cannot be downloaded or do
    not fit (listing the keys), and a size that the model refuses.
    """
    cfg = _published(name)
    full_name = f"{cfg.architecture}.{cfg.tag}" if cfg.tag else str(cfg.architecture)
    config = TimmConfig(name=full_name, temporal_pool=temporal_pool, pool=pool)
    clip = _clip(full_name, timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict()), num_frames, fps, size)
    if weights_file is not None:
        return TimmEncoder(config, clip, _from_file(full_name, clip.crop_size, os.fspath(weights_file)))
    if not cfg.has_weights:
        raise ValueError(f"timm has no weights for {full_name}: give a file, {PREFIX}{full_name}@FILE.safetensors")
    try:
        model = _create(full_name, clip.crop_size, pretrained=True)
    except OSError as error:  # no network, a proxy that says no, a full disk
        where = f"the Hugging Face repository {cfg.hf_hub_id}" if cfg.hf_hub_id else cfg.url
        raise ValueError(
            f"the weights of timm model {full_name} cannot be downloaded ({' '.join(str(error).split())[:200]}). "
            f"Offline: fetch its weights file from {where} elsewhere, copy it here and load "
            f"{PREFIX}{full_name}@/path/to/FILE"
        ) from error
    return TimmEncoder(config, clip, model)


def load_timm(text: str) -> TimmEncoder:
    """The encoder that ``timm:NAME[@FILE][?OPTIONS]`` names (``jepa.models.timm_config``). Raises like the two."""
    return timm_encoder(**parse_timm_name(text))


# ---- names, weights and shapes ---------------------------------------------------------------------------------------


def _published(name: str) -> Any:
    """timm's description of the weights ``name``. Raises ``ValueError`` with suggestions."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3) or timm.list_models(f"*{architecture}*")
        hint = f"did you mean {', '.join(near[:3])}?" if near else "timm.list_models() lists them"
        raise ValueError(f"timm has no model {architecture!r}; {hint}")
    try:
        found = timm.get_pretrained_cfg(name)
    except RuntimeError:  # timm's answer to an unknown tag
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
        raise ValueError(f"timm has no weights {tag!r} for {architecture}{suggest(tag, tags)}") from None
    if found is None:
        raise ValueError(f"timm says nothing about the input of {name}: it cannot be used as an encoder")
    return found


def _clip(name: str, data: Mapping[str, Any], num_frames: int, fps: float, size: int | None) -> ClipConfig:
    """The model's own preprocessing as a clip; the short side is rounded down, as in timm's own transform.

    Of timm's resize rules "center" is exact, and "squash" where nothing is cropped. Where the picture would be padded
    ("border") or cropped after squashing, it is resized and cropped as by "center", which a warning says.
    """
    height, width = data["input_size"][1:]
    if height != width and size is None:
        raise ValueError(f"timm model {name} takes {height} x {width} pixels; clips are square: set a size")
    side = size or height
    stretch = data["crop_mode"] == "squash" and data["crop_pct"] == 1.0
    if data["crop_mode"] != "center" and not stretch:
        rule = f"{data['crop_mode']} with crop_pct {data['crop_pct']}"
        log.warning("%s: timm's resize rule (%s) is replaced by resizing and a centred crop", name, rule)
    return ClipConfig(
        num_frames=num_frames, fps=fps, crop_size=side, fit="stretch" if stretch else "crop",
        short_side=None if stretch else math.floor(side / data["crop_pct"]),
        mean=tuple(data["mean"]), std=tuple(data["std"]), interpolation=data["interpolation"],
    )  # fmt: skip


def _create(name: str, size: int, pretrained: bool = False, overlay: dict[str, Any] | None = None) -> Any:
    """timm's model for frames of ``size``, and of other sizes where it can, without its classifier."""
    create = functools.partial(timm.create_model, name, pretrained=pretrained, pretrained_cfg_overlay=overlay)
    try:
        model: Any = create(dynamic_img_size=True)
    except TypeError as error:  # architectures that need no such option, or have a fixed size, do not know it
        if "dynamic_img_size" not in str(error):
            raise
        model = create()
        if size != model.pretrained_cfg["input_size"][-1] and hasattr(model, "set_input_size"):
            model.set_input_size(img_size=size)
    model.reset_classifier(0)  # after loading, so that timm has compared every key of the file
    return model


def _from_file(name: str, size: int, path: str) -> Any:
    """The model with the weights of a file, strictly; a file without a classifier is complete."""
    if not os.path.isfile(path):
        raise CheckpointError(f"weights file {path} of timm model {name} does not exist")
    state: Any = read_safetensors(path)[0] if path.endswith(".safetensors") else read_torch_file(path)
    key = next((key for key in _WRAPPERS if isinstance(state, Mapping) and isinstance(state.get(key), Mapping)), None)
    state = state if key is None else state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no weights by name: timm model {name} cannot be loaded from it")
    state = timm.models.clean_state_dict(dict(state))
    problems = []
    for head in ({}, {"num_classes": 0, "label_offset": 0}):  # with the classifier of the published weights; without
        try:
            return _create(name, size, pretrained=True, overlay={"state_dict": dict(state), **head})
        except (RuntimeError, KeyError) as error:
            problems.append(_LONG_LIST.sub(r"\1...", " ".join(str(error).split()))[:2000])
    raise CheckpointError(f"{path} does not fit timm model {name}: {min(problems, key=len)}")  # the shorter list


def _channels_last(model: Any) -> bool:
    return getattr(model, "output_fmt", "NCHW") == "NHWC"


@functools.lru_cache(maxsize=256)
def _frame_layout(name: str, pool: Pool, size: int, height: int, width: int) -> Layout:
    """What a frame of ``height`` x ``width`` becomes in a model made for ``size``, from a pass without any numbers."""
    frame = torch.zeros(1, 3, height, width, device="meta")
    try:
        with torch.device("meta"), torch.no_grad():
            model = _create(name, size).eval()
            last = model.forward_features(frame)
            maps = model.forward_intermediates(frame, intermediates_only=True)
            vector = model.forward_head(last, pre_logits=True).flatten(1) if pool == "model" else None
    except (AssertionError, RuntimeError, ValueError, NotImplementedError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"timm model {name} cannot encode frames of {height} x {width} pixels: {reason}") from None
    if vector is not None:
        return Layout(1, 1, 0, vector.shape[1], len(maps))
    if not isinstance(last, Tensor):
        raise ValueError(f"timm model {name} gives {len(last)} sets of tokens, not one feature map: use pool=model")
    if last.dim() == 4:
        rows, columns, width = (last if _channels_last(model) else last.movedim(1, -1)).shape[1:]
        return Layout(rows, columns, 0, width, len(maps))
    rows, columns = maps[-1].shape[2:]
    prefix = last.shape[1] - rows * columns
    if prefix < 0:
        raise ValueError(f"timm model {name} ends in {last.shape[1]} tokens, not in a feature map: use pool=model")
    return Layout(rows, columns, prefix, last.shape[2], len(maps))
