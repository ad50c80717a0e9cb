"""ONNX files in onnxruntime and torch.export programs, against the encoder itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exportable import TILED, golden, made
from torch import Tensor

import jepa
from jepa.config import to_dict
from jepa.export import export
from jepa.models.rope import RopeConfig
from jepa.pretrained.loader import Pretrained
from jepa.types import ClipConfig

IMAGE = ClipConfig(num_frames=1, crop_size=32)


@torch.no_grad()
def expected(model: Pretrained, clip: Tensor) -> list[Tensor]:
    """Tokens, and the logits of the probe."""
    assert model.encoder is not None
    tokens = model.encoder(clip)
    if model.probe is None:
        return [tokens]
    logits = model.probe(tokens)
    return [tokens, *(logits.values() if isinstance(logits, dict) else [logits])]


def onnx_session(path: Path) -> Any:
    return pytest.importorskip("onnxruntime").InferenceSession(path)


def run_onnx(session: Any, clip: Tensor) -> list[Tensor]:
    return [torch.from_numpy(output) for output in session.run(None, {"clip": clip.numpy()})]


def assert_equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["interleaved with a probe", "tiled", "table of an image model"])
def test_onnx_gives_equal_features_for_any_batch(tmp_path: Path, name: str) -> None:
    model = {
        "interleaved with a probe": lambda: made(probe={"classifiers": {"verb": 2, "noun": 3}}),
        "tiled": lambda: golden("vjepa2"),
        "table of an image model": lambda: golden("ijepa"),
    }[name]()
    onnx = pytest.importorskip("onnx")
    assert model.encoder is not None
    path = export(model, tmp_path / "encoder.onnx", "onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["encoder.onnx", "encoder.onnx.md"]
    session = onnx_session(path)
    native = model.encoder.clip
    shape = (3, native.num_frames, native.crop_size, native.crop_size)
    for batch in (1, 3):
        clip = torch.randn(batch, *shape)
        assert_equal(run_onnx(session, clip), expected(model, clip))
    graph = onnx.load(path).graph
    types = {value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    complex_types = {onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128}
    assert not types & complex_types
    assert not {node.op_type for node in graph.node} & {"DFT", "Loop"}


def test_the_preprocessing_travels_in_the_file(tmp_path: Path) -> None:
    clip = ClipConfig(num_frames=4, fps=2.5, crop_size=32, short_side=40, mean=(0.1, 0.2, 0.3))
    files = {"jepa": ""}
    torch.export.load(export(made(clip=clip, depth=1), tmp_path / "a.pt2", "torch-export"), extra_files=files)
    metadata = json.loads(files["jepa"])
    assert metadata["clip"] == {
        "num_frames": 4, "fps": 2.5, "frame_step": None, "duration_s": None, "crop_size": 32, "short_side": 40,
        "fit": "crop", "interpolation": "bilinear", "mean": [0.1, 0.2, 0.3], "std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    assert (metadata["outputs"], metadata["grid"], metadata["dynamic_size"]) == (["tokens"], [2, 4, 4], False)


def test_onnx_of_any_size(tmp_path: Path) -> None:
    model = made(depth=1)
    session = onnx_session(export(model, tmp_path / "a.onnx", "onnx", dynamic_size=True))
    for shape in ((1, 3, 4, 32, 32), (2, 3, 8, 16, 40)):
        clip = torch.randn(shape)
        assert_equal(run_onnx(session, clip), expected(model, clip))


@pytest.mark.parametrize("name", ["interleaved", "tiled with a probe", "image", "as 2.1"])
def test_programs_give_equal_features_for_any_batch(tmp_path: Path, name: str) -> None:
    model = {
        "interleaved": lambda: made(depth=1),
        "tiled with a probe": lambda: made(rope=TILED, probe={"num_classes": 3}),
        "image": lambda: made(clip=IMAGE, tubelet_size=1, position="sincos"),
        "as 2.1": lambda: made(rope=RopeConfig(base_grid=5), levels=(0, 1), image_tokenizer=True),
    }[name]()
    assert model.encoder is not None
    path = export(model, tmp_path / "encoder.pt2", "torch-export")
    program = torch.export.load(path)
    assert not [node for node in program.graph.nodes if "complex" in str(node.target)]
    native = model.encoder.clip
    for batch in (1, 3):
        clip = torch.randn(batch, 3, native.num_frames, native.crop_size, native.crop_size)
        found = program.module()(clip)
        assert_equal([found] if isinstance(found, Tensor) else list(found), expected(model, clip))


def test_a_program_of_another_size(tmp_path: Path) -> None:
    model = made(position="table", depth=1)
    small = export(model, tmp_path / "b.pt2", "torch-export", frames=2, resolution=24)
    clip = torch.randn(2, 3, 2, 24, 24)
    assert_equal([torch.export.load(small).module()(clip)], expected(model, clip))


def test_sizes_that_cannot_be_are_named(tmp_path: Path) -> None:
    cases: list[tuple[Pretrained, dict[str, Any], str]] = [
        (made(), {"resolution": 30}, "30 is not divisible by patch_size 8; use 24 or 32"),
        (made(), {"frames": 3}, "3 is not divisible by tubelet_size 2"),
        (made(clip=IMAGE, tubelet_size=1), {"frames": 4}, "image model"),
        (made(position="sincos"), {"dynamic_size": True}, "'sincos' positions.*--resolution"),
        (made(rope=RopeConfig(base_grid=5)), {"dynamic_size": True}, "over a base grid"),
    ]
    for model, options, words in cases:
        with pytest.raises(ValueError, match=words):
            export(model, tmp_path / "a.pt2", "torch-export", **options)
    with pytest.raises(ValueError, match="opset must lie between 18 and 23, not 9"):
        export(made(), tmp_path / "a.onnx", "onnx", opset=9)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_of_a_run_in_its_own_words(interleaved_run: Path, tmp_path: Path) -> None:
    session = onnx_session(export(interleaved_run, tmp_path / "run.onnx", "onnx", weights="encoder", opset=19))
    encoder = jepa.load(interleaved_run, "encoder")
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["jepa"])
    assert metadata["clip"] == to_dict(encoder.clip)
    assert [(i.name, i.shape[1:]) for i in session.get_inputs()] == [("clip", [3, 4, 32, 32])]
    clip = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        assert_equal(run_onnx(session, clip), [encoder(clip)])
    assert session.run(["tokens"], {"clip": clip.numpy()})[0].dtype == np.float32


def test_weights_too_large_for_one_file_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepa.export.graph._ONE_FILE", 10_000)
    model = made(depth=1)
    path = export(model, tmp_path / "out" / "a.onnx", "onnx")
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.onnx", "a.onnx.data", "a.onnx.md"]
    path.parent.rename(tmp_path / "elsewhere")  # the file names its data by a relative path
    clip = torch.randn(2, 3, 4, 32, 32)
    assert_equal(run_onnx(onnx_session(tmp_path / "elsewhere" / "a.onnx"), clip), expected(model, clip))
    with pytest.raises(ValueError, match=r"a.onnx exists already"):
        export(model, tmp_path / "elsewhere" / "a.onnx", "onnx")
