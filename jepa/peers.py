"""What a process says when those it computes with are gone: one sentence instead of a back-end's trace."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

from jepa.distributed import DistributedError, Run

# What gloo, NCCL and torch's own store say when another process closed its end or did not answer in time. gloo has no
# exception class of its own, and errors in DDP's backward pass come up as plain RuntimeError too.
_LOST = re.compile(
    r"gloo|nccl|processgroup|tcpstore|closed by peer|reset by peer|broken pipe|connection refused|socket timeout", re.I
)


class LostPeersError(DistributedError):
    """Another process of the run ended or hangs; its own error is the cause, this one only follows from it."""


@contextlib.contextmanager
def naming_lost_peers(run: Run, run_dir: str | Path) -> Iterator[None]:
    """Turn the back-end's error about vanished processes into ``LostPeersError``: who noticed, where, what to do."""
    try:
        yield
    except RuntimeError as error:  # DistError is one too
        if run.world_size == 1 or not (isinstance(error, dist.DistError) or _LOST.search(str(error))):
            raise
        reason = str(error).strip().splitlines()[0].partition(" This is typically")[0][:300]  # then gloo guesses
        raise LostPeersError(
            f"rank {run.rank} of {run.world_size} on {socket.gethostname()} lost another process of this run, which "
            f"ended or did not answer within train.timeout_s; look for that one's own error first ({reason}). "
            f"What {run_dir} has of checkpoints is intact: the same command goes on from the last one"
        ) from error
