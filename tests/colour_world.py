"""A recorded world whose latents are its states: frames are filled with one colour, (x, y, 0) in steps of 1 / 255,
which actions move; and models of it that are known to be perfect, to copy, or to be off by a known amount."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from planning.toy import ToyModel
from torch import Tensor

from evals.world_models.opening import Recorded, Seer
from jepa.data.trajectories.opening import open_trajectories
from jepa.data.trajectories.writer import EpisodeWriter
from jepa.distributed import Run
from jepa.types import ClipConfig, TokenGrid

SIDE = 16


def write_colours(
    folder: Path, episodes: int = 6, frames: int = 12, seed: int = 0, states: str = "true", fps: float = 5.0
) -> Path:
    """``states``: "true", "shuffled" (over the frames of all episodes), "still" or "none"."""
    rng = np.random.default_rng(seed)
    writer = EpisodeWriter(folder, {"fps": fps, "state_names": ["x", "y"]})
    places, moves = [], []
    for _ in range(episodes):
        steps = rng.integers(-6, 7, (frames - 1, 2))
        start = rng.integers(80, 176, 2)
        places.append(np.concatenate((start[None], start + steps.cumsum(axis=0))))
        moves.append(steps)
    true = np.concatenate(places) / 255
    written = {"true": true, "shuffled": rng.permutation(true), "still": np.ones_like(true)}.get(states)
    for number, (place, step) in enumerate(zip(places, moves, strict=True)):
        pictures = np.zeros((frames, SIDE, SIDE, 3), np.uint8)
        pictures[..., :2] = place[:, None, None]
        rows = None if written is None else written[number * frames : (number + 1) * frames].astype(np.float32)
        writer.write(number, pictures, (step / 255).astype(np.float32), rows)
    return folder


def recorded(folder: Path) -> list[Recorded]:
    episodes = open_trajectories(str(folder))
    return [Recorded(episodes, number) for number in range(len(episodes))]


class ColourModel(ToyModel):
    """Latents move by ``gain`` times the action: 1 is perfect, 0 copies."""

    def __init__(self, gain: float = 1.0, state_dim: int = 0) -> None:
        super().__init__(state_dim=state_dim)
        self.gain.data = torch.tensor(gain)
        self.clip = ClipConfig(num_frames=4, fps=5.0, crop_size=SIDE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.grid, self.latent_dim = TokenGrid(1, 1, 1), 2

    def rollout(self, latents: Tensor, actions: Tensor, states: Tensor | None = None) -> Tensor:
        past = latents.shape[1] - 1
        memory, found = self.begin(latents, actions[:, :past], states), []
        for action in actions[:, past:].unbind(dim=1):
            predicted, memory = self.step(memory, action)
            found.append(predicted)
        return torch.stack(found, dim=1)


def seer(gain: float = 1.0, context: int = 1) -> Seer:
    return Seer(ColourModel(gain), Run(torch.device("cpu"), "fp32"), context)  # type: ignore[arg-type]
