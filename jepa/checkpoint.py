"""Checkpoints: written in one move, self-describing, and enough to go on exactly where a run stopped.

A checkpoint holds plain containers and tensors only, so ``torch.load(weights_only=True)`` reads it:
``format``, ``code_version``, ``step``, ``config`` (the whole TrainConfig), ``clip`` and ``encoder_config`` (what
``load_encoder`` needs), ``objective`` (state dict), ``optimizer``, ``scaler``, ``rng`` (one entry per process),
``loader`` (sampler position). Files are ``run_dir/checkpoints/step_00001000.pt``, or folders ``step_00001000.dcp``
where the model is cut over processes (``jepa.sharded_checkpoint``): both are read alike, by any number of processes.
Beside them lies ``run_dir/config.yaml``, which guards the directory against a run with another configuration.

Policy: the last ``keep_last`` are kept, and every one whose step is a multiple of ``keep_every``.
"""

from __future__ import annotations

import functools
import importlib.metadata
import random
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from torch import Tensor

from jepa.config import ConfigError, differences, from_dict, load_yaml, to_dict
from jepa.distributed import Run
from jepa.files import SHARDED_SUFFIX, atomic_write, is_sharded_checkpoint, remove
from jepa.models.base import ClipEncoder
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.tensorfiles import CheckpointError, build_loaded, read_torch_file
from jepa.types import ClipConfig

FORMAT = 1
_REQUIRED = ("format", "step", "config", "clip", "encoder_config", "objective")


# ---- writing ---------------------------------------------------------------------------------------------------------


def save_checkpoint(
    run_dir: str | Path, step: int, state: Mapping[str, Any], *, keep_last: int = 2, keep_every: int | None = None
) -> Path:
    """Write ``state`` as the checkpoint of ``step`` and delete those that the policy no longer keeps.

    The file is written beside its final place, flushed to the disk, then renamed: a crash or a full disk leaves the
    earlier checkpoints as they were. Raises ``CheckpointError`` naming the path.
    """
    path = checkpoint_path(run_dir, step)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        write_checkpoint(path, {**described(step), **state})
    except (OSError, RuntimeError) as error:  # torch's own writer turns a full disk into a RuntimeError
        raise _unwritten(path, _reason(path, error)) from error
    prune(run_dir, keep_last, keep_every)
    return path


def save_sharded(
    run_dir: str | Path, step: int, state: Mapping[str, Any], run: Run, *, keep_last: int = 2,
    keep_every: int | None = None,
) -> Path:  # fmt: skip
    """As ``save_checkpoint``, for tensors in shards, into a folder; called on every process."""
    from jepa.sharded_checkpoint import write_sharded

    path = checkpoint_path(run_dir, step).with_suffix(SHARDED_SUFFIX)
    run.on_main(lambda: sweep(path.parent))
    try:
        write_sharded(path, {**described(step), **state}, run)
    except CheckpointError as error:
        raise _unwritten(path, str(error)) from error
    run.on_main(lambda: prune(run_dir, keep_last, keep_every))
    return path


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """One file that appears complete or not at all."""
    with atomic_write(path) as file:
        torch.save(dict(state), file)


def described(step: int) -> dict[str, Any]:
    """What every checkpoint says about itself first."""
    return {"format": FORMAT, "code_version": code_version(), "step": step}


def sweep(folder: Path) -> None:
    """Delete what a process left that was killed while it wrote or deleted."""
    for stale in folder.glob(".*.tmp"):
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)


def prune(run_dir: str | Path, keep_last: int, keep_every: int | None) -> None:
    """Delete checkpoints beyond the last ``keep_last`` (at least 1), except multiples of ``keep_every`` steps."""
    paths = list_checkpoints(run_dir)
    for path in paths[: -max(keep_last, 1)]:
        if not keep_every or step_of(path) % keep_every:
            remove(path)


def _unwritten(path: Path, reason: str) -> CheckpointError:
    previous = latest_checkpoint(path.parent.parent)
    return CheckpointError(
        f"checkpoint {path} could not be written: {reason}; last good checkpoint: {previous or 'none'}; free space or "
        "choose another run_dir, then run again"
    )


def _reason(path: Path, error: OSError | RuntimeError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    try:
        free = shutil.disk_usage(path.parent).free / 2**30
    except OSError:
        return str(error).splitlines()[0]
    return f"the write was cut short ({free:.2f} GiB free: disk full or quota reached)"


# ---- finding and reading ---------------------------------------------------------------------------------------------


def checkpoint_path(run_dir: str | Path, step: int) -> Path:
    return Path(run_dir) / "checkpoints" / f"step_{step:08d}.pt"


def step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """Checkpoints of a run, files and folders, oldest first."""
    folder = Path(run_dir) / "checkpoints"
    folders = (path for path in folder.glob(f"step_*{SHARDED_SUFFIX}") if is_sharded_checkpoint(path))
    found = [*folder.glob("step_*.pt"), *folders]
    return sorted((p for p in found if p.stem[5:].isdigit()), key=step_of)


def latest_checkpoint(run_dir: str | Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    paths = list_checkpoints(run_dir)
    return paths[-1] if paths else None


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that ``path`` means: itself, file or folder, or a run directory's newest. Raises
    ``CheckpointError``."""
    path = Path(path)
    if path.is_dir() and not is_sharded_checkpoint(path):
        latest = latest_checkpoint(path)
        if latest is None:
            raise CheckpointError(
                f"run directory {path} holds no checkpoint (looked for checkpoints/step_*.pt, step_*{SHARDED_SUFFIX})"
            )
        return latest
    if not path.exists():
        raise CheckpointError(f"{path} is neither a run directory nor a checkpoint file")
    return path


def load_checkpoint(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint (or the newest one of a run directory) onto the CPU. Raises ``CheckpointError``.

    ``mmap``: map tensors from the file, so that only those in use are read. Of a folder each weight is then read when
    it is asked for, and the optimizer's state is left out.
    """
    path = find_checkpoint(path)
    if path.is_dir():
        from jepa.sharded_checkpoint import read_sharded

        state = read_sharded(path, whole=not mmap)
    else:
        state = read_torch_file(path, mmap=mmap)
    missing = [key for key in _REQUIRED if not isinstance(state, dict) or key not in state]
    if missing:
        raise CheckpointError(f"{path} is not a checkpoint of this toolkit: it lacks {', '.join(missing)}")
    if state["format"] != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {state['format']}, this version reads format {FORMAT}")
    return state


def load_encoder(path: str | Path, weights: Literal["target_encoder", "encoder"] = "target_encoder") -> ClipEncoder:
    """Rebuild the encoder of a checkpoint or run directory from its stored config, strictly, on the CPU, in eval mode.

    ``weights``: the EMA target encoder (an objective without one has only "encoder", which is then taken).
    """
    state = load_checkpoint(path, mmap=True)
    tensors: Mapping[str, Tensor] = state["objective"]
    if weights not in ("target_encoder", "encoder"):
        raise ValueError(f"weights must be 'target_encoder' or 'encoder', not {weights!r}")
    prefix = weights if any(name.startswith(f"{weights}.") for name in tensors) else "encoder"
    own = {name.removeprefix(f"{prefix}."): tensors[name] for name in tensors if name.startswith(f"{prefix}.")}
    clip = from_dict(ClipConfig, state["clip"])
    if state["encoder_config"].get("kind") == "timm":  # the frozen encoder of a world model
        from jepa.models.timm_encoder import TimmConfig, TimmEncoder

        timm = from_dict(TimmConfig, state["encoder_config"])
        return build_loaded(lambda: TimmEncoder(timm, clip), own, path)[0]
    config = from_dict(EncoderConfig, state["encoder_config"])
    return build_loaded(lambda: Encoder(config, clip), own, path)[0]


# ---- run directory ---------------------------------------------------------------------------------------------------


def open_run_dir(run_dir: str | Path, config: Any, free_keys: Sequence[str]) -> None:
    """Claim ``run_dir`` for ``config`` (a config dataclass), or check that it was made with the same one.

    ``free_keys``: dotted prefixes of keys that may change between a run and its continuation. Raises ``ConfigError``
    listing the keys that differ, and when the directory cannot be written.
    """
    run_dir = Path(run_dir)
    path = run_dir / "config.yaml"
    try:
        if path.exists() and list_checkpoints(run_dir):  # a start that came to nothing does not claim the directory
            earlier = to_dict(from_dict(type(config), load_yaml(path)))  # fills in keys that are newer than the file
            changed = differences(earlier, to_dict(config))
            fixed = [c for c in changed if not any(c.startswith((f"{k}:", f"{k}.")) for k in free_keys)]
            if fixed:
                raise ConfigError(
                    f"run directory {run_dir} was made with another config ({'; '.join(fixed)}); "
                    "choose another run_dir, or remove that directory to start over"
                )
        elif list_checkpoints(run_dir):
            raise ConfigError(f"run directory {run_dir} holds checkpoints but no config.yaml; choose another run_dir")
        run_dir.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(yaml.safe_dump(to_dict(config), sort_keys=False).encode())
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"run directory {run_dir} cannot be written: {reason}; choose another run_dir") from error


@functools.cache
def code_version() -> str:
    """Version of the package, with the git commit where the code is a checkout."""
    try:
        version = importlib.metadata.version("jepa-toolkit")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():  # installed: a surrounding repository would not be ours
        return version
    try:
        # without its optional lock: a process that is killed here would leave the repository locked
        command = ["git", "--no-optional-locks", "describe", "--always", "--dirty"]
        described = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return version
    commit = described.stdout.strip()
    return f"{version}+{commit}" if described.returncode == 0 and commit else version


# ---- random states ---------------------------------------------------------------------------------------------------


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every global random generator of this process, as plain containers and tensors."""
    legacy: Any = np.random.get_state(legacy=False)
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": {
            "key": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
            "pos": int(legacy["state"]["pos"]),
            "has_gauss": int(legacy["has_gauss"]),
            "gauss": float(legacy["gauss"]),
        },
        "python": [version, list(numbers), gauss],
    }


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put back what ``random_state`` took."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    own = state["numpy"]
    key = own["key"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, own["pos"], own["has_gauss"], own["gauss"]))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
