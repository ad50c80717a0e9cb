"""The game in a world whose dynamics are known: what is dreamt, measured and shown has the right numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from made_game import PlayModel, ToyDecoder, toy_game
from planning.toy import SIDE, ToyTask

from app.playing.game import DecodingConfig, Game, Moment
from app.playing.steering import PlayError
from jepa.planning.search import PlanningError
from jepa.tensorfiles import CheckpointError


def near(first: np.ndarray, second: np.ndarray) -> bool:
    return int(np.abs(first.astype(int) - second.astype(int)).max()) <= 1


def test_a_model_that_knows_the_world_is_never_surprised() -> None:
    game = toy_game()
    start = game.reset(3)
    assert (start.seed, start.step, start.dreamt, start.measured) == (3, 0, 0, None)
    assert start.dream.shape == (SIDE, SIDE, 3)
    assert near(start.dream, start.real)
    moments = [game.step(["right", "down"]) for _ in range(4)]
    for number, moment in enumerate(moments, start=1):
        assert near(moment.dream, moment.real)
        assert near(moment.decoded, moment.real)
        assert moment.measured is not None
        assert moment.measured[:2] == (number, number)
        assert moment.measured.surprise < 1 / 255
        assert moment.measured.still == pytest.approx(0.12 * number, abs=1 / 255)  # two steps of 0.06 on both axes
    assert list(game.curve) == [moment.measured for moment in moments]
    assert set(moments[0].ms) == {"dream", "world", "encoder", "decoder"}
    task = game.task
    assert isinstance(task, ToyTask)
    assert len(task.actions) == 8, "an action is held for two steps of the environment"


def test_strength_reaches_both_worlds() -> None:
    game = toy_game()
    game.reset(3)
    moment = game.step(["right"], strength=0.5)
    assert moment.measured is not None
    assert moment.measured.still == pytest.approx(0.03, abs=1 / 255)  # 0.06 on one of two axes
    assert moment.measured.surprise < 1 / 255
    assert isinstance(game.task, ToyTask)
    np.testing.assert_allclose(game.task.actions[-1], [0.03, 0.0], atol=1e-6)


def test_a_wrong_model_drifts_until_it_wakes() -> None:
    game = toy_game(gain=3.0)
    game.reset(3)
    surprises = [_measured(game.step(["right"])).surprise for _ in range(4)]
    np.testing.assert_allclose(surprises, [0.03, 0.06, 0.09, 0.12], atol=1 / 255)
    woken = game.wake()
    assert (woken.step, woken.dreamt, woken.measured) == (4, 0, None)
    assert near(woken.dream, woken.real)
    model = game.model
    assert isinstance(model, PlayModel)
    latents, actions, states = model.begun[-1]
    assert latents.shape == (1, 3, 1, 2), "a dream begins from the last three frames"
    torch.testing.assert_close(actions, torch.tensor([[[0.06, 0.0]] * 2]))
    assert states is None
    after = _measured(game.step(["right"]))
    assert (after.step, after.dreamt) == (5, 1)
    assert after.surprise == pytest.approx(0.03, abs=1 / 255)
    assert after.still == pytest.approx(0.06, abs=1 / 255), "since the dream began"


def test_the_first_dream_begins_from_one_frame_and_a_reset_is_repeatable() -> None:
    game = toy_game()
    first = game.reset(5)
    game.step(["right"])
    again, other = game.reset(5), game.reset(6)
    np.testing.assert_array_equal(first.real, again.real)
    assert (first.real != other.real).any()
    assert (again.step, len(game.curve)) == (0, 0)
    assert isinstance(game.model, PlayModel)
    assert [latents.shape[1] for latents, _, _ in game.model.begun] == [1, 1, 1]
    assert game.model.begun[0][1].shape == (1, 0, 2)


def test_latent_actions_move_the_dream_alone() -> None:
    game = toy_game(codes=torch.tensor([[0.1, 0.0], [0.0, 0.05]]))
    start = game.reset(3)
    game.step(["0"])
    moment = game.step(["1"])
    assert moment.measured is None
    assert (moment.step, moment.dreamt, len(game.curve)) == (2, 2, 0)
    np.testing.assert_array_equal(moment.real, start.real)
    assert near(moment.decoded, start.real)
    change = moment.dream[0, 0].astype(int) - start.dream[0, 0]
    np.testing.assert_allclose(change, [51, 26, 0], atol=1)  # 2 x 0.1 x 255, 2 x 0.05 x 255
    assert isinstance(game.task, ToyTask)
    assert game.task.actions == []


def test_the_end_of_an_episode() -> None:
    class Ending(ToyTask):
        goes_on = False

    game = Game(PlayModel(), ToyDecoder(), Ending(limit=3))  # type: ignore[arg-type]
    game.reset(0)
    assert not game.step([]).over
    assert game.step([]).over, "in the middle of the second action"
    assert isinstance(game.task, Ending)
    assert game.task.steps == 3
    with pytest.raises(PlayError, match="the episode is over: begin another"):
        game.step([])
    assert not game.reset(0).over
    going = toy_game(limit=1)
    going.reset(0)
    assert not going.step([]).over, "this one may be stepped beyond its end"


def test_frames_share_their_noise_and_settings() -> None:
    decoder = ToyDecoder()
    game = Game(PlayModel(), decoder, ToyTask(), decoding=DecodingConfig(steps=3, guidance=1.5, seed=7))  # type: ignore[arg-type]
    game.reset(0)
    game.step(["right"])
    assert [(asked["steps"], asked["guidance"]) for asked in decoder.asked] == [(3, 1.5)] * 2
    assert len({asked["noise"] for asked in decoder.asked}) == 1
    with pytest.raises(PlayError, match="--steps must be at least 1, not 0"):
        DecodingConfig(steps=0)


def test_states_go_to_the_model() -> None:
    game = Game(PlayModel(state_dim=2), ToyDecoder(), ToyTask())  # type: ignore[arg-type]
    game.reset(3)
    game.step(["down"])
    game.wake()
    assert isinstance(game.model, PlayModel)
    states = game.model.begun[-1][2]
    assert states.shape == (1, 2, 2)
    torch.testing.assert_close(states[0, 1] - states[0, 0], torch.tensor([0.0, 0.12]))


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"decoder": ToyDecoder(fits=False)}, CheckpointError, "decoder toy was made for another encoder than that of"),
        ({"task": ToyTask(axes=3)}, PlayError, "the environment's actions have 3 axes, the model's 2: it was trained"),
        ({"model": PlayModel(state_dim=5)}, PlayError, "the environment's states have 2 numbers, the model's 5"),
    ],
)
def test_parts_that_do_not_fit(parts: dict[str, Any], error: type[ValueError], message: str) -> None:
    given = {"model": PlayModel(), "decoder": ToyDecoder(), "task": ToyTask(), **parts}
    with pytest.raises(error, match=message):
        Game(**given, name="toy").reset(0)


def test_a_frame_that_is_no_picture() -> None:
    class Grey(ToyTask):
        def reset(self, seed: int) -> Any:
            return super().reset(seed)._replace(frame=np.zeros((8, 8), np.uint8))

    with pytest.raises(PlanningError, match=r"the frame of the environment must be uint8 \[H, W, 3\], not uint8"):
        Game(PlayModel(), ToyDecoder(), Grey()).reset(0)  # type: ignore[arg-type]


def _measured(moment: Moment) -> Any:
    assert moment.measured is not None
    return moment.measured
