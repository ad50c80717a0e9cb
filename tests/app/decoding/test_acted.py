"""Rollouts, plans and their pictures in worlds whose latents are colours: the true outcome is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_decoding import ColourDecoder, Colours, Toy
from colour_world import write_colours
from support import error_of

from app.cli import main
from app.decoding.acted import read_actions
from jepa.config import ConfigError
from jepa.data.trajectories.opening import open_trajectories
from jepa.tensorfiles import CheckpointError


class World:
    """What the commands load: changed by the tests."""

    def __init__(self) -> None:
        self.model: Any = Colours()
        self.decoder = ColourDecoder(self.model.clip)

    def use(self, model: Any, generative: bool = False) -> None:
        self.model, self.decoder = model, ColourDecoder(model.clip, generative=generative)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    found = World()

    def load(name: str) -> Any:
        if name != "toy":
            raise CheckpointError(f"{name} is no toy")
        return found.model

    monkeypatch.setattr("app.decoding.bench.load_decoder", lambda name: found.decoder)
    monkeypatch.setattr("app.decoding.bench.load_world_model", load)
    return found


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write_colours(tmp_path / "colours", episodes=5, frames=12)


def decode(kind: str, *words: str, out: Path) -> list[dict[str, Any]]:
    assert main(["decode", "painter", kind, *words, "--out", str(out), "--device", "cpu"]) == 0
    for suffix in ("mp4", "gif", "png"):
        assert (out / f"{kind}.{suffix}").stat().st_size > 500
    clips: list[dict[str, Any]] = json.loads((out / f"{kind}.json").read_text())["clips"]
    return clips


# ---- rollout ---------------------------------------------------------------------------------------------------------


def test_a_perfect_model_imagines_what_was_recorded(world: World, recording: Path, tmp_path: Path) -> None:
    clips = decode("rollout", str(recording), "--horizon", "6", "--step", "2", out=tmp_path / "out")
    assert [Path(clip["name"]).name for clip in clips] == [f"episode_0000{k}.npz" for k in (0, 2, 4)]
    for clip in clips:
        assert clip["seen_frames"] == 1
        assert len(clip["psnr_by_frame"]) == 7
        assert min(clip["psnr_by_frame"]) > 99, "the same pixels"
        assert clip["imagined"]["psnr"] > 99
        assert clip["copy_last"]["psnr"] < 60
    assert world.decoder.checked == ["toy"]


def test_a_model_that_copies_is_as_good_as_the_last_frame(world: World, recording: Path, tmp_path: Path) -> None:
    world.use(Colours(gain=0.0))
    words = ("--context", "3", "--clips", "2", "--horizon", "4")
    for clip in decode("rollout", str(recording), *words, out=tmp_path / "out"):
        assert clip["seen_frames"] == 3
        assert clip["imagined"]["psnr"] == pytest.approx(clip["copy_last"]["psnr"], abs=1e-3)
        assert clip["true_latents"]["psnr"] > 99
    (first, actions, _), *_ = world.model.begun
    episode = open_trajectories(str(recording)).episode(0, world.model.clip)
    assert first.shape == (1, 3, 1, 2)
    np.testing.assert_allclose(actions[0].numpy(), episode.actions[:2], atol=1e-6)


def test_given_actions_lead_where_they_say(world: World, recording: Path, tmp_path: Path) -> None:
    np.savetxt(tmp_path / "up.csv", [[0.0, 0.02]] * 5, delimiter=",")
    words = (str(recording), "--actions", str(tmp_path / "up.csv"), "--clips", "1")
    (clip,) = decode("rollout", *words, out=tmp_path / "out")
    assert clip["moved"] == pytest.approx(0.05, abs=1e-5), "0.1 in one of two numbers"


def test_samples_of_a_generative_decoder_are_repeatable(world: World, recording: Path, tmp_path: Path) -> None:
    world.use(Colours(), generative=True)
    words = (str(recording), "--samples", "3", "--clips", "1")
    found = [decode("rollout", *words, "--seed", seed, out=tmp_path / name) for name, seed in zip("abc", "001")]
    assert found[0] == found[1]
    assert found[0] != found[2]
    assert set(found[0][0]["imagined"]) == {"psnr", "psnr_of_a_sample", "psnr_of_the_best"}
    assert (tmp_path / "a/rollout.png").read_bytes() == (tmp_path / "b/rollout.png").read_bytes()


def test_actions_from_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6.0).reshape(3, 2))
    (tmp_path / "b.csv").write_text("0,1\n2,3\n4,5\n")
    (tmp_path / "c.csv").write_text("0,1\n2,up\n")
    for name in ("a.npy", "b.csv"):
        assert read_actions(str(tmp_path / name), 2).tolist() == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(
        ConfigError, match=r"a.npy must hold a row of 3 finite numbers for each step, but holds \[3, 2\]"
    ):
        read_actions(str(tmp_path / "a.npy"), 3)
    with pytest.raises(ConfigError, match=r"c.csv cannot be read as numbers"):
        read_actions(str(tmp_path / "c.csv"), 2)
    with pytest.raises(ConfigError, match=r"none.npy cannot be read as numbers"):
        read_actions(str(tmp_path / "none.npy"), 2)


# ---- plan ------------------------------------------------------------------------------------------------------------

QUICK = ["--set", "planner.samples=64", "--set", "planner.elites=8", "--horizon", "6", "--set", "space.clip=0.05"]


def test_a_plan_between_two_recorded_frames(world: World, recording: Path, tmp_path: Path) -> None:
    for clip in decode("plan", str(recording), *QUICK, "--step", "1", out=tmp_path / "out"):
        assert clip["energy"] < 0.3 * clip["energy_still"]
        assert len(clip["actions"]) == 6
        towards = clip["psnr_to_the_goal"]
        assert towards["imagined"] > towards["first_frame"] + 6


def test_a_plan_that_is_carried_out(world: World, tmp_path: Path) -> None:
    world.use(Toy())
    words = ("--env", "planning.toy:SimulatedTask", "--clips", "2", "--horizon", "8", "--set", "energy.over=sum")
    for clip in decode("plan", *words, out=tmp_path / "out"):
        assert clip["imagined"]["psnr"] > 50, "but for the rounding of frames"
        assert len(clip["psnr_by_frame"]) == 9
        assert clip["psnr_to_the_goal"]["imagined"] > 30


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inpaint"], "painter takes latents of single frames, as world models make them, which have no hidden places"),
        (["forecast"], "use rollout, plan or codes"),
        (["rollout", "--mask", "0"], "--mask is for inpaint, not for rollout: leave it out"),
        (["rollout", "--samples", "2"], "--samples: decoder painter is deterministic and draws no samples: leave it"),
        (["rollout", "--context", "0"], "--context must be a number of frames of at least 1 here, not '0'"),
        (["rollout", "--context", "2 frames"], "--context must be a number of frames of at least 1 here, not '2 fra"),
        (["rollout", "--step", "11"], "has frames 0 to 11 at the model's rate: nothing follows --step 11"),
        (["rollout", "--clips", "0"], "--clips must be at least 1, not 0"),
        (["rollout", "--horizon", "0"], "--horizon must be at least 1, not 0"),
        (["rollout", "--fps", "0"], "--fps must be positive, not 0"),
        (["rollout", "--model", "other"], "other is no toy"),
        (["plan", "--goal-frame", "30"], "--goal-frame 30: "),
        (["plan", "--env", "rooms"], "--env rooms shows its own frames: leave "),
        (["plan", "--set", "planner.sample=3"], "did you mean 'samples'"),
    ],
)  # fmt: skip
def test_wrong_words(
    words: list[str], message: str, world: World, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    kind, *rest = words
    line = ["decode", "painter", kind, str(recording), *rest, "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert message in error_of(line, capsys)
    assert not list((tmp_path / "out").glob("*")), "nothing is written"


def test_a_missing_model_is_the_one_that_the_decoder_was_made_for(
    world: World, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    world.decoder.model = "gone"
    line = ["decode", "painter", "rollout", str(recording), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert "gone is no toy (decoder painter was trained on it; --model names another place)" in error_of(line, capsys)


def test_actions_and_states_of_other_widths(
    world: World, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    rest = [str(recording), "--out", str(tmp_path / "out"), "--device", "cpu"]
    world.use(Colours(state_dim=3))
    message = error_of(["decode", "painter", "rollout", *rest], capsys)
    assert "states have 2 numbers, the model's 3" in message
    world.model.state_dim, world.model.action_dim = 0, 4
    assert "actions have 2 numbers, the model's 4" in error_of(["decode", "painter", "rollout", *rest], capsys)
    assert "actions have 2 axes, the model's 4" in error_of(["decode", "painter", "plan", *rest], capsys)


def test_an_output_that_cannot_be_written_stops_at_once(
    world: World, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    (tmp_path / "file").write_text("")
    world.model = None  # which is not even asked for
    line = ["decode", "painter", "rollout", str(recording), "--out", str(tmp_path / "file"), "--device", "cpu"]
    assert "file cannot be written to: File exists; choose another --out" in error_of(line, capsys)
