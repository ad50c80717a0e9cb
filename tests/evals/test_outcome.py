"""What an eval keeps and shows: every clip's prediction, clips that cannot be decoded, heads on test, the page."""

import base64
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evals import metrics
from evals.main import evaluate
from evals.outcome import Outcome, judge
from evals.pages import eval_page, sections
from evals.probes import HeadScore, ProbeConfig, ProbeResult
from evals.settings import EvalConfig
from evals.tasks.video import classify_videos
from jepa.checkpoint import save_checkpoint
from jepa.config import to_dict
from jepa.data.sources import SourceConfig
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.types import ClipConfig

CLIP = ClipConfig(num_frames=2, fps=8.0, crop_size=16)
NAMES = ("blue", "green", "red")
COLOURS = {"red": (220, 40, 40), "green": (40, 220, 40), "blue": (40, 40, 220)}


def write_pictures(folder: Path, count: int, seed: int, broken: tuple[int, ...] = (), wrong: int = 0) -> Path:
    """A CSV of flat pictures in three colours with noise; ``broken`` files hold no picture, the first ``wrong`` labels
    are not those of their colour."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        name = NAMES[number % 3]
        pixels = np.clip(rng.integers(-40, 40, (16, 16, 3)) + np.array(COLOURS[name]), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        if number in broken:
            (folder / f"{number}.png").write_bytes(b"no picture")
        lines.append(f"{number}.png,{NAMES[(number + (number < wrong)) % 3]}")
    (folder / "list.csv").write_text("path,label\n" + "\n".join(lines))
    return folder / "list.csv"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EvalConfig:
    root = tmp_path_factory.mktemp("outcome")
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(embed_dim=24, depth=1, num_heads=2, patch_size=8, tubelet_size=2), CLIP)
    state = {
        "config": {}, "clip": to_dict(CLIP), "encoder_config": to_dict(encoder.config),
        "objective": {f"target_encoder.{k}": v for k, v in encoder.state_dict().items()},
    }  # fmt: skip
    save_checkpoint(root / "run", 3, state)
    train = write_pictures(root / "train", 30, 0, broken=(4,))
    test = write_pictures(root / "test", 21, 1, broken=(10, 11), wrong=3)
    return EvalConfig(
        run=str(root / "run"), train=SourceConfig(path=str(train)), test=SourceConfig(path=str(test)), device="cpu",
        probes=(ProbeConfig(kind="knn", neighbours=(1, 3)), ProbeConfig(steps=40)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def results(config: EvalConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("results")
    evaluate(config, out)
    return json.loads((out / "results.json").read_text()), out


def test_test_clips_that_cannot_be_decoded_are_errors(results: tuple[dict[str, Any], Path]) -> None:
    stored, out = results
    row = next(row for row in stored["rows"] if (row["probe"], row["encoder"]) == ("linear", "pixels"))
    assert (row["num_train"], row["num_test"], row["num_undecodable"]) == (29, 21, 2)
    assert row["accuracy"] == pytest.approx(16 / 21)  # 2 of 21 have no features, 3 carry a wrong label
    assert row["per_class"] == pytest.approx({"blue": 6 / 7, "green": 5 / 7, "red": 5 / 7})
    assert sum(sum(said.values()) for said in row["confusion"].values()) == 19
    assert max(row["heads_on_test"]) == row["max_on_test"] <= 19 / 21
    for split, files in (("test", ("10.png", "11.png")), ("train", ("4.png",))):
        listed = stored["undecodable"][split]
        assert [Path(clip["path"]).name for clip in listed] == list(files)
        assert all(file in clip["reason"] for file, clip in zip(files, listed, strict=True))
    written = (out / "results.md").read_text()
    assert "2 test clips cannot be decoded and count as errors" in written
    assert "1 train clips cannot be decoded and are left out" in written


def test_features_from_the_cache_count_the_same(config: EvalConfig, tmp_path: Path) -> None:
    def without_seconds(path: Path) -> dict[str, Any]:
        found = json.loads((path / "results.json").read_text())
        for part in (found, *found["rows"]):
            part["seconds"] = None
        found["config"]["out"] = None
        return found

    evaluate(config, tmp_path / "first")
    evaluate(config, tmp_path / "again")
    first, again = without_seconds(tmp_path / "first"), without_seconds(tmp_path / "again")
    assert first == again
    assert len(again["undecodable"]["test"]) == 2
    one, two = (np.load(tmp_path / name / "predictions.npz") for name in ("first", "again"))
    assert one.files == two.files
    assert all(np.array_equal(one[name], two[name], equal_nan=name == "span_s") for name in one.files)


def test_every_clip_s_prediction_is_kept(results: tuple[dict[str, Any], Path]) -> None:
    stored, out = results
    arrays = np.load(out / "predictions.npz")
    labels = arrays["labels/label"]
    assert [Path(path).name for path in arrays["path"]] == [f"{n}.png" for n in range(21)]
    assert all(Path(path).is_absolute() for path in arrays["path"])
    assert np.isnan(arrays["span_s"]).all()
    for row in stored["rows"]:
        name = f"{row['probe']}/label/{row['encoder']}"
        said, shares = arrays[f"{name}/predictions"], arrays[f"{name}/probabilities"]
        assert row["accuracy"] == pytest.approx((said == labels).mean())
        assert said[[10, 11]].tolist() == [-1, -1]
        assert not shares[[10, 11]].any()
        known = said >= 0
        assert np.array_equal(shares[known].argmax(axis=1), said[known])
        assert shares[known].sum(axis=1) == pytest.approx(np.ones(19), abs=1e-5)
        low, high = row["interval"]
        assert low <= row["accuracy"] <= high


def test_every_head_is_kept_on_both_sets(results: tuple[dict[str, Any], Path]) -> None:
    for row in results[0]["rows"]:
        assert len(row["heads"]) == len(row["heads_on_test"]) == (2 if row["probe"] == "knn" else 16)
        chosen = next(n for n, head in enumerate(row["heads"]) if head["setting"] == row["chosen"])
        assert row["heads_on_test"][chosen] == pytest.approx(row["accuracy"])
        assert row["held_out"] == row["heads"][chosen]["accuracy"] == max(h["accuracy"] for h in row["heads"])


def made_outcome(chosen: int) -> Outcome:
    """Two heads on clips 0, 1, 2, 4 of six: clip 3 cannot be decoded, clip 5 has no label."""
    says = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0]])
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.8, 0.2]])
    heads = [HeadScore({"penalty": 0.0}, 0.5, 1.0), HeadScore({"penalty": 1.0}, 0.7, 1.0)]
    result = ProbeResult(
        "logistic", 0.0, 0.0, 0.0, heads[chosen].setting, heads, says[chosen], probabilities, says, 9, 4, 2, 0.1
    )
    labels = torch.tensor([0, 1, 1, 1, 1, -1])
    return judge(result, "label", "trained", labels, torch.tensor([0, 1, 2, 4]), ("a", "b"), 0.25)


def test_the_maximum_on_test_stands_apart() -> None:
    row = made_outcome(chosen=1).row
    assert row.accuracy == pytest.approx(1 / 5)
    assert row.heads_on_test == pytest.approx([3 / 5, 1 / 5])
    assert row.max_on_test == pytest.approx(3 / 5)
    assert (row.held_out, row.num_test, row.num_undecodable) == (0.7, 5, 1)
    assert row.per_class == {"a": 1.0, "b": 0.0}
    assert row.confusion == {"a": {"a": 1}, "b": {"a": 3}}


def slow_among_top(probabilities: torch.Tensor, label: int, count: int) -> float:
    """The share of all orders by probability, ties in any order, in which the label is among the first ``count``."""
    scores = probabilities.tolist()
    orders = [order for order in itertools.permutations(range(len(scores)))
              if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))]  # fmt: skip
    return float(np.mean([label in order[:count] for order in orders]))


def test_among_the_most_probable_draws_among_ties() -> None:
    rng = np.random.default_rng(0)
    probabilities = torch.from_numpy(rng.integers(0, 4, (30, 6)) / 8)
    labels = torch.from_numpy(rng.integers(0, 6, 30))
    for count in (1, 2, 5):
        found = metrics.among_top(probabilities, labels, count)
        slow = [slow_among_top(row, int(label), count) for row, label in zip(probabilities, labels, strict=True)]
        assert found.tolist() == pytest.approx(slow)
    assert metrics.among_top(torch.zeros(1, 8), torch.tensor([3]), 5).item() == 5 / 8  # as much as guessing
    unequal = torch.tensor([0.1, 0.4, 0.3, 0.2])
    assert metrics.among_top(unequal.expand(4, 4), torch.arange(4), 2).tolist() == [0.0, 1.0, 1.0, 0.0]


def test_class_mean_weighs_classes_alike() -> None:
    hits, labels = torch.tensor([1.0, 0.0, 1.0, 0.5, 0.0]), torch.tensor([4, 4, 4, 4, 1])
    assert metrics.class_mean(hits, labels) == pytest.approx((2.5 / 4 + 0.0) / 2)  # classes without clips do not count
    slow = np.mean([hits[labels == c].mean() for c in (1, 4)])
    assert metrics.class_mean(hits, labels) == pytest.approx(float(slow))


def test_top_five_counts_lost_clips_as_errors() -> None:
    others = torch.tensor([0.1, 0.09, 0.08, 0.07, 0.06, 0.05, 0.05])
    probabilities = torch.eye(7)[torch.tensor([0, 1, 2])] * 0.5 + others
    says = probabilities.argmax(dim=1)[None]
    heads = [HeadScore({"penalty": 1.0}, 0.7, 1.0)]
    result = ProbeResult("logistic", 0.0, 0.0, 0.0, heads[0].setting, heads, says[0], probabilities, says, 9, 3, 7, 0.1)
    labels = torch.tensor([0, 6, 2, 0])  # the second is last but one or last of seven, the fourth cannot be decoded
    row = judge(result, "label", "trained", labels, torch.tensor([0, 1, 2]), tuple("abcdefg"), 0.25).row
    assert row.top5 == pytest.approx(2 / 4)
    assert row.recall_at_5 == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert (made_outcome(chosen=1).row.top5, made_outcome(chosen=1).row.recall_at_5) == (None, None)


def test_confident_mistakes_come_surest_first() -> None:
    assert eval_page.confident_mistakes(made_outcome(chosen=1)) == [4, 2, 1]  # neither the lost clip nor the unlabelled
    assert eval_page.confident_mistakes(made_outcome(chosen=1), most=1) == [4]


def test_the_page_is_self_contained_and_says_it_all(results: tuple[dict[str, Any], Path]) -> None:
    text = (results[1] / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    row = results[0]["rows"][0]
    low, high = row["interval"]
    assert f"{100 * row['accuracy']:.1f} ± {100 * row['error']:.1f} [{100 * low:.1f},\u00a0{100 * high:.1f}]" in text
    for words in (
        "Confusion", "Accuracy by class", "Most confident mistakes", "max over heads on test", "What was run",
        "2 test clips cannot be decoded and count as errors", "The whole configuration", "torch",
        "Pretraining saw no labels",
    ):  # fmt: skip
        assert words in text
    assert text.count("data:image/jpeg") == len(re.findall(r"said \w+ \(\d+ %\), is", text)) >= 3


def test_a_picture_is_shown_once_not_as_three_equal_frames(results: tuple[dict[str, Any], Path]) -> None:
    found = re.findall(r"data:image/jpeg;base64,([^\"]+)", (results[1] / "report.html").read_text())
    sizes = {Image.open(io.BytesIO(base64.b64decode(one))).size for one in found}
    assert all(width == height for width, height in sizes)


def test_the_headline_is_english(results: tuple[dict[str, Any], Path]) -> None:
    for probe, words in (("attentive", "An attentive"), ("knn", "A knn")):
        rows = [{**row, "probe": probe} for row in results[0]["rows"] if row["probe"] == results[0]["rows"][0]["probe"]]
        assert sections.headline({**results[0], "rows": rows}).startswith(f"{words} probe reads ")


def test_the_headline_of_anticipation_is_its_recall(results: tuple[dict[str, Any], Path]) -> None:
    seen = {"trained": "the clip alone: it has no predictor"}
    rows = [{**row, "recall_at_5": 0.375} for row in results[0]["rows"]]
    text = sections.headline({**results[0], "rows": rows, "anticipation": {"anticipation_s": 1.5, "seen": seen}})
    assert "from the frozen trained encoder with 37.5 % mean-class recall at 5" in text
    assert "by chance" not in text
    assert "Clips end 1.5 s before the action. Probes of trained see the clip alone: it has no predictor." in text


def test_the_page_of_a_published_probe_says_that_nothing_was_fitted(results: tuple[dict[str, Any], Path]) -> None:
    assert "head is chosen on 20 % of the training clips" in sections.probe_section(results[0])
    rows = [row for row in results[0]["rows"] if row["encoder"] == "trained"]
    text = sections.probe_section({**results[0], "rows": rows, "config": {"probes": [{"kind": "published"}]}})
    assert "nothing was fitted here" in text
    assert "head is chosen" not in text
    assert "fresh weights" not in text  # no such column


def test_a_file_that_went_away_leaves_a_placeholder(config: EvalConfig, tmp_path: Path) -> None:
    test = write_pictures(tmp_path / "gone", 12, 2, wrong=2)
    asked = EvalConfig(run=config.run, train=config.train, test=SourceConfig(path=str(test)), device="cpu",
                       probes=config.probes[1:], baselines=(), cache_gb=0)  # fmt: skip
    result = classify_videos(asked)
    (tmp_path / "gone" / "0.png").unlink()
    assert result.report is not None
    shell = {"rows": [row._asdict() for row in result.rows], "config": to_dict(asked), "seconds": {"total": 1.0},
             "code_version": "1", **result.facts}  # fmt: skip
    text = result.report(shell)
    assert text.count("the file cannot be read any more") == 1
    assert "said blue" in text or "said green" in text or "said red" in text
