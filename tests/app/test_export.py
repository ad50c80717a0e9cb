"""``jepa export`` as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import error_of, tiny_settings

import jepa
from app.cli import main
from jepa.config import from_dict
from jepa.train import TrainConfig, fit


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = tiny_settings(tmp_path_factory.mktemp("run"), steps=1)
    fit(from_dict(TrainConfig, settings))
    return Path(settings["run_dir"])


def test_a_run_becomes_a_folder_that_encodes_alike(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    assert main(["export", str(run_dir), str(folder), "--format", "safetensors", "--weights", "encoder"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == [
        str(folder / name) for name in ("README.md", "config.json", "model.safetensors")
    ]
    clip = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(jepa.load(folder)(clip), jepa.load(run_dir, "encoder")(clip))


def test_a_graph_for_another_clip(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.pt2"
    arguments = ["--format", "torch-export", "--frames", "2", "--resolution", "16"]
    assert main(["export", str(run_dir), str(path), *arguments]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [str(path), f"{path}.md"]
    clip = torch.randn(5, 3, 2, 16, 16)
    found = torch.export.load(path).module()(clip)
    torch.testing.assert_close(found, jepa.load(run_dir)(clip), atol=1e-4, rtol=0)


def test_mistakes(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "model")
    error = error_of(["export", str(run_dir), folder, "--format", "transformers"], capsys)
    assert "encoder.rope.frequencies=tiled" in error
    assert "safetensors, onnx" in error
    (tmp_path / "model").mkdir()
    assert "--force" in error_of(["export", str(run_dir), folder, "--format", "safetensors"], capsys)
    error = error_of(["export", str(tmp_path / "nothing"), str(tmp_path / "b"), "--format", "safetensors"], capsys)
    assert "nothing" in error
