"""Dense probes: mIoU and RMSE against slow formulations, heads that recover a known answer, honest choices."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import by_two

from evals import dense_metrics
from evals.dense_data import DenseSet, Pool, draw_pools, open_dense, read_label
from evals.dense_probe import DenseHeads, fit_heads, sample, upsample
from evals.dense_rows import judge, lost_sums
from evals.main import evaluate, main
from evals.pages.dense_look import by_range, depth_edges
from evals.probes import ProbeConfig, heads
from evals.settings import EvalConfig
from evals.task_configs import DenseConfig
from evals.tasks.dense import Sides, probe_one
from jepa.checkpoint import save_checkpoint
from jepa.config import to_dict
from jepa.data.sources import SourceConfig
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.types import ClipConfig

CLIP = ClipConfig(num_frames=2, fps=8.0, crop_size=32)
CPU = torch.device("cpu")
COLOURS = np.array([[30, 30, 90], [220, 40, 40], [40, 220, 40]], np.uint8)
QUICK = ProbeConfig(steps=40, learning_rates=(0.003, 0.03), weight_decays=(0.01,))


def write_scene(root: Path, count: int, seed: int, sizes: tuple[tuple[int, int], ...] = ((32, 32), (40, 64))) -> Path:
    """Pictures of a red and a green box, whose colour is their class and their depth (1, 2 and 3 metres)."""
    rng = np.random.default_rng(seed)
    for name in ("images", "masks", "depth"):
        (root / name).mkdir(parents=True)
    for number in range(count):
        height, width = sizes[number % len(sizes)]
        classes = np.zeros((height, width), np.uint8)
        for label in (1, 2):
            row, column = rng.integers(0, height // 2), rng.integers(0, width // 2)
            classes[row : row + height // 2, column : column + width // 2] = label
        Image.fromarray(COLOURS[classes]).save(root / "images" / f"{number:03d}.png")
        labels = classes.copy()
        labels[:2] = 255  # no label along the upper edge
        Image.fromarray(labels).save(root / "masks" / f"{number:03d}.png")
        metres = np.where(labels == 255, 0, 1.0 + classes)
        np.save(root / "depth" / f"{number:03d}.npy", metres.astype(np.float32))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dense")
    write_scene(root / "train", 12, 0)
    write_scene(root / "test", 5, 1)
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(embed_dim=24, depth=1, num_heads=2, patch_size=8, tubelet_size=2), CLIP)
    state = {"config": {}, "clip": to_dict(CLIP), "encoder_config": to_dict(encoder.config)}
    weights = {f"target_encoder.{k}": v for k, v in encoder.state_dict().items()}
    save_checkpoint(root / "run", 1, {**state, "objective": weights})
    return root


def asked(folder: Path, **options: object) -> EvalConfig:
    train, test = (SourceConfig(path=str(folder / split)) for split in ("train", "test"))
    plain = {"train": train, "test": test, "probes": (QUICK,), "cache_gb": 0.0}
    return EvalConfig(run=str(folder / "run"), task="dense", device="cpu", **{**plain, **options})


def test_mean_iou_equals_a_slow_confusion_matrix() -> None:
    rng = np.random.default_rng(0)
    pictures = [(rng.integers(0, 4, size), rng.integers(-1, 5, size)) for size in ((7, 9), (3, 4), (12, 5))]
    confusion = np.zeros((6, 6), int)  # class 5 occurs nowhere
    for mine, truth in pictures:
        for row, column in np.ndindex(*mine.shape):
            if truth[row, column] >= 0:
                confusion[truth[row, column], mine[row, column]] += 1
    slow = [
        confusion[c, c] / (confusion[c].sum() + confusion[:, c].sum() - confusion[c, c])
        for c in range(6)
        if confusion[c].sum() + confusion[:, c].sum()
    ]
    pairs = [(torch.from_numpy(mine), torch.from_numpy(truth)) for mine, truth in pictures]
    sums = torch.stack([dense_metrics.class_counts(mine, truth, 6) for mine, truth in pairs])
    assert len(slow) == 5
    assert float(dense_metrics.mean_iou(sums.sum(dim=0))) == pytest.approx(np.mean(slow), abs=1e-12)
    assert dense_metrics.class_iou(sums.sum(dim=0))[5].isnan()
    accuracy = float(dense_metrics.pixel_accuracy(sums.sum(dim=0)))
    assert accuracy == pytest.approx(np.trace(confusion) / confusion.sum())
    padded = [torch.nn.functional.pad(truth, (0, 3, 0, 2), value=-1) for _, truth in pairs]
    wider = [torch.nn.functional.pad(mine, (0, 3, 0, 2), value=2) for mine, _ in pairs]
    again = torch.stack([dense_metrics.class_counts(mine, truth, 6) for mine, truth in zip(wider, padded)])
    assert torch.equal(again, sums)  # padding plays no role


def test_depth_scores_by_hand() -> None:
    truth = torch.tensor([[1.0, 2.0], [4.0, torch.nan]])
    sums = dense_metrics.depth_sums(torch.tensor([[1.5, 2.0], [-3.0, 9.0]]), truth)
    assert sums.tolist() == pytest.approx([3, 0.25 + 0 + 49, 0.5 + 0 + 7 / 4, 1])
    assert float(dense_metrics.rmse(sums)) == pytest.approx(math.sqrt(49.25 / 3))


def test_the_bootstrap_draws_images() -> None:
    sums = torch.tensor([[1.0, 4.0, 0, 0], [1.0, 4.0, 0, 0]], dtype=torch.float64)
    assert dense_metrics.bootstrap(sums, dense_metrics.rmse) == (2.0, 2.0)
    sums[1, 1] = 16.0
    low, high = dense_metrics.bootstrap(sums, dense_metrics.rmse, seed=3)
    assert (low, high) == (2.0, 4.0)  # both draws of one image are among the outer twentieth


def test_heads_on_sampled_features_equal_upsampled_heads() -> None:
    torch.manual_seed(0)
    patches, size = torch.randn(3, 5, 4), (13, 21)
    fitted = DenseHeads(
        {"head.weight": torch.randn(2, 4, 6), "head.bias": torch.randn(2, 6)}, torch.randn(4), torch.rand(4), 0.5, 3.0
    )
    whole = torch.stack([upsample(maps, size) for maps in fitted.outputs(patches)])
    rows, columns = torch.tensor([0, 5, 12, 7]), torch.tensor([0, 20, 11, 3])
    places = torch.stack(((2 * columns + 1) / 21 - 1, (2 * rows + 1) / 13 - 1), dim=1)
    x = (sample(patches[None], places[None])[0] - fitted.mean) * fitted.inverse
    by_hand = heads.linear_forward(fitted.params, x) * 3.0 + 0.5
    assert torch.allclose(whole[:, :, rows, columns].transpose(1, 2), by_hand, atol=1e-4)


def test_pools_hold_labelled_pixels_at_their_places(tmp_path: Path) -> None:
    labels = np.full((6, 10), 255, np.uint8)
    labels[2, 3], labels[5, 9] = 1, 4
    (tmp_path / "a").mkdir()
    Image.fromarray(labels).save(tmp_path / "a" / "x.png")
    pool = draw_pools(DenseSet("a", ["x"], [tmp_path / "a" / "x.png"]), DenseConfig(), 0)[0]
    found = {}
    for (x, y), value in zip(pool.places.tolist(), pool.values.tolist()):
        found[round((y + 1) * 3 - 0.5), round((x + 1) * 5 - 0.5)] = value
    assert found == {(2, 3): 1, (5, 9): 4}


def test_linear_labels_are_learned_and_a_grid_equals_single_heads() -> None:
    """Depth that is a linear function of the features is recovered, and every head is as if trained alone."""
    torch.manual_seed(0)
    patches = torch.randn(6, 4, 4, 3)
    metres = 5 + patches @ torch.tensor([0.5, -1.0, 0.25])
    grid = (torch.arange(4) * 2 + 1) / 4 - 1  # patch centres
    places = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), dim=-1).flatten(0, 1)
    pools = [Pool(places, values.flatten()) for values in metres]
    config, rows = DenseConfig(target="depth", pixels=64), torch.arange(6)
    probe = ProbeConfig(steps=300, learning_rates=(0.03, 0.001), weight_decays=(0.0,))
    together = fit_heads(probe, config, patches, pools, rows, 1, CPU)
    errors = (together.outputs(patches[2])[:, 0] - metres[2]).abs().amax(dim=(1, 2))
    assert errors[0] < 0.02 < errors[1]  # the small rate has not arrived
    alone = fit_heads(
        ProbeConfig(steps=300, learning_rates=(0.001,), weight_decays=(0.0,)), config, patches, pools, rows, 1, CPU
    )
    assert torch.allclose(together.outputs(patches[2])[1], alone.outputs(patches[2])[0], atol=1e-5)


def test_the_head_is_chosen_on_training_images_only(tmp_path: Path) -> None:
    """Test labels that contradict the training labels change the score, never the choice."""
    train, test = (write_scene(tmp_path / name, 6, seed, ((8, 8),)) for name, seed in (("train", 0), ("test", 1)))
    sets = (open_dense(str(train), DenseConfig()), open_dense(str(test), DenseConfig()))
    colours = [
        torch.stack([torch.from_numpy(np.array(Image.open(path))).float() for path in part.images]) for part in sets
    ]
    pools = draw_pools(sets[0], DenseConfig(), 0)
    probe = ProbeConfig(steps=60, learning_rates=(1e38, 0.03), weight_decays=(0.01,))  # the first overflows
    sides, lost = Sides(*sets, sets[0].subset([]), sets[1].subset([])), torch.zeros(0, 3, 3)
    row = probe_one(probe, DenseConfig(), "colour", sides, (colours[0], colours[1]), pools, 3, CPU, lost).row
    assert (row.chosen["learning_rate"], row.score, row.held_out) == (0.03, 1.0, 1.0)
    assert row.heads_on_test[1] == row.best_on_test == 1.0 > row.heads_on_test[0]
    for path in sets[1].labels:
        Image.fromarray((2 - np.minimum(np.array(Image.open(path)), 2)).astype(np.uint8)).save(path)
    turned = probe_one(probe, DenseConfig(), "colour", sides, (colours[0], colours[1]), pools, 3, CPU, lost).row
    assert (turned.chosen, turned.heads) == (row.chosen, row.heads)
    assert turned.score < 0.5


def test_scores_do_not_depend_on_how_images_are_grouped(folder: Path) -> None:
    found = open_dense(str(folder / "test"), DenseConfig())
    torch.manual_seed(1)
    patches = torch.randn(5, 4, 4, 3)
    fitted = DenseHeads(
        {"head.weight": torch.randn(2, 3, 3), "head.bias": torch.zeros(2, 3)}, torch.zeros(3), torch.ones(3), 0.0, 1.0
    )
    whole = judge(fitted, DenseConfig(), patches, found, list(range(5)), 3)
    parts = [judge(fitted, DenseConfig(), patches, found, rows, 3) for rows in ([0, 1], [2, 3, 4])]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    labelled = sum(int((read_label(path, DenseConfig()) >= 0).sum()) for path in found.labels)
    assert whole[0, :, 1].sum() == labelled == 3 * 30 * 32 + 2 * 38 * 64


def test_labels_are_read_as_stated(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1, 150, 255]], np.uint8)).save(tmp_path / "a.png")
    assert read_label(tmp_path / "a.png", DenseConfig()).tolist() == [[0, 1, 150, -1]]
    assert read_label(tmp_path / "a.png", DenseConfig(zero_is_ignored=True)).tolist() == [[-1, 0, 149, -1]]
    Image.fromarray(np.array([[0, 1500, 65535]], np.uint16)).save(tmp_path / "b.png")
    depth = DenseConfig(target="depth", depth_scale=0.001, max_depth=10.0)
    found = read_label(tmp_path / "b.png", depth)
    assert found[0, 1] == 1.5
    assert found.isnan().tolist() == [[True, False, True]]
    with pytest.raises(ValueError, match=r"depth_scale=0.001 for millimetres"):
        read_label(tmp_path / "b.png", DenseConfig(target="depth"))
    np.save(tmp_path / "c.npy", np.array([[np.inf, 2.0, -1.0]]))
    assert read_label(tmp_path / "c.npy", depth).isnan().tolist() == [[True, False, True]]
    np.save(tmp_path / "d.npy", np.array([1, 2]))
    with pytest.raises(ValueError, match="must hold metres as floats"):
        read_label(tmp_path / "d.npy", depth)


@pytest.mark.parametrize("target", ["segmentation", "depth"])
def test_the_task_end_to_end(folder: Path, tmp_path: Path, target: str) -> None:
    config = asked(folder, dense=DenseConfig(target=target))
    results = evaluate(config, tmp_path / "a")
    assert evaluate(config, tmp_path / "b")["rows"] == results["rows"]
    assert json.loads((tmp_path / "a" / "results.json").read_text())["rows"] == results["rows"]
    rows = {row["encoder"]: row for row in results["rows"]}
    assert list(rows) == ["trained", "random", "pixels", "constant"]
    assert (rows["pixels"]["num_train"], rows["pixels"]["num_test"]) == (12, 5)
    if target == "segmentation":
        assert rows["pixels"]["score"] > 0.6 > rows["constant"]["score"]
        assert rows["constant"]["classes"][1:] == [0.0, 0.0]
    else:
        assert rows["pixels"]["score"] < 0.5 < rows["constant"]["score"]
    for row in results["rows"]:
        assert row["low"] <= row["score"] <= row["high"]
    assert f"| encoder | {rows['pixels']['measure']} |" in (tmp_path / "a" / "results.md").read_text()


@pytest.mark.parametrize("target", ["segmentation", "depth"])
def test_unreadable_test_images_count_as_errors(folder: Path, tmp_path: Path, target: str) -> None:
    """The scores are those of the readable images, with the lost one's labelled pixels predicted as none of them."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    write_scene(whole, 6, 3)
    shutil.copytree(whole, part)
    (whole / "images" / "002.png").write_bytes(b"nothing")
    for name in ("images/002.png", "masks/002.png", "depth/002.npy"):
        (part / name).unlink()
    config = asked(folder, dense=DenseConfig(target=target), baselines=())
    results, other = (
        evaluate(dataclasses.replace(config, test=SourceConfig(path=str(path))), tmp_path / f"{path.name}-out")
        for path in (whole, part)
    )
    (one,) = results["unreadable"]["test"]
    assert "002.png" in one["reason"]
    assert "002.png" in (tmp_path / "whole-out" / "report.html").read_text()
    assert ("1 more are left out" if target == "depth" else "1 of them count as wrong") in results["table"]
    lost = int((read_label(whole / "masks" / "002.png", DenseConfig()) >= 0).sum())
    all_ = sum(int((read_label(path, DenseConfig()) >= 0).sum()) for path in (whole / "masks").iterdir())
    for mine, theirs in zip(results["rows"], other["rows"], strict=True):
        assert (mine["unreadable"], theirs["unreadable"]) == (1, 0)
        if target == "depth":
            assert (mine["score"], mine["num_test"]) == (pytest.approx(theirs["score"]), 5)
        else:
            assert mine["num_test"] == 6
            assert mine["second"] == pytest.approx(theirs["second"] * (all_ - lost) / all_)
            assert mine["score"] < theirs["score"]


def test_unreadable_training_images_are_left_out(folder: Path, tmp_path: Path) -> None:
    train = write_scene(tmp_path / "train", 6, 2)
    (train / "images" / "001.png").write_bytes(b"nothing")
    config = asked(folder, train=SourceConfig(path=str(train)), baselines=())
    results = evaluate(config, tmp_path / "out")
    assert [row["num_train"] for row in results["rows"]] == [5, 5]
    assert [one["path"] for one in results["unreadable"]["train"]] == [str(train / "images" / "001.png")]


def test_a_lost_image_is_labelled_and_predicted_nowhere(tmp_path: Path) -> None:
    found = open_dense(str(write_scene(tmp_path / "one", 1, 0)), DenseConfig())
    (sums,) = lost_sums(found, DenseConfig(), 3)
    label = read_label(found.labels[0], DenseConfig())
    assert sums.tolist() == [[0, 0, 0], [float((label == c).sum()) for c in range(3)], [0, 0, 0]]
    assert lost_sums(found, DenseConfig(target="depth"), 1).shape == (0, 4)


def test_errors_by_depth_add_up_to_the_whole() -> None:
    torch.manual_seed(0)
    truth, answer = 1 + 9 * torch.rand(20, 30), 10 * torch.rand(20, 30)
    truth[0] = torch.nan
    edges = [2.0, 4.0, 6.0, 8.0]
    sums = by_range(answer, truth, edges)
    assert torch.allclose(sums.sum(dim=0), dense_metrics.depth_sums(answer, truth))
    near = truth < 4
    assert float(sums[0, 1]) == pytest.approx(float((answer - truth)[near].double().square().sum()), rel=1e-6)


@pytest.mark.parametrize(
    ("values", "edges"),
    [([1.0] * 9 + [4.0], [1.0, 4.0]), ([2.0] * 5, [2.0, 2.0]), ([1.0, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6])],
)
def test_ranges_of_depth_that_hold_no_pixels_are_merged(values: list[float], edges: list[float]) -> None:
    assert depth_edges([Pool(torch.zeros(len(values), 2), torch.tensor(values))]) == pytest.approx(edges)
    truth = torch.tensor([values])
    assert by_range(truth, truth, edges)[:, 0].sum() == len(values)


@pytest.mark.parametrize("target", ["segmentation", "depth"])
def test_the_page_shows_labels_beside_answers(folder: Path, tmp_path: Path, target: str) -> None:
    results = evaluate(asked(folder, dense=DenseConfig(target=target)), tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert text.count("data:image/png") == 5 * (2 + 3) + (target == "depth")  # the colour bar
    words = ["IoU by class", "takes for what", "class 2"] if target == "segmentation" else ["Error by depth", "3.00 m"]
    for word in ("Labels and answers", "What was run", *words):
        assert word in text
    if target == "segmentation":  # the confusion's rows are the classes' pixels, its diagonal gives their IoU
        counts = torch.tensor(results["looks"]["pixels"]).double()
        iou = counts.diagonal() / (counts.sum(dim=0) + counts.sum(dim=1) - counts.diagonal())
        row = next(row for row in results["rows"] if row["encoder"] == "pixels")
        assert iou.tolist() == pytest.approx(row["classes"])


def test_two_processes_give_the_same_rows(folder: Path, tmp_path: Path) -> None:
    alone = json.loads(json.dumps(evaluate(asked(folder), tmp_path)))
    for found in by_two(asked(folder)):
        assert [row["chosen"] for row in found["rows"]] == [row["chosen"] for row in alone["rows"]]
        for mine, theirs in zip(found["rows"], alone["rows"], strict=True):
            assert mine["score"] == pytest.approx(theirs["score"], abs=1e-6)


def test_images_and_labels_that_cannot_be_used(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(folder / "run"), "--task", "dense", "--out", str(tmp_path / "out"), "--device", "cpu"]
    data = ["--train", str(folder / "train"), "--test", str(folder / "test")]
    lonely = write_scene(tmp_path / "lonely", 2, 2)
    (lonely / "masks" / "001.png").unlink()
    more = write_scene(tmp_path / "more", 2, 3)
    Image.fromarray(np.full((32, 32), 7, np.uint8)).save(more / "masks" / "000.png")
    broken = write_scene(tmp_path / "broken", 2, 3)
    for path in (broken / "images").iterdir():
        path.write_bytes(b"nothing")
    empty = write_scene(tmp_path / "empty", 2, 4)
    for path in (empty / "masks").iterdir():
        Image.fromarray(np.full((32, 32), 255, np.uint8)).save(path)
    for wrong, message in (
        (data[:2], "needs --train FOLDER and --test FOLDER"),
        ([*data, "--probe", "knn"], "has one probe"),
        ([*data, "--cells", "1,2,2"], "leave --segments and --cells out"),
        ([*data[:2], "--test", str(folder / "train")], "(12 are in both)"),
        ([*data[:2], "--test", str(lonely)], "has no file 001 (1 images or labels stand alone)"),
        ([*data[:2], "--test", str(more)], "has the class 7, but the classes are 0 to 2"),
        ([*data[:2], "--test", str(broken)], "no clip can be decoded"),
        ([*data[2:], "--train", str(empty)], "no pixel of masks has a label"),
        ([*data, "--set", "dense.labels=annotations"], "must hold the folders images and annotations"),
        ([*data, "--set", "dense.num_classes=2"], "has the class 2, but dense.num_classes is 2"),
        ([*data, "--set", "dense.side=33"], "33"),
    ):
        assert main([*arguments, *wrong]) == 2, wrong
        assert message in capsys.readouterr().err
