"""A world model in latent space: frames become latents, and actions say what the latents of the next frames will be.

Shape legend: B batch, C channels, T frames, H (in ``actions``) horizon, h/w cells, n latent tokens per frame, D width
of a latent, A action width, S state width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jepa.config import ConfigError
from jepa.models.action_predictor import ActionPredictor
from jepa.models.base import ClipEncoder
from jepa.models.latent_head import LatentConfig, LatentHead, encode_frames
from jepa.models.memory import Cache
from jepa.models.pose import StateUpdate, check_state_update, next_states
from jepa.types import ClipConfig, Statistics, TokenGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """``state_update``: how an action moves the state during a rollout: "none" (the last known one stays), "add" or
    "pose7" (``jepa.models.pose``). ``window``: only so many steps are seen and remembered. ``residual``: it gives the
    change of the latents, at first 0: where little moves, much training is else spent to copy the last frame."""

    latent: LatentConfig = field(default_factory=LatentConfig)
    state_update: StateUpdate = "none"
    window: int | None = None
    residual: bool = False

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1 step, not {self.window}")


class Scaling(nn.Module):
    """Actions and states in their own units to mean 0 and standard deviation 1; the statistics are buffers."""

    action_mean: Tensor
    action_std: Tensor
    action_low: Tensor
    action_high: Tensor
    state_mean: Tensor
    state_std: Tensor

    def __init__(self, action_dim: int, state_dim: int) -> None:
        super().__init__()
        for name in Statistics._fields:
            size = action_dim if name.startswith("action") else state_dim
            fill = {"action_std": 1.0, "state_std": 1.0, "action_low": -1.0, "action_high": 1.0}.get(name, 0.0)
            self.register_buffer(name, torch.full((size,), fill))

    def set(self, statistics: Statistics) -> None:
        """Keep ``statistics``. Raises ``ConfigError`` naming both widths where they are not those of the model."""
        for name, value in statistics._asdict().items():
            own: Tensor = getattr(self, name)
            value = value[: len(own)] if name.startswith("state") and not len(own) else value  # states are left out
            if value.shape != own.shape:
                kind = name.partition("_")[0]
                raise ConfigError(
                    f"the data has {kind}s of {value.shape[-1]} numbers, the model (objective.predictor.{kind}_dim) of "
                    f"{len(own)}"
                )
            own.copy_(value)

    def actions(self, raw: Tensor) -> Tensor:
        """``[..., A]``, normalised; an axis that never moves keeps its unit. Raises ``ValueError`` for other widths."""
        _check_width("actions", raw, self.action_mean)
        return (raw.float() - self.action_mean) / _divisor(self.action_std)

    def states(self, raw: Tensor | None) -> Tensor | None:
        """``[..., S]``, normalised. Raises ``ValueError`` for another width."""
        if raw is None:
            return None
        _check_width("states", raw, self.state_mean)
        return (raw.float() - self.state_mean) / _divisor(self.state_std)


def _check_width(name: str, raw: Tensor, mean: Tensor) -> None:
    if raw.shape[-1] != len(mean):
        raise ValueError(f"{name} have {raw.shape[-1]} numbers, the model's have {len(mean)}")


def _divisor(std: Tensor) -> Tensor:
    return torch.where(std > 1e-6, std, torch.ones_like(std))


class Memory(NamedTuple):
    """Where a rollout stands: ``latents`` ``[B, n, D]`` of the present, its ``state`` ``[B, S]`` (None: the model has
    none), and what the predictor remembers of the steps before."""

    latents: Tensor
    state: Tensor | None
    cache: Cache | None

    def repeat(self, samples: int) -> Memory:
        """From one row to ``samples`` rows that share what was seen: nothing is computed again or copied."""
        if len(self.latents) != 1:
            raise ValueError(f"a memory of 1 row can be repeated, not one of {len(self.latents)}")
        state = self.state if self.state is None else self.state.expand(samples, -1)
        cache = self.cache if self.cache is None else self.cache.repeat(samples)
        return Memory(self.latents.expand(samples, -1, -1), state, cache)


class WorldModel(nn.Module):
    """Encoder, latent head, statistics and action predictor. ``clip``: how frames are chosen and normalised.

    Actions and states go in in their own units. ``action_map``: a module that makes, from latents ``[B, T, n, D]`` and
    standardised actions ``[B, T, A]``, what the predictor gets instead of these (``ControllerNet``).
    Sources: V-JEPA 2-AC (arXiv 2506.09985, section 3); with few tokens per frame and an encoder that is trained along
    PLDM (arXiv 2502.14819).
    """

    def __init__(
        self, encoder: ClipEncoder, head: LatentHead, predictor: ActionPredictor, scaling: Scaling,
        config: WorldConfig, clip: ClipConfig, action_map: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.head, self.predictor, self.scaling = encoder, head, predictor, scaling
        self.action_map = action_map
        check_state_update(config.state_update, self.action_dim, predictor.state_dim)
        self.config, self.clip = config, clip

    @property
    def action_dim(self) -> int:
        """Numbers of an action."""
        return len(self.scaling.action_mean)

    @property
    def state_dim(self) -> int:
        """Numbers of a state; 0: the model has no states."""
        return self.predictor.state_dim

    @property
    def grid(self) -> TokenGrid:
        """Latent tokens of one frame, rows and columns."""
        return self.head.grid

    @property
    def latent_dim(self) -> int:
        """Width of a latent token."""
        return self.head.dim

    def encode(self, frames: Tensor) -> Tensor:
        """Frames, float ``[B, C, T, H, W]`` normalised as ``clip`` says, to latents ``[B, T, n, D]``.

        Every frame is encoded by itself, as an image, so that no latent knows its future.
        """
        return encode_frames(self.encoder, frames, self.head)

    def begin(self, latents: Tensor, actions: Tensor, states: Tensor | None = None) -> Memory:
        """Take in what has happened: latents ``[B, T, n, D]`` of frames, the actions ``[B, T-1, A]`` between them, and
        the states ``[B, T, S]`` (where the model has any)."""
        states = self._states(latents, states)
        steps = latents.shape[1]
        if actions.shape[1] != steps - 1:
            raise ValueError(f"{steps} frames have {steps - 1} actions between them, not {actions.shape[1]}")
        cache = None
        if steps > 1:
            past = None if states is None else states[:, :-1]
            _, cache = self._extend(None, latents[:, :-1], actions, past)
        return Memory(latents[:, -1], None if states is None else states[:, -1], cache)

    def step(self, memory: Memory, action: Tensor) -> tuple[Tensor, Memory]:
        """The latents ``[B, n, D]`` after ``action`` ``[B, A]``, and the memory from which to go on."""
        state = memory.state
        known = None if state is None else state[:, None]
        predicted, cache = self._extend(memory.cache, memory.latents[:, None], action[:, None], known)
        moved = None if state is None else next_states(self.config.state_update, state, action.float())
        return predicted[:, -1], Memory(predicted[:, -1], moved, cache)

    def rollout(self, latents: Tensor, actions: Tensor, states: Tensor | None = None) -> Tensor:
        """Predicted latents ``[B, H, n, D]`` after the last of ``latents`` ``[B, T, n, D]``.

        ``actions`` ``[B, T-1+H, A]``: those between the given frames, then those to imagine. ``states`` ``[B, T, S]``.
        Raises ``ValueError`` when there is nothing to imagine or shapes do not fit.
        """
        past = latents.shape[1] - 1
        if actions.shape[1] <= past:
            raise ValueError(f"{past + 1} frames need more than {past} actions to roll out, not {actions.shape[1]}")
        memory, predictions = self.begin(latents, actions[:, :past], states), []
        for action in actions[:, past:].unbind(dim=1):
            predicted, memory = self.step(memory, action)
            predictions.append(predicted)
        return torch.stack(predictions, dim=1)

    def teacher_forced(self, latents: Tensor, actions: Tensor, states: Tensor | None = None) -> Tensor:
        """Latents ``[B, T, n, D]`` and the actions that follow them ``[B, T, A]`` to predictions of the next ones
        ``[B, T, n, D]``: of every step from the true latents of that step and those before."""
        states = self._states(latents, states)
        conditions = (self.conditions(latents, actions), self.scaling.states(states))
        predicted = self.predictor(latents.flatten(1, 2), *conditions, grid=self.grid, window=self.config.window)
        return self._put_out(latents, predicted)

    def conditions(self, latents: Tensor, actions: Tensor) -> Tensor:
        """What the predictor gets of ``actions`` ``[B, T, A]`` taken at ``latents`` ``[B, T, n, D]``."""
        scaled = self.scaling.actions(actions)
        return scaled if self.action_map is None else self.action_map(latents, scaled)

    def _states(self, latents: Tensor, states: Tensor | None) -> Tensor | None:
        """The states that the predictor gets; a model without states takes no notice of any."""
        if self.state_dim == 0:
            return None
        wanted, given = [*latents.shape[:2], self.state_dim], "none" if states is None else list(states.shape)
        if states is None or given != wanted:
            raise ValueError(f"this world model was trained with states: give states {wanted}, not {given}")
        return states.float()

    def _extend(
        self, cache: Cache | None, latents: Tensor, actions: Tensor, states: Tensor | None
    ) -> tuple[Tensor, Cache]:
        known = (latents.flatten(1, 2), self.conditions(latents, actions), self.scaling.states(states))
        predicted, cache = self.predictor.extend(cache, *known, grid=self.grid, window=self.config.window)
        return self._put_out(latents, predicted), cache

    def _put_out(self, latents: Tensor, predicted: Tensor) -> Tensor:
        """Next latents from those before, ``[B, T, n, D]``, and what the predictor says, ``[B, T*n, D]``."""
        predicted = predicted.view_as(latents)
        return self.head.norm(latents + predicted if self.config.residual else predicted)
