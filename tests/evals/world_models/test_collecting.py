"""Errors and states of rollouts in a world where every answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from colour_world import ColourModel, recorded, seer, write_colours

from evals.world_models.collecting import (
    Frames,
    Windows,
    choose_horizons,
    collect,
    distance,
    fold,
    folded_grid,
    look_ahead,
    shrunk,
    starts_of,
)
from evals.world_models.opening import Seer, check_widths, state_names
from evals.world_models.rows import by_episode, decode, prediction_rows
from jepa.config import ConfigError
from jepa.data.batches import Failure
from jepa.types import TokenGrid

READ = {"trained": lambda _, latents: latents[0].flatten(1), "pixels": lambda frames, _: shrunk(frames[0])}


def seen(
    seer: Seer, fit: Path, test: Path, windows: int = 3, batch_size: int = 4, split: slice = slice(None)
) -> tuple[Frames, Frames, Windows]:
    """``split``: of one folder's episodes those to report on, the others are for ``fit``."""
    failures: list[Failure] = []
    tested = recorded(test)[split]
    learned = [one for one in recorded(fit) if fit != test or one.number not in {t.number for t in tested}]
    known = collect(learned or tested, seer, READ, failures)
    found = look_ahead(tested, seer, READ, known.mean, (1, 2, 4), windows, "l1", batch_size, failures)
    assert failures == []
    return known, *found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("colours")
    return write_colours(root / "fit", seed=1), write_colours(root / "test", seed=2)


def test_a_perfect_model_has_no_error_and_its_predictions_hold_the_state(folders: tuple[Path, Path]) -> None:
    fit, test, windows = seen(seer(), *folders)
    rows = prediction_rows(windows, reach=3)
    assert [(row["horizon"], row["beyond"]) for row in rows] == [(1, False), (2, False), (4, True)]
    for row in rows:
        assert row["error"] < 1e-6
        assert row["copy"] > 0.005
        assert row["ratio"] < 1e-3
    decoded = decode(fit, test, windows, ["x", "y"])
    assert decoded is not None
    assert [part["encoder"] for part in decoded.decoding] == ["trained", "pixels"]
    assert decoded.decoding[0]["states"] == pytest.approx({"x": 1, "y": 1}, abs=1e-5)
    for part in decoded.ahead:
        assert part["predicted"]["r2"] == pytest.approx(1, abs=1e-4)
        assert part["encoded"]["r2"] == pytest.approx(1, abs=1e-4)
        assert part["copied"]["r2"] < 0.999
    torch.testing.assert_close(decoded.read, decoded.states.double(), atol=1e-4, rtol=0)


def test_baselines_by_hand(folders: tuple[Path, Path]) -> None:
    """The mean latents are those of training episodes, the copy is the last given frame, errors are by window."""
    fit, test = folders
    known, frames, windows = seen(seer(), fit, test, windows=2, batch_size=5)
    colours = [np.load(path)["frames"][:, 0, 0, :2] / 255 for path in sorted(fit.glob("*.npz"))]
    mean = np.concatenate(colours).mean(axis=0)
    np.testing.assert_allclose(known.mean[0].numpy(), mean, rtol=1e-5)
    copied, apart = [], []
    for path in sorted(test.glob("*.npz")):
        places = np.load(path)["frames"][:, 0, 0, :2] / 255
        for start in (0, 12 - 5):
            copied.append(np.abs(places[start + 2] - places[start]).mean())
            apart.append(np.abs(places[start + 2] - mean).mean())
    np.testing.assert_allclose(windows.errors[2]["copy"].numpy(), copied, rtol=1e-4)
    np.testing.assert_allclose(windows.errors[2]["mean"].numpy(), apart, rtol=1e-4)
    assert windows.episodes.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert len(frames.episodes) == 72


def test_a_model_that_copies_is_the_copy_baseline_exactly(folders: tuple[Path, Path]) -> None:
    _, _, windows = seen(seer(gain=0.0), *folders)
    for row in prediction_rows(windows, reach=9):
        assert row["error"] == row["copy"]
        assert row["error_interval"] == row["copy_interval"]
        assert (row["ratio"], row["ratio_interval"]) == (1, [1, 1])
    _, _, half = seen(seer(gain=0.5), *folders)
    for row in prediction_rows(half, reach=9):
        assert row["ratio"] == pytest.approx(0.5, rel=1e-4)
        assert row["ratio_interval"] == pytest.approx([0.5, 0.5], rel=1e-4), "draws of error and copy are paired"


def test_context_and_batches_do_not_change_a_model_without_memory(folders: tuple[Path, Path]) -> None:
    one = seen(seer(gain=0.5), *folders, batch_size=1)[2]
    many = seen(seer(gain=0.5), *folders, batch_size=64)[2]
    for h, errors in one.errors.items():
        for name, values in errors.items():
            torch.testing.assert_close(values, many.errors[h][name])
    late = seen(seer(gain=0.5, context=3), *folders, windows=1)[2]
    early = seen(seer(gain=0.5), *folders, windows=12)[2]
    rows = [k for k in range(len(early.episodes)) if k % 8 == 2]  # 8 windows in each of 12 frames; begun at frame 2
    torch.testing.assert_close(late.errors[4]["error"], early.errors[4]["error"][rows])


def test_shuffled_states_cannot_be_read(tmp_path: Path) -> None:
    folder = write_colours(tmp_path, episodes=40, states="shuffled")
    decoded = decode(*seen(seer(), folder, folder, split=slice(20, None)), ["x", "y"])
    assert decoded is not None
    assert abs(decoded.decoding[0]["r2"]) < 0.1
    assert all(abs(part["predicted"]["r2"]) < 0.25 for part in decoded.ahead)


def test_data_without_states_or_with_still_ones_is_not_decoded(tmp_path: Path) -> None:
    for kind in ("none", "still"):
        folder = write_colours(tmp_path / kind, states=kind)
        fit, test, windows = seen(seer(), folder, folder)
        assert decode(fit, test, windows, ["x", "y"]) is None
        assert windows.errors[1]["error"].max() < 1e-6
    assert fit.states is not None


def test_horizons() -> None:
    lengths = {"a": 12, "b": 12, "c": 40}
    assert choose_horizons((), lengths, 1) == [1, 2, 4, 8]
    assert choose_horizons((), lengths, 5) == [1, 2, 4]
    assert choose_horizons((), {"a": 1000}, 1) == [1, 2, 4, 8, 16, 32, 64]
    assert choose_horizons((3, 1, 3), lengths, 1) == [1, 3]
    message = (
        "horizon 50 after 2 given frames needs episodes of 52 frames at the model's rate, but the longest, c, has 40"
    )
    with pytest.raises(ConfigError, match=f"{message}: lower world_model.horizons"):
        choose_horizons((50,), lengths, 2)
    with pytest.raises(ConfigError, match="horizon 1 after 40 given frames needs episodes of 41 frames"):
        choose_horizons((), lengths, 40)
    with pytest.raises(ConfigError, match="no test episode can be read"):
        choose_horizons((), {}, 1)
    assert starts_of(7, 3) == [0, 4, 7]
    assert starts_of(1, 4) == [0, 1]
    assert (starts_of(0, 4), starts_of(-1, 4)) == ([0], [])


def test_folding_averages_neighbouring_tokens() -> None:
    latents = torch.arange(2 * 16 * 3.0).view(2, 16, 3)
    grid = TokenGrid(1, 4, 4)
    assert torch.equal(fold(latents, grid), latents.flatten(1))
    assert folded_grid(grid, 3, most=12) == (2, 2)
    found = fold(latents, grid, most=12).view(2, 3, 2, 2)
    corner = latents.view(2, 4, 4, 3)[:, :2, 2:].mean(dim=(1, 2))
    torch.testing.assert_close(found[:, :, 0, 1], corner)
    assert folded_grid(TokenGrid(1, 2, 8), 1, most=8) == (2, 4)
    assert folded_grid(grid, 100, most=12) == (1, 1)


def test_small_parts() -> None:
    values, episodes = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([4, 4, 7])
    assert by_episode(values, episodes).tolist() == [2, 5]
    one, other = torch.zeros(2, 3, 4), torch.full((2, 3, 4), 2.0)
    assert distance(one, other, "l1").tolist() == [2, 2]
    assert distance(one, other, "mse").tolist() == [4, 4]
    frames = torch.rand(3, 2, 32, 8)
    assert shrunk(frames).shape == (2, 3 * 16 * 8)
    torch.testing.assert_close(shrunk(frames, 1), frames.mean(dim=(2, 3)).T)


def test_data_of_other_widths(folders: tuple[Path, Path]) -> None:
    episodes = recorded(folders[0])
    assert state_names(episodes, 2) == ["x", "y"]
    assert state_names(episodes, 3) == ["state 0", "state 1", "state 2"]
    model = ColourModel(state_dim=5)
    with pytest.raises(ConfigError, match="has states of 2 numbers, the model m takes 5"):
        check_widths("m", model, episodes)  # type: ignore[arg-type]
    model.action_dim = 7
    with pytest.raises(ConfigError, match="has actions of 2 numbers, the model m of 7: it was trained on another"):
        check_widths("m", model, episodes)  # type: ignore[arg-type]
