"""The cluster itself: what it starts is gone when it stops, whatever ran under it."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from slurm.cluster import PROGRAMS, Cluster, ClusterError, free_ports, main, processes_of

SCRIPT = Path(__file__).with_name("cluster.py")
LEAVES = """
sbatch --quiet --nodes 2 --output /dev/null --wrap 'srun sleep 300'
while [ "$(squeue --noheader --states R --format %D)" != 2 ]; do sleep 0.1; done
setsid sleep 300 >/dev/null 2>&1 &
sinfo --noheader --Node --partition main --format %T
exit 3
"""


@pytest.mark.usefixtures("running_cluster")
def test_it_runs_a_command_and_leaves_neither_processes_nor_files() -> None:
    """A running job of two nodes and a process that left its session end with the cluster."""
    command = [sys.executable, str(SCRIPT), "--", "bash", "-c", LEAVES]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 3, ended.stderr
    exports, states = ended.stdout.splitlines()[:2], ended.stdout.splitlines()[2:]
    conf = Path(next(line for line in exports if "SLURM_CONF" in line).partition("=")[2])
    assert [state in ("mixed", "allocated") for state in states] == [True, True]
    assert conf.name == "slurm.conf"
    assert not conf.parent.exists()
    assert processes_of(str(conf)) == set()


def test_without_its_programs_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("slurm.cluster.SYSTEM_PATHS", ())
    with pytest.raises(ClusterError, match=r"munged, slurmctld, .* not installed \(Debian: apt-get install"), Cluster():
        pass
    assert main(["--both"]) == 2
    assert "usage" in capsys.readouterr().err
    assert len(PROGRAMS) == 9


def test_free_ports_differ() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert all(10_000 <= port < 30_000 for port in ports)
    with socket.socket() as taken:
        taken.bind(("", ports[0]))  # nobody has it
