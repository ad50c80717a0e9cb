"""Files of tensors: read without running anybody's code, and put into a model strictly."""

from __future__ import annotations

import fnmatch
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

_LISTED = 20
# what torch's reader raises, besides UnpicklingError, for bytes that it did not write
_DAMAGE = (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError,
           struct.error)  # fmt: skip
M = TypeVar("M", bound=nn.Module)


class CheckpointError(ValueError):
    """A checkpoint cannot be written, found or read; the message names the file."""


def read_torch_file(path: str | Path, *, mmap: bool = False) -> Any:
    """What ``torch.save`` wrote, on the CPU: tensors and plain containers only. Raises ``CheckpointError``.

    ``mmap``: map tensors from the file, so that only those in use are read. A pickle that would call functions is
    refused: loading it would run whatever its author wrote.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path} is empty (0 bytes): copy or download it again")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        if _asks_for_code(str(error), path):
            raise CheckpointError(
                f"{path} is refused: besides tensors it holds code or objects that would run when loaded"
            ) from error
        raise CheckpointError(f"{path} is damaged or not a checkpoint") from error
    except _DAMAGE as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged or not a checkpoint") from error


def _asks_for_code(message: str, path: Path) -> bool:
    """Whether torch stopped at a function or class, or at a pickle (byte 0x80) of a kind that ``torch.save`` never
    writes."""
    if "Unsupported operand" in message:
        with path.open("rb") as file:
            return file.read(1) == b"\x80"
    return any(words in message for words in ("Unsupported global", "Unsupported class", "is blocked"))


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (mapped from the file) and metadata of a ``.safetensors`` file. Raises ``CheckpointError``."""
    path = os.fspath(path)
    try:
        if os.path.getsize(path) == 0:
            raise CheckpointError(f"{path} is empty (0 bytes): copy or download it again")
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error


def misfits(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What keeps ``tensors`` from taking the place of ``own``, as key to reason; empty when they can."""
    wrong = {k: "is missing" for k in own if k not in tensors}
    wrong |= {k: "is unexpected" for k in tensors if k not in own}
    wrong |= {
        k: f"has shape {tuple(tensors[k].shape)}, the model needs {tuple(t.shape)}"
        for k, t in own.items()
        if k in tensors and tensors[k].shape != t.shape
    }
    return wrong


def refuse_misfits(
    own: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    path: str | Path,
    *,
    part: str = "",
    allow: Sequence[str] = (),
) -> dict[str, str]:
    """Raise a ``CheckpointError`` that lists the keys of ``tensors`` that do not fit ``own``, ``part`` before each.

    ``allow``: patterns (``fnmatch``, of ``part.key`` or ``key``) of keys that may be missing, unexpected or
    mis-shaped; these are returned, without ``part``, with the reason.
    """
    wrong = misfits(own, tensors)
    named = {k: f"{part}.{k}" if part else k for k in wrong}
    allowed = {k for k in wrong if any(fnmatch.fnmatchcase(n, a) for n in (named[k], k) for a in allow)}
    refused = [f"{named[k]} {why}" for k, why in wrong.items() if k not in allowed]
    if refused:
        more = f" (and {len(refused) - _LISTED} more)" if len(refused) > _LISTED else ""
        raise CheckpointError(f"{path} does not fit the configured model: {'; '.join(refused[:_LISTED])}{more}")
    return wrong


def load_strictly(
    module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path, *, part: str = "", allow: Sequence[str] = ()
) -> dict[str, str]:
    """``load_state_dict``, or a ``CheckpointError`` that lists the keys that do not fit, ``part`` before each.

    ``allow``: patterns (``fnmatch``, of ``part.key`` or ``key``) of keys that may be missing, unexpected or
    mis-shaped; these are left as the module has them and returned with the reason.
    """
    wrong = refuse_misfits(module.state_dict(), tensors, path, part=part, allow=allow)
    module.load_state_dict(module.state_dict() | {k: t for k, t in tensors.items() if k not in wrong})
    return _named(wrong, part)


def _named(wrong: Mapping[str, str], part: str) -> dict[str, str]:
    return {f"{part}.{k}" if part else k: why for k, why in wrong.items()}


def build_loaded(
    build: Callable[[], M], tensors: Mapping[str, Tensor], path: str | Path, *, part: str = "",
    allow: Sequence[str] = (),
) -> tuple[M, dict[str, str]]:  # fmt: skip
    """The module that ``build`` makes with ``tensors`` as its float32 state, frozen, in eval mode; and what
    ``load_strictly`` would pass over.

    The module is built without memory and given copies of the tensors: the random initialisation of a billion weights,
    which takes minutes, is left out, and no mapped file is needed any more afterwards.
    """
    with torch.device("meta"):
        module = build()
    own = module.state_dict()
    wrong = refuse_misfits(own, tensors, path, part=part, allow=allow)
    spoilt = [k for k, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if spoilt:
        more = f" (and {len(spoilt) - _LISTED} more)" if len(spoilt) > _LISTED else ""
        raise CheckpointError(f"{path} holds NaN or infinite weights: {', '.join(spoilt[:_LISTED])}{more}")
    if any(key in own for key in wrong):  # what the file lacks needs its initial values
        module = build()
        module.load_state_dict(module.state_dict() | {k: t for k, t in tensors.items() if k not in wrong})
    else:
        kept = {k: t for k, t in tensors.items() if k not in wrong}
        copies = {k: torch.empty(t.shape, dtype=_float32(t.dtype)).copy_(t) for k, t in kept.items()}
        module.load_state_dict(copies, assign=True)
    return module.eval().requires_grad_(False), _named(wrong, part)


def _float32(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.is_floating_point else dtype
