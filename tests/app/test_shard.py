"""``jepa data shard``, and training and evaluating on what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import error_of, moving, tiny_settings

from app.cli import main
from jepa.data.encoding import write_video
from jepa.data.sources import SourceConfig, open_source


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JEPA_CACHE", str(tmp_path / "cache"))


def losses(settings: dict[str, Any]) -> dict[int, float]:
    lines = Path(settings["run_dir"], "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def test_shards_are_written_trained_on_and_continued_exactly(tmp_path, capsys):
    settings = tiny_settings(tmp_path, log_every=1)
    assert main(["data", "shard", str(tmp_path / "clips.npz"), str(tmp_path / "tar"), "--shard-count", "3"]) == 0
    printed = capsys.readouterr()
    assert "3 shards written, 0 were there already; 12 samples" in printed.out
    assert f"data.sources='[{{path: {tmp_path / 'tar'}}}]'" in printed.out
    settings["data"] = {"sources": [{"path": f"{tmp_path}/tar/shard-{{000000..000002}}.tar"}], "workers": 0}
    settings["train"]["save_every"] = 2
    config = tmp_path / "config.json"
    config.write_text(json.dumps(settings))
    assert main(["train", str(config)]) == 0
    whole, half = losses(settings), tmp_path / "run" / "checkpoints" / "step_00000002.pt"
    written = half.stat().st_mtime_ns
    assert len(whole) == 4
    (tmp_path / "run" / "checkpoints" / "step_00000004.pt").unlink()  # as if it had died at step 3
    assert main(["train", str(config)]) == 0
    assert half.stat().st_mtime_ns == written  # it went on from there
    assert losses(settings) == whole


def test_videos_are_reencoded_on_the_way_and_bad_ones_named(tmp_path, capsys):
    (tmp_path / "videos" / "owl").mkdir(parents=True)
    write_video(tmp_path / "videos" / "owl" / "a.mp4", moving(12, 64, 96), fps=10)
    (tmp_path / "videos" / "owl" / "b.mp4").write_text("no video")
    words = ["data", "shard", str(tmp_path / "videos"), str(tmp_path / "tar"), "--short-side", "32", "--workers", "1"]
    assert "1 files cannot be read and were left out" in error_of(words, capsys)
    source = open_source(SourceConfig(path=str(tmp_path / "tar")))
    assert source.class_names == ("owl",)
    with source.open(0) as reader:
        assert (reader.num_frames, reader.native) == (12, (32, 48))
    assert "--fps re-encodes" in error_of(["data", "shard", "x", str(tmp_path / "y"), "--fps", "5"], capsys)
    assert "x does not exist" in error_of(["data", "shard", "x", str(tmp_path / "y")], capsys)
    np.save(tmp_path / "clips.npy", np.zeros((2, 4, 8, 8, 3), np.uint8))
    words = ["data", "shard", str(tmp_path / "clips.npy"), str(tmp_path / "y"), "--shard-count", "3"]
    assert "there are only 2 samples" in error_of(words, capsys)
