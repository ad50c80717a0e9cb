"""Pictures for reports, as data URIs: curves (SVG), stills (PNG, JPEG), clips (animated GIF). Frames are uint8 RGB."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from jepa.data.transforms import to_values
from jepa.monitor import pca_colours
from jepa.types import ClipConfig, Mask, TokenGrid

Frames = NDArray[np.uint8]
INK = "#7d838d"  # readable on a white and on a black page
SPREAD_TOP = 0.25  # of values in [0, 1]: where the colours of a spread end
COLOURS = ("#3f7fe0", "#e07f2e", "#2f9e6e", "#a066d3", "#c9527a", "#7d838d")


_MOST_INSIDE = 4  # lines of a chart whose legend stands inside it


class Panel(NamedTuple):
    """One diagram: ``title`` and its series, as (name in the log, name shown)."""

    title: str
    series: tuple[tuple[str, str], ...]
    log_scale: bool = False


class Line(NamedTuple):
    """One line of a chart; ``spread``: half the height of the band around it, at every point."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None


class Chart(NamedTuple):
    """A diagram over any quantity: ``ticks`` are places on the x axis and their words (none: the usual numbers);
    ``level`` a dashed line across (name, value)."""

    title: str
    lines: Sequence[Line]
    x_label: str
    y_label: str
    ticks: Sequence[tuple[float, str]] = ()
    log_x: bool = False
    level: tuple[str, float] | None = None


def charts(wanted: Sequence[Chart], columns: int = 2) -> str:
    """Diagrams as one SVG data URI with no background; '' for none."""
    if not wanted:
        return ""
    columns = min(columns, len(wanted))
    figure, save = _figure(5.6 * columns, 3.4 * -(-len(wanted) // columns))
    for place, chart in enumerate(wanted):
        axes = figure.add_subplot(-(-len(wanted) // columns), columns, place + 1)
        for line, colour in zip(chart.lines, COLOURS * (1 + len(chart.lines) // len(COLOURS))):
            axes.plot(line.x, line.y, color=colour, linewidth=1.8, label=line.name, marker="o", markersize=3.5)
            if line.spread is not None:
                edges = [[y + sign * s for y, s in zip(line.y, line.spread, strict=True)] for sign in (-1, 1)]
                axes.fill_between(line.x, *edges, color=colour, alpha=0.15, linewidth=0)
        if chart.level is not None:
            axes.axhline(chart.level[1], color=INK, linewidth=1.2, linestyle="--", label=chart.level[0])
        if chart.log_x:
            axes.set_xscale("log")
        if chart.ticks:
            axes.set_xticks([x for x, _ in chart.ticks], [words for _, words in chart.ticks])
            axes.minorticks_off()
        axes.set_xlabel(chart.x_label, color=INK, fontsize=8)
        axes.set_ylabel(chart.y_label, color=INK, fontsize=8)
        _style(axes, Panel(chart.title, ()))
        if len(axes.lines) > _MOST_INSIDE:  # a long legend would hide the lines
            axes.legend(fontsize=8, frameon=False, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return save()


def _figure(width: float, height: float) -> tuple[Any, Callable[[], str]]:
    """A transparent figure, and how it becomes an SVG data URI."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0.0)

    def save() -> str:
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True)
        return "data:image/svg+xml;base64," + base64.b64encode(text.getvalue().encode()).decode()

    return figure, save


def curves(records: Sequence[Mapping[str, Any]], panels: Sequence[Panel], columns: int = 3) -> str:
    """Diagrams over the training step from the lines of metrics.jsonl, as one SVG data URI with no background.

    Series that the log does not have are left out, and so are panels without any series; '' when none is left.
    """
    known = {name for record in records for name in record}
    panels = [p for p in panels if any(name in known for name, _ in p.series)]
    if not panels:
        return ""
    rows = -(-len(panels) // columns)
    figure, save = _figure(3.9 * columns, 2.65 * rows)
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        for (name, shown), colour in zip(panel.series, COLOURS):
            points = [(r["step"], r[name]) for r in records if isinstance(r.get(name), (int, float))]
            if points:
                marker = "o" if len(points) < 30 else ""
                axes.plot(*zip(*points), color=colour, linewidth=1.6, label=shown, marker=marker, markersize=2.5)
        _style(axes, panel)
    return save()


def _style(axes: Any, panel: Panel) -> None:
    axes.set_title(panel.title, color=INK, fontsize=10, loc="left", fontweight="bold")
    axes.patch.set_alpha(0.0)
    axes.grid(color=INK, alpha=0.2, linewidth=0.6)
    axes.tick_params(colors=INK, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    if panel.log_scale:
        axes.set_yscale("log")
    axes.margins(x=0.02)
    if len(axes.lines) > 1:
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)


def png(picture: Frames) -> str:
    """``[H, W, 3]`` or, with transparency, ``[H, W, 4]`` to a PNG data URI."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def jpeg(picture: Frames, quality: int = 80) -> str:
    """``[H, W, 3]`` to a JPEG data URI: a tenth of a PNG's size for photographs."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, format="JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def gif(frames: Frames, fps: float) -> str:
    """``[T, H, W, 3]`` to an endless GIF data URI."""
    return "data:image/gif;base64," + base64.b64encode(gif_bytes(frames, fps)).decode()


def gif_bytes(frames: Frames, fps: float) -> bytes:
    """``[T, H, W, 3]`` to what is in an endless GIF file; one palette for all frames, so that nothing flickers."""
    whole = Image.fromarray(frames.reshape(-1, *frames.shape[2:]))
    palette = whole.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    pictures = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    data = io.BytesIO()
    pictures[0].save(
        data, format="GIF", save_all=True, append_images=pictures[1:], loop=0, duration=max(20, round(1000 / fps))
    )
    return data.getvalue()


def to_frames(clip: Tensor, config: ClipConfig) -> Frames:
    """Normalised clips ``[B, C, T, H, W]`` back to uint8 ``[B, T, H, W, 3]``."""
    colours = to_values(clip[:, :3].float().cpu(), config).movedim(1, -1)
    return (colours * 255).round().byte().numpy()


def enlarge(frames: Frames, least: int) -> Frames:
    """Frames ``[..., H, W, 3]`` repeated by a whole number until the shorter side has ``least`` pixels."""
    scale = max(1, -(-least // min(frames.shape[-3:-1])))
    return frames.repeat(scale, axis=-3).repeat(scale, axis=-2)


def feature_frames(tokens: Tensor, grid: TokenGrid, num_frames: int, size: int) -> Frames:
    """Patch features ``[B, N, D]`` as colours: their first three principal components over all clips together.

    uint8 ``[B, T, S, S, 3]``: one flat cell per patch, every tubelet held for its frames; S is the multiple of the
    grid's side next above ``size``.
    """
    cells = (pca_colours(tokens.float().cpu()) * 255).round().byte().view(len(tokens), *grid, 3).numpy()
    time = np.arange(num_frames) * grid.t // num_frames
    return enlarge(cells[:, time], size)


def side_by_side(parts: Sequence[Frames], gap: int = 6) -> Frames:
    """Clips ``[T, H, W, 3]`` in a row, brought to one height, with a grey gap (which suits a light and a dark page)."""
    height = max(part.shape[1] for part in parts)
    grey = np.full((len(parts[0]), height, gap, 3), 128, dtype=np.uint8)
    row: list[Frames] = []
    for part in parts:
        lines = np.arange(height) * part.shape[1] // height
        columns = np.arange(round(part.shape[2] * height / part.shape[1])) * part.shape[1] // height
        row += [part[:, lines][:, :, columns], grey]
    return np.concatenate(row[:-1], axis=2)


def palette(count: int) -> Frames:
    """Colours that are told apart, uint8 ``[count, 3]``; the first is black (background, or no class)."""
    # golden-angle steps of hue, at three levels of brightness
    colours = [(0, 0, 0)]
    for number in range(count - 1):
        value = (1.0, 0.75, 0.55)[number // 6 % 3]
        colours.append(tuple(round(255 * c) for c in colorsys.hsv_to_rgb((0.58 + 0.381966 * number) % 1, 0.75, value)))
    return np.array(colours[:count], dtype=np.uint8)


def overlay(frames: Frames, numbers: NDArray[np.integer], strength: float = 0.6) -> Frames:
    """Frames ``[T, H, W, 3]`` with the objects of ``numbers`` ``[T, H, W]`` tinted (0: background, as it is)."""
    tint = palette(int(numbers.max()) + 1)[numbers]
    mixed = ((1 - strength) * frames + strength * tint).round().astype(np.uint8)
    return np.where(numbers[..., None] > 0, mixed, frames)


def heat(values: Tensor, top: float) -> Frames:
    """Amounts ``[..., H, W]`` as colours ``[..., H, W, 3]``: black is 0, bright ``top`` and more."""
    import matplotlib

    scaled = (values.float().cpu() / top).clamp(0, 1).numpy()
    colours: Frames = (matplotlib.colormaps["inferno"](scaled)[..., :3] * 255).round().astype(np.uint8)
    return colours


def depth_colours(metres: NDArray[np.floating], low: float, high: float) -> Frames:
    """Depths ``[H, W]`` as colours ``[H, W, 3]``: dark is near (``low``), bright far (``high``), grey NaN."""
    import matplotlib

    scaled = np.clip((metres - low) / max(high - low, 1e-9), 0, 1)
    colours = (matplotlib.colormaps["viridis"](np.nan_to_num(scaled))[..., :3] * 255).round().astype(np.uint8)
    return np.where(np.isnan(metres)[..., None], np.uint8(128), colours)


def shrink(pictures: NDArray[Any], height: int) -> NDArray[Any]:
    """``[..., H, W]`` or, of uint8 with 3 channels last, ``[..., H, W, 3]``: the nearest pixels, down to ``height``."""
    colour = pictures.shape[-1] == 3 and pictures.ndim > 2
    rows_at, columns_at = (-3, -2) if colour else (-2, -1)
    old = pictures.shape[rows_at], pictures.shape[columns_at]
    if old[0] <= height:
        return pictures
    new = height, max(1, round(old[1] * height / old[0]))
    rows, columns = ((np.arange(n) * 2 + 1) * o // (2 * n) for n, o in zip(new, old, strict=True))
    return pictures.take(rows, axis=rows_at).take(columns, axis=columns_at)


def mask_picture(frames: Frames, mask: Mask, grid: TokenGrid, least: int = 96, gap: int = 4) -> Frames:
    """What one mask leaves of one clip, over time: RGBA ``[H, W, 4]``, tubelets from left to right.

    ``frames`` ``[T, H, W, 3]``; ``mask`` of batch size 1. Context stays as it is, targets (of any block) are tinted
    and darkened, tokens that are neither fade to grey.
    """
    kind = np.zeros(grid.size, dtype=np.int64)  # 0 neither, 1 context, 2 target
    kind[mask.context_ids[0].cpu().numpy()] = 1
    kind[mask.target_ids[0].flatten().cpu().numpy()] = 2
    shown = enlarge(frames[:: max(1, len(frames) // grid.t)][: grid.t], least)
    size = shown.shape[1:3]
    rows, columns = (np.arange(length) * cells // length for length, cells in zip(size, grid[1:]))
    kinds = kind.reshape(grid)[:, rows][:, :, columns][..., None]
    tinted = shown * 0.15 + np.array([63, 127, 224]) * 0.45
    faded = shown * 0.25 + 96
    drawn = np.select([kinds == 1, kinds == 2], [shown, tinted], faded).astype(np.uint8)
    opaque = np.concatenate((drawn, np.full((*drawn.shape[:3], 1), 255, dtype=np.uint8)), axis=-1)
    padded = np.pad(opaque, ((0, 0), (0, 0), (0, gap), (0, 0)))
    return np.concatenate(list(padded), axis=1)[:, :-gap]
