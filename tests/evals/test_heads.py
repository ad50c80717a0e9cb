"""The batched, re-associated heads against the plain formulation: one head, keys and values for every token."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evals import heads

WIDTH, CLASSES, ATTENTION_HEADS = 12, 5, 3


class PlainAttentive(nn.Module):
    """An ordinary cross-attention probe, written without the trick of the batched one."""

    def __init__(self, start: heads.Params) -> None:
        super().__init__()
        self.p = nn.ParameterDict(
            {name.replace(".", "_"): nn.Parameter(value.clone()) for name, value in start.items()}
        )

    def forward(self, x: Tensor) -> Tensor:
        p = self.p

        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (ATTENTION_HEADS, -1)).transpose(1, 2)

        query = p["query"].expand(len(x), 1, WIDTH)
        q, k, v = query @ p["q_weight"] + p["q_bias"], x @ p["k_weight"], x @ p["v_weight"] + p["v_bias"]
        attended = F.scaled_dot_product_attention(split(q), split(k), split(v)).transpose(1, 2).flatten(2)
        y = query + attended @ p["proj_weight"] + p["proj_bias"]
        hidden = F.layer_norm(y, (WIDTH,), p["norm_scale"], p["norm_bias"]) @ p["fc1_weight"] + p["fc1_bias"]
        y = y + F.gelu(hidden) @ p["fc2_weight"] + p["fc2_bias"]
        return (y @ p["head_weight"] + p["head_bias"])[:, 0]


def stacked(start: heads.Params, copies: int) -> heads.Params:
    return {n: p[None].repeat(copies, *[1] * p.dim()).requires_grad_() for n, p in start.items()}


def test_attentive_logits_equal_plain_cross_attention() -> None:
    start = {n: p.double() for n, p in heads.attentive_params(WIDTH, CLASSES, seed=3).items()}
    start = {n: p + 0.1 * torch.randn_like(p) for n, p in start.items()}  # biases off zero
    x = torch.randn(6, 20, WIDTH, dtype=torch.float64)
    logits = heads.attentive_forward(stacked(start, 2), x, ATTENTION_HEADS)
    assert logits.shape == (2, 6, CLASSES)
    torch.testing.assert_close(logits[0], PlainAttentive(start)(x))
    torch.testing.assert_close(logits[0], logits[1])


def test_a_grid_trained_at_once_equals_every_head_trained_alone() -> None:
    start = {n: p.double() for n, p in heads.attentive_params(WIDTH, CLASSES, seed=0).items()}
    torch.manual_seed(0)
    batches = [(torch.randn(8, 10, WIDTH).double(), torch.randint(0, CLASSES, (8,))) for _ in range(12)]
    rates, decays = torch.tensor([1e-3, 1e-2, 3e-2]).double(), torch.tensor([0.5, 0.0, 0.1]).double()
    params = stacked(start, 3)
    optimizer = heads.HeadAdamW(params, rates, decays)
    for step, (x, y) in enumerate(batches):
        logits = heads.attentive_forward(params, x, ATTENTION_HEADS)
        F.cross_entropy(logits.flatten(0, 1), y.expand(3, -1).flatten()).mul(3).backward()
        optimizer.step(0.5 + 0.5 * math.cos(step))
    for g in range(3):
        alone = PlainAttentive(start)
        decayed = [p for n, p in alone.p.items() if n.endswith("_weight")]
        others = [p for n, p in alone.p.items() if not n.endswith("_weight")]
        reference = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": decays[g].item()}, {"params": others, "weight_decay": 0.0}]
        )
        for step, (x, y) in enumerate(batches):
            for group in reference.param_groups:
                group["lr"] = rates[g].item() * (0.5 + 0.5 * math.cos(step))
            reference.zero_grad()
            F.cross_entropy(alone(x), y).backward()
            reference.step()
        for name, value in params.items():
            torch.testing.assert_close(value[g], alone.p[name.replace(".", "_")].data, rtol=1e-6, atol=1e-8)


def test_linear_head_is_softmax_regression() -> None:
    params = stacked(heads.linear_params(WIDTH, CLASSES), 2)
    params = {n: torch.randn_like(p) for n, p in params.items()}
    x = torch.randn(4, WIDTH)
    expected = x @ params["head.weight"][1] + params["head.bias"][1]
    torch.testing.assert_close(heads.linear_forward(params, x)[1], expected)


@pytest.mark.parametrize("kind", ["attentive", "linear"])
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    make, run = {
        "attentive": (heads.attentive_params, lambda p, x: heads.attentive_forward(p, x, ATTENTION_HEADS)),
        "linear": (lambda width, classes, seed: heads.linear_params(width, classes), lambda p, x: heads.linear_forward(p, x.mean(1))),
    }[kind]
    params = stacked(make(WIDTH, CLASSES, 0), 2)
    logits = run(params, torch.randn(8, 10, WIDTH))
    F.cross_entropy(logits.flatten(0, 1), torch.randint(0, CLASSES, (16,))).backward()
    for name, p in params.items():
        assert p.grad is not None
        assert p.grad.abs().sum() > 0, name
