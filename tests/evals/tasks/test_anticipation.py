"""Anticipation: predicted tokens against the predictor called by hand, what is shown, recall at 5 in the table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_layouts import SPLITS, epic100, put, video
from support import tiny_settings

from evals.anticipating import AnticipatingEncoder, obstacle, tubelets_ahead
from evals.datasets import DatasetConfig
from evals.features.representations import random_twin
from evals.main import evaluate, main
from evals.probes import ProbeConfig
from evals.settings import EvalConfig, Row
from evals.subjects import Subject
from evals.task_configs import AnticipationConfig
from evals.tasks.anticipation import look_ahead, table
from jepa.config import from_dict, merge
from jepa.models.base import ClipEncoder
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.models.predictor import Predictor, PredictorConfig
from jepa.predictive import Predictive, load_predictive
from jepa.train import TrainConfig, fit
from jepa.types import ClipConfig, TokenGrid

CLIP = ClipConfig(num_frames=4, fps=8.0, crop_size=32)


def parts(position: str = "rope", levels: int = 1, native_t: int = 8) -> tuple[Encoder, Predictor]:
    torch.manual_seed(0)
    own = {"levels": (0, 1)} if levels == 2 else {}
    config = EncoderConfig(embed_dim=24, depth=2, num_heads=2, patch_size=16, position=position, init="xavier", **own)
    encoder = Encoder(config, CLIP).eval()
    small = PredictorConfig(embed_dim=24, depth=1, num_heads=2, levels=levels, init="xavier")
    predictor = Predictor(small, 24, TokenGrid(native_t, 2, 2), 2, position)
    return encoder, predictor.eval()


@pytest.mark.parametrize("levels", [1, 2])
def test_tokens_are_those_of_a_longer_clip_whose_end_is_hidden(levels: int) -> None:
    encoder, predictor = parts(levels=levels)
    ahead = AnticipatingEncoder.around(encoder, predictor, 3, mask_token=1)
    assert (ahead.grid, ahead.grid_of((3, 4, 32, 32))) == (TokenGrid(3, 2, 2), TokenGrid(3, 2, 2))
    longer = torch.randn(2, 3, 12, 32, 32)  # 6 tubelets, of which the first two are seen and the last is predicted
    found = ahead(longer[:, :, :4])
    both = Predictive(context_encoder=encoder, target_encoder=encoder, predictor=predictor)
    ids = torch.arange(24).expand(2, -1)
    expected = both.predict(longer, ids[:, :8], ids[:, 20:], mask_token=1)[..., -24:]
    assert found.shape == (2, 12, 24)
    torch.testing.assert_close(found[:, :8], encoder(longer[:, :, :4]))
    torch.testing.assert_close(found[:, 8:], expected)
    nearer = AnticipatingEncoder.around(encoder, predictor, 1, mask_token=1)(longer[:, :, :4])
    assert (nearer[:, 8:] - found[:, 8:]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="no layers"):
        ahead(longer[:, :, :4], layers=[0])


def test_sine_positions_end_with_the_clip_they_were_made_for() -> None:
    encoder, predictor = parts("sincos", native_t=4)
    assert obstacle(encoder, predictor, 1) is None
    with pytest.raises(ValueError, match=r"4 tubelets, and the action is in tubelet 5.*by 1 tubelets"):
        AnticipatingEncoder.around(encoder, predictor, 2, mask_token=0)
    clip = torch.randn(1, 3, 4, 32, 32)
    found = AnticipatingEncoder.around(encoder, predictor, 1, mask_token=0)(clip)
    ids = torch.arange(16)[None]
    by_hand = predictor(encoder(clip), ids[:, :8], ids[:, 12:], grid=TokenGrid(4, 2, 2))  # not squeezed
    torch.testing.assert_close(found[:, 8:], by_hand)


def test_a_random_twin_has_a_fresh_predictor_too() -> None:
    ahead = AnticipatingEncoder.around(*parts(), 3, mask_token=0)
    twin = random_twin(ahead, 1)
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in ahead.named_parameters()]
    weights = dict(twin.named_parameters())
    assert not torch.equal(weights["predictor.predictor_proj.weight"], ahead.predictor.predictor_proj.weight)
    assert twin.grid == ahead.grid


def test_seconds_are_whole_tubelets() -> None:
    encoder, _ = parts()  # tubelets of 2 frames at 8 per second: a quarter of a second
    assert [tubelets_ahead(encoder, seconds) for seconds in (0.0, 0.24, 0.25, 1.0, 1.2)] == [0, 0, 1, 4, 4]
    encoder.clip = replace(CLIP, fps=None, duration_s=1.0)
    assert tubelets_ahead(encoder, 1.0) == 2
    encoder.clip = replace(CLIP, fps=None, frame_step=2)
    with pytest.raises(ValueError, match=r"set clip\.fps"):
        tubelets_ahead(encoder, 1.0)


def test_models_without_a_predictor_show_the_clip_alone() -> None:
    subject = Subject("resnet", "timm:resnet", ClipEncoder())
    found, words = look_ahead(subject, AnticipationConfig())
    assert (found, words) == (subject, "the clip alone: timm:resnet has no predictor")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a predictor; EPIC-KITCHENS of seven verbs, nouns and actions; the same clips as CSV files."""
    root = tmp_path_factory.mktemp("anticipation")
    settings = merge(tiny_settings(root, steps=1, device="cpu"), {"clip": {"frame_step": None, "fps": 8.0}})
    fit(from_dict(TrainConfig, settings))
    epic100(root / "epic", classes=7)
    for split, items in SPLITS.items():
        lines = ["path,start_s,end_s,verb,noun"]
        for item in items:
            put(root / f"{split}/{item}.mp4", video(item % 2))
            lines.append(f"{split}/{item}.mp4,0,0.5,v{item % 2},n{item % 3}")
        put(root / f"{split}.csv", "\n".join(lines))
    return root


def asked(folder: Path, **options: object) -> EvalConfig:
    return EvalConfig(**{  # type: ignore[arg-type]
        "run": str(folder / "run"), "task": "anticipation", "device": "cpu",
        "dataset": DatasetConfig(name="epic100", root=str(folder / "epic")), "allow": ("unseen_classes",),
        "probes": (ProbeConfig(steps=3, learning_rates=(0.01,), weight_decays=(0.1,), batch_size=8),),
        "out": str(folder / "out"), **options,
    })  # fmt: skip


def test_epic_kitchens_from_layout_to_table(folder: Path) -> None:
    results = evaluate(asked(folder))
    rows = {(row["label"], row["encoder"]): row for row in results["rows"]}
    assert {label for label, _ in rows} == {"verb", "noun", "action"}
    assert {name for _, name in rows} == {"trained", "random", "pixels"}
    assert results["test"]["dataset"]["anticipation_s"] == 1.0
    assert results["anticipation"]["seen"] == {"trained": "the clip, and the tubelet predicted 4 tubelets after it"}
    assert results["grid"] == [3, 4, 4]
    kept = np.load(folder / "out/predictions.npz")
    labels = kept["labels/verb"]
    for name in ("trained", "pixels"):
        likely = kept[f"linear/verb/{name}/probabilities"].argsort(axis=1)[:, ::-1][:, :5]
        hits = np.array([label in five for label, five in zip(labels, likely, strict=True)])
        by_class = [hits[labels == c].mean() for c in np.unique(labels)]
        assert rows["verb", name]["recall_at_5"] == pytest.approx(np.mean(by_class))
        assert rows["verb", name]["top5"] == pytest.approx(hits.mean())
    lines = results["table"].splitlines()
    assert lines[2].startswith("| linear | verb | mean-class recall at 5 | ")
    assert f"{100 * rows['verb', 'trained']['recall_at_5']:.1f}" in lines[2]
    assert "- trained: the clip, and the tubelet" in (folder / "out/results.md").read_text()


def test_without_prediction_the_clip_alone_is_seen(folder: Path) -> None:
    results = evaluate(asked(folder, anticipation=AnticipationConfig(predict=False), baselines=()))
    assert results["grid"] == [2, 4, 4]
    assert results["anticipation"]["seen"]["trained"] == "the clip alone, as anticipation.predict is false"


def test_csv_files_with_several_labels(folder: Path) -> None:
    out = folder / "csv"
    words = ["--task", "anticipation", "--train", str(folder / "train.csv"), "--test", str(folder / "test.csv")]
    more = ["--labels", "verb,noun", "--probe", "knn", "--baselines", "", "--out", str(out), "--device", "cpu"]
    assert main([str(folder / "run"), *words, *more, "--span", "ending"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert [(row["label"], row["num_classes"], row["recall_at_5"]) for row in results["rows"]] == [
        ("verb", 2, None), ("noun", 3, None),
    ]  # fmt: skip
    assert "| knn | verb | mean-class recall at 5 | – | 2 | 12 | 6 |" in results["table"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train", "TRAIN", "--test", "TEST", "--labels", "verb"], "clips that end before the action: a CSV with"),
        (["--dataset", "epic100", "--data", "EPIC", "--segments", "2"], "set segments to 1, not 2"),
        (["--dataset", "epic100", "--data", "EPIC", "--layers", "0"], "leave layers out, or set anticipation.predict"),
        (["--dataset", "epic100", "--data", "EPIC", "--set", "dataset.anticipation_s=2"], "leave the first one out"),
        (["--dataset", "epic100", "--data", "EPIC", "--set", "anticipation.mask_token=9"], "has 2, counted from 0"),
        (["--dataset", "epic100", "--data", "EPIC", "--set", "clip.frame_step=2"], "not known: set clip.fps"),
    ],
)
def test_wrong_settings(folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"TRAIN": folder / "train.csv", "TEST": folder / "test.csv", "EPIC": folder / "epic"}
    words = [str(places.get(word, word)) for word in words]
    assert main([str(folder / "run"), "--task", "anticipation", *words, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


def test_recall_comes_first_and_few_classes_have_none() -> None:
    row = Row(
        probe="linear", label="verb", encoder="trained", accuracy=0.5, error=0.1, interval=[0.3, 0.7], chance=0.2,
        held_out=0.5, chosen={}, heads=[], heads_on_test=[], max_on_test=0.5, per_class={}, confusion={}, num_train=9,
        num_test=8, num_undecodable=0, num_classes=7, seconds=0.0, top5=0.75, recall_at_5=0.625,
    )  # fmt: skip
    few = row._replace(label="noun", num_classes=3, top5=None, recall_at_5=None, shots="10%")
    assert table([row, few, row._replace(encoder="random", accuracy=0.25)]).splitlines()[2:] == [
        "| linear | verb | mean-class recall at 5 | 62.5 | 62.5 | 7 | 9 | 8 |",
        "| linear | verb | accuracy | 50.0 ± 10.0 | 25.0 ± 10.0 | 7 | 9 | 8 |",
        "| linear | verb | top-5 accuracy | 75.0 | 75.0 | 7 | 9 | 8 |",
        "| linear | noun 10% | mean-class recall at 5 | – | – | 3 | 9 | 8 |",
        "| linear | noun 10% | accuracy | 50.0 ± 10.0 | – | 3 | 9 | 8 |",
        "| linear | noun 10% | top-5 accuracy | – | – | 3 | 9 | 8 |",
    ]


def test_a_run_has_the_predictor_that_is_used(folder: Path) -> None:
    subject = Subject("trained", str(folder / "run"), load_predictive(str(folder / "run")).target_encoder)
    ahead = look_ahead(subject, AnticipationConfig(mask_token=1))[0].encoder
    assert isinstance(ahead, AnticipatingEncoder)
    known = load_predictive(str(folder / "run")).predictor.state_dict()
    assert all(torch.equal(value, known[name]) for name, value in ahead.predictor.state_dict().items())
    assert (ahead.config.mask_token, ahead.config.tubelets) == (1, 4)
