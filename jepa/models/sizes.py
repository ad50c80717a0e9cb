"""The size table of the vision transformers, timm spelling.

Base and larger follow the published models (I-JEPA arXiv 2301.08243, V-JEPA 2 arXiv 2506.09985); tiny and small
follow DeiT (arXiv 2012.12877); nano and micro are for CPUs.
"""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """Width, number of blocks, attention heads per block, and hidden width of the MLP over the width."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float


SIZES: dict[str, Size] = {
    "vit_nano": Size(128, 4, 4, 4.0),
    "vit_micro": Size(192, 6, 6, 4.0),
    "vit_tiny": Size(192, 12, 3, 4.0),
    "vit_small": Size(384, 12, 6, 4.0),
    "vit_base": Size(768, 12, 12, 4.0),
    "vit_large": Size(1024, 24, 16, 4.0),
    "vit_huge": Size(1280, 32, 16, 4.0),
    "vit_giant": Size(1408, 40, 22, 6144 / 1408),
    "vit_gigantic": Size(1664, 48, 26, 8192 / 1664),
}
