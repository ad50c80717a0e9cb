"""A SLURM cluster of two nodes on this one machine, in a temporary folder, for tests: it installs and leaves nothing.

``python tests/slurm/cluster.py -- sinfo`` starts it, prints the variables that clients need, runs the command under it
and stops it. It needs SLURM's and munge's programs (Debian: slurm-wlm and munge) and no privileges. With ``--hold`` it
runs until its standard input closes, so that it stops also when the process that started it was killed.

Nothing is real about the nodes but the daemons: each pretends to have CPUs, memory and GPUs, so that jobs of several
tasks fit on a small machine. Their names are loopback addresses, since the first node's name is where the processes of
a training job look for each other.
"""

from __future__ import annotations

import contextlib
import ctypes
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

NODES = ("127.0.0.1", "127.0.0.2")
PARTITIONS = ("main", "other")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "sbatch", "srun", "scancel", "scontrol", "squeue")
CPUS = 4  # per node, pretended: as many processes at once
GPUS = 2
START_S = 60.0
STOP_S = 5.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of prctl(2)
SYSTEM_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # where daemons are, which a user's PATH may lack

# What makes it quick: schedule at once, let a requeued job start as soon as its old credential has expired
# (cred_expire; SLURM's own value is 120 s), and do not wait long between a job's SIGTERM and its SIGKILL.
CONFIG = """\
ClusterName=tests
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobRequeue=1
KillWait=10
MinJobAge=3600
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldDebug=info
SlurmdDebug=info
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
NodeName={nodes[0]} NodeAddr={nodes[0]} NodeHostname={host} Port={ports[1]} CPUs={cpus} RealMemory=64000 Gres=gpu:{gpus}
NodeName={nodes[1]} NodeAddr={nodes[1]} NodeHostname={host} Port={ports[2]} CPUs={cpus} RealMemory=64000 Gres=gpu:{gpus}
PartitionName={partitions[0]} Nodes=ALL Default=YES MaxTime=60 DefaultTime=10
PartitionName={partitions[1]} Nodes={nodes[1]} MaxTime=60 DefaultTime=10
"""


class ClusterError(RuntimeError):
    """The cluster cannot run here; the message says why, with the daemons' logs where they started."""


class Cluster:
    """Use with ``with``, in a process that has no other children: when it stops, it waits for all of them.

    ``environment`` holds what clients need: SLURM_CONF and a complete PATH.
    """

    def __init__(self) -> None:
        self.environment: dict[str, str] = {}
        self._folder: Path | None = None
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), *SYSTEM_PATHS])
        missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
        if missing:
            raise ClusterError(f"{', '.join(missing)} not installed (Debian: apt-get install slurm-wlm munge)")
        _prctl(PR_SET_CHILD_SUBREAPER, 1)  # what the daemons leave becomes our child, so that we can wait for its end
        # Short, for a socket's path has 108 characters at most; the resolved path is how processes are found again.
        folder = self._folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp")).resolve()
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
        try:
            self._start(folder)
        except BaseException:  # whatever it was, Ctrl-C included: leave nothing behind
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _start(self, folder: Path) -> None:
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o400)
        (folder / "state").mkdir()
        host = socket.gethostname().split(".")[0]
        config = CONFIG.format(
            folder=folder, host=host, user=getpass.getuser(), ports=free_ports(1 + len(NODES)), nodes=NODES,
            partitions=PARTITIONS, cpus=CPUS, gpus=GPUS,
            first_job=1 + secrets.randbelow(1_000_000),  # submitit draws a job's port from it: not the same again
        )  # fmt: skip
        (folder / "slurm.conf").write_text(config)
        for number in range(GPUS):
            (folder / f"gpu{number}").touch()  # any file may stand for a device
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        self._daemon("munged", "--foreground", "--force", *(f"--{key}={folder / name}" for key, name in files.items()))
        self._wait(lambda: (folder / "munge.socket").exists(), "munged opens no socket")
        self._daemon("slurmctld", "-D")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node)
        self._wait(self._idle, "the two nodes did not become idle")

    def _daemon(self, program: str, *arguments: str) -> None:
        assert self._folder is not None
        with (self._folder / f"{program}-{len(self._daemons)}.log").open("wb") as log:
            # In a session of its own: a Ctrl-C at the terminal reaches this process only, which then stops them.
            self._daemons.append(subprocess.Popen(
                [program, *arguments], env={**os.environ, **self.environment}, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True, preexec_fn=_die_with_parent,
            ))  # fmt: skip

    def _idle(self) -> bool:
        shown = self.run("sinfo", "--noheader", "--Node", "--partition", PARTITIONS[0], "--format", "%T")
        return shown.returncode == 0 and shown.stdout.split() == ["idle"] * len(NODES)

    def _wait(self, ready: Callable[[], bool], complaint: str) -> None:
        limit = time.monotonic() + START_S
        while not ready():
            dead = [str(daemon.args[0]) for daemon in self._daemons if daemon.poll() is not None]  # type: ignore[index]
            if dead or time.monotonic() > limit:
                reason = f"{', '.join(dead)} ended" if dead else f"{complaint} within {START_S:.0f} s"
                raise ClusterError(f"{reason}\n{self.logs()}")
            time.sleep(0.1)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """One client command (``sinfo``, ``scontrol``, ...) under this cluster; its output is kept."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def logs(self, lines: int = 25) -> str:
        """The last lines that each daemon wrote."""
        assert self._folder is not None
        found = sorted(path for path in self._folder.glob("*.log") if path.stat().st_size)
        tails = (path.read_text(errors="replace").splitlines()[-lines:] for path in found)
        return "\n".join(f"--- {path.name}\n" + "\n".join(tail) for path, tail in zip(found, tails))

    def stop(self) -> None:
        """End all jobs and daemons, and remove the folder. Does nothing the second time."""
        if self._folder is None:
            return
        for daemon in self._daemons:
            daemon.terminate()
        limit = time.monotonic() + STOP_S
        for daemon in self._daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(max(0.1, limit - time.monotonic()))
        # Jobs do not end with their slurmd, by design: what runs under this configuration is found by its environment.
        while left := processes_of(self.environment["SLURM_CONF"]):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        with contextlib.suppress(ChildProcessError):  # until there are no more
            while True:
                os.waitpid(-1, 0)
        shutil.rmtree(self._folder)
        self._folder, self._daemons = None, []


def processes_of(conf: str) -> set[int]:
    """The living processes that were started with ``SLURM_CONF=conf``, this one excepted."""
    return processes_with("SLURM_CONF", conf) - {os.getpid()}


def processes_with(variable: str, value: str) -> set[int]:
    """The living processes that were started with this in their environment."""
    marker, found = f"{variable}={value}".encode(), set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or belongs to somebody else
            dead = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not dead and marker in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    return found


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on, all different.

    They lie below those that the system gives out by itself (on Linux from 32768): one of these could go to any other
    process before it is used, while tests beside this one open connections.
    """
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            port, held = 10_000 + secrets.randbelow(20_000), stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # somebody has it: draw again
                held.bind(("", port))
                ports.append(port)
        return ports


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _die_with_parent() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # even if the parent ends by SIGKILL


def stop_on_signals() -> None:
    """Let the first Ctrl-C, SIGTERM or SIGHUP leave through every ``with``, and no other disturb that."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def leave(number: int, frame: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in numbers:
        signal.signal(each, leave)


def main(argv: Sequence[str]) -> int:
    if argv[:1] not in (["--"], ["--hold"]) or (argv[0] == "--hold") != (len(argv) == 1):
        print("usage: python tests/slurm/cluster.py -- COMMAND ...   or   --hold", file=sys.stderr)
        return 2
    stop_on_signals()
    try:
        with Cluster() as cluster:
            for name, value in cluster.environment.items():
                print(f"export {name}={value}", flush=True)
            if argv[0] == "--hold":
                print("ready", flush=True)
                sys.stdin.read()
                return 0
            return subprocess.call(argv[1:], env={**os.environ, **cluster.environment})
    except ClusterError as error:
        print(f"no cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
