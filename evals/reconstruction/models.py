"""The models of the task ``reconstruction``: encoders of whole clips, what predicts their latents, a random twin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from evals.features.representations import random_twin
from evals.physics import untrained
from evals.reconstruction.predicting import Expecting, open_expecting
from evals.settings import EvalConfig
from jepa.config import ConfigError
from jepa.frozen_model import fingerprint
from jepa.models.base import ClipEncoder
from jepa.models.encoder import Encoder

RANDOM = "random"


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A frozen ``encoder``, what predicts its latents (or the reason why nothing does), and the ``blocks`` that are
    decoded one by one beside its latents."""

    name: str
    encoder: ClipEncoder
    expecting: Expecting | str
    blocks: tuple[int, ...]

    @property
    def levels(self) -> tuple[int, ...] | None:
        """The blocks that the latents come from; None: the encoder's own output."""
        return self.expecting.levels if isinstance(self.expecting, Expecting) else None

    @property
    def own(self) -> tuple[int, ...]:
        """The same with the last block for the output."""
        return self.levels or (self.encoder.depth - 1,)

    @property
    def encoded(self) -> tuple[int, ...] | None:
        """The blocks whose outputs are needed; None: the output alone."""
        return tuple(sorted({*self.blocks, *self.own})) if self.blocks or self.levels else None


def open_models(config: EvalConfig, named: Mapping[str, tuple[str, ClipEncoder]]) -> list[Model]:
    """The models by name, and the first one's random twin."""

    def blocks(encoder: ClipEncoder) -> tuple[int, ...]:
        if not config.sweep_layers and config.layers is None:
            return ()
        try:
            return tuple(encoder.layer_number(layer) for layer in config.layers or range(encoder.depth))
        except ValueError as error:
            raise ConfigError(str(error)) from None

    found = []
    for name, (model, encoder) in named.items():
        expecting = open_expecting(model)
        if isinstance(expecting, Expecting) and fingerprint(expecting.parts.target_encoder) != fingerprint(encoder):
            expecting = "its predictor predicts another encoder's latents (--weights target_encoder)"
        if isinstance(expecting, Expecting):
            assert isinstance(encoder, Encoder)
            expecting = expecting._replace(parts=replace(expecting.parts, target_encoder=encoder))  # with its own clip
        found.append(Model(name=name, encoder=encoder, expecting=expecting, blocks=blocks(encoder)))
    if RANDOM in config.baselines:
        first = found[0]
        if isinstance(first.expecting, Expecting):
            parts = untrained(first.expecting.parts, config.random_seed)
            encoder, expecting = parts.target_encoder, first.expecting._replace(parts=parts)
        else:
            encoder, expecting = random_twin(first.encoder, config.random_seed), first.expecting
        found.append(Model(name=RANDOM, encoder=encoder, expecting=expecting, blocks=first.blocks))
    return found
