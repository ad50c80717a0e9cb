"""Physics by surprise: scores worked out by hand, a slow bootstrap, and the command on a tiny world."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import by_two
from support import error_of, tiny_settings
from torch import Tensor

import jepa
from app.cli import main
from evals.main import evaluate
from evals.pages.physics_section import physics_section
from evals.pairwise import auroc, binomial_interval, bootstrap_interval, pairs_right
from evals.physics import LatentWatcher, Pair, PixelWatcher, read_pairs, split_pairs, untrained, watch
from evals.probes.sklearn_bridge import digit_images
from evals.settings import EvalConfig
from evals.tasks.physics import by_context, score, table, world_for
from evals.watching import Watching, watched_clip
from jepa.config import ConfigError, from_dict
from jepa.data.encoding import write_video
from jepa.data.sources import SourceConfig
from jepa.data.synthetic.dataset import Glyphs
from jepa.data.synthetic.physics import PhysicsConfig, write_physics
from jepa.distributed import Run
from jepa.predictive import load_predictive
from jepa.train import TrainConfig, fit
from jepa.types import ClipConfig

CPU = Run(torch.device("cpu"), "fp32")
CLIP = ClipConfig(num_frames=4, frame_step=1, crop_size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
RNG = np.random.default_rng(0)


# ---- numbers ------------------------------------------------------------------------------------------------------


def test_auroc_is_the_share_of_all_comparisons_won() -> None:
    for _ in range(20):
        negatives, positives = RNG.integers(0, 6, 7).astype(float), RNG.integers(1, 8, 5).astype(float)
        negatives[0], positives[0] = np.inf, -np.inf
        won = [(p > n) + 0.5 * (p == n) for p, n in itertools.product(positives, negatives)]
        assert auroc(negatives, positives) == pytest.approx(np.mean(won))
    assert auroc(np.zeros(3), np.ones(2)) == 1.0
    assert auroc(np.zeros(3), np.zeros(2)) == 0.5


def test_bootstrap_draws_whole_scenes_and_agrees_with_a_slow_one() -> None:
    right = RNG.integers(0, 2, 30).astype(float)
    scenes = [f"scene {k % 11}" for k in range(30)]
    low, high = bootstrap_interval(right, scenes, draws=500, seed=3)
    rng, names, means = np.random.default_rng(3), np.unique(scenes), []
    for row in rng.integers(len(names), size=(500, len(names))):
        drawn = [value for pick in row for value, scene in zip(right, scenes) if scene == names[pick]]
        means.append(sum(drawn) / len(drawn))
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    # a scene whose pairs cancel out says nothing more than chance, however many there are of its kind
    assert bootstrap_interval(np.array([1.0, 0.0] * 20), [str(k // 2) for k in range(40)]) == (0.5, 0.5)


def test_binomial_interval_against_known_values() -> None:
    assert binomial_interval(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson, 8 of 10
    assert binomial_interval(1.0, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert pairs_right(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 1.0])).tolist() == [1.0, 0.5, 0.0]


# ---- a world of brightness, and a watcher whose surprise is known ---------------------------------------------------


class Brightness:
    """Surprise is how bright the predicted frames are, times ``sign``."""

    clip, tubelet, patch = CLIP, 2, 8

    def __init__(self, name: str, sign: float) -> None:
        self.names, self.sign, self.windows = (name,), sign, 0

    def errors(self, clip: Tensor, contexts: Sequence[int]) -> Tensor:
        self.windows += len(clip)
        by_tubelet = self.sign * (clip.mean(dim=(1, 3, 4)) + 1).unflatten(1, (-1, 2)).mean(dim=2) / 2
        found = by_tubelet[:, None, None].repeat(1, 1, len(contexts), 1)
        found[..., 0] = torch.nan
        return found


def grey(path: Path, *levels: int) -> str:
    write_video(path, np.repeat(np.array(levels, dtype=np.uint8), 16 * 16 * 3).reshape(-1, 16, 16, 3), 8.0, crf=0)
    return str(path)


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """Three conditions: clear, reversed, and one whose impossible video is no video."""
    dark, lit = grey(tmp_path / "dark.mp4", *[20] * 8), grey(tmp_path / "lit.mp4", *[20] * 4, *[220] * 4)
    half, flash = grey(tmp_path / "half.mp4", *[100] * 8), grey(tmp_path / "flash.mp4", *[20] * 6, 240, 240)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    return [
        Pair("clear", dark, lit, "a", 0.5), Pair("clear", half, flash, "b"), Pair("reversed", lit, half, "c"),
        Pair("broken", dark, str(tmp_path / "broken.mp4"), "d"),
    ]  # fmt: skip


def test_known_surprise_gives_known_scores(pairs: list[Pair]) -> None:
    watcher = Brightness("bright", 1.0)
    watched = watch(pairs, [watcher, Brightness("dim", -1.0)], Watching(context_frames=(8,)), CPU)
    assert list(watched.failures) == [pairs[3].impossible]
    assert "broken.mp4" in watched.failures[pairs[3].impossible]
    rows = {(row.predictor, row.condition, row.over): row for row in score(pairs, watched)}
    # windows of 4 frames, one tubelet apart, the second tubelet predicted. lit: 20, 220, 220; flash: 20, 20, 240
    curve = watched.curves["bright"][pairs[0].impossible]
    np.testing.assert_allclose(curve.window_surprise[0] * 255, [20, 220, 220], atol=2)
    assert curve.score("mean") * 255 == pytest.approx(460 / 3, abs=2)
    assert curve.score("max") * 255 == pytest.approx(220, abs=2)
    assert rows["bright", "clear", "mean"].accuracy == 0.5  # 153 above 20; 93 below 100
    assert rows["bright", "clear", "max"].accuracy == 1.0
    assert rows["bright", "clear", "mean"].auroc == 0.75  # 153 above 20 and 100, 93 above 20 only
    assert rows["bright", "reversed", "mean"].accuracy == 0.0
    assert rows["dim", "reversed", "mean"].accuracy == 1.0
    for predictor in ("bright", "dim"):  # unreadable: wrong for everyone
        row = rows[predictor, "broken", "mean"]
        assert (row.accuracy, row.auroc, row.unreadable) == (0.0, 0.0, 1)
    every = rows["bright", "all", "mean"]
    assert (every.accuracy, every.pairs, every.scenes, every.unreadable) == (0.25, 4, 4, 1)
    # possible 20, 100, 153 (dark stands in two pairs: once); impossible 153, 93, 100, and one that lost everything
    assert every.auroc == pytest.approx((2.5 + 1 + 1.5 + 0) / 12)
    assert by_context(pairs, watched)["bright"] == {"1": 0.25}
    assert "1 pairs have an unreadable video" in table(list(rows.values()))
    # dark's three windows are one; lit adds 20-to-220 and 220; half one; flash 20-to-240: the rest was seen before
    assert watcher.windows == 5


def test_surprise_that_is_no_number_is_an_error(pairs: list[Pair]) -> None:
    with pytest.raises(ValueError, match="the surprise of 'broken' is not finite"):
        watch(pairs[:1], [Brightness("broken", float("nan"))], Watching(), CPU)


def test_pixel_predictors_by_hand() -> None:
    levels = torch.tensor([0.0, 0.2, 0.4, 0.3]) * 2 - 1  # black -1, white 1
    clip = levels.view(1, 1, 4, 1, 1).expand(1, 3, 4, 16, 16)
    errors = PixelWatcher(Brightness("like", 1.0)).errors(clip, (1,))[0, :, 0]
    assert errors[:, 0].isnan().all()
    # from 0.2: stays 0.2, 0.2; goes on 0.4, 0.6; each to the next 0.2, 0.1. A unit of brightness is 2 wide here
    assert errors[:, 1].tolist() == pytest.approx([2 * 0.15, 2 * 0.15, 2 * 0.15], abs=1e-6)
    falling = torch.tensor([0.9, 0.1, 0.1, 0.0]) * 2 - 1
    errors = PixelWatcher(Brightness("like", 1.0)).errors(falling.view(1, 1, 4, 1, 1).expand(1, 3, 4, 16, 16), (1,))
    assert errors[0, :, 0, 1].tolist() == pytest.approx([0.1, 0.1, 0.1], abs=1e-6)  # clamped to black: 0.1 off, then 0


def test_contexts_and_clips_scale_to_the_model() -> None:
    protocol = Watching()
    assert protocol.contexts(8) == (1, 2, 3, 4, 5)  # the protocol's own: 16 frames in tubelets of 2
    assert protocol.contexts(4) == (1, 2, 3)
    assert protocol.contexts(2) == (1,)
    with pytest.raises(ValueError, match="one tubelet long"):
        protocol.contexts(1)
    with pytest.raises(ValueError, match="between 1 and 15"):
        Watching(context_frames=(16,))
    assert watched_clip(CLIP, Watching(clip_fps=5.0, num_frames=8)).fps == 5.0
    timed = ClipConfig(num_frames=4, duration_s=1.0, crop_size=16)
    assert watched_clip(timed, Watching(num_frames=8)).duration_s == 2.0
    assert (world_for(CLIP, 2).num_frames, world_for(CLIP, 2).side) == (8, 16)
    assert world_for(ClipConfig(num_frames=8, fps=8.0, crop_size=65), 2).num_frames == 32  # of 16 per second


# ---- files and the command ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("physics")
    settings = tiny_settings(folder, steps=2)
    fit(from_dict(TrainConfig, settings))
    return Path(settings["run_dir"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = PhysicsConfig(pairs=2, num_frames=8, side=32, conditions=("vanish", "inertia"))
    return write_physics(tmp_path_factory.mktemp("world"), Glyphs(*digit_images()), config, workers=1)


def test_the_curves_are_those_of_jepa_surprise(run_dir: Path, world: Path) -> None:
    pairs, parts = read_pairs(world), load_predictive(str(run_dir))
    watched = watch(pairs, [LatentWatcher("model", parts, CPU, Watching(), copy=True)], Watching(), CPU)
    for path in (pairs[0].possible, pairs[3].impossible):
        alone = jepa.surprise(path, parts, 1, device="cpu")
        torch.testing.assert_close(watched.curves["model"][path].surprise, alone.surprise, equal_nan=True)
        torch.testing.assert_close(watched.curves["latents stay"][path].surprise, alone.copy_last, equal_nan=True)
        assert watched.curves["model"][path].score() == pytest.approx(alone.score())


def test_the_untrained_twin_has_the_same_shape_and_other_weights(run_dir: Path) -> None:
    parts = load_predictive(str(run_dir))
    first, again, other = untrained(parts, 1), untrained(parts, 1), untrained(parts, 2)
    for name, value in first.predictor.state_dict().items():
        assert value.shape == parts.predictor.state_dict()[name].shape
        assert torch.equal(value, again.predictor.state_dict()[name])
    assert not torch.equal(first.predictor.mask_tokens[0], other.predictor.mask_tokens[0])
    assert not torch.equal(first.predictor.predictor_proj.weight, parts.predictor.predictor_proj.weight)
    assert first.context_encoder is first.target_encoder
    assert torch.equal(first.predictor.predictor_proj.bias, torch.zeros_like(first.predictor.predictor_proj.bias))


def test_the_command_writes_results_and_twice_the_same(
    run_dir: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outs = []
    for name in ("a", "b"):
        options = ["--test", str(world.parent), "--device", "cpu", "--out", str(tmp_path / name)]
        assert main(["eval", str(run_dir), "--task", "physics", *options]) == 0
        outs.append(json.loads((tmp_path / name / "results.json").read_text()))
    for part in ("rows", "pairs", "table", "by_context"):
        assert outs[0][part] == outs[1][part]
    assert outs[0]["table"] in capsys.readouterr().out
    assert outs[0]["table"] in (tmp_path / "a" / "results.md").read_text()
    names = ["trained", "latents stay", "random", "pixels stay", "pixels go on", "pixel change"]
    assert list(dict.fromkeys(row["predictor"] for row in outs[0]["rows"])) == names
    assert [pair["condition"] for pair in outs[0]["pairs"]] == ["vanish"] * 2 + ["inertia"] * 2
    with Image.open(tmp_path / "a" / "physics.png") as picture:
        assert min(picture.size) > 200
    for row in outs[0]["rows"]:  # the rows follow from the pairs' own surprise
        part = [p["surprise"][row["predictor"]][row["over"]] for p in outs[0]["pairs"]
                if row["condition"] in (p["condition"], "all")]  # fmt: skip
        assert row["accuracy"] == pytest.approx(np.mean([(b > a) + 0.5 * (a == b) for a, b in part]))
        assert row["low"] <= row["accuracy"] <= row["high"]
    section = physics_section(tmp_path / "a")
    assert section.count("data:image/png;base64,") == 1
    for row in outs[0]["rows"]:
        assert f"{100 * row['accuracy']:.1f}\u00a0% [{100 * row['low']:.0f},\u00a0{100 * row['high']:.0f}]" in section
    assert physics_section(None) == ""
    # pixels: the two pairs of a vanishing scene cancel out in the mean, whatever is in them
    means = [row for row in outs[0]["rows"] if row["over"] == "mean" and row["condition"] == "vanish"]
    assert {row["predictor"]: row["accuracy"] for row in means}["pixels stay"] == 0.5


def test_two_processes_share_the_videos(run_dir: Path, world: Path, tmp_path: Path) -> None:
    config = EvalConfig(
        run=str(run_dir), task="physics", device="cpu", test=SourceConfig(path=str(world)), out=str(tmp_path / "out"),
    )  # fmt: skip
    alone = evaluate(config)
    assert len(alone["context_rows"]) == len(alone["rows"]) * len(alone["contexts"]["trained"])
    for found in by_two(config, "context_rows", "pairs"):
        assert found["rows"] == alone["rows"]
        assert found["context_rows"] == alone["context_rows"]
        for mine, theirs in zip(found["pairs"], alone["pairs"], strict=True):
            assert mine["possible"] == theirs["possible"]
            for name, scores in mine["surprise"].items():
                assert scores["mean"] == pytest.approx(theirs["surprise"][name]["mean"], rel=1e-5)


def test_videos_of_a_pair_or_a_scene_stay_together() -> None:
    pairs = [
        Pair("a", "1", "2", "x"), Pair("a", "3", "4", "y"), Pair("a", "5", "6", "x"), Pair("b", "7", "8", "x"),
        Pair("b", "3", "9", "z", fps=5.0),
    ]  # fmt: skip
    first, second = split_pairs(pairs, 2)
    assert set(first) == {"1", "2", "5", "6", "7", "8"}  # scene x of condition a; that of condition b is another
    assert second == {"3": 5.0, "4": None, "9": 5.0}  # video 3 stands in two pairs
    assert split_pairs(pairs, 1)[0].keys() == first.keys() | second.keys()
    assert split_pairs(pairs[:1], 2)[1] == {}


def test_the_page_has_every_context_length_and_measure(run_dir: Path, world: Path, tmp_path: Path) -> None:
    config = EvalConfig(
        run=str(run_dir), task="physics", device="cpu", test=SourceConfig(path=str(world)), out=str(tmp_path / "out"),
    )  # fmt: skip
    results = evaluate(config)
    text = (tmp_path / "out" / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert (text.count("data:image/png;base64,"), text.count("data:image/svg+xml;base64,")) == (1, 1)
    lengths = results["contexts"]["trained"]
    for words in ("AUROC", "What was run", *(f"{n} tubelets seen, by the largest surprise" for n in lengths)):
        assert words in text
    for row in [*results["rows"], *results["context_rows"]]:
        assert f"{100 * row['accuracy']:.1f}\u00a0% [{100 * row['low']:.0f},\u00a0{100 * row['high']:.0f}]" in text


def test_without_pairs_the_built_in_world_is_rendered(run_dir: Path) -> None:
    config = EvalConfig(run=str(run_dir), task="physics", device="cpu", watching=Watching(pairs=2), baselines=())
    results = evaluate(config)
    assert (run_dir / "evals" / "physics" / "pairs-2-8x32" / "pairs.csv").exists()
    assert len(results["pairs"]) == 16
    assert {row["predictor"] for row in results["rows"]} == {"trained", "latents stay"}


def test_a_published_layout_is_watched(run_dir: Path, tmp_path: Path) -> None:
    for number in range(1, 5):
        scene = tmp_path / "dev" / "O1" / "01" / str(number) / "scene"
        scene.mkdir(parents=True)
        for frame in range(6):
            level = 40 * number if frame < 4 else 250 * (number % 2)
            Image.new("RGB", (32, 32), (level, level, level)).save(scene / f"scene_{frame:03d}.png")
        status = {"header": {"is_possible": number <= 2}}
        (scene.parent / "status.json").write_text(json.dumps(status))
    options = ["--dataset", "intphys", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["eval", str(run_dir), "--task", "physics", *options]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {(row["condition"], row["pairs"], row["scenes"]) for row in results["rows"]} == {("O1", 4, 1)}
    assert len({pair["possible"] for pair in results["pairs"]}) == 2


def test_what_is_wrong_is_named(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table_file = tmp_path / "pairs.csv"
    with pytest.raises(ConfigError, match="cannot be read as pairs"):
        read_pairs(table_file)
    for rows, message in (
        ([], "lists no pair"),
        ([("vanish", "a.mp4", "")], "pair 0: no 'impossible'"),
        ([("vanish", "a.mp4", "b.mp4")], "no video can be read; the first: .*a.mp4"),
    ):
        with table_file.open("w", newline="") as file:
            csv.writer(file).writerows([("condition", "possible", "impossible"), *rows])
        config = EvalConfig(
            run=str(run_dir), task="physics", test=SourceConfig(path=str(table_file)), out=str(tmp_path / "out"),
            device="cpu",
        )  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            evaluate(config)
    command = ["eval", str(run_dir), "--task", "physics", "--context-frames", "2,x"]
    assert "--context-frames needs whole numbers" in error_of(command, capsys)
