"""Decoded clips beside what is true, as panels, with what their pixels are worth in decibels.

Shape legend: S samples, C channels, T frames, H/W pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from app.decoding.colours import ERROR_TOP, to_pictures
from app.decoding.sheets import Example, Panel
from evals.pages.drawing import SPREAD_TOP, heat
from evals.pixel_metrics import decibels, mean_square, psnr, spread

DRAWN = 3  # samples of a generative decoder that are shown one by one


class Shown(NamedTuple):
    """An example and what is known of it in numbers."""

    example: Example
    numbers: dict[str, Any]


def decoded(label: str, clips: Tensor, truth: Tensor | None, where: Tensor | None, place: str) -> list[Panel]:
    """Panels of decoded ``clips`` ``[S, C, T, H, W]``: the only one, or mean, samples and their spread.

    Decibels are those of the pixels ``where`` ``[T, H, W]`` (None: all) against the ``truth`` ``[C, T, H, W]``;
    ``place`` says in words which ones these are.
    """

    def worth(clip: Tensor) -> str:
        return "" if truth is None else f"{quality(clip, truth, where):.1f} dB {place}".strip()

    if len(clips) == 1:
        return [Panel(label, to_pictures(clips[0]), worth(clips[0]))]
    mean = clips.mean(dim=0)
    panels = [Panel(f"{label}, mean of {len(clips)}", to_pictures(mean), worth(mean))]
    for number, clip in enumerate(clips[:DRAWN]):
        panels.append(Panel(f"{label}, sample {number + 1}", to_pictures(clip), worth(clip)))
    apart = heat(spread(clips)[0], SPREAD_TOP)
    return [*panels, Panel("spread of samples", apart, f"black 0, bright {SPREAD_TOP:g}")]


def error_panel(clips: Tensor, truth: Tensor) -> Panel:
    """How far the mean of ``clips`` ``[S, C, T, H, W]`` is from the ``truth`` at every pixel."""
    apart = (clips.mean(dim=0) - truth).abs().mean(dim=0)
    return Panel("error", heat(apart, ERROR_TOP), f"black 0, bright {ERROR_TOP:g}")


def quality(clip: Tensor, truth: Tensor, where: Tensor | None = None) -> float:
    """PSNR in decibels of two clips ``[C, T, H, W]``, over the pixels ``where`` ``[T, H, W]``."""
    return float(psnr(clip, truth, None if where is None else where[None]))


def by_frame(clip: Tensor, truth: Tensor) -> list[float]:
    """PSNR of every frame."""
    frames = (part.transpose(0, 1)[:, :, None] for part in (clip, truth))  # [T, C, 1, H, W]
    return [round(float(value), 3) for value in decibels(mean_square(*frames))]


def scores(clips: Tensor, truth: Tensor, where: Tensor | None = None) -> dict[str, Any]:
    """The numbers of decoded ``clips`` ``[S, C, T, H, W]``: of their mean, and with several of the samples."""
    found: dict[str, Any] = {"psnr": round(quality(clips.mean(dim=0), truth, where), 3)}
    if len(clips) > 1:
        each = torch.tensor([quality(clip, truth, where) for clip in clips])
        found |= {"psnr_of_a_sample": round(float(each.mean()), 3), "psnr_of_the_best": round(float(each.max()), 3)}
    return found


def with_lines(panels: list[Panel], under: tuple[str, ...]) -> tuple[Panel, ...]:
    """The panels, each with these lines under its frames."""
    return tuple(panel._replace(under=under) for panel in panels)
