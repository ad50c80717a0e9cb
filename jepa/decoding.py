"""``load_decoder``: a trained decoder, with the part of the frozen model that makes the latents which it decodes.

Shape legend: B clips, S samples, C channels, T frames, H/W pixels, N latents of a clip, n latents of a frame, D width
of a latent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from jepa.checkpoint import find_checkpoint, load_checkpoint
from jepa.config import from_dict
from jepa.data.transforms import to_values
from jepa.frozen_model import fingerprint, target_layers
from jepa.models.base import ClipEncoder
from jepa.models.encoder import EncoderConfig
from jepa.models.flow_decoder import FlowDecoder
from jepa.models.latent_head import LatentHead
from jepa.models.pixel_decoder import Size
from jepa.models.world_model import WorldModel
from jepa.objectives import DecoderConfig, DecoderObjective, build_objective
from jepa.objectives.decoder import size_of
from jepa.predictive import Predictive
from jepa.tensorfiles import CheckpointError, build_loaded
from jepa.types import ClipConfig, TokenGrid

_TOKENS_AT_ONCE = 2**16  # output patches that are decoded together: memory stays bounded


class Decoder:
    """Latents to pixels. What is decoded are those of whole clips, or (``per_frame``, a world model's) of frames, one
    by one.

    ``clip``: the clip that it was trained on, which says how pixels are normalised. ``model``: what it was trained for.
    """

    def __init__(self, objective: DecoderObjective, path: str) -> None:
        self.objective, self.path = objective, path
        self.model, self.clip = objective.config.model, objective.clip
        self.per_frame, self.latent_dim = objective.per_frame, objective.decoder.latent_dim
        self._fingerprint: str | None = None

    @property
    def generative(self) -> bool:
        """Whether clips are sampled, and not one alone put out."""
        return isinstance(self.objective.decoder, FlowDecoder)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.objective.parameters()).device

    def to(self, device: torch.device | str) -> Decoder:
        """Move the weights to ``device``."""
        self.objective.to(device)
        return self

    def grid_of(self, size: Size) -> TokenGrid:
        """Grid of the latents of a clip of ``size`` = (T, H, W). Raises ``ValueError`` where patches do not fit."""
        if self.per_frame:
            return self.objective.grid_of((1, *size[1:]))._replace(t=size[0])
        return self.objective.grid_of(size)

    @torch.no_grad()
    def encode(self, clip: Tensor) -> Tensor:
        """The target latents ``[B, N, D]``, fp32, of ``clip`` ``[B, C, T, H, W]``, normalised as ``self.clip`` says."""
        rows = self.objective.rows(clip)
        return self.objective.latents(rows)[0].flatten(0, 1).unflatten(0, (len(clip), -1))

    @torch.no_grad()
    def decode(
        self, latents: Tensor, size: Size | None = None, *, samples: int = 1, steps: int = 8, guidance: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """Latents ``[B, N, D]`` (a world model's may be ``[B, T, n, D]``) to clips ``[B, S, C, T, H, W]``, values in
        [0, 1].

        ``size``: frames, rows and columns; None: those of ``self.clip``, with as many frames as a world model's latents
        are. A decoder that is not ``generative`` gives S = 1 and takes no notice of the rest: ``samples`` drawn for
        every clip in ``steps`` steps, ``guidance`` above 1 to lean more on the latents than was learned (0: not at
        all), and ``generator``, which makes the draw repeatable. Frames that are decoded one by one begin with the same
        noise, so that what their latents leave open does not flicker. Raises ``ValueError`` for latents that do not
        fit.
        """
        if samples < 1 or steps < 1:
            raise ValueError(f"samples and steps must be at least 1, not {samples} and {steps}")
        latents = self._fitting(latents)
        size = self._size(latents) if size is None else size
        source, clips = self.grid_of(size), len(latents)
        if latents.shape[1] != source.size:
            sides, grid = " x ".join(map(str, size)), " x ".join(map(str, source))
            raise ValueError(
                f"a clip of {sides} (frames, rows, columns) has {source.size} latents ({grid}), not {latents.shape[1]}"
            )
        if not self.generative:
            samples = 1
        latents = latents.repeat_interleave(samples, dim=0)
        noise = self._noise((clips * samples, self.objective.decoder.channels, *size), generator)
        if self.per_frame:
            latents, source = latents.unflatten(1, (size[0], -1)).flatten(0, 1), source._replace(t=1)
        rows = self._decode_rows(latents, noise, source, steps, guidance)
        if self.per_frame:
            rows = rows[:, :, 0].unflatten(0, (clips * samples, -1)).transpose(1, 2)
        return self.to_pixels(rows).unflatten(0, (clips, samples))

    def _noise(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """What a flow begins with, ``shape`` being ``[B, C, T, H, W]``; rows as they are decoded. Without memory for a
        decoder that needs none."""
        clips, channels, frames, height, width = shape
        drawn = (clips, channels, 1 if self.per_frame else frames, height, width)
        if not self.generative:
            noise = torch.zeros((), device=self.device).expand(drawn)
        else:
            place = self.device if generator is None else generator.device
            noise = torch.randn(drawn, generator=generator, device=place).to(self.device)
        if not self.per_frame:
            return noise
        return noise[:, None].expand(-1, frames, -1, -1, -1, -1).flatten(0, 1)

    def _decode_rows(self, latents: Tensor, noise: Tensor, source: TokenGrid, steps: int, guidance: float) -> Tensor:
        """Rows ``[R, C, T, H, W]``, fp32 and normalised, of latents ``[R, N, D]``; ``noise`` has their shape."""
        decoder, size = self.objective.decoder, size_of(noise)
        at_once = max(1, _TOKENS_AT_ONCE // decoder.grids(latents[:1], size, source)[2].size)
        decoded = []
        for part, begin in zip(latents.split(at_once), noise.split(at_once), strict=True):
            if isinstance(decoder, FlowDecoder):
                decoded.append(decoder.sample(part, begin, steps, guidance, source=source))
            else:
                decoded.append(decoder(part, size, source).float())
        return torch.cat(decoded)

    def to_pixels(self, clip: Tensor) -> Tensor:
        """Normalised ``[..., C, T, H, W]`` to values in [0, 1]."""
        return to_values(clip, self.clip)

    def check(self, model: Predictive | WorldModel, name: str | None = None) -> None:
        """Raise ``CheckpointError`` unless ``model`` (called ``name`` in the message) makes, and predicts, the latents
        that this decoder was trained on."""
        world = isinstance(model, WorldModel)
        name = name or _called(model)
        if world != self.per_frame:
            kinds = ("single frames, as a world model makes them", "whole clips, as a masked model makes them")
            own, other = kinds if self.per_frame else kinds[::-1]
            raise CheckpointError(
                f"decoder {self.path} takes latents of {own}, but {name} makes those of {other}: train a decoder on it"
            )
        encoder, head = (model.encoder, model.head) if isinstance(model, WorldModel) else (model.target_encoder, None)
        widths = [_width(*pair) for pair in ((encoder, head), (self.objective.encoder, self.objective.head))]
        reason = None
        if widths[0] != widths[1]:
            reason = f"its latents are {widths[0]} wide, those of the decoder's {widths[1]}"
        elif fingerprint(encoder, head) != self.fingerprint:
            reason = "the weights differ"
        if reason:
            raise CheckpointError(
                f"decoder {self.path} was made for another encoder than that of {name}: {reason}; it was trained on "
                f"{self.model}"
            )
        if isinstance(model, Predictive):
            self._check_predicted(model, name)

    def _check_predicted(self, model: Predictive, name: str) -> None:
        """Raise ``CheckpointError`` where ``model`` predicts other latents than those of the decoder's blocks."""
        if not model.comparable:
            raise CheckpointError(
                f"the predictor of {name} predicts latents of a teacher that its file does not hold: decoder "
                f"{self.path} cannot decode them"
            )
        layers = target_layers(model.target_encoder, model.predictor.config.levels)
        if layers != self.objective.layers:
            of, own = (_named(chosen) for chosen in (layers, self.objective.layers))
            raise CheckpointError(
                f"decoder {self.path} was trained on {own} of {self.model}, but the predictor of {name} predicts {of}: "
                "train a decoder without objective.layers"
            )

    @property
    def fingerprint(self) -> str:
        """Of the weights that make the latents."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.objective.encoder, self.objective.head)
        return self._fingerprint

    def _fitting(self, latents: Tensor) -> Tensor:
        """``latents`` as ``[B, N, D]`` on the decoder's device. Raises ``ValueError`` for another shape or width."""
        if self.per_frame and latents.dim() == 4:
            latents = latents.flatten(1, 2)
        if latents.dim() != 3:
            raise ValueError(f"latents must be [B, N, {self.latent_dim}], not {list(latents.shape)}")
        if latents.shape[2] != self.latent_dim:
            raise ValueError(
                f"decoder {self.path} takes latents that are {self.latent_dim} wide, those of {self.model}, but these "
                f"are {latents.shape[2]} wide"
            )
        return latents.to(self.device, torch.float32)

    def _size(self, latents: Tensor) -> Size:
        """Of the native picture, with the frames of ``latents`` where these are counted one by one."""
        side, frames = self.clip.crop_size, self.clip.num_frames
        if self.per_frame:
            frames = max(1, latents.shape[1] // self.objective.grid_of((1, side, side)).size)
        return frames, side, side


def load_decoder(path: str | os.PathLike[str]) -> Decoder:
    """The decoder of a run of objective ``decoder`` (its directory or a checkpoint), frozen, on the CPU, in eval mode.

    Raises ``CheckpointError`` (a ``ValueError``) naming the path where it is missing, damaged, or of another objective.
    """
    name = os.fspath(path)
    file = find_checkpoint(name)
    state = load_checkpoint(file, mmap=True)
    kind = state["config"]["objective"]["kind"]
    if kind != "decoder":
        raise CheckpointError(
            f"{name} was trained with objective {kind!r}, not 'decoder': train one on it, as configs/decoder/ shows"
        )
    config = from_dict(DecoderConfig, state["config"]["objective"], "objective")
    encoder = from_dict(EncoderConfig, state["config"]["encoder"], "encoder")
    clip = from_dict(ClipConfig, state["config"]["clip"], "clip")
    tensors: Mapping[str, Tensor] = state["objective"]

    def build() -> DecoderObjective:
        objective = build_objective(config, encoder, clip, 0)
        assert isinstance(objective, DecoderObjective)
        return objective

    return Decoder(build_loaded(build, tensors, file)[0], name)


def _called(model: Predictive | WorldModel) -> str:
    return "this world model" if isinstance(model, WorldModel) else str(model.metadata.get("model", "the model"))


def _width(encoder: ClipEncoder, head: LatentHead | None) -> int:
    return encoder.embed_dim if head is None else head.dim


def _named(layers: tuple[int, ...] | None) -> str:
    return "the last block" if layers is None else f"block{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
