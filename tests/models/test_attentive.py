"""The published probes' pooling, against a formula written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from jepa.models.attentive import AttentiveConfig, AttentiveProbe


@torch.no_grad()
def test_cross_attention_written_out() -> None:
    torch.manual_seed(0)
    probe = AttentiveProbe(AttentiveConfig(embed_dim=12, num_heads=3, num_classes=5))
    tokens = torch.randn(2, 7, 12)
    block = probe.pooler.cross_attention_block
    normed = F.layer_norm(tokens, (12,), block.norm1.weight, block.norm1.bias, 1e-5)
    rows = []
    for row in normed:
        query = probe.pooler.query_tokens[0]
        q = F.linear(query, block.xattn.q.weight, block.xattn.q.bias)
        k, v = F.linear(row, block.xattn.kv.weight, block.xattn.kv.bias).split(12, dim=-1)
        heads = []
        for h in range(3):
            part = slice(4 * h, 4 * h + 4)
            weights = torch.softmax(q[:, part] @ k[:, part].T / 2.0, dim=-1)
            heads.append(weights @ v[:, part])
        rows.append(query + torch.cat(heads, dim=-1))
    x = torch.stack(rows)
    x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(F.layer_norm(x, (12,), block.norm2.weight, block.norm2.bias, 1e-5))))
    torch.testing.assert_close(probe.pooler(tokens), x)
    torch.testing.assert_close(probe(tokens), F.linear(x[:, 0], probe.linear.weight, probe.linear.bias))


def test_every_parameter_learns_and_order_of_tokens_does_not_matter() -> None:
    torch.manual_seed(0)
    probe = AttentiveProbe(AttentiveConfig(embed_dim=12, num_heads=3, depth=3, classifiers={"verb": 2, "noun": 4}))
    assert len(probe.pooler.blocks) == 2
    tokens = torch.randn(2, 7, 12)
    logits = probe(tokens)
    torch.testing.assert_close(probe(tokens.flip(1))["noun"], logits["noun"])
    sum(x.square().mean() for x in logits.values()).backward()
    idle = [name for name, p in probe.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="num_classes or classifiers, and not both"):
        AttentiveConfig(embed_dim=12, num_heads=3)
    with pytest.raises(ValueError, match="not divisible by num_heads"):
        AttentiveConfig(embed_dim=12, num_heads=5, num_classes=2)
    probe = AttentiveProbe(AttentiveConfig(embed_dim=12, num_heads=3, num_classes=5))
    with pytest.raises(ValueError, match="tokens 12 wide, not 8"):
        probe(torch.zeros(1, 2, 8))
