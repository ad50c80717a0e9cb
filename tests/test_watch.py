from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_settings, write_clips

from jepa.config import from_dict, merge
from jepa.data.video import VideoError
from jepa.distributed import Run
from jepa.logging import RunLog, read_metrics
from jepa.session import Session, build
from jepa.train import TrainConfig
from jepa.watch import Watch


def open_session(settings: dict[str, Any], **changes: Any) -> Session:
    config = from_dict(TrainConfig, merge(settings, changes))
    return build(config, Run(torch.device("cpu"), "fp32"))


def open_watch(session: Session) -> Watch:
    run_dir = session.config.run_dir
    return Watch(session, RunLog(run_dir, total_steps=4, progress="off", tensorboard=False))


def test_held_out_clips_are_spread_over_the_validation_videos(settings: dict[str, Any], tmp_path: Path) -> None:
    held = str(write_clips(tmp_path / "held.npz", clips=10, seed=9))
    changes = {"data": {"validation": [{"path": held}]}, "monitor": {"clips": 4, "every": 2}}
    session = open_session(settings, **changes)
    first, second = open_watch(session), open_watch(session)
    assert first.batch.index is not None
    assert first.batch.clip.shape == (4, 3, 4, 32, 32)
    assert first.batch.clip.dtype == torch.uint8
    assert first.batch.label is not None
    assert first.batch.label.tolist() == [0, 1, 0, 1]  # videos 0, 3, 6 and 9 of 10, whose labels alternate
    for mask, again in zip(first.batch.masks, second.batch.masks, strict=True):
        assert torch.equal(mask.target_ids, again.target_ids)
    assert [step for step in range(5) if first.due(step)] == [0, 2, 4]
    first.log.close()
    second.log.close()


def test_a_look_is_logged_drawn_and_leaves_the_training_alone(settings: dict[str, Any]) -> None:
    session = open_session(settings, monitor={"clips": 6, "pictures_every": 2})
    before = {name: value.clone() for name, value in session.objective.state_dict().items()}
    watch = open_watch(session)
    watch.look(2)
    watch.log.close()
    record = read_metrics(settings["run_dir"])[-1]
    assert record["step"] == 2
    assert 1 <= record["monitor/rankme"] <= 24
    assert 0 <= record["monitor/knn"] <= 1
    assert "rankme" in watch.summary
    pictures = {path.name for path in (Path(settings["run_dir"]) / "pictures").iterdir()}
    assert pictures == {"masks.png", "pca.png"}
    assert all(torch.equal(before[name], value) for name, value in session.objective.state_dict().items())
    assert all(parameter.grad is None for parameter in session.objective.parameters())


def test_a_continued_run_remembers_what_the_monitor_saw(settings: dict[str, Any]) -> None:
    session = open_session(settings)
    watch = open_watch(session)
    watch.look(0)
    watch.log.close()
    log = RunLog(settings["run_dir"], total_steps=4, start_step=2, progress="off", tensorboard=False)
    again = Watch(session, log)
    again.log.close()
    assert again.history == [pytest.approx(watch.history[0])]


def test_collapsed_features_warn_and_name_the_knob(settings: dict[str, Any]) -> None:
    session = open_session(settings)
    watch = open_watch(session)
    watch.look(0)
    with torch.no_grad():
        session.objective.target_encoder.norm.weight.zero_()  # every token becomes the same vector
    watch.look(2)
    watch.log.close()
    log = (Path(settings["run_dir"]) / "log.txt").read_text()
    assert "WARNING step 2: collapse" in log
    assert "objective.regularizer" in log


def test_no_readable_validation_video_is_an_error(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "film.mp4").write_text("not a film")
    session = open_session(settings, data={"validation": [{"path": str(broken)}]})
    with pytest.raises(VideoError, match=r"none of the monitor's 1 videos can be read.*film.mp4"):
        open_watch(session)
