"""LeRobot data sets of both layouts, made here."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_trajectories import numbered, numbers_of, steps, tint_of, write_lerobot2, write_lerobot3
from PIL import Image

from jepa.config import ConfigError
from jepa.data.encoding import write_video
from jepa.data.source_config import ReadOptions
from jepa.data.trajectories.base import Trajectories, TrajectoryError
from jepa.data.trajectories.config import TrajectoryConfig
from jepa.data.trajectories.opening import open_trajectories
from jepa.types import ClipConfig

CLIP = ClipConfig(num_frames=3, fps=5.0, crop_size=32)
NATIVE = ClipConfig(num_frames=3, frame_step=1, crop_size=32)


def opened(path: Path, **config: object) -> Trajectories:
    return open_trajectories(str(path), TrajectoryConfig(**config))


@pytest.mark.parametrize("write", [write_lerobot2, write_lerobot3])
def test_both_layouts_hold_the_same_episodes(tmp_path, write):
    found = opened(write(tmp_path / "set", lengths=(12, 15, 9)))
    assert (len(found), found.widths(), found.state_names) == (3, (3, 2), ("x", "y"))
    for number, length in enumerate((12, 15, 9)):
        assert found.length(number) == length
        episode = found.episode(number, NATIVE)
        assert numbers_of(episode.frames) == list(range(length))
        assert tint_of(episode.frames) == 10 * number
        np.testing.assert_allclose(episode.actions, steps(length, 3, number)[:-1], atol=1e-5)
        np.testing.assert_allclose(episode.states[:, 0], np.arange(length) / 10, atol=1e-6)
        slow = found.episode(number, CLIP)
        assert numbers_of(slow.frames) == list(range(0, length, 2))
        pairs = steps(length, 3, number)[: 2 * len(slow.actions)].reshape(-1, 2, 3)
        np.testing.assert_allclose(slow.actions, pairs.mean(axis=1), atol=1e-5)
    for name in ("wrist", "observation.images.wrist"):
        wrist = opened(tmp_path / "set", camera=name)
        assert [tint_of(wrist.read(k, [1], ReadOptions())) for k in range(3)] == [100, 110, 120]


def test_wrong_names_are_told_with_the_right_ones(tmp_path):
    write_lerobot3(tmp_path)
    with pytest.raises(ConfigError, match=r"no camera 'side'; it has: observation\.images\.front, observation\.images"):
        opened(tmp_path, camera="side")
    with pytest.raises(ConfigError, match=r"no column 'actions', did you mean 'action'\?"):
        opened(tmp_path, actions=["actions"])
    info = tmp_path / "meta/info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "codebase_version": "v1.6"}))
    with pytest.raises(ConfigError, match=r"version 1\.6 of LeRobot's layout is not known; 2\.0, 2\.1 and 3\.0 are"):
        opened(tmp_path)
    info.write_text(json.dumps({"fps": 10}))
    with pytest.raises(ConfigError, match="has no 'codebase_version': it is not that of a LeRobot data set"):
        opened(tmp_path)
    info.write_text("{")
    with pytest.raises(ConfigError, match=r"info\.json cannot be read as JSON"):
        opened(tmp_path)


def test_tables_and_videos_of_other_lengths_are_errors(tmp_path):
    found = opened(write_lerobot2(tmp_path / "two"))
    video = tmp_path / "two/videos/chunk-000/observation.images.front/episode_000001.mp4"
    write_video(video, numbered(9), 10)
    message = f"{video} has 9 frames, the data of the episode 15: record it again, or remove it"
    with pytest.raises(TrajectoryError, match=message):
        found.episode(1, CLIP)
    episodes = tmp_path / "two/meta/episodes.jsonl"
    episodes.write_text(episodes.read_text().replace("12", "13"))
    with pytest.raises(TrajectoryError, match=r"episode_000000\.parquet has 12 rows, but meta says 13"):
        opened(tmp_path / "two").track(0)
    write_lerobot3(tmp_path / "three")
    write_video(tmp_path / "three/videos/observation.images.front/chunk-000/file-000.mp4", numbered(20), 10)
    with pytest.raises(TrajectoryError, match="has 20 frames, but the episode should be its frames 12 to 26"):
        opened(tmp_path / "three").episode(1, CLIP)
    meta = tmp_path / "three/meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(meta).to_pylist()
    rows[0]["videos/observation.images.front/to_timestamp"] = 0.9
    rows[1]["dataset_from_index"] = 11
    pq.write_table(pa.Table.from_pylist(rows), meta)
    with pytest.raises(TrajectoryError, match=r"\[0\] has 12 rows, but 0 to 0\.9 s of .* which are 9 frames"):
        opened(tmp_path / "three").episode(0, CLIP)
    with pytest.raises(TrajectoryError, match="rows 11 to 26 of its file are not of one episode"):
        opened(tmp_path / "three").track(1)


def test_a_table_that_is_missing_or_holds_no_numbers(tmp_path):
    found = opened(write_lerobot2(tmp_path))
    table = tmp_path / "data/chunk-000/episode_000000.parquet"
    columns = {name: column for name, column in zip(*_columns(table), strict=True) if name != "action"}
    pq.write_table(pa.table(columns), table)
    with pytest.raises(TrajectoryError, match=r"000000\.parquet has no column 'action'; it has: observation\.state"):
        found.track(0)
    for wrong in (pa.array(["a"] * 12), pa.array([[1.0]] * 11 + [[1.0, 2.0]]), pa.array([None] + [1.0] * 11)):
        pq.write_table(pa.table({**columns, "action": wrong}), table)
        with pytest.raises(TrajectoryError, match=r"the column 'action' \(.*\) does not hold numbers, equally many"):
            found.track(0)
    bad = steps(12, 3)
    bad[5, 1] = np.nan
    pq.write_table(pa.table({**columns, "action": pa.array(bad.tolist())}), table)
    with pytest.raises(TrajectoryError, match=r"000000\.parquet: actions at step 5, column 1 are nan"):
        found.track(0)
    table.write_text("no table")
    with pytest.raises(TrajectoryError, match=r"episode_000000\.parquet cannot be read as parquet"):
        found.track(0)


def _columns(path: Path) -> tuple[list[str], list[pa.ChunkedArray]]:
    table = pq.read_table(path)
    return table.column_names, table.columns


def test_pictures_in_the_table(tmp_path):
    found = write_lerobot2(tmp_path, lengths=(6,))
    info = json.loads((found / "meta/info.json").read_text())
    info["features"] = {k: v for k, v in info["features"].items() if "wrist" not in k}
    info["features"]["observation.images.front"]["dtype"] = "image"
    (found / "meta/info.json").write_text(json.dumps(info))
    table = found / "data/chunk-000/episode_000000.parquet"
    pictures = []
    for frame in numbered(6):
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "PNG")
        pictures.append({"bytes": file.getvalue(), "path": None})
    names, columns = _columns(table)
    pq.write_table(pa.table({**dict(zip(names, columns, strict=True)), "observation.images.front": pictures}), table)
    episode = opened(found).episode(0, NATIVE)
    np.testing.assert_array_equal(episode.frames, numbered(6))
    small = opened(found).read(0, [2, 4], ReadOptions(short_side=16))
    assert (small.shape, numbers_of(small)) == ((2, 16, 24, 3), [2, 4])


def test_names_that_are_not_those_of_the_columns_are_not_taken(tmp_path):
    root = write_lerobot2(tmp_path / "set")
    file = root / "meta/info.json"
    info = json.loads(file.read_text())
    info["features"]["observation.state"]["names"] = ["state"]
    file.write_text(json.dumps(info))
    found = open_trajectories(str(root))
    assert (found.state_names, found.widths()) == ((), (3, 2))
