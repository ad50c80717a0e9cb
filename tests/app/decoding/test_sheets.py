"""Labelled pictures: what stands where in films and strips, and in the files that are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.decoding.sheets import Example, Panel, film, strip, words, write_sheets
from jepa.data.video import open_video


def flat(*colours: int, height: int = 16, width: int = 24) -> np.ndarray:
    """A frame of one grey for each of ``colours``."""
    return np.stack([np.full((height, width, 3), colour, np.uint8) for colour in colours])


def example(name: str = "a.mp4", frames: int = 3, **panel: str) -> Example:
    greys = [range(first, first + 10 * frames, 10) for first in (0, 100)]
    return Example(name, tuple(Panel(f"panel {k}", flat(*grey), **panel) for k, grey in enumerate(greys)))


def test_a_film_shows_all_panels_of_a_time_side_by_side() -> None:
    found = film([example()])
    # 16 x 24 enlarged 9 times: 144 x 216; above a line for the name and two for each panel
    assert found.shape == (3, 16 + 2 * 16 + 144 + 8, 216 + 8 + 216, 3)
    for time in range(3):
        assert (found[time, 48:192, :216] == 10 * time).all()
        assert (found[time, 48:192, 224:] == 100 + 10 * time).all()
        assert (found[time, 48:192, 216:224] == 255).all(), "the gap"
    assert (found[:, :48] < 100).any(), "words above the panels"
    assert (found[:, 192:] == 255).all()


def test_lines_under_frames_belong_to_their_time() -> None:
    panel = Panel("x", flat(0, 0, 0), under=("seen", "seen", "step 1"))
    found = film([Example("", (panel,))])
    assert found.shape[1] == 16 + 2 * 16 + 144 + 16 + 8
    below = found[:, 192:208]
    assert (below[0] == below[1]).all()
    assert (below[1] != below[2]).any()
    still = strip([Example("", (panel,))])
    assert (still[16 + 112 : 16 + 112 + 16, 150 : 150 + 168] < 200).any()


def test_many_panels_wrap_and_examples_stand_under_each_other() -> None:
    many = Example("codes", tuple(Panel(f"code {k}", flat(k, height=144, width=144)) for k in range(13)))
    found = film([many, example(frames=3)])
    assert found.shape[2] == 10 * (144 + 8) - 8
    row = 2 * 16 + 144 + 8
    for k in range(13):
        left, top = k % 10 * 152, 16 + k // 10 * row + 32
        assert (found[0, top : top + 144, left : left + 144] == k).all()
    assert found.shape[0] == 3, "the longest example"
    assert (found[2, 48:192, :144] == 0).all(), "a shorter one stays at its last frame"
    below = 16 + 2 * row
    assert (found[2, below + 48 : below + 192, :216] == 20).all()
    assert (found[:, below + 48 : below + 192, 440:] == 255).all()


def test_a_strip_has_a_row_for_each_panel_and_thins_out_its_times() -> None:
    found = strip([example(frames=3)])
    # enlarged 7 times to 112 x 168
    assert found.shape == (16 + 2 * (112 + 8) + 8, 150 + 3 * (168 + 8), 3)
    for row, first in enumerate((0, 100)):
        for column in range(3):
            top, left = 16 + row * 120, 150 + column * 176
            assert (found[top : top + 112, left : left + 168] == first + 10 * column).all()
    long = strip([Example("", (Panel("x", flat(*range(100))),))])
    shown = [int(long[20, 150 + column * 176 + 1, 0]) for column in range(12)]
    assert shown == [0, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99]
    assert long.shape[1] == 150 + 12 * 176


def test_words_are_cut_where_they_do_not_fit() -> None:
    assert words("short", 100) == "short"
    cut, ending = words("true latents, decoded", 80), words("/a/long/path/to/a/clip.mp4", 80, end=True)
    assert cut.startswith("true lat")
    assert cut.endswith("...")
    assert ending.startswith("...")
    assert ending.endswith("clip.mp4")
    assert words("anything", 2) == ""


def test_large_frames_are_shrunk_and_sides_are_even(tmp_path: Path) -> None:
    panel = Panel("x", flat(50, 60, height=401, width=301))
    found = film([Example("", (panel,))])
    assert found.shape == (2, 16 + 32 + 288 + 8, 216, 3)
    odd = film([Example("", (Panel("x", flat(50, height=147, width=149)),))])
    assert odd.shape[1:3] == (16 + 32 + 147 + 8 + 1, 150)


def test_three_files_of_the_same_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sheets(tmp_path / "out", "x", [example(frames=3)], 5.0)
    wanted = film([example(frames=3)])
    with open_video(tmp_path / "out/x.mp4", "pyav") as video:
        assert (video.num_frames, float(video.fps)) == (3, 5.0)
        assert np.abs(video.read(range(3)).astype(int) - wanted)[:, 60:180, 20:200].max() <= 6
    with Image.open(tmp_path / "out/x.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (3, (440, 200), 200)  # type: ignore[attr-defined]
        gif.seek(2)
        assert gif.convert("RGB").getpixel((100, 100)) == (20, 20, 20)
    with Image.open(tmp_path / "out/x.png") as png:
        assert np.array_equal(np.asarray(png), strip([example(frames=3)]))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["wrote"] * 3


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file.x.png cannot be written: .*; choose another --out"):
        write_sheets(tmp_path / "file", "x", [example()], 4.0)
