"""A copy of the code for a job, which may wait and be requeued for days while the checkout is edited.

In a git checkout, with git and rsync on the machine, submitit's ``RsyncSnapshot`` makes it: a shallow clone with the
tracked files as they are now; files of the packages that git does not know yet go along. Elsewhere (a package from
pip, no rsync) the packages themselves are copied.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Literal

PACKAGES = ("jepa", "evals", "app")
ROOT = Path(__file__).resolve().parents[2]  # the checkout, or the site-packages that the packages lie in


def take_snapshot(target: Path, how: Literal["auto", "rsync", "copy"] = "auto") -> str:
    """Copy the code to ``target``, replacing what is there, and say how. Raises ``ValueError`` when it fails."""
    missing = _missing()
    if how == "rsync" and missing:
        raise ValueError(f"snapshot rsync is not possible: {missing}; use --snapshot copy")
    if target.exists():
        shutil.rmtree(target)
    if how == "copy" or missing:
        _copy(target)
        return "copied packages" + (f" ({missing})" if how == "auto" else "")
    _clone(target)
    return "git clone with the files as they are"


def _missing() -> str:
    """What submitit's snapshot lacks here; "" for nothing."""
    absent = [program for program in ("git", "rsync") if shutil.which(program) is None]
    if absent:
        return f"{' and '.join(absent)} not installed"
    return "" if (ROOT / ".git").exists() else f"{ROOT} is no git checkout"


def _copy(target: Path) -> None:
    for name in (*PACKAGES, "configs"):  # a package from pip has no configs beside it
        if name in PACKAGES or (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))


def _clone(target: Path) -> None:
    from submitit.helpers import RsyncSnapshot

    command = ["git", "ls-files", "--others", "--exclude-standard", "--", *PACKAGES, "configs"]
    try:
        new = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        with RsyncSnapshot(target, root_dir=ROOT, include=new):
            pass
    except subprocess.CalledProcessError as error:
        words = " ".join(map(str, error.cmd)) if isinstance(error.cmd, list) else error.cmd
        reason = (error.stderr or "").strip() or f"exit status {error.returncode}"
        raise ValueError(f"the code could not be copied: {words}: {reason}; use --snapshot copy") from None
