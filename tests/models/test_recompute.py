"""Activation checkpointing: the same numbers, fewer bytes kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from jepa.models import Encoder, EncoderConfig, Predictor, PredictorConfig
from jepa.models.recompute import Recompute, set_recompute
from jepa.types import ClipConfig

CLIP = ClipConfig(num_frames=4, fps=4, crop_size=32)


class Pair(nn.Module):
    """Encoder on the context, predictor at the rest; a scalar."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = Encoder(EncoderConfig(embed_dim=48, depth=3, num_heads=4, patch_size=4), CLIP)
        self.predictor = Predictor(PredictorConfig(embed_dim=48, depth=2, num_heads=4), 48, self.encoder.grid, 1)

    def forward(self, clip: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        out: Tensor = self.predictor(self.encoder(clip, context), context, targets)
        return out.float().square().mean()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    ids = torch.stack([torch.randperm(128) for _ in range(2)])
    return torch.randn(2, 3, 4, 32, 32), ids[:, :50], ids[:, 50:]


@contextlib.contextmanager
def saved_bytes() -> Iterator[list[int]]:
    """Bytes that autograd saves for the backward pass, once for each storage."""
    seen: set[int] = set()
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def step(recompute: Recompute) -> tuple[float, dict[str, Tensor], int, int]:
    """(loss, gradients, bytes that autograd saved, bytes that the forward pass left allocated)."""
    model = Pair().train()
    set_recompute(model, recompute)
    clip, context, targets = inputs()
    with contextlib.ExitStack() as stack:
        # The products that "selective" keeps do not come past these hooks (torch warns of that).
        saved = [0] if recompute == "selective" else stack.enter_context(saved_bytes())
        loss = model(clip, context, targets)
    loss.backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        again = model(clip, context, targets)
    left = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    del again
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), grads, saved[0], left


@pytest.fixture(scope="module")
def plain() -> tuple[float, dict[str, Tensor], int, int]:
    return step("none")


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_losses_and_gradients_are_the_same(recompute: Recompute, plain: tuple) -> None:
    loss, grads, saved, left = step(recompute)
    assert loss == plain[0]
    assert grads.keys() == plain[1].keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, plain[1][name], rtol=0, atol=0)
    assert saved < 0.35 * plain[2]
    assert left < {"selective": 0.75, "full": 0.35}[recompute] * plain[3]


def test_selective_lies_between() -> None:
    kept = [step(recompute)[3] for recompute in get_args(Recompute)]
    assert kept[0] > kept[1] > kept[2] > 0


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_under_autocast(recompute: Recompute, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice within one autocast, as with two mask families: the second pass finds weights that are cast already."""
    monkeypatch.setattr("jepa.models.linear.CPU_HAS_BF16", True)  # cast by autocast, as on a GPU

    def twice(kind: Recompute) -> tuple[float, dict[str, Tensor]]:
        model = Pair().train()
        set_recompute(model, kind)
        clip, context, targets = inputs()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(clip, context, targets) + model(clip, targets, context)
        loss.backward()
        return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    loss, grads = twice(recompute)
    expected, reference = twice("none")
    assert loss == expected
    for name, grad in grads.items():
        torch.testing.assert_close(grad, reference[name], rtol=2e-2, atol=1e-5)  # sums in bf16, in another order


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_with_compile(recompute: Recompute) -> None:
    """Traced as one graph with its backward, which is where a compiler sees what is to be computed again."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    clip, context, _ = inputs()
    encoder = Encoder(EncoderConfig(embed_dim=24, depth=1, num_heads=2, patch_size=4), CLIP)
    encoder(clip, context).square().mean().backward()
    reference = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    set_recompute(encoder, recompute)
    torch.compile(encoder, backend="aot_eager", fullgraph=True, dynamic=False)(clip, context).square().mean().backward()
    for name, p in encoder.named_parameters():
        torch.testing.assert_close(p.grad, reference[name], rtol=1e-4, atol=1e-6)


def test_eval_mode_keeps_nothing_to_recompute() -> None:
    model = Pair().eval()
    set_recompute(model, "full")
    assert model.encoder.recompute_now == "none"
    model.train()
    set_recompute(model, "none")  # the run's "none" leaves a part as it is
    assert model.encoder.recompute_now == "full"
