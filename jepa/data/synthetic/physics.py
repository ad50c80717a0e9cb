"""Pairs of possible and impossible video of the built-in world (``jepa data physics``): the laws of a small world.

The two videos of a pair are the same, pixel by pixel, up to the *event*; then the possible one goes on and the
impossible one breaks one law. Pairs come in twos from one *scene*, which has two *takes*, both possible: A (say, a body
glides by) and B (nothing is there). The first pair is A against A-then-B (it vanishes), the second B against B-then-A
(it appears out of nothing). So over a scene, possible and impossible videos are made of the same frames: brightness or
the number of visible pixels tell nothing. In the ``hidden`` conditions the event happens behind an occluder, where A
and B look the same; then the change from any frame to the next tells nothing either.

Source: the quadruplets of IntPhys (arXiv 1803.07616), here from the world that the demo is trained on.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from jepa.data.encoding import write_video
from jepa.data.synthetic.dataset import Frames, Glyphs, claim_folder, write_manifest
from jepa.data.synthetic.draw import GLYPH_SIDE, Appearance, draw_appearance, enlarge, render
from jepa.data.synthetic.world import MARGIN, MAX_DRAWS, Array, Trajectory

CONDITIONS = ("vanish", "teleport", "shape", "wall", "inertia", "vanish_hidden", "teleport_hidden", "shape_hidden")
SURFACES = ("left", "right", "floor")
DRAWING = 1  # raise it when the same settings draw other videos: folders rendered before are then refused, not mixed
NO_BODY = -1
HEADER = ("pair", "condition", "scene", "possible", "impossible", "event_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class PhysicsConfig:
    """``pairs`` of videos (an even number: two a scene) for each of the ``conditions``, ``num_frames`` at ``fps``,
    ``side`` pixels wide and high. The bodies are of the last ``test_glyphs`` of the glyphs, as in the world's test
    clips.
    """

    pairs: int = 100
    conditions: tuple[str, ...] = CONDITIONS
    num_frames: int = 32
    fps: float = 16.0
    side: int = 64
    seed: int = 0
    test_glyphs: float = 0.25

    def __post_init__(self) -> None:
        unknown = [name for name in self.conditions if name not in CONDITIONS]
        if unknown or not self.conditions:
            wrong = f"{unknown[0]!r} is unknown" if unknown else "at least one is needed"
            raise ValueError(f"conditions: {wrong}; known: {', '.join(CONDITIONS)}")
        if self.pairs < 2 or self.pairs % 2:
            raise ValueError(f"pairs must be even and at least 2 (two come from each scene), not {self.pairs}")
        if self.num_frames < 8 or self.fps <= 0:
            raise ValueError(f"videos need at least 8 frames and a positive fps, not {self.num_frames} at {self.fps}")
        if self.side % 2 or self.side < 16:
            raise ValueError(f"side must be even and at least 16 pixels, not {self.side}")


@dataclass(frozen=True, slots=True)
class Story:
    """What one video shows: ``position`` ``[T, 2]`` of the body, which ``body`` it is ``[T]`` (0, 1, or ``NO_BODY``),
    and the ``surface`` that is there to bounce off (None: none)."""

    position: Array
    body: NDArray[np.int64]
    surface: str | None = None

    def then(self, other: Story, event: int) -> Story:
        """This story up to frame ``event``, from there on the ``other``."""
        before = np.arange(len(self.body)) < event
        position = np.where(before[:, None], self.position, other.position)
        return Story(position, np.where(before, self.body, other.body), self.surface)


@dataclass(frozen=True, slots=True)
class Scene:
    """Two takes and what they share: the frame of the ``event`` (the first one that may differ), the body's ``radius``,
    the ``floor``, the coordinate ``place`` of a surface, ``occluders`` ``[K, 4]``."""

    takes: tuple[Story, Story]
    event: int
    radius: float
    floor: float
    place: float
    occluders: Array

    def pair(self, number: int) -> tuple[Story, Story]:
        """The possible and the impossible story of pair 0 or 1.

        Where a surface is what the law is about, the second pair has none: then passing is possible and turning back
        is not.
        """
        first, second = self.takes if number == 0 else (replace(take, surface=None) for take in self.takes[::-1])
        return first, first.then(second, self.event)


def draw_scene(rng: np.random.Generator, condition: str, config: PhysicsConfig, reach: float) -> Scene:
    """A random scene; drawn again until both takes stay in sight. ``reach``: how far the wider of the two glyphs
    extends sideways from its middle, in glyph units (0.5: to its edge), which is what an occluder has to hide."""
    law, hidden = condition.removesuffix("_hidden"), condition.endswith("_hidden")
    for _ in range(MAX_DRAWS):
        radius = rng.uniform(0.16, 0.19) if hidden else rng.uniform(0.2, 0.25)
        floor, event = rng.uniform(0.88, 0.98), round(config.num_frames * rng.uniform(0.45, 0.58))
        speed = rng.uniform(0.46, 0.7) / config.num_frames  # per frame
        low, high = np.array([MARGIN, MARGIN]), np.array([1 - MARGIN, floor - 0.6 * radius])
        middle, occluders, place = rng.uniform(0.3, 0.7, 2), np.zeros((0, 4)), 0.0
        # frames since the last one that both takes share; behind an occluder both are hidden half a step around it
        since: Array = np.arange(config.num_frames, dtype=np.float64) - (event - 0.5 if hidden else event - 1.0)
        if hidden:
            speed, middle[0] = rng.uniform(0.6, 0.7) / config.num_frames, rng.uniform(0.46, 0.54)
            half = 2 * radius * reach + 0.5 * speed + 1.5 / config.side
            occluders = np.array([[middle[0] - half, 0.0, middle[0] + half, 1.0]])
            low[0], high[0] = 0.1, 0.9
        velocity = np.multiply(speed, _direction(rng, sideways_only=hidden))
        if law == "wall":
            takes, place = _wall(rng, middle, since, velocity, radius)
        else:
            takes = _takes(rng, law, hidden, middle, since, velocity)
        inside = [((take.position >= low) & (take.position <= high)).all() for take in takes]
        if all(inside):
            return Scene(takes, event, radius, floor, place, occluders)
    raise RuntimeError(f"no scene of {condition!r} with {config.num_frames} frames stays in sight")


def _direction(rng: np.random.Generator, sideways_only: bool) -> Array:
    """Along one axis, a little oblique."""
    axis = 0 if sideways_only else int(rng.integers(2))
    direction = np.empty(2)
    direction[axis], direction[1 - axis] = rng.choice([-1.0, 1.0]), rng.uniform(-0.3, 0.3)
    return direction


def _takes(
    rng: np.random.Generator, law: str, hidden: bool, middle: Array, since: Array, velocity: Array
) -> tuple[Story, Story]:
    """Two possible takes, such that going over from one to the other breaks ``law``."""
    path, ones = middle + since[:, None] * velocity, np.ones(len(since), dtype=np.int64)
    first, other_path, other_body = Story(path, 0 * ones), path, 0 * ones
    if law == "vanish":
        other_body = NO_BODY * ones
    elif law == "shape":
        other_body = ones
    elif law == "teleport":
        angle = rng.choice([-0.5, 0.5]) * np.pi if hidden else rng.uniform(0, 2 * np.pi)  # an upright bar hides both
        other_path = path + rng.uniform(0.25, 0.4) * np.array([np.cos(angle), np.sin(angle)])
    else:  # inertia: two straight paths that cross
        angle = rng.choice([-1.0, 1.0]) * rng.uniform(np.pi / 3, 2 * np.pi / 3)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        other_path = middle + since[:, None] * (turn @ velocity)
    return first, Story(other_path, other_body)


def _wall(
    rng: np.random.Generator, middle: Array, since: Array, velocity: Array, radius: float
) -> tuple[tuple[Story, Story], float]:
    """A body that bounces off a surface, and one that goes on through it; and where the surface is."""
    axis = int(np.abs(velocity).argmax())
    if axis == 1:  # nothing hangs from the top
        velocity = np.array([velocity[0], abs(velocity[1])])
    towards = np.sign(velocity[axis])
    surface = "floor" if axis == 1 else "right" if towards > 0 else "left"
    path = middle + since[:, None] * velocity
    bounced, kept = path.copy(), rng.uniform(0.8, 0.95)
    bounced[:, axis] = np.where(since > 0, middle[axis] - kept * velocity[axis] * since, path[:, axis])
    body = np.zeros(len(since), dtype=np.int64)
    # bodies touch the floor at 0.6 of their radius, as in the world's own bounces
    return (Story(bounced, body, surface), Story(path, body, surface)), middle[axis] + towards * 0.6 * radius


@dataclass(frozen=True, slots=True)
class Cast:
    """A scene with how it looks: ``bodies``, two glyphs uint8 ``[n, n]`` (255 = ink), and the ``looks``."""

    scene: Scene
    bodies: tuple[Frames, Frames]
    looks: Appearance


def draw_cast(glyphs: Glyphs, config: PhysicsConfig, condition: str, number: int) -> Cast:
    """Scene ``number`` of a condition: a pure function of its arguments. The two bodies are of different classes."""
    rng = np.random.default_rng([config.seed, CONDITIONS.index(condition), number])
    labels = rng.choice(np.unique(glyphs.labels), 2, replace=False)
    first, second = (glyphs.images[rng.choice(np.flatnonzero(glyphs.labels == label))] for label in labels)
    looks = draw_appearance(rng, config.side)
    reach = max(_reach(body, looks.tilt) for body in (first, second))
    return Cast(draw_scene(rng, condition, config, reach), (first, second), looks)


def _reach(glyph: Frames, tilt: float) -> float:
    """How far ink extends sideways from the middle of the tilted glyph, in glyph units."""
    places = (np.arange(GLYPH_SIDE) + 0.5) / GLYPH_SIDE - 0.5
    inked = enlarge(glyph / 255.0, GLYPH_SIDE) > 0.25
    sideways = np.cos(tilt) * places[None, :] - np.sin(tilt) * places[:, None]
    return float(np.abs(sideways[inked]).max(initial=0.1)) + 1.0 / GLYPH_SIDE


def film(story: Story, cast: Cast) -> Frames:
    """The video of a story, uint8 ``[T, S, S, 3]``. Frames in which the same is to be seen are the same bytes."""
    scene, looks = cast.scene, cast.looks
    centres, floor = (np.arange(len(looks.background)) + 0.5) / len(looks.background), scene.floor
    if story.surface == "floor":
        floor = scene.place
    elif story.surface is not None:  # drawn as the floor is: darker ground
        solid = centres < scene.place if story.surface == "left" else centres > scene.place
        looks = replace(looks, background=looks.background * np.where(solid, 0.6, 1.0)[None, :, None])
    path = Trajectory(
        story.position, np.gradient(story.position, axis=0), scene.radius, -1, floor, scene.occluders, ()
    )  # fmt: skip
    nothing = np.zeros_like(cast.bodies[0])
    frames = np.zeros((len(story.body), *looks.background.shape), dtype=np.uint8)
    for body in np.unique(story.body):
        shown = render(path, nothing if body == NO_BODY else cast.bodies[body], looks)
        frames[story.body == body] = shown[story.body == body]
    return frames


def write_physics(dst: str | Path, glyphs: Glyphs, config: PhysicsConfig, workers: int | None = None) -> Path:
    """Render the pairs to ``dst``/videos with ``dst``/pairs.csv (columns ``HEADER``; paths relative to it); returns it.

    Videos are compressed without loss, so that what is equal stays equal. Continues where it was interrupted; refuses a
    folder that holds pairs of other settings, and one that cannot be written (``ValueError``).
    """
    settings = {"drawing": DRAWING, **asdict(config), "conditions": list(config.conditions)}
    dst = claim_folder(dst, "physics", json.dumps(settings, indent=2))
    manifest = dst / "pairs.csv"
    if manifest.exists():
        return manifest
    (dst / "videos").mkdir(exist_ok=True)
    unseen = glyphs.part("test", config.test_glyphs)
    jobs = [(dst, name, number, unseen, config) for name in config.conditions for number in range(config.pairs // 2)]
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        scenes = pool.map(_write_scene, jobs, chunksize=4)
        pairs = [row for rows in tqdm(scenes, total=len(jobs), desc="rendering pairs", unit="scene") for row in rows]
    write_manifest(manifest, [HEADER, *([number, *row] for number, row in enumerate(pairs))])
    return manifest


def _write_scene(job: tuple[Path, str, int, Glyphs, PhysicsConfig]) -> list[tuple[object, ...]]:
    dst, condition, number, glyphs, config = job
    cast = draw_cast(glyphs, config, condition, number)
    event, rows = cast.scene.event, list[tuple[object, ...]]()
    with_surface = [film(take, cast) for take in cast.scene.takes]
    without = with_surface
    if condition == "wall":
        without = [film(replace(take, surface=None), cast) for take in cast.scene.takes]
    for which, (first, second) in enumerate((with_surface, without[::-1])):
        names = []
        # an impossible story is one take, then the other: the same frames as film() draws, at a third of the cost
        for kind, frames in (("possible", first), ("impossible", np.concatenate((first[:event], second[event:])))):
            name = f"videos/{condition}-{2 * number + which:04d}-{kind}.mp4"
            if not (dst / name).exists():
                write_video(dst / name, frames, config.fps, crf=0)
            names.append(name)
        rows.append((condition, f"{condition}-{number:04d}", *names, cast.scene.event / config.fps))
    return rows
