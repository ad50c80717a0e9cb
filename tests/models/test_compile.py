"""torch.compile takes encoder and predictor as one graph each, without breaks, and gives the same numbers."""

import pytest
import torch
from torch import nn

from jepa.models import Encoder, EncoderConfig, Predictor, PredictorConfig
from jepa.types import ClipConfig

CLIP = ClipConfig(num_frames=4, fps=4, crop_size=16)


def encoder(position: str = "rope") -> Encoder:
    config = EncoderConfig(embed_dim=48, depth=1, num_heads=4, patch_size=4, position=position)  # type: ignore[arg-type]
    return Encoder(config, CLIP)


def largest_difference(module: nn.Module, *inputs: object) -> float:
    """``fullgraph`` raises at a graph break; the eager backend runs the traced graph without generating code."""
    torch._dynamo.reset()
    out = torch.compile(module, backend="eager", fullgraph=True)(*inputs)
    return float((out - module(*inputs)).detach().abs().max())


@pytest.mark.parametrize("position", ["rope", "sincos"])
def test_encoder_is_one_graph(position: str) -> None:
    clip, ids = torch.randn(2, 3, 4, 16, 16), torch.stack([torch.randperm(32)[:9] for _ in range(2)])
    if position == "rope":
        assert largest_difference(encoder(position), clip) < 1e-5
    assert largest_difference(encoder(position), clip, ids) < 1e-5


@pytest.mark.parametrize("position", ["rope", "sincos"])
def test_predictor_is_one_graph(position: str) -> None:
    model = Predictor(PredictorConfig(embed_dim=48, depth=1, num_heads=4), 48, encoder().grid, 2, position)  # type: ignore[arg-type]
    ids = torch.stack([torch.randperm(32)[:15] for _ in range(2)])
    assert largest_difference(model, torch.randn(2, 9, 48), ids[:, :9], ids[:, 9:], 1) < 1e-5


def test_bf16_image_is_one_graph() -> None:
    model, image = encoder(), torch.randn(2, 3, 1, 16, 16)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(image), model(image), rtol=0.05, atol=0.05)
