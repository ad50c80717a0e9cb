"""Launched runs that really run: a local job from a copy of the code, a debug job, and the copies themselves."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import error_of

from app.cli import main
from app.launch import snapshot
from app.launch.records import read_launch
from app.launch.status import read_status, states_of
from jepa.checkpoint import latest_checkpoint, step_of

CHECKOUT = Path(__file__).parent.parent.parent


def wait_for(condition: Any, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.1)


def test_a_local_job_runs_the_copied_code_and_saves_when_cancelled(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # code that says where it lies, unlike the checkout, which is the working directory and installed besides
    edited = tmp_path / "edited"
    for name in snapshot.PACKAGES:
        shutil.copytree(CHECKOUT / name, edited / name, ignore=shutil.ignore_patterns("__pycache__"))
    train = edited / "app" / "train.py"
    said = "import jepa\nprint('from', __file__, jepa.__file__)\n\n"
    train.write_text(train.read_text().replace("def run(", f"{said}def run("))
    monkeypatch.setattr(snapshot, "ROOT", edited)
    monkeypatch.chdir(CHECKOUT)
    config, run = tmp_path / "tiny.yaml", Path(settings["run_dir"])
    settings["train"] |= {"steps": 10**6, "save_every": 10**6}
    config.write_text(yaml.safe_dump(settings))

    assert main(["launch", str(config), "--executor", "local"]) == 0
    shutil.rmtree(edited)
    assert "is RUNNING as job" in error_of(["launch", str(config), "--executor", "local"], capsys)
    launch = read_launch(run)
    assert launch is not None
    try:
        wait_for(lambda: read_status(run, launch, states_of({run: launch})[run]).step)
        log = (run / "launch" / "logs" / f"{launch.job_id}_0_log.out").read_text()
        code = run / "launch" / "code"
        assert f"from {code}/app/train.py {code}/jepa/__init__.py" in log
    finally:
        assert main(["launch", "--cancel", str(run)]) == 0
    wait_for(lambda: states_of({run: launch})[run].state != "RUNNING")
    status = read_status(run, launch, states_of({run: launch})[run])
    assert (status.state, status.why) == ("INTERRUPTED", "stopped by SIGTERM")
    saved = latest_checkpoint(run)
    assert saved is not None
    assert step_of(saved) >= (status.step or 0) > 0


def test_a_debug_job_runs_here(settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings))
    assert main(["launch", str(config), "--executor", "debug", "train.steps=2"]) == 0
    assert main(["launch", "--status", settings["run_dir"]]) == 0
    printed = capsys.readouterr().out
    assert "run: COMPLETED" in printed
    assert "step      2 / 2" in printed
    assert json.loads((tmp_path / "run" / "launch" / "launch.json").read_text())["code"] is None


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_a_checkout_is_copied_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "checkout"
    for name in snapshot.PACKAGES:
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").write_text("old")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "c"]):
        subprocess.run(["git", *words], cwd=root, check=True)
    (root / "jepa" / "__init__.py").write_text("edited")
    (root / "jepa" / "mine.py").write_text("new")
    monkeypatch.setattr(snapshot, "ROOT", root)
    target = tmp_path / "code"
    (target / "jepa").mkdir(parents=True)
    (target / "jepa" / "stale.py").write_text("of an earlier launch")
    snapshot.take_snapshot(target)
    assert sorted(path.name for path in (target / "jepa").iterdir()) == ["__init__.py", "mine.py"]
    assert (target / "jepa" / "__init__.py").read_text() == "edited"
    assert (target / ".git").is_dir()
    (root / "evals" / "__init__.py").unlink()
    with pytest.raises(ValueError, match="use --snapshot copy"):
        snapshot.take_snapshot(target)


def test_without_a_checkout_packages_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "site-packages"
    for name in (*snapshot.PACKAGES, "other", "jepa/__pycache__"):
        (root / name).mkdir(parents=True)
        (root / name / "a.py").write_text(name)
    monkeypatch.setattr(snapshot, "ROOT", root)
    assert "is no git checkout" in snapshot.take_snapshot(tmp_path / "code") or shutil.which("rsync") is None
    found = sorted(path.relative_to(tmp_path / "code").as_posix() for path in (tmp_path / "code").rglob("*.py"))
    assert found == ["app/a.py", "evals/a.py", "jepa/a.py"]
    with pytest.raises(ValueError, match="use --snapshot copy"):
        snapshot.take_snapshot(tmp_path / "code", "rsync")
