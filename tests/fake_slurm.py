"""SLURM's commands as small scripts that note how they were called and say what a test tells them to."""

from __future__ import annotations

from pathlib import Path

import pytest

_SCRIPT = """#!/bin/sh
here=$(dirname "$0")
echo "$@" >> "$here/{name}.calls"
[ -f "$here/{name}.error" ] && {{ cat "$here/{name}.error" >&2; exit 1; }}
[ "{name}" = sbatch ] && cp "$1" "$here/script"
[ -f "$here/{name}.answer" ] && cat "$here/{name}.answer"
exit 0
"""


class FakeSlurm:
    """``answer`` and ``refuse`` set what a command prints; ``calls`` are the arguments it got; ``script``: what sbatch
    got last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("sbatch", "srun", "squeue", "sinfo", "sacct", "scancel"):
            (folder / name).write_text(_SCRIPT.format(name=name))
            (folder / name).chmod(0o755)
        self.answer("sbatch", "Submitted batch job 77")
        self.answer("sinfo", "gpu\ncpu")
        self.refuse("sacct", "Slurm accounting storage is disabled")

    def answer(self, name: str, text: str) -> None:
        (self.folder / f"{name}.error").unlink(missing_ok=True)
        (self.folder / f"{name}.answer").write_text(text + "\n" if text else "")

    def refuse(self, name: str, text: str) -> None:
        (self.folder / f"{name}.error").write_text(text + "\n")

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def script(self) -> str:
        return (self.folder / "script").read_text()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake.folder}:/usr/bin:/bin")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return fake
