"""Drawing and the rendered data set: the body is where the simulator says, looks do not tell the label."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from evals.probes.sklearn_bridge import digit_images, logistic
from jepa.data.synthetic.dataset import DRAWING, Glyphs, WorldConfig, draw_clip, write_world
from jepa.data.synthetic.draw import Appearance, draw_appearance, enlarge, render
from jepa.data.synthetic.world import MOTIONS, Trajectory
from jepa.data.video import open_video


def still(position, occluders=(), radius=0.2):
    place = np.array([position], dtype=float)
    return Trajectory(place, np.zeros((1, 2)), radius, 0, 0.95, np.array(occluders, dtype=float).reshape(-1, 4), ())


def plain_looks(side=64):
    one = np.ones(3)
    return Appearance(np.full((side, side, 3), 0.2), one, one, np.array([1.0, 0.0]), 0.0, 0.5 * one)


def test_body_is_drawn_where_it_is():
    glyph = np.full((8, 8), 255, np.uint8)
    frame = render(still((0.25, 0.5)), glyph, plain_looks())[0, :, :, 0] / 255.0
    rows, columns = np.nonzero(frame > 0.6)
    assert np.isclose(columns.mean() / 64, 0.25, atol=0.02)
    assert np.isclose(rows.mean() / 64, 0.5, atol=0.02)
    assert np.isclose(np.ptp(columns) / 64, 0.4, atol=0.05)  # twice the radius


def test_occluder_hides_the_body_and_nothing_else():
    glyph, bar = np.full((8, 8), 255, np.uint8), (0.2, 0.0, 0.3, 1.0)
    clear = render(still((0.25, 0.5)), glyph, plain_looks())
    hidden = render(still((0.25, 0.5), [bar]), glyph, plain_looks())
    columns = (np.arange(64) + 0.5) / 64
    inside = (columns >= 0.2) & (columns < 0.3)
    assert np.all(hidden[:, :, inside] == 128)
    assert np.array_equal(hidden[:, :, ~inside], clear[:, :, ~inside])


def test_grain_is_new_in_every_frame_and_has_the_stated_strength():
    looks = replace(plain_looks(), grain=0.1, grain_seed=3)
    blank = np.zeros((8, 8), np.uint8)
    path = Trajectory(np.full((2, 2), 0.5), np.zeros((2, 2)), 0.2, 0, 1.0, np.zeros((0, 4)), ())
    clean, noisy = (render(path, blank, look).astype(float) / 255 for look in (plain_looks(), looks))
    noise = noisy - clean
    inner = noise[:, 8:-8]
    assert np.isclose(inner.std(), 0.1, atol=0.02)  # a little less than 0.1: black cuts it off
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05
    assert np.array_equal(render(path, blank, looks), render(path, blank, looks))


def test_enlarge_keeps_a_ramp():
    ramp = np.tile(np.arange(8.0), (8, 1))
    assert np.allclose(enlarge(ramp, 16)[:, 2:-2], np.tile((np.arange(16) + 0.5) / 2 - 0.5, (16, 1))[:, 2:-2])


def test_clips_are_a_pure_function_of_their_number():
    glyphs, config = Glyphs(*digit_images()), WorldConfig(num_frames=4, side=32)
    one, path, label = draw_clip(glyphs, config, "train", 5)
    again, _, _ = draw_clip(glyphs, config, "train", 5)
    other, _, _ = draw_clip(glyphs, config, "test", 5)
    assert one.shape == (4, 32, 32, 3)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert 0 <= label <= 9
    assert 0 <= path.motion < len(MOTIONS)


def test_train_and_test_share_no_glyph():
    glyphs = Glyphs(np.arange(100, dtype=np.uint8).repeat(64).reshape(100, 8, 8), np.arange(100) % 10)
    train, test = glyphs.part("train", 0.25), glyphs.part("test", 0.25)
    assert not set(train.images[:, 0, 0]) & set(test.images[:, 0, 0])
    assert len(train.images) == 75
    assert len(test.images) == 25


def test_object_cannot_be_read_from_one_pixel_column():
    rng, (images, labels) = np.random.default_rng(0), digit_images()
    chosen = rng.integers(len(images), size=700)
    columns = []
    for number in chosen:
        path = still(rng.uniform(0.25, 0.75, 2), radius=rng.uniform(0.23, 0.28))
        columns.append(render(path, images[number], draw_appearance(rng, 32))[0, :, 16].reshape(-1))
    x = np.stack(columns).astype(np.float32)
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    right = logistic(x[:500], labels[chosen[:500]], 10)(x[500:]).labels == labels[chosen[500:]]
    assert right.mean() < 0.25  # chance is 0.10


def test_write_world_makes_readable_videos_and_goes_on(tmp_path):
    glyphs, config = Glyphs(*digit_images()), WorldConfig(train=5, test=2, num_frames=6, side=32)
    write_world(tmp_path, glyphs, config, workers=1)
    rows = list(csv.DictReader((tmp_path / "train.csv").open()))
    assert len(rows) == 5
    assert set(rows[0]) == {"path", "object", "motion"}
    assert all(row["motion"] in MOTIONS for row in rows)
    frames, _, label = draw_clip(glyphs.part("train", config.test_glyphs), config, "train", 3)
    assert int(rows[3]["object"]) == label
    with open_video(tmp_path / rows[3]["path"]) as reader:
        decoded = reader.read(range(reader.num_frames))
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(float) - frames).mean() < 25  # lossy, but the same pictures
    (tmp_path / "train.csv").unlink()
    (tmp_path / rows[1]["path"]).unlink()
    write_world(tmp_path, glyphs, config, workers=1)
    assert list(csv.DictReader((tmp_path / "train.csv").open())) == rows


def test_write_world_refuses_a_world_of_an_older_drawing(tmp_path, monkeypatch):
    glyphs, config = Glyphs(*digit_images()), WorldConfig(train=1, test=1, num_frames=2, side=16)
    write_world(tmp_path, glyphs, config, workers=1)
    write_world(tmp_path, glyphs, config, workers=1)  # the same one: taken as it is
    monkeypatch.setattr("jepa.data.synthetic.dataset.DRAWING", DRAWING + 1)
    with pytest.raises(ValueError, match="another version"):
        write_world(tmp_path, glyphs, config, workers=1)


def test_write_world_refuses_another_world_and_a_bad_place(tmp_path):
    glyphs, config = Glyphs(*digit_images()), WorldConfig(train=1, test=1, num_frames=2, side=16)
    write_world(tmp_path, glyphs, config, workers=1)
    with pytest.raises(ValueError, match="other settings"):
        write_world(tmp_path, glyphs, WorldConfig(train=1, test=1, num_frames=3, side=16), workers=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        write_world(tmp_path / "file" / "world", glyphs, config, workers=1)
    with pytest.raises(ValueError, match="even"):
        WorldConfig(side=33)
