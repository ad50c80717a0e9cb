"""Pixels from the latents of a frozen model: a decoder that is trained after the fact, as a probe of what latents hold
and as a window into what a predictor expects. No gradient reaches the model.

Shape legend: B clips, R rows that are decoded apart (clips, or all frames of a world model's), C channels, T frames,
H/W pixels, N latents of a row, D width of a latent.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.config import ConfigError
from jepa.models.base import ClipEncoder
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.models.flops import TRAINED, Work, blocks_flops, encoder_flops, linear_flops
from jepa.models.flow_decoder import FlowDecoder, decoder_of
from jepa.models.latent_head import encode_frames, head_for
from jepa.models.pixel_decoder import Size, check_share, out_grid
from jepa.objectives.base import Objective
from jepa.objectives.decoder_config import DecoderBase, DecoderConfig
from jepa.objectives.world_flops import frame_flops
from jepa.types import Batch, ClipConfig, Loss, TokenGrid


class DecoderObjective(Objective):
    """The frozen encoder, of a world model its latent ``head`` as well, and ``decoder``. The checkpoint holds all.

    ``per_frame``: latents are those of single frames, and every frame is decoded by itself.
    """

    takes_masks = False
    learns = "decoder"
    follow_up = "jepa decode {run} reconstruct"

    def __init__(self, config: DecoderConfig, encoder: EncoderConfig, clip: ClipConfig, num_families: int) -> None:
        super().__init__()
        base = config.base
        if base is None:
            raise ConfigError("objective.model is not settled: call jepa.settling.settled(config) first")
        self.config, self.clip, self.per_frame = config, clip, base.latent is not None
        self.encoder = _encoder_of(base, encoder)  # type: ignore[assignment]
        self.head = None if base.latent is None else head_for(base.latent, self.encoder, clip)
        self.layers = self._layers(config, base)
        self.perceptual_layers = self._perceptual_layers(config)
        self.requires_grad_(False)
        size = (1 if self.per_frame else clip.num_frames, clip.crop_size, clip.crop_size)
        if self.per_frame and config.decoder.tubelet_size != 1:
            raise ConfigError(
                f"objective.decoder.tubelet_size is {config.decoder.tubelet_size}, but objective.model {config.model} "
                "is a world model, whose frames are encoded and decoded one by one: set it to 1"
            )
        try:
            out = out_grid(config.decoder, size)
            self.decoder = decoder_of(config.decoder, self._latent_dim(), self.grid_of(size), out)
            check_share(self.decoder, self.encoder)
        except ValueError as error:
            raise ConfigError(f"objective.decoder: {error}") from None
        # another name for the same module, past nn.Module, which would count its weights twice
        object.__setattr__(self, "target_encoder", self.encoder)
        self.train()

    def forward(self, batch: Batch, progress: float) -> Loss:
        """The error of decoded ``batch.clip`` ``[B, C, T, H, W]``; masks, actions and labels are not looked at."""
        clip = self.rows(batch.clip)
        latents, source = self.latents(clip)
        if isinstance(self.decoder, FlowDecoder):
            error = self.decoder.loss(clip, latents, source)
            return Loss(error, {"velocity": error.detach()})
        decoded = self.decoder(latents, size_of(clip), source).float()
        error = (F.l1_loss if self.config.loss == "l1" else F.mse_loss)(decoded, clip)
        terms = {self.config.loss: error.detach(), "psnr": self.psnr(decoded.detach(), clip)}
        if not self.config.perceptual_weight:
            return Loss(error, terms)
        distance = self.perceptual(decoded, clip)
        return Loss(error + self.config.perceptual_weight * distance, {**terms, "perceptual": distance.detach()})

    def rows(self, clip: Tensor) -> Tensor:
        """What is decoded apart: clips ``[B, C, T, H, W]`` as they are, or all frames ``[B * T, C, 1, H, W]``."""
        return clip.transpose(1, 2).flatten(0, 1)[:, :, None] if self.per_frame else clip

    @torch.no_grad()
    def latents(self, rows: Tensor) -> tuple[Tensor, TokenGrid]:
        """Latents of ``rows`` ``[R, C, T, H, W]``, fp32 ``[R, N, D]``, as the model's predictor predicts them, and
        their grid."""
        source = self.grid_of(size_of(rows))
        if self.head is not None:
            return encode_frames(self.encoder, rows, self.head).flatten(1, 2).float(), source
        outputs = [self.encoder(rows)] if self.layers is None else self.encoder(rows, layers=self.layers)
        return torch.cat([_normed(tokens) for tokens in outputs], dim=-1), source

    def grid_of(self, size: Size) -> TokenGrid:
        """Grid of the latents of a row of ``size``. Raises ``ValueError`` where patches do not divide it."""
        return self.encoder.grid_of((3, *size)) if self.head is None else self.head.grid

    def perceptual(self, decoded: Tensor, rows: Tensor) -> Tensor:
        """L1 between the encoder's features of ``decoded`` and of ``rows``, each layer-normed; mean over layers."""
        with torch.no_grad():
            wanted = self.encoder(rows, layers=self.perceptual_layers)
        found = self.encoder(decoded, layers=self.perceptual_layers)
        errors = [F.l1_loss(_normed(x), _normed(y)) for x, y in zip(found, wanted, strict=True)]
        return torch.stack(errors).mean()

    def psnr(self, decoded: Tensor, rows: Tensor) -> Tensor:
        """Peak signal-to-noise ratio in dB, of pixels in [0, 1]; mean over the rows."""
        std = decoded.new_tensor(self.clip.std).view(-1, 1, 1, 1)
        error = ((decoded - rows) * std).square().flatten(1).mean(dim=1)
        return -10 * error.clamp_min(1e-10).log10().mean()

    @torch.no_grad()
    def measure(self, clip: Tensor) -> dict[str, Tensor]:
        """For the monitor, of held-out clips ``[B, C, T, H, W]``: ``psnr`` of what is decoded from their latents (of a
        flow decoder: of a sample, from the same noise at every call), and ``psnr_mean_frame`` of the mean over all
        their frames."""
        rows = self.rows(clip)
        decoded = torch.cat([self.decode(part) for part in rows.split(16)])
        mean = rows.mean(dim=(0, 2), keepdim=True).expand_as(rows)
        return {"psnr": self.psnr(decoded, rows), "psnr_mean_frame": self.psnr(mean, rows)}

    def reconstruct(self, clip: Tensor) -> Tensor:
        """Clips ``[B, C, T, H, W]`` as their latents say they are, fp32."""
        decoded = self.decode(self.rows(clip))
        return decoded[:, :, 0].unflatten(0, (len(clip), -1)).transpose(1, 2) if self.per_frame else decoded

    @torch.no_grad()
    def decode(self, rows: Tensor) -> Tensor:
        """``rows`` ``[R, C, T, H, W]`` as their latents say they are, fp32."""
        latents, source = self.latents(rows)
        if isinstance(self.decoder, FlowDecoder):
            noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)).to(rows.device)
            return self.decoder.sample(latents, noise, source=source)
        decoded: Tensor = self.decoder(latents, size_of(rows), source)
        return decoded.float()

    def work(self, batch: Batch) -> Work:
        """Encoding, decoder (forward and backward), and features of decoded and of true pixels."""
        clips, frames = len(batch.clip), batch.clip.shape[2]
        side = self.encoder.clip.crop_size  # the batch is as the loader made it, not cropped yet
        size = (1 if self.per_frame else frames, side, side)
        rows, source = clips * (frames if self.per_frame else 1), self.grid_of(size)
        out = out_grid(self.config.decoder, size).size
        if isinstance(self.encoder, Encoder) and not self.per_frame:
            encoding = encoder_flops(self.encoder, source.size, trained=False)
        else:
            encoding = size[0] * frame_flops(self.encoder, side, side, trained=False)
        decoder, cells = self.decoder, self.decoder.cells
        flops = linear_flops(cells, source.size) + linear_flops(decoder.proj, out) + blocks_flops(decoder.blocks, out)
        if isinstance(decoder, FlowDecoder):
            flops += linear_flops(decoder.proj, out)  # its transpose, as it were: the patches that go in
        flops *= TRAINED
        times = 1 + (3 if self.config.perceptual_weight else 0)  # true pixels; decoded ones, forward and backward
        return Work(rows * (times * encoding + flops), rows * source.size)

    def _latent_dim(self) -> int:
        """Numbers of a latent. The widths of a timm model's layers are known from a look at them alone."""
        if self.head is not None:
            return self.head.dim
        if self.layers is None:
            return self.encoder.embed_dim
        if isinstance(self.encoder, Encoder):
            return len(self.layers) * self.encoder.embed_dim
        side, device = self.clip.crop_size, next(self.encoder.parameters()).device
        with torch.no_grad():
            outputs = self.encoder(torch.zeros(1, 3, 1, side, side, device=device), layers=self.layers)
        return sum(tokens.shape[-1] for tokens in outputs)

    def _layers(self, config: DecoderConfig, base: DecoderBase) -> tuple[int, ...] | None:
        """The blocks that latents come from, counted from the first; None: the last one alone."""
        if self.head is not None and config.layers is not None:
            raise ConfigError(
                f"objective.layers: objective.model {config.model} is a world model, which has latents of its own: "
                "leave it out"
            )
        layers = base.levels if config.layers is None else config.layers
        if layers is None:
            return None
        numbers = self._numbers(layers, "layers")
        return None if numbers == (self.encoder.depth - 1,) else numbers

    def _perceptual_layers(self, config: DecoderConfig) -> tuple[int, ...]:
        last = self.encoder.depth - 1
        chosen = config.perceptual_layers
        return self._numbers(chosen, "perceptual_layers") if chosen else tuple(sorted({last // 2, last}))

    def _numbers(self, layers: tuple[int, ...], name: str) -> tuple[int, ...]:
        try:
            return tuple(self.encoder.layer_number(layer) for layer in layers)
        except ValueError as error:
            raise ConfigError(f"objective.{name}: {error}") from None


def size_of(rows: Tensor) -> Size:
    """Frames, height and width of ``[..., T, H, W]``."""
    frames, height, width = rows.shape[-3:]
    return frames, height, width


def _normed(tokens: Tensor) -> Tensor:
    """Layer-normed in fp32, as the targets of a predictor are."""
    return F.layer_norm(tokens.float(), tokens.shape[-1:])


def _encoder_of(base: DecoderBase, encoder: EncoderConfig) -> ClipEncoder:
    """The encoder of ``base``, with fresh weights."""
    if base.timm is not None:
        from jepa.models.timm_encoder import TimmEncoder

        return TimmEncoder(base.timm, base.clip)
    return Encoder(encoder, base.clip)
