"""The pages of ``jepa view`` and ``jepa similar``: self-contained HTML from clips, pictures and numbers."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from app.maps import VideoMap
from app.thumbnails import Clip, Thumbnails
from app.view_script import PLAYERS, SCATTER, STYLE
from evals.pages import drawing, page
from jepa.files import atomic_write

PALETTE = (*drawing.COLOURS[:-1], "#1fa3b5", "#b59a1a", "#8a6d5b")
GREY = drawing.COLOURS[-1]


class Group(NamedTuple):
    """A colour of the scatter: what it stands for, and how many clips have it."""

    name: str
    colour: str
    count: int


def clock(clip: Clip) -> str:
    """``01:02.5-01:05.1``, minutes and seconds; hours in front of them past the first."""
    return f"{_clock(clip.start_s)}-{_clock(clip.end_s)}"


def _clock(seconds: float) -> str:
    if not np.isfinite(seconds):
        return "?"
    minutes, tenths = divmod(round(seconds * 10), 600)
    hours = f"{minutes // 60}:" if minutes >= 60 else ""
    return f"{hours}{minutes % 60:02d}:{tenths / 10:04.1f}"


def write_page(path: str | Path, document: str) -> None:
    """Write a page in one move. Raises ``ValueError`` naming the path."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(document.encode())
    except OSError as error:
        raise ValueError(f"the page cannot be written to {path}: {error.strerror or error}") from None


def document(title: str, subtitle: str, parts: Sequence[str], scripts: Sequence[str] = ()) -> str:
    """A whole page."""
    head = [f"<style>{STYLE}</style>", f"<h1>{page.escape(title)}</h1>", page.text(subtitle, soft=True)]
    return page.page(title, [*head, *parts, *(f"<script>{script}</script>" for script in scripts)])


class Names:
    """Sources without the folder that all of them share."""

    def __init__(self, sources: Sequence[str]) -> None:
        folders = {os.path.dirname(source) for source in sources}
        relative = len({os.path.isabs(folder) for folder in folders}) > 1
        self._common = "" if relative or not folders else os.path.commonpath(list(folders))

    def __call__(self, source: str) -> str:
        inside = self._common and source.startswith(self._common + os.sep)
        return source[len(self._common) + 1 :] if inside else source


def missing_note(drawn: Thumbnails) -> str:
    """Says which files have no pictures; '' when all have."""
    parts = []
    if drawn.missing:
        parts.append(
            f"{drawn.missing:,} files are no longer where they were"
            if drawn.missing > 1
            else "1 file is no longer where it was"
        )
    if drawn.unreadable:
        parts.append(f"{drawn.unreadable:,} cannot be read")
    if not parts:
        return ""
    words = f"{', '.join(parts)}. What was cut from there is shown without a picture."
    return f'<div class="note">{page.text(words)}</div>'


def thumb(uri: str, clip: Clip, name: str, score: float | None = None) -> str:
    """A clip's picture with its name, time and similarity."""
    picture = f'<img src="{uri}" alt="{html.escape(name)}">' if uri else '<div class="none">file not readable</div>'
    number = "" if score is None else f"<b>{score:.3f}</b>"
    words = f"{number}<span>{html.escape(name)}</span><span>{clock(clip)}</span>"
    return f'<figure class="thumb" title="{html.escape(clip.source)}">{picture}{words}</figure>'


def row(query: Sequence[str], found: Sequence[str]) -> str:
    """A query's pictures, then those of what was found."""
    return f'<div class="row"><div class="asked">{"".join(query)}</div><div class="found">{"".join(found)}</div></div>'


# ---- similar ---------------------------------------------------------------------------------------------------------


def similar_page(
    features: str, query: Sequence[Clip], found: Sequence[tuple[Clip, float]], drawn: Thumbnails, facts: dict[str, str]
) -> str:
    """The query's clips (at most four), and what was found, nearest first. ``drawn``: pictures of the former, then
    of the latter."""
    names = Names([clip.source for clip, _ in found])
    asked = query[:4]
    left = [thumb(uri, clip, names(clip.source)) for uri, clip in zip(drawn.uris, asked)]
    pictures = drawn.uris[len(asked) :]
    right = [thumb(uri, clip, names(clip.source), score) for uri, (clip, score) in zip(pictures, found, strict=True)]
    return document(
        f"Clips like {os.path.basename(query[0].source)}",
        f"From `{features}`, nearest first; the number is the cosine of the pooled features (1: same direction).",
        [page.facts(facts), missing_note(drawn), page.card(row(left, right))],
    )


# ---- view ------------------------------------------------------------------------------------------------------------


def map_section(maps: Sequence[VideoMap], failed: Sequence[str]) -> str:
    """A player and a strip per video: frames above the colours of their features."""
    names = Names([shown.source for shown in maps])
    players = [_player(shown, names(shown.source)) for shown in maps]
    note = "".join(f'<div class="note">{page.text(words)}</div>' for words in failed)
    return (
        page.section(
            "What patches look like to the encoder",
            page.text(
                "The first three principal components of all patch features, as red, green and blue: patches of like "
                "colour have like features. Components, signs and scaling are the same for every tubelet and every "
                "video on this page. Maps are enlarged smoothly from one value per patch; frames are the first of each "
                "tubelet, cropped as the encoder sees them."
            ),
            note,
            page.card(*players),
        )
        if players or failed
        else ""
    )


def _player(shown: VideoMap, name: str) -> str:
    strip = np.concatenate((np.concatenate(list(shown.frames), 1), np.concatenate(list(shown.colours), 1)))
    height, width = shown.frames.shape[1:3]
    times = [clock(Clip(shown.source, *span)) for span in zip(shown.start_s.tolist(), shown.end_s.tolist())]
    pace = int(np.clip(1000 * float(np.median(shown.end_s - shown.start_s)), 120, 500))
    ratio = f'style="aspect-ratio:{width}/{height}"'
    most = min(320, round(320 * width / height))  # a portrait video is as tall as others are wide
    screens = [
        (f'<div class="cell" data-row="0" {ratio}></div>', "video"),
        (f'<div class="cell" data-row="1" {ratio}></div>', "features"),
        (f'<div class="cell" data-row="0" {ratio}><i data-row="1"></i></div>', "both"),
    ]
    figures = "".join(
        f'<figure style="max-width:{most}px">{cell}<figcaption>{words}</figcaption></figure>' for cell, words in screens
    )
    return (
        f'<div class="player" data-pace="{pace}" data-times="{html.escape(json.dumps(times))}"><h3>{html.escape(name)}'
        f'</h3><div class="screens">{figures}</div><div class="controls"><button>Play</button><input type="range" '
        f'min="0" max="{len(times) - 1}" value="0" aria-label="time"><output></output></div><div class="strip">'
        f'<img src="{drawing.jpeg(strip)}" alt="frames above feature maps"></div>'
        f"{page.text(shown.note, soft=True)}</div>"
    )


def neighbour_section(rows: Sequence[str], explained: str) -> str:
    """Rows made by ``row``."""
    return page.section("Nearest neighbours", page.text(explained), page.card(*rows)) if rows else ""


def scatter_section(
    clips: Sequence[Clip], uris: Sequence[str], places: dict[str, Any], groups: Sequence[Group],
    group_of: Sequence[int], near: Sequence[Sequence[tuple[int, float]]], explained: str,
) -> str:  # fmt: skip
    """``places``: by name of projection, ``[K, 2]`` in [0, 1]. ``near``: for every clip, others and similarities."""
    names = Names([clip.source for clip in clips])
    data = {
        "clips": [
            {"source": names(clip.source), "time": clock(clip), "uri": uri, "group": group}
            for clip, uri, group in zip(clips, uris, group_of, strict=True)
        ],
        "places": {name: np.round(xy, 4).tolist() for name, xy in places.items()},
        "groups": [{"name": group.name, "colour": group.colour} for group in groups],
        "near": [[(other, round(score, 4)) for other, score in found] for found in near],
    }
    plain = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no tag can end the script element
    choices = "".join(
        f'<button data-places="{name}" aria-pressed="{str(i == 0).lower()}">{name}</button>'
        for i, name in enumerate(places)
    )
    legend = "".join(
        f'<button data-group="{i}"><i style="background:{group.colour}"></i>{html.escape(group.name)} '
        f"<small>{group.count:,}</small></button>"
        for i, group in enumerate(groups)
    )
    tools = (
        f'<div class="tools">{choices if len(places) > 1 else ""}<button id="in">Zoom in</button>'
        '<button id="out">Zoom out</button><button id="whole">Show all</button></div>'
    )
    hint = "Point at a dot to see its clip; click it to see the clips nearest to it. Drag to move."
    return page.section(
        "All clips",
        page.text(explained),
        page.card(
            f'{tools}<div class="map"><div><canvas id="scatter" aria-label="scatter of clips"></canvas>'
            f'<div class="legend">{legend if len(groups) > 1 else ""}</div></div>'
            f'<div id="near" class="soft" data-hint="{hint}">{hint}</div></div>'
        ),
        f'<div id="tip"></div><script type="application/json" id="clips">{plain}</script>',
    )


def view_page(title: str, subtitle: str, facts: dict[str, str], sections: Sequence[str]) -> str:
    """The page of ``jepa view``; a section that is '' is left out."""
    whole = "".join(sections)
    scripts = [PLAYERS] * ('class="player"' in whole) + [SCATTER] * ('id="scatter"' in whole)
    return document(title, subtitle, [page.facts(facts), *sections], scripts)
