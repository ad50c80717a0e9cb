"""Hidden places, guesses against slow ones, and predictions that know the seen pixels alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny_settings, write_clips
from torch import Tensor

from evals.features.representations import encoder_hash
from evals.physics import untrained
from evals.reconstruction.predicting import (
    FORECAST,
    MASKED,
    Expecting,
    Hidden,
    carried,
    expected,
    fit_predictor,
    guesses,
    hide,
    open_expecting,
    token_of,
    training_mean,
)
from evals.reconstruction.shown import Shown, normalise, read
from evals.task_configs import ReconstructionTask
from jepa.config import from_dict
from jepa.data.settings import eval_options
from jepa.data.source_config import SourceConfig
from jepa.data.sources import open_source
from jepa.data.transforms import to_values
from jepa.distributed import Run
from jepa.masks import CausalConfig
from jepa.objectives.base import MEASURES
from jepa.train import TrainConfig, fit
from jepa.types import ClipConfig, TokenGrid

CPU = Run(torch.device("cpu"), "fp32")
GRID = TokenGrid(2, 4, 4)
TASK = ReconstructionTask(predictor_steps=30, batch_size=6, learning_rate=3e-3)


@pytest.fixture(scope="module")
def expecting(tmp_path_factory: pytest.TempPathFactory) -> Expecting:
    path = tmp_path_factory.mktemp("run")
    fit(from_dict(TrainConfig, tiny_settings(path, steps=1)))
    found = open_expecting(str(path / "run"))
    assert isinstance(found, Expecting)
    return found


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    path = write_clips(tmp_path_factory.mktemp("clips") / "clips.npz", 6)
    clip = ClipConfig(num_frames=4, frame_step=1, crop_size=32)
    return read(open_source(SourceConfig(path=str(path)), eval_options(clip)), clip, 4, 0)


def test_clips_are_read_as_they_are(shown: Shown) -> None:
    assert shown.pixels.shape == (6, 4, 32, 32, 3)
    rows = torch.tensor([4, 1])
    assert torch.equal(shown.values(rows)[0, :, 2].movedim(0, -1) * 255, shown.pixels[4, 2].float())
    again = to_values(normalise(shown.values(rows), shown.clip), shown.clip)
    assert torch.allclose(again, shown.values(rows), atol=1e-6)


def test_hidden_pixels_are_those_of_hidden_tokens(expecting: Expecting) -> None:
    hidden = hide(MASKED, expecting, GRID, 5, TASK)
    rows = torch.tensor([3, 0])
    mask = hidden.pixels(rows, 4, 32, 32)
    assert mask.shape == (2, 1, 4, 32, 32)
    for place, row in enumerate(rows.tolist()):
        seen = set(hidden.context_ids[row].tolist())
        for token in range(GRID.size):
            t, h, w = (int(k) for k in GRID.coordinates(torch.tensor([token]))[0])
            cell = mask[place, 0, 2 * t : 2 * t + 2, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8]
            assert bool(cell.all()) == bool(cell.any()) == (token not in seen)
    assert torch.equal(hide(MASKED, expecting, GRID, 5, TASK).context_ids, hidden.context_ids), (
        "the same for every model"
    )
    later = hide(FORECAST, expecting, GRID, 3, TASK)
    assert later.context_ids.tolist() == [list(range(16))] * 3
    assert later.ids(torch.tensor([2])).tolist() == [list(range(16, 32))]


def test_forecasts_have_the_mask_token_of_a_causal_family(expecting: Expecting) -> None:
    first, *_ = expecting.families
    causal = expecting._replace(families=(first, CausalConfig(), CausalConfig()))
    for asked in (0, 1):
        task = replace(TASK, mask_token=asked)
        assert token_of(FORECAST, causal, task) == 1
        assert token_of(MASKED, causal, task) == asked
        assert [token_of(name, expecting, task) for name in (MASKED, FORECAST)] == [asked, asked]


def slow_carried(true: Tensor, seen: Tensor, otherwise: Tensor) -> Tensor:
    found = otherwise.clone()
    for b, t, y, x in np.ndindex(len(true), *true.shape[2:]):
        known = [k for k in range(true.shape[2]) if seen[b, 0, k, y, x]]
        before = [k for k in known if k <= t]
        if known:
            found[b, :, t, y, x] = true[b, :, before[-1] if before else known[0], y, x]
    return found


def test_guesses_agree_with_slow_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(2, 3, 5, 2, 3, generator=generator)
    seen = torch.rand(2, 1, 5, 2, 3, generator=generator) > 0.6
    seen[0, 0, :, 0, 0] = False
    otherwise = torch.full_like(true, 0.25)
    found = carried(true, seen, otherwise)
    assert torch.equal(found, slow_carried(true, seen, otherwise))
    assert (found[0, :, :, 0, 0] == 0.25).all()


def test_guesses_of_clips(expecting: Expecting, shown: Shown) -> None:
    mean = training_mean(shown, batch=4)
    assert torch.allclose(mean, shown.values(torch.arange(6)).mean(dim=(0, 2)), atol=1e-5)
    rows, hidden = torch.tensor([5, 2]), hide(FORECAST, expecting, GRID, 6, TASK)
    true, found = shown.values(rows), guesses(shown, hidden, mean, rows)
    assert torch.allclose(found["mean frame"][:, :, 3], true[:, :, :2].mean(dim=2), atol=1e-6)
    assert torch.equal(found["copy last"][:, :, 2:], true[:, :, 1:2].expand(-1, -1, 2, -1, -1))
    assert torch.equal(found["training mean"][1, :, 3], mean)
    never = Hidden(MASKED, torch.arange(16)[None].repeat(6, 1), TokenGrid(1, 8, 4))  # the upper half is seen
    lower = guesses(shown, never, mean, rows)["mean frame"][0, :, 1, 16:]
    assert torch.equal(lower, mean[:, 16:]), "what is never seen has the training mean"


def test_predictions_know_nothing_of_hidden_pixels(expecting: Expecting, shown: Shown) -> None:
    hidden, rows = hide(MASKED, expecting, GRID, 6, TASK), torch.arange(3)
    mask = hidden.pixels(torch.arange(6), 4, 32, 32)[:, 0, ..., None]
    spoiled = replace(shown, pixels=torch.where(mask, 255 - shown.pixels, shown.pixels))
    one, other = (expected(expecting, clips, hidden, 0, CPU)(rows) for clips in (shown, spoiled))
    assert one.shape == (3, GRID.size, 24)
    assert torch.equal(one, other)
    ids = hidden.ids(rows)
    predicted = expecting.parts.predict(shown.normalised(rows), hidden.context_ids[rows], ids, 0)
    assert torch.allclose(one.gather(1, ids[..., None].expand(-1, -1, 24)), predicted, atol=1e-5)


def test_only_the_predictor_learns(expecting: Expecting, shown: Shown) -> None:
    """Of the random pipeline: its error falls, its encoder stays, and no gradient is left behind."""
    parts = untrained(expecting.parts, 1)
    own, before = expecting._replace(parts=parts), encoder_hash(parts.target_encoder)
    hidden, rows = hide(MASKED, expecting, GRID, 6, TASK), torch.arange(6)
    ids = hidden.ids(rows)[..., None].expand(-1, -1, 24)

    def error() -> float:
        targets = parts.targets(shown.normalised(rows)).gather(1, ids)
        return float((expected(own, shown, hidden, 0, CPU)(rows).gather(1, ids) - targets).abs().mean())

    first = error()
    fit_predictor(own, shown, TASK, CPU)
    assert error() < 0.97 * first
    assert encoder_hash(parts.target_encoder) == before
    for module in (parts.target_encoder, parts.context_encoder, parts.predictor):
        assert not any(p.requires_grad for p in module.parameters())
    assert all(p.grad is None for p in parts.target_encoder.parameters())


@pytest.mark.parametrize("loss", ["l1", "smooth_l1", "mse"])
def test_the_random_encoders_predictor_learns_by_the_models_own_loss(
    expecting: Expecting, shown: Shown, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def watched(name: str, measure: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda predicted, wanted: asked.append(name) or measure(predicted, wanted)

    for name, measure in list(MEASURES.items()):
        monkeypatch.setitem(MEASURES, name, watched(name, measure))
    own = expecting._replace(parts=untrained(expecting.parts, 1), loss=loss)
    fit_predictor(own, shown, replace(TASK, predictor_steps=1), CPU)
    assert set(asked) == {loss}
    assert expecting.loss == "l1", "that of the fixture's run"


def test_models_without_a_predictor_say_why(tmp_path: Path, expecting: Expecting) -> None:
    assert "timm:resnet18 has no predictor" in str(open_expecting("timm:resnet18"))
    settings = tiny_settings(tmp_path, steps=1)
    settings["objective"] = {"kind": "pixels", "decoder": {"embed_dim": 24, "depth": 1, "num_heads": 2}}
    fit(from_dict(TrainConfig, settings))
    assert "objective 'pixels' has no predictor of latents" in str(open_expecting(str(tmp_path / "run")))
    assert [family.kind for family in expecting.families] == ["multiblock", "multiblock"]
    assert replace(TASK, mask_token=9).mask_token == 9, "more than there are families means the last one"
    assert [token_of(name, expecting, replace(TASK, mask_token=9)) for name in (MASKED, FORECAST)] == [1, 1]
    last = hide(MASKED, expecting, GRID, 2, replace(TASK, mask_token=9))
    assert torch.equal(last.context_ids, hide(MASKED, expecting, GRID, 2, replace(TASK, mask_token=1)).context_ids)
