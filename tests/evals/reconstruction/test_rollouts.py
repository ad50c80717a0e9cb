"""Decoded rollouts of a tiny world model, and the rooms' discs in them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from made_worlds import world_settings
from support import error_of

from evals.compare import compare
from evals.main import evaluate
from evals.reconstruction import rollout_samples, rollouts
from evals.reconstruction.by_clip import key
from evals.reconstruction.probe import Latents, build_decoder
from evals.reconstruction.rollouts import Watcher, Windows, is_world_model
from evals.reconstruction.shown import Shown
from evals.reconstruction.worlds import Scale
from evals.settings import EvalConfig
from evals.task_configs import ReconstructionTask, WorldModelTask
from evals.world_models.opening import Seer, open_model
from jepa.config import from_dict, merge
from jepa.distributed import Run
from jepa.envs.rooms import RoomsConfig, RoomsWorld, draw_layout
from jepa.envs.rooms_draw import RoomsPicture, draw_looks
from jepa.train import TrainConfig, fit

CPU = Run(torch.device("cpu"), "fp32")
TASK = ReconstructionTask(steps=3, embed_dim=24, depth=1, num_heads=2, pictures=1, batch_size=8, train_clips=8)
NAMES = ["agent_x", "agent_y", "object_x", "object_y"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps that holds two of four episodes out."""
    path = tmp_path_factory.mktemp("world")
    changes = {"data": {"holdout": 2}, "train": {"steps": 2}, "monitor": {"every": 100}}
    fit(from_dict(TrainConfig, merge(world_settings(path), changes)))
    return path


def test_the_task_on_a_world_model(folder: Path, tmp_path: Path) -> None:
    config = EvalConfig(
        run=str(folder / "run"), task="reconstruction", device="cpu", reconstruction=TASK, out=str(tmp_path),
        world_model=WorldModelTask(windows=2),
    )  # fmt: skip
    assert is_world_model(config.run)
    results = evaluate(config)
    rows = results["rows"]
    assert [(row["places"], row["what"], row["model"], row["tokens"], row["clips"]) for row in rows] == [
        ("rollout", "target", "trained", 4, 4), ("rollout", "predicted", "trained", 4, 4),
        ("rollout", "target", "random", 4, 4), ("rollout", "predicted", "random", 4, 4),
        ("rollout", "guess", "training mean", None, 4), ("rollout", "guess", "copy last", None, 4),
    ]  # fmt: skip
    for row in rows:
        assert [frame["frame"] for frame in row["frames"]] == list(range(1, 9))
        assert np.mean([frame["psnr"] for frame in row["frames"]]) == pytest.approx(row["psnr"])
        assert row["low"] <= row["psnr"] <= row["high"]
        assert row["near"] is None
    assert rows[5]["frames"][0]["psnr"] > rows[3]["frames"][-1]["psnr"], "the square walks away from where it was"
    assert (results["tracked"], results["train_clips"]) == ([], 20)
    report = (tmp_path / "report.html").read_text()
    assert "Rollouts of the world model" in report
    assert "in rollouts predictions reach" in report
    assert "(random encoder " in report
    assert 'alt="predicted random"' in report
    quiet = evaluate(dataclasses.replace(config, baselines=("pixels",), out=str(tmp_path / "quiet")))
    assert {row["model"] for row in quiet["rows"]} == {"trained", "training mean", "copy last"}
    assert quiet["rows"][:2] == rows[:2], "the random twin changes nothing of the model's own"


def test_a_step_of_a_decoder_sees_frames_for_every_clip_of_a_batch(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[str, int]] = []

    def fit_some(decoder: torch.nn.Module, latents: Latents, shown: Shown, task: ReconstructionTask, run: Run) -> None:
        sizes.append((type(decoder).__name__, task.batch_size))
        decoder.eval().requires_grad_(False)

    for module in (rollouts, rollout_samples):
        monkeypatch.setattr(module, "fit_decoder", fit_some)
    evaluate(EvalConfig(
        run=str(folder / "run"), task="reconstruction", device="cpu", out=str(tmp_path), baselines=(),
        reconstruction=dataclasses.replace(TASK, samples=2, sampling_steps=1), world_model=WorldModelTask(windows=2),
    ))  # fmt: skip
    assert sizes == [("PixelDecoder", 32), ("FlowDecoder", 32)], "4 frames for each of 8 clips"


def test_samples_of_rollouts_stand_beside_them(folder: Path, tmp_path: Path) -> None:
    plain = EvalConfig(
        run=str(folder / "run"), task="reconstruction", device="cpu", reconstruction=TASK, out=str(tmp_path / "plain"),
        world_model=WorldModelTask(windows=2), baselines=(),
    )  # fmt: skip
    asked = dataclasses.replace(TASK, samples=2, flow_steps=30, sampling_steps=2)
    config = dataclasses.replace(plain, reconstruction=asked, out=str(tmp_path / "sampled"))
    results, without = evaluate(config), evaluate(plain)
    assert results["rows"] == without["rows"]
    found = [(row["places"], row["what"], row["model"], row["clips"]) for row in results["sampled"]]
    assert found == [("rollout", "target", "trained", 4), ("rollout", "predicted", "trained", 4)]
    for row in results["sampled"]:
        assert row["diversity"] > 0
        assert row["psnr"] > row["best"][0]["psnr"] - 0.01, "but for the rounding of the mean to 8 bits"
    assert 'alt="predicted trained: spread"' in (tmp_path / "sampled" / "report.html").read_text()
    with np.load(tmp_path / "sampled" / "clips.npz") as file:
        assert len(set(file["group"].tolist())) == 2, "episodes"
        for row in results["rows"]:
            assert float(file[key(row, "psnr")].mean()) == pytest.approx(row["psnr"], abs=1e-4)
    compared = compare([tmp_path / "plain", tmp_path / "sampled"])
    line = next(one for one in compared["lines"] if one["measure"] == "rollout, predicted: PSNR (dB)")
    assert line["differences"] == [None, {"difference": 0.0, "interval": [0.0, 0.0]}]


def test_mistakes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", str(folder / "run"), "--task", "reconstruction", "--device", "cpu"]
    for words in (["--sweep-layers"], ["--against", "timm:resnet18"], ["--set", "reconstruction.pools=[2]"]):
        found = error_of([*command, *words], capsys)
        assert "of a world model only its own latents are decoded: leave against, layers and pools out" in found
    found = error_of([*command, "--set", "world_model.horizons=[40]"], capsys)
    assert "horizon 40 after 1 given frames needs episodes of 41 frames" in found
    small = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    inferring = {"kind": "latent_action", "predictor": small, "inverse": small, "momentum": [0.9, 1.0]}
    settings = world_settings(folder) | {"run_dir": str(tmp_path / "inferring"), "objective": inferring}
    fit(from_dict(TrainConfig, merge(settings, {"train": {"steps": 1}, "monitor": {"every": 100}})))
    found = error_of(["eval", str(tmp_path / "inferring"), *command[2:]], capsys)
    assert "takes actions that it infers itself: use the task latent_action, or name a controller's run" in found


@pytest.fixture(scope="module")
def rooms(folder: Path) -> tuple[Windows, Seer]:
    """Six windows of three frames: the agent walks to the right, the object stays."""
    seer = open_model(str(folder / "run"), CPU, 1)
    config = RoomsConfig(side=32, rooms=1)
    rng = np.random.default_rng(0)
    layout = draw_layout(config, rng)
    world, picture = RoomsWorld(config, layout), RoomsPicture(config, layout, draw_looks(config, rng))
    states, pixels = [], []
    for number in range(6):
        state = np.array([[0.2, 0.15 + 0.05 * number, 0.7, 0.8]], dtype=np.float32)
        path = [state[0]]
        for _ in range(4):
            state = world.advance(state, np.array([[1.0, 0.0]]))
            path.append(state[0])
        states.append(np.stack(path))
        pixels.append(np.stack([picture.render(one) for one in path]))
    frames = torch.from_numpy(np.stack(pixels))
    latents = torch.cat([seer.encode(frames[k : k + 1].movedim(-1, 1).float() / 255) for k in range(6)])
    known = torch.from_numpy(np.stack(states))
    return Windows(frames, latents, torch.zeros(6, 4, 2), known, [0, 0, 1, 1, 2, 2], [0, 9] * 3), seer


def test_discs_are_followed(rooms: tuple[Windows, Seer]) -> None:
    windows, seer = rooms
    watcher = Watcher(windows, NAMES, seer, [1, 4], 0)
    assert watcher.tracked == ["agent", "object"]
    like = Shown(windows.pixels[:, :1, :, :, :][:1], torch.arange(1), [""], seer.world.clip, {})
    latents = windows.latents[:1, 0]
    decoder = build_decoder(TASK, seer.world.encoder, Scale.of(latents).latents(latents, seer), like)
    perfect = watcher.scored("target", "trained", watcher.truth, decoder).row
    assert (perfect.psnr, perfect.near, perfect.ssim) == (100.0, 1.0, pytest.approx(1.0))
    assert perfect.apart is not None
    assert perfect.apart < 0.2, "less than two pixels of a patch of 8"
    still = windows.pixels[:, :1].expand(-1, 2, -1, -1, -1)
    copied = watcher.scored("guess", "copy last", still, None).row
    # a step is 0.04 of the side and a patch 0.25: all are near but none of the agents would be after seven
    assert [frame["near"] for frame in copied.frames] == [1.0, 1.0]
    assert copied.apart == pytest.approx((0.04 / 0.25) / 2, abs=0.1)
    grey = watcher.scored("guess", "training mean", torch.full_like(watcher.truth, 128), None).row
    assert (grey.near, grey.apart) == (0.0, None)


def test_things_that_the_tracker_does_not_find_are_not_followed(rooms: tuple[Windows, Seer]) -> None:
    windows, seer = rooms
    assert Watcher(windows._replace(states=1 - windows.states), NAMES, seer, [1], 0).tracked == [], "elsewhere"
    assert Watcher(windows, ["x", "y", "u", "v"], seer, [1], 0).tracked == []
    assert Watcher(windows._replace(states=None), [], seer, [1], 0).tracked == []
    assert Watcher(windows._replace(states=windows.states[..., :2]), NAMES[:2], seer, [1], 0).tracked == ["agent"]
