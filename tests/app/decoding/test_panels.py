"""Masks, errors and spreads as colours, and decoded clips as panels with their decibels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from app.decoding.colours import mask_frames, over_frames, to_pictures, veil
from app.decoding.panels import by_frame, decoded, error_panel, quality, scores
from evals.pages.drawing import heat


def test_values_become_bytes() -> None:
    pixels = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.2]).view(1, 1, 1, 5).expand(3, 2, 1, 5)
    found = to_pictures(pixels)
    assert (found.shape, found.dtype) == ((2, 1, 5, 3), np.uint8)
    assert found[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_cells_cover_their_pixels() -> None:
    cells = np.zeros((2, 2, 3), dtype=bool)
    cells[1, 0, 2] = True
    found = over_frames(cells, (4, 8, 12))
    wanted = np.zeros((4, 8, 12), dtype=bool)
    wanted[2:, :4, 8:] = True
    assert np.array_equal(found, wanted)
    assert np.array_equal(mask_frames(found)[..., 1], np.where(wanted, 215, 40))


def test_nothing_is_seen_through_the_veil() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 255, (2, 16, 16, 3), dtype=np.uint8) for _ in range(2))
    hidden = np.zeros((2, 16, 16), dtype=bool)
    hidden[1, :8] = True
    assert np.array_equal(veil(one, hidden)[hidden], veil(other, hidden)[hidden])
    assert np.array_equal(veil(one, hidden)[~hidden], one[~hidden])


def test_heat_ends_at_its_top() -> None:
    found = heat(torch.tensor([0.0, 0.1, 0.5, 0.7]).view(1, 1, 4), 0.5)[0, 0].astype(int)
    assert found[0].sum() < 10, "black"
    assert (found[2] == found[3]).all()
    assert found[1].sum() < found[2].sum()


def test_decibels_are_those_of_the_chosen_pixels() -> None:
    truth = torch.full((3, 2, 12, 12), 0.5)
    clip = truth.clone()
    clip[:, 1, :6] += 0.1
    where = torch.zeros(2, 12, 12, dtype=torch.bool)
    where[1, :6] = True
    assert quality(clip, truth, where) == pytest.approx(20.0, abs=1e-4)
    assert quality(clip, truth) == pytest.approx(20.0 + 10 * np.log10(4), abs=1e-4)
    assert by_frame(clip, truth) == [100.0, pytest.approx(20.0 + 10 * np.log10(2), abs=1e-3)]
    (panel,) = decoded("prediction", clip[None], truth, where, "where hidden")
    assert (panel.label, panel.detail) == ("prediction", "20.0 dB where hidden")
    assert np.array_equal(panel.frames, to_pictures(clip))
    assert decoded("dream", clip[None], None, None, "")[0].detail == ""
    assert scores(clip[None], truth, where) == {"psnr": 20.0}


def test_samples_are_shown_beside_their_mean_and_spread() -> None:
    truth = torch.full((3, 1, 12, 12), 0.5)
    clips = torch.stack([truth + amount for amount in (-0.2, -0.1, 0.1, 0.2)])
    panels = decoded("prediction", clips, truth, None, "")
    assert [panel.label for panel in panels] == [
        "prediction, mean of 4", "prediction, sample 1", "prediction, sample 2", "prediction, sample 3",
        "spread of samples",
    ]  # fmt: skip
    assert panels[0].detail == "100.0 dB"
    assert panels[2].detail == "20.0 dB"
    deviation = torch.full((1, 12, 12), float(np.std([-0.2, -0.1, 0.1, 0.2], ddof=1)))
    assert np.array_equal(panels[4].frames, heat(deviation, 0.25))
    found = scores(clips, truth)
    sample = (20.0 + 20.0 - 20 * np.log10(2)) / 2
    assert found == {
        "psnr": 100.0, "psnr_of_a_sample": pytest.approx(sample, abs=1e-3), "psnr_of_the_best": pytest.approx(20.0),
    }  # fmt: skip


def test_the_error_is_that_of_the_mean() -> None:
    truth = torch.full((3, 1, 12, 12), 0.5)
    clips = torch.stack([truth + 0.3, truth - 0.1])
    assert np.array_equal(error_panel(clips, truth).frames, heat(torch.full((1, 12, 12), 0.1), 0.5))
