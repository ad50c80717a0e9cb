"""Where an eval's results go: a folder that cannot hold them is refused first, and nothing is lost when it fills up."""

import logging
from pathlib import Path

import pytest

from evals import tasks
from evals.main import evaluate, main
from evals.settings import EvalConfig, TaskResult
from jepa.config import ConfigError

RESULT = TaskResult([], {}, {}, table="| the table |", files={"full": b"x"})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[EvalConfig]:
    """The evals that were run, by a task that does nothing."""
    found: list[EvalConfig] = []

    def task(config: EvalConfig) -> TaskResult:
        found.append(config)
        return RESULT

    monkeypatch.setitem(tasks.TASKS, "video", task)
    return found


def test_a_file_in_the_place_of_the_folder_is_refused_before_the_eval(asked: list[EvalConfig], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "inside" / "it"):
        with pytest.raises(ConfigError, match=r"results cannot be written to .*file is no folder; choose --out"):
            evaluate(EvalConfig(run="m"), out)
    assert not asked
    evaluate(EvalConfig(run="m"), tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder" / "full").read_bytes() == b"x"


def test_the_table_is_shown_when_the_results_cannot_be_written(
    asked: list[EvalConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / "full").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"results cannot be written to .*out: .*choose --out"):
        evaluate(EvalConfig(run="m"), tmp_path / "out")
    assert "| the table |" in capsys.readouterr().out


@pytest.mark.parametrize(("rank", "level"), [("0", logging.INFO), ("1", logging.ERROR)])
def test_under_torchrun_the_first_process_says_how_far_it_is(
    asked: list[EvalConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, level: int
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(logging.getLogger("jepa"), "level", logging.WARNING)  # what it was is put back
    assert main(["m", "--out", str(tmp_path / "out")]) == 0
    assert logging.getLogger("jepa").level == level
