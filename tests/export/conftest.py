"""Runs to export, each trained once."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import tiny_settings

from jepa.config import from_dict
from jepa.train import TrainConfig, fit


def _train(folder: Path, frequencies: str) -> Path:
    settings = tiny_settings(folder, steps=2)
    settings["encoder"]["rope"] = {"frequencies": frequencies}
    fit(from_dict(TrainConfig, settings))
    return Path(settings["run_dir"])


@pytest.fixture(scope="session")
def tiled_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that the transformers port can express."""
    return _train(tmp_path_factory.mktemp("tiled"), "tiled")


@pytest.fixture(scope="session")
def interleaved_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the default rotary positions."""
    return _train(tmp_path_factory.mktemp("interleaved"), "interleaved")
