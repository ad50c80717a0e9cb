"""What a job is given: ``LaunchConfig``, from a YAML file with the options of the command line laid over it."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass, field
from typing import Any, Literal

Executor = Literal["slurm", "local", "debug"]
_OPTIONS = (  # options whose value is that of the key with the same name
    "executor", "name", "partition", "account", "qos", "constraint", "exclude", "nodes", "gpus_per_node", "gres",
    "tasks_per_node", "cpus_per_task", "mem_gb", "signal_delay_s", "array_parallelism", "container", "python",
    "max_requeues", "snapshot",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchConfig:
    """Where and with what a job runs. Only slurm heeds what is SLURM's: the other executors have this shell's
    environment and this machine.

    ``executor``: "slurm", "local" (processes of this machine that outlive the command) or "debug" (one process, this
    one, with a debugger where it fails and without a copy of the code). ``name``: of the job (default: the run
    directory's). ``partition``, ``account``, ``qos``, ``constraint``, ``exclude``: as of sbatch.

    Per job ``nodes``; per node ``gpus_per_node`` and ``tasks_per_node`` processes (default: one per GPU, one without
    GPUs), ``mem_gb`` of memory; per process ``cpus_per_task``. ``gres`` asks for the GPUs in another spelling
    (``gpu:a100:8``) where a cluster does not know --gpus-per-node. ``time_min`` minutes are the time limit;
    ``signal_delay_s`` seconds before it (default: 120, at most a quarter of the time) the job is told to save and queue
    again. It does that at most ``max_requeues`` times. ``array_parallelism``: runs of a sweep at once.

    ``container``: an image for srun's --container-image (the plug-in Pyxis); it holds Python and the dependencies, the
    toolkit itself comes from the copy of the code. The run's directory is mounted at its own path, and so is each
    ``host:container`` pair of ``container_mounts``. ``python``: shell words that start Python on the nodes (default:
    the one that runs now, ``python3`` in a container); ``apptainer exec --nv image.sif python3`` is one too.
    ``setup``: shell lines before the job, ``srun_args``: further words for srun. ``slurm``: further options of sbatch,
    such as ``{reservation: name, exclusive: true}``. ``snapshot``: how the code is copied: "rsync" (submitit's, of a
    git checkout), "copy" (the packages themselves), or "auto", the first one where it is possible.
    """

    executor: Executor = "slurm"
    name: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    gres: str | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    time_min: int | None = None
    signal_delay_s: int | None = None
    max_requeues: int = 20
    array_parallelism: int = 64
    container: str | None = None
    container_mounts: list[str] = field(default_factory=list)
    python: str | None = None
    setup: list[str] = field(default_factory=list)
    srun_args: list[str] = field(default_factory=list)
    slurm: dict[str, Any] = field(default_factory=dict)
    snapshot: Literal["auto", "rsync", "copy"] = "auto"

    def __post_init__(self) -> None:
        least = {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1, "cpus_per_task": 1, "mem_gb": 0, "time_min": 1,
                 "signal_delay_s": 1, "max_requeues": 0, "array_parallelism": 1}  # fmt: skip
        for name, value in least.items():
            own = getattr(self, name)
            if own is not None and own < value:
                raise ValueError(f"{name} must be at least {value}, not {own}")
        if self.gpus_per_node and self.tasks > self.gpus_per_node:
            raise ValueError(
                f"tasks_per_node {self.tasks} is more than gpus_per_node {self.gpus_per_node}: each process takes a GPU"
            )
        if self.gres is not None and not self.gpus_per_node:
            raise ValueError(f"gres {self.gres!r} says how to ask for GPUs: say how many in gpus_per_node, too")
        self._check_executor()

    def _check_executor(self) -> None:
        if self.executor == "slurm" and self.time_min is None:
            raise ValueError("time_min is missing: how many minutes the job may take (--time MIN)")
        if self.time_min is not None and (self.signal_delay_s or 0) >= 60 * self.time_min:
            raise ValueError(
                f"signal_delay_s {self.signal_delay_s} is as long as the whole job (time_min {self.time_min}): lower it"
            )
        if self.executor != "slurm" and self.nodes > 1:
            raise ValueError(f"nodes {self.nodes}: the executor {self.executor} has this machine only; use slurm")
        if self.executor == "debug" and self.tasks > 1:
            raise ValueError(f"tasks_per_node {self.tasks}: the executor debug has one process only; use local")

    @property
    def signal_s(self) -> int:
        """Seconds before the time limit at which the job is told."""
        return self.signal_delay_s or min(120, 15 * (self.time_min or 8))

    @property
    def tasks(self) -> int:
        """Processes per node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def processes(self) -> int:
        """Processes in all."""
        return self.nodes * self.tasks


def add_settings(group: argparse._ArgumentGroup) -> None:
    """The options that make up a ``LaunchConfig``; one that is not given is None."""
    add = group.add_argument
    add("--launch-config", metavar="FILE", help="YAML with these settings; options go before it")
    add("--executor", choices=("slurm", "local", "debug"), help="default: slurm")
    add("--partition")
    add("--account")
    add("--qos")
    add("--constraint", help="features that nodes must have")
    add("--exclude", help="nodes to leave out")
    add("--nodes", type=int, help="default: 1")
    add("--gpus-per-node", type=int, help="default: 0")
    add("--gres", help="ask for GPUs in this spelling instead, such as gpu:a100:8")
    add("--tasks-per-node", type=int, help="processes (default: one per GPU)")
    add("--cpus-per-task", type=int, help="CPUs per process: those that decode videos count")
    add("--mem-gb", type=float, help="memory per node")
    add("--time", dest="time_min", metavar="MIN", type=int, help="minutes; then the job saves and queues again")
    add("--signal-delay-s", type=int, help="seconds before the end at which it is told to save (default: 120)")
    add("--max-requeues", type=int, help="how often it may queue again (default: 20)")
    add("--name", help="of the job (default: the run directory's)")
    add("--container", metavar="IMAGE", help="for srun --container-image")
    add("--container-mount", action="append", metavar="HOST:PATH", help="may be given again")
    add("--python", metavar="WORDS", help="what starts Python on the nodes")
    add("--setup", action="append", metavar="LINE", help="shell line before the job; may be given again")
    add("--srun-args", metavar="WORDS", help="further words for srun: --srun-args='--mpi=none'")
    add("--slurm", action="append", metavar="KEY=VALUE", help="any other option of sbatch; may be given again")
    add("--snapshot", choices=("auto", "rsync", "copy"), help="how the code is copied (default: auto)")
    add("--array-parallelism", type=int, metavar="N", help="runs of a sweep at once (default: 64)")


def settings_from(args: argparse.Namespace) -> LaunchConfig:
    """The file's settings with the options over them. Raises ``ConfigError`` naming the file or the key."""
    from jepa.config import ConfigError, apply_overrides, from_dict, load_yaml

    data = {} if args.launch_config is None else load_yaml(args.launch_config)
    data |= {name: getattr(args, name) for name in (*_OPTIONS, "time_min") if getattr(args, name) is not None}
    if args.setup is not None:
        data["setup"] = args.setup
    if args.container_mount is not None:
        data["container_mounts"] = args.container_mount
    if args.srun_args is not None:
        data["srun_args"] = shlex.split(args.srun_args)
    if args.slurm is not None:
        data["slurm"] = {**(data.get("slurm") or {}), **apply_overrides({}, args.slurm)}
    try:
        return from_dict(LaunchConfig, data)
    except ConfigError as error:
        where = f"{args.launch_config}: " if args.launch_config is not None else ""
        raise ConfigError(f"{where}{error}") from None
