"""Scores of decoded clips against slow ones, on clips whose truth is known."""

from __future__ import annotations

import pytest
import torch
from support import SMALL_CLIP, small_encoder
from torch import Tensor

from evals import pixel_metrics as pm
from evals.reconstruction.predicting import FORECAST, MASKED, Hidden
from evals.reconstruction.rows import Judge, digests, moving_psnr, set_distances, table
from evals.reconstruction.shown import Shown, normalise
from evals.tracking import Scene
from jepa.types import TokenGrid

GRID = TokenGrid(2, 2, 2)


def square(place: Tensor) -> Tensor:
    """A bright square of 8 x 8 pixels about ``place`` (x, y) on black, ``[32, 32]``."""
    x, y = (place * 32).long().tolist()
    picture = torch.zeros(32, 32)
    picture[y - 4 : y + 4, x - 4 : x + 4] = 1
    return picture


@pytest.fixture(scope="module")
def world() -> tuple[Shown, list[Scene]]:
    """Six clips of a square that walks to the right, a pixel at a time; its middle is that of the square."""
    pixels, scenes = [], []
    for number in range(6):
        places = torch.tensor([[(7 + number + frame) / 32, (10 + 2 * number) / 32] for frame in range(4)])
        frames = torch.stack([square(place) for place in places])
        pixels.append((frames * 255).byte()[..., None].expand(-1, -1, -1, 3))
        scenes.append(Scene(places, torch.zeros(3, 4, 32, 32)))
    return Shown(torch.stack(pixels), torch.arange(6), ["x"] * 6, SMALL_CLIP, {}), scenes


def test_the_truth_is_perfect_and_black_is_not(world: tuple[Shown, list[Scene]]) -> None:
    shown, scenes = world
    judge = Judge(shown, small_encoder(), scenes, 0)
    perfect = judge.scored("target", "trained", shown.values, None, 3, 8, 99).row
    assert (perfect.psnr, perfect.moving, perfect.feature, perfect.near) == (100.0, 100.0, 0.0, 1.0)
    assert perfect.ssim == pytest.approx(1.0)
    assert perfect.apart == pytest.approx(0.0, abs=0.01)
    assert (perfect.layer, perfect.tokens, perfect.parameters, perfect.frames) == (3, 8, 99, [])
    assert {"frechet": perfect.frechet, "kernel": perfect.kernel} == judge.floor
    black = judge.scored("guess", "black", lambda rows: torch.zeros(len(rows), 3, 4, 32, 32)).row
    assert black.psnr == pytest.approx(-10 * torch.tensor(64 / 1024).log10().item(), abs=1e-4)
    assert (black.near, black.apart) == (0.0, None), "nothing is seen anywhere"
    still = judge.scored("guess", "still", lambda rows: shown.values(rows)[:, :, :1].expand(-1, -1, 4, -1, -1)).row
    assert still.near == 1.0, "three pixels are less than a patch of 16"
    assert still.apart == pytest.approx(1 / 16, abs=0.01), "the lower of both middle ones, of 0, 1, 2, 3 pixels"


def test_only_hidden_pixels_count(world: tuple[Shown, list[Scene]]) -> None:
    shown, scenes = world
    judge, hidden = Judge(shown, small_encoder(), scenes, 0), Hidden(FORECAST, torch.arange(4).repeat(6, 1), GRID)

    def half(rows: Tensor) -> Tensor:
        values = shown.values(rows)
        values[:, :, :2] = torch.nan  # of what was seen nobody asks
        values[:, :, 3] *= 0.5
        return values

    scored = judge.scored("predicted", "trained", half, hidden)
    row = scored.row
    assert row.psnr == pytest.approx(float(scored.psnr.mean()))
    assert len(scored.psnr) == 6
    dim = -10 * torch.tensor(0.25 * 64 / 1024).log10().item()
    assert row.psnr == pytest.approx(dim + 10 * torch.tensor(2.0).log10().item(), abs=1e-4)
    assert [frame["frame"] for frame in row.frames] == [2, 3]
    assert [frame["psnr"] for frame in row.frames] == pytest.approx([100.0, dim], abs=1e-4)
    assert [frame["near"] for frame in row.frames] == [1.0, 1.0]
    assert row.throughout == 1.0
    ids, rows = hidden.ids(torch.arange(6)), torch.arange(6)
    ready = normalise(torch.cat((shown.values(rows)[:, :, :2], half(rows)[:, :, 2:]), dim=2), shown.clip)
    expected = pm.feature_distance(small_encoder(), ready, shown.normalised(rows), ids).mean()
    assert row.feature == pytest.approx(float(expected), abs=1e-5)


def test_near_in_every_frame_is_less_than_near_in_each(world: tuple[Shown, list[Scene]]) -> None:
    """Of six clips the first two lose the object in the first hidden frame, and another one in the second."""
    shown, scenes = world
    judge, hidden = Judge(shown, small_encoder(), scenes, 0), Hidden(FORECAST, torch.arange(4).repeat(6, 1), GRID)

    def lost(rows: Tensor) -> Tensor:
        values = shown.values(rows)
        for clip, frame in ((0, 2), (1, 2), (5, 3)):
            values[rows == clip, :, frame] = 0
        values[:, :, 0] = 0  # what was seen does not count
        return values

    row = judge.scored("predicted", "trained", lost, hidden).row
    assert [frame["near"] for frame in row.frames] == pytest.approx([4 / 6, 5 / 6])
    assert row.throughout == pytest.approx(3 / 6)
    assert judge.scored("target", "trained", lost).row.throughout is None, "only of forecasts"
    assert Judge(shown, small_encoder(), None, 0).scored("predicted", "x", lost, hidden).row.throughout is None


def test_objects_count_where_they_are_hidden(world: tuple[Shown, list[Scene]]) -> None:
    """Only the right half is hidden, and the square gets there in none of the clips' first frames."""
    shown, scenes = world
    left = torch.tensor([0, 2, 4, 6]).repeat(6, 1)
    judge, hidden = Judge(shown, small_encoder(), scenes, 0), Hidden(MASKED, left, GRID)
    row = judge.scored("guess", "black", lambda rows: torch.zeros(len(rows), 3, 4, 32, 32), hidden).row
    assert row.near is None, "the middle of the square is never in the hidden half"
    whole = judge.scored("guess", "black", lambda rows: torch.zeros(len(rows), 3, 4, 32, 32)).row
    assert whole.near == 0.0
    assert row.frames == []


def test_pixels_past_which_something_moves(world: tuple[Shown, list[Scene]]) -> None:
    shown, _ = world
    true = shown.values(torch.arange(2))
    made = true.clone()
    made[:, :, :, 30] += 0.1  # far from the square
    everywhere = torch.ones(2, 1, 4, 32, 32, dtype=torch.bool)
    assert moving_psnr(made, true, everywhere).tolist() == [100.0, 100.0]
    made[:, :, :, 10, 8] = 0.5  # always within the square of the first clip: it stays white
    assert moving_psnr(made, true, everywhere)[0] == 100.0
    made[:, :, :, 10, 12] = 0.5  # where its edge goes
    assert moving_psnr(made, true, everywhere)[0] < 40
    still = true[:, :, :1].expand(-1, -1, 4, -1, -1)
    assert moving_psnr(still, still, everywhere).isnan().all()


def test_digests_tell_what_was_judged() -> None:
    mask = torch.rand(4, 1, 2, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    mask[2] = mask[0]
    found = digests(mask)
    assert found.dtype == torch.int64
    assert found[0] == found[2]
    assert len(set(found.tolist())) == 3
    assert torch.equal(digests(mask[[3, 1]]), found[[3, 1]]), "of the clip alone"
    whole = digests(torch.ones(1, 1, 2, 8, 8, dtype=torch.bool))
    assert whole != digests(torch.ones(1, 1, 2, 4, 16, dtype=torch.bool)), "as many pixels, another shape"


def test_set_distances_are_of_different_clips() -> None:
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    found = set_distances(features, features + 5)
    assert found["frechet"] == pytest.approx(pm.frechet_distance(features[:4], features[4:8] + 5))
    assert found["kernel"] == pytest.approx(pm.kernel_distance(features[:4], features[4:8] + 5))
    assert set_distances(features[:3], features[:3]) == {"frechet": None, "kernel": None}


def test_the_table_names_what_stands_in_it(world: tuple[Shown, list[Scene]]) -> None:
    shown, scenes = world
    judge = Judge(shown, small_encoder(), scenes, 0)
    text = table([judge.scored("target", "trained", shown.values, None, None, 8, 99).row], judge.floor)
    assert "| target | trained | – | 8 | 100.00 [100.00, 100.00] | 100.00 | 1.000 | 0.000 |" in text
    assert "near: per cent of frames" in text
    assert "Masked places" not in text
