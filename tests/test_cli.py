from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import error_of

from app.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent


def write(settings: dict[str, Any], folder: Path) -> str:
    path = folder / "config.yaml"
    path.write_text(json.dumps(settings))
    return str(path)


def test_train_runs_with_overrides(settings: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "elsewhere"
    assert main(["train", write(settings, tmp_path), "train.steps=1", f"run_dir={out}"]) == 0
    assert (out / "checkpoints" / "step_00000001.pt").exists()


def test_check_prints_the_whole_config_and_trains_nothing(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", write(settings, tmp_path), "--check"]) == 0
    printed = capsys.readouterr().out
    assert "momentum_schedule: linear" in printed
    assert "compile: false" in printed
    assert main(["train", write(settings, tmp_path), "--check", "--compile"]) == 0
    assert "compile: true" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", "unknown config key 'train.stepz', did you mean 'steps'?"),
        ("objektive={}", "unknown config key 'objektive', did you mean 'objective'?"),
        ("train.steps=many", "'train.steps' must be a whole number, not 'many'"),
        ("train.precision=half", "'train.precision' must be one of"),
        ("train.batch_size=0", "batch_size must be at least 1, not 0"),
        ("train.accumulate=3", "batch_size 4 must be a multiple of accumulate 3"),
        ("train.device=tpu", "device 'tpu' is unknown"),
        ("masks.0.kind=blocks", "'masks.0.kind' is 'blocks'"),
        ("clip.crop_size=30", "crop_size"),
        ("encoder.size=vit_nanno", "did you mean 'vit_nano'?"),
        ("train", "must look like key.sub_key=value"),
        ("init_from=nowhere", "nowhere is neither a run directory nor a checkpoint"),
        ("data.sources.0.path=nowhere", "nowhere"),
        ("run_dir=/dev/null/run", "run directory /dev/null/run cannot be written"),
    ],
)
def test_mistakes_in_a_config(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert message in error_of(["train", write(settings, tmp_path), override], capsys)


def test_missing_and_broken_config_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in error_of(["train", str(tmp_path / "none.yaml")], capsys)
    path = tmp_path / "broken.yaml"
    path.write_text("train: {steps: [")
    assert "broken.yaml is not valid YAML" in error_of(["train", str(path)], capsys)
    path.write_text("seed: 1")
    assert "config key 'run_dir' is missing" in error_of(["train", str(path)], capsys)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        main(["--debug", "train", str(tmp_path / "none.yaml")])


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: jepa {command}" in capsys.readouterr().out


def test_unknown_command_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["trian"])
    assert caught.value.code == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["models"], ["models", "--json"]])  # in the buffer until the end; beyond it
def test_a_reader_that_stops_early_is_no_error(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "app.cli", *arguments]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=300, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_is_fast_because_it_does_not_import_torch() -> None:
    code = "import sys, app.cli; app.cli.build_parser('train'); print('torch' in sys.modules, 'numpy' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_references_spelling_works(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["app.main", "--fname", write(settings, tmp_path), "train.stepz=1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("app.main", run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip() == "jepa: error: unknown config key 'train.stepz', did you mean 'steps'?"


def test_overrides_and_debug_may_stand_anywhere():
    from app.cli import build_parser, parse

    words = ["train", "a.yaml", "x=1", "--check", "y=2", "--debug"]
    args = parse(words, build_parser("train"))
    assert args.overrides == ["x=1", "y=2"]
    assert args.check
    assert args.debug
    with pytest.raises(SystemExit):
        parse(["train", "a.yaml", "--check", "nonsense"], build_parser("train"))
