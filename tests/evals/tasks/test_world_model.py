"""The task world_model on a real tiny run: data chosen by itself or named, files written, mistakes named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from colour_world import write_colours
from made_worlds import world_settings, write_worlds
from support import error_of, tiny_settings

from app.cli import main
from evals.main import evaluate
from evals.settings import EvalConfig
from evals.task_configs import WorldModelTask
from jepa.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from jepa.config import ConfigError, from_dict, merge
from jepa.data.source_config import SourceConfig
from jepa.planning.config import PlannerConfig
from jepa.train import TrainConfig, fit

PLANNER = PlannerConfig(samples=16, iterations=2, horizon=2, elites=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that holds three of seven episodes out and takes no states."""
    path = tmp_path_factory.mktemp("world")
    write_worlds(path / "worlds", episodes=7)
    changes = {"data": {"holdout": 3}, "objective": {"predictor": {"state_dim": 0}}, "monitor": {"every": 100}}
    fit(from_dict(TrainConfig, merge(world_settings(path), changes)))
    return path


def test_everything_of_a_run(folder: Path, tmp_path: Path) -> None:
    own = WorldModelTask(
        env="planning.toy:SimulatedTask", episodes=2, max_steps=3, planner=PLANNER, windows=2, agents=("random",)
    )
    config = EvalConfig(run=str(folder / "run"), task="world_model", device="cpu", world_model=own, out=str(tmp_path))
    results = evaluate(config)
    row = results["rows"][0]
    assert (row["model"], row["context"], row["episodes"], row["fit_episodes"]) == ("trained", 1, 3, 4)
    assert [(part["horizon"], part["beyond"]) for part in row["prediction"]] == [
        (1, False), (2, False), (4, False), (8, True),
    ]  # fmt: skip
    for part in row["prediction"]:
        assert part["ratio"] == pytest.approx(part["error"] / part["copy"])
    assert [part["encoder"] for part in row["decoding"]] == ["trained", "random", "pixels"]
    assert row["decoding"][2]["states"]["state 0"] > 0.5, "a square's place is plain in 16 x 16 pixels"
    assert [part["horizon"] for part in row["ahead"]] == [1, 2, 4, 8]
    assert [part["agent"] for part in row["planning"]] == ["trained", "random"]
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["rows"] == json.loads(json.dumps(results["rows"]))
    assert (tmp_path / "states.png").read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "report.html").read_text()
    for words in ("Error against horizon", "True states in latents", "Goals reached by planning", "beyond the clips"):
        assert words in report
    assert "| trained | 8 * |" in (tmp_path / "results.md").read_text()


def test_other_data_and_other_models(folder: Path, tmp_path: Path) -> None:
    """A folder alone is cut in two; several models stand side by side; without states only errors are told."""
    other = write_colours(tmp_path / "colours", episodes=6, states="none", fps=10.0)
    command = ["eval", str(folder / "run"), "--task", "world_model", "--device", "cpu", "--data", str(other)]
    against = str(find_checkpoint(folder / "run"))
    assert main([*command, "--against", against, "--out", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["model"] for row in results["rows"]] == ["trained", against]
    first, second = results["rows"]
    assert first["prediction"] == second["prediction"]
    assert (first["episodes"], first["fit_episodes"], first["decoding"], first["planning"]) == (3, 3, [], [])
    assert results["notes"] == "The episodes have no states: nothing is decoded."
    assert not (tmp_path / "out" / "states.png").exists()
    assert "True states" not in (tmp_path / "out" / "report.html").read_text()


def test_an_episode_that_is_short_or_damaged_is_left_out(folder: Path, tmp_path: Path) -> None:
    data = write_worlds(tmp_path / "data", episodes=6)
    (data / "episode_00006.npz").write_bytes(b"no array")
    write_worlds(tmp_path / "short", episodes=1, length=4)
    (tmp_path / "short" / "episode_00000.npz").rename(data / "episode_00007.npz")
    config = EvalConfig(
        run=str(folder / "run"), task="world_model", device="cpu", baselines=(), out=str(tmp_path / "out"),
        train=SourceConfig(path=str(folder / "worlds")), test=SourceConfig(path=str(data)),
        world_model=WorldModelTask(horizons=(2, 6)),
    )  # fmt: skip
    results = evaluate(config)
    row = results["rows"][0]
    assert (row["episodes"], row["fit_episodes"]) == (6, 7)
    assert [part["horizon"] for part in row["prediction"]] == [2, 6]
    assert [Path(path).name for path in results["unreadable"]] == ["episode_00006.npz"]
    notes = results["notes"].split("\n\n")
    assert notes[0] == "trained: 1 of 7 test episodes have fewer than 7 frames: no rollouts."
    assert notes[1] == "1 episodes cannot be read and are left out:"


def test_mistakes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(folder / "run")

    def said(model: str, *more: str) -> str:
        return error_of(["eval", model, "--task", "world_model", "--device", "cpu", *more], capsys)

    found = said(run, "--set", "world_model.horizons=[40]")
    assert "horizon 40 after 1 given frames needs episodes of 41 frames at the model's rate, but the longest" in found
    assert "has 10: lower world_model.horizons" in found
    assert "has actions of 3 numbers, the model trained of 2" in said(
        run, "--env", "planning.toy:SimulatedTask", "--set", "world_model.env_options={axes: 3}"
    )
    assert "does not exist" in said(run, "--data", str(tmp_path / "nothing"))
    write_worlds(tmp_path / "few", episodes=2)
    assert "few has 2 episodes: at least 3 are needed" in said(run, "--data", str(tmp_path / "few"))
    worlds = str(folder / "worlds")
    assert "7 of the test episodes are among the training episodes too" in said(
        run, "--train", worlds, "--test", worlds
    )
    assert "sees clips as its model was trained: leave clip out" in said(run, "--set", "clip.fps=5")
    assert "--data FOLDER without --dataset" in said(run, "--dataset", "ssv2", "--data", worlds)
    with pytest.raises(ConfigError, match="against names 'trained' twice"):
        evaluate(EvalConfig(run=run, task="world_model", device="cpu", against=("trained",), out=str(tmp_path / "o")))


def test_runs_that_are_no_world_model_or_have_no_data(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(from_dict(TrainConfig, tiny_settings(tmp_path, steps=1)))
    found = error_of(["eval", str(tmp_path / "run"), "--task", "world_model", "--device", "cpu"], capsys)
    assert "was trained with objective 'masked': a world model needs one of world_model" in found
    state = load_checkpoint(find_checkpoint(folder / "run"))
    state["config"]["data"]["holdout"] = 0
    save_checkpoint(tmp_path / "whole", 1, state)
    found = error_of(["eval", str(tmp_path / "whole"), "--task", "world_model", "--device", "cpu"], capsys)
    assert "neither validates on episodes nor holds any out" in found
    small = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    inferring = {"kind": "latent_action", "predictor": small, "inverse": small, "momentum": [0.9, 1.0]}
    settings = world_settings(folder) | {"run_dir": str(tmp_path / "inferring"), "objective": inferring}
    fit(from_dict(TrainConfig, merge(settings, {"train": {"steps": 1}, "monitor": {"every": 100}})))
    found = error_of(["eval", str(tmp_path / "inferring"), "--task", "world_model", "--device", "cpu"], capsys)
    assert "takes actions that it infers itself: use the task latent_action, or name a controller's run" in found
