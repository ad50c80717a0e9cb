"""One probe on one label: all training clips, single layers, few labels, and published probes, an outcome each."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evals import metrics, outcome
from evals.features.harness import FeatureSet
from evals.features.rows import Rows
from evals.labelled import Labelled
from evals.probes import ProbeConfig, fit_probe
from evals.probes.probing import Side, probe_one
from evals.probes.shots import Shots
from evals.settings import EvalConfig
from jepa.distributed import Run
from jepa.types import TokenGrid

RUN = Run(torch.device("cpu"), "fp32")
NAMES = ("a", "b", "c")
LOGISTIC = ProbeConfig(kind="logistic", penalties=(1.0, 10.0), seed=5)
GOLDEN = Path(__file__).parents[2] / "golden" / "probe"


class NoSource:
    """Of a source, only what ``predictions.npz`` names its clips by."""

    paths, spans = tuple(f"{number}.mp4" for number in range(100)), None

    def __len__(self) -> int:
        return 100


def side(seed: int, clips: int = 100) -> Side:
    """Two blocks, 6 and 10 wide: the classes show in the second. Clip 3 has no label, clip 5 cannot be decoded."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (clips,), generator=generator)
    x = torch.randn(clips, 1, 4, 16, generator=generator)
    x[torch.arange(clips), 0, :, 6 + labels] += 1.0
    labels[3] = -1
    items = torch.tensor([item for item in range(clips) if item != 5])
    features = FeatureSet(
        items, Rows.of(x[items]), Rows.of(x[items].mean(dim=2, keepdim=True)), TokenGrid(1, 2, 2), (4, 7), (6, 10)
    )
    return Side(Labelled(NoSource(), {"label": labels}, {"label": NAMES}), features, "label")  # type: ignore[arg-type]


def config(**given: Any) -> EvalConfig:
    return EvalConfig(run="", device="cpu", **given)


def plain(probe: ProbeConfig, columns: slice, rows: Tensor | None = None) -> tuple[float, Tensor]:
    """Accuracy, an undecodable clip being wrong, and the predictions, by hand."""
    train, test = side(0), side(1)
    kept = [item for item in range(100) if item not in (3, 5)]
    x, y = train.features.vectors.blocks[0][..., columns], train.labels[kept]
    x, x_test = (s.features.vectors.blocks[0][:, 0, 0, columns][torch.arange(99) != 3] for s in (train, test))
    chosen = torch.arange(98) if rows is None else rows
    result = fit_probe(probe, x[chosen], y[chosen], x_test, test.labels[kept], num_classes=3)
    return (result.predictions == test.labels[kept]).double().sum().item() / 99, result.predictions


def test_every_layer_has_a_row_of_its_own() -> None:
    found = probe_one(LOGISTIC, "trained", side(0), side(1), config(layers=(4, 7), sweep_layers=True), RUN)
    assert [(o.row.layer, o.row.variant) for o in found] == [(None, ""), (4, "layer 4"), (7, "layer 7")]
    expected = [plain(LOGISTIC, columns)[0] for columns in (slice(0, 16), slice(0, 6), slice(6, 16))]
    assert [o.row.accuracy for o in found] == pytest.approx(expected)
    assert found[1].row.accuracy < 0.5 < found[2].row.accuracy
    assert all((o.row.num_test, o.row.num_undecodable, o.row.num_train) == (99, 1, 98) for o in found)
    assert len(probe_one(LOGISTIC, "trained", side(0), side(1), config(layers=(4, 7)), RUN)) == 1


def test_few_labels_are_means_over_draws_with_their_spread() -> None:
    asked = config(few_shot=("10%", "4"), few_shot_seeds=3)
    found = probe_one(LOGISTIC, "trained", side(0), side(1), asked, RUN)
    assert [(o.row.shots, o.row.variant) for o in found] == [("all", ""), ("10%", "10%"), ("4", "4 per class")]
    train, test = side(0), side(1)
    y = train.labels[[item for item in range(100) if item not in (3, 5)]]
    for few, text in zip(found[1:], ("10%", "4"), strict=True):
        shares, right = [], torch.zeros(99, dtype=torch.float64)
        for seed in (5, 6, 7):
            rows = Shots.parse(text).draw(y, seed)
            share, said = plain(replace(LOGISTIC, seed=seed), slice(0, 16), rows)
            shares.append(share)
            right[torch.arange(99) != 4] += (said == test.labels[[i for i in range(100) if i not in (3, 5)]]) / 3
        assert few.row.seeds == pytest.approx(shares)
        assert few.row.accuracy == pytest.approx(np.mean(shares))
        assert few.row.spread == pytest.approx(np.std(shares, ddof=1))
        assert few.row.interval == pytest.approx(metrics.bootstrap_interval(right))
        assert (few.predictions == test.labels)[test.labels >= 0].double().mean() == pytest.approx(shares[0])
    assert found[0].row.accuracy > found[1].row.accuracy
    assert (found[0].row.seeds, found[0].row.spread) == (None, None)
    assert found[2].row.num_train == 12


def test_one_clip_per_class_has_no_held_out_share_and_a_single_seed_no_spread() -> None:
    row = probe_one(LOGISTIC, "trained", side(0), side(1), config(few_shot=("1",), few_shot_seeds=1), RUN)[1].row
    assert (row.held_out, row.spread, row.num_train) == (None, 0.0, 3)
    assert row.chosen == {"penalty": 10.0}
    assert "| logistic, 1 per class | label | trained | – |" in outcome.notes([row], {"test": [], "train": []})
    with pytest.raises(ValueError, match=r"few_shot: 60 clips per class, but class '[abc]' has"):
        probe_one(LOGISTIC, "trained", side(0), side(1), config(few_shot=("60",)), RUN)


def test_every_outcome_is_kept_under_a_name_of_its_own() -> None:
    asked = config(layers=(4, 7), sweep_layers=True, few_shot=("10%", "1"), few_shot_seeds=1)
    found = probe_one(LOGISTIC, "trained", side(0), side(1), asked, RUN)
    with np.load(io.BytesIO(outcome.pack(NoSource(), found))) as kept:  # type: ignore[arg-type]
        names = {name.rsplit("/", 1)[0] for name in kept.files if name.endswith("/probabilities")}
        assert names == {
            "logistic/label/trained", "logistic layer 4/label/trained", "logistic layer 7/label/trained",
            "logistic 10%/label/trained", "logistic 1 per class/label/trained",
        }  # fmt: skip
        for one in found:
            name = outcome.key(*one.row[:3], one.row.variant)
            np.testing.assert_array_equal(kept[f"{name}/predictions"], one.predictions.numpy())


def test_memory_smaller_than_the_features_changes_nothing() -> None:
    attentive = ProbeConfig(kind="attentive", steps=5)
    loaded, read = (
        probe_one(attentive, "trained", side(0), side(1), config(memory_gb=memory), RUN)[0] for memory in (1.0, 0.0)
    )
    torch.testing.assert_close(loaded.probabilities, read.probabilities)


def test_a_published_probe_needs_no_training_clips() -> None:
    golden = load_file(GOLDEN / "io.safetensors")
    names = tuple(f"class {number}" for number in range(11))
    answer = int(golden["logits"].argmax())
    features = FeatureSet(
        torch.tensor([1]), Rows.of(golden["tokens"]), Rows.of(golden["tokens"].mean(1)), TokenGrid(2, 5, 5)
    )
    test = Side(Labelled(NoSource(), {"label": torch.tensor([-1, answer])}, {"label": names}), features, "label")  # type: ignore[arg-type]
    probe = ProbeConfig(kind="published", file=str(GOLDEN / "checkpoint.pt"), attention_heads=2)
    (found,) = probe_one(probe, "trained", None, test, config(few_shot=("1",)), RUN)
    assert (found.row.probe, found.row.accuracy, found.row.num_train, found.row.held_out) == ("published", 1.0, 0, None)
    torch.testing.assert_close(found.probabilities[1:], golden["logits"].softmax(dim=-1), rtol=1e-4, atol=1e-5)
