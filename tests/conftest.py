"""Fixtures of every test; plain helpers are in ``support.py``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_settings

torch.set_num_threads(1)  # models this small only lose time to threads

SLURM = "tests/slurm/"
# What takes longest, longest first. Side by side (make test) these start first: else one of them would begin as the
# last, and one process would run it while the others have nothing left to do.
LONGEST = (SLURM,)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # this is a worker of pytest-xdist; alone, the order stays as it is
        items.sort(key=lambda item: next((n for n, path in enumerate(LONGEST) if item.nodeid.startswith(path)), 99))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say whether the tests of SLURM ran: a cluster that is not there must not go unnoticed.

    Here, and from reports alone: with workers this process prints, and never reads the conftest.py of that folder.
    """
    counts, reasons = [], set()
    for kind in ("passed", "failed", "error", "skipped"):
        reports = [r for r in terminalreporter.stats.get(kind, []) if getattr(r, "nodeid", "").startswith(SLURM)]
        if reports:
            counts.append(f"{len(reports)} {kind}")
        reasons |= {report.longrepr[2].removeprefix("Skipped: ") for report in reports if kind == "skipped"}
    if counts:
        terminalreporter.write_line("; ".join([f"SLURM tests: {', '.join(counts)}", *sorted(reasons)]))


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests behave the same inside a cluster job or under torchrun."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _quiet_again() -> Iterator[None]:
    """What a test does to the log does not reach the next one."""
    log = logging.getLogger("jepa")
    level, propagate, handlers = log.level, log.propagate, list(log.handlers)
    yield
    log.setLevel(level)
    log.propagate, log.handlers = propagate, handlers


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return tiny_settings(tmp_path)
