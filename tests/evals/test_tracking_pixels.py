"""Trackers against the simulators' own positions: demo bodies, discs of rooms; blurred, dimmed, or absent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evals.probes.sklearn_bridge import digit_images
from evals.tracking import bright_places, colour_places, demo_scene, demo_scenes, near
from jepa.data.synthetic.dataset import DRAWING, Glyphs, WorldConfig, draw_clip, write_world
from jepa.envs.rooms import RoomsConfig, draw_layout
from jepa.envs.rooms_draw import RoomsPicture, draw_looks
from jepa.types import ClipConfig

CLIP = ClipConfig(num_frames=8, frame_step=2, crop_size=64)
WORLD = WorldConfig(train=2, test=24)


def to_clip(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames).movedim(-1, 0).float() / 255


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings of a world; its videos are not needed."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "world.json").write_text(json.dumps({"drawing": DRAWING, **{
        name: getattr(WORLD, name) for name in ("train", "test", "num_frames", "fps", "side", "seed", "test_glyphs")
    }}))  # fmt: skip
    return folder


@pytest.mark.slow
def test_what_the_world_writes_is_recognised(tmp_path: Path) -> None:
    """The middle clip of a real file: its background is the file's picture wherever there is no body."""
    from jepa.data.settings import eval_options
    from jepa.data.sources import SourceConfig, open_source

    small = WorldConfig(train=1, test=2)
    write_world(tmp_path, Glyphs(*digit_images()), small, workers=1)
    source = open_source(SourceConfig(path=str(tmp_path / "test.csv"), label_column="motion"), eval_options(CLIP))
    for number, path in enumerate(source.paths):
        scene = demo_scene(path, CLIP)
        assert scene is not None
        apart = (to_clip(source.load_clip(number, CLIP).frames) - scene.background).abs().amax(dim=(0, 1))
        assert apart[0].median() < 0.1


def test_demo_bodies_are_found_within_a_patch(world: Path) -> None:
    """Sharp, blurred and half faded: all in the mean within a twentieth of the picture, always within a patch of 8."""
    glyphs = Glyphs(*digit_images()).part("test", WORLD.test_glyphs)
    apart: dict[str, list[Tensor]] = {"sharp": [], "blurred": [], "faded": []}
    for number in range(WORLD.test):
        scene = demo_scene(world / "test" / f"{number:05d}.mp4", CLIP)
        assert scene is not None
        frames, trajectory, _ = draw_clip(glyphs, WORLD, "test", number)
        rows = np.arange(8) * 2 + 5  # the middle: 15 of 24 frames
        assert np.allclose(scene.places.numpy(), trajectory.position[rows], atol=1e-6)
        clip = to_clip(frames[rows])
        looks = {
            "sharp": clip, "faded": 0.5 * clip + 0.5 * scene.background,
            "blurred": F.avg_pool3d(clip, (1, 7, 7), 1, (0, 3, 3), count_include_pad=False),
        }  # fmt: skip
        for name, shown in looks.items():
            places = bright_places(shown, scene.background)
            apart[name].append((places - scene.places).norm(dim=1))
    for name, limit in (("sharp", 0.04), ("faded", 0.04), ("blurred", 0.05)):
        found = torch.cat(apart[name])
        assert found.mean() < limit, name
        assert (found <= 8 / 64).float().mean() >= (0.98 if name == "blurred" else 1.0), name


def test_a_frame_without_a_body_has_no_place(world: Path) -> None:
    scene = demo_scene(world / "test" / "00000.mp4", CLIP)
    assert scene is not None
    places = bright_places(scene.background, scene.background)
    assert places.shape == (8, 2)
    assert places.isnan().all()
    assert near(places, scene.places, 9.0).tolist() == [False] * 8
    assert near(scene.places + 0.1, scene.places, 0.15).all()
    assert not near(scene.places + 0.1, scene.places, 0.14).any()


def test_other_videos_and_clips_have_no_scene(world: Path, tmp_path: Path) -> None:
    path = world / "test" / "00000.mp4"
    assert demo_scene(tmp_path / "test" / "00000.mp4", CLIP) is None, "no world.json"
    assert demo_scene(world / "test" / "clip.mp4", CLIP) is None
    assert demo_scene(path, ClipConfig(num_frames=8, frame_step=2, crop_size=32)) is None
    assert demo_scene(path, ClipConfig(num_frames=8, frame_step=2, crop_size=64, short_side=80)) is None
    (tmp_path / "world.json").write_text(json.dumps({"drawing": DRAWING - 1, "side": 64}))
    assert demo_scene(tmp_path / "test" / "00000.mp4", CLIP) is None, "drawn by another version"
    assert demo_scenes([str(path), str(tmp_path / "x.mp4")], CLIP) is None
    assert len(demo_scenes([str(path)], CLIP) or []) == 1


@pytest.mark.parametrize("config", [RoomsConfig(), RoomsConfig(rooms=4, layout="random", looks="random", side=64)])
def test_discs_of_the_rooms_are_found_to_a_pixel(config: RoomsConfig) -> None:
    rng, apart = np.random.default_rng(0), []
    for _ in range(12):
        looks = draw_looks(config, rng)
        picture = RoomsPicture(config, draw_layout(config, rng), looks)
        states = np.stack([np.concatenate([rng.uniform(0.1, 0.45, 2), rng.uniform(0.55, 0.9, 2)]) for _ in range(4)])
        clip = to_clip(np.stack([picture.render(state) for state in states]))
        colours = torch.from_numpy(np.stack([looks.agent, looks.thing])).float()
        places = colour_places(clip, colours)
        assert places.shape == (4, 2, 2)
        apart.append((places.flatten(1) - torch.from_numpy(states)).unflatten(1, (2, 2)).norm(dim=2))
        dim = colour_places(0.5 * clip + 0.25, colours)
        assert torch.allclose(dim, places, atol=1e-4), "half the contrast moves nothing"
    assert torch.cat(apart).max() < 1 / config.side
    empty = RoomsPicture(config, draw_layout(config, rng), looks)
    alone = to_clip(empty.render(np.array([0.3, 0.3, 9.0, 9.0]))[None])
    assert colour_places(alone, colours)[:, 1].isnan().all(), "the object is out of the picture"


def test_grey_is_no_colour() -> None:
    with pytest.raises(ValueError, match="colours to be tracked must not be grey"):
        colour_places(torch.zeros(3, 1, 8, 8), torch.tensor([[0.5, 0.5, 0.52]]))
