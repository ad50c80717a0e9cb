"""The report of a small run: self-contained, with every section, and honest about the recipe."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from evals.features.harness import FeatureSet
from evals.features.rows import Rows
from evals.main import evaluate
from evals.pages import page, sections
from evals.pages.neighbours import find_neighbours
from evals.pages.report import ReportConfig, write_report
from evals.probes import ProbeConfig
from evals.settings import EvalConfig
from jepa.checkpoint import save_checkpoint
from jepa.config import ConfigError, to_dict
from jepa.data.sources import SourceConfig
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.types import ClipConfig, TokenGrid

CLIP = ClipConfig(num_frames=4, fps=8.0, crop_size=32)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A run that never trained, with the files that one leaves, probed."""
    root = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(embed_dim=24, depth=1, num_heads=2, patch_size=4, tubelet_size=2), CLIP)
    config = {
        "train": {"batch_size": 4},
        "masks": [{"kind": "tube", "ratio": 0.5}],
        "objective": {"kind": "masked", "loss": "l1", "momentum": [0.99, 1.0], "regularizer": None},
    }
    state = {
        "config": config, "clip": to_dict(CLIP), "encoder_config": to_dict(encoder.config),
        "objective": {f"target_encoder.{k}": v for k, v in encoder.state_dict().items()},
    }  # fmt: skip
    save_checkpoint(root, 50, state)
    lines = [{"step": s, "loss": 1.0 / (1 + s), "monitor/rankme": 5.0 + s, "time/clips_per_s": 9.0} for s in range(6)]
    (root / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 12)):
        clips = rng.integers(0, 255, (count, 4, 32, 32, 3), dtype=np.uint8)
        np.savez(root / f"{split}.npz", clips=clips, labels=np.arange(count) % 2)
    train, test = (SourceConfig(path=str(root / f"{split}.npz")) for split in ("train", "test"))
    probes = (ProbeConfig(kind="knn", neighbours=(3,)),)
    return evaluate(EvalConfig(run=str(root), train=train, test=test, probes=probes, device="cpu"))


def test_report_is_self_contained_and_complete(results: dict, tmp_path: Path) -> None:
    stored = json.loads(json.dumps(results))  # as results.json gives it back
    config = ReportConfig(
        results=stored, out=tmp_path / "a" / "report.html", title="A <small> run", clips=2, queries=2,
        seconds={"pretrain": 125.0}, command="make demo",
    )  # fmt: skip
    text = write_report(config).read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    for title in ("Probes", "Did it learn", "fill in", "look like to the encoder", "Nearest neighbours", "Recipe"):
        assert title in text
    assert "A &lt;small&gt; run" in text
    assert text.count("data:image/gif") == 2 + 2 * (1 + 5 + 5)
    assert "2m05s" in text
    assert "no regulariser is used" in text
    assert "RankMe, first to last" in text
    row = stored["rows"][0]
    assert f"{100 * row['accuracy']:.1f} ± {100 * row['error']:.1f}" in text


def test_report_that_cannot_be_written_is_a_clear_error(results: dict, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written to .*file"):
        write_report(ReportConfig(results=results, out=tmp_path / "file" / "report.html", clips=1, queries=1))


def test_objective_is_described_with_its_regulariser() -> None:
    plain = {"kind": "masked", "loss": "l1", "momentum": [0.99, 1.0], "regularizer": None}
    assert "no regulariser" in sections.describe_objective(plain)
    extra = {"kind": "variance_covariance", "weight": 0.2}
    words = sections.describe_objective({**plain, "regularizer": extra})
    assert "variance-covariance" in words
    assert "weight 0.2" in words
    assert "not the EMA alone" in words


def test_loss_terms_are_averaged_by_kind() -> None:
    record = {"step": 3, "variance_tokens_0": 1.0, "variance_tokens_1": 3.0, "prediction": 9.0, "prediction_0": 5.0}
    assert sections.loss_terms(record) == {"variance": 2.0, "prediction": 5.0}


def test_find_neighbours_standardises_first() -> None:
    grid = TokenGrid(1, 1, 1)
    bank = torch.tensor([[0.0, 1000.0], [1.0, 1000.1], [0.0, 1000.2], [1.0, 1000.3]])
    queries = torch.tensor([[1.0, 1000.1], [0.0, 1000.2]])
    train = {"e": FeatureSet(torch.arange(4), None, Rows.of(bank), grid)}
    test = {"e": FeatureSet(torch.arange(2), None, Rows.of(queries), grid)}
    assert find_neighbours(train, test, count=1).found["e"].tolist() == [[1], [2]]


def test_page_escapes_text() -> None:
    assert "<b>" not in page.text("a <b> `c<d`")
    assert page.section("Title", "") == ""
    assert "left:25.0%" in page.bars("x", [("trained", 0.5, 0.01)], 0.25)
