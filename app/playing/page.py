"""The page of ``jepa play``: self-contained HTML; what it shows comes from the server, step by step."""

from __future__ import annotations

import json

from app.playing.game import Game
from app.playing.script import SCRIPT, STYLE
from app.playing.steering import Control
from evals.pages import page

_SIGNS = {"left": "\u2190", "right": "\u2192", "up": "\u2191", "down": "\u2193"}
_PAD = tuple(_SIGNS)


def play_page(game: Game, model: str, decoder: str, env: str, fps: float) -> str:
    """``fps``: steps a second at most, when the page opens."""
    steering = game.steering
    settings = {
        "controls": [control._asdict() for control in steering.controls], "idle": steering.idle,
        "realMoves": game.real_moves,
    }  # fmt: skip
    plain = json.dumps(settings).replace("<", "\\u003c")  # no tag can end the script element
    subtitle = f"World model `{model}`, decoder `{decoder}`, real world `{env}`."
    return page.page(
        "jepa play",
        [
            f'<link rel="icon" href="data:,"><style>{STYLE}</style>', "<h1>A dream that is steered</h1>",
            page.text(subtitle, soft=True), page.text(_explained(game)),
            '<div id="error" role="alert" hidden></div>', _worlds(game), _curve(game), _steer(game, fps),
            f'<script type="application/json" id="settings">{plain}</script><script>{SCRIPT}</script>',
        ],
    )  # fmt: skip


def _explained(game: Game) -> str:
    begin = "The dream begins with the real frame, and from then on sees nothing but its own predictions"
    if game.real_moves:
        return (
            f"{begin}; the real world gets the same actions. The decoder shows what is in a latent: of the real frame "
            "(how well it can), and of the dream. Time passes while a key is held."
        )
    return (
        f"{begin}. This model takes latent actions, found in video by itself: no real world understands them, so only "
        "the dream moves. Hold a number, and time passes."
    )


def _worlds(game: Game) -> str:
    shown = [
        ("real", "real world" if game.real_moves else "where it began"), ("decoded", "its latent, decoded"),
        ("dream", "the dream, decoded"), ("goal", "goal of the real world"),
    ]  # fmt: skip
    figures = (
        f'<figure id="{name}-figure"{" hidden" if name == "goal" else ""}><img id="{name}" class="pixel" '
        f'alt="{words}"><figcaption><b>{words}</b> <span id="{name}-words"></span></figcaption></figure>'
        for name, words in shown
    )
    facts = (("fps", "frames a second"), ("step", "step"), ("dreamt", "steps dreamt"), ("seed", "episode"))
    cells = "".join(f'<div><b id="{name}-fact">0</b><span>{words}</span></div>' for name, words in facts)
    return f'<div class="worlds">{"".join(figures)}</div><div class="facts counts">{cells}</div>'


def _steer(game: Game, fps: float) -> str:
    pad = [control for control in game.steering.controls if control.name in _PAD]
    rest = [control for control in game.steering.controls if control.name not in _PAD]
    parts = [f'<div class="pad">{"".join(map(_button, pad))}</div>' if pad else ""]
    parts.append(f'<div class="keys">{"".join(map(_button, rest))}</div>' if rest else "")
    wake = '<button data-move="wake">Wake: dream on from the real present <kbd>Enter</kbd></button>'
    moves = (
        f'{wake if game.real_moves else ""}<button data-move="reset">This episode again <kbd>Backspace</kbd></button>'
        '<button data-move="next">Next episode <kbd>N</kbd></button>'
    )
    sliders = [_slider("speed", "steps a second, at most", 1, 60, 1, fps)]
    if game.steering.graded:
        sliders.append(_slider("strength", "push, in % of the strongest", 5, 100, 5, 50))
    boxes = ""
    if game.steering.idle:
        boxes = '<label><input type="checkbox" id="run"> time passes by itself (or hold <kbd>Space</kbd>)</label>'
    if game.real_moves:
        boxes += '<label><input type="checkbox" id="blind"> hide the real world</label>'
    right = f'<div class="moves">{moves}</div>{"".join(sliders)}<div class="boxes">{boxes}</div>'
    return f'<div class="card steer">{"".join(parts)}<div class="side">{right}</div></div>'


def _button(control: Control) -> str:
    keys = ", ".join(key.removeprefix("Key").removeprefix("Digit") for key in control.keys if "Arrow" not in key)
    hint = f" <kbd>{keys}</kbd>" if keys and keys != control.name else ""
    name, words = control.name, _SIGNS.get(control.name, control.name)
    return f'<button data-press="{name}" aria-label="{name}">{words}{hint}</button>'


def _slider(name: str, words: str, low: int, high: int, step: int, value: float) -> str:
    return (
        f'<label class="slider"><input type="range" id="{name}" min="{low}" max="{high}" step="{step}" '
        f'value="{value:g}"><output for="{name}">{value:g}</output> {words}</label>'
    )


def _curve(game: Game) -> str:
    if not game.real_moves:
        return ""
    legend = (
        '<div class="legend"><span><i style="background:var(--trained)"></i>surprise of the dream</span><span><i '
        'style="background:var(--random)"></i>had nothing happened since it began</span></div>'
    )
    words = (
        "How far the latents of the real frame are from those of the dream, and from those of the frame that the dream "
        "began with (mean absolute difference). A dream below the grey line knows what the actions did; upright lines "
        "are where it woke."
    )
    chart = '<canvas id="curve" role="img" aria-label="surprise by step"></canvas>'
    return page.card(legend, chart, f"<figcaption>{words}</figcaption>")
