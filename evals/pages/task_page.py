"""The frame of report.html that tasks without probes on clips share: title, headline, facts, what was run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.pages import page, sections
from jepa.logging import duration


def draw(results: Mapping[str, Any], what: str, headline: str, facts: Mapping[str, str], body: Sequence[str]) -> str:
    """The whole page. ``results``: what results.json holds; ``what`` stands behind the model's name; ``facts``: more
    for the head; ``body``: the task's own sections."""
    about = {
        **facts, "parameters in the encoder": f"{results['parameters'] / 1e6:.2f} M", "device": str(results["device"]),
        "time": duration(results["seconds"]["total"]),
    }  # fmt: skip
    return page.page(
        f"{what} of {results['model']}",
        [
            f"<h1>{page.escape(results['model'])}: {page.escape(what)}</h1>",
            page.text(headline),
            page.facts(about),
            *body,
            sections.run_section(results),
        ],
    )


def interval_words(share: float, low: float, high: float) -> str:
    """A share with its interval, in per cent."""
    return f"{100 * share:.1f} [{100 * low:.1f},\u00a0{100 * high:.1f}]"
