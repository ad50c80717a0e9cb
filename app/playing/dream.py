"""A dream: a world model's imagination that goes on for as long as someone plays, from its own predictions alone.

Shape legend: T frames, n tokens of a frame, D width, A action axes, S state width.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from jepa.precision import mixed

if TYPE_CHECKING:
    from jepa.models.world_model import Memory, WorldModel


class Seen(NamedTuple):
    """One frame that is remembered: ``latents`` ``[n, D]`` and the ``state`` ``[S]`` (None: the model has none)."""

    latents: Tensor
    state: Tensor | None


class Dream:
    """``begin`` takes in what was seen, ``step`` imagines what an action leads to. ``steps``: how many since.

    A model without a window attends to all steps before, and was trained on ``clip.num_frames`` of them. When as many
    are behind, the dream goes on from the later half of them: places in time stay those of training, and a step takes
    as long as the ones before.
    """

    def __init__(self, model: WorldModel, device: torch.device, precision: str = "fp32") -> None:
        self.model, self.device, self.precision = model, device, precision
        self._limit = None if model.config.window is not None else max(2, model.clip.num_frames)

    _memory: Memory

    def begin(self, frames: list[Seen], actions: list[Tensor]) -> None:
        """Dream on from the last of ``frames``; ``actions`` ``[A]`` are those between them."""
        self.steps = 0
        self._remember(frames, actions)

    @torch.inference_mode()
    def step(self, action: Tensor) -> Tensor:
        """The latents ``[n, D]`` after ``action`` ``[A]``."""
        if self._limit is not None and len(self._frames) >= self._limit:
            kept = max(1, self._limit // 2)
            self._remember(list(self._frames)[-kept:], list(self._actions)[len(self._actions) - (kept - 1) :])
        action = action.to(self.device)
        with mixed(self.precision, self.device):
            latents, self._memory = self.model.step(self._memory, action[None])
        state = self._memory.state
        self._frames.append(Seen(latents[0], None if state is None else state[0]))
        self._actions.append(action)
        self.steps += 1
        return latents[0]

    @property
    def latents(self) -> Tensor:
        """``[n, D]``: the present of the dream."""
        return self._frames[-1].latents

    @torch.inference_mode()
    def _remember(self, frames: list[Seen], actions: list[Tensor]) -> None:
        self._frames = deque(frames, maxlen=self._limit or 1)
        self._actions = deque(actions, maxlen=self._limit or 1)
        latents = torch.stack([frame.latents for frame in frames])[None].to(self.device)
        known = [frame.state for frame in frames if frame.state is not None]
        states = torch.stack(known)[None].to(self.device) if known else None
        if actions:
            between = torch.stack(actions)[None].to(self.device)
        else:
            between = latents.new_zeros(1, 0, self.model.action_dim)
        with mixed(self.precision, self.device):
            self._memory = self.model.begin(latents, between, states)
