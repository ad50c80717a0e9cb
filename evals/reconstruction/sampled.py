"""What samples of a generative decoder are worth: their rows, and the table of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from evals.pages.tables import DASH, Table
from evals.reconstruction.rows import TITLES, Scored, number
from evals.reconstruction.sampling import Drawn

Judging = Callable[[Tensor], Scored]  # of decoded clips, uint8 [K, T, H, W, 3]


class SampledRow(NamedTuple):
    """Samples of one kind of ``places``, ``what`` and ``model`` as in ``ReconstructionRow``, from latents of as many
    ``tokens``, so many ``samples`` of each of the ``clips``, by a decoder of so many ``parameters``.

    ``psnr`` (dB, with its 95 % interval ``low``, ``high``) and ``moving`` are of the mean of samples; ``best`` says for
    growing k the PSNR of the best of k samples, k = 1 being a sample by itself. ``ssim``, ``feature``, ``frechet``,
    ``kernel`` and ``near`` are of the first sample of every clip, as in ``ReconstructionRow``. ``diversity``: root mean
    square difference of two samples, values in 0..1; ``spread``: their standard deviation, ``diversity`` / sqrt(2).
    ``calibration``: see ``Scores.calibration``.
    """

    places: str
    what: str
    model: str
    tokens: int | None
    samples: int
    psnr: float
    low: float
    high: float
    moving: float | None
    best: list[dict[str, float]]
    diversity: float
    spread: float
    calibration: float | None
    ssim: float | None
    feature: float | None
    frechet: float | None
    kernel: float | None
    near: float | None
    parameters: int | None
    clips: int


class ScoredSamples(NamedTuple):
    """A row, and of every clip the PSNR of the ``mean`` of its samples and that of the ``best``, ``[K]`` each;
    ``hidden`` as in ``Scored``."""

    row: SampledRow
    mean: Tensor
    best: Tensor
    hidden: Tensor


def score(drawn: Drawn, place: int, judge: Judging) -> ScoredSamples:
    """What the samples are worth at those places that ``drawn.scores[place]`` is of, and ``judge`` looks at."""
    scores = drawn.scores[place]
    whole, one = judge(drawn.mean), judge(drawn.first)
    mean, single = whole.row, one.row
    diversity = float(scores.diversity.mean())
    row = SampledRow(
        places=mean.places, what=mean.what, model=mean.model, tokens=mean.tokens, samples=scores.psnr.shape[1],
        psnr=mean.psnr, low=mean.low, high=mean.high, moving=mean.moving, best=scores.best(), diversity=diversity,
        spread=diversity / 2**0.5, calibration=scores.calibration(), ssim=single.ssim, feature=single.feature,
        frechet=single.frechet, kernel=single.kernel, near=single.near, parameters=mean.parameters, clips=mean.clips,
    )  # fmt: skip
    return ScoredSamples(row, whole.psnr, scores.psnr.amax(dim=1), whole.hidden)


def sampled_table(rows: Sequence[Mapping[str, Any]], places: str) -> Table:
    """Samples at some places, a line for each model and kind of latents; no lines where there are none."""
    own = [row for row in rows if row["places"] == places]
    counts = [best["k"] for best in own[0]["best"]] if own else []
    head = ["samples of", "model", "PSNR of mean", *(f"best of {k}" if k > 1 else "one" for k in counts), "diversity",
            "spread / error", "SSIM", "features", "Frechet", "kernel", "near"]  # fmt: skip
    lines = [
        [row["what"], row["model"], f"{row['psnr']:.2f} [{row['low']:.2f}, {row['high']:.2f}]",
         *(number(best["psnr"], 2) for best in row["best"]), number(row["diversity"], 4), number(row["calibration"], 2),
         number(row["ssim"], 3), number(row["feature"], 3), number(row["frechet"], 3), number(row["kernel"], 4),
         DASH if row["near"] is None else f"{100 * row['near']:.0f}"]
        for row in own
    ]  # fmt: skip
    return Table(head, lines, [-1] * len(lines))


def sampled_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the columns are."""
    return (
        f"A generative decoder on the same latents, {rows[0]['samples']} samples of each clip. PSNR in dB: of their "
        "mean, of one, and of the best of k (the mean over all choices of k); diversity: root mean square difference "
        "of two samples, values in 0..1; spread / error: 1 where the truth might be one more sample, less where "
        "samples are too sure; the columns from SSIM on: of one sample of each clip."
    )


def sampled_tables(rows: Sequence[SampledRow]) -> str:
    """Markdown: a table for each kind of places, with what its columns are; '' for no rows."""
    plain, parts = [row._asdict() for row in rows], list[str]()
    for places, title in TITLES.items():
        found = sampled_table(plain, places)
        if found.lines:
            parts += [f"{title}: sampled", found.markdown()]
    return "\n\n".join([*parts, sampled_words(plain)]) if parts else ""
