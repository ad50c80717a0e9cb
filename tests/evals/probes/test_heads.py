"""Stacked heads against the plain modules, one head at a time: the same function, the same training."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from evals.features.rows import Rows
from evals.probes import heads
from evals.probes.attentive import attentive_forward, attentive_head
from evals.probes.fitting import Schedule, Standard, fit_grid
from evals.probes.preprocess import Inputs
from jepa import load_pretrained
from jepa.models.attentive import AttentiveConfig, AttentiveProbe

WIDTH, CLASSES, TOKENS = 12, 5, 10
SHAPES = [(1, 1), (1, 3), (4, 1), (4, 3)]
PROBE = Path(__file__).parents[2] / "golden" / "probe"


def shape(depth: int, queries: int) -> AttentiveConfig:
    return AttentiveConfig(
        embed_dim=WIDTH, num_heads=3, depth=depth, mlp_ratio=2.0, num_classes=CLASSES, num_queries=queries
    )


def start_of(config: AttentiveConfig, dtype: torch.dtype) -> heads.Params:
    """The head's own start, with biases and norms off their zeros and ones."""
    torch.manual_seed(0)
    start = attentive_head(config, TOKENS, seed=3).start
    return {name: (p + 0.1 * torch.randn_like(p)).to(dtype) for name, p in start.items()}


@pytest.mark.parametrize(("depth", "queries"), SHAPES)
def test_stacked_heads_are_the_published_probe(depth: int, queries: int) -> None:
    config = shape(depth, queries)
    singles = [start_of(config, torch.float32), attentive_head(config, TOKENS, seed=4).start]
    stacked = {name: torch.stack([single[name] for single in singles]) for name in singles[0]}
    x = torch.randn(6, TOKENS, WIDTH)
    logits = attentive_forward(stacked, x, config)
    assert logits.shape == (2, 6, CLASSES)
    for g, single in enumerate(singles):
        probe = AttentiveProbe(config)
        probe.load_state_dict(single)  # strictly: a head is named and shaped like the module
        torch.testing.assert_close(logits[g], probe(x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits[0], logits[1], atol=0.1)


def test_stacked_heads_match_the_golden_file_of_the_published_probe() -> None:
    settings = json.loads((PROBE / "config.json").read_text())
    probe = load_pretrained(PROBE / "checkpoint.pt", settings.pop("family"), **settings).probe
    assert probe is not None
    io = load_file(PROBE / "io.safetensors")
    stacked = {name: p.detach()[None].repeat(3, *[1] * p.dim()) for name, p in probe.state_dict().items()}
    logits = attentive_forward(stacked, io["tokens"], probe.config)
    for found in logits:
        torch.testing.assert_close(found, io["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("depth", "queries"), SHAPES)
def test_a_grid_trained_at_once_equals_every_head_trained_alone(depth: int, queries: int) -> None:
    config = shape(depth, queries)
    start = start_of(config, torch.float64)
    torch.manual_seed(0)
    batches = [(torch.randn(8, TOKENS, WIDTH).double(), torch.randint(0, CLASSES, (8,))) for _ in range(6)]
    rates, decays = torch.tensor([1e-3, 1e-2, 3e-2]).double(), torch.tensor([0.5, 0.0, 0.1]).double()
    params = heads.stack(start, 3, torch.device("cpu"))
    optimizer = heads.HeadAdamW(params, rates, decays)
    for step, (x, y) in enumerate(batches):
        logits = attentive_forward(params, x, config)
        F.cross_entropy(logits.flatten(0, 1), y.expand(3, -1).flatten()).mul(3).backward()
        optimizer.step(0.5 + 0.5 * math.cos(step))
    for g in range(3):
        alone = AttentiveProbe(config).double()
        alone.load_state_dict(start)
        named = dict(alone.named_parameters())
        matrices = [p for n, p in named.items() if n.endswith(".weight") and p.dim() == 2]
        others = [p for n, p in named.items() if not (n.endswith(".weight") and p.dim() == 2)]
        reference = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": decays[g].item()}, {"params": others, "weight_decay": 0.0}]
        )
        for step, (x, y) in enumerate(batches):
            for group in reference.param_groups:
                group["lr"] = rates[g].item() * (0.5 + 0.5 * math.cos(step))
            reference.zero_grad()
            F.cross_entropy(alone(x), y).backward()
            reference.step()
        for name, value in params.items():
            mine, theirs = value[g].detach(), named[name].detach()
            if name.endswith(("xattn.kv.bias", "attn.qkv.bias")):  # key biases shift all logits alike: only noise moves
                parts = 2 if "xattn" in name else 3
                keep = torch.ones(parts, WIDTH, dtype=torch.bool)
                keep[-2] = False
                mine, theirs = mine[keep.flatten()], theirs[keep.flatten()]
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}")
        torch.testing.assert_close(attentive_forward(params, x, config)[g], alone(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("depth", "parts"), [(1, 3), (2, 3), (2, 5)])
def test_a_grid_in_parts_and_a_batch_in_pieces_give_the_same_heads(depth: int, parts: int) -> None:
    config = shape(depth, 2)
    torch.manual_seed(1)
    inputs = Inputs(Rows.of(torch.randn(30, 2, TOKENS, WIDTH)), torch.device("cpu"))
    y, rows, standard = (
        torch.randint(0, CLASSES, (30,)),
        torch.arange(26),
        Standard(torch.zeros(WIDTH), torch.ones(WIDTH)),
    )
    settings = [{"learning_rate": rate, "weight_decay": 0.1} for rate in (1e-3, 3e-3, 1e-2, 3e-2, 0.1)]
    head = attentive_head(config, TOKENS, seed=0)
    most = 4 * head.activations * (32 if parts == 3 else 5)  # two heads with a whole batch, or one with five clips
    together, split = (
        fit_grid(head, settings, inputs, y, rows, Schedule(5, 16, seed=0), standard, bound) for bound in (2**40, most)
    )
    assert (len(together.parts), len(split.parts)) == (1, parts)
    x = torch.randn(9, 2, TOKENS, WIDTH)
    torch.testing.assert_close(together(x), split(x), rtol=1e-4, atol=1e-4)
    one, other = (fitted.head(3)["linear.weight"] for fitted in (together, split))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(one, together.head(2)["linear.weight"], atol=1e-3)


def test_linear_head_is_softmax_regression() -> None:
    params = {
        n: torch.randn_like(p)
        for n, p in heads.stack(heads.linear_params(WIDTH, CLASSES), 2, torch.device("cpu")).items()
    }
    x = torch.randn(4, WIDTH)
    expected = x @ params["head.weight"][1] + params["head.bias"][1]
    torch.testing.assert_close(heads.linear_forward(params, x)[1], expected)
    torch.testing.assert_close(heads.linear_head(WIDTH, CLASSES).forward(params, x[:, None])[1], expected)


@pytest.mark.parametrize("depth", [1, 3])
def test_every_parameter_gets_a_gradient(depth: int) -> None:
    config = shape(depth, 2)
    params = heads.stack(attentive_head(config, TOKENS, 0).start, 2, torch.device("cpu"))
    logits = attentive_forward(params, torch.randn(8, TOKENS, WIDTH), config)
    F.cross_entropy(logits.flatten(0, 1), torch.randint(0, CLASSES, (16,))).backward()
    for name, p in params.items():
        assert p.grad is not None
        assert p.grad.flatten(1).abs().sum(dim=1).gt(0).all(), name
