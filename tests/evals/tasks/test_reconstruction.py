"""The task reconstruction on a tiny run: what is reported of whom, no gradient to the encoder, mistakes named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import error_of, tiny_settings, write_clips

from evals.features.representations import encoder_hash
from evals.main import evaluate
from evals.pages.reconstruction_page import headline
from evals.settings import EvalConfig
from evals.task_configs import ReconstructionTask
from jepa.config import from_dict
from jepa.data.source_config import SourceConfig
from jepa.load import load
from jepa.train import TrainConfig, fit

TASK = ReconstructionTask(
    steps=3, predictor_steps=2, embed_dim=24, depth=1, num_heads=2, pools=(2,), pictures=1, batch_size=8
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reconstruction")
    write_clips(path / "test.npz", 6, seed=1)
    fit(from_dict(TrainConfig, tiny_settings(path, steps=1)))
    return path


def test_everything_of_a_run(folder: Path, tmp_path: Path) -> None:
    before = encoder_hash(load(folder / "run"))
    config = EvalConfig(
        run=str(folder / "run"), task="reconstruction", device="cpu", test=SourceConfig(path=str(folder / "test.npz")),
        sweep_layers=True, reconstruction=TASK, out=str(tmp_path),
    )  # fmt: skip
    results = evaluate(config)
    rows = [(row["places"], row["what"], row["model"], row["layer"], row["tokens"]) for row in results["rows"]]
    guesses = ("training mean", "mean frame", "copy last")
    everything = [(None, 32), (None, 8), (0, 32), (1, 32)]
    expected = [("all", "target", "trained", *variant) for variant in everything]
    expected.append(("all", "guess", "training mean", None, None))
    for name in ("trained", "random"):
        if name == "random":
            expected += [("all", "target", "random", *variant) for variant in everything]
        for places in ("masked", "forecast"):
            expected += [(places, what, name, None, 32) for what in ("target", "predicted")]
            expected += [(places, "guess", guess, None, None) for guess in guesses if name == "trained"]
    assert rows == expected
    one = results["rows"][0]
    assert one["psnr"] == results["rows"][3]["psnr"], "the last block is the output"
    assert one["low"] <= one["psnr"] <= one["high"]
    assert (one["near"], one["clips"]) == (None, 6)
    assert results["train_clips"] == 12
    forecast = [row for row in results["rows"] if row["places"] == "forecast"]
    assert all([frame["frame"] for frame in row["frames"]] == [2, 3] for row in forecast)
    assert encoder_hash(load(folder / "run")) == before == results["encoder_hash"]
    assert results["floor"]["kernel"] is not None
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["rows"] == json.loads(json.dumps(results["rows"]))
    report = (tmp_path / "report.html").read_text()
    for words in ("Masked places", "What follows the frames", "copy last", "predicted, random", "trained, block 0"):
        assert words in report
    assert headline(results["rows"]).startswith("Decoded, at masked places predictions reach ")
    again = evaluate(config, tmp_path / "again")
    assert again["rows"] == results["rows"], "nothing is left to chance"


def test_mistakes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, test = str(folder / "run"), str(folder / "test.npz")

    def said(*more: str) -> str:
        return error_of(["eval", run, "--task", "reconstruction", "--device", "cpu", *more], capsys)

    assert "give --test PATH: the run was made with 0 data.validation, not with one" in said()
    found = said("--test", test, "--set", "reconstruction.pools=[3]", "--set", "reconstruction.steps=1")
    assert "reconstruction.pools: 3 does not divide a grid of 4 x 4 tokens" in found
    assert "reconstruction.steps must be at least 1, not 0" in said("--set", "reconstruction.steps=0")
    assert "reconstruction.pools must be at least 2 rows and columns, not [1]" in said(
        "--set", "reconstruction.pools=[1]"
    )
    assert "sees every clip once: leave segments, views and cells out" in said("--test", test, "--views", "2")
    clips = str(folder / "clips.npz")
    assert "12 of the 12 test clips are among the training clips too" in said("--train", clips, "--test", clips)
    found = said("--test", test, "--sweep-layers", "--layers", "7")
    assert "layers names block 7, but the encoder has blocks 0 to 1" in found
