"""A process that dies while it writes a folder of shards leaves the previous checkpoint, and nothing for the next."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_distributed import ROOT

from jepa.checkpoint import latest_checkpoint, load_checkpoint, save_sharded
from jepa.distributed import Run

SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
import jepa.sharded_checkpoint as writing
from test_sharded_death import save

folder, moment = Path(sys.argv[1]), sys.argv[2]
save(folder, 1)
die = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
if moment == "before torch's index":
    writing.dcp.FileSystemWriter.finish = die
else:
    writing.os.replace = die
save(folder, 2)
"""


def save(folder: Path, step: int) -> Path:
    """A checkpoint with the step's number in every tensor."""
    moments = {0: {"exp_avg": torch.full((4, 3), float(step))}}
    state = {
        "config": {}, "clip": {}, "encoder_config": {}, "objective": {"weight": torch.full((4, 3), float(step))},
        "optimizer": {"state": moments, "param_groups": []},
    }  # fmt: skip
    with Run.start("cpu") as run:
        return save_sharded(folder, step, state, run)


@pytest.mark.parametrize("moment", ["before torch's index", "before its name"])
def test_a_death_in_mid_save_leaves_the_previous_checkpoint(tmp_path: Path, moment: str) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), moment]
    died = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == [".step_00000002.dcp.tmp", "step_00000001.dcp"]
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    state = load_checkpoint(latest)
    assert state["step"] == 1
    assert state["objective"]["weight"].eq(1).all()
    assert state["optimizer"]["state"][0]["exp_avg"].eq(1).all()
    save(tmp_path, 2)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step_00000001.dcp", "step_00000002.dcp"]
    assert load_checkpoint(tmp_path)["objective"]["weight"].eq(2).all()
