"""What is recorded is read back; nothing is half there, and nothing is mixed."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from made_trajectories import numbered, numbers_of, steps

from jepa.data.trajectories.opening import open_trajectories
from jepa.data.trajectories.writer import EpisodeWriter
from jepa.types import ClipConfig

META = {"fps": 10, "action_low": (-1, -1), "action_high": (1, 2), "state_names": ("x", "y", "z"), "env": "rooms"}


def test_what_is_written_is_read_back(tmp_path):
    writer = EpisodeWriter(tmp_path / "data", META)
    for number in (0, 1):
        writer.write(number, numbered(8 + number), steps(7 + number, 2), steps(8 + number, 3))
    assert writer.done == {0, 1}
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [
        "episode_00000.npz", "episode_00001.npz", "trajectories.json"
    ]  # fmt: skip
    with zipfile.ZipFile(writer.path(0)) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    found = open_trajectories(str(tmp_path / "data"))
    assert (len(found), found.state_names) == (2, ("x", "y", "z"))
    assert found.action_high is not None
    assert found.action_high.tolist() == [1, 2]
    episode = found.episode(1, ClipConfig(num_frames=2, fps=10, crop_size=32))
    assert numbers_of(episode.frames) == list(range(9))
    np.testing.assert_allclose(episode.actions, steps(8, 2), atol=1e-6)


def test_a_recording_goes_on_and_does_not_mix(tmp_path):
    EpisodeWriter(tmp_path, META).write(3, numbered(4), steps(4, 2), times=np.array([0, 0.1, 0.3, 0.4]))
    again = EpisodeWriter(tmp_path, META)
    assert again.done == {3}
    with pytest.raises(ValueError, match=r"holds episodes of other settings \(fps: 10 -> 5\): delete that folder"):
        EpisodeWriter(tmp_path, {**META, "fps": 5})
    assert json.loads((tmp_path / "trajectories.json").read_text())["fps"] == 10
    (tmp_path / "trajectories.json").write_text("{")
    with pytest.raises(ValueError, match=r"trajectories\.json is not valid JSON"):
        EpisodeWriter(tmp_path, META)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file cannot be written: File exists; choose another folder"):
        EpisodeWriter(tmp_path / "file", META)
    with pytest.raises(ValueError, match="the episodes' fps must be a positive number, not None"):
        EpisodeWriter(tmp_path / "new", {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((numbered(4).astype(np.float32), steps(3, 2)), r"episode 5: frames must be uint8 \[T, H, W, 3\], not float32"),
        ((numbered(4), steps(2, 2)), r"episode 5: actions must have 3 or 4 rows for 4 frames, not \(2, 2\)"),
        ((numbered(4), steps(4, 2), steps(3, 2)), r"episode 5: states must have 4 rows for 4 frames, not \(3, 2\)"),
        ((numbered(4), np.array([[0], [1], [np.nan]])), "episode 5: actions are not finite at step 2"),
        ((numbered(4), steps(3, 2), None, np.zeros(4)), "episode 5: times must rise from frame to frame"),
    ],
)
def test_arrays_that_do_not_belong_together_are_not_written(tmp_path, arguments, message):
    writer = EpisodeWriter(tmp_path, META)
    with pytest.raises(ValueError, match=message):
        writer.write(5, *arguments)
    assert writer.done == set()
