"""bf16 follows fp32 within a stated band, fp16 skips steps that overflow, float8 linears convert and follow, and the
weights, the optimizer's state and the EMA are fp32 throughout."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_settings
from torch import Tensor, nn

from jepa.config import from_dict, merge
from jepa.distributed import Run
from jepa.objectives.ema import update_ema
from jepa.precision import choose_precision, convert_to_float8, mixed, products, swap_linears, takes_float8
from jepa.session import Session, build, train_step
from jepa.train import TrainConfig

CPU = torch.device("cpu")
STEPS = 40
BAND = 0.002  # of the loss, at every one of the 40 steps; the measured distance is 0.0003
OPTIM = {"lr": {"start": 1e-4, "peak": 1e-4}}


def session_of(folder: Path, precision: str, steps: int = STEPS, **changes: Any) -> Session:
    settings = merge(tiny_settings(folder, steps=steps), {"optim": OPTIM, **changes})
    settings["objective"]["regularizer"] = {"kind": "variance_covariance"}  # the fast part of the loss
    return build(from_dict(TrainConfig, settings), Run(CPU, precision))


def losses(session: Session, steps: int = STEPS, after: Callable[[Session], None] = lambda session: None) -> Tensor:
    """The losses of ``steps`` steps ``[steps]``; ``after`` is done after each."""
    batches, found = session.loader.iterate(0), []
    for step in range(steps):
        found.append(train_step(session, next(batches), step)["loss"])
        after(session)
    batches.close()
    return torch.stack(found)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return losses(session_of(tmp_path_factory.mktemp("fp32"), "fp32"))


def distance(found: Tensor, reference: Tensor) -> float:
    return float(((found - reference) / reference).abs().max())


def test_bf16_follows_fp32_within_the_band(tmp_path: Path, reference: Tensor) -> None:
    assert float(reference[-5:].mean()) < 0.95 * float(reference[:5].mean())  # it learns something to follow
    found = losses(session_of(tmp_path, "bf16"))
    assert not torch.equal(found, reference)  # 16 bits were used
    assert distance(found, reference) < BAND


def test_weights_rounded_to_bf16_fall_out_of_the_band(tmp_path: Path, reference: Tensor) -> None:
    """The mistake that the band is there for: at this learning rate most updates vanish in 8 bits of mantissa."""

    @torch.no_grad()
    def round_weights(session: Session) -> None:
        for p in session.objective.parameters():
            p.copy_(p.bfloat16())

    assert distance(losses(session_of(tmp_path, "bf16"), after=round_weights), reference) > 2 * BAND


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_weights_optimizer_and_ema_are_fp32(tmp_path: Path, precision: str) -> None:
    session = session_of(tmp_path, precision, steps=2)
    losses(session, 2)
    assert all(t.dtype == torch.float32 for t in session.objective.state_dict().values())
    assert all(p.dtype == torch.float32 for p in session.objective.target_encoder.parameters())
    states = [t for state in session.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    assert len(states) >= 2 * len(list(session.objective.encoder.parameters()))
    assert all(t.dtype == torch.float32 for t in states)


@torch.no_grad()
def test_an_ema_of_momentum_09999_moves_in_fp32_only() -> None:
    def moved(dtype: torch.dtype) -> float:
        target, online = (nn.Linear(64, 64).to(dtype) for _ in range(2))
        before = target.weight.detach().clone()
        for _ in range(100):
            update_ema(target, online, 0.9999)
        way = (online.weight - before).float().norm()
        return float((target.weight - before).float().norm() / way)

    torch.manual_seed(0)
    assert moved(torch.float32) == pytest.approx(1 - 0.9999**100, rel=1e-3)
    assert moved(torch.bfloat16) < 0.2 * (1 - 0.9999**100)


def test_fp16_skips_an_overflow_and_goes_on(tmp_path: Path) -> None:
    session = session_of(tmp_path, "fp16", steps=4)
    assert session.scaler.is_enabled()
    session.scaler.load_state_dict({**session.scaler.state_dict(), "scale": 2.0**60})  # any gradient overflows fp16
    before = copy.deepcopy(session.objective.encoder.state_dict())
    batches = session.loader.iterate(0)
    batch = next(batches)
    values = train_step(session, copy.deepcopy(batch), 0)
    assert not values["grad_norm"].isfinite()
    assert values["loss"].isfinite()
    assert session.scaler.get_scale() == 2.0**59
    assert all(torch.equal(t, before[name]) for name, t in session.objective.encoder.state_dict().items())
    session.scaler.load_state_dict({**session.scaler.state_dict(), "scale": 2.0**10})
    assert train_step(session, batch, 1)["grad_norm"].isfinite()
    assert not torch.equal(session.objective.encoder.blocks[0].attn.qkv.weight, before["blocks.0.attn.qkv.weight"])
    batches.close()


# ---- choice ----------------------------------------------------------------------------------------------------------


def test_a_precision_that_the_device_lacks_is_an_error() -> None:
    for precision in ("fp16", "tf32"):
        with pytest.raises(ValueError, match=f"precision {precision} needs a CUDA device, not cpu; use bf16 or fp32"):
            choose_precision(precision, CPU)
    with pytest.raises(ValueError, match=r"precision 'bf61' is unknown.*bf16"):
        choose_precision("bf61", CPU)


def test_tf32_is_set_and_put_back() -> None:
    assert torch.get_float32_matmul_precision() == "highest"
    with products("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
        with mixed("tf32", CPU):
            assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"
    with products("bf16"), mixed("fp32", CPU):
        assert torch.get_float32_matmul_precision() == "highest"


# ---- float8 ----------------------------------------------------------------------------------------------------------

WIDE = {"encoder": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}}


def test_float8_replaces_the_linear_layers_of_blocks_alone(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    session = session_of(tmp_path, "fp32", **WIDE)  # its predictor is 24 wide, no multiple of 16
    names = [name for name, module in session.objective.named_modules() if takes_float8(module, name)]
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert sorted(names) == sorted(
        f"{part}.blocks.{n}.{layer}" for part in ("encoder", "target_encoder") for n in range(2) for layer in layers
    )
    before = copy.deepcopy(session.objective.state_dict())
    assert swap_linears(session.objective, emulate=True) == len(names)
    kinds = {name: type(module).__name__ for name, module in session.objective.named_modules()}
    assert {name for name, kind in kinds.items() if kind == "Float8Linear"} == set(names)
    after = session.objective.state_dict()  # a checkpoint does not know of it
    assert list(after) == list(before)
    assert all(type(t) is Tensor and torch.equal(t, before[name]) for name, t in after.items())


def test_float8_training_follows_fp32(tmp_path: Path) -> None:
    """By emulation: rounded to float8, multiplied in fp32. It stays within 2 % of the loss, and it is not fp32."""
    pytest.importorskip("torchao")
    plain = losses(session_of(tmp_path, "fp32", **WIDE), 15)
    session = session_of(tmp_path, "fp32", **WIDE)
    swap_linears(session.objective, emulate=True)
    found = losses(session, 15)
    assert 1e-5 < distance(found, plain) < 0.02
    assert all(p.dtype == torch.float32 for p in session.objective.parameters())


def test_float8_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(16, 24)])})
    with pytest.raises(ValueError, match=r"float8 needs a CUDA device of compute capability 8.9.*not cpu; set train"):
        session_of(tmp_path, "bf16", train={"float8": True})
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ValueError, match=r"8.9 or newer .* not NVIDIA A100-SXM4-80GB"):
        convert_to_float8(model, cuda, "bf16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(ValueError, match=r"float8 goes with train.precision bf16, not fp16"):
        convert_to_float8(model, cuda, "fp16")
    with pytest.raises(ValueError, match=r"no linear layer of a transformer block has both widths divisible by 16"):
        convert_to_float8(model, cuda, "bf16")
    monkeypatch.setitem(__import__("sys").modules, "torchao.float8", None)
    fitting = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(16, 32)])})
    with pytest.raises(ValueError, match=r"float8 needs torchao: pip install 'jepa-toolkit\[float8\]'"):
        convert_to_float8(fitting, cuda, "bf16")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
def test_cuda_follows_fp32(tmp_path: Path, precision: str) -> None:
    def run(kind: str) -> Tensor:
        settings = merge(tiny_settings(tmp_path, steps=STEPS), {"optim": OPTIM})
        with products(kind):
            return losses(build(from_dict(TrainConfig, settings), Run(torch.device("cuda", 0), kind))).cpu()

    assert distance(run(precision), run("fp32")) < 0.01


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="needs a device with float8"
)
def test_cuda_float8_follows_bf16(tmp_path: Path) -> None:
    def run(**train: Any) -> Tensor:
        settings = merge(tiny_settings(tmp_path, steps=STEPS, **train), {"optim": OPTIM, **WIDE})
        return losses(build(from_dict(TrainConfig, settings), Run(torch.device("cuda", 0), "bf16"))).cpu()

    assert distance(run(float8=True), run()) < 0.02
