"""``jepa plan``: in a toy world whose dynamics the model knows, from recordings with the published predictor's layout,
and with everything that a user can get wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from planning.toy import ToyModel, picture
from support import error_of

from app.cli import main
from jepa.data.video import open_video
from jepa.planning.config import PlannerConfig
from jepa.tensorfiles import CheckpointError

GOLDEN = Path(__file__).parent / "golden" / "vjepa2_ac"
QUICK = ["--samples", "48", "--iterations", "3", "--horizon", "4", "--device", "cpu", "--set", "energy.over=sum"]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The beginning of a command line that plans in the toy world; the simulated one."""

    def load(path: str) -> ToyModel:
        if path != "toy":
            raise CheckpointError(f"{path} is no toy")
        return ToyModel()

    monkeypatch.setattr("app.planning.settings.load_world_model", load)
    return ["plan", "toy", "--env", "planning.toy:SimulatedTask", *QUICK]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Seven frames of 32 px at 4 per second, with 7-d poses and their changes."""
    rng = np.random.default_rng(0)
    states = np.cumsum(rng.uniform(-0.02, 0.02, (7, 7)), axis=0).astype(np.float32)
    frames = rng.integers(0, 255, (7, 32, 32, 3), dtype=np.uint8)
    path = tmp_path / "episode_00000.npz"
    np.savez(path, frames=frames, actions=np.diff(states, axis=0), states=states)
    (tmp_path / "trajectories.json").write_text(json.dumps({"fps": 4.0}))
    return path


def published(recording: Path, *more: str) -> list[str]:
    architecture = ["--architecture", str(GOLDEN / "config.json")]
    start = ["plan", str(GOLDEN / "checkpoint.pt"), *architecture, "--trajectory", str(recording), "--device", "cpu"]
    return [*start, "--samples", "32", "--iterations", "2", "--horizon", "2", *more]


# ---- acting ----------------------------------------------------------------------------------------------------------


def test_a_table_of_all_agents(toy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*toy, "--episodes", "3", "--against", "random,simulator", "--max-steps", "25"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["agent", "success", "95", "%", "interval", "steps", "ms/action", "p90"]
    assert lines[1].startswith("model         100.0 %     44 to 100 %")
    assert lines[2].startswith("random          0.0 %       0 to 56 %       -")
    assert lines[3].startswith("simulator     100.0 %     44 to 100 %")


def test_the_number_of_threads(toy: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert main([*toy, "--episodes", "1", "--against", "none", "--max-steps", "1", "--threads", "1"]) == 0
    assert asked == [1]


def test_results_videos_and_the_landscape_are_written(toy: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*toy, "--episodes", "2", "--out", str(out), "--videos", "1", "--planner", "icem"]) == 0
    found = json.loads((out / "results.json").read_text())
    assert [agent["agent"] for agent in found["agents"]] == ["model", "random"]
    assert found["agents"][0]["success_rate"] == 1.0
    assert found["settings"]["planner"]["kind"] == "icem"
    assert found["settings"]["planner"]["elites"] == 6, "in proportion to the samples"
    assert [(episode["agent"], episode["seed"]) for episode in found["episodes"]] == [
        ("model", 0), ("model", 1), ("random", 0), ("random", 1),
    ]  # fmt: skip
    steps = found["episodes"][0]["steps"]
    assert len(found["episodes"][0]["ms"]) == -(-steps // 2)
    with open_video(out / "episode_000.mp4", "pyav") as video:
        frames = video.read(range(video.num_frames))
    assert frames.shape == (steps + 1, 192 + 30, 3 * 192 + 2 * 8, 3)
    with Image.open(out / "episode_000.gif") as gif:
        assert (gif.n_frames, gif.size) == (steps + 1, (592, 222))  # type: ignore[attr-defined]
    last = frames[-1, 60:200].astype(int)
    real, goal = last[:, 20:180].mean(axis=(0, 1)), last[:, 420:580].mean(axis=(0, 1))
    assert np.abs(real - goal).max() < 0.05 * 255, "the episode ends at the goal"
    middle = frames[2, 60:200, 220:380].astype(int).mean(axis=(0, 1))
    start = frames[0, 60:200, 20:180].astype(int).mean(axis=(0, 1))
    assert np.abs(middle - goal).max() < np.abs(start - goal).max(), "what is imagined lies towards the goal"
    assert not (out / "episode_001.mp4").exists()
    with Image.open(out / "landscape.png") as drawn:
        assert drawn.width > 1000


def test_a_goal_image_on_the_way(toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(picture(np.array([0.05, 0.9]))).save(tmp_path / "goal.png")
    Image.fromarray(picture(np.array([0.05, 0.9]), 24)).save(tmp_path / "large.png")
    command = [*toy, "--episodes", "1", "--against", "none", "--set", "subgoal.near=0.03"]
    steps = []
    for more in ([], ["--goal", str(tmp_path / "goal.png")], ["--goal", str(tmp_path / "large.png"), "--resize-goal"]):
        assert main([*command, *more, "--out", str(tmp_path / "out"), "--videos", "0"]) == 0
        steps.append(json.loads((tmp_path / "out" / "results.json").read_text())["episodes"][0]["steps"])
    assert steps[1] > steps[0] + 4, "the way over the corner is longer"
    assert steps[2] == steps[1]
    capsys.readouterr()
    message = error_of([*command, "--goal", str(tmp_path / "large.png")], capsys)
    assert "large.png is 24 x 24 pixels, the frames are 16 x 16: give one of the same size, or add --resize" in message


def test_settings_reach_the_planner(toy: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["planner.elites=5", "energy.discount=0.9", "space.clip=0.02", "env.limit=6", "subgoal.steps=3"]
    command = [*toy, "--episodes", "1", "--out", str(out), "--videos", "0"]
    assert main([*command, *(word for key in words for word in ("--set", key))]) == 0
    found = json.loads((out / "results.json").read_text())
    assert found["settings"]["planner"]["elites"] == 5
    assert found["episodes"][0]["steps"] == 6
    assert found["agents"][0]["success_rate"] == 0.0, "six steps of 0.02 are not enough"
    assert PlannerConfig().samples == 256


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--planner", "cme"], "planner kind 'cme' is unknown, did you mean 'cem'?"),
        (
            ["--energy", "l3"],
            "energy 'l3' is unknown; known: cosine, l1, l2 (or MODULE:FUNCTION, a function of your own)",
        ),
        (["--energy", "nowhere:fn", "--set", "energy.over=last"], "energy 'nowhere:fn': there is no module 'nowhere'"),
        (["--set", "planner.sampels=3"], "unknown config key 'planner.sampels', did you mean 'samples'?"),
        (["--set", "plan.samples=3"], "unknown config key 'plan', did you mean 'planner'?"),
        (["--set", "env.axes=3"], "the environment's actions have 3 axes, the model's 2"),
        (["--set", "env.goal=false"], "the environment shows no goal image: give one"),
        (["--set", "space.frozen.4=0"], "frozen names axis 4, but the actions have axes 0 to 1"),
        (["--set", "space.low=[0]"], "space.low and space.high must have 2 values"),
        (["--against", "randm"], "--against names agent 'randm', did you mean 'random'?"),
        (["--videos", "-1"], "--videos must not be negative, not -1"),
        (["--goal-frame", "3"], "--goal-frame goes with --trajectory, not with --env: leave it out"),
        (["--json"], "--json goes with --trajectory, not with --env: leave it out"),
        (["--axes", "x"], "--axes must be two axis numbers such as 0,1, not 'x'"),
        (["--episodes", "0"], "--episodes must be at least 1, not 0"),
        (["--max-steps", "-1"], "--max-steps must be at least 1, not -1"),
        (["--threads", "0"], "--threads must be at least 1, not 0"),
        (["--context", "0"], "context must be at least 1 frame, not 0"),
        (["--goal", "nowhere.png"], "goal image nowhere.png cannot be read: No such file or directory"),
        (["--trajectory", "x.npz"], "give either --env (act in an environment) or --trajectory"),
        (["--env", "roomz"], "environment 'roomz'"),
        (["--env", "planning.toy:ToyTask", "--against", "simulator"], "ToyTask cannot be simulated from a state"),
    ],
)
def test_errors_of_acting(toy: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error_of([*toy, "--episodes", "1", *more], capsys)


def test_what_cannot_be_written_or_drawn_stops_before_the_first_episode(
    toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.planning.acting.run_episode", lambda *_: pytest.fail("an episode was run"))
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        message = error_of([*toy, "--out", str(place)], capsys)
        assert f"{place} cannot be written to: " in message
        assert message.rstrip().endswith("choose another --out")
    out = ["--out", str(tmp_path / "out")]
    assert "axis 9 cannot be drawn: the axes that move are [0, 1]" in error_of([*toy, *out, "--axes", "0,9"], capsys)
    assert "a landscape needs two different axes, not [1, 1]" in error_of([*toy, *out, "--axes", "1,1"], capsys)


def test_all_agents_keep_to_the_same_actions(toy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    still = ["--set", "space.clip=0", "--episodes", "2", "--against", "random,simulator", "--max-steps", "30"]
    assert main([*toy, *still]) == 0
    lines = capsys.readouterr().out.splitlines()[1:4]
    assert [line.split()[:2] for line in lines] == [["model", "0.0"], ["random", "0.0"], ["simulator", "0.0"]]


# ---- recordings ------------------------------------------------------------------------------------------------------


def test_a_recording_goes_in_and_actions_come_out(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(published(recording, "--goal-frame", "5", "--step", "1", "--json")) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    actions = np.array(report["actions"])
    assert actions.shape == (2, 7)
    assert np.abs(actions[:, :3]).max() <= 0.05 + 1e-6
    assert np.abs(actions[:, 3:6]).max() == 0, "V-JEPA 2-AC plans without turning"
    assert np.abs(actions[:, 6]).max() <= 0.75 + 1e-6
    assert report["energy"] <= report["energy_still"] + 1e-4
    assert report["energy_recorded"] is not None
    assert len(report["best_per_round"]) == 2
    assert main(published(recording, "--goal-frame", "5", "--step", "1")) == 0
    printed = capsys.readouterr().out
    assert f"energy of the plan       {report['energy']:.5f}" in printed
    assert f"energy of the recording  {report['energy_recorded']:.5f}" in printed


def test_the_energy_of_the_recording_is_that_of_a_plain_rollout(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jepa.data.transforms import ClipTransform
    from jepa.types import Batch
    from jepa.world_model import load_world_model

    assert main(published(recording, "--goal-frame", "6", "--step", "2", "--context", "2", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    sizes = json.loads((GOLDEN / "config.json").read_text())
    model = load_world_model(GOLDEN / "checkpoint.pt", **sizes)
    data = np.load(recording)
    pixels = torch.from_numpy(data["frames"]).permute(3, 0, 1, 2)[None]
    latents = model.encode(ClipTransform(model.clip)(Batch(clip=pixels)).clip)
    actions, states = (torch.from_numpy(data[name])[None] for name in ("actions", "states"))
    imagined = model.rollout(latents[:, 1:3], actions[:, 1:4], states[:, 1:3])
    expected = float((imagined[0, -1] - latents[0, 6]).abs().mean())
    assert report["energy_recorded"] == pytest.approx(expected, abs=1e-4)


def test_a_goal_image_for_a_recording(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    goal = tmp_path / "goal.png"
    Image.fromarray(np.load(recording)["frames"][5]).save(goal)
    reports = []
    for more in (["--goal-frame", "5"], ["--goal", str(goal)]):
        assert main(published(recording, *more, "--json")) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0]["actions"] == reports[1]["actions"]
    Image.new("RGB", (40, 40)).save(goal)
    message = error_of(published(recording, "--goal", str(goal)), capsys)
    assert "goal.png is 40 x 40 pixels, the frames are 32 x 32" in message
    assert main(published(recording, "--goal", str(goal), "--resize-goal")) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "with --trajectory give one goal: --goal IMAGE or --goal-frame K"),
        (["--goal-frame", "7"], "--goal-frame 7: "),
        (["--goal-frame", "3", "--context", "0"], "context must be at least 1 frame, not 0"),
        (["--goal-frame", "3", "--out", "x"], "--out goes with --env, not with --trajectory: leave it out"),
        (["--goal-frame", "3", "--max-steps", "5"], "--max-steps goes with --env, not with --trajectory"),
        (["--goal-frame", "3", "--step", "9"], "has frames 0 to 6 at the model's rate"),
        (["--goal-frame", "3", "--step", "1", "--context", "4"], "a context of 4 frames does not end at step 1"),
        (["--goal-frame", "3", "--episode", "2"], "holds episodes 0 to 0, not 2"),
        (["--goal-frame", "3", "--set", "trajectory.states=[none]"], "states have 0 numbers, the model's 7"),
        (["--goal-frame", "3", "--trajectory", "nowhere.npz"], "nowhere.npz does not exist"),
    ],
)
def test_errors_of_recordings(
    recording: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(published(recording, *more), capsys)


def test_an_action_space_of_another_size(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = dict(np.load(recording))
    np.savez(recording, **{**data, "actions": data["actions"][:, :2]})
    message = error_of(published(recording, "--goal-frame", "5"), capsys)
    assert "actions have 2 axes, the model's 7: it was trained on another action space" in message
    with_env = [word for word in published(recording, "--env", "rooms", "--episodes", "1") if word != str(recording)]
    with_env.remove("--trajectory")
    assert "the environment's actions have 2 axes, the model's 7" in error_of(with_env, capsys)


def test_a_model_without_actions(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = GOLDEN.parent / "vjepa2"
    command = ["plan", str(folder / "checkpoint.pt"), "--architecture", str(folder / "config.json")]
    message = error_of([*command, "--trajectory", str(recording), "--goal-frame", "5"], capsys)
    assert "is a vjepa2 model, which predicts no actions' outcome" in message
