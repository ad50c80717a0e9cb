from __future__ import annotations

import dataclasses
import os
import random
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa import checkpoint
from jepa.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_encoder,
    open_run_dir,
    random_state,
    save_checkpoint,
    set_random_state,
    step_of,
)
from jepa.config import ConfigError, to_dict
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.types import ClipConfig

CLIP = ClipConfig(num_frames=4, frame_step=1, crop_size=32)
ENCODER = EncoderConfig(embed_dim=24, depth=1, num_heads=2, patch_size=16)


def state(encoder: Encoder | None = None, target: Encoder | None = None) -> dict:
    tensors = {}
    for name, module in {"encoder": encoder, "target_encoder": target}.items():
        tensors |= {f"{name}.{k}": v for k, v in module.state_dict().items()} if module is not None else {}
    return {"config": {}, "clip": to_dict(CLIP), "encoder_config": to_dict(ENCODER), "objective": tensors}


def test_round_trip_is_plain_data(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 7, {**state(), "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}})
    assert path == tmp_path / "checkpoints" / "step_00000007.pt"
    for mmap in (False, True):
        loaded = load_checkpoint(path, mmap=mmap)
        assert (loaded["step"], loaded["format"]) == (7, checkpoint.FORMAT)
        assert loaded["optimizer"]["state"][0]["step"] == 3.0
        assert loaded["clip"]["crop_size"] == 32
    assert loaded["code_version"] == checkpoint.code_version()


def test_policy_keeps_the_last_and_every_nth(tmp_path: Path) -> None:
    for step in range(10, 80, 10):
        save_checkpoint(tmp_path, step, state(), keep_last=2, keep_every=30)
    assert [step_of(p) for p in list_checkpoints(tmp_path)] == [30, 60, 70]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step_00000070.pt"
    assert latest_checkpoint(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("full_at", ["write", "fsync", "rename"])
def test_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: str) -> None:
    good = save_checkpoint(tmp_path, 1, state())
    before = good.read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    target = {"write": (torch, "save"), "fsync": (os, "fsync"), "rename": (os, "replace")}[full_at]
    with monkeypatch.context() as patch:
        patch.setattr(*target, full)
        message = r"step_00000002.pt could not be written: No space left.*step_00000001"
        with pytest.raises(CheckpointError, match=message):
            save_checkpoint(tmp_path, 2, state(), keep_last=1)
    assert good.read_bytes() == before
    assert os.listdir(good.parent) == [good.name]
    save_checkpoint(tmp_path, 2, state(), keep_last=1)
    assert [step_of(p) for p in list_checkpoints(tmp_path)] == [2]


def test_a_real_write_limit_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    """The kernel itself refuses to write on, in the middle of a tensor."""
    good = save_checkpoint(tmp_path, 1, state())
    before = good.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            save_checkpoint(tmp_path, 2, {**state(), "large": torch.zeros(1_000_000)}, keep_last=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert good.read_bytes() == before
    assert os.listdir(good.parent) == [good.name]


def test_half_written_files_are_ignored_and_swept(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, state())
    (tmp_path / "checkpoints" / ".step_00000002.pt.tmp").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step_00000001.pt"
    save_checkpoint(tmp_path, 3, state())
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step_00000001.pt", "step_00000003.pt"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04 truncated"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "step_00000001.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step_00000001.pt is (damaged or not a checkpoint|empty \(0 bytes\))"):
        load_checkpoint(path)


def test_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, state(Encoder(ENCODER, CLIP)))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_foreign_code_and_foreign_formats_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"encoder": {}, "epoch": 3}, path)
    with pytest.raises(CheckpointError, match="lacks format, step"):
        load_checkpoint(path)
    torch.save({"optimizer": torch.nn.Linear(1, 1)}, path)  # would run code on loading
    with pytest.raises(CheckpointError, match="is refused: besides tensors"):
        load_checkpoint(path)
    torch.save({**state(), "step": 1, "format": 99}, path)
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="neither a run directory nor a checkpoint"):
        load_checkpoint(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_checkpoint(tmp_path)


def test_load_encoder_rebuilds_strictly(tmp_path: Path) -> None:
    online, target = Encoder(ENCODER, CLIP), Encoder(ENCODER, CLIP)
    save_checkpoint(tmp_path, 1, state(online, target))
    clip = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        for weights, original in (("target_encoder", target), ("encoder", online)):
            encoder = load_encoder(tmp_path, weights)  # type: ignore[arg-type]
            torch.testing.assert_close(encoder(clip), original.eval()(clip), rtol=0, atol=0)
            assert not encoder.training
            assert not any(p.requires_grad for p in encoder.parameters())
        assert not torch.equal(target(clip), online(clip))
    with pytest.raises(ValueError, match="target_encoder"):
        load_encoder(tmp_path, "teacher")  # type: ignore[arg-type]


def test_load_encoder_without_a_target_takes_the_encoder(tmp_path: Path) -> None:
    online = Encoder(ENCODER, CLIP)
    save_checkpoint(tmp_path, 1, state(online))
    torch.testing.assert_close(load_encoder(tmp_path).norm.weight, online.norm.weight, rtol=0, atol=0)


def test_a_missing_weight_is_an_error(tmp_path: Path) -> None:
    content = state(Encoder(ENCODER, CLIP))
    del content["objective"]["encoder.norm.weight"]
    content["objective"]["encoder.norm.bias"] = torch.zeros(3)
    save_checkpoint(tmp_path, 1, content)
    with pytest.raises(CheckpointError, match=r"norm.weight is missing; norm.bias has shape \(3,\), the model needs"):
        load_encoder(tmp_path)


def test_run_dir_refuses_another_config(tmp_path: Path) -> None:
    other = dataclasses.replace(CLIP, crop_size=64, num_frames=8)
    open_run_dir(tmp_path / "run", other, ())
    open_run_dir(tmp_path / "run", CLIP, ())  # nothing was saved yet: the first start does not claim the directory
    save_checkpoint(tmp_path / "run", 1, state())
    open_run_dir(tmp_path / "run", CLIP, ())
    message = r"another config \(crop_size: 32 -> 64; num_frames: 4 -> 8\).*another run_dir"
    with pytest.raises(ConfigError, match=message):
        open_run_dir(tmp_path / "run", other, ())
    open_run_dir(tmp_path / "run", other, ("crop_size", "num_frames"))


def test_checkpoints_without_a_config_are_not_touched(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, state())
    with pytest.raises(ConfigError, match=r"holds checkpoints but no config.yaml"):
        open_run_dir(tmp_path, CLIP, ())


def test_no_write_permission_is_named(tmp_path: Path) -> None:
    """Not even root may write into a sealed memory file system; for everybody else a plain read-only folder."""
    folder = tmp_path / "sealed"
    folder.mkdir(mode=0o500)
    target = Path("/proc/self/run") if os.geteuid() == 0 else folder / "run"
    with pytest.raises(ConfigError, match=rf"run directory {target} cannot be written: .*; choose another run_dir"):
        open_run_dir(target, CLIP, ())
    with pytest.raises(CheckpointError, match="could not be written"):
        save_checkpoint(target, 1, state())


def test_random_states_come_back() -> None:
    device = torch.device("cpu")

    def draw() -> tuple[float, float, float, float]:
        return torch.rand(1).item(), float(np.random.rand()), float(np.random.randn()), random.random()

    draw()
    kept = random_state(device)
    first = draw()
    assert draw() != first
    set_random_state(kept, device)
    assert draw() == first
