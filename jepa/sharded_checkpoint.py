"""A checkpoint as a folder: every process writes its own shards (torch.distributed.checkpoint), nobody the whole.

``run_dir/checkpoints/step_00001000.dcp/`` holds the tensors of model and optimizer in ``*.distcp`` files, torch's index
of them in ``.metadata``, and last of all ``checkpoint.pt`` with everything else a checkpoint has (``jepa.checkpoint``).
The folder is filled under another name and renamed when all processes are done. Any number of processes reads it.

The import takes seconds (torch.distributed.checkpoint), so that ``jepa.checkpoint`` waits until there is such a folder.
"""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from jepa.distributed import Run
from jepa.files import SHARDED_REST, atomic_write, flush, remove
from jepa.tensorfiles import CheckpointError, read_torch_file

_DAMAGE = (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, pickle.UnpicklingError)
_INDEX_NAMES = {  # what torch's index is made of; anything else in it is refused
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "device", "float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath"},
}  # fmt: skip


# ---- writing ---------------------------------------------------------------------------------------------------------


def split_tensors(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors of ``objective`` and ``optimizer`` by flat names, the rest) of what ``jepa.checkpoint`` describes."""
    optimizer = state["optimizer"]
    tensors = {f"objective.{name}": tensor for name, tensor in state["objective"].items()}
    for number, values in optimizer["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in values.items()}
    left = {key: value for key, value in optimizer.items() if key != "state"}
    return tensors, {**{k: v for k, v in state.items() if k != "objective"}, "optimizer": left}


def write_sharded(path: Path, state: Mapping[str, Any], run: Run) -> None:
    """Write ``state`` to the folder ``path``; called on every process, with its own shards (DTensors) of the tensors.

    Raises ``CheckpointError`` on all processes when one of them cannot write; ``path`` is then not there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    tensors, rest = split_tensors(state)
    run.on_main(lambda: _begin(temporary))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on its own use of DTensor storages
            dcp.save(tensors, storage_writer=dcp.FileSystemWriter(temporary, sync_files=True))
    except CheckpointException as error:
        rank, (reason, _) = next(iter(error.failures.items()))
        run.on_main(lambda: shutil.rmtree(temporary, ignore_errors=True))  # all have ended, and the disk may be full
        raise CheckpointError(f"rank {rank}{_host(run, rank)}: {reason}") from error
    run.on_main(lambda: _finish(temporary, path, rest))


def _host(run: Run, rank: int) -> str:
    return f" ({run.hosts[rank]})" if rank in run.hosts else ""


def _begin(temporary: Path) -> None:
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise CheckpointError(error.strerror or str(error)) from error


def _finish(temporary: Path, path: Path, rest: Mapping[str, Any]) -> None:
    try:
        with atomic_write(temporary / SHARDED_REST) as file:  # flushes the folder, too
            torch.save(dict(rest), file)
        remove(path)  # of the same step, written by an attempt that was continued from an earlier one
        os.replace(temporary, path)
        flush(path.parent)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(getattr(error, "strerror", None) or str(error).splitlines()[0]) from error


# ---- reading ---------------------------------------------------------------------------------------------------------


class _IndexUnpickler(pickle.Unpickler):
    """Torch's index is a pickle: only what it is made of is looked up, so that loading runs nobody's code."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _INDEX_NAMES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


class _Reader(dcp.FileSystemReader):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.index: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self.index is None:
            with (Path(self.path) / ".metadata").open("rb") as file:
                self.index = _IndexUnpickler(file).load()
        return self.index


class ShardedTensors(Mapping[str, Tensor]):
    """The tensors of a folder whose names begin with ``prefix``, without it; each is read, whole, when asked for."""

    def __init__(self, path: Path, prefix: str) -> None:
        self.path, self.prefix, self.reader = path, prefix, _Reader(path)
        try:
            entries = self.reader.read_metadata().state_dict_metadata
        except pickle.UnpicklingError as error:
            raise CheckpointError(f"{path}/.metadata is refused: it asks for {error} when loaded") from error
        except _DAMAGE as error:
            raise CheckpointError(f"{path} is damaged: its .metadata cannot be read") from error
        self.empty: dict[str, Tensor] = {}  # shape and dtype of each, without memory
        for name, entry in entries.items():
            if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata):
                empty = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
                self.empty[name.removeprefix(prefix)] = empty

    def __getitem__(self, name: str) -> Tensor:
        tensor = torch.empty_like(self.empty[name], device="cpu")
        self.fill({name: tensor})
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.empty)

    def __len__(self) -> int:
        return len(self.empty)

    def fill(self, own: Mapping[str, Tensor]) -> None:
        """Read into the tensors of ``own``, of DTensors only this process's shards. Raises ``CheckpointError``."""
        wanted: dict[str, Any] = {f"{self.prefix}{name}": tensor.detach() for name, tensor in own.items()}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "assuming single process": it is so
                dcp.load(wanted, storage_reader=self.reader, no_dist=True)
        except CheckpointException as error:
            raise CheckpointError(f"{self.path} is damaged: {next(iter(error.failures.values()))[0]}") from error
        except _DAMAGE as error:
            raise CheckpointError(f"{self.path} is damaged: {str(error).splitlines()[0][:200]}") from error

    def whole(self) -> dict[str, Tensor]:
        """All of them, on the CPU."""
        tensors = {name: torch.empty_like(empty, device="cpu") for name, empty in self.empty.items()}
        self.fill(tensors)
        return tensors


def read_sharded(path: Path, whole: bool) -> dict[str, Any]:
    """What ``write_sharded`` wrote, as one process has it: full tensors under ``objective`` and ``optimizer``.

    ``whole``: read them all; else ``objective`` reads a tensor when it is asked for and ``optimizer`` has no state.
    """
    state = read_torch_file(path / SHARDED_REST)
    if not isinstance(state, dict) or not isinstance(state.get("optimizer"), dict):
        raise CheckpointError(f"{path / SHARDED_REST} is not part of a checkpoint of this toolkit")
    weights = ShardedTensors(path, "objective.")
    state["objective"] = weights.whole() if whole else weights
    if whole:
        moments = ShardedTensors(path, "optimizer.").whole()
        state["optimizer"] = {"state": numbered(moments), **state["optimizer"]}
    return state


def numbered(moments: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Optimizer state by the number of its parameter, as torch's optimizers have it, from flat names."""
    found: dict[int, dict[str, Tensor]] = {}
    for name in sorted(moments, key=lambda name: int(name.partition(".")[0])):
        number, _, key = name.partition(".")
        found.setdefault(int(number), {})[key] = moments[name]
    return found
