"""`jepa launch` up to what is handed to sbatch, against a SLURM of shell scripts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_slurm import FakeSlurm, cluster
from support import error_of

from app.cli import main
from app.main_distributed import main as main_distributed

__all__ = ["cluster"]
JOB = ["--partition", "gpu", "--time", "60", "--snapshot", "copy"]


@pytest.fixture
def config(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A config with relative paths, in the working directory."""
    monkeypatch.chdir(tmp_path)
    settings["run_dir"], settings["data"]["sources"] = "run", [{"path": "clips.npz"}]
    Path("tiny.yaml").write_text(yaml.safe_dump(settings))
    return "tiny.yaml"


def lines_of(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_a_launch_hands_over_resources_code_and_the_exact_config(
    config: str, cluster: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("job.yaml").write_text(
        "{partition: cpu, account: lab, qos: high, constraint: a100, exclude: 'n[1-2]', mem_gb: 64, cpus_per_task: 12,"
        " container: image.sqsh, container_mounts: ['/data:/data'], setup: [module load cuda], srun_args: [--mpi=none],"
        " slurm: {mail_type: END}, signal_delay_s: 200, max_requeues: 3, nodes: 1, gpus_per_node: 2, time_min: 30}"
    )
    options = ["--launch-config", "job.yaml", *JOB, "--nodes", "2", "--slurm", "reservation=r"]
    assert main(["launch", config, *options, "train.steps=9"]) == 0
    run, sbatch = tmp_path / "run", lines_of(cluster.script)
    for wanted in (
        "--partition=gpu", "--account=lab", "--qos=high", "--constraint=a100", "--exclude='n[1-2]'", "--mem=64GB",
        "--cpus-per-task=12", "--nodes=2", "--gpus-per-node=2", "--ntasks-per-node=2", "--time=60", "--requeue",
        "--signal=USR2@200", "--mail-type=END", "--reservation=r", "--job-name=jepa-run", "--open-mode=append",
        f"--output={run}/launch/logs/%j_0_log.out",
    ):  # fmt: skip
        assert wanted in sbatch, (wanted, sbatch)
    assert "\nmodule load cuda\n" in cluster.script
    srun = next(line for line in cluster.script.splitlines() if line.startswith("srun "))
    mounts = f"--container-mounts={run}:{run},/data:/data"
    for wanted in ("--kill-on-bad-exit=1", "--cpus-per-task=12", "--container-image=image.sqsh", mounts, "--mpi=none",
                   f"env PYTHONSAFEPATH=1 PYTHONPATH={run}/launch/code"):  # fmt: skip
        assert wanted in srun
    assert " python3 -u -m submitit.core._submit " in srun  # the image's, not this machine's

    written = yaml.safe_load((run / "launch" / "config.yaml").read_text())
    assert (written["train"]["steps"], written["train"]["batch_size"]) == (9, 4)
    assert written["run_dir"] == str(run)
    assert written["data"]["sources"][0]["path"] == str(tmp_path / "clips.npz")
    assert (run / "launch" / "code" / "app" / "launch" / "worker.py").exists()
    record = json.loads((run / "launch" / "launch.json").read_text())
    assert record["command"] == ["train", str(run / "launch" / "config.yaml")]
    assert (record["job_ids"], record["executor"], record["processes"]) == (["77"], "slurm", 4)
    assert (record["resources"]["max_requeues"], record["resources"]["partition"]) == (3, "gpu")
    printed = capsys.readouterr().out
    for wanted in ("job 77", f"{run}/launch/logs/77_0_log.out", f"--tail {run} -f", f"--cancel {run}"):
        assert wanted in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks-per-node", "3"], "train.batch_size 4 must be a multiple of nodes x processes per node x accumulate"),
        (["train.accumulate=4", "--nodes", "2"], "= 2 x 1 x 4 = 8"),
        (["data.sources.0.path=nowhere"], "nowhere does not exist"),
        (["data.sources.0.path=files.csv"], "50 of 51 files looked at do not exist"),
        (["init_from=nothing"], "nothing is neither a run directory nor a checkpoint"),
        (["encoder.num_heads=7"], "num_heads"),
        (["train.stepz=1"], "tiny.yaml: unknown config key 'train.stepz', did you mean 'steps'?"),
        (["train.device=cuda"], "give --gpus-per-node"),
        (["online={test: {path: absent.csv}}"], "absent.csv does not exist"),
        (["--gpus-per-node", "2", "--tasks-per-node", "4"], "tasks_per_node 4 is more than gpus_per_node 2"),
        (["--signal-delay-s", "3600"], "signal_delay_s 3600 is as long as the whole job"),
        (["--launch-config", "wrong.yaml"], "wrong.yaml: unknown config key 'partitionn', did you mean 'partition'?"),
        (["--executor", "local", "--nodes", "2"], "the executor local has this machine only"),
        (["--executor", "local", "--gpus-per-node", "99"], "runs on this machine, where torch sees"),
        (["--executor", "debug", "--tasks-per-node", "2"], "the executor debug has one process only"),
        (["--array", "sweep.yaml", "--app", "eval"], "it is not for --app eval"),
        (["--status", "run"], "--status stands alone"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    config: str, cluster: FakeSlurm, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    Path("wrong.yaml").write_text("partitionn: gpu")
    Path("files.csv").write_text("path\ntiny.yaml\n" + "".join(f"video{i}.mp4\n" for i in range(50)))
    assert message in error_of(["launch", config, *JOB, *words], capsys)
    assert cluster.calls("sbatch") == []
    assert not Path("run").exists()


def test_without_slurm_or_with_its_refusal_the_error_says_what_to_do(
    config: str, cluster: FakeSlurm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "time_min is missing" in error_of(["launch", config, "--partition", "gpu"], capsys)
    assert "which config?" in error_of(["launch", *JOB], capsys)
    assert "which config?" in error_of(["launch"], capsys)
    cluster.refuse("sbatch", "sbatch: error: invalid partition specified: gpux\nsbatch: error: Batch job submission "
                             "failed: Invalid partition name specified")  # fmt: skip
    said = error_of(["launch", config, *JOB], capsys)
    assert "invalid partition specified: gpux; Batch job submission failed: Invalid partition name specified" in said
    assert said.endswith("; partitions: cpu, gpu")
    assert not Path("run/launch/launch.json").exists()
    monkeypatch.setenv("PATH", "")
    assert "sbatch is not on PATH" in error_of(["launch", config, *JOB], capsys)
    assert "use --executor local" in error_of(["launch", config, *JOB, "--dry-run"], capsys)


def test_a_run_is_launched_again_only_once_it_has_ended(
    config: str, cluster: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", config, *JOB]) == 0
    cluster.answer("squeue", "77|PENDING|Resources|")
    assert "is PENDING as job 77: Resources; end it first" in error_of(["launch", config, *JOB], capsys)
    cluster.refuse("squeue", "slurm_load_jobs error: Unable to contact slurm controller")
    assert "Unable to contact slurm controller" in error_of(["launch", config, *JOB], capsys)
    cluster.answer("squeue", "77|FAILED|NonZeroExitCode|n1")
    Path("run/launch/stopped.txt").write_text("crash loop")
    cluster.answer("sbatch", "Submitted batch job 78")
    assert main(["launch", config, *JOB]) == 0
    assert json.loads(Path("run/launch/launch.json").read_text())["job_ids"] == ["78"]
    assert not Path("run/launch/stopped.txt").exists()
    assert len(cluster.calls("sbatch")) == 2


def test_a_run_begun_with_relative_paths_goes_on_with_them(
    config: str, cluster: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", config, "train.steps=1"]) == 0
    assert main(["launch", config, *JOB]) == 0
    written = yaml.safe_load(Path("run/launch/config.yaml").read_text())
    assert (written["data"]["sources"][0]["path"], written["run_dir"]) == ("clips.npz", os.path.abspath("run"))
    said = error_of(["launch", config, *JOB, "seed=5"], capsys)
    assert "was made with another config (data.sources.0.path" not in said
    assert "seed: 0 -> 5" in said


def test_a_dry_run_prints_everything_and_leaves_nothing(
    config: str, cluster: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main(["launch", config, *JOB, "--gpus-per-node", "8", "--gres", "gpu:a100:8", "--dry-run",
                 "train.batch_size=8"]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "#SBATCH --gres=gpu:a100:8" in printed
    assert "#SBATCH --ntasks-per-node=8" in printed
    assert "--gpus-per-node" not in printed
    assert f"run_dir: {tmp_path}/run" in printed
    assert main_distributed(["--fname", config, "--folder", "other", "--executor", "local", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "executor: local" in printed
    assert f"run_dir: {tmp_path}/other" in printed
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_printed_can_be_pasted_and_a_record_that_was_cut_off_says_what_to_do(
    config: str, cluster: FakeSlurm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["launch", config, *JOB, "run_dir=my runs/a"]) == 0
    assert f"jepa launch --tail '{os.path.abspath('my runs/a')}' -f\n" in capsys.readouterr().out
    cluster.answer("squeue", "77|PENDING|Resources|")
    monkeypatch.chdir("my runs/a")
    assert main(["launch", "--status", "."]) == 0
    assert capsys.readouterr().out.startswith("a: PENDING\n")
    Path("launch/launch.json").write_text('{"command": ["tr')
    said = error_of(["launch", "--cancel", "."], capsys)
    assert "launch.json cannot be read" in said
    assert "its job ids begin the names in launch/logs" in said


def test_other_commands_are_launched_into_a_folder_of_their_own(
    config: str, cluster: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", config, *JOB]) == 0
    cluster.answer("squeue", "77|COMPLETED|None|n1")
    app = ["launch", "--app", "eval", *JOB]
    words = ["--", "run", "--task", "video", "--probe", "linear"]
    assert "needs --run-dir" in error_of([*app, *words], capsys)
    assert "belongs to `jepa train`" in error_of([*app, "--run-dir", "run", *words], capsys)
    assert "did you mean 'eval'" in error_of(["launch", "--app", "evall", *JOB, *words], capsys)
    assert "did you mean 'radius'" in error_of(
        [*app, "--run-dir", "out", "--", "run", "--set", "tracking.radiuss=9"], capsys
    )
    encode = ["launch", "--app", "encode", *JOB, "--run-dir", "out", "--", "film.mp4", "--model"]
    assert "unknown model 'rum'" in error_of([*app, "--run-dir", "out", "--", "rum"], capsys)
    assert "unknown model 'runs'" in error_of([*app, "--run-dir", "out", *words, "--against", "runs"], capsys)
    assert "did you mean 'vjepa2_vit_large'" in error_of([*encode, "vjepa2_vit_larg", "-o", "f.npz"], capsys)
    assert "features must end in .parquet" in error_of([*encode, "run", "-o", "features"], capsys)
    assert main([*app, "--run-dir", "out", *words]) == 0
    record = json.loads((tmp_path / "out" / "launch" / "launch.json").read_text())
    assert record["command"] == ["eval", "run", "--task", "video", "--probe", "linear"]
    assert record["cwd"] == str(tmp_path)
