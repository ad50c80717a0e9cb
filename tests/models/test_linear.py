"""bf16 on a CPU: without bf16 kernels the same numbers as PyTorch's own, by way of fp32 products."""

import pytest
import torch
import torch.nn.functional as F

from jepa.models import linear as module
from jepa.models.linear import Linear, attend, emulates_bf16, linear


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_HAS_BF16", False)


@pytest.mark.usefixtures("emulated")
def test_linear_equals_native_bf16() -> None:
    """One bf16 rounding of the fp32 sum, as the native product does: equal but for ties in the last of 8 bits."""
    x, weight, bias = torch.randn(5, 24), torch.randn(16, 24), torch.randn(16)
    with torch.autocast("cpu", torch.bfloat16):
        assert emulates_bf16(x)
        ours, native = linear(x, weight, bias), F.linear(x, weight, bias)
    assert ours.dtype == native.dtype == torch.bfloat16
    torch.testing.assert_close(ours, native, rtol=2**-7, atol=2**-6)
    rounded = x.bfloat16().float() @ weight.bfloat16().float().T + bias
    torch.testing.assert_close(ours, rounded.bfloat16(), rtol=0, atol=0)


@pytest.mark.usefixtures("emulated")
def test_gradients_reach_fp32_parameters() -> None:
    layer, x = Linear(24, 16), torch.randn(2, 5, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.float().square().sum().backward()
    assert layer.weight.grad is not None
    assert x.grad is not None
    assert layer.weight.grad.dtype == x.grad.dtype == torch.float32
    reference = layer(x.detach().requires_grad_())
    expected = torch.autograd.grad(reference.square().sum(), layer.weight)[0]
    torch.testing.assert_close(layer.weight.grad, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


@pytest.mark.usefixtures("emulated")
def test_bf16_weights_without_autocast() -> None:
    layer, x = Linear(24, 16).bfloat16(), torch.randn(5, 24).bfloat16()
    out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, F.linear(x.float(), layer.weight.float(), layer.bias.float()).bfloat16())


def test_attention_equals_softmax_by_hand() -> None:
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 5, 4, 8), torch.randn(2, 5, 4, 8)
    scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / 8**0.5
    expected = torch.einsum("bhqk,bkhe->bqhe", scores.softmax(-1), v)
    torch.testing.assert_close(attend(q, k, v), expected)


@pytest.mark.parametrize(("tokens", "dtype"), [(511, torch.float32), (512, torch.bfloat16)])
def test_attention_among_few_tokens_is_fp32(tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU with bf16 kernels, too, whose backward pass is slow there; how many ask does not matter."""
    monkeypatch.setattr(module, "CPU_HAS_BF16", True)
    q, k, v = torch.randn(1, 3, 2, 8), torch.randn(1, tokens, 2, 8), torch.randn(1, tokens, 2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attend(q, k, v)
    assert mixed.dtype == dtype
    assert torch.equal(mixed, attend(q, k, v)) == (dtype == torch.float32)


def test_fp32_is_plain() -> None:
    x = torch.randn(5, 24)
    layer = Linear(24, 16)
    assert not emulates_bf16(x)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
