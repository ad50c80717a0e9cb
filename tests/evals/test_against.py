"""Several models in one table: each with its own clips, sources read once per kind of clip, models without a run."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from support import write_clips

from evals import subjects
from evals.features import harness
from evals.main import evaluate, main
from evals.pages.report import ReportConfig, write_report
from evals.probes import ProbeConfig
from evals.settings import EvalConfig
from jepa.checkpoint import save_checkpoint
from jepa.config import ConfigError, to_dict
from jepa.data.sources import SourceConfig
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.types import ClipConfig

PROBES = (ProbeConfig(kind="knn", neighbours=(3,)),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that never trained, with different clips, weights of a timm model, and two sources."""
    root = tmp_path_factory.mktemp("against")
    for split, count, seed in (("train", 24, 0), ("test", 16, 1)):
        write_clips(root / f"{split}.npz", clips=count, seed=seed)
    sources = {"sources": [{"path": str(root / "train.npz")}], "validation": [{"path": str(root / "test.npz")}]}
    for name, crop in (("first", 32), ("second", 16)):
        torch.manual_seed(crop)
        clip = ClipConfig(num_frames=4, fps=8.0, crop_size=crop)
        encoder = Encoder(EncoderConfig(embed_dim=24, depth=1, num_heads=2, patch_size=8, tubelet_size=2), clip)
        state = {
            "config": {"data": sources}, "clip": to_dict(clip), "encoder_config": to_dict(encoder.config),
            "objective": {f"target_encoder.{k}": v for k, v in encoder.state_dict().items()},
        }  # fmt: skip
        save_checkpoint(root / name, 5, state)
    torch.manual_seed(3)
    save_file(timm.create_model("test_vit").state_dict(), root / "vit.safetensors")
    return root


def asked(folder: Path, run: str, **options: object) -> EvalConfig:
    train, test = (SourceConfig(path=str(folder / f"{split}.npz")) for split in ("train", "test"))
    return EvalConfig(run=run, train=train, test=test, device="cpu", **{"probes": PROBES, **options})


def test_a_column_against_others_is_the_same_as_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = str(folder / "first"), str(folder / "second")
    vit = f"timm:test_vit@{folder / 'vit.safetensors'}?frames=2&fps=8&size=32"
    passes: list[tuple[int, list[str]]] = []
    monkeypatch.setattr(
        harness, "fill",
        lambda jobs, clip, run, real=harness.fill: (
            passes.append((clip.crop_size, [job.of.name for job in jobs])) or real(jobs, clip, run)
        ),
    )  # fmt: skip
    together = evaluate(asked(folder, first, against=(vit, second), cache_gb=0), tmp_path / "out")
    short = "test_vit?frames=2&fps=8&size=32"  # the file of weights is in results.json
    names = ["trained", short, second, "random", "pixels"]
    assert [row["encoder"] for row in together["rows"]] == names
    assert together["table"].startswith(f"| probe | label | {' | '.join(names)} | chance |")
    one_pass = [(32, ["trained", "random", "pixels"]), (32, [short]), (16, [second])]
    assert passes == one_pass * 2  # once per split and kind of clip
    columns = {row["encoder"]: row for row in together["rows"]}
    for name, model in ((short, vit), (second, second)):
        alone = evaluate(asked(folder, model, baselines=(), cache_gb=0), tmp_path / "alone")["rows"][0]
        assert {**columns[name], "seconds": 0, "encoder": ""} == {**alone, "seconds": 0, "encoder": ""}
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["models"][short]["model"] == vit
    assert stored["models"][short]["encoder"]["name"] == "test_vit.r160_in1k"
    assert stored["models"][short]["step"] is None
    assert stored["models"]["trained"]["step"] == stored["models"][second]["step"] == stored["step"] == 5
    assert stored["models"][second]["clip"]["crop_size"] == 16
    assert stored["config"]["against"] == [vit, second]


def test_features_of_all_models_are_cached_by_model_and_clip(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, second = f"timm:test_vit@{folder / 'vit.safetensors'}?frames=1&size=32", str(folder / "second")
    calls: list[list[str]] = []
    monkeypatch.setattr(
        harness, "fill",
        lambda jobs, *rest, real=harness.fill: (
            calls.extend([[job.of.name for job in jobs]] if jobs else []) or real(jobs, *rest)
        ),
    )  # fmt: skip
    kept = asked(folder, model, against=(second,), out=str(tmp_path / "kept"))
    before = evaluate(kept)
    assert len(list((tmp_path / "kept" / "features").glob("*/meta.json"))) == 8
    calls.clear()
    assert [row["accuracy"] for row in evaluate(kept)["rows"]] == [row["accuracy"] for row in before["rows"]]
    assert calls == []
    other = model.replace("size=32", "size=48")
    evaluate(asked(folder, other, against=(second,), out=str(tmp_path / "kept"), baselines=("random",)))
    assert calls == [["trained", "random"]] * 2


def test_a_model_without_a_run_has_a_folder_of_its_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vit.safetensors").write_bytes((folder / "vit.safetensors").read_bytes())
    model = "timm:test_vit@vit.safetensors?frames=1&size=32"
    data = ["--train", str(folder / "train.npz"), "--test", str(folder / "test.npz"), "--device", "cpu"]
    assert main([model, "--probe", "knn", *data, "--against", str(folder / "first")]) == 0
    home = tmp_path / "runs" / "test_vit-vit.safetensors-frames=1-size=32"
    assert (home / "evals" / "video-knn" / "results.json").is_file()
    assert any((home / "features").iterdir())
    capsys.readouterr()
    assert main([model, "--probe", "knn", *data[:2]]) == 2
    assert "give --train PATH and --test PATH: timm:test_vit" in capsys.readouterr().err
    for arguments, message in (
        (["--against", "pixels"], "'pixels' stands for two columns of the table"),
        (["--against", f"{model},{model}"], "stands for two columns"),
        (["--against", "timm:test_vti"], "no model 'test_vti'; did you mean"),
        (["--cells", "1,3,1"], r"cells (1, 3, 1) must not exceed the token grid (1, 2, 2) of trained"),
        (["--probe", "attentive", "--token-pool", "1,4,1"], "must divide the token grid (1, 2, 2) of trained"),
    ):
        assert main([model, *data, *arguments]) == 2
        assert message in capsys.readouterr().err


def test_homes(folder: Path) -> None:
    first = folder / "first"
    assert subjects.home(EvalConfig(run=str(first))) == first
    assert subjects.home(EvalConfig(run=str(first / "checkpoints" / "step_00000005.pt"), out="x")) == first
    for model, name in (
        ("timm:vit_tiny.a?time=mean", "vit_tiny.a-time=mean"),
        ("timm:vit_tiny@/some/where/model.safetensors?size=96", "vit_tiny-model.safetensors-size=96"),
        ("/models/vjepa/big.pt", "vjepa-big.pt"),
        ("../big.pt", "big.pt"),
    ):
        assert subjects.home(EvalConfig(run=model)) == Path("runs") / name


def test_report_of_a_model_without_a_run(folder: Path, tmp_path: Path) -> None:
    model = f"timm:test_vit@{folder / 'vit.safetensors'}?frames=2&size=32"
    results = evaluate(asked(folder, model, against=(str(folder / "first"),), out=str(tmp_path)))
    stored = json.loads(json.dumps(results))
    text = write_report(ReportConfig(results=stored, out=tmp_path / "report.html", clips=1, queries=1)).read_text()
    assert f"from {folder / 'first'}" in text
    assert "Nearest neighbours" in text
    assert "saw no labels" not in text
    assert "Did it learn" not in text  # nothing is known about its training
    assert "whole configuration" not in text
    assert not re.findall(r"var\(--[^)]*[/:]", text)


def test_a_run_without_one_source_names_the_option(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give --train PATH and --test PATH"):
        evaluate(EvalConfig(run=f"timm:test_vit@{folder / 'vit.safetensors'}?frames=1&size=32", out=str(tmp_path)))
