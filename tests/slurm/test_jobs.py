"""Real jobs on a real SLURM: what `jepa launch` promises about training on nodes, interruptions and failures."""

from __future__ import annotations

import csv
import datetime
import json
from pathlib import Path

import numpy as np
import pytest
from slurm.cluster import PARTITIONS, processes_with
from slurm.jobs import (
    STEPS,
    assert_same_run,
    ends,
    fact,
    job_of,
    launch,
    losses,
    settings_of,
    slurm,
    wait,
    wait_for_end,
    wait_for_start,
    wait_for_step,
    written,
)
from support import error_of, moving

from app.cli import main
from app.launch.attempts import read_attempts
from app.launch.records import launch_folder
from jepa.config import from_dict
from jepa.data.encoding import write_video
from jepa.train import TrainConfig, fit

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slurm")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """The run of one process, here, without SLURM."""
    return trained_here(folder / "alone")


def trained_here(folder: Path, **train: int) -> Path:
    fit(from_dict(TrainConfig, settings_of(folder, **train)))
    return folder / "run"


@pytest.fixture(scope="module")
def limited(cluster: dict[str, str], folder: Path) -> Path:
    """A run with less time left than the signal before the limit needs. SLURM looks every 30 s: until then the run
    stands still, to leave the machine to others; SLURM wakes a job that it signals. Later starts get their time,
    and wait until a test wants them."""
    settings = settings_of(folder / "limited")
    lines = (
        "scontrol update JobId=$SLURM_JOB_ID TimeLimit=60",
        f'until [ -z "$SLURM_RESTART_COUNT" ] || [ -e {folder}/limited/go ]; do sleep 0.2; done',
    )
    setup = [word for line in lines for word in ("--setup", line)]
    run_dir = launch(settings, "--time", "60", "--signal-delay-s", "600", *setup)
    wait_for_step(run_dir, 2)
    slurm("scancel", "--signal=STOP", job_of(run_dir))
    slurm("scontrol", "update", f"JobId={job_of(run_dir)}", "TimeLimit=10")
    return run_dir


@pytest.fixture(scope="module")
def pair(cluster: dict[str, str], folder: Path) -> Path:
    """Two nodes with one process each, not interrupted."""
    return launch(settings_of(folder / "pair"), nodes=2)


def test_an_unknown_partition_is_one_line_with_the_known_ones(
    folder: Path, limited: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(folder / "nowhere")
    config = folder / "nowhere" / "config.json"
    config.write_text(json.dumps(settings))
    message = error_of(["launch", str(config), "--partition", "gpu", "--time", "10", "--snapshot", "copy"], capsys)
    assert "invalid partition specified: gpu" in message
    assert f"partitions: {', '.join(PARTITIONS)}" in message
    assert not (launch_folder(folder / "nowhere" / "run") / "launch.json").exists()


def test_one_failing_rank_ends_the_job_at_once_with_its_message(
    folder: Path, pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One video of eight is broken: the rank that draws it fails, while the other waits for its gradients."""
    settings = settings_of(folder / "broken")
    videos = folder / "broken" / "videos"
    videos.mkdir()
    for number in range(8):
        write_video(videos / f"{number}.mp4", moving(8, seed=number), fps=8.0)
    (videos / "3.mp4").write_bytes(b"not a video")
    settings["data"] = {"sources": [{"path": str(videos)}], "workers": 0, "max_failed": 0.0}
    run_dir = launch(settings, nodes=2)
    wait_for_end(run_dir, "FAILED")
    error, *_ = sorted(launch_folder(run_dir).glob("errors/*.txt"), key=lambda path: path.stat().st_mtime)
    ended = datetime.datetime.fromisoformat(fact(run_dir, "EndTime")).timestamp()
    assert ended - error.stat().st_mtime < 60, written(run_dir)  # it would wait for 600 s
    rank = error.stem[-1]
    assert rank in "01"
    assert processes_with("SLURM_JOB_ID", job_of(run_dir)) == set()
    capsys.readouterr()
    assert main(["launch", "--status", str(run_dir)]) == 0
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert f"rank {rank} of 2" in shown
    assert "1 of 8 files cannot be decoded" in shown
    assert "3.mp4" in shown


def test_two_nodes_train_as_one_process(pair: Path, alone: Path) -> None:
    """The same global batch: the same loss curve, up to the order in which numbers are summed."""
    wait_for_end(pair)
    assert ends(pair) == ["done"]
    assert fact(pair, "NumNodes") == "2"
    steps, here = zip(*losses(alone), strict=True)
    assert [step for step, _ in losses(pair)] == list(steps) == list(range(1, STEPS + 1))
    np.testing.assert_allclose([loss for _, loss in losses(pair)], here, rtol=1e-5)
    assert here[-1] < here[0]


def test_a_sweep_is_an_array_with_a_run_directory_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_of(folder / "sweep", steps=6)
    sweep = folder / "sweep" / "seeds.yaml"
    sweep.write_text("seed: [0, 7]\n")
    home = launch(settings, "--array", str(sweep), "--partition", PARTITIONS[1])
    names = ["000_seed-0", "001_seed-7"]
    for name in names:
        wait_for_end(home / name)
        assert fact(home / name, "Partition") == PARTITIONS[1]
    assert len({job_of(home / name).partition("_")[0] for name in names}) == 1
    seventh = {**settings_of(folder / "seventh", steps=6), "seed": 7}
    fit(from_dict(TrainConfig, seventh))
    assert_same_run(home / names[1], Path(seventh["run_dir"]))
    assert losses(home / names[0]) != losses(home / names[1])
    assert main(["launch", "--status", str(home), "--save"]) == 0
    with (home / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["seed"], row["state"], row["step"]) for row in rows] == [
        (name, seed, "COMPLETED", "6 / 6") for name, seed in zip(names, "07", strict=True)
    ]
    for row in rows:
        assert float(row["loss"]) == pytest.approx(losses(home / row["run"])[-1][1], rel=1e-3)
        assert row["run"] in capsys.readouterr().out or row is not rows[0]


def test_interrupted_runs_end_as_the_uninterrupted(folder: Path, limited: Path, pair: Path, alone: Path) -> None:
    """SIGUSR1 to two nodes. One process and, one after the other: the signal before the time limit, SLURM's own requeue
    as it preempts, SIGKILL and a new launch. The same losses and weights, bit for bit."""
    signalled = launch(settings_of(folder / "signalled"), nodes=2)
    wait_for_step(signalled, 3)
    slurm("scancel", "--signal=USR1", job_of(signalled))

    wait(lambda: ends(limited)[0] is not None, "the signal before the time limit", limited)
    (folder / "limited" / "go").touch()
    second = wait_for_start(limited, 2)
    wait_for_step(limited, (second.first_step or 0) + 2)
    slurm("scontrol", "requeue", job_of(limited))
    third = wait_for_start(limited, 3)
    wait_for_step(limited, (third.first_step or 0) + 12)  # beyond another checkpoint
    slurm("scancel", "--signal=KILL", f"{job_of(limited)}.0")  # of a whole job it would be a gentle cancellation
    wait_for_end(limited, "FAILED")
    assert fact(limited, "Restarts") == "2"
    launch(settings_of(folder / "limited"))
    for run_dir in (signalled, limited):
        wait_for_end(run_dir)

    assert ends(signalled) == ["requeued after SIGUSR1", "done"]
    assert fact(signalled, "Restarts") == "1"
    limit, preempted, *later = ends(limited)
    assert (limit, later) == ("requeued after SIGUSR2", ["killed", "done"])
    assert str(preempted).startswith("stopped by SIGTERM")
    for run_dir in (signalled, limited):
        starts = read_attempts(run_dir)
        assert [start.first_step for start in starts[1:]] == [start.last_step for start in starts[:-1]]
        assert 0 < (starts[1].first_step or 0) < (starts[-1].first_step or 0) + 1 <= STEPS
    assert_same_run(signalled, pair)
    assert_same_run(limited, alone)
