"""A game whose every answer is known: the toy world of the planners' tests, and a decoder that shows its latents as the
colour that they were read from."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from types import SimpleNamespace
from typing import Any

import torch
from planning.toy import SIDE, ToyModel, ToyTask
from torch import Tensor

from app.playing.game import Game
from app.playing.page import play_page
from app.playing.server import PlayServer
from jepa.tensorfiles import CheckpointError


class PlayModel(ToyModel):
    """Latents move by ``gain`` times the action; by 2 they do so in truth, as an action is held for two steps."""

    def __init__(self, gain: float = 2.0, **widths: int) -> None:
        super().__init__(**widths)
        self.gain.data.fill_(gain)
        self.config = SimpleNamespace(window=1)


class ToyDecoder:
    """Shows the latents ``[1, T, 1, 2]`` as frames of that red and green."""

    per_frame, generative, device, path = True, False, torch.device("cpu"), "toy"

    def __init__(self, fits: bool = True) -> None:
        self.fits = fits
        self.asked: list[dict[str, Any]] = []

    def to(self, device: torch.device) -> ToyDecoder:
        return self

    def check(self, model: Any, name: str | None = None) -> None:
        if not self.fits:
            raise CheckpointError(f"decoder toy was made for another encoder than that of {name}")

    def decode(self, latents: Tensor, size: Any = None, **how: Any) -> Tensor:
        frames = latents.shape[1]
        assert latents.shape == (1, frames, 1, 2)
        self.asked.append({**how, "noise": torch.rand(1, generator=how["generator"]).item()})
        colour = torch.cat((latents, torch.zeros_like(latents[..., :1])), dim=-1)[0, :, 0].T  # [C, T]
        return colour[None, None, :, :, None, None].expand(-1, -1, -1, -1, SIDE, SIDE)


def toy_game(gain: float = 2.0, codes: Tensor | None = None, **task: Any) -> Game:
    """At rest until ``reset``."""
    return Game(PlayModel(gain), ToyDecoder(), ToyTask(**task), name="toy", codes=codes)  # type: ignore[arg-type]


@contextmanager
def served(game: Game, **options: Any) -> Iterator[PlayServer]:
    """A server of ``game`` on a free port, in a thread."""
    server = PlayServer(game, play_page(game, "toy", "toy-decoder", "toys", 60), seed=3, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def request(
    server: PlayServer, method: str, path: str, body: Any = None, connection: HTTPConnection | None = None,
    **headers: str,
) -> tuple[int, Any]:  # fmt: skip
    """Status, and the answer as data (as text where it is no JSON). ``body``: bytes as they are, else as JSON."""
    own = connection or HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    own.request(method, path, data, headers)
    reply = own.getresponse()
    text = reply.read()
    if connection is None:
        own.close()
    return reply.status, json.loads(text) if "json" in reply.headers["Content-Type"] else text.decode()
