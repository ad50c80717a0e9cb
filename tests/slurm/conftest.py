"""A SLURM cluster for the tests of each module of this folder; they skip, with the reason, where it cannot run."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")  # with workers, one of them runs other tests after these
def running_cluster() -> Iterator[dict[str, str]]:
    """The variables of a running cluster. It runs in a process of its own, which stops it when its input closes: so
    also when this process is killed."""
    pipe, command = subprocess.PIPE, [sys.executable, str(FOLDER / "cluster.py"), "--hold"]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        exports = []
        for line in process.stdout:
            if line == "ready\n":
                break
            exports.append(line.strip().removeprefix("export ").split("=", 1))
        else:
            reason, _, logs = process.stderr.read().strip().partition("\n")
            if logs:
                warnings.warn(f"{reason}\n{logs}", stacklevel=1)  # in pytest's summary, in full
            pytest.skip(reason)
        yield dict(exports)


@pytest.fixture(scope="module")
def cluster(running_cluster: dict[str, str]) -> Iterator[dict[str, str]]:
    """The commands of SLURM, and jobs, see the cluster. Gives its variables."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**running_cluster, "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        yield running_cluster
