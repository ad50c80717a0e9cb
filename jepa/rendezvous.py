"""How the processes of a run find each other, and which of them are missing when they do not.

The launcher's variables say where rank 0's key-value store (torch's TCPStore) is. Each process puts its host's name
there; whoever waits for the others reads off who came. Address and port are always the launcher's.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import socket
from collections.abc import Sequence

import torch.distributed as dist

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_joined = itertools.count()  # runs of this process so far: each has names of its own in the store
# By rank and place, for as long as the process lives: were rank 0's store to end with a run, another rank that is
# already in the next one would have connected to a store that is about to close.
_stores: dict[str, dist.TCPStore] = {}


class DistributedError(ValueError):
    """The processes of a run cannot work together; the message says what or who is missing."""


def environment() -> tuple[int, int, int]:
    """(rank, local rank, world size) from torch's variables; (0, 0, 1) when there are none.

    Raises ``DistributedError`` when only some are set, or several tasks were started without them.
    """
    found = [name for name in _VARIABLES if os.environ.get(name)]
    if "RANK" not in found and "WORLD_SIZE" not in found:
        tasks = os.environ.get("SLURM_NTASKS", "1")
        if "SLURM_PROCID" in os.environ and tasks.isdigit() and int(tasks) > 1:
            raise DistributedError(
                f"Slurm started {tasks} tasks, but RANK and WORLD_SIZE are not set: they would train {tasks} separate "
                "models; start with torchrun or `jepa launch`, or export torch's variables"
            )
        return 0, 0, 1
    missing = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name not in found]
    if missing:
        raise DistributedError(f"{', '.join(missing)} missing beside {', '.join(found)}; start with torchrun")
    try:
        rank, world_size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except ValueError:
        raise DistributedError("RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers; start with torchrun") from None
    if not 0 <= rank < world_size:
        raise DistributedError(f"RANK {rank} does not fit WORLD_SIZE {world_size}; start with torchrun")
    return rank, local_rank, world_size


class RollCall:
    """The store that all processes of a run reach, and what they say in it.

    Raises ``DistributedError`` when rank 0's store cannot be reached within ``timeout_s``.
    """

    def __init__(self, rank: int, world_size: int, timeout_s: float) -> None:
        self.rank, self.world_size, self.timeout_s = rank, world_size, timeout_s
        self.hosts: dict[int, str] = {}
        self._calls = 0
        missing = [name for name in _VARIABLES[3:] if not os.environ.get(name, "").strip()]
        if missing:
            raise DistributedError(f"{' and '.join(missing)} must be set for {world_size} processes: use torchrun")
        address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        self.place = f"{address}:{port}"
        if not port.isdigit():
            raise DistributedError(f"MASTER_PORT must be a port number, not {port!r}; start with torchrun")
        try:
            store = self._connected(address, int(port))
            store.set_timeout(datetime.timedelta(seconds=timeout_s))
        except (RuntimeError, ValueError, OSError) as error:  # torch's DistError is a RuntimeError
            raise self.failure(error) from error
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = dist.PrefixStore(f"jepa/{attempt}/{next(_joined)}", store)

    def _connected(self, address: str, port: int) -> dist.TCPStore:
        """This process's connection to rank 0's store, which rank 0 serves itself unless torchrun does."""
        if self._key not in _stores:
            # torchrun's store outlives restarts, which must not read each other's entries
            kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            _stores[self._key] = dist.TCPStore(
                address, port, self.world_size, is_master=self.rank == 0 and not kept, multi_tenant=True,
                timeout=datetime.timedelta(seconds=self.timeout_s), wait_for_workers=False,
            )  # fmt: skip
        return _stores[self._key]

    @property
    def _key(self) -> str:
        return f"{self.rank} of {self.world_size} at {self.place}"

    def failure(self, error: Exception) -> DistributedError:
        """What to say when the group does not form because of ``error``; whoever tries again connects anew."""
        _stores.pop(self._key, None)
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        return DistributedError(
            f"rank {self.rank} of {self.world_size} could not join the others at {self.place} within "
            f"{self.timeout_s:.0f} s: {reason}; check that every process was started and can reach that address"
        )

    def join(self) -> None:
        """Say where this process runs and wait until all others have; ``hosts`` then names every rank's.

        Raises ``DistributedError`` naming the ranks that never came.
        """
        host = socket.gethostname()
        try:
            missing = self._call("join", host, self.timeout_s)
            if not missing:
                self.hosts = {rank: self.store.get(f"join/{rank}").decode() for rank in range(self.world_size)}
        except RuntimeError as error:
            raise self.failure(error) from error
        if missing:
            # those who came are hints where to look: a launcher starts the ranks of a host one after another
            here = {rank: self.store.get(f"join/{rank}").decode() for rank in range(self.world_size)
                    if rank not in missing}  # fmt: skip
            came = ", ".join(f"{rank} ({where})" for rank, where in itertools.islice(here.items(), 16))
            more = f" and {len(here) - 16} more" if len(here) > 16 else ""
            raise self.failure(RuntimeError(f"{self.named(missing)} never came, only {came}{more} did"))

    def meet(self, name: str, timeout_s: float) -> None:
        """Wait until every process has called this for the same occasion (``name``, for the message).

        Raises ``DistributedError`` after ``timeout_s`` with the ranks that are missing and their hosts.
        """
        self._calls += 1
        try:
            missing = self._call(f"meet/{self._calls}", name, timeout_s)
        except RuntimeError as error:
            raise DistributedError(
                f"rank {self.rank} was waiting for the others ({name}), and lost rank 0's store at {self.place}: "
                f"{str(error).splitlines()[0][:200]}; rank 0 ({self.hosts.get(0, 'host unknown')}) has ended: see its "
                "output"
            ) from error
        if missing:
            raise DistributedError(
                f"rank {self.rank} waited {timeout_s:.0f} s for the others ({name}); missing: {self.named(missing)}. "
                "See their output; raise train.timeout_s if they were only slow"
            )

    def leave(self, wait: bool) -> None:
        """Say goodbye. With ``wait`` rank 0 stays until all have: the store, which they may still use, ends with it."""
        with contextlib.suppress(RuntimeError):  # somebody died: whoever started us reports that
            self.store.set(f"left/{self.rank}", "")
            if wait and self.rank == 0:
                self._wait([f"left/{rank}" for rank in range(self.world_size)], self.timeout_s)

    def named(self, ranks: Sequence[int]) -> str:
        """``"rank 3 (node-b), rank 5 (node-c)"``; without the host of a rank that never said it."""
        shown = [f"rank {r} ({self.hosts[r]})" if r in self.hosts else f"rank {r}" for r in ranks[:16]]
        return ", ".join(shown) + (f" and {len(ranks) - 16} more" if len(ranks) > 16 else "")

    def _call(self, name: str, own: str, timeout_s: float) -> list[int]:
        """Put ``own`` beside the others' entries; the ranks that have none after ``timeout_s``."""
        keys = [f"{name}/{rank}" for rank in range(self.world_size)]
        self.store.set(keys[self.rank], own)
        if self._wait(keys, timeout_s):
            return []
        return [rank for rank, key in enumerate(keys) if not self.store.check([key])]

    def _wait(self, keys: list[str], timeout_s: float) -> bool:
        try:
            self.store.wait(keys, datetime.timedelta(seconds=timeout_s))
        except dist.DistStoreError:  # nothing but the time-out
            return False
        return True
