"""What ``jepa decode`` works with: the decoder, the model whose latents it decodes, and how it is to sample."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from app.planning.settings import place
from jepa.decoding import Decoder, load_decoder
from jepa.distributed import Run
from jepa.predictive import Predictive, load_predictive
from jepa.tensorfiles import CheckpointError
from jepa.world_model import load_world_model

if TYPE_CHECKING:
    from jepa.models.world_model import WorldModel

Part = TypeVar("Part", "Predictive", "WorldModel")
SAMPLES, STEPS, GUIDANCE = 4, 8, 1.0  # of a generative decoder, unless something else is asked for


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """``model``: by name. ``samples``, ``steps``, ``guidance`` and ``seed``: of a generative decoder."""

    decoder: Decoder
    model: str
    run: Run
    samples: int
    steps: int
    guidance: float
    seed: int

    def decode(self, latents: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Latents ``[B, N, D]`` or ``[B, T, n, D]`` to clips ``[B, S, C, T, H, W]`` on the CPU, values in [0, 1].

        Every call draws the same noise: what differs between two pictures comes from their latents.
        """
        generator = torch.Generator(self.run.device).manual_seed(self.seed)
        with self.run.autocast():
            return self.decoder.decode(
                latents, size, samples=self.samples, steps=self.steps, guidance=self.guidance, generator=generator
            ).float().cpu()  # fmt: skip

    def predictive(self) -> Predictive:
        """The model's parts that predict hidden places. Raises ``CheckpointError`` where it has none, or where the
        decoder does not fit."""
        if self.decoder.per_frame:
            raise CheckpointError(
                f"decoder {self.decoder.path} takes latents of single frames, as world models make them, which have no "
                "hidden places: use rollout, plan or codes"
            )
        return self._ready(load_predictive)

    def world(self) -> WorldModel:
        """The world model. Raises ``CheckpointError`` for what is none, or where the decoder does not fit."""
        self._check_frames()
        return self._ready(load_world_model)

    def _check_frames(self) -> None:
        if not self.decoder.per_frame:
            raise CheckpointError(
                f"decoder {self.decoder.path} takes latents of whole clips, as masked models make them, which no "
                "action leads to: use reconstruct, inpaint or forecast"
            )

    def _ready(self, load: Callable[[str], Part]) -> Part:
        try:
            model = load(self.model)
        except CheckpointError as error:
            if self.model != self.decoder.model:
                raise
            raise CheckpointError(
                f"{error} (decoder {self.decoder.path} was trained on it; --model names another place)"
            ) from None
        self.decoder.check(model, self.model)
        model.to(self.run.device)
        return model

    def pixels(self, clip: Tensor) -> Tensor:
        """A normalised clip ``[..., C, T, H, W]`` on the CPU, values in [0, 1]."""
        return self.decoder.to_pixels(clip).float().cpu()


def open_bench(args: argparse.Namespace) -> Bench:
    """The bench of the command line. Raises ``ValueError`` for options that the decoder has no use for."""
    decoder = load_decoder(args.decoder)
    given = {"samples": args.samples, "sampling_steps": args.sampling_steps, "guidance": args.guidance}
    for name, value in given.items():
        if value is not None and not decoder.generative:
            raise ValueError(
                f"--{name.replace('_', '-')}: decoder {args.decoder} is deterministic and draws no samples: leave it "
                "out"
            )
        if value is not None and value < (0 if name == "guidance" else 1):
            raise ValueError(f"--{name.replace('_', '-')} must not be {value:g}")
    device, precision = place(args)
    return Bench(
        decoder=decoder.to(device), model=args.model or decoder.model, run=Run(device, precision), seed=args.seed,
        samples=(args.samples or SAMPLES) if decoder.generative else 1, steps=args.sampling_steps or STEPS,
        guidance=GUIDANCE if args.guidance is None else args.guidance,
    )  # fmt: skip
