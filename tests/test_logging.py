from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa.logging import Lap, RunLog, StepTimer, StepWindow, duration, logger, read_metrics, trained_seconds


def open_log(run_dir: Path, **changes: object) -> RunLog:
    options: dict = {"total_steps": 10, "progress": "off", "tensorboard": False, **changes}
    return RunLog(run_dir, **options)


def test_metrics_are_json_lines_and_nan_is_text(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.metrics(1, {"loss": 0.5, "lr": 1e-3})
    log.metrics(2, {"loss": float("nan"), "lr": torch.tensor(2e-3)})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": 1, "loss": 0.5, "lr": 1e-3}
    assert lines[1]["loss"] == "nan"
    assert lines[1]["lr"] == pytest.approx(2e-3)


def test_a_continued_run_drops_the_lines_of_lost_steps(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    for step in (2, 4, 6):
        log.metrics(step, {"loss": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # cut short by a kill
    log = open_log(tmp_path, start_step=4)
    log.metrics(6, {"loss": -1.0})
    log.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(2, 2.0), (4, 4.0), (6, -1.0)]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = open_log(tmp_path / "run", is_main=False)
    log.step(1)
    log.metrics(1, {"loss": 1.0}, show="loss")
    log.images(1, {"masks": np.zeros((4, 4, 3), np.uint8)})
    log.close()
    assert not (tmp_path / "run").exists()


def test_tensorboard_and_pictures(tmp_path: Path) -> None:
    log = open_log(tmp_path, tensorboard=True)
    log.metrics(1, {"loss": 1.0})
    log.images(1, {"pca/patch": np.full((8, 8, 3), 7, np.uint8)})
    log.close()
    assert (tmp_path / "pictures" / "pca_patch.png").stat().st_size > 0
    assert sum(f.stat().st_size for f in (tmp_path / "tensorboard").iterdir()) > 100


def test_lines_mode_prints_and_writes_log_txt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = open_log(tmp_path, progress="lines")
    logger.warning("features collapse")
    log.metrics(5, {"loss": 1.0}, show="loss 1.0000")
    own = list(log._handlers)
    assert len(own) == 2
    log.close()
    printed = capsys.readouterr().err
    assert "features collapse" in printed
    assert "step 5/10  loss 1.0000" in printed
    assert "features collapse" in (tmp_path / "log.txt").read_text()
    assert not any(handler in logger.handlers for handler in own)


def test_a_run_dir_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"run directory .*file/run cannot be written: .*choose another run_dir"):
        open_log(tmp_path / "file" / "run")


def test_window_keeps_tensors_until_read() -> None:
    window = StepWindow()
    for step in range(3, 6):
        window.add(step, {"loss": torch.tensor(float(step)), "norm": torch.tensor(1, dtype=torch.bfloat16)})
    assert len(window) == 3
    first, rows = window.read(lambda values: values)
    assert (first, window.names, len(window)) == (3, ["loss", "norm"], 0)
    torch.testing.assert_close(rows, torch.tensor([[3.0, 1.0], [4.0, 1.0], [5.0, 1.0]]))


def test_timer_and_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("jepa.logging.time.perf_counter", lambda: now[0])
    timer, loss = StepTimer(), torch.tensor(1.0)

    def step(waits: float, computes: float, graphs: int = 0) -> None:
        with timer.waiting():
            now[0] += waits
        now[0] += computes
        timer.stepped(loss, graphs)

    step(5.0, 3.0)  # the loader starts, the first step plans
    assert timer.lap(1) == Lap(8.0, 0.0, 8.0, 1)  # there is nothing else to tell
    step(1.0, 2.0)
    step(0.0, 1.0)
    assert timer.lap(2) == Lap(2.0, 0.25, 0.0, 0)
    step(0.0, 2.0)
    with timer.paused():
        now[0] += 10.0  # the monitor looks
    step(1.0, 30.0, graphs=1)  # another shape is compiled
    step(1.0, 3.0, graphs=1)
    assert timer.lap(3) == Lap(3.0, pytest.approx(1 / 6), 31.0, 1)
    assert [duration(s) for s in (42.4, 190, 7500)] == ["42s", "3m10s", "2h05m"]


def test_trained_seconds_counts_warm_up_once() -> None:
    records = [
        {"step": 2, "time/step_s": 1.0, "time/warmup_s": 8.0, "time/warmup_steps": 1},
        {"step": 2, "monitor/rankme": 3.0},
        {"step": 4, "time/step_s": 2.0},
    ]
    assert trained_seconds(records) == 8.0 + 1.0 + 2 * 2.0


def test_a_full_disk_is_reported_in_one_sentence(tmp_path):
    log = RunLog(tmp_path, total_steps=3, progress="off", tensorboard=False)
    log._metrics.close()
    log._metrics = open("/dev/full", "a")  # noqa: SIM115 - every write to it fails with "no space left on device"
    try:
        with pytest.raises(ValueError, match=r"metrics\.jsonl cannot be written: No space left.*checkpoint is intact"):
            log.metrics(1, {"loss": 1.0})
    finally:
        log.close()
