"""Tracking: J and F by hand and by slow loops, propagation against a loop, a made-up DAVIS from pictures to table."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import by_two

from evals.davis import read_davis
from evals.main import evaluate, main
from evals.mask_metrics import contour, contour_accuracy, dilate, region_similarity
from evals.number_maps import read_numbers
from evals.propagate import EncoderMaps, PatchMaps, PixelMaps, neighbours, propagate, to_patches, to_pixels
from evals.settings import EvalConfig
from evals.task_configs import TrackingConfig
from evals.tasks.tracking import draw, row_of, score
from jepa.checkpoint import save_checkpoint
from jepa.config import to_dict
from jepa.data.sources import SourceConfig
from jepa.distributed import Run
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.types import ClipConfig

RUN = Run(torch.device("cpu"), "fp32")
CLIP = ClipConfig(num_frames=4, fps=8.0, crop_size=32)
COLOURS = np.array([[30, 30, 60], [220, 40, 40], [40, 220, 40]], np.uint8)


def moving_squares(frames: int = 6, height: int = 32, width: int = 48) -> np.ndarray:
    """Numbers of objects ``[T, H, W]``: square 1 goes right, square 2 goes left."""
    numbers = np.zeros((frames, height, width), np.int64)
    for time in range(frames):
        numbers[time, 4:12, 4 + 2 * time : 12 + 2 * time] = 1
        numbers[time, 18:28, 34 - 2 * time : 44 - 2 * time] = 2
    return numbers


def make_encoder(tubelet: int = 2) -> Encoder:
    torch.manual_seed(0)
    config = EncoderConfig(embed_dim=24, depth=1, num_heads=2, patch_size=4, tubelet_size=tubelet)
    return Encoder(config, CLIP).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("davis")
    numbers = moving_squares()
    for name in ("one", "two"):
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / "480p" / name).mkdir(parents=True)
        for time, mask in enumerate(numbers):
            picture = COLOURS[mask] if name == "one" else COLOURS[mask][::-1]
            Image.fromarray(picture).save(root / "JPEGImages/480p" / name / f"{time:05d}.jpg", quality=95)
            palette = Image.fromarray((mask if name == "one" else mask[::-1]).astype(np.uint8)).convert("P")
            palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
            palette.save(root / "Annotations/480p" / name / f"{time:05d}.png")
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("one\ntwo\n")
    encoder = make_encoder()
    state = {"config": {}, "clip": to_dict(CLIP), "encoder_config": to_dict(encoder.config)}
    weights = {f"target_encoder.{k}": v for k, v in encoder.state_dict().items()}
    save_checkpoint(root / "run", 1, {**state, "objective": weights})
    return root


def test_region_similarity_by_hand() -> None:
    mask, truth = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    assert region_similarity(mask, truth) == 1.0
    mask[1:3, 1:3], truth[1:3, 2:5] = True, True
    assert region_similarity(mask, truth) == 2 / 8
    assert region_similarity(mask, ~mask) == 0.0


def test_contour_and_dilation_by_hand() -> None:
    mask = np.zeros((5, 5), bool)
    mask[2:4, 2:4] = True
    assert contour(mask).astype(int).tolist() == [
        [0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 0, 1, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0],
    ]
    assert not contour(np.ones((5, 5), bool)).any()
    point = np.zeros((7, 7), bool)
    point[3, 3] = True
    assert dilate(point, 1).sum() == 5
    assert dilate(point, 2).sum() == 13
    assert dilate(point, 0).sum() == 1


def test_contour_accuracy_equals_a_loop_over_pixels() -> None:
    rng = np.random.default_rng(0)
    for tolerance in (0.02, 0.05, 0.15):
        mask, truth = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
        a, b = rng.integers(0, 12, 2), rng.integers(0, 12, 2)
        mask[a[0] : a[0] + 7, a[1] : a[1] + 9] = True
        truth[b[0] : b[0] + 7, b[1] : b[1] + 9] = True
        radius = math.ceil(tolerance * math.sqrt(20**2 + 30**2))
        points = [np.argwhere(contour(m)) for m in (mask, truth)]
        shares = [
            np.mean([min(math.dist(p, q) for q in points[1 - side]) <= radius for p in points[side]]) for side in (0, 1)
        ]
        slow = 0.0 if sum(shares) == 0 else 2 * shares[0] * shares[1] / sum(shares)
        assert contour_accuracy(mask, truth, tolerance) == pytest.approx(slow)
    empty = np.zeros((20, 30), bool)
    assert contour_accuracy(empty, empty) == 1.0
    assert contour_accuracy(empty, truth) == contour_accuracy(truth, empty) == 0.0
    assert contour_accuracy(truth, truth) == 1.0


def test_propagation_equals_a_loop() -> None:
    torch.manual_seed(0)
    maps, first = torch.randn(5, 3, 4, 6), torch.rand(2, 3, 4).softmax(dim=0)
    config = TrackingConfig(top_k=3, temperature=0.2, radius=1, context=2)
    found = propagate(maps, first, config)
    masks = [first]
    for step in range(1, 5):
        seen = sorted({0, *range(max(0, step - 2), step)})
        now = torch.zeros(2, 3, 4)
        for row in range(3):
            for column in range(4):
                pairs = []
                for s in seen:
                    for r in range(max(0, row - 1), min(3, row + 2)):
                        for c in range(max(0, column - 1), min(4, column + 2)):
                            cosine = torch.cosine_similarity(maps[step, row, column], maps[s, r, c], dim=0)
                            pairs.append((float(cosine), masks[s][:, r, c]))
                pairs = sorted(pairs, key=lambda pair: -pair[0])[:3]
                weights = torch.tensor([math.exp(cosine / 0.2) for cosine, _ in pairs])
                now[:, row, column] = sum(w * mask for w, (_, mask) in zip(weights / weights.sum(), pairs))
        masks.append(now)
    assert torch.allclose(found, torch.stack(masks), atol=1e-5)
    assert torch.allclose(found.sum(dim=1), torch.ones(5, 3, 4), atol=1e-5)


def test_neighbours_are_a_square_window() -> None:
    near = neighbours(3, 4, 1)
    assert near[5].view(3, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
    assert near[3].view(3, 4).int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]


def test_colours_as_features_track_perfectly() -> None:
    numbers = moving_squares()
    maps = torch.from_numpy(COLOURS[numbers].astype(np.float32) - 128)
    drawn = draw(
        PatchMaps(maps, torch.arange(6)), torch.from_numpy(numbers[0]), 3, TrackingConfig(radius=6, context=2), "colour"
    )
    for place in (1, 2):
        one = score("s", place, place, drawn, list(numbers))
        assert one.j == one.f == [1.0] * 4
    still = [score("s", place, place, [numbers[0]] * 6, list(numbers)) for place in (1, 2)]
    assert still[0].j == pytest.approx([(8 - s) / (8 + s) for s in (2, 4, 6, 8)])  # moved by s of 8 pixels
    row = row_of("still", still, 0)
    assert row.j_mean == pytest.approx(np.mean([one.j for one in still]))
    assert row.j_recall == 1 / 4  # of each square only the first overlap, 6 of 10 and 8 of 12, is above a half
    assert row.jf == pytest.approx((row.j_mean + row.f_mean) / 2)


def test_void_pixels_are_not_judged() -> None:
    truth = [np.zeros((6, 6), np.int64) for _ in range(3)]
    drawn = [np.zeros((6, 6), np.int64) for _ in range(3)]
    for numbers in (*truth, *drawn):
        numbers[1:3, 1:3] = 1
    drawn[1][4] = 1
    assert score("s", 1, 1, drawn, truth).j == [4 / 10]
    truth[1][4] = 255
    assert score("s", 1, 1, drawn, truth).j == [1.0]


def test_masks_go_to_patches_and_back() -> None:
    numbers = torch.zeros(8, 8, dtype=torch.int64)
    numbers[:4, :6] = 1
    soft = to_patches(numbers, 2, (2, 2))
    assert soft[1].tolist() == [[1.0, 0.5], [0.0, 0.0]]
    assert torch.equal(to_pixels(to_patches(numbers, 2, (8, 8)), (8, 8), True), numbers)
    faint = torch.tensor([[[1.0, 0.6]], [[0.0, 0.4]]])
    assert to_pixels(faint, (1, 2), False).tolist() == [[0, 0]]
    assert to_pixels(faint, (1, 2), True).tolist() == [[0, 1]]


def test_frames_map_to_tubelets_after_a_repeated_first_frame() -> None:
    encoder = make_encoder()
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 16, 24, 3)).astype(np.uint8))
    config = TrackingConfig(side=16)
    found = EncoderMaps("e", encoder, RUN, config)(frames)
    assert found.step_of_frame.tolist() == [0, 1, 1, 2, 2, 3]
    assert found.maps.shape == (4, 4, 6, 24)
    shown = frames[[0, 0, 1, 2, 3, 4, 5, 5]].permute(3, 0, 1, 2).float() / 255  # two windows of four frames
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (CLIP.mean, CLIP.std))
    clips = torch.stack(((shown - mean) / std).split(4, dim=1))
    assert torch.allclose(found.maps, encoder(clips).view(4, 4, 6, 24), atol=1e-5)
    single = EncoderMaps("e", encoder, RUN, TrackingConfig(side=16, frames="single"), batch_size=4)
    one_by_one = encoder(clips[0][None, :, 2:3]).view(4, 6, 24)
    assert torch.allclose(single(frames).maps[1], one_by_one, atol=1e-5)
    assert single(frames).step_of_frame.tolist() == list(range(6))
    assert EncoderMaps("e", make_encoder(1), RUN, TrackingConfig()).mode == "single frames"


def test_sizes_keep_the_shape_or_are_stretched() -> None:
    encoder = make_encoder()
    assert EncoderMaps("e", encoder, RUN, TrackingConfig()).size(480, 854) == (480, 856)
    assert EncoderMaps("e", encoder, RUN, TrackingConfig(side=64)).size(100, 50) == (128, 64)
    assert EncoderMaps("e", encoder, RUN, TrackingConfig(fit="stretch")).size(480, 854) == (32, 32)


def test_pixels_are_the_patches_pictures() -> None:
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3)).astype(np.uint8))
    found = PixelMaps(EncoderMaps("e", make_encoder(), RUN, TrackingConfig(side=16)))(frames)
    assert found.maps.shape == (2, 4, 6, 3 * 4 * 4)
    patch = frames[1, 4:8, 8:12].permute(2, 0, 1) / 255
    expected = (patch - torch.tensor(CLIP.mean).view(3, 1, 1)) / torch.tensor(CLIP.std).view(3, 1, 1)
    assert torch.allclose(found.maps[1, 1, 2], expected.flatten(), atol=1e-5)


def test_the_task_tracks_a_made_up_davis(davis: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = EvalConfig(
        run=str(davis / "run"), task="tracking", test=SourceConfig(path=str(davis)), device="cpu",
        tracking=TrackingConfig(side=32),
    )  # fmt: skip
    with caplog.at_level("INFO", "jepa"):
        results = evaluate(config, tmp_path / "a")
    assert [line.split(":")[0] for line in caplog.messages] == ["tracking one", "tracking two"]
    assert evaluate(config, tmp_path / "b")["rows"] == results["rows"]
    assert json.loads((tmp_path / "a" / "results.json").read_text())["rows"] == results["rows"]
    rows = {row["encoder"]: row for row in results["rows"]}
    assert list(rows) == ["trained", "random", "pixels", "still"]
    assert rows["pixels"]["objects"] == 4
    assert rows["pixels"]["jf"] > 0.8 > 0.6 > rows["still"]["jf"]
    assert results["frames"] == {
        "trained": "tubelets of 2 frames", "random": "tubelets of 2 frames", "pixels": "single frames"
    }  # fmt: skip
    assert [one["number"] for one in results["objects"]["still"]] == [1, 2, 1, 2]
    assert "| pixels | " in (tmp_path / "a" / "results.md").read_text()


def test_two_processes_share_the_sequences(davis: Path, tmp_path: Path) -> None:
    config = EvalConfig(
        run=str(davis / "run"), task="tracking", test=SourceConfig(path=str(davis)), device="cpu",
        tracking=TrackingConfig(side=32),
    )  # fmt: skip
    alone = json.loads(json.dumps(evaluate(config, tmp_path / "alone")))
    for found in by_two(config, "objects"):
        assert (found["rows"], found["objects"]) == (alone["rows"], alone["objects"])


def test_the_page_shows_masks_over_frames(davis: Path, tmp_path: Path) -> None:
    config = EvalConfig(
        run=str(davis / "run"), task="tracking", test=SourceConfig(path=str(davis)), device="cpu",
        tracking=TrackingConfig(side=32),
    )  # fmt: skip
    results = evaluate(config, tmp_path / "page")
    text = (tmp_path / "page" / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert (text.count("data:image/jpeg"), text.count("data:image/gif")) == (2 * 5, 2)  # annotated and four trackers
    for words in ("What was run", "J&amp;F", f"{100 * results['rows'][0]['jf']:.1f}", "still", "Every object"):
        assert words in text


def test_what_is_wrong_with_the_data_is_said(davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"test-dev.txt is missing"):
        read_davis(davis, "test-dev")
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("one\n")
    with pytest.raises(ValueError, match="has 0 pictures"):
        read_davis(tmp_path, "val")
    folder = tmp_path / "JPEGImages/480p/one"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / f"{number}.jpg")
    with pytest.raises(ValueError, match=r"0.png is missing \(3 of 3 masks of one\)"):
        read_davis(tmp_path, "val")
    with pytest.raises(ValueError, match="one number per pixel"):
        read_numbers(folder / "0.jpg")
    assert main([str(davis / "run"), "--task", "tracking", "--out", str(tmp_path / "out")]) == 2
    assert "needs --test ROOT" in capsys.readouterr().err
    assert main([str(davis / "run"), "--task", "tracking", "--test", str(davis), "--segments", "2"]) == 2
    assert "leave --segments" in capsys.readouterr().err
    with pytest.raises(ValueError, match="features of e hold NaN"):
        draw(PatchMaps(torch.full((2, 2, 2, 3), torch.nan), torch.arange(2)), torch.zeros(2, 2).long(), 1,
             TrackingConfig(), "e")  # fmt: skip
    for wrong in ({"top_k": 0}, {"temperature": 0.0}, {"radius": -1}):
        with pytest.raises(ValueError, match=f"tracking.{next(iter(wrong))}"):
            TrackingConfig(**wrong)
