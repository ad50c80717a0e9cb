"""Folders, CSV files and arrays: what they list, how they are labelled, what they say when they are wrong."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jepa.config import ConfigError, from_dict
from jepa.data.sources import ClipRequest, ReadOptions, SourceConfig, open_source
from jepa.data.video import VideoError
from jepa.types import ClipConfig

CLIP = ClipConfig(num_frames=4, frame_step=1, crop_size=16)


def test_folder_gives_sorted_videos_and_class_labels(video_folder, frame_numbers):
    source = open_source(SourceConfig(path=str(video_folder)))
    assert len(source) == 12
    assert source.class_names == ("left", "right")
    assert source.labels.tolist() == [0] * 6 + [1] * 6
    assert [p[-11:] for p in source.paths[:2]] == ["left/01.mp4", "left/03.mp4"]
    clip = source.load_clip(0, CLIP)
    assert clip.frames.shape == (4, 40, 60, 3)
    assert frame_numbers(clip.frames) == [9, 10, 11, 12]  # the middle of 22 frames
    assert (clip.start_s, clip.end_s, clip.label) == (0.9, 1.3, 0)


def test_random_clips_follow_their_stream_and_several_share_one_opening(video_folder, frame_numbers, monkeypatch):
    source = open_source(SourceConfig(path=str(video_folder)))
    alone = [source.load_clip(3, CLIP, np.random.default_rng(s), (s, 2)) for s in range(2)]
    opened = []
    original = type(source).open
    monkeypatch.setattr(type(source), "open", lambda self, path: opened.append(path) or original(self, path))
    together = source.load_clips(3, CLIP, [ClipRequest(np.random.default_rng(s), (s, 2)) for s in range(2)])
    assert len(opened) == 1
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.frames, other.frames)
        assert frame_numbers(one.frames)[0] == round(one.start_s * 10)
    assert alone[0].start_s < 1.2 <= alone[1].start_s


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("path,label\nleft/01.mp4,b\nright/00.mp4,a\n", [1, 0]),
        ("left/01.mp4 3\nright/00.mp4 0\n", [3, 0]),
        ("left/01.mp4,b\nright/00.mp4,a\n", [1, 0]),
        ("left/01.mp4\nright/00.mp4\n", [-1, -1]),
        ("path\tlabel\nleft/01.mp4\t01\nright/00.mp4\t00\n", [1, 0]),
        ("label,path\n,left/01.mp4\nx,right/00.mp4\n", [-1, 0]),
    ],
)
def test_csv_formats(video_folder, text, labels):
    path = video_folder / "list.csv"
    path.write_text(text)
    try:
        source = open_source(SourceConfig(path=str(path)))
        assert source.labels.tolist() == labels
        assert source.load_clip(0, CLIP).frames.shape == (4, 40, 60, 3)
    finally:
        path.unlink()


def test_csv_columns_spans_and_filters(video_folder, tmp_path, frame_numbers):
    rows = ["path,start_s,end_s,slot,word"]
    for i, word in enumerate(("one", "two", "red", "two")):
        slot = "colour" if word == "red" else "digit"
        rows.append(f"{video_folder}/left/0{2 * i + 1}.mp4,0.{5 + i},1.{i},{slot},{word}")
    (tmp_path / "words.csv").write_text("\n".join(rows))
    config = SourceConfig(path=str(tmp_path / "words.csv"), label_column="word", where={"slot": "digit"})
    source = open_source(config)
    assert (source.class_names, source.labels.tolist()) == (("one", "two"), [0, 1, 1])
    assert frame_numbers(source.load_clip(2, CLIP).frames) == [9, 10, 11, 12]  # inside 0.8 to 1.3 s
    renamed = open_source(config, class_names=("zero", "two", "one"))
    assert renamed.labels.tolist() == [2, 1, 1]
    with pytest.raises(ConfigError, match="class 'one', which is not among: two"):
        open_source(config, class_names=("two",))
    with pytest.raises(ConfigError, match="no column 'colour'; its columns: path, start_s, end_s, slot, word"):
        open_source(SourceConfig(path=config.path, label_column="colour"))
    with pytest.raises(ConfigError, match="no rows where"):
        open_source(SourceConfig(path=config.path, where={"slot": "verb"}))


def test_arrays_with_labels_and_subsets(tmp_path):
    clips = np.arange(5 * 6, dtype=np.uint8).reshape(5, 6, 1, 1, 1) * np.ones((1, 1, 20, 24, 3), dtype=np.uint8)
    np.savez(tmp_path / "clips.npz", clips=clips, labels=np.array(["b", "a", "b", "c", "a"]))
    np.save(tmp_path / "clips.npy", clips)
    source = open_source(SourceConfig(path=str(tmp_path / "clips.npz"), fps=5))
    assert (source.labels.tolist(), source.class_names) == ([1, 0, 1, 2, 0], ("a", "b", "c"))
    clip = source.load_clip(2, CLIP)
    assert clip.frames[:, 0, 0, 0].tolist() == [13, 14, 15, 16]
    assert (clip.start_s, clip.end_s) == (0.2, 1.0)
    part = source.subset([4, 2])
    assert (len(part), part.labels.tolist()) == (2, [0, 1])
    assert np.array_equal(part.load_clip(1, CLIP).frames, clip.frames)
    plain = open_source(SourceConfig(path=str(tmp_path / "clips.npy")), ReadOptions(short_side=10))
    assert plain.labels.tolist() == [-1] * 5
    assert plain.load_clip(0, CLIP).frames.shape == (4, 10, 12, 3)


def test_images_are_videos_of_one_frame(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (30, 20), (200, 0, 0) if name == "cat" else (0, 0, 200)).save(tmp_path / name / "1.png")
    source = open_source(SourceConfig(path=str(tmp_path)), ReadOptions(short_side=10))
    clip = source.load_clip(1, ClipConfig(num_frames=1, crop_size=8))
    assert (clip.frames.shape, clip.label) == ((1, 10, 15, 3), 1)
    assert clip.frames[0, 5, 5].tolist() == [0, 0, 200]
    (tmp_path / "cat" / "1.png").write_text("no picture")
    with pytest.raises(VideoError, match=r"1\.png cannot be read as an image"):
        source.load_clip(0, ClipConfig(num_frames=1, crop_size=8))


def test_wrong_sources_are_named_with_the_reason(tmp_path):
    def message(name: str, **options: object) -> str:
        with pytest.raises(ConfigError) as caught:
            open_source(SourceConfig(path=str(tmp_path / name), **options))
        assert name in str(caught.value)
        return str(caught.value)

    assert "does not exist" in message("nowhere")
    (tmp_path / "hollow").mkdir()
    assert "no video or image file" in message("hollow")
    (tmp_path / "notes.md").write_text("x")
    assert "neither a folder nor" in message("notes.md")
    (tmp_path / "void.csv").touch()
    assert "is empty" in message("void.csv")
    (tmp_path / "gone.csv").write_text("path,label\nnot/here.mp4,1\n")
    assert "here.mp4 does not exist" in message("gone.csv")
    (tmp_path / "bad.npz").write_text("not numpy")
    assert "cannot be read as a numpy file" in message("bad.npz")
    np.save(tmp_path / "float.npy", np.zeros((2, 4, 8, 8, 3)))
    assert "must hold uint8 clips" in message("float.npy")
    (tmp_path / "spans.csv").write_text("path,start_s,end_s\nspans.csv,soon,later\n")
    assert "row 1: start_s and end_s must be numbers" in message("spans.csv")
    (tmp_path / "spans.csv").write_text("path,start_s,end_s\nspans.csv,0,1\nspans.csv,2,1\n")
    assert "row 2: start_s and end_s must be numbers of seconds, start_s not the larger one" in message("spans.csv")


def test_config_is_checked():
    config = from_dict(SourceConfig, {"path": "x", "where": {"slot": "digit"}, "span": "centred"})
    assert config.where == {"slot": "digit"}
    with pytest.raises(ConfigError, match="weight must be positive"):
        from_dict(SourceConfig, {"path": "x", "weight": 0})
