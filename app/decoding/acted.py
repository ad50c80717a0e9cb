"""Dreams of a world model: under recorded or given actions, and under each latent action from the same frame.

Shape legend: S samples, C channels, T frames, n tokens of a frame, D width, H steps, A action width, K codes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.decoding.bench import Bench
from app.decoding.colours import to_pictures
from app.decoding.material import (
    evenly,
    fitted,
    native,
    open_episodes,
    open_videos,
    read_clips,
    read_episode,
)
from app.decoding.panels import Shown, by_frame, decoded, error_panel, quality, scores, with_lines
from app.decoding.sheets import Example, Panel
from app.playing.dream import Dream, Seen
from evals.latent_actions.opening import RunModel, open_model
from jepa.config import ConfigError
from jepa.data.trajectories.base import Episode
from jepa.data.trajectories.config import TrajectoryConfig
from jepa.load import read_run
from jepa.models.world_model import WorldModel
from jepa.objectives import ControllerObjective

HORIZON = 8


class Stretch(NamedTuple):
    """A part of an episode: ``pixels`` ``[C, T, H, W]`` (normalised), the ``actions`` ``[T-1, A]`` between its frames,
    and the ``states`` ``[T, S]`` where there are any."""

    name: str
    pixels: Tensor
    actions: Tensor
    states: Tensor | None


def rollout(bench: Bench, args: argparse.Namespace) -> Iterator[Shown]:
    """What the world model imagines under the actions that were recorded, or under given ones, decoded."""
    model = bench.world()
    context = _context(args)
    if args.actions is not None:
        yield from _under_given(bench, model, args, context)
        return
    if _kind(bench.model) == "latent_action":
        inferring = open_model(bench.model, bench.run)
        if args.step:
            raise ConfigError(f"--step {args.step}: actions are inferred from the middle of a video here; leave it out")
        for clip in read_clips(evenly(open_videos(args.videos, bench.decoder), args.clips), bench.decoder):
            pixels = clip.pixels[:, : None if args.horizon is None else context + args.horizon]
            actions = inferring.infer(inferring.encode(pixels[None]))[0]
            stretch = Stretch(clip.name, pixels, actions, None)
            yield _followed(bench, model, stretch, context, "action inferred")
        return
    episodes = open_episodes(args.videos, bench.decoder, TrajectoryConfig())
    for video in evenly(episodes, args.clips):
        episode = read_episode(video, model.clip)
        last = args.step + context + (args.horizon or HORIZON)
        yield _followed(bench, model, cut(bench, model, episode, args.step, last), context, "")


def codes(bench: Bench, args: argparse.Namespace) -> Iterator[Shown]:
    """Each latent action, held for some steps from the same frame, decoded."""
    _ = bench.world()  # which says whether the decoder fits
    inferring = open_model(bench.model, bench.run)
    if inferring.codes is None:
        raise ConfigError(
            f"{bench.model} has no codes: its actions are continuous (bottleneck {inferring.kind}), or its codes have "
            "not begun (bottleneck.warmup)"
        )
    world, steps = base_world(inferring), args.horizon or HORIZON
    for clip in read_clips(evenly(open_videos(args.videos, bench.decoder), args.clips), bench.decoder):
        start = inferring.encode(clip.pixels[None, :, :1])[0]
        truth = bench.pixels(clip.pixels[:, :1])
        panels = [Panel("first frame", to_pictures(truth.expand(-1, steps + 1, -1, -1)))]
        moved, ends = [], []
        for number, code in enumerate(inferring.codes):
            held = code.expand(steps, -1)
            latents = torch.cat((start, imagine(bench, world, start, held[:0], held)))
            dreamt = decoded_frames(bench, latents)
            ends.append(dreamt.mean(dim=0)[:, -1])
            moved.append(round(float((latents[-1] - latents[0]).abs().mean()), 5))
            panels.append(decoded(f"code {number}", dreamt, None, None, "")[0])
        under = ("seen", *(f"step {step + 1}" for step in range(steps)))
        apart = torch.stack([(a - b).abs().mean() for i, a in enumerate(ends) for b in ends[:i]])
        numbers = {"moved": moved, "pixels_between_codes": round(float(apart.mean()), 7)}
        yield Shown(Example(clip.name, with_lines(panels, under)), numbers)


def base_world(model: RunModel) -> WorldModel:
    """The model that takes inferred actions, of a controller's run too (whose own takes real ones)."""
    objective = model.objective
    return objective.learner if isinstance(objective, ControllerObjective) else objective.world_model


def cut(bench: Bench, model: WorldModel, episode: Episode, first: int, last: int) -> Stretch:
    """The frames ``first`` to ``last`` (not included; the episode may end before) as the model takes them.

    Raises ``ConfigError`` where there are fewer than two, and where actions or states are not the model's.
    """
    length = len(episode.frames)
    if not 0 <= first < length - 1:
        raise ConfigError(
            f"{episode.name} has frames 0 to {length - 1} at the model's rate: nothing follows --step {first}"
        )
    states = None
    for what, width, wanted in (
        ("actions", episode.actions.shape[1], model.action_dim),
        ("states", 0 if episode.states is None else episode.states.shape[1], model.state_dim),
    ):
        if wanted and width != wanted:
            raise ConfigError(
                f"{episode.name}: {what} have {width} numbers, the model's {wanted}: it was trained on others"
            )
    part = slice(first, min(last, length))
    device = bench.run.device
    if model.state_dim and episode.states is not None:
        states = torch.from_numpy(episode.states[part]).float().to(device)
    pixels = fitted(episode.frames[part], bench.decoder.clip, device)
    actions = torch.from_numpy(episode.actions[part][: pixels.shape[1] - 1]).float().to(device)
    return Stretch(episode.name, pixels, actions, states)


def imagine(
    bench: Bench, model: WorldModel, latents: Tensor, past: Tensor, actions: Tensor, states: Tensor | None = None
) -> Tensor:
    """Latents ``[H, n, D]`` after the last of ``latents`` ``[T, n, D]`` under ``actions`` ``[H, A]``; ``past``
    ``[T-1, A]``: those between the given ones."""
    dream = Dream(model, bench.run.device, bench.run.precision)
    known = [None] * len(latents) if states is None else list(states[: len(latents)])
    dream.begin([Seen(frame, state) for frame, state in zip(latents, known, strict=True)], list(past))
    return torch.stack([dream.step(action) for action in actions])


def read_actions(path: str, width: int) -> NDArray[np.float32]:
    """Actions ``[H, A]`` from a .npy file, or from text with a row of numbers for each step. Raises ``ConfigError``."""
    try:
        found = np.load(path) if Path(path).suffix == ".npy" else np.loadtxt(path, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--actions {path} cannot be read as numbers: {error}") from None
    if found.ndim != 2 or not len(found) or found.shape[1] != width or not np.isfinite(found).all():
        raise ConfigError(
            f"--actions {path} must hold a row of {width} finite numbers for each step, but holds {list(found.shape)}"
        )
    return found.astype(np.float32)


def _followed(bench: Bench, model: WorldModel, stretch: Stretch, context: int, words: str) -> Shown:
    """Imagined frames beside what was recorded; the first ``context`` frames are seen."""
    frames = stretch.pixels.shape[1]
    if frames <= context:
        raise ConfigError(f"{stretch.name}: {frames} frames, and {context} are seen: nothing is left to imagine")
    truth, true_latents = bench.pixels(stretch.pixels), encode(bench, model, stretch.pixels)
    seen = true_latents[:context]
    dreamt = imagine(
        bench, model, seen, stretch.actions[: context - 1], stretch.actions[context - 1 :], stretch.states
    )  # fmt: skip
    clips, ceiling = decoded_frames(bench, torch.cat((seen, dreamt))), decoded_frames(bench, true_latents)
    where = (torch.arange(frames) >= context)[:, None, None].expand(truth.shape[1:])
    still = truth[:, torch.arange(frames).clamp(max=context - 1)]
    mean = ceiling.mean(dim=0)
    panels = [
        Panel("truth", to_pictures(truth), "what was recorded"),
        *decoded("imagined", clips, truth, where, "of what follows"),
        Panel("true latents, decoded", to_pictures(mean), f"{quality(mean, truth, where):.1f} dB of what follows"),
        Panel("last seen frame stays", to_pictures(still), f"{quality(still, truth, where):.1f} dB of what follows"),
        error_panel(clips, truth),
    ]
    under = action_lines(stretch.actions, context, words)
    numbers = {
        "seen_frames": context, "imagined": scores(clips, truth, where), "true_latents": scores(ceiling, truth, where),
        "copy_last": scores(still[None], truth, where), "psnr_by_frame": by_frame(clips.mean(dim=0), truth),
    }  # fmt: skip
    return Shown(Example(stretch.name, with_lines(panels, under)), numbers)


def _under_given(bench: Bench, model: WorldModel, args: argparse.Namespace, context: int) -> Iterator[Shown]:
    """Dreams under the actions of ``--actions``, of which nobody knows the outcome."""
    actions = torch.from_numpy(read_actions(args.actions, model.action_dim)).to(bench.run.device)
    if model.state_dim or context > 1:
        episodes = open_episodes(args.videos, bench.decoder, TrajectoryConfig())
        starts = (
            cut(bench, model, read_episode(video, model.clip), args.step, args.step + max(2, context))
            for video in evenly(episodes, args.clips)
        )
    else:
        found = read_clips(evenly(open_videos(args.videos, bench.decoder), args.clips), bench.decoder)
        starts = (Stretch(clip.name, clip.pixels, actions[:0], None) for clip in found)
    for start in starts:
        latents = encode(bench, model, start.pixels[:, :context])
        dreamt = imagine(bench, model, latents, start.actions[: context - 1], actions, start.states)
        clips = decoded_frames(bench, torch.cat((latents, dreamt)))
        truth = bench.pixels(start.pixels[:, :context])
        held = truth[:, torch.arange(clips.shape[2]).clamp(max=context - 1)]
        between = torch.cat((start.actions[: context - 1], actions))
        panels = [Panel("last seen frame stays", to_pictures(held)), *decoded("imagined", clips, None, None, "")]
        numbers = {"seen_frames": context, "moved": round(float((dreamt[-1] - latents[-1]).abs().mean()), 5)}
        yield Shown(Example(start.name, with_lines(panels, action_lines(between, context, ""))), numbers)


def encode(bench: Bench, model: WorldModel, pixels: Tensor) -> Tensor:
    """Frames ``[C, T, H, W]``, normalised, to latents ``[T, n, D]``."""
    with torch.inference_mode(), bench.run.autocast():
        return model.encode(pixels[None])[0].float()


def decoded_frames(bench: Bench, latents: Tensor) -> Tensor:
    """Latents ``[T, n, D]`` to ``[S, C, T, H, W]``."""
    return bench.decode(latents.flatten(0, 1)[None], native(bench.decoder.clip, len(latents)))[0]


def action_lines(actions: Tensor, context: int, words: str) -> tuple[str, ...]:
    """Under every frame: "seen", or the number of the step and the action that led to it (or ``words``)."""
    lines = []
    for frame in range(len(actions) + 1):
        if frame < context:
            lines.append("seen")
            continue
        numbers = " ".join(f"{value:.2f}" for value in actions[frame - 1].tolist()[:4])
        lines.append(f"{frame - context + 1}: {words or numbers}")
    return tuple(lines)


def _context(args: argparse.Namespace) -> int:
    """Frames that are seen, by ``--context``; 1 unless it is given."""
    try:
        context = int(args.context or 1)
    except ValueError:
        context = 0
    if context < 1:
        raise ConfigError(f"--context must be a number of frames of at least 1 here, not {args.context!r}")
    return context


def _kind(model: str) -> str | None:
    """The objective of the run ``model``; None for a published one."""
    if not Path(model).exists():
        return None
    kind: str = read_run(model, "jepa.load_world_model")[1]["config"]["objective"]["kind"]
    return kind
