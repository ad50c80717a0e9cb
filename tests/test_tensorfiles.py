"""Building a model around its weights equals building it and loading them; nothing is mapped or random afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from jepa.models import Encoder, EncoderConfig
from jepa.tensorfiles import CheckpointError, build_loaded, load_strictly, read_safetensors, read_torch_file
from jepa.types import ClipConfig

CLIP = ClipConfig(num_frames=4, fps=4, crop_size=16)


def build(position: str) -> Encoder:
    return Encoder(EncoderConfig(embed_dim=24, depth=2, num_heads=2, patch_size=8, position=position), CLIP)  # type: ignore[arg-type]


@pytest.mark.parametrize("position", ["rope", "sincos", "table"])
@torch.no_grad()
def test_built_around_its_weights(tmp_path: Path, position: str) -> None:
    source = build(position).eval()
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    tensors = read_torch_file(tmp_path / "weights.pt", mmap=True)
    loaded, ignored = build_loaded(lambda: build(position), tensors, "weights.pt")
    (tmp_path / "weights.pt").write_bytes(b"overwritten in place")
    clip = torch.randn(1, 3, 4, 16, 16)
    torch.testing.assert_close(loaded(clip), source(clip), rtol=0, atol=0)
    assert ignored == {}
    assert not any(p.requires_grad or p.is_meta for p in loaded.parameters())
    assert not any(b.is_meta for b in loaded.buffers())


def test_half_precision_weights_become_float32() -> None:
    source = nn.Linear(3, 2).bfloat16()
    loaded, _ = build_loaded(lambda: nn.Linear(3, 2), source.state_dict(), "file")
    assert loaded.weight.dtype == torch.float32
    assert torch.equal(loaded.weight, source.weight.float())


def test_missing_keys_get_initial_values_only_when_allowed() -> None:
    tensors = {"weight": torch.ones(2, 3), "extra": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"head.bias is missing; head.extra is unexpected"):
        build_loaded(lambda: nn.Linear(3, 2), tensors, "file", part="head")
    loaded, ignored = build_loaded(lambda: nn.Linear(3, 2), tensors, "file", part="head", allow=["head.bias", "extra"])
    assert ignored == {"head.bias": "is missing", "head.extra": "is unexpected"}
    assert torch.equal(loaded.weight, tensors["weight"])
    assert loaded.bias.isfinite().all()
    module = nn.Linear(3, 2)
    bias = module.bias.detach().clone()
    assert load_strictly(module, tensors, "file", allow=["bias", "extra"]) == {
        "bias": "is missing", "extra": "is unexpected"
    }  # fmt: skip
    assert torch.equal(module.bias, bias)
    assert torch.equal(module.weight, tensors["weight"])


def test_many_wrong_keys_are_counted() -> None:
    tensors = {f"key{k}": torch.zeros(1) for k in range(30)}
    with pytest.raises(CheckpointError, match=r"weight is missing.*\(and 12 more\)"):
        load_strictly(nn.Linear(3, 2), tensors, "file")


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(3)}, path, metadata={"k": "v"})
    tensors, metadata = read_safetensors(path)
    assert torch.equal(tensors["a"], torch.arange(3))
    assert metadata == {"k": "v"}
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"x.safetensors is damaged"):
        read_safetensors(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="empty"):
        read_safetensors(path)
    with pytest.raises(CheckpointError, match=r"nothing.safetensors cannot be read: No such file"):
        read_safetensors(tmp_path / "nothing.safetensors")


def test_weights_that_are_no_numbers() -> None:
    tensors = {"weight": torch.tensor([[1.0, float("nan"), 0.0]]), "bias": torch.tensor([float("inf")])}
    with pytest.raises(CheckpointError, match=r"run.pt holds NaN or infinite weights: weight, bias"):
        build_loaded(lambda: nn.Linear(3, 1), tensors, "run.pt")


def test_no_bytes_get_past_the_reader(tmp_path: Path) -> None:
    """Text, junk of every first byte, and files of torch with some bytes changed: read, or a sentence."""
    rng, path = np.random.default_rng(0), tmp_path / "x.pt"
    files = [b"path,label\n", b"hello", *(bytes([first]) + rng.bytes(size) for first in range(256) for size in (0, 9))]
    for zipped in (True, False):
        torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for _ in range(300):
            changed = bytearray(whole)
            changed[rng.integers(len(whole))] = rng.integers(256)
            files.append(bytes(changed[: rng.integers(1, len(whole) + 1)]))
    said = []
    for content in files:
        path.write_bytes(content)
        try:
            read_torch_file(path)
        except CheckpointError as error:
            said.append(str(error))
    assert len(said) > len(files) / 2
    assert all(str(path) in words for words in said)
