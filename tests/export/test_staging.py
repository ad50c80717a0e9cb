"""An export appears complete or not at all, and replaces nothing that it should not."""

from __future__ import annotations

import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from exportable import TILED, golden, made

import jepa
from jepa.checkpoint import code_version
from jepa.export import export
from jepa.export.staging import ExportError

NAMES = {"transformers": "out", "safetensors": "out", "onnx": "out.onnx", "torch-export": "out.pt2"}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writes beyond ``size`` bytes fail, as on a disk that fills up."""
    code_version()  # asks git, and is then remembered: cut off at this limit, git would leave its index locked
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("format", NAMES)
def test_a_full_disk_leaves_nothing(tmp_path: Path, format: Any) -> None:
    model = made(rope=TILED, depth=1)
    with files_of_at_most(20_000), pytest.raises(ExportError, match=r"out.* could not be written"):
        export(model, tmp_path / NAMES[format], format)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_leaves_the_old_export(tmp_path: Path) -> None:
    path = export(made(), tmp_path / "out", "safetensors")
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with files_of_at_most(20_000), pytest.raises(ExportError):
        export(golden("ijepa"), path, "safetensors", force=True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_there_is_replaced_only_on_demand(tmp_path: Path) -> None:
    path = export(made(), tmp_path / "deep" / "out", "safetensors")
    with pytest.raises(ExportError, match=r"exists already.*--force"):
        export(made(depth=1), path, "safetensors")
    assert jepa.load(path).depth == 2
    export(made(depth=1), path, "safetensors", force=True)
    assert jepa.load(path).depth == 1
    (path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"more than an export \(notes.txt\)"):
        export(made(), path, "safetensors", force=True)
    assert (path / "notes.txt").read_text() == "mine"
    graph = tmp_path / "out.pt2"
    graph.mkdir()
    with pytest.raises(ExportError, match="is a folder"):
        export(made(), graph, "torch-export", force=True)
    (tmp_path / "card.pt2.md").write_text("mine")
    with pytest.raises(ExportError, match=r"card.pt2.md exists already"):
        export(made(), tmp_path / "card.pt2", "torch-export")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="is a file, and this format is a folder"):
        export(made(), tmp_path / "file", "safetensors", force=True)


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    path = export(made(), tmp_path / "out", "safetensors")
    modes = {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()}
    (tmp_path / "plain").write_text("")
    assert modes == {stat.S_IMODE((tmp_path / "plain").stat().st_mode)}


@pytest.mark.parametrize(
    ("format", "name", "options", "words"),
    [
        ("onxn", "out.onnx", {}, "unknown format 'onxn'.*did you mean 'onnx'"),
        ("onnx", "out", {}, r"a file \*.onnx, not .*out"),
        ("torch-export", "out.onnx", {}, r"a file \*.pt2"),
        ("safetensors", "out", {"frames": 4, "opset": 18}, "has no use for frames, opset"),
        ("torch-export", "out.pt2", {"opset": 18}, "has no use for opset"),
        ("onnx", "out.onnx", {"resolution": 0}, "resolution must be at least 1"),
        ("safetensors", "out", {"weights": "ema"}, "weights must be"),
    ],
)
def test_wrong_options(
    interleaved_run: Path, tmp_path: Path, format: Any, name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        export(interleaved_run, tmp_path / name, format, **options)
    assert list(tmp_path.iterdir()) == []
