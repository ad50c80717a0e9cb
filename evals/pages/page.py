"""Small pieces of HTML for self-contained reports. Text is escaped here and nowhere else."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #fff; --ink: #1f2328; --soft: #646b75; --line: #e4e5e7;
  --bar: #eceef0; --trained: #3f7fe0; --random: #a9afb8; --pixels: #cfb48a; --good: #2f9e6e; --wrong: #c9527a; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1c1f25; --ink: #e4e6ea; --soft: #9aa1ac;
  --line: #2f343d; --bar: #2a2e36; --random: #6d7480; --pixels: #8f7a55; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 44px 0 6px; letter-spacing: -0.005em; }
p { margin: 6px 0 14px; max-width: 76ch; } .soft, figcaption, small { color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 20px; margin: 14px 0; }
.facts { display: flex; flex-wrap: wrap; gap: 10px; margin: 20px 0 4px; }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 16px; }
.facts b { display: block; font-size: 20px; } .facts span { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14.5px; }
th { text-align: left; font-weight: 600; color: var(--soft); } th, td { padding: 6px 14px 6px 0; vertical-align: top; }
tr + tr td, thead + tbody td { border-top: 1px solid var(--line); } td.n { font-variant-numeric: tabular-nums; }
td.best { font-weight: 650; }
code, pre { font: 13.5px/1.5 ui-monospace, monospace; } pre { overflow-x: auto; margin: 0; }
.bars { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 8px 36px; }
.bars h3 { font-size: 15px; margin: 8px 0 6px; }
.bar { display: grid; grid-template-columns: var(--names, 66px) 1fr 92px; gap: 10px; align-items: center;
  overflow-wrap: anywhere; font-size: 14px; margin: 5px 0; }
.track { position: relative; height: 16px; background: var(--bar); border-radius: 4px; }
.fill { position: absolute; inset: 0 auto 0 0; border-radius: 4px; }
.bar.wide { grid-template-columns: var(--names, 66px) 1fr 330px; } .dot { position: absolute; top: 3px; width: 10px;
  height: 10px; margin-left: -5px; border-radius: 5px; background: var(--ink); }
.chance { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--ink); opacity: .55; }
img { max-width: 100%; display: block; } .pixel { image-rendering: pixelated; border-radius: 6px; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 18px 30px; }
.grid.three { grid-template-columns: repeat(auto-fit, minmax(270px, 1fr)); } .grid img { width: 100%; }
figure { margin: 0; }
figcaption { font-size: 13px; margin-top: 5px; } .near td, .near th { padding: 5px 6px 5px 0; text-align: center; }
.near td { border: 0 !important; } .near td.gap { min-width: 18px; }
.near th { font-size: 13px; }
.near img { width: 76px; border-radius: 6px; border: 3px solid transparent; margin: auto; }
.near img.same { border-color: var(--good); } .near img.other { border-color: var(--wrong); }
.near small { font-size: 11.5px; line-height: 1.25; display: block; }
.near small b { color: var(--good); font-weight: 600; }
h3 { font-size: 15px; margin: 0 0 6px; } .heat { width: auto; font-size: 13px; } .heat th { font-weight: 500; }
.heat th.top { writing-mode: vertical-rl; transform: rotate(180deg); padding: 6px 2px; vertical-align: bottom;
  text-align: left; max-height: 150px; } .heat tbody th { text-align: right; padding: 4px 10px 4px 0; }
.heat td { min-width: 34px; padding: 5px 4px; text-align: center; border: 1px solid var(--card) !important;
  border-radius: 4px; font-variant-numeric: tabular-nums; } .heat td.true { outline: 1px solid var(--soft);
  outline-offset: -2px; } .none { display: grid; place-items: center; min-height: 104px; padding: 10px;
  border-radius: 6px; background: var(--bar); color: var(--soft); font-size: 13px; }
.strips td { border: 0 !important; padding: 3px 0; } .strips th { vertical-align: middle; width: 1%;
  padding: 3px 12px 3px 0; } .strips img { border-radius: 4px; width: 100%; }
.sides { width: auto; } .sides td { border: 0 !important; padding: 4px 8px 4px 0; } .sides img { border-radius: 4px;
  min-width: 120px; image-rendering: pixelated; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; align-items: center; margin: 0 0 10px; font-size: 13px; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 5px;
  vertical-align: -1px; border: 1px solid var(--line); } .legend img { border-radius: 3px; }
details summary { cursor: pointer; color: var(--soft); }
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole document."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )


def escape(words: str) -> str:
    """Text that is safe inside HTML."""
    return html.escape(words)


def text(words: str, soft: bool = False) -> str:
    """A paragraph; ``code`` between back-ticks."""
    parts = html.escape(words).split("`")
    marked = "".join(f"<code>{part}</code>" if n % 2 else part for n, part in enumerate(parts))
    return f'<p class="soft">{marked}</p>' if soft else f"<p>{marked}</p>"


def section(title: str, *parts: str) -> str:
    """A heading and what follows; nothing when nothing follows."""
    return f"<h2>{html.escape(title)}</h2>\n" + "\n".join(parts) if any(parts) else ""


def card(*parts: str) -> str:
    """A framed box."""
    return f'<div class="card">{"".join(parts)}</div>' if any(parts) else ""


def facts(pairs: Mapping[str, str]) -> str:
    """Large values with small names below."""
    cells = (f"<div><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>" for k, v in pairs.items() if v)
    return f'<div class="facts">{"".join(cells)}</div>'


def image(uri: str, alt: str, caption: str = "", pixel: bool = False, style: str = "") -> str:
    """A figure with an embedded picture; '' for an empty URI."""
    if not uri:
        return ""
    kind = ' class="pixel"' if pixel else ""
    style = f' style="{style}"' if style else ""
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img{kind}{style} src="{uri}" alt="{html.escape(alt)}">{below}</figure>'


def no_image(why: str, caption: str) -> str:
    """A figure in whose place only words stand."""
    below = f"<figcaption>{html.escape(caption)}</figcaption>"
    return f'<figure><div class="none">{html.escape(why)}</div>{below}</figure>'


def heat(names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """A square table of counts; each cell is tinted by its share of the row, and the diagonal is framed."""
    head = "".join(f'<th class="top">{html.escape(name)}</th>' for name in names)
    lines = []
    for i, row in enumerate(counts):
        cells = (
            f'<td{" class=true" if i == j else ""} style="background:color-mix(in srgb, var(--trained) '
            f'{80 * count / max(1, sum(row)):.0f}%, transparent)">{count or ""}</td>'
            for j, count in enumerate(row)
        )
        lines.append(f"<tr><th>{html.escape(names[i])}</th>{''.join(cells)}</tr>")
    body = "".join(lines)
    return (
        f'<div class="scroll"><table class="heat"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], best: Sequence[int] = ()) -> str:
    """A plain table; ``best`` gives, per row, the column to print bold (-1: none)."""
    lines = ["<tr>" + "".join(f"<th>{html.escape(str(cell))}</th>" for cell in head) + "</tr>"]
    body = []
    for number, row in enumerate(rows):
        bold = best[number] if number < len(best) else -1
        cells = (f'<td class="n{" best" if i == bold else ""}">{html.escape(str(c))}</td>' for i, c in enumerate(row))
        body.append("<tr>" + "".join(cells) + "</tr>")
    return f'<div class="scroll"><table><thead>{lines[0]}</thead><tbody>{"".join(body)}</tbody></table></div>'


_COLOURED = ("trained", "random", "pixels")  # have a colour of their own in the style sheet


def bars(title: str, values: Sequence[tuple[str, float, float | str]], chance: float | None = None) -> str:
    """Shares (name, share, standard error or words beside it) as bars from 0 to 100 %, with a tick at ``chance``."""
    tick = ""
    if chance is not None:
        tick = f'<div class="chance" style="left:{100 * chance:.1f}%" title="chance {100 * chance:.1f} %"></div>'
    lines = [
        f'<div class="bar"><span>{html.escape(name)}</span><div class="track"><div class="fill" style="width:'
        f'{100 * share:.1f}%;background:var(--{name if name in _COLOURED else "good"})"></div>{tick}</div>'
        f"<span>{html.escape(beside if isinstance(beside, str) else f'{100 * share:.1f} ± {100 * beside:.1f}')}</span>"
        "</div>"
        for name, share, beside in values
    ]
    width = min(max(66, *(8 * len(name) for name, _, _ in values)), 200)
    return f'<div style="--names:{width}px"><h3>{html.escape(title)}</h3>{"".join(lines)}</div>'


def details(summary: str, inside: str) -> str:
    """Something folded away."""
    return f"<details><summary>{html.escape(summary)}</summary>{inside}</details>"


def code(source: str) -> str:
    """Preformatted text."""
    return f"<pre>{html.escape(source)}</pre>"
