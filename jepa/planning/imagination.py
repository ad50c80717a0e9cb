"""A world model seen by a planner: frames become latents once, and action sequences become energies.

Shape legend: N samples, T frames of context, H steps, n tokens of a frame, D width, A action axes, S state width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.data.transforms import ClipTransform
from jepa.planning.energy import Energy
from jepa.planning.search import Cost, PlanningError
from jepa.planning.space import ActionSpace
from jepa.precision import mixed
from jepa.types import Batch

if TYPE_CHECKING:
    from jepa.models.world_model import WorldModel


def check_frame(frame: NDArray[np.uint8], what: str) -> None:
    """Raise ``PlanningError`` for what is no picture, uint8 ``[H, W, 3]``."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise PlanningError(f"{what} must be uint8 [H, W, 3], not {frame.dtype} {list(frame.shape)}")


class Eyes:
    """Frames to latents, with the model's own resizing and normalisation, on ``device``."""

    def __init__(self, model: WorldModel, device: torch.device, precision: str = "fp32") -> None:
        self.model, self.device, self.precision = model, device, precision
        self._transform = ClipTransform(model.clip)

    @torch.no_grad()
    def __call__(self, frames: NDArray[np.uint8]) -> Tensor:
        """uint8 ``[T, H, W, 3]`` to ``[T, n, D]``."""
        pixels = torch.from_numpy(np.require(frames, requirements=["C", "W"])).permute(3, 0, 1, 2)[None].to(self.device)
        clip = self._transform(Batch(clip=pixels)).clip
        with mixed(self.precision, self.device):
            return self.model.encode(clip)[0]


class Imagination:
    """What has been seen, taken in once; every imagined sequence goes on from there.

    ``latents`` ``[T, n, D]``, ``actions`` ``[T-1, A]`` between them, ``states`` ``[T, S]`` (None: the model has none);
    ``precision``: what the predictor is computed in ("fp32", "bf16", ...).
    """

    @torch.no_grad()  # not inference mode: the gradient planner differentiates what is built on these tensors
    def __init__(
        self, model: WorldModel, latents: Tensor, actions: Tensor, states: Tensor | None, precision: str = "fp32"
    ) -> None:
        self.model, self.precision, self.device = model, precision, latents.device
        with mixed(precision, self.device):
            self._memory = model.begin(latents[None], actions[None], None if states is None else states[None])

    def cost(self, energy: Energy, goal: Tensor, space: ActionSpace) -> Cost:
        """Energies ``[N]`` of action sequences ``[N, H, A]``; ``goal`` ``[n, D]``."""
        half_range = space.half_range.to(goal.device)

        def of(actions: Tensor) -> Tensor:
            memory = self._memory.repeat(len(actions))

            def step(action: Tensor) -> Tensor:
                nonlocal memory
                with mixed(self.precision, self.device):
                    latents, memory = self.model.step(memory, action)
                return latents

            return energy.along(step, goal, actions, half_range)

        return of

    @torch.no_grad()
    def follow(self, actions: Tensor) -> Tensor:
        """Imagined latents ``[H, n, D]`` of one sequence ``[H, A]``."""
        memory, latents = self._memory, []
        for action in actions.unbind(dim=0):
            with mixed(self.precision, self.device):
                now, memory = self.model.step(memory, action[None])
            latents.append(now[0])
        return torch.stack(latents)
