"""Samples of generative decoders: their noise, scores against slow ones, and that they say what latents leave open."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from support import small_encoder
from torch import Tensor

from evals import pixel_metrics as pm
from evals.features.rows import Rows
from evals.reconstruction.probe import Latents, build_decoder, build_flow, decode, fit_decoder
from evals.reconstruction.rows import values_of
from evals.reconstruction.sampling import Scores, gather, noise_of, sampler
from evals.reconstruction.shown import Shown
from evals.task_configs import ReconstructionTask
from jepa.distributed import Run
from jepa.types import ClipConfig, TokenGrid

CPU = Run(torch.device("cpu"), "fp32")
GRID = TokenGrid(1, 2, 2)
CLIP = ClipConfig(num_frames=2, fps=10.0, crop_size=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
TASK = ReconstructionTask(
    steps=150, flow_steps=600, batch_size=16, embed_dim=24, depth=1, num_heads=2, learning_rate=3e-3, samples=4
)


def test_noise_is_of_the_clip_and_the_sample_alone() -> None:
    found = noise_of([3, 0, 3], 4, (3, 1, 5, 5), seed=1)
    assert found.shape == (3, 4, 3, 1, 5, 5)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1:2, :2], noise_of([0], 2, (3, 1, 5, 5), seed=1)), "fewer samples are the first of more"
    drawn = [*found[0].flatten(1), *found[1].flatten(1), *noise_of([3], 4, (3, 1, 5, 5), seed=2)[0].flatten(1)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))
    assert float(noise_of(range(50), 2, (3, 1, 8, 8), seed=0).std()) == pytest.approx(1, abs=0.03)


def made(clips: int = 5, samples: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Samples, true clips and a mask."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 256, (clips, samples, 3, 2, 4, 4), generator=generator) / 255
    true = torch.randint(0, 256, (clips, 3, 2, 4, 4), generator=generator) / 255
    return drawn, true, torch.rand(clips, 1, 2, 4, 4, generator=generator) > 0.5


def test_scores_are_those_of_loops() -> None:
    samples, true, mask = made()
    drawn = gather(samples.__getitem__, true.__getitem__, 5, [None, mask.__getitem__], batch=2, pictures=3)
    assert torch.equal(drawn.kept, samples[:3])
    assert torch.equal(values_of(drawn.first)(torch.arange(5)), samples[:, 0])
    middle = samples.double().numpy().mean(axis=1)
    assert np.abs(values_of(drawn.mean)(torch.arange(5)).numpy() - middle).max() <= 0.5 / 255 + 1e-6
    for scores, chosen in ((drawn.scores[0], torch.ones_like(mask)), (drawn.scores[1], mask)):
        for clip in range(5):
            where = chosen[clip].expand(3, -1, -1, -1).numpy()
            clips, real = samples[clip].double().numpy()[:, where], true[clip].double().numpy()[where]
            assert scores.error[clip].item() == pytest.approx(((clips.mean(axis=0) - real) ** 2).mean())
            expected = [-10 * np.log10(((one - real) ** 2).mean()) for one in clips]
            assert scores.psnr[clip].tolist() == pytest.approx(expected)
            pairs = [((a - b) ** 2).mean() for a, b in itertools.combinations(clips, 2)]
            assert scores.diversity[clip].item() == pytest.approx(np.sqrt(np.mean(pairs)))
    steps = gather(samples.__getitem__, true.__getitem__, 5, [None], batch=2, pictures=0, by_frame=True).scores[0].psnr
    squares = (samples - true[:, None]).double().square().mean(dim=(2, 4, 5))  # [5, 3, T]
    assert steps.flatten().tolist() == pytest.approx((-10 * squares.log10()).mean(dim=2).flatten().tolist())
    one_by_one = gather(samples.__getitem__, true.__getitem__, 5, [mask.__getitem__], batch=1, pictures=3)
    assert torch.equal(one_by_one.mean, drawn.mean)
    assert torch.equal(one_by_one.kept, drawn.kept)
    assert torch.equal(one_by_one.scores[0].psnr, drawn.scores[1].psnr)


def test_best_of_k_is_over_all_choices() -> None:
    psnr = torch.rand(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 30
    found = Scores(psnr, torch.ones(4), torch.ones(4)).best()
    assert [entry["k"] for entry in found] == [1, 2, 4, 6]
    for entry in found:
        choices = list(itertools.combinations(range(6), int(entry["k"])))
        expected = np.mean([psnr[:, list(choice)].amax(dim=1).mean().item() for choice in choices])
        assert entry["psnr"] == pytest.approx(expected)
    assert [entry["k"] for entry in Scores(psnr[:, :4], torch.ones(4), torch.ones(4)).best()] == [1, 2, 4]


@pytest.mark.parametrize("samples", [2, 5])
def test_truth_that_might_be_one_more_sample_is_calibrated(samples: int) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = 0.5 + 0.1 * torch.randn(400, samples + 1, 3, 1, 4, 4, generator=generator)
    true = drawn[:, -1]
    found = gather(drawn[:, :-1].__getitem__, true.__getitem__, 400, [None], batch=100, pictures=0).scores[0]
    assert found.calibration() == pytest.approx(1, abs=0.02)
    sure = 0.5 + (drawn[:, :-1] - 0.5) / 2
    half = gather(sure.__getitem__, true.__getitem__, 400, [None], batch=100, pictures=0).scores[0].calibration()
    # spread halves; the error keeps the truth's own deviation: (1 + 1/S) / 4 of 1 + 1/(4 S)
    assert half == pytest.approx(((1 + 1 / samples) / 4 / (1 + 1 / (4 * samples))) ** 0.5, abs=0.02)
    assert found._replace(error=torch.zeros(400)).calibration() is None


@pytest.fixture(scope="module")
def toss() -> tuple[Latents, Shown]:
    """32 clips whose upper half is black or white as their latents say, and the lower half as a coin says."""
    said, coin = torch.arange(32) % 4 > 1, torch.arange(32) % 2 > 0
    tokens = torch.zeros(32, 1, GRID.size, 6)
    tokens[..., :3] = torch.where(said, 1.0, -1.0).view(32, 1, 1, 1)
    tokens[..., 3] = torch.tensor([1.0, 1.0, -1.0, -1.0])  # places are relative: latents alone say which half it is
    pixels = torch.zeros(32, 2, 16, 16, 3, dtype=torch.uint8)
    pixels[said, :, :8] = 255
    pixels[coin, :, 8:] = 255
    shown = Shown(pixels, torch.arange(32), [f"{k}.mp4" for k in range(32)], CLIP, {})
    return Latents((Rows.of(tokens),), GRID, norm=False), shown


def test_samples_draw_what_latents_leave_open(toss: tuple[Latents, Shown]) -> None:
    latents, shown = toss
    flat = build_decoder(TASK, small_encoder(), latents, shown)
    fit_decoder(flat, latents, shown, TASK, CPU)
    blurred = decode(flat, latents, shown, TASK, CPU).float() / 255
    assert float((blurred[:, :, 8:] - 0.5).abs().mean()) < 0.05, "the mean of black and white"
    flow = build_flow(TASK, small_encoder(), latents, shown)
    fit_decoder(flow, latents, shown, TASK, CPU)
    assert not any(p.requires_grad for p in flow.parameters())
    draw = sampler(flow, latents, shown, TASK, CPU)
    rows = torch.arange(32)
    samples, true = draw(rows), shown.values(rows)
    assert samples.shape == (32, 4, 3, 2, 16, 16)
    assert torch.allclose(samples[[7, 3]], draw(torch.tensor([7, 3])), atol=1.1 / 255), "whoever is drawn beside it"
    upper, lower = (pm.diversity(samples[..., part, :]).mean().item() for part in (slice(8), slice(8, 16)))
    assert upper < 0.5 * lower, "samples agree on what the latents say"
    assert lower > 0.4, "two tosses of a coin are 1 apart in half of the cases"
    assert float(samples[..., 8:, :].sub(0.5).abs().mean()) > 0.45, "black or white, not grey"
    best = pm.psnr(samples[..., 8:, :], true[:, None][..., 8:, :]).amax(dim=1).mean()
    assert best > pm.psnr(values_of((blurred * 255).byte())(rows)[..., 8:, :], true[..., 8:, :]).mean()


def test_rows_of_one_rollout_begin_with_the_same_noise(toss: tuple[Latents, Shown]) -> None:
    latents, shown = toss
    flow = build_flow(TASK, small_encoder(), latents, shown)
    with torch.no_grad():
        flow.proj.weight.normal_(std=0.02, generator=torch.Generator().manual_seed(0))

    def same(rows: Tensor) -> Tensor:
        return torch.ones(len(rows), GRID.size, 6)

    alone, together = (sampler(flow, same, shown, TASK, CPU, count)(torch.arange(4)) for count in (1, 2))
    assert torch.equal(together[0], together[1])
    assert not torch.equal(together[1], together[2])
    assert not torch.equal(alone[0], alone[1])
    assert torch.equal(alone[:2], together[[0, 2]])
