"""What a model is computed in: the choice of a precision, mixed precision, TF32 products, and float8 linear layers.

Weights, optimizer state and EMA are fp32 whatever is chosen here: 16 bits and fewer are for the products alone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

from jepa.config import suggest

log = logging.getLogger("jepa")

Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FLOAT8_CAPABILITY = (8, 9)  # compute capability of the first devices with float8 products (Ada, then Hopper)
_TF32_CAPABILITY = (8, 0)  # Ampere
_FLOAT8_MULTIPLE = 16  # what the float8 products want both sides of a weight to be divisible by


def choose_precision(precision: str, device: torch.device) -> str:
    """The precision that ``precision`` means on ``device``. Raises ``ValueError`` for a pair that does not work."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision not in DTYPES:
        raise ValueError(f"precision {precision!r} is unknown{suggest(precision, ['auto', *DTYPES])}")
    if precision in ("fp16", "tf32") and device.type != "cuda":
        raise ValueError(f"precision {precision} needs a CUDA device, not {device.type}; use bf16 or fp32")
    if precision == "tf32" and torch.cuda.get_device_capability(device) < _TF32_CAPABILITY:
        raise ValueError(
            f"precision tf32 needs a device of compute capability 8.0 or newer, which "
            f"{torch.cuda.get_device_name(device)} is not; use fp16 or fp32"
        )
    return precision


@contextlib.contextmanager
def mixed(precision: str, device: torch.device) -> Iterator[None]:
    """Around a forward pass: autocast to 16 bits, TF32 products, or nothing at fp32."""
    if DTYPES[precision] == torch.float32:
        with products(precision):
            yield
        return
    with torch.autocast(device.type, dtype=DTYPES[precision]):
        yield


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    """Let fp32 matrix products use TensorFloat-32 (10 bits of mantissa) where ``precision`` is tf32; put back what was
    set before. A training loop needs it around the backward pass, too."""
    if precision != "tf32":
        yield
        return
    earlier = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(earlier)


# ---- float8 ----------------------------------------------------------------------------------------------------------


def takes_float8(module: nn.Module, name: str) -> bool:
    """Whether the linear layer called ``name`` is converted: those of transformer blocks with both widths divisible
    by 16. Embeddings of patches and of the predictor, and its last layer, stay as they are: they are small, and what
    goes wrong there goes wrong everywhere."""
    in_block = any(part in ("blocks", "predictor_blocks") for part in name.split("."))
    return (
        in_block
        and isinstance(module, nn.Linear)
        and not module.in_features % _FLOAT8_MULTIPLE
        and not module.out_features % _FLOAT8_MULTIPLE
    )


def convert_to_float8(model: nn.Module, device: torch.device, precision: str) -> int:
    """Let the linear layers of all transformer blocks in ``model`` multiply in float8, by torchao's dynamic scaling per
    tensor (arXiv 2209.05433: e4m3 for activations and weights, e5m2 for gradients); returns how many there are.

    The weights stay the same fp32 parameters under the same names, so checkpoints do not differ. Raises ``ValueError``
    where the device has no float8, torchao is missing, another precision than bf16 surrounds them, or no layer fits.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FLOAT8_CAPABILITY:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        raise ValueError(
            f"train.float8 needs a CUDA device of compute capability 8.9 or newer (Ada, Hopper, Blackwell), not "
            f"{name}; set train.float8=false"
        )
    if precision != "bf16":
        raise ValueError(f"train.float8 goes with train.precision bf16, not {precision}: set one of them otherwise")
    return swap_linears(model)


def swap_linears(model: nn.Module, emulate: bool = False) -> int:
    """The conversion itself. ``emulate``: operands are rounded to float8, but multiplied as they were; any device."""
    count = sum(takes_float8(module, name) for name, module in model.named_modules())
    if not count:
        raise ValueError(
            "train.float8: no linear layer of a transformer block has both widths divisible by 16; choose such an "
            "embed_dim, or set train.float8=false"
        )
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise ValueError("train.float8 needs torchao: pip install 'jepa-toolkit[float8]'") from None
    # The product for a weight's gradient runs over batch x tokens, and masks give any number of tokens: pad those.
    config = Float8LinearConfig(pad_inner_dim=True, emulate=emulate)
    convert_to_float8_training(model, module_filter_fn=takes_float8, config=config)
    log.info("%d linear layers multiply in float8", count)
    return count
