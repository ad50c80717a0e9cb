"""jepa view: maps, thumbnails, neighbours and scatter hold the right numbers, and the page says what is missing."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_features import CLIP, Made, write_videos
from PIL import Image
from support import error_of, write_clips

from app import maps
from app.cli import main
from app.maps import tile, video_maps
from app.scatter import colour_groups, projections
from app.thumbnails import Clip, middle_frame, thumbnails
from app.view_page import PALETTE
from jepa.data.prepare import write_video
from jepa.data.video import open_video, resize_frames
from jepa.encode import encode
from jepa.features import Features, open_features
from jepa.load import load
from jepa.monitor import pca_colours
from jepa.types import ClipConfig


def view(out: Path, *words: str) -> str:
    assert main(["view", *words, "-o", str(out), "--device", "cpu"]) == 0
    return out.read_text()


def scatter(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="clips">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def assert_self_contained(text: str) -> None:
    assert not re.findall(r"https?:|<link|@import", text)
    assert set(re.findall(r'\ssrc="(.{5})', text)) <= {"data:"}


# ---- maps ------------------------------------------------------------------------------------------------------------


def test_maps_are_the_components_of_all_videos_together(made: Made) -> None:
    drawn, failed = video_maps([*made.videos[:2], "none.mp4"], load(made.run), None, "cpu")
    assert failed == ["no maps: none.mp4 does not exist"]
    tokens, frames = [], []
    for path in made.videos[:2]:  # 2 s at 10 frames/s: five clips of 4 frames, one after the other
        with open_video(path) as reader:
            clips = torch.from_numpy(reader.read(range(20))).unflatten(0, (5, 4)).permute(0, 4, 1, 2, 3)
        tokens.append(encode(clips, made.run, device="cpu").tokens)
        frames.append(clips)
    colours = (pca_colours(torch.cat(tokens)) * 255).round().byte().view(2, 10, 4, 4, 3).numpy()
    for number, shown in enumerate(drawn):
        assert shown.frames.shape == shown.colours.shape == (10, 192, 192, 3)
        np.testing.assert_array_equal(shown.colours, resize_frames(colours[number], 192, 192))
        cropped = frames[number][:, :, ::2, :, 8:40].permute(0, 2, 3, 4, 1).flatten(0, 1).contiguous().numpy()
        expected = resize_frames(cropped, 192, 192).astype(int)
        assert np.abs(shown.frames - expected).max() <= 2  # once through normalised floats
        np.testing.assert_allclose(shown.start_s, 0.2 * np.arange(10), atol=1e-9)
        np.testing.assert_allclose(shown.end_s, 0.2 * np.arange(1, 11), atol=1e-9)


def test_the_same_video_has_the_same_colours_wherever_it_stands(made: Made, tmp_path: Path) -> None:
    copy = shutil.copy(made.videos[0], tmp_path / "copy.mp4")
    first, other, again = video_maps([made.videos[0], made.videos[2], str(copy)], load(made.run), None, "cpu")[0]
    np.testing.assert_array_equal(first.colours, again.colours)
    assert (first.colours != other.colours).any()


def test_tiles_cover_a_video_without_gaps_or_repeats(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = tmp_path / "film.mp4"
    write_video(film, np.random.default_rng(0).integers(0, 255, (18, 32, 32, 3)).astype(np.uint8), fps=10.0, gop=4)
    spans, words = tile(str(film), CLIP, 2)
    assert spans is not None
    np.testing.assert_allclose(spans[:, 0], [0, 0.4, 0.8, 1.2, 1.4])  # the last ends with the video
    assert words == "The whole video, 1.8 s, in 5 clips of 0.40 s."
    (shown,), _ = video_maps([str(film)], load(made.run), None, "cpu")
    np.testing.assert_allclose(shown.start_s, 0.2 * np.arange(9), atol=1e-9)
    monkeypatch.setattr(maps, "MAX_TUBELETS", 6)
    spans, words = tile(str(film), CLIP, 2)
    assert spans is not None
    np.testing.assert_allclose(spans[:, 0], [0, 0.7, 1.4])
    assert words == "3 clips of 0.40 s, spread evenly over 1.8 s."
    spans, _ = tile(str(film), ClipConfig(num_frames=40, fps=10.0, crop_size=32), 2)
    assert spans is not None
    assert spans.tolist() == [[0.0, 4.0]]  # shorter than one clip
    Image.new("RGB", (40, 30)).save(tmp_path / "still.png")
    assert tile(str(tmp_path / "still.png"), CLIP, 2)[0] is None


# ---- thumbnails ------------------------------------------------------------------------------------------------------


def test_a_thumbnail_is_the_middle_frame(made: Made, tmp_path: Path) -> None:
    with open_video(made.videos[0]) as reader:
        np.testing.assert_array_equal(middle_frame(Clip(made.videos[0], 0.4, 0.9), None, 80), reader.read([6])[0])
        small = middle_frame(Clip(made.videos[0], 0.4, 0.9), None, 16)
    assert small.shape == (16, 24, 3)
    arrays = write_clips(tmp_path / "clips.npz", clips=3)
    frames = np.load(arrays)["clips"][2]
    np.testing.assert_array_equal(middle_frame(Clip(f"{arrays}[2]", 0.0, 0.4), 10.0, 80), frames[2])
    uri = thumbnails([Clip(made.videos[0], 0.4, 0.9)], None).uris[0]
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        assert (picture.format, picture.size) == ("JPEG", (48, 32))


def test_files_that_moved_or_broke_are_counted(made: Made, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    names = [made.videos[0], "gone.mp4", "gone.mp4", "also.mp4", str(tmp_path / "broken.mp4"), "clips.npz[4]", "array"]
    drawn = thumbnails([Clip(name, 0.0, 1.0) for name in names], None)
    assert [bool(uri) for uri in drawn.uris] == [True, *[False] * 6]
    assert (drawn.missing, drawn.unreadable) == (4, 1)  # gone, also, clips.npz, array; and broken


# ---- the scatter -----------------------------------------------------------------------------------------------------


def test_places_are_the_principal_components() -> None:
    rows = np.random.default_rng(0).normal(size=(30, 5)) * [5, 3, 1, 1, 1]
    places, share = projections(rows.astype(np.float32), tsne=False)
    u, s, v = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    signs = np.sign([axis[np.abs(axis).argmax()] for axis in v[:2]])
    plane = (u * s)[:, :2] * signs
    np.testing.assert_allclose(places["PCA"], (plane - plane.min(0)) / np.ptp(plane, axis=0), atol=1e-5)
    assert share == pytest.approx((s[:2] ** 2).sum() / (s**2).sum(), rel=1e-5)
    same, _ = projections(np.ones((3, 4), np.float32), tsne=False)
    assert same["PCA"].tolist() == [[0.5, 0.5]] * 3
    with pytest.raises(ValueError, match="--tsne needs at least 4 clips, not 3"):
        projections(np.eye(3, dtype=np.float32), tsne=True)


def test_colours_go_to_the_largest_groups() -> None:
    clips = [Clip(f"/data/{folder:02d}/{i}.mp4", 0, 1) for folder in range(12) for i in range(20 - folder)]
    groups, group_of = colour_groups(clips, None, None)
    assert [group.name for group in groups] == [*(f"{i:02d}" for i in range(len(PALETTE))), "4 others"]
    assert [group.count for group in groups] == [20, 19, 18, 17, 16, 15, 14, 13, 12 + 11 + 10 + 9]
    assert group_of[:20] == [0] * 20
    assert group_of[-1] == 8


def test_page_of_a_feature_file(made: Made, tmp_path: Path) -> None:
    text = view(tmp_path / "page" / "view.html", made.table, "-k", "2", "--queries", "3", "--tsne")
    assert_self_contained(text)
    assert 'class="player"' not in text
    data, vectors = scatter(text), open_features(made.table).vectors
    assert [group["name"] for group in data["groups"]] == ["a", "b"]
    assert [clip["group"] for clip in data["clips"]] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert all(clip["uri"].startswith("data:image/jpeg") for clip in data["clips"])
    assert [clip["source"] for clip in data["clips"][::2]] == ["a/0.mp4", "a/1.mp4", "b/2.mp4", "b/3.mp4"]
    assert set(data["places"]) == {"PCA", "t-SNE"}
    assert np.shape(data["places"]["t-SNE"]) == (8, 2)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T - 2 * np.eye(8)
    for own, near in enumerate(data["near"]):
        assert [other for other, _ in near] == np.argsort(-cosine[own])[:2].tolist()
        np.testing.assert_allclose([score for _, score in near], np.sort(cosine[own])[::-1][:2], atol=1e-4)
    rows = re.findall(r'<div class="row"><div class="asked">(.*?)</div><div class="found">(.*?)</div></div>', text)
    assert len(rows) == 3
    for asked, found in rows:
        own = re.findall(r"<span>(.*?)</span>", asked)[0]
        others = [names[0] for names in re.findall(r"</b><span>(.*?)</span>(.*?)</figure>", found)]
        assert len(others) == 2
        assert own not in others  # four files, so neighbours are looked for in the others
    assert view(tmp_path / "again.html", made.table, "-k", "2", "--queries", "3", "--tsne") == text


def test_maps_beside_a_feature_file_use_its_model(made: Made, tmp_path: Path) -> None:
    text = view(tmp_path / "view.html", made.table, "--videos", *made.videos, "--max-maps", "2")
    assert text.count('class="player"') == 2
    assert "Maps of the first 2 of 4 videos (--max-maps)." in text
    assert view(tmp_path / "same.html", made.table, "--model", made.run, "--max-maps", "2").count('class="player"') == 2
    assert_self_contained(text)


def test_page_of_videos(made: Made, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(Path(made.videos[0]).parent.parent, videos)
    (videos / "a" / "broken.mp4").write_bytes(b"not a video")
    text = view(tmp_path / "view.html", str(videos), "--model", made.run, "--segments", "2", "--max-maps", "4")
    assert text.count('class="player"') == 3  # of four, one of which is broken
    assert "<b>1</b><span>not readable</span>" in text
    data = scatter(text)
    assert len(data["clips"]) == 8
    kept = view(tmp_path / "table.html", made.table)
    np.testing.assert_allclose(data["places"]["PCA"], scatter(kept)["places"]["PCA"], atol=1e-3)


def test_labels_colour_the_clips(made: Made, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    rows = [(made.videos[0], "", "", "up"), (made.videos[1], "0", "0.8", "down"), (made.videos[1], "0.8", "9", "up")]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "start_s", "end_s", "word"), *rows])
    data = scatter(view(tmp_path / "view.html", made.table, "--labels", str(table), "--label-column", "word"))
    names = [data["groups"][clip["group"]]["name"] for clip in data["clips"]]
    assert names == ["up", "up", "down", "up", *["no label"] * 4]
    other = tmp_path / "other.csv"
    other.write_text(f"path,label\n{made.run}/config.yaml,x\n{table},y\n")
    with pytest.raises(ValueError, match=r"other\.csv has a label for none of the 8 clips"):
        main(["--debug", "view", made.table, "--labels", str(other), "-o", str(tmp_path / "none.html")])


def test_what_is_left_out_is_said(made: Made, tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "moved")
    features = Features.load(made.table)
    tokens = features.tokens.clone()
    tokens[6] = 0
    table = tmp_path / "table.parquet"
    sources = tuple(videos[row // 2] for row in range(8))
    dataclasses.replace(features, tokens=tokens, sources=sources).save(table)
    Path(videos[0]).unlink()
    text = view(tmp_path / "view.html", str(table))
    assert "1 file is no longer where it was. What was cut from there is shown without a picture." in text
    assert "1 clip is left out: its features are zero or not finite." in text
    data = scatter(text)
    assert [bool(clip["uri"]) for clip in data["clips"]] == [False, False, *[True] * 5]
    assert "file not readable" in text
    text = view(tmp_path / "view.html", str(table), "--max-clips", "4")
    assert "Shown are 4 of 8 clips, evenly spaced in the table (--max-clips)." in text
    assert len(scatter(text)["clips"]) == 4


def test_names_cannot_break_the_page(made: Made, tmp_path: Path) -> None:
    features = Features.load(made.table)
    table = tmp_path / "table.parquet"
    sources = tuple(f"x/</script><img onerror=alert({row})>.mp4" for row in range(8))
    dataclasses.replace(features, sources=sources).save(table)
    text = view(tmp_path / "view.html", str(table))
    assert "<img onerror" not in text
    assert scatter(text)["clips"][3]["source"] == "script><img onerror=alert(3)>.mp4"


def test_mistakes(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["-o", str(tmp_path / "view.html"), "--device", "cpu"]
    for words, message in (
        ([made.videos[0]], "videos need an encoder"),
        ([made.table, made.videos[0]], "give one feature file, or videos"),
        ([made.videos[0], "--model", made.run, "--videos", made.videos[1]], "--videos goes with a feature file"),
        ([made.table, "--max-clips", "1"], "--max-clips must be at least 2, not 1"),
        (["none.mp4", "--model", made.run], "no input can be decoded; the first: none.mp4 does not exist"),
        (["none.parquet"], "feature file none.parquet does not exist"),
        ([made.table, "-o", "/dev/null/view.html"], "the page cannot be written to /dev/null/view.html"),
    ):
        assert message in error_of(["view", *out, *words], capsys)
    assert not (tmp_path / "view.html").exists()
