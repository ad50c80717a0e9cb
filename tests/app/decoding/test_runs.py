"""``jepa decode`` over real runs, small and hardly trained: its numbers, written out by hand, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_worlds import world_settings
from moving_agent import write_agent
from support import error_of, tiny_settings, write_clips
from torch import Tensor

from app.cli import main
from evals.latent_actions.opening import open_model
from evals.pixel_metrics import psnr
from jepa.config import from_dict, merge
from jepa.data.trajectories.opening import open_trajectories
from jepa.decoding import Decoder, load_decoder
from jepa.distributed import Run
from jepa.masks import build_masks
from jepa.objectives import LatentActionObjective
from jepa.planning.imagination import Eyes
from jepa.predict import predict
from jepa.train import TrainConfig, fit
from jepa.world_model import load_world_model

SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 1, "num_heads": 2}
ONCE = {"steps": 1, "device": "cpu", "precision": "fp32"}
QUIET = {"batch_size": 4, "log_every": 2, "save_every": 100, "progress": "off", "tensorboard": False}


def train(settings: dict[str, Any], **changes: Any) -> None:
    fit(from_dict(TrainConfig, merge(settings, changes)))


def decoder_settings(folder: Path, name: str, data: dict[str, Any], clip: dict[str, Any]) -> dict[str, Any]:
    """Of a decoder of the run ``name``, in ``name``-decoder, with 2 or 4 clips held out."""
    tubelet = 2 if name == "masked" else 1
    return {
        "run_dir": str(folder / f"{name}-decoder"), "clip": clip,
        "data": {"sources": [data], "workers": 0, "holdout": 4 if name == "masked" else 2}, "augment": {"flip": 0.0},
        "objective": {
            "kind": "decoder", "model": str(folder / name),
            "decoder": {"kind": "deterministic", **SMALL, "patch_size": 8, "tubelet_size": tubelet},
        },
        "train": {**QUIET, **ONCE}, "monitor": {"every": 1000},
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked model, a world model and one of latent actions, each with a decoder."""
    folder = tmp_path_factory.mktemp("runs")
    masked = tiny_settings(folder, **ONCE)
    train(masked, run_dir=str(folder / "masked"))
    train(masked, run_dir=str(folder / "other"), seed=1)
    own = decoder_settings(folder, "masked", {"path": str(folder / "clips.npz")}, masked["clip"])
    train(own)
    train(own, run_dir=str(folder / "lower-decoder"), objective={"layers": [0]})
    flow = {"kind": "flow", **SMALL, "patch_size": 8, "tubelet_size": 2}
    train(own, run_dir=str(folder / "flow-decoder"), objective={"decoder": flow})
    world = world_settings(folder)
    train(world, run_dir=str(folder / "world"), train=ONCE)
    train(decoder_settings(folder, "world", world["data"]["sources"][0], world["clip"]))
    write_agent(folder / "agent", episodes=8)
    data, clip = {"path": str(folder / "agent"), "trajectory": {}}, {"num_frames": 4, "fps": 5.0, "crop_size": 32}
    train({
        "run_dir": str(folder / "actions"), "clip": clip, "data": {"sources": [data], "workers": 0, "holdout": 2},
        "objective": {
            "kind": "latent_action", "inverse": SMALL, "predictor": SMALL, "latent": {"pool": [2, 2]},
            "bottleneck": {"kind": "vq", "num_codes": 3, "dim": 4, "warmup": 0.5},
            "regularizer": {"kind": "variance_covariance"},
        },
        "encoder": {**SMALL, "patch_size": 8, "tubelet_size": 1}, "augment": {"flip": 0.0},
        "train": {**QUIET, **ONCE, "steps": 2}, "monitor": {"every": 1000},
    })  # fmt: skip
    train(decoder_settings(folder, "actions", data, clip))
    return folder


def decode(runs: Path, name: str, kind: str, *words: str, out: Path) -> list[dict[str, Any]]:
    line = ["decode", str(runs / f"{name}-decoder"), kind, *words, "--out", str(out), "--device", "cpu"]
    assert main([*line, "--precision", "fp32"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [f"{kind}.{end}" for end in ("gif", "json", "mp4", "png")]
    clips: list[dict[str, Any]] = json.loads((out / f"{kind}.json").read_text())["clips"]
    return clips


def clip_of(runs: Path, row: int, decoder: Decoder) -> Tensor:
    """A clip of the data, normalised ``[1, C, T, H, W]``."""
    with np.load(runs / "clips.npz") as arrays:
        frames = torch.from_numpy(arrays["clips"][row]).movedim(-1, 0)[None] / 255
    mean, std = (torch.tensor(value).view(3, 1, 1, 1) for value in (decoder.clip.mean, decoder.clip.std))
    return (frames - mean) / std


# ---- masked models ---------------------------------------------------------------------------------------------------


def test_reconstructions_of_what_was_held_out(runs: Path, tmp_path: Path) -> None:
    found = decode(runs, "masked", "reconstruct", "--clips", "9", out=tmp_path)
    assert len(found) == 4
    decoder = load_decoder(runs / "masked-decoder")
    clips = [clip_of(runs, row, decoder) for row in range(12)]
    worth = [float(psnr(decoder.decode(decoder.encode(c))[0, 0], decoder.to_pixels(c[0]))) for c in clips]
    for clip in found:
        assert min(abs(clip["psnr"] - value) for value in worth) < 0.01, "one of the data's clips"


@pytest.mark.parametrize("words", [(), ("--mask", "1"), ("--mask", "middle", "--mask-token", "1")])
def test_hidden_places_hold_what_the_predictor_says(runs: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    write_clips(tmp_path / "one.npz", clips=1, seed=3)
    (found,) = decode(runs, "masked", "inpaint", str(tmp_path / "one.npz"), *words, out=tmp_path / "out")
    decoder, model = load_decoder(runs / "masked-decoder"), str(runs / "masked")
    with np.load(tmp_path / "one.npz") as arrays:
        frames = arrays["clips"]
    hidden = np.zeros((2, 4, 4), dtype=bool)
    if "middle" in words:
        hidden[:, 1:3, 1:3] = True
    else:
        families = from_dict(TrainConfig, {**tiny_settings(runs), "run_dir": "x"}).masks
        (family,) = build_masks([families[1 if words else 0]], decoder.grid_of((4, 32, 32)))
        context = family.draw(np.random.default_rng(0), 1).context_ids[0].numpy()
        hidden.reshape(-1)[:] = ~np.isin(np.arange(32), context)
    assert found["hidden"] == pytest.approx(hidden.mean(), abs=1e-4)
    guess = predict(frames, model, target=hidden, mask_token=1 if words else 0, fps=1.0, device="cpu")
    seen = load_decoder(runs / "masked-decoder").objective.encoder
    clip = decoder_input(decoder, frames[0])
    context_ids = torch.from_numpy(np.flatnonzero(~hidden))[None]
    latents = torch.empty(1, 32, 24)
    latents[:, context_ids[0]] = torch.nn.functional.layer_norm(seen(clip, context_ids), (24,)).detach()
    latents[:, guess.target_ids[0]] = guess.predicted
    truth, made = decoder.to_pixels(clip[0]), decoder.decode(latents)[0, 0]
    where = torch.from_numpy(hidden.repeat(2, 0).repeat(8, 1).repeat(8, 2))[None]
    assert found["prediction"]["psnr"] == pytest.approx(float(psnr(made, truth, where)), abs=0.02)
    ceiling = decoder.decode(decoder.encode(clip))[0, 0]
    assert found["true_latents"]["psnr"] == pytest.approx(float(psnr(ceiling, truth, where)), abs=0.02)


def decoder_input(decoder: Decoder, frames: np.ndarray) -> Tensor:
    mean, std = (torch.tensor(value).view(3, 1, 1, 1) for value in (decoder.clip.mean, decoder.clip.std))
    return ((torch.from_numpy(frames).movedim(-1, 0) / 255 - mean) / std)[None]


def test_a_forecast_beside_the_frame_that_stays(runs: Path, tmp_path: Path) -> None:
    (found,) = decode(runs, "masked", "forecast", "--clips", "1", "--context", "2 frames", out=tmp_path)
    assert (found["seen_frames"], found["hidden"], len(found["psnr_by_frame"])) == (2, 0.5, 4)
    decoder = load_decoder(runs / "masked-decoder")
    truths = [decoder.to_pixels(clip_of(runs, row, decoder)[0]) for row in range(12)]
    copies = [float(psnr(t[:, 1:2].expand(-1, 2, -1, -1), t[:, 2:])) for t in truths]
    assert min(abs(found["copy_last"]["psnr"] - copy) for copy in copies) < 0.01


def test_a_generative_decoder_shows_samples(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--clips", "1", "--samples", "2", "--sampling-steps", "3", "--guidance", "1.5")
    (found,) = decode(runs, "flow", "inpaint", *words, out=tmp_path)
    assert set(found["prediction"]) == {"psnr", "psnr_of_a_sample", "psnr_of_the_best"}
    printed = capsys.readouterr().out.splitlines()[-1]
    assert "prediction, mean of 2 " in printed
    assert "prediction, sample 2 " in printed
    about = json.loads((tmp_path / "inpaint.json").read_text())
    assert (about["samples"], about["sampling_steps"], about["guidance"]) == (2, 3, 1.5)


# ---- world models ----------------------------------------------------------------------------------------------------


def test_a_rollout_is_that_of_the_model(runs: Path, tmp_path: Path) -> None:
    words = ("--clips", "1", "--horizon", "3", "--context", "2", "--step", "1")
    (found,) = decode(runs, "world", "rollout", str(runs / "worlds"), *words, out=tmp_path)
    model, decoder = load_world_model(runs / "world"), load_decoder(runs / "world-decoder")
    episode = open_trajectories(str(runs / "worlds")).episode(0, model.clip)
    frames, part = episode.frames[1:6], slice(1, 6)
    latents = Eyes(model, torch.device("cpu"))(frames)[None]
    assert episode.states is not None
    actions, states = (torch.from_numpy(x[part])[None] for x in (episode.actions, episode.states))
    dreamt = model.rollout(latents[:, :2], actions[:, :4], states[:, :2])
    made = decoder.decode(torch.cat((latents[:, :2], dreamt), dim=1), (5, 32, 32))[0, 0]
    truth = torch.from_numpy(frames).movedim(-1, 0) / 255
    assert found["imagined"]["psnr"] == pytest.approx(float(psnr(made[:, 2:], truth[:, 2:])), abs=0.01)
    for frame in range(5):
        wanted = float(psnr(made[:, frame : frame + 1], truth[:, frame : frame + 1]))
        assert found["psnr_by_frame"][frame] == pytest.approx(wanted, abs=0.01)


def test_each_code_is_held_from_the_same_frame(runs: Path, tmp_path: Path) -> None:
    (found,) = decode(runs, "actions", "codes", "--clips", "1", "--horizon", "3", str(runs / "agent"), out=tmp_path)
    objective, decoder = latent_actions(runs), load_decoder(runs / "actions-decoder")
    assert objective.codes is not None
    frames = open_trajectories(str(runs / "agent")).episode(0, objective.clip).frames
    starts = Eyes(objective.world_model, torch.device("cpu"))(frames)  # the clip begins at one of them
    dreams = [
        [objective.world_model.rollout(start[None, None], code.expand(1, 3, -1))[0] for code in objective.codes]
        for start in starts
    ]
    moved = [[float((d[-1] - start).abs().mean()) for d in row] for row, start in zip(dreams, starts, strict=True)]
    best = int(np.abs(np.array(moved) - found["moved"]).max(axis=1).argmin())
    assert found["moved"] == pytest.approx(moved[best], abs=2e-5)
    ends = [decoder.decode(dream[None], (3, 32, 32))[0, 0, :, -1] for dream in dreams[best]]
    apart = np.mean([float((ends[a] - ends[b]).abs().mean()) for a, b in ((0, 1), (0, 2), (1, 2))])
    assert found["pixels_between_codes"] == pytest.approx(apart, abs=1e-6)


def latent_actions(runs: Path) -> LatentActionObjective:
    return open_model(str(runs / "actions"), Run(torch.device("cpu"), "fp32")).objective


def test_inferred_actions_of_a_video(runs: Path, tmp_path: Path) -> None:
    found = decode(runs, "actions", "rollout", out=tmp_path)
    assert len(found) == 2, "as many as are held out"
    assert all(len(clip["psnr_by_frame"]) == 4 for clip in found)
    (short,) = decode(runs, "actions", "rollout", "--horizon", "2", "--clips", "1", out=tmp_path)
    assert short["psnr_by_frame"] == found[0]["psnr_by_frame"][:3]


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("masked", ["inpaint", "--model", "{runs}/other"], "another encoder than that of {runs}/other: the weights"),
        ("masked", ["inpaint", "--model", "{runs}/world"], "objective 'world_model' has no predictor of latents"),
        ("masked", ["forecast", "--model", "timm:vit_tiny"], "timm:vit_tiny has no predictor: timm models are"),
        ("lower", ["inpaint"], "block 0 of {runs}/masked, but the predictor of {runs}/masked predicts the last"),
        ("masked", ["rollout"], "takes latents of whole clips, as masked models make them, which no action leads to"),
        ("masked", ["inpaint", "--mask", "2"], "--mask must be a number from 0 to 1 (a mask family of {runs}/masked)"),
        ("masked", ["inpaint", "--mask-token", "4"], "--mask-token 4 does not exist: the predictor has 2"),
        ("masked", ["forecast", "--context", "3 frames"], "ends inside a tubelet of 2 frames"),
        ("masked", ["inpaint", "nowhere.mp4"], "nowhere.mp4"),
        ("world", ["codes"], "was trained with objective 'world_model', which infers no actions"),
        ("world", ["rollout", "--model", "{runs}/actions"], "another encoder than that of {runs}/actions: its lat"),
        ("world", ["reconstruct", "--model", "{runs}/masked"], "objective 'masked': a world model needs one of"),
        ("actions", ["rollout", "--step", "1"], "--step 1: actions are inferred from the middle of a video here"),
        ("actions", ["rollout", "--actions", "{runs}/none.npy"], "none.npy cannot be read as numbers"),
    ],
)  # fmt: skip
def test_what_is_refused(
    name: str, words: list[str], message: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    line = [word.replace("{runs}", str(runs)) for word in words]
    out = ["--out", str(tmp_path / "out"), "--device", "cpu"]
    found = error_of(["decode", str(runs / f"{name}-decoder"), *line, *out], capsys)
    assert message.replace("{runs}", str(runs)) in found


def test_what_is_no_decoder(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["reconstruct", "--out", str(tmp_path / "out")]
    message = error_of(["decode", str(runs / "masked"), *out], capsys)
    assert "was trained with objective 'masked', not 'decoder'" in message
    assert "no-such-run" in error_of(["decode", str(tmp_path / "no-such-run"), *out], capsys)
