"""Pairs of possible and impossible video: the same before the event, then one broken law."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from evals.probes.sklearn_bridge import digit_images
from jepa.data.synthetic.dataset import Glyphs
from jepa.data.synthetic.draw import GRAIN
from jepa.data.synthetic.physics import (
    CONDITIONS,
    NO_BODY,
    Cast,
    PhysicsConfig,
    draw_cast,
    film,
    write_physics,
)  # fmt: skip
from jepa.data.video import open_video

CONFIG = PhysicsConfig(pairs=2, side=32)
HIDDEN = tuple(name for name in CONDITIONS if name.endswith("_hidden"))


@pytest.fixture(scope="module")
def glyphs() -> Glyphs:
    return Glyphs(*digit_images()).part("test", 0.25)


def casts(glyphs: Glyphs, condition: str, count: int = 4) -> list[Cast]:
    return [draw_cast(glyphs, CONFIG, condition, number) for number in range(count)]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_pair_is_the_same_up_to_the_event_and_not_to_the_end(condition: str, glyphs: Glyphs) -> None:
    for cast in casts(glyphs, condition):
        for number in (0, 1):
            possible, impossible = (film(story, cast) for story in cast.scene.pair(number))
            event = cast.scene.event
            assert 8 <= event <= 24
            assert np.array_equal(possible[:event], impossible[:event])
            change = np.abs(possible.astype(int) - impossible).mean(axis=(1, 2, 3))
            assert change[event:].max() > 2  # of 255, with grain the same in both
            assert bool(change[event]) == (condition not in HIDDEN)


@pytest.mark.parametrize("condition", [name for name in CONDITIONS if name != "wall"])
def test_over_a_scene_possible_and_impossible_are_made_of_the_same_frames(condition: str, glyphs: Glyphs) -> None:
    for cast in casts(glyphs, condition):
        (a, ab), (b, ba) = ([film(story, cast) for story in cast.scene.pair(number)] for number in (0, 1))
        event = cast.scene.event
        assert np.array_equal(ab, np.concatenate((a[:event], b[event:])))
        assert np.array_equal(ba, np.concatenate((b[:event], a[event:])))
        if condition in HIDDEN:  # and so is every step from a frame to the next
            assert np.array_equal(a[event - 1 : event + 1], b[event - 1 : event + 1])


def test_each_condition_breaks_its_law_and_no_other(glyphs: Glyphs) -> None:
    for condition in CONDITIONS:
        law = condition.removesuffix("_hidden")
        for cast in casts(glyphs, condition):
            event = cast.scene.event
            for number in (0, 1):
                possible, impossible = cast.scene.pair(number)
                assert len(set(possible.body.tolist())) == 1
                changed = impossible.body[event - 1] != impossible.body[event]
                assert changed == (law in ("vanish", "shape"))
                assert (NO_BODY in impossible.body) == (law == "vanish")
                steps = np.diff(impossible.position, axis=0)
                jump = np.linalg.norm(steps[event - 1] - steps[event - 2])
                if law == "teleport":
                    assert 0.2 < jump < 0.45
                    assert np.allclose(np.delete(steps, event - 1, axis=0), steps[0])  # it glides on as before
                    continue
                assert np.linalg.norm(steps, axis=1).max() < 0.04  # nothing else leaps
                lengths = np.linalg.norm(steps, axis=1)
                if law == "inertia":
                    assert np.allclose(lengths, lengths[0])
                    cosine = steps[0] @ steps[-1] / lengths[0] ** 2
                    assert abs(cosine) <= 0.5 + 1e-9  # a turn by 60 to 120 degrees
                    assert np.allclose(np.diff(possible.position, axis=0), np.diff(possible.position[:2], axis=0))
                if law in ("vanish", "shape"):
                    assert np.allclose(steps, steps[0])


def test_a_wall_turns_bodies_back_and_where_there_is_none_they_pass(glyphs: Glyphs) -> None:
    surfaces = set()
    for cast in casts(glyphs, "wall", 12):
        event, (walled, opened) = cast.scene.event, (cast.scene.pair(0), cast.scene.pair(1))
        surfaces.add(walled[0].surface)
        axis = 1 if walled[0].surface == "floor" else 0
        sign = -1 if walled[0].surface == "left" else 1
        depth = [sign * (story.position[:, axis] - cast.scene.place) for story in (*walled, *opened)]
        assert max(depth[0]) == pytest.approx(-0.6 * cast.scene.radius)  # touches, and turns back
        assert np.argmax(depth[0]) == event - 1
        assert depth[1][-1] > 0.02  # its middle is in the wall, or beyond
        assert np.all(np.diff(depth[1]) > 0)
        assert np.array_equal(opened[0].position, walled[1].position)  # what is wrong here is right there
        assert np.array_equal(opened[1].position, walled[0].position)
        assert opened[0].surface is None
    assert surfaces == {"left", "right", "floor"}


def test_the_body_is_drawn_where_the_story_says(glyphs: Glyphs) -> None:
    for condition in ("teleport", "inertia", "wall", "vanish"):
        cast = draw_cast(glyphs, CONFIG, condition, 1)
        story = cast.scene.pair(0)[1]
        empty = film(type(story)(story.position, np.full_like(story.body, NO_BODY), story.surface), cast)
        drawn = np.abs(film(story, cast).astype(int) - empty).max(axis=3) > 255 * 5 * GRAIN
        for frame, mask in enumerate(drawn):
            assert mask.any() == (story.body[frame] != NO_BODY)
            if mask.any():
                place = (np.argwhere(mask).mean(axis=0)[::-1] + 0.5) / CONFIG.side
                assert np.abs(place - story.position[frame]).max() < 0.09  # digits are not quite in their middle


def test_scenes_depend_on_seed_condition_and_number_only(glyphs: Glyphs) -> None:
    first, again = (film(cast.scene.takes[0], cast) for cast in (draw_cast(glyphs, CONFIG, "shape", 3) for _ in "ab"))
    assert np.array_equal(first, again)
    other = draw_cast(glyphs, PhysicsConfig(side=32, seed=1), "shape", 3)
    assert not np.array_equal(first, film(other.scene.takes[0], other))


def test_written_pairs_are_lossless_listed_and_versioned(glyphs: Glyphs, tmp_path: Path) -> None:
    config = PhysicsConfig(pairs=2, side=32, conditions=("vanish", "wall"), test_glyphs=0.5)
    manifest = write_physics(tmp_path / "pairs", glyphs, config, workers=1)
    rows = list(csv.DictReader(manifest.open()))
    assert [row["condition"] for row in rows] == ["vanish"] * 2 + ["wall"] * 2
    assert [row["pair"] for row in rows] == ["0", "1", "2", "3"]
    assert len({row["scene"] for row in rows}) == 2
    for row in rows:
        pair = [open_video(str(manifest.parent / row[kind]), "pyav") for kind in ("possible", "impossible")]
        possible, impossible = (video.read(np.arange(video.num_frames)) for video in pair)
        assert possible.shape == (32, 32, 32, 3)
        event = round(float(row["event_s"]) * 16)
        assert np.array_equal(possible[:event], impossible[:event])
        assert not np.array_equal(possible[event:], impossible[event:])
        cast = draw_cast(glyphs.part("test", 0.5), config, row["condition"], 0)  # what was written is what film() draws
        stories = cast.scene.pair(int(row["pair"]) % 2)
        for story, shown in zip(stories, (possible, impossible), strict=True):
            off = film(story, cast).astype(float) - shown  # a video file keeps colours at half the resolution
            assert np.abs(off.reshape(32, 4, 8, 4, 8, 3).mean(axis=(2, 4))).max() < 12
    assert json.loads((manifest.parent / "physics.json").read_text())["drawing"] == 1
    before = manifest.stat().st_mtime_ns
    assert write_physics(tmp_path / "pairs", glyphs, config, workers=1).stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds a physics of other settings"):
        write_physics(tmp_path / "pairs", glyphs, PhysicsConfig(pairs=4), workers=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs": 3}, "pairs must be even and at least 2"),
        ({"conditions": ("vanish", "melts")}, "conditions: .melts. is unknown; known: vanish, teleport"),
        ({"conditions": ()}, "at least one is needed"),
        ({"num_frames": 7}, "at least 8 frames"),
        ({"side": 33}, "side must be even"),
    ],
)
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PhysicsConfig(**settings)
