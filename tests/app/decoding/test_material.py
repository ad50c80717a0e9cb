"""What is decoded comes from: recordings and videos told apart, and what a decoder's run held out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from made_worlds import write_worlds
from support import moving, tiny_settings, write_clips

from app.decoding.material import Clip, evenly, fitted, held_out, is_recording, open_episodes, open_videos, read_clips
from jepa.config import ConfigError, from_dict, merge
from jepa.data.encoding import write_video
from jepa.data.trajectories.config import TrajectoryConfig
from jepa.decoding import Decoder, load_decoder
from jepa.train import TrainConfig, fit
from jepa.types import ClipConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked run with a decoder that holds out 3 of 12 clips."""
    folder = tmp_path_factory.mktemp("material")
    masked = tiny_settings(folder, steps=1, device="cpu", precision="fp32")
    fit(from_dict(TrainConfig, masked))
    net = {"kind": "deterministic", "embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8}
    own = {"kind": "decoder", "model": str(folder / "run"), "decoder": net}
    changes = {"run_dir": str(folder / "decoder"), "data": {"holdout": 3}, "objective": own, "masks": []}
    fit(from_dict(TrainConfig, merge({k: v for k, v in masked.items() if k != "encoder"}, changes)))
    return folder


@pytest.fixture
def decoder(folder: Path) -> Decoder:
    return load_decoder(folder / "decoder")


def test_recordings_are_told_from_videos(tmp_path: Path) -> None:
    write_worlds(tmp_path / "worlds", episodes=2)
    write_clips(tmp_path / "clips.npz")
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", moving(8), 8.0)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["actions"] = np.zeros((3, 2))
    found = {
        name: is_recording(str(tmp_path / name)) for name in ("worlds", "clips.npz", "videos", "a.hdf5", "videos/a.mp4")
    }
    assert found == {"worlds": True, "clips.npz": False, "videos": False, "a.hdf5": True, "videos/a.mp4": False}
    assert is_recording(str(tmp_path / "worlds" / "episode_00000.npz"))


def test_what_was_held_out_is_the_default(decoder: Decoder, folder: Path) -> None:
    assert [len(source) for source in held_out(decoder)] == [3]
    assert len(open_videos([], decoder)) == 3
    assert len(open_videos([str(folder / "clips.npz")], decoder)) == 12


def test_nothing_held_out_is_an_error(decoder: Decoder, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "path", str(folder / "run"))
    with pytest.raises(
        ConfigError, match=r"name a video to decode: .*run neither validates on videos nor holds any out"
    ):
        held_out(decoder)


def test_data_that_went_away(folder: Path, tmp_path: Path) -> None:
    decoder = load_decoder(folder / "decoder")
    shutil.move(folder / "clips.npz", tmp_path / "clips.npz")
    try:
        with pytest.raises(
            ConfigError, match=r"name a video to decode: the data of .*decoder cannot be opened \(.*clips.npz"
        ):
            open_videos([], decoder)
    finally:
        shutil.move(tmp_path / "clips.npz", folder / "clips.npz")


def test_episodes_need_actions(decoder: Decoder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was trained on videos without actions: name a recording"):
        open_episodes([], decoder, TrajectoryConfig())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty holds no episodes"):
        open_episodes([str(tmp_path / "empty")], decoder, TrajectoryConfig())
    episodes = open_episodes([str(write_worlds(tmp_path / "worlds"))], decoder, TrajectoryConfig())
    assert [Path(video.name).name for video in episodes] == [f"episode_0000{k}.npz" for k in range(4)]


def test_clips_are_the_middle_of_videos_with_their_times(decoder: Decoder, tmp_path: Path) -> None:
    frames = moving(12, 32, 32)
    write_video(tmp_path / "a.mp4", frames, 8.0, crf=1)
    (clip,) = read_clips(open_videos([str(tmp_path / "a.mp4")], decoder), decoder)
    assert clip.pixels.shape == (3, 4, 32, 32)
    assert clip.times() == ("0.50 s", "0.62 s", "0.75 s", "0.88 s")
    pixels, all_frames = decoder.to_pixels(clip.pixels), torch.from_numpy(frames).movedim(-1, 0) / 255
    errors = [float((pixels - all_frames[:, first : first + 4]).abs().mean()) for first in range(9)]
    assert int(np.argmin(errors)) == 4
    assert errors[4] < 0.05, "but for the codec"


def test_frames_are_cut_and_normalised() -> None:
    config = ClipConfig(num_frames=2, fps=1.0, crop_size=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    frames = np.full((3, 16, 24, 3), 51, np.uint8)
    found = fitted(frames, config, torch.device("cpu"))
    assert found.shape == (3, 3, 16, 16)
    torch.testing.assert_close(found, torch.full((3, 3, 16, 16), (0.2 - 0.5) / 0.25))


def test_videos_from_all_over_the_list() -> None:
    numbers: Any = list(range(10))
    assert evenly(numbers, 3) == [0, 4, 9]
    assert evenly(numbers, 1) == [0]
    assert evenly(numbers, 99) == numbers
    assert Clip("a", torch.zeros(3, 2, 4, 4), 1.0, 2.0).times() == ("1.00 s", "1.50 s")
