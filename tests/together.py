"""What the processes of ``test_sharding.py`` do together: started once, four of them, then two pairs."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from support import tiny_settings
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp._fully_shard import _fsdp_param_group

from evals.online import OnlineProbes
from jepa.checkpoint import load_checkpoint
from jepa.config import from_dict, merge
from jepa.distributed import DistributedError, Run
from jepa.objectives.regularizers import RegularizerConfig, SigRegConfig, VarianceCovarianceConfig, regularize
from jepa.session import Session, build, save, train_step
from jepa.sharding import local
from jepa.tensorfiles import CheckpointError
from jepa.train import TrainConfig, fit

FSDP = {"train": {"parallel": "fsdp"}}
REGULARIZERS: dict[str, RegularizerConfig] = {
    "variance_covariance": VarianceCovarianceConfig(tokens=1.0, pooled=0.5, max_tokens=50),  # no multiple of 4
    "sigreg": SigRegConfig(tokens=1.0, pooled=1.0, max_tokens=50, num_slices=8),
}


def settings_of(folder: Path, name: str, *changes: dict[str, Any]) -> dict[str, Any]:
    """A run that has everything that could depend on the number of processes: accumulation, a regularizer over the
    batch, clipping that bites, EMA, monitor and online probes."""
    settings = tiny_settings(folder, steps=4, batch_size=8, accumulate=2, log_every=1, save_every=2, keep_last=9)
    settings["run_dir"] = str(folder / name)
    settings["objective"] |= {
        "momentum": [0.9, 0.95],
        "regularizer": {"kind": "variance_covariance", "pooled": 0.5, "max_tokens": 70},
    }
    # Adam's step in proportion to the gradient: else rounding in a gradient near zero would decide about its sign
    settings["optim"] = {"lr": {"start": 0.3, "peak": 0.3}, "eps": 1.0, "clip_norm": 0.5}
    settings["monitor"] = {"every": 2, "clips": 6}
    settings["data"] |= {"holdout": 6, "cache_mb": 0}
    settings["online"] = {"every": 4, "probes": ["linear"], "steps": 10, "train_clips": 6, "test_clips": 6,
                          "max_share": 1.0, "batch_size": 4}  # fmt: skip
    for change in changes:
        settings = merge(settings, change)
    return settings


def config_of(*args: Any) -> TrainConfig:
    return from_dict(TrainConfig, settings_of(*args))


def train(folder: Path, name: str, *changes: dict[str, Any]) -> None:
    fit(config_of(folder, name, *changes), OnlineProbes)


def copy_at(folder: Path, source: str, name: str, step: int) -> None:
    """The run ``source`` as it was when it had saved ``step``, as ``name``."""
    (folder / name / "checkpoints").mkdir(parents=True)
    settings = (folder / source / "config.yaml").read_text().replace(str(folder / source), str(folder / name))
    (folder / name / "config.yaml").write_text(settings)
    for path in (folder / source / "checkpoints").glob(f"step_{step:08d}.*"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / name / "checkpoints" / path.name)


# ---- four processes --------------------------------------------------------------------------------------------------


def by_four(folder: Path) -> dict[str, Any]:
    train(folder, "ddp4")
    train(folder, "fsdp4", FSDP)
    with Run.start("cpu") as run:
        return {
            "hosts": list(run.hosts), "missing": late(run), "terms": terms(run), "shares": shares(folder, run),
            "exchanges": exchanges(folder, run), "full disk": full_disk(folder, run),
        }  # fmt: skip


def late(run: Run) -> str:
    """What the others are told when rank 2 does not come, after it has all the same."""
    message = ""
    dist.barrier()  # on a busy machine half a second may lie between their starts
    if run.rank != 2:
        try:
            run.barrier("a meeting", timeout_s=0.5)
        except DistributedError as error:
            message = str(error)
    dist.barrier()
    if run.rank == 2:
        run.barrier("a meeting")  # that of before
    run.barrier("the next one", timeout_s=60)
    return message


def features() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(8, 13, 6), torch.randn(6, 6)


def terms(run: Run | None) -> dict[str, list[float]]:
    """Loss and gradient of each regularizer: of a quarter of the rows in each process, or of all rows."""
    tokens, weight = features()
    if run is not None:
        tokens = tokens.chunk(run.world_size)[run.rank]
    found = {}
    for name, config in REGULARIZERS.items():
        torch.manual_seed(1 if run is None else 1 + run.rank)  # directions of SIGReg: those of rank 0 count
        leaf = weight.clone().requires_grad_()
        total, _ = regularize(config, tokens @ leaf)
        total.backward()
        assert leaf.grad is not None
        gradient = leaf.grad if run is None else run.reduce_mean(leaf.grad)
        found[name] = [total.item(), *gradient.flatten().tolist()]
    return found


def open_session(folder: Path, run: Run, name: str, *changes: dict[str, Any]) -> Session:
    config = config_of(folder, name, {"online": None, "objective": {"regularizer": None}}, *changes)
    return build(config, run)


def shares(folder: Path, run: Run) -> list[float]:
    """This process's share of weights (EMA included), and of optimizer state after a step."""
    session = open_session(folder, run, "shares", FSDP)
    train_step(session, next(session.loader.iterate(0)), 0)
    own = [(local(p).numel(), p.numel()) for p in session.objective.parameters()]
    moments = [state["exp_avg"] for state in session.optimizer.state.values()]
    kept = [(local(m).numel(), m.numel()) for m in moments]
    return [sum(a for a, _ in pairs) / sum(b for _, b in pairs) for pairs in (own, kept)]


def exchanges(folder: Path, run: Run) -> dict[str, list[int]]:
    """How often gradients are summed over processes in a step of 1, 2 and 4 micro-batches."""
    found: dict[str, list[int]] = {"ddp": [], "fsdp": []}
    for parallel, counts in found.items():
        for accumulate in (1, 2, 4):
            changes = {"train": {"parallel": parallel, "accumulate": accumulate, "batch_size": 16}, "optim": {}}
            session = open_session(folder, run, "exchanges", changes)
            buckets: list[object] = []
            if parallel == "ddp":  # a hook without annotations: DDP would compare them with types, not with their names
                hook = lambda seen, bucket: (seen.append(0), allreduce_hook(dist.group.WORLD, bucket))[1]  # noqa: E731
                session.model.register_comm_hook(buckets, hook)  # type: ignore[operator]
            with mock.patch.object(_fsdp_param_group, "foreach_reduce", wraps=_fsdp_param_group.foreach_reduce) as sums:
                train_step(session, next(session.loader.iterate(0)), 0)
            counts.append(len(buckets) + sums.call_count)
    return found


def full_disk(folder: Path, run: Run) -> list[Any]:
    """Rank 1 alone cannot write its shards of the second checkpoint: what all hear, and what is left."""
    session = open_session(folder, run, "full", FSDP, {"train": {"keep_last": 1}})
    good = save(session, 1)
    written = "torch.distributed.checkpoint.FileSystemWriter.write_data"
    refusal = mock.patch(written, side_effect=OSError(28, "No space"))
    message = ""
    with refusal if run.rank == 1 else mock.patch("os.sync"):
        try:
            save(session, 2)
        except CheckpointError as error:
            message = str(error)
    intact = [load_checkpoint(good)["step"], *(name for name in os.listdir(good.parent) if name.startswith("."))]
    run.barrier("both have looked")
    again = save(session, 3).name
    return [message, intact, again, sorted(os.listdir(good.parent)) if run.is_main else []]


# ---- two pairs -------------------------------------------------------------------------------------------------------


def by_copies(folder: Path) -> None:
    train(folder, "ddp2")
    train(folder, "ddp2 from fsdp4")
    train(folder, "ddp2 bf16", {"train": {"precision": "bf16"}})


def by_shards(folder: Path) -> None:
    train(folder, "fsdp2", FSDP)
    train(folder, "fsdp2 from fsdp4", FSDP)
    train(folder, "fsdp2 from one", FSDP)
    train(folder, "fsdp2 bf16", FSDP, {"train": {"precision": "bf16"}})


def main(folder: Path, ports: list[int]) -> None:
    rank = int(os.environ["RANK"])
    found = by_four(folder)
    if rank == 0:
        copy_at(folder, "fsdp4", "ddp2 from fsdp4", 2)
        copy_at(folder, "fsdp4", "fsdp2 from fsdp4", 2)
        copy_at(folder, "one", "fsdp2 from one", 2)
        (folder / "copied").touch()
    pair, number = divmod(rank, 2)
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "MASTER_PORT": str(ports[pair])}
    with Run.start("cpu") as run:
        while not (folder / "copied").exists():
            time.sleep(0.05)
        run.barrier()
    (by_copies, by_shards)[pair](folder)
    print("result " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(port) for port in sys.argv[2:]])
