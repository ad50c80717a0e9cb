"""The task reconstruction on a tiny run: what is reported of whom, no gradient to the encoder, mistakes named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import error_of, tiny_settings, write_clips

from evals.compare import compare
from evals.features.representations import encoder_hash
from evals.main import evaluate
from evals.pages.reconstruction_page import PICTURES, headline
from evals.reconstruction.by_clip import key
from evals.reconstruction.predicting import Expecting, Hidden, expected
from evals.reconstruction.shown import Shown
from evals.settings import EvalConfig
from evals.task_configs import ReconstructionTask
from jepa.config import from_dict
from jepa.data.source_config import SourceConfig
from jepa.distributed import Run
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
    strips = json.loads((tmp_path / PICTURES).read_text())
    assert [len(strips[places]) for places in ("all", "masked", "forecast")] == [1, 1, 1]
    names = ["truth", "seen", "copy last", "target latents", "predicted, trained", "predicted, random"]
    assert list(strips["forecast"][0]) == names
    assert strips["forecast"][0]["seen"] in report, "the same pictures"
    assert headline(results["rows"]).startswith("Decoded, at masked places predictions reach ")
    again = evaluate(config, tmp_path / "again")
    assert again["rows"] == results["rows"], "nothing is left to chance"


def test_only_the_places_that_are_asked_for(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each is predicted with the mask token of the family that hides it."""
    settings = tiny_settings(tmp_path, steps=1)
    settings["masks"] = [settings["masks"][0], {"kind": "causal", "context": [0.5, 0.5]}]
    fit(from_dict(TrainConfig, settings))
    tokens: list[tuple[str, int]] = []

    def spy(expecting: Expecting, shown: Shown, hidden: Hidden, mask_token: int, run: Run) -> Any:
        tokens.append((hidden.name, mask_token))
        return expected(expecting, shown, hidden, mask_token, run)

    monkeypatch.setattr("evals.tasks.reconstruction.expected", spy)
    for places in ("masked", "forecast"):
        config = EvalConfig(
            run=settings["run_dir"], task="reconstruction", device="cpu", baselines=(), out=str(tmp_path / places),
            test=SourceConfig(path=str(folder / "test.npz")),
            reconstruction=dataclasses.replace(TASK, pools=(), places=(places,)),
        )  # fmt: skip
        found = evaluate(config)["rows"]
        assert {row["places"] for row in found} == {"all", places}
        assert ("predicted", places) in {(row["what"], row["places"]) for row in found}
    assert tokens == [("masked", 0), ("forecast", 1)]


def test_samples_stand_beside_what_is_decoded(folder: Path, tmp_path: Path) -> None:
    plain = EvalConfig(
        run=str(folder / "run"), task="reconstruction", device="cpu", test=SourceConfig(path=str(folder / "test.npz")),
        reconstruction=TASK, out=str(tmp_path / "plain"),
    )  # fmt: skip
    asked = dataclasses.replace(TASK, samples=3, flow_steps=40, sampling_steps=2)
    config = dataclasses.replace(plain, reconstruction=asked, out=str(tmp_path / "sampled"))
    results, without = evaluate(config), evaluate(plain)
    assert results["rows"] == without["rows"], "samples change nothing of the deterministic decoder"
    assert without["sampled"] == []
    places = [("all", "target"), ("masked", "target"), ("forecast", "target"), ("masked", "predicted"),
              ("forecast", "predicted")]  # fmt: skip
    expected = [(*place, name, 32, 3, 6) for name in ("trained", "random") for place in places]
    names = ("places", "what", "model", "tokens", "samples", "clips")
    assert [tuple(row[name] for name in names) for row in results["sampled"]] == expected
    for row in results["sampled"]:
        assert [best["k"] for best in row["best"]] == [1, 2, 3]
        assert row["best"][0]["psnr"] < row["best"][1]["psnr"] < row["best"][2]["psnr"]
        assert row["psnr"] > row["best"][0]["psnr"], "the mean of samples is closer than a sample, on average"
        assert row["diversity"] > 0
        assert row["calibration"] > 0
    text = (tmp_path / "sampled" / "results.md").read_text()
    assert "| samples of | model | PSNR of mean | one | best of 2 | best of 3 | diversity | spread / error |" in text
    assert "sampled" not in (tmp_path / "plain" / "results.md").read_text()
    report = (tmp_path / "sampled" / "report.html").read_text()
    for words in ("predicted, trained: mean of 3", "predicted, random: sample 3", "target latents: spread"):
        assert f'alt="{words}"' in report
    with np.load(tmp_path / "sampled" / "clips.npz") as file:
        for row, kind in [(row, "psnr") for row in results["rows"]] + [(row, "mean") for row in results["sampled"]]:
            assert float(file[key(row, kind)].mean()) == pytest.approx(row["psnr"], abs=1e-4)
            assert len(file[f"{key(row, kind)}/hidden"]) == 6
        best = results["sampled"][3]
        assert float(file[key(best, "best")].mean()) == pytest.approx(best["best"][-1]["psnr"], abs=1e-4)
        assert len(set(file["path"].tolist())) == 6
    again = evaluate(config, tmp_path / "again")
    assert again["sampled"] == results["sampled"], "nothing is left to chance"
    compared = compare([tmp_path / "plain", tmp_path / "sampled"])
    lines = {line["measure"]: line["differences"][1] for line in compared["lines"]}
    assert lines["masked, predicted: PSNR (dB)"] == {"difference": 0.0, "interval": [0.0, 0.0]}
    assert lines["masked, predicted, mean of 3 samples: PSNR (dB)"] is None, "only one has samples"
    assert compared["notes"] == []
    both = compare([tmp_path / "sampled"], ["trained", "random"])
    line = next(one for one in both["lines"] if one["measure"] == "masked, predicted, mean of 3 samples: PSNR (dB)")
    means = [row["psnr"] for row in results["sampled"] if (row["places"], row["what"]) == ("masked", "predicted")]
    assert line["differences"][1]["difference"] == pytest.approx(means[1] - means[0], abs=1e-4)


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
    assert "reconstruction.places is empty" in said("--set", "reconstruction.places=[]")
    assert "reconstruction.places" in said("--set", "reconstruction.places=[future]")
    found = said("--set", "reconstruction.samples=1")
    assert "reconstruction.samples must be 0 (no samples) or at least 2, not 1" in found
    assert "reconstruction.latent_noise must be at least 0, not -0.5" in said(
        "--set", "reconstruction.latent_noise=-0.5"
    )
    assert "reconstruction.guidance must be at least 0, not -1.0" in said("--set", "reconstruction.guidance=-1")
    assert "sees every clip once: leave segments, views and cells out" in said("--test", test, "--views", "2")
    clips = str(folder / "clips.npz")
    assert "12 of the 12 test clips are among the training clips too" in said("--train", clips, "--test", clips)
    found = said("--test", test, "--sweep-layers", "--layers", "7")
    assert "layers names block 7, but the encoder has blocks 0 to 1" in found
