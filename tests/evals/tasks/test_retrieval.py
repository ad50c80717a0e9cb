"""Retrieval and copy detection: scores against slow formulations and scikit-learn, copies that are what they say."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from support import write_clips

from evals.degrade import degrade, degraded, lengthened, shift_frames
from evals.features.harness import FeatureSet
from evals.features.rows import Rows
from evals.main import evaluate, main
from evals.ranking import average_precision, cosines, recall_at
from evals.settings import EvalConfig
from evals.task_configs import RetrievalConfig
from evals.tasks.retrieval import class_row, copy_row
from jepa.checkpoint import save_checkpoint
from jepa.config import to_dict
from jepa.data.loader import eval_options
from jepa.data.sources import SourceConfig, open_source
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.types import ClipConfig, TokenGrid

CLIP = ClipConfig(num_frames=4, fps=8.0, crop_size=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("retrieval")
    for split, count, seed in (("train", 20, 0), ("test", 12, 1)):
        write_clips(root / f"{split}.npz", clips=count, seed=seed, frames=8)
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(embed_dim=24, depth=1, num_heads=2, patch_size=8, tubelet_size=2), CLIP)
    weights = {f"target_encoder.{k}": v for k, v in encoder.state_dict().items()}
    data = {"sources": [{"path": str(root / "train.npz")}], "validation": [{"path": str(root / "test.npz")}]}
    state = {"config": {"data": data}, "clip": to_dict(CLIP), "encoder_config": to_dict(encoder.config)}
    save_checkpoint(root / "run", 3, {**state, "objective": weights})
    return root


def features(vectors: np.ndarray, items: list[int] | None = None) -> FeatureSet:
    found = torch.arange(len(vectors)) if items is None else torch.tensor(items)
    return FeatureSet(found, None, Rows.of(torch.from_numpy(vectors.astype(np.float32))), TokenGrid(1, 1, 1))


def slow_average_precision(scores: np.ndarray, right: np.ndarray, total: int) -> float:
    """Over every threshold: precision there times the recall gained."""
    area, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = scores >= threshold
        recall = right[taken].sum() / total
        area += (recall - before) * right[taken].mean()
        before = recall
    return area


def test_average_precision_is_the_area_over_thresholds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.integers(0, 12, 40) / 4  # with ties
        right = rng.random(40) < 0.3
        right[0] = True
        ours = average_precision([scores[:15], scores[15:].reshape(5, 5)], scores[right])
        assert ours == pytest.approx(slow_average_precision(scores, right, right.sum()), abs=1e-12)
        assert ours == pytest.approx(average_precision_score(right, scores), abs=1e-12)
        missed = average_precision([scores], scores[right], total=2 * int(right.sum()))
        assert missed == pytest.approx(ours / 2)
    hand = average_precision([np.array([0.9, 0.8, 0.7, 0.6])], np.array([0.9, 0.7]))
    assert hand == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_recall_draws_among_ties() -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        scores, right = rng.integers(0, 3, 6).astype(float), rng.random(6) < 0.4
        for k in (1, 2, 4, 6, 9):
            orders = [order for order in itertools.permutations(range(6)) if (np.diff(scores[list(order)]) <= 0).all()]
            slow = np.mean([right[list(order[:k])].any() for order in orders])
            assert recall_at(scores, right, k) == pytest.approx(slow, abs=1e-12)


def test_cosines_tie_for_equal_vectors_and_zero_is_near_to_nothing() -> None:
    vectors = np.array([[3.0, 4.0], [6.0, 8.0], [0.0, 0.0], [-4.0, 3.0]])
    assert cosines(vectors[:1], vectors).tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_leave_one_out_equals_a_loop() -> None:
    rng = np.random.default_rng(2)
    vectors, labels = rng.normal(size=(15, 4)), rng.integers(0, 3, 15)
    labels[4] = -1  # without a label: neither query nor answer
    labels[7] = 3  # the only one of its class
    found = features(vectors)
    config = RetrievalConfig(protocol="leave_one_out", recall_at=(1, 3))
    row, ranking = class_row(config, "label", "e", found, found, labels, labels, (vectors, vectors))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    precisions, firsts = [], []
    for query in np.flatnonzero(labels >= 0):
        others = [i for i in range(15) if i != query and labels[i] >= 0]
        others.sort(key=lambda i: -(unit[query] @ unit[i]))
        right = [labels[i] == labels[query] for i in others]
        if any(right):
            precisions.append(np.mean([sum(right[: n + 1]) / (n + 1) for n in range(len(right)) if right[n]]))
            firsts.append((right[0], any(right[:3])))
            place = ranking.queries.tolist().index(query)
            assert ranking.answers[place].tolist() == others[:5]
            assert ranking.precisions[place] == pytest.approx(precisions[-1])
    assert row.map == pytest.approx(np.mean(precisions), abs=1e-9)
    assert [row.recall["1"], row.recall["3"]] == pytest.approx(np.mean(firsts, axis=0).tolist())
    assert (row.queries, row.gallery, row.unanswerable, row.unreadable) == (13, 13, 1, 0)


def test_unreadable_queries_score_nothing() -> None:
    vectors, labels = np.eye(4), np.array([0, 1, 0, 1])
    config = RetrievalConfig(recall_at=(1,))
    found = features(vectors[:3], [0, 1, 2])  # the fourth clip could not be read
    row, _ = class_row(config, "label", "e", found, features(vectors), labels, labels, (vectors[:3], vectors))
    full, _ = class_row(config, "label", "e", features(vectors), features(vectors), labels, labels, (vectors, vectors))
    assert (full.map, full.recall["1"], full.unreadable) == (pytest.approx((1 + 2 / 4) / 2), 1.0, 0)
    assert (row.queries, row.unreadable, row.recall["1"]) == (4, 1, 0.75)
    assert row.map == pytest.approx(full.map * 3 / 4)


def test_micro_average_precision_of_copies_by_hand() -> None:
    angles = np.radians([0.0, 90.0])
    gallery = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    turned = np.radians([10.0, 50.0])  # the second is nearer to its own by 40 against 50 degrees
    copies = np.stack((np.cos(turned), np.sin(turned)), axis=1)
    stranger = np.array([[np.cos(np.radians(20.0)), np.sin(np.radians(20.0))]])
    row = copy_row(RetrievalConfig(), "crop", "e", features(copies), features(stranger), features(gallery), 2)
    # by distance: 10 (right), 20 (stranger), 40 (right), ...
    assert row.micro_ap == pytest.approx((1 + 2 / 3) / 2)
    assert (row.recall_at_1, row.copies, row.distractors, row.gallery) == (1.0, 2, 1, 2)
    half = copy_row(RetrievalConfig(), "crop", "e", features(copies[:1], [0]), None, features(gallery), 2)
    assert (half.micro_ap, half.recall_at_1) == (0.5, 0.5)  # the other copy could not be read


def test_degradations_do_what_they_say_and_repeat(folder: Path) -> None:
    frames = np.random.default_rng(0).integers(60, 120, (4, 40, 60, 3)).astype(np.uint8)
    cut = degrade(frames, "crop", np.random.default_rng(1))
    assert 0.45 < cut[0, ..., 0].size / frames[0, ..., 0].size < 0.72
    assert any(
        (frames[:, r : r + cut.shape[1], c : c + cut.shape[2]] == cut).all()
        for r in range(40 - cut.shape[1] + 1)
        for c in range(60 - cut.shape[2] + 1)
    )
    factor = degrade(frames, "brightness", np.random.default_rng(1)).mean() / frames.mean()
    assert 0.49 < factor < 0.71 or 1.39 < factor < 1.81
    error = np.abs(degrade(frames, "noise", np.random.default_rng(1)).astype(int) - frames).mean()
    assert 2 < error < 30
    source = open_source(SourceConfig(path=str(folder / "test.npz")), eval_options(CLIP))
    copies = degraded(source, "combined", 0)
    first, again = (copies.load_clip(3, CLIP).frames for _ in range(2))
    assert (first == again).all()
    assert (first.shape != source.load_clip(3, CLIP).frames.shape) or (first != source.load_clip(3, CLIP).frames).any()
    assert (degraded(source, "combined", 1).load_clip(3, CLIP).frames.shape != first.shape) or (
        degraded(source, "combined", 1).load_clip(3, CLIP).frames != first
    ).any()


def test_a_shifted_copy_starts_a_quarter_of_the_clip_later(folder: Path) -> None:
    source = open_source(SourceConfig(path=str(folder / "test.npz")), eval_options(CLIP))  # 8 frames, clips of 4
    plain, copy = source.load_clip(0, CLIP).frames, degraded(source, "shift", 0).load_clip(0, CLIP).frames
    assert shift_frames(CLIP) == 1
    assert copy.shape == plain.shape
    assert (copy[:3] == plain[1:]).all()
    assert (copy[3] != plain[3]).any()
    spread = ClipConfig(num_frames=4, duration_s=2.0, crop_size=16)
    assert lengthened(spread, 2).duration_s == 3.0
    assert shift_frames(ClipConfig(num_frames=1)) == 0


def test_the_task_writes_both_tables_and_repeats(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = EvalConfig(run=str(folder / "run"), task="retrieval", device="cpu")
    with caplog.at_level("INFO", "jepa"):
        results = evaluate(config, tmp_path / "a")
    assert {"features of 12 test (crop) clips", "features of 12 train (combined) clips"} < {
        line.split(":")[0] for line in caplog.messages
    }
    assert json.loads((tmp_path / "a" / "results.json").read_text())["rows"] == results["rows"]
    assert evaluate(config, tmp_path / "b")["rows"] == results["rows"]
    retrieval = {row["encoder"]: row for row in results["rows"] if "map" in row}
    assert list(retrieval) == ["trained", "random", "pixels", "by luck"]
    assert retrieval["by luck"]["map"] == pytest.approx(0.5)  # two classes, equally common
    assert retrieval["pixels"]["queries"] == 12
    assert retrieval["pixels"]["gallery"] == 20
    copies = [row for row in results["rows"] if "micro_ap" in row]
    assert len(copies) == 5 * 3
    assert {row["distractors"] for row in copies} == {12}
    text = (tmp_path / "a" / "results.md").read_text()
    assert "| label | encoder | mAP | recall@1 | recall@5 | recall@10 | queries | gallery |" in text
    assert "| combined | " in text
    page = (tmp_path / "a" / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    pictures = re.findall(r'<img class="pixel([^"]*)"', page)
    assert len(pictures) == 6 * (1 + 3 * 5) + 6 * (1 + 5)  # every encoder for drawn queries, the first for hard ones
    assert pictures.count("") == 12  # the queries: neither right nor wrong
    assert {"", " same", " other"} == set(pictures)
    for words in ("hardest queries of the trained encoder", "combined", "What was run", "by luck"):
        assert words in page


def test_leave_one_out_needs_no_training_clips(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(folder / "run"), "--task", "retrieval", "--device", "cpu", "--out", str(tmp_path / "out")]
    own = ["--set", "retrieval.protocol=leave_one_out", "--set", "retrieval.copies=[crop]"]
    assert main([*arguments, *own, "--test", str(folder / "test.npz")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["rows"][0]["gallery"] == 11
    assert results["rows"][-1]["distractors"] == 0
    assert results["config"]["retrieval"]["protocol"] == "leave_one_out"
    capsys.readouterr()
    same = ["--train", str(folder / "test.npz"), "--test", str(folder / "test.npz")]
    for wrong, message in (
        (same, "is a query and in the gallery (12 such clips)"),
        (["--set", "retrieval.copies=[blur]"], "'retrieval.copies.0' must be one of 'crop'"),
        (["--set", "retrieval.recall=3"], "recall_at"),
        (["--train-limit", "5"], "leave --train-limit out"),
        (["--set", "retreival.seed=3"], "did you mean 'retrieval'?"),
    ):
        assert main([*arguments, *wrong]) == 2
        assert message in capsys.readouterr().err
