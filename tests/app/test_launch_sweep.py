"""Sweeps and what becomes of launched runs: states, summary, cancel, tail, against a SLURM of shell scripts."""

from __future__ import annotations

import csv
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_slurm import FakeSlurm, cluster
from support import error_of, tiny_settings

from app.cli import main
from app.launch.slurm import JobState, job_states
from app.launch.sweep import as_overrides, name_runs, read_entries
from app.launch.worker import FOLLOWS

__all__ = ["cluster"]
JOB = ["--partition", "gpu", "--time", "60", "--snapshot", "copy"]
GRID = "optim.lr.peak: [1.0e-3, 2.0e-3]\nmasks.0.num_blocks: [1, 2]\nobjective.loss: [l1]\n"


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = tiny_settings(tmp_path)
    settings["run_dir"] = "sweep"
    return write(tmp_path / "tiny.yaml", yaml.safe_dump(settings))


def test_a_grid_and_a_list_become_entries_with_readable_names(tmp_path: Path) -> None:
    entries = read_entries(write(tmp_path / "grid.yaml", GRID))
    assert len(entries) == 4
    assert entries[1] == {"optim.lr.peak": 0.001, "masks.0.num_blocks": 2, "objective.loss": "l1"}
    assert as_overrides(entries[1]) == ["optim.lr.peak=0.001", "masks.0.num_blocks=2", 'objective.loss="l1"']
    assert name_runs(entries)[1] == "001_peak-0.001_num_blocks-2_loss-l1"
    listed = read_entries(write(tmp_path / "list.yaml", "[{a.x: [1, 2], b.x: 'p/q r'}, {a.x: null}]"))
    assert name_runs(listed) == ["000_a.x-1-2_b.x-p-q-r", "001_a.x-null"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 3", "'seed' must have a list of values, as in [1, 2], not 3"),
        ("[]", "must map config keys to lists"),
        ("[{seed: 1}, {seed: 1}]", "entries 0 and 1 are the same"),
        ("run_dir: [a, b]", "sets run_dir"),
        ("seed: [1", "cannot be read"),
        ("{train.batch_size: [4, 5], seedd: [1]}", "4 of 4 entries"),
        ("[{seed: 1}, {seedd: 1}, {train.accumulate: 3}]", "2 of 3 entries cannot run, so nothing is submitted"),
        ("data.sources.0.path: [clips.npz, gone.npz]", "1 of 2 entries cannot run"),
    ],
)
def test_invalid_sweeps_submit_nothing(
    config: str, cluster: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    text = text.replace("seedd: [1]", "seedd: [1, 2]")
    said = error_of(["launch", config, *JOB, "--array", write(tmp_path / "sweep.yaml", text)], capsys)
    assert message in said
    assert "sweep.yaml" in said
    assert cluster.calls("sbatch") == []
    assert not Path("sweep").exists()


def test_a_sweep_is_one_array_with_a_table(
    config: str, cluster: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write(tmp_path / "grid.yaml", GRID)
    assert main(["launch", config, *JOB, "--array", grid, "--array-parallelism", "3", "seed=7"]) == 0
    assert len(cluster.calls("sbatch")) == 1
    assert "#SBATCH --array=0-3%3" in cluster.script
    runs = sorted(path for path in Path("sweep").iterdir() if path.name != "launch")
    assert [run.name for run in runs] == name_runs(read_entries(grid))
    for number, run in enumerate(runs):
        written = yaml.safe_load((run / "launch" / "config.yaml").read_text())
        assert (written["seed"], written["run_dir"]) == (7, str(tmp_path / run))
        assert written["masks"][0]["num_blocks"] == 1 + number % 2
        assert json.loads((run / "launch" / "launch.json").read_text())["job_ids"] == [f"77_{number}"]

    told = ("77_0|COMPLETED|None|n1", "77_1|RUNNING|None|n2", "77_2|PENDING|Priority|", "77_3|TIMEOUT|None|n1")
    cluster.answer("squeue", "\n".join(told))
    records = [{"step": 2, "loss": 0.5}, {"step": 4, "loss": 0.25}, {"step": 4, "online/class/knn": 0.75}]
    (runs[0] / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    capsys.readouterr()
    assert main(["launch", "--status", "sweep", "--save"]) == 0
    printed = capsys.readouterr().out
    rows = list(csv.DictReader(Path("sweep/summary.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["COMPLETED", "RUNNING", "PENDING", "TIMEOUT"]
    assert {key: rows[0][key] for key in ("peak", "num_blocks", "step", "loss", "class/knn")} == {
        "peak": "0.001", "num_blocks": "1", "step": "4 / 4", "loss": "0.25", "class/knn": "0.75"
    }  # fmt: skip
    assert rows[2]["why"] == "Priority"
    assert printed == Path("sweep/summary.md").read_text()
    assert len({len(line) for line in printed.splitlines()}) == 1  # aligned

    assert "is RUNNING as job 77_1" in error_of(["launch", config, *JOB, "--array", grid], capsys)
    assert "holds a sweep" in error_of(["launch", config, *JOB], capsys)
    assert "name one of its runs" in error_of(["launch", "--tail", "sweep"], capsys)
    assert main(["launch", "--cancel", str(runs[1])]) == 0
    assert main(["launch", "--cancel", "sweep"]) == 0
    assert cluster.calls("scancel") == ["77_1", "77"]


def test_states_come_from_queue_accounts_and_files(
    config: str, cluster: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job_states([]) == {}
    cluster.answer("sacct", "5|CANCELLED by 0|0:0|n1\n6|FAILED|3:0|n[1-2]\n7|COMPLETED|0:0|None assigned")
    cluster.answer("squeue", "6|RUNNING|None|n1")
    assert job_states(["5", "6", "7_1"]) == {
        "5": JobState("CANCELLED", "", "n1"), "6": JobState("RUNNING", "", "n1"), "7": JobState("COMPLETED", "", "")
    }  # fmt: skip
    assert cluster.calls("squeue")[0].split()[3:5] == ["--jobs", "5,6,7"]

    # no accounts, and the queue has forgotten the job: its own files tell
    cluster.refuse("sacct", "Slurm accounting storage is disabled")
    cluster.refuse("squeue", "slurm_load_jobs error: Invalid job id specified")
    assert main(["launch", config, *JOB, "--nodes", "2"]) == 0
    launch, logs = Path("sweep/launch"), Path("sweep/launch/logs")

    def status() -> str:
        capsys.readouterr()
        assert main(["launch", "--status", "sweep"]) == 0
        return capsys.readouterr().out

    assert "sweep: LOST" in status()
    (logs / "77_1_result.pkl").write_bytes(pickle.dumps(("error", "Traceback\n  File x\nValueError: the disk is full")))
    assert "sweep: FAILED" in status()
    assert "why       ValueError: the disk is full" in status()
    (launch / "errors").mkdir()
    (launch / "errors" / "77_rank1.txt").write_text("rank 1 of 2 on n2: no room\n(job 77)\nTraceback ...\n")
    assert "why       rank 1 of 2 on n2: no room" in status()
    lost = launch / "errors" / "77_rank0.txt"
    lost.write_text(f"rank 0 of 2 on n1: lost another\n(job 77, now; {FOLLOWS})\n")
    os.utime(lost, (1, 1))  # earlier than the cause, by its machine's clock
    assert "why       rank 1 of 2 on n2: no room" in status()
    assert main(["launch", "--tail", "sweep"]) == 0
    printed = capsys.readouterr().err
    assert "1 processes only say that they lost another one" in printed
    assert "lost another\n" not in printed
    (launch / "errors" / "77_rank1.txt").rename(tmp_path / "cause")
    (logs / "77_1_result.pkl").rename(tmp_path / "result")
    assert "why       no word from rank 1: killed (out of memory?), or it hung; rank 0 of 2 on n1: lost" in status()
    (tmp_path / "cause").rename(launch / "errors" / "77_rank1.txt")
    (tmp_path / "result").rename(logs / "77_1_result.pkl")
    lost.unlink()
    (launch / "stopped.txt").write_text("crash loop: twice at step 3\n")
    assert "why       crash loop: twice at step 3" in status()
    attempt = {"attempt": 1, "job_id": "77", "host": "n1", "started": "t", "ended": "t", "first_step": 0, "how": "done"}
    for left in (logs / "77_1_result.pkl", launch / "errors" / "77_rank1.txt", launch / "stopped.txt"):
        left.unlink()
    (launch / "attempts.jsonl").write_text(json.dumps(attempt) + "\n")
    assert "sweep: COMPLETED" in status()
    assert "attempt   1: job 77 on n1, from step 0: done" in status()
    cluster.refuse("squeue", "Unable to contact slurm controller")  # which no longer matters
    assert "sweep: COMPLETED" in status()
    (launch / "attempts.jsonl").write_text(json.dumps({**attempt, "how": "stopped by SIGTERM"}) + "\n")
    assert "sweep: INTERRUPTED" in status()
    assert main(["launch", config, *JOB, "--nodes", "2"]) == 0  # and may be launched again
    capsys.readouterr()

    (logs / "77_0_log.out").write_text("".join(f"line {i}\n" for i in range(50)))
    (launch / "errors" / "77_rank1.txt").write_text("rank 1 of 2 on n2: no room\n")
    assert main(["launch", "--tail", "sweep", "--lines", "2", "-f"]) == 0  # it has ended, so following ends
    printed = capsys.readouterr()
    assert printed.out == "line 48\nline 49\n"
    assert "no room" in printed.err
    assert "rank 2 is not among the job's 2 processes" in error_of(["launch", "--tail", "sweep", "--rank", "2"], capsys)
    assert "was not launched" in error_of(["launch", "--status", str(tmp_path)], capsys)
    assert main(["launch", "--cancel", "sweep"]) == 0
    assert "nothing to cancel" in capsys.readouterr().out
