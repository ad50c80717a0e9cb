"""``jepa play`` with real runs: a world model, one of latent actions, their decoders, and what a user can get wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from made_worlds import world_settings
from support import error_of

from app.cli import main
from app.playing import server as module
from app.playing.game import Game
from app.playing.opening import open_model
from app.playing.server import PlayServer
from jepa.config import from_dict
from jepa.data.transforms import ClipTransform
from jepa.decoding import load_decoder
from jepa.train import TrainConfig, fit
from jepa.types import Batch
from jepa.world_model import load_world_model

SMALL = {"embed_dim": 24, "depth": 1, "num_heads": 2}
SIDE = 32


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``world`` and ``other`` (real actions), ``actions`` (latent ones, whose codes begin in the second step),
    ``continuous`` (without codes), and decoders of the first and the third."""
    folder = tmp_path_factory.mktemp("play")
    world = world_settings(folder, predictor={**SMALL, "state_dim": 0})
    world["encoder"]["depth"] = 1
    world["train"] |= {"steps": 2, "save_every": 1}
    world["monitor"] = {"every": 1000}
    train(folder, world, "world")
    train(folder, {**world, "seed": 1}, "other")
    latent = {**world["objective"], "kind": "latent_action", "inverse": SMALL, "predictor": SMALL}
    for name, bottleneck in (
        ("actions", {"kind": "vq", "num_codes": 3, "dim": 4, "warmup": 0.9}),
        ("continuous", {"kind": "noisy", "dim": 4}),
    ):
        train(folder, {**world, "objective": {**latent, "bottleneck": bottleneck}}, name)
    for name in ("world", "actions"):
        decoder = {"kind": "deterministic", **SMALL, "patch_size": 8, "tubelet_size": 1}
        objective = {"kind": "decoder", "model": str(folder / name), "decoder": decoder}
        settings = {key: value for key, value in world.items() if key != "encoder"}
        train(folder, {**settings, "objective": objective}, f"{name}-decoder")
    flow = {"kind": "flow", **SMALL, "patch_size": 8, "tubelet_size": 1}
    objective = {"kind": "decoder", "model": str(folder / "world"), "decoder": flow}
    train(folder, {**settings, "objective": objective}, "world-flow")
    return folder


def train(folder: Path, settings: dict[str, Any], name: str) -> None:
    fit(from_dict(TrainConfig, {**settings, "run_dir": str(folder / name)}))


def play(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[list[Any], PlayServer]:
    """What a few requests to the command's server answer: its state, steps, the page."""
    found: list[Any] = []

    def serve(server: PlayServer, browser: bool) -> None:
        assert not browser
        page = server.page.decode()
        press = json.loads(re.findall(r'id="settings">(.*?)</script>', page)[0])["controls"][-1]["name"]
        found.extend([[server.state(), *(server.play("step", {"pressed": [press]}) for _ in range(3)), page], server])
        server.server_close()

    monkeypatch.setattr(module, "serve", serve)
    assert main(["play", *words, "--no-browser", "--device", "cpu", "--precision", "fp32"]) == 0
    return found[0], found[1]


def test_the_rooms_and_a_dream_of_them(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, server = play(monkeypatch, str(runs / "world"), "--decoder", str(runs / "world-decoder"), "--seed", "4")
    start, *steps, page = answers
    assert (start["seed"], start["step"], [step["step"] for step in steps]) == (4, 0, [1, 2, 3])
    for name in (runs / "world", runs / "world-decoder", "rooms"):
        assert f"<code>{name}</code>" in page
    # the same by hand: one frame is taken in, three actions are imagined, and the fourth frame is what there is
    model, decoder, task = load_world_model(runs / "world"), load_decoder(runs / "world-decoder"), server.game.task
    observation = task.reset(4)
    frames = [observation.frame]
    for _ in range(3):
        observation = task.step([0.0, 1.0])  # "down"; the clip is at the rate of the rooms
        frames.append(observation.frame)
    pixels = torch.stack([torch.from_numpy(frame.copy()) for frame in frames]).permute(3, 0, 1, 2)[None]
    with torch.no_grad():
        latents = model.encode(ClipTransform(model.clip)(Batch(clip=pixels)).clip)
        actions = torch.tensor([0.0, 1.0]).expand(1, 3, 2)
        dreamt = model.rollout(latents[:, :1], actions)
        surprises = (dreamt - latents[:, 1:]).abs().mean(dim=(0, 2, 3)).tolist()
    assert [step["measured"]["surprise"] for step in steps] == pytest.approx(surprises, rel=1e-4)
    still = (latents[:, :1] - latents[:, 1:]).abs().mean(dim=(0, 2, 3)).tolist()
    assert [step["measured"]["still"] for step in steps] == pytest.approx(still, rel=1e-4)
    shown = (decoder.decode(dreamt[:, -1:].flatten(1, 2), (1, SIDE, SIDE))[0, 0, :, 0] * 255).round().byte()
    difference = shown.movedim(0, -1).int() - torch.from_numpy(server.moment.dream.copy()).int()
    assert int(difference.abs().max()) <= 1
    assert (server.moment.real == frames[-1]).all()


def test_latent_actions_by_their_codes(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, server = play(monkeypatch, str(runs / "actions"), "--decoder", str(runs / "actions-decoder"))
    start, *steps, page = answers
    assert re.findall(r'data-press="(.*?)"', page) == ["0", "1", "2"]
    assert [step["measured"] for step in steps] == [None] * 3
    assert steps[-1]["pictures"]["real"] == start["pictures"]["real"]
    assert steps[-1]["pictures"]["dream"] != start["pictures"]["dream"]
    model, codes = open_model(str(runs / "actions"))
    assert codes is not None
    assert codes.shape == (3, 4)
    with torch.no_grad():
        latents = server.game.eyes(server.moment.real[None])[None]
        dreamt = model.rollout(latents, codes[2].expand(1, 3, 4))
    torch.testing.assert_close(server.game.dream.latents, dreamt[0, -1])


def test_a_generative_decoder_draws_a_still_frame_the_same_way(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [str(runs / "world"), "--decoder", str(runs / "world-flow")]
    pictures = []
    for more in (["--steps", "2"], ["--steps", "2"], ["--steps", "2", "--noise-seed", "1"], ["--steps", "3"]):
        (start, *_), server = play(monkeypatch, *words, *more)
        pictures.append(start["pictures"]["dream"])
        assert start["pictures"]["dream"] == start["pictures"]["decoded"], "one latent, the same noise"
        assert server.game.decoder.generative
    assert pictures[0] == pictures[1]
    assert len(set(pictures)) == 3


def test_options_of_the_world_reach_it(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [str(runs / "world"), "--decoder", str(runs / "world-decoder")]
    _, server = play(monkeypatch, *words, "--set", "rooms=4", "--set", "layout=random", "--fps", "12")
    assert isinstance(server.game, Game)
    assert server.game.task.config.rooms == 4  # type: ignore[attr-defined]
    assert 'id="speed" min="1" max="60" step="1" value="12"' in server.page.decode()


def test_mistakes(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world, decoder = str(runs / "world"), str(runs / "world-decoder")
    young = str(runs / "actions" / "checkpoints" / "step_00000001.pt")
    for words, message in (
        ([world, "--decoder", world], f"{world} was trained with objective 'world_model', not 'decoder'"),
        ([world, "--decoder", str(tmp_path / "no")], f"{tmp_path / 'no'} is neither a run directory nor a checkpoint"),
        ([str(tmp_path / "no"), "--decoder", decoder], f"{tmp_path / 'no'}"),
        ([decoder, "--decoder", decoder], "was trained with objective 'decoder': a world model needs one of"),
        (
            [str(runs / "other"), "--decoder", decoder],
            f"decoder {decoder} was made for another encoder than that of {runs / 'other'}: the weights differ",
        ),
        ([world, "--decoder", decoder, "--env", "roomz"], "environment 'roomz'"),
        ([world, "--decoder", decoder, "--set", "roms=4"], "unknown config key 'roms', did you mean 'rooms'?"),
        ([world, "--decoder", decoder, "--fps", "0"], "--fps must be above 0 and at most 60, not 0"),
        ([world, "--decoder", decoder, "--seed", "-1"], "--seed must lie between 0 and 2147483647, not -1"),
        ([world, "--decoder", decoder, "--steps", "0"], "--steps must be at least 1, not 0"),
        ([world, "--decoder", decoder, "--port", "70000"], "--port must lie between 0 (any that is free) and 65535"),
        ([world, "--decoder", decoder, "--host", "192.0.2.1"], "cannot listen on port 0 of 192.0.2.1: "),
        ([world, "--decoder", decoder, "--device", "cdua"], "cdua"),
        ([young, "--decoder", decoder], f"{young} has codes that have not begun (bottleneck.warmup): train it on"),
        ([str(runs / "continuous"), "--decoder", decoder], "has no codes to choose from (bottleneck 'noisy'): train a"),
        (
            [world, "--decoder", decoder, "--env", "planning.toy:ToyTask", "--set", "axes=3"],
            "the environment's actions have 3 axes, the model's 2",
        ),
    ):
        assert message in error_of(["play", *words, "--no-browser"], capsys)


def test_played_in_a_real_browser(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command to what is on the screen."""
    from browser import CHROMIUM, browse

    if CHROMIUM is None:
        pytest.skip("there is no Chromium here to look at the page with")
    rates: list[float] = []

    def look(url: str) -> bool:
        with browse(url, tmp_path / "profile") as page:
            page.wait_for(f"document.getElementById('dream').naturalWidth === {SIDE}")
            page.key("rawKeyDown", "ArrowDown")
            page.wait_for("document.getElementById('step-fact').textContent >= 8")
            page.key("keyUp", "ArrowDown")
            rates.append(float(page.value("document.getElementById('fps-fact').textContent")))
            assert page.problems == []
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "open_browser", look)
    command = ["play", str(runs / "world"), "--decoder", str(runs / "world-decoder"), "--device", "cpu", "--fps", "60"]
    assert main(command) == 0
    assert rates[0] > 0
