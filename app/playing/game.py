"""The game of ``jepa play``: one action moves a real world and a dream of it, and both are looked at.

Shape legend: n tokens of a frame, D width, A action axes, S state width.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.playing.dream import Dream, Seen
from app.playing.steering import AxisSteering, CodeSteering, PlayError, Steering
from jepa.envs.base import GoalTask, Observation
from jepa.planning.agents import frame_skip_of, task_space
from jepa.planning.imagination import Eyes, check_frame

if TYPE_CHECKING:
    from jepa.decoding import Decoder
    from jepa.models.world_model import WorldModel

Frame = NDArray[np.uint8]
Frames = NDArray[np.uint8]
CONTEXT = 3  # real frames from which a dream begins, where so many were seen
CURVE = 600  # steps of the surprise curve that are kept


class Measured(NamedTuple):
    """How far the real latents are from the dream's (``surprise``) and from those of the frame that the dream began
    with (``still``), as mean absolute difference, ``dreamt`` steps after it began."""

    step: int
    dreamt: int
    surprise: float
    still: float


class Moment(NamedTuple):
    """What there is to see. ``dream`` and ``decoded``: what the decoder shows of the imagined latents and of those of
    the ``real`` frame (None: nothing real happens, as the model's actions are its own). ``goal``: None where the world
    shows none. ``ms``: what the step took, by part."""

    seed: int
    step: int
    dreamt: int
    dream: Frame
    real: Frame
    decoded: Frame
    goal: Frame | None
    measured: Measured | None
    success: bool
    over: bool
    ms: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodingConfig:
    """How a generative decoder draws: ``steps`` of its sampler and ``guidance``. ``seed``: of the noise, which is the
    same for all frames, so that nothing flickers. Others take no notice."""

    steps: int = 4
    guidance: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise PlayError(f"--steps must be at least 1, not {self.steps}")


class Game:
    """``reset`` begins an episode, ``step`` moves both worlds, ``wake`` lets the dream begin anew from what is real.

    ``name``: of the model, for messages. ``codes`` ``[K, Z]``: those of a latent-action model, whose actions no
    environment takes: only the dream moves. Raises ``ValueError`` where model, decoder and environment do not fit.
    """

    def __init__(
        self, model: WorldModel, decoder: Decoder, task: GoalTask, *, name: str | None = None,
        codes: Tensor | None = None, device: torch.device | str = "cpu", precision: str = "fp32",
        decoding: DecodingConfig | None = None,
    ) -> None:  # fmt: skip
        decoder.check(model, name)
        self.device, self.decoding = torch.device(device), decoding or DecodingConfig()
        self.model, self.decoder, self.task = model.to(self.device).eval(), decoder.to(self.device), task
        self.real_moves = codes is None
        self.steering: Steering = CodeSteering(codes) if codes is not None else _axes(model, task)
        self.frame_skip = frame_skip_of(model.clip, task.fps)
        self.dream, self.eyes = Dream(model, self.device, precision), Eyes(model, self.device, precision)
        self.context = max(1, min(CONTEXT, model.clip.num_frames - 1))
        self.curve: deque[Measured] = deque(maxlen=CURVE)

    def reset(self, seed: int) -> Moment:
        """A new episode, the same for the same seed."""
        self.seed, self.step_number = seed, 0
        self.curve.clear()
        self._observation = self.task.reset(seed)
        self._goal = self._observation.goal
        self._actions: deque[Tensor] = deque(maxlen=self.context)
        self._seen: deque[Seen] = deque([self._look(self._observation)], maxlen=self.context)
        return self.wake()

    def wake(self) -> Moment:
        """The dream begins anew from the real present and the frames before it."""
        past = len(self._seen) - 1
        self.dream.begin(list(self._seen), list(self._actions)[len(self._actions) - past :])
        self._began = self.dream.latents
        return self._moment(None, {})

    def step(self, pressed: Sequence[str], strength: float = 1.0) -> Moment:
        """One step of the model under the controls that are pressed; the real world holds the action for as long.

        Raises ``PlayError`` for controls that there are not, and once the episode is over.
        """
        action = self.steering.action(pressed, strength)
        if self._over:
            raise PlayError("the episode is over: begin another")
        started = time.perf_counter()
        imagined = self.dream.step(action)
        ms = {"dream": _since(started)}
        self.step_number += 1
        measured = None
        if self.real_moves:
            started = time.perf_counter()
            for _ in range(self.frame_skip):
                self._observation = self.task.step(action.numpy())
                if self._over:
                    break
            ms["world"], started = _since(started), time.perf_counter()
            self._actions.append(action)
            self._seen.append(self._look(self._observation))
            ms["encoder"] = _since(started)
            now = self._seen[-1].latents
            surprise, still = (float((now - other).abs().mean()) for other in (imagined, self._began))
            measured = Measured(self.step_number, self.dream.steps, surprise, still)
            self.curve.append(measured)
        return self._moment(measured, ms)

    @property
    def _over(self) -> bool:
        return self._observation.done and not getattr(self.task, "goes_on", False)

    def _look(self, observation: Observation) -> Seen:
        check_frame(observation.frame, "the frame of the environment")
        latents = self.eyes(observation.frame[None])[0]
        if not self.model.state_dim:
            return Seen(latents, None)
        state = torch.as_tensor(observation.state, dtype=torch.float32)
        if state.shape != (self.model.state_dim,):
            raise PlayError(
                f"the environment's states have {state.numel()} numbers, the model's {self.model.state_dim}: it was "
                "trained on other states"
            )
        return Seen(latents, state.to(self.device))

    def _moment(self, measured: Measured | None, ms: dict[str, float]) -> Moment:
        started = time.perf_counter()
        decoded, dream = self._decode(torch.stack([self._seen[-1].latents, self.dream.latents]))
        return Moment(
            seed=self.seed, step=self.step_number, dreamt=self.dream.steps, dream=dream, decoded=decoded,
            real=self._observation.frame, goal=self._goal, measured=measured,
            success=bool(self._observation.success), over=self._over, ms={**ms, "decoder": _since(started)},
        )  # fmt: skip

    def _decode(self, latents: Tensor) -> Frames:
        """``[T, n, D]`` to frames uint8 ``[T, H, W, 3]`` of the model's own size, from the same noise."""
        how = self.decoding
        generator = torch.Generator(self.decoder.device).manual_seed(how.seed)
        pixels = self.decoder.decode(
            latents[None], steps=how.steps, guidance=how.guidance, generator=generator
        )  # [1, 1, C, T, H, W]
        colours: Frames = (pixels[0, 0, :3] * 255).round().byte().movedim(0, -1).cpu().numpy()
        return colours


def _axes(model: WorldModel, task: GoalTask) -> AxisSteering:
    space = task_space(task)
    if space.dim != model.action_dim:
        raise PlayError(
            f"the environment's actions have {space.dim} axes, the model's {model.action_dim}: it was trained on "
            "another action space (--env names another environment)"
        )
    return AxisSteering(space)


def _since(started: float) -> float:
    return round(1000 * (time.perf_counter() - started), 2)
