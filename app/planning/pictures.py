"""Videos of episodes beside what the model imagined and the goal, and the energy over two action axes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from app.output import write_output
from evals.pages.drawing import INK, enlarge
from jepa.data.encoding import write_video
from jepa.envs.base import GoalTask
from jepa.planning.agents import PlanningAgent
from jepa.planning.episodes import EpisodeResult
from jepa.planning.landscape import Landscape, landscape, moving_axes

Frames = NDArray[np.uint8]
PANEL = 192  # least pixels of a panel's side
GALLERY = 1024  # frames among which the one nearest to an imagined latent is looked for
STARTS = 3  # start states in the landscape's picture
_STRIP, _GAP = 30, 8


# ---- videos ----------------------------------------------------------------------------------------------------------


def write_videos(
    out: Path, agent: PlanningAgent, fps: float, results: dict[str, list[EpisodeResult]], count: int
) -> None:
    """``episode_000.mp4`` and ``.gif`` of the first ``count`` episodes of the model's planner."""
    chosen = [result for result in results[agent.name] if result.frames is not None][:count]
    if not chosen:
        return
    frames = gallery([r.frames for found in results.values() for r in found if r.frames is not None])
    latents = torch.cat([agent.eyes(part) for part in np.array_split(frames, -(-len(frames) // 64))]).cpu()
    out.mkdir(parents=True, exist_ok=True)
    for number, result in enumerate(chosen):
        shown = panels(result, agent, frames, latents)
        path = out / f"episode_{number:03d}.mp4"
        write_video(path, shown, fps)
        images = [Image.fromarray(frame) for frame in shown]
        data = io.BytesIO()
        images[0].save(data, "GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
        print(f"wrote {path}")
        write_output(path.with_suffix(".gif"), data.getvalue())


def gallery(episodes: list[Frames]) -> Frames:
    """Frames of all agents, evenly thinned out."""
    frames = np.concatenate(episodes)
    return frames[np.unique(np.linspace(0, len(frames) - 1, min(len(frames), GALLERY)).round().astype(int))]


def nearest(latents: Tensor, imagined: Tensor) -> int:
    """Which of the latents ``[G, n, D]`` is nearest to an imagined one ``[n, D]``, by mean absolute difference."""
    return int((latents - imagined).abs().mean(dim=(1, 2)).argmin())


def panels(result: EpisodeResult, agent: PlanningAgent, frames: Frames, latents: Tensor) -> Frames:
    """real | imagined | goal of every step, labelled: uint8 ``[T, H, W, 3]`` of even size."""
    assert result.frames is not None
    goal = result.goal if result.goal is not None else agent.goal_frames[-1]
    ahead = agent.config.horizon * agent.frame_skip
    labels = ("real", f"imagined, {ahead} steps on", "goal")
    under = (None, "(nearest frame of this run)", None)
    pictures = []
    decisions = iter(result.decisions)
    upcoming = next(decisions, None)
    imagined = np.zeros_like(goal)
    for step, real in enumerate(result.frames):
        if upcoming is not None and upcoming.step <= step:
            if upcoming.imagined is not None:
                imagined = frames[nearest(latents, upcoming.imagined[-1])]
            upcoming = next(decisions, None)
        now = f"step {step}" + (", reached" if result.success and step == result.steps else "")
        pictures.append(side_by_side((real, imagined, goal), labels, (now, *under[1:])))
    return np.stack(pictures)


def side_by_side(pictures: tuple[Frames, ...], labels: tuple[str, ...], under: tuple[str | None, ...]) -> Frames:
    """Pictures of one size beside each other under two lines of text; even height and width."""
    large = [enlarge(picture, PANEL) for picture in pictures]
    height, width = large[0].shape[:2]
    total = len(large) * (width + _GAP) - _GAP
    sheet = Image.new("RGB", (total + total % 2, height + _STRIP + height % 2), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, label, line) in enumerate(zip(large, labels, under, strict=True)):
        left = number * (width + _GAP)
        sheet.paste(Image.fromarray(picture), (left, _STRIP))
        draw.text((left + 2, 2), label, fill="black")
        draw.text((left + 2, 15), line or "", fill=(110, 110, 110))
    return np.asarray(sheet)


# ---- the energy ------------------------------------------------------------------------------------------------------


def write_landscape(out: Path, agent: PlanningAgent, task: GoalTask, seed: int, axes: tuple[int, int]) -> None:
    """``landscape.png``: for a few starts the frame, the goal, and the energy over two axes of the actions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    moving = moving_axes(agent.space)
    if moving < 2:
        print(f"no landscape: the actions have {moving} axis that moves, and it needs two")
        return
    figure = Figure(figsize=(13, 3.3 * STARTS), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(STARTS, 4, squeeze=False, width_ratios=[1, 1, 1.25, 1.25])
    for row, cells in enumerate(grid):
        observation = task.reset(seed + row)
        agent.begin(observation.goal, task)
        agent.act(observation)
        actions = torch.from_numpy(agent.decisions[-1].actions).to(agent.device)
        goal = agent.goal_frames[agent.goal_number]
        for cell, picture, title in ((cells[0], observation.frame, f"start {seed + row}"), (cells[1], goal, "goal")):
            cell.imshow(picture)
            cell.set_axis_off()
            cell.set_title(title, color=INK, fontsize=9)
        held = landscape(agent.cost, agent.space, actions, axes)
        first = landscape(agent.cost, agent.space, actions, axes, hold="first")
        horizon = agent.config.horizon
        _draw(figure, cells[2], held, f"energy of one action held for {horizon} steps", "mean of the plan")
        _draw(figure, cells[3], first, "energy of a first action, then the plan", "the plan's first action")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=90)
    write_output(out / "landscape.png", data.getvalue())


def _draw(figure: Any, cell: Any, found: Landscape, title: str, point: str) -> None:
    """One heat map; a cross where the planner is, a ring at the least energy of the grid."""
    extent = (found.x[0], found.x[-1], found.y[0], found.y[-1])
    image = cell.imshow(found.energy, origin="lower", extent=extent, aspect="auto", cmap="viridis")
    row, column = np.unravel_index(found.energy.argmin(), found.energy.shape)
    cell.scatter(*found.plan, marker="x", color="red", s=60, label=point)
    cell.scatter(
        found.x[column],
        found.y[row],
        facecolors="none",
        edgecolors="white",
        s=60,
        clip_on=False,
        label="least of the grid",
    )
    cell.set_title(title, color=INK, fontsize=9)
    cell.set_xlabel(f"action {found.axes[0]}", color=INK, fontsize=8)
    cell.set_ylabel(f"action {found.axes[1]}", color=INK, fontsize=8)
    cell.legend(fontsize=7, loc="best", facecolor="lightgrey")
    figure.colorbar(image, ax=cell)
