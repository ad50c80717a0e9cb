"""Surprise over a video: against numbers worked out by hand, and, by a model trained here, at splices and reversals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import tiny_settings
from torch import Tensor, nn

import jepa
from jepa.config import from_dict
from jepa.models.encoder import EncoderConfig
from jepa.models.predictor import PredictorConfig
from jepa.predictive import Predictive, load_predictive
from jepa.surprise_curve import SurpriseCurve
from jepa.train import TrainConfig, fit
from jepa.types import ClipConfig, TokenGrid

SIDE, STEPS = 16, 220
Frames = NDArray[np.uint8]


# ---- by hand: a world that is bright or dark, and a predictor that says that it stays as it is -----------------------


class Brightness(nn.Module):
    """One token per tubelet of 2 frames and 8 x 8 pixels: (mean, -mean), which the layer norm turns into its sign."""

    embed_dim = 2
    config = EncoderConfig(patch_size=8, tubelet_size=2)
    clip = ClipConfig(num_frames=8, frame_step=1, crop_size=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

    def grid_of(self, shape: tuple[int, ...]) -> TokenGrid:
        return TokenGrid(shape[-3] // 2, shape[-2] // 8, shape[-1] // 8)

    def forward(self, clip: Tensor, ids: Tensor | None = None) -> Tensor:
        batch, channels, frames, height, width = clip.shape
        patches = clip.view(batch, channels, frames // 2, 2, height // 8, 8, width // 8, 8)
        cells = patches.mean(dim=(1, 3, 5, 7)).flatten(1)
        tokens = 100 * torch.stack((cells, -cells), dim=-1)
        return tokens if ids is None else tokens.gather(1, ids[..., None].expand(-1, -1, 2))


class StaysAsItIs(nn.Module):
    config, out_dim = PredictorConfig(), 2
    mask_tokens = (0,)

    def forward(
        self, context: Tensor, context_ids: Tensor, target_ids: Tensor, mask_token: int, grid: TokenGrid, modality: str
    ) -> Tensor:
        last = context[:, -grid.h * grid.w :].sign()
        return last.repeat(1, target_ids.shape[1] // (grid.h * grid.w), 1)


@pytest.fixture
def by_hand() -> Predictive:
    return Predictive(context_encoder=Brightness(), target_encoder=Brightness(), predictor=StaysAsItIs())  # type: ignore[arg-type]


def bright_then_dark(bright: int, dark: int) -> Frames:
    return np.repeat(np.array([200] * bright + [50] * dark, dtype=np.uint8), SIDE * SIDE * 3).reshape(-1, SIDE, SIDE, 3)


def test_a_switch_surprises_where_contexts_end_before_it(by_hand: Predictive) -> None:
    curve = jepa.surprise(bright_then_dark(12, 12), by_hand, (2, 3), device="cpu", batch_size=3)
    assert len(curve) == 12
    # windows of 4 tubelets, 2 seen. Tubelet 6, the first dark one, is predicted by windows 3 and 4, which have seen
    # bright ones only: |1 - -1| = 2. Tubelet 7 by window 4 (2) and by window 5, which has seen tubelet 6 (0).
    expected = [np.nan, np.nan, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0]
    np.testing.assert_allclose(curve.surprise[0], expected, atol=1e-4)
    np.testing.assert_allclose(curve.surprise[1], [np.nan] * 3 + [0, 0, 0, 2, 0, 0, 0, 0, 0], atol=1e-4)
    np.testing.assert_allclose(curve.peak[0], [np.nan, np.nan, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0], atol=1e-4)
    torch.testing.assert_close(curve.copy_last, curve.surprise, equal_nan=True, atol=1e-4, rtol=0)  # the same rule
    # the mean of a bright and a dark tubelet is nothing: window 5 is 1 off wherever it looks
    np.testing.assert_allclose(curve.context_mean[0], [np.nan] * 2 + [0, 0, 0, 0, 2, 1.5, 0.5, 0, 0, 0], atol=1e-4)
    assert curve.windows[0].tolist() == [0, 0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 1]
    assert curve.windows[1].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert curve.window_start.tolist() == list(range(9))
    np.testing.assert_allclose(curve.window_surprise[0], [0, 0, 0, 1, 2, 0, 0, 0, 0], atol=1e-4)
    assert curve.score() == pytest.approx((3 / 9 + 2 / 9) / 2, abs=1e-4)
    assert curve.score("max") == pytest.approx(2, abs=1e-4)
    np.testing.assert_allclose(curve.mean()[2:], [np.nan, 0, 0, 0, 2, 0.5, 0, 0, 0, 0], atol=1e-4)
    np.testing.assert_allclose(curve.max()[2:], [0, 0, 0, 0, 2, 2, 0, 0, 0, 0], atol=1e-4)
    np.testing.assert_allclose(curve.skill(), [0, 0], atol=1e-4)
    assert curve.highest() == pytest.approx((12.0, 14.0, 13.0, 2.0), abs=1e-4)  # a rate of 1: no fps is known
    assert curve.events(0.9) == [curve.highest()]


def test_strides_ends_and_short_videos(by_hand: Predictive) -> None:
    frames = bright_then_dark(12, 11)  # the last tubelet has one frame of its own and one held
    wide = jepa.surprise(frames, by_hand, 2, stride_tubelets=3, fps=4.0, device="cpu")
    assert wide.window_start.tolist() == [0, 3, 6, 8]  # the last one ends with the video
    assert wide.windows[0].tolist() == [0, 0, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1]
    assert wide.surprise[0].isnan().tolist() == [True, True, False, False, True, False, False, True, *[False] * 4]
    short = jepa.surprise(bright_then_dark(5, 0), by_hand, 2, device="cpu")
    assert len(short) == 3  # the fourth tubelet of the only window would be held frames alone
    assert short.windows.tolist() == [[0, 0, 1]]
    with pytest.raises(ValueError, match="array is too short: it ends within the 2 tubelets of context"):
        jepa.surprise(bright_then_dark(4, 0), by_hand, 2, device="cpu")
    longer = jepa.surprise(bright_then_dark(12, 12), by_hand, 2, num_frames=12, device="cpu")
    assert longer.windows[0].tolist() == [0, 0, 1, 2, 3, 4, 4, 4, 4, 3, 2, 1]


def test_a_camera_and_any_batch_size_give_the_same_curve(by_hand: Predictive) -> None:
    frames = bright_then_dark(10, 9)
    frames[7:15:3] //= 2

    def camera() -> Iterator[Frames]:
        yield from frames

    shares: list[float] = []
    first = jepa.surprise(frames, by_hand, (1, 2), fps=2.0, device="cpu", batch_size=1, progress=shares.append)
    second = jepa.surprise(camera(), by_hand, [2, 1], fps=2.0, device="cpu", batch_size=64)
    assert first.context_tubelets == second.context_tubelets == (1, 2)
    for name in ("surprise", "peak", "copy_last", "windows", "window_surprise", "start_s"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), equal_nan=True)
    assert first.end_s[0] == 1.0  # two frames at 2 per second
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_tubelets": 4}, "context_tubelets must lie between 1 and 3 .windows have 4., not 4"),
        ({"context_tubelets": (0, 2)}, "between 1 and 3 .windows have 4., not 0"),
        ({"context_tubelets": ()}, "not none"),
        ({"stride_tubelets": 0}, "stride_tubelets 0 must be at least 1"),
        ({"mask_token": 1}, "mask_token 1 does not exist: the predictor has 1"),
        ({"measure": "l2"}, "measure must be one of l1, smooth_l1, cosine, not 'l2'"),
    ],
)
def test_wrong_arguments_are_named(by_hand: Predictive, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jepa.surprise(bright_then_dark(12, 12), by_hand, device="cpu", **options)
    with pytest.raises(ValueError, match="threshold must be a quantile between 0 and 1"):
        jepa.surprise(bright_then_dark(8, 0), by_hand, device="cpu").events(1.0)
    with pytest.raises(ValueError, match="surprise looks at one video"):
        jepa.surprise([bright_then_dark(8, 0)] * 2, by_hand, device="cpu")  # type: ignore[arg-type]


# ---- by a trained model: stripes that drift on for ever ----------------------------------------------------------


def drift(seed: int, frames: int, turn_at: int | None = None) -> Frames:
    """Stripes that drift by an eighth of a period per frame, uint8 ``[T, S, S, 3]``, and turn round at ``turn_at``."""
    rng = np.random.default_rng(seed)
    waves, upright, speed = rng.choice([1, 2]), rng.random() < 0.5, rng.choice([-1, 1])
    colour = rng.uniform(-1, 1, 3)
    colour *= 90 / np.linalg.norm(colour)
    steps = np.full(frames, 2 * np.pi / 8 * speed)
    if turn_at is not None:
        steps[turn_at:] *= -1
    phase = rng.uniform(0, 2 * np.pi) + np.cumsum(steps)
    wave = np.sin(2 * np.pi * waves * np.arange(SIDE) / SIDE - phase[:, None])  # [T, S]
    wave = wave[:, None, :] if upright else wave[:, :, None]
    picture = 127 + colour * np.broadcast_to(wave[..., None], (frames, SIDE, SIDE, 3))
    return (picture + rng.normal(0, 4, picture.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Predictive:
    """A model that has learned how stripes drift, from 4 frames the next 4.

    Its target encoder stays as it was drawn (momentum 1): a task that can be learned in seconds and cannot collapse.
    """
    folder = tmp_path_factory.mktemp("drift")
    np.savez(folder / "clips.npz", clips=np.stack([drift(seed, 8) for seed in range(1500)]))
    settings = tiny_settings(folder, steps=STEPS, batch_size=32, device="cpu", log_every=STEPS)
    model = {"embed_dim": 64, "depth": 1, "num_heads": 2, "init": "xavier"}
    settings |= {
        "clip": {"num_frames": 8, "frame_step": 1, "crop_size": SIDE, "mean": [0.5] * 3, "std": [0.2] * 3},
        "encoder": {**model, "patch_size": 8}, "masks": [{"kind": "causal"}],
        "objective": {"kind": "masked", "momentum": [1.0, 1.0], "predictor": model},
        "optim": {"lr": {"kind": "cosine", "start": 6e-4, "peak": 6e-3, "final": 2e-4, "warmup_steps": 30}},
        "augment": {"scale": [1.0, 1.0], "ratio": [1.0, 1.0], "flip": 0.0},
    }  # fmt: skip
    fit(from_dict(TrainConfig, settings))
    return load_predictive(folder / "run")


def curves(model: Predictive, videos: list[Frames]) -> list[SurpriseCurve]:
    return [jepa.surprise(video, model, 2, device="cpu", batch_size=16) for video in videos]


def at_change(curve: Tensor) -> Tensor:
    """Mean over the tubelets that see the change at tubelet 6 and have it behind no context: 6 and 7."""
    return curve[6:8].mean()


def elsewhere(curve: Tensor) -> Tensor:
    return torch.cat((curve[2:5], curve[9:])).mean()


def share(pairs: list[tuple[Tensor, Tensor]], factor: float = 1.0) -> float:
    """Of how many pairs the first is more than ``factor`` times the second."""
    return sum(bool(first > factor * second) for first, second in pairs) / len(pairs)


def test_surprise_rises_at_a_splice_and_where_motion_turns_round(trained: Predictive) -> None:
    count, frames = 24, 24
    whole = [drift(10_000 + k, frames) for k in range(count)]
    others = [drift(20_000 + k, frames) for k in range(count)]
    spliced = [np.concatenate((a[:12], b[12:])) for a, b in zip(whole, others, strict=True)]
    turned = [drift(10_000 + k, frames, turn_at=12) for k in range(count)]
    plain, cut, turn = (curves(trained, videos) for videos in (whole, spliced, turned))
    skill = torch.cat([curve.skill() for curve in plain])
    assert skill.mean() > 0.5  # it predicts better than a standstill, and than the mean
    for changed in (cut, turn):
        within = [(at_change(c.surprise[0]), elsewhere(c.surprise[0])) for c in changed]
        paired = [(at_change(c.surprise[0]), at_change(p.surprise[0])) for c, p in zip(changed, plain, strict=True)]
        assert share(within, 1.5) >= 0.9
        assert share(paired, 1.5) >= 0.9
    for curve, other in zip(plain, turn, strict=True):  # windows that end before the change know nothing of it
        torch.testing.assert_close(curve.window_surprise[0, :3], other.window_surprise[0, :3])
    top = [int(curve.mean().nan_to_num(nan=-1).argmax()) in (6, 7) for curve in cut]
    assert sum(top) / count >= 0.9
    # a standstill expects nothing, so it is no more surprised by a turn than by steady motion
    still = [(at_change(c.copy_last[0]), at_change(p.copy_last[0])) for c, p in zip(turn, plain, strict=True)]
    assert share(still, 1.2) <= 0.2
    scores = [(torch.tensor(c.score()), torch.tensor(p.score())) for c, p in zip(turn, plain, strict=True)]
    assert share(scores) >= 0.9  # the protocol's decision: the possible video has the lower mean


def test_an_untrained_model_has_no_skill(trained: Predictive) -> None:
    torch.manual_seed(0)
    fresh = Predictive(
        context_encoder=trained.context_encoder, target_encoder=trained.target_encoder,
        predictor=type(trained.predictor)(trained.predictor.config, 64, trained.predictor.grid, 1),
    )  # fmt: skip
    skill = [curve.skill() for curve in curves(fresh, [drift(30_000 + k, 24) for k in range(4)])]
    assert torch.cat(skill).mean() < 0.1
