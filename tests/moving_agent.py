"""Recorded episodes of a world that is quickly learned: a bright square moved by 2-d actions; states are places."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jepa.data.trajectories.writer import EpisodeWriter

SIDE, SQUARE, REACH = 32, 8, 4.0  # pixels; an action of 1 moves the square by REACH pixels


def write_agent(folder: Path, episodes: int = 6, frames: int = 12, seed: int = 0) -> Path:
    """Episodes in the layout of ``jepa data record``: actions ``[T-1, 2]`` (right, up) in four directions, states
    ``[T, 2]``."""
    writer = EpisodeWriter(folder, {"fps": 5.0, "action_low": [-1.0, -1.0], "action_high": [1.0, 1.0]})
    moves = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], dtype=np.float32)
    rng = np.random.default_rng(seed)
    for number in range(episodes):
        place = rng.uniform(0, SIDE - SQUARE, 2)
        colour = rng.integers(120, 255, 3)
        pictures, places, actions = [], [], []
        for step in range(frames):
            picture = np.full((SIDE, SIDE, 3), 20 + 10 * (number % 3), dtype=np.uint8)
            column, row = np.round(place).astype(int)
            picture[row : row + SQUARE, column : column + SQUARE] = colour
            pictures.append(picture)
            places.append(place.copy())
            if step < frames - 1:
                fitting = [m for m in moves if _inside(place + REACH * m * [1, -1])]
                move = fitting[rng.integers(len(fitting))]
                actions.append(move)
                place = place + REACH * move * [1, -1]
        writer.write(number, np.stack(pictures), np.stack(actions), np.stack(places).astype(np.float32))
    return folder


def _inside(place: np.ndarray) -> bool:
    return bool((place >= 0).all() and (place <= SIDE - SQUARE).all())
