"""Clips through their latents, through what is predicted at hidden places, and through what is predicted to follow.

Shape legend: S samples, C channels, T frames, H/W pixels, t/h/w token grid, N tokens, Nc context.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.decoding.bench import Bench
from app.decoding.colours import mask_frames, over_frames, to_pictures, veil
from app.decoding.material import Clip, evenly, open_videos, read_clips
from app.decoding.panels import Shown, by_frame, decoded, error_panel, quality, scores, with_lines
from app.decoding.sheets import Example, Panel
from jepa.config import ConfigError, from_dict
from jepa.load import read_run
from jepa.masks import MaskConfig, build_masks
from jepa.masks.chosen import Tubelet, chosen_mask
from jepa.predictive import Predictive
from jepa.train import TrainConfig
from jepa.types import TokenGrid

MIDDLE = "middle"


def reconstruct(bench: Bench, args: argparse.Namespace) -> Iterator[Shown]:
    """Each clip, encoded and decoded."""
    if args.model is not None:  # the decoder holds its encoder; another one is asked for its word alone
        _ = bench.world() if bench.decoder.per_frame else bench.predictive()
    for clip in read_clips(evenly(open_videos(args.videos, bench.decoder), args.clips), bench.decoder):
        truth, clips = bench.pixels(clip.pixels), _reconstructed(bench, clip)
        panels = [
            Panel("input", to_pictures(truth)),
            *decoded("decoded", clips, truth, None, ""),
            error_panel(clips, truth),
        ]
        yield Shown(Example(clip.name, with_lines(panels, clip.times())), scores(clips, truth))


def inpaint(bench: Bench, args: argparse.Namespace) -> Iterator[Shown]:
    """What the predictor expects at hidden places, decoded."""
    model = bench.predictive()
    clips = read_clips(evenly(open_videos(args.videos, bench.decoder), args.clips), bench.decoder)
    hidden, token = choose_hidden(bench, model, clips, args)
    for clip, cells in zip(clips, hidden, strict=True):
        yield _completed(bench, model, clip, cells, token, "where hidden", ())


def forecast(bench: Bench, args: argparse.Namespace) -> Iterator[Shown]:
    """What the predictor expects after the first frames, decoded."""
    model = bench.predictive()
    token = _checked_token(model, args.mask_token or 0)
    for clip in read_clips(evenly(open_videos(args.videos, bench.decoder), args.clips), bench.decoder):
        grid, frames = model.grid_of(clip.pixels[None]), clip.pixels.shape[1]
        tubelet = Tubelet(frames // grid.t, (clip.end_s - clip.start_s) / grid.t)
        mask = chosen_mask(grid, args.context, None, 1, tubelet)
        cells = _hidden_cells(mask.context_ids[0], grid)
        seen = frames // grid.t * int((~cells).any(axis=(1, 2)).sum())
        words = tuple("seen" if frame < seen else "expected" for frame in range(frames))
        shown = _completed(bench, model, clip, cells, token, "of what follows", words)
        yield _with_last(bench, shown, clip, seen)


def choose_hidden(
    bench: Bench, model: Predictive, clips: list[Clip], args: argparse.Namespace
) -> tuple[list[NDArray[np.bool_]], int]:  # fmt: skip
    """What is hidden of each clip, ``[t, h, w]``, by ``--mask``, and the mask token that stands there.

    Without ``--mask`` it is the run's first mask family, or for a published model the middle.
    """
    grids = [model.grid_of(clip.pixels[None]) for clip in clips]
    families = _mask_families(bench.model)
    chosen = args.mask if args.mask is not None else "0" if families else MIDDLE
    if chosen == MIDDLE:
        return [middle(grid) for grid in grids], _checked_token(model, args.mask_token or 0)
    if not chosen.isdigit() or int(chosen) >= len(families):
        known = f"a number from 0 to {len(families) - 1} (a mask family of {bench.model}) or " if families else ""
        raise ConfigError(f"--mask must be {known}{MIDDLE!r}, not {chosen!r}")
    number = int(chosen)
    rng = np.random.default_rng(args.seed)
    hidden = []
    for grid in grids:
        (family,) = build_masks([families[number]], grid)
        hidden.append(_hidden_cells(family.draw(rng, 1).context_ids[0], grid))
    default = number if number < len(model.predictor.mask_tokens) else 0
    return hidden, _checked_token(model, default if args.mask_token is None else args.mask_token)


def middle(grid: TokenGrid) -> NDArray[np.bool_]:
    """The middle half of the rows and columns, in every frame: bool ``[t, h, w]``. Raises ``ConfigError`` for a grid
    too small to have one."""
    hidden = np.zeros(grid, dtype=bool)
    rows, columns = (slice(n // 4, n - n // 4) for n in (grid.h, grid.w))
    hidden[:, rows, columns] = True
    if hidden.all():
        raise ConfigError(f"--mask {MIDDLE}: a grid of {grid.h} x {grid.w} tokens has no middle half")
    return hidden


def _completed(
    bench: Bench, model: Predictive, clip: Clip, cells: NDArray[np.bool_], token: int, place: str,
    words: tuple[str, ...],
) -> Shown:  # fmt: skip
    """Panels of one clip whose ``cells`` ``[t, h, w]`` are hidden; ``words``: of each frame, beside its time."""
    truth = bench.pixels(clip.pixels)
    context = torch.from_numpy(np.flatnonzero(~cells))[None].to(bench.run.device)
    with torch.inference_mode(), bench.run.autocast():
        latents = model.completed(clip.pixels[None], context, token)
    clips = bench.decode(latents, tuple(clip.pixels.shape[1:]))[0]  # type: ignore[arg-type]
    ceiling = _reconstructed(bench, clip)
    shape = tuple(truth.shape[1:])
    hidden = over_frames(cells, shape)  # type: ignore[arg-type]
    where = torch.from_numpy(hidden)
    mean = ceiling.mean(dim=0)
    panels = [
        Panel("input", veil(to_pictures(truth), hidden), "what the model sees"),
        Panel("mask", mask_frames(hidden), "bright: hidden"),
        *decoded("prediction", clips, truth, where, place),
        Panel("true latents, decoded", to_pictures(mean), f"{quality(mean, truth, where):.1f} dB {place}"),
        Panel("truth", to_pictures(truth)),
        error_panel(clips, truth),
    ]
    under = tuple(", ".join(part) for part in zip(clip.times(), words)) if words else clip.times()
    numbers = {
        "hidden": round(float(cells.mean()), 4), "prediction": scores(clips, truth, where),
        "true_latents": scores(ceiling, truth, where), "psnr_by_frame": by_frame(clips.mean(dim=0), truth),
    }  # fmt: skip
    return Shown(Example(clip.name, with_lines(panels, under)), numbers)


def _with_last(bench: Bench, shown: Shown, clip: Clip, seen: int) -> Shown:
    """The forecast beside its trivial rival: the last frame that was seen stays."""
    truth = bench.pixels(clip.pixels)
    frames = torch.arange(truth.shape[1]).clamp(max=seen - 1)
    still, where = truth[:, frames], (torch.arange(truth.shape[1]) >= seen)[:, None, None].expand(truth.shape[1:])
    worth = quality(still, truth, where)
    panels = list(shown.example.panels)
    line = Panel("last seen frame stays", to_pictures(still), f"{worth:.1f} dB of what follows", panels[0].under)
    example = shown.example._replace(panels=(*panels[:-2], line, *panels[-2:]))
    return Shown(example, {**shown.numbers, "seen_frames": seen, "copy_last": {"psnr": round(worth, 3)}})


def _reconstructed(bench: Bench, clip: Clip) -> Tensor:
    """The clip through its own latents: ``[S, C, T, H, W]``."""
    with torch.inference_mode(), bench.run.autocast():
        latents = bench.decoder.encode(clip.pixels[None])
    return bench.decode(latents, tuple(clip.pixels.shape[1:]))[0]  # type: ignore[arg-type]


def _hidden_cells(context_ids: Tensor, grid: TokenGrid) -> NDArray[np.bool_]:
    hidden = np.ones(grid.size, dtype=bool)
    hidden[context_ids.numpy()] = False
    return hidden.reshape(grid)


def _mask_families(model: str) -> list[MaskConfig]:
    """The mask families of the run ``model``; of a published model nothing is known."""
    if not os.path.exists(model) or os.path.isfile(os.path.join(model, "config.json")):
        return []
    return from_dict(TrainConfig, read_run(model, "jepa.load_predictive")[1]["config"]).masks


def _checked_token(model: Predictive, token: int) -> int:
    count = len(model.predictor.mask_tokens)
    if not 0 <= token < count:
        raise ValueError(f"--mask-token {token} does not exist: the predictor has {count}, counted from 0")
    return token
