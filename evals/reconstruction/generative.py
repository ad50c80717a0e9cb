"""The second probe: a generative decoder, whose samples say what latents leave open."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

from torch import Tensor

from evals.pages.reconstruction_page import Pictures
from evals.reconstruction.predicting import Hidden
from evals.reconstruction.probe import Latents, build_flow, count, fit_decoder
from evals.reconstruction.rows import ALL, Judge, Scored, values_of
from evals.reconstruction.sampled import ScoredSamples, score
from evals.reconstruction.sampling import ByRows, gather, sampler
from evals.reconstruction.shown import Shown
from evals.task_configs import ReconstructionTask
from jepa.distributed import Run
from jepa.models.base import ClipEncoder

log = logging.getLogger("jepa")


class Generative:
    """A generative decoder of the latents of one ``model``, and what ``judge`` says of its samples of ``test`` clips.
    It is fitted to ``latents`` of the clips ``train`` when it is made."""

    def __init__(
        self, model: str, encoder: ClipEncoder, latents: Latents, train: Shown, judge: Judge, task: ReconstructionTask,
        run: Run,
    ) -> None:  # fmt: skip
        self.model, self.judge, self.task, self.run = model, judge, task, run
        self.test, self.tokens = judge.shown, latents.grid.size
        self.decoder = build_flow(task, encoder, latents, train)
        fit_decoder(self.decoder, latents, train, task, run)

    def look(
        self, what: str, latents: ByRows, places: Sequence[Hidden | None], pictures: Pictures, drawn_as: Sequence[str]
    ) -> list[ScoredSamples]:
        """Samples from ``latents`` (rows to ``[B, N, D]``), drawn once and judged at every one of the ``places`` (None:
        all). ``drawn_as``: their names in the ``pictures`` of these places; "" for none."""
        draw = sampler(self.decoder, latents, self.test, self.task, self.run)
        _, frames, height, width, _ = self.test.pixels.shape
        size = (frames, height, width)
        masks = [None if hidden is None else functools.partial(_pixels, hidden, size) for hidden in places]
        batch = max(1, self.task.batch_size // self.task.samples)
        drawn = gather(draw, self.test.values, len(self.test), masks, batch, pictures.count)
        found = []
        for place, (hidden, name) in enumerate(zip(places, drawn_as, strict=True)):
            scored = score(drawn, place, functools.partial(self._judged, what, hidden))
            found.append(scored)
            if name:
                pictures.add_samples(ALL if hidden is None else hidden.name, name, drawn)
            log.info("%s, samples of %s latents, %s: PSNR of the mean %.2f dB, of one %.2f dB", self.model, what,
                     scored.row.places, scored.row.psnr, scored.row.best[0]["psnr"])  # fmt: skip
        return found

    def _judged(self, what: str, hidden: Hidden | None, pixels: Tensor) -> Scored:
        return self.judge.scored(
            what, self.model, values_of(pixels), hidden, None, self.tokens, count(self.decoder)
        )  # fmt: skip


def _pixels(hidden: Hidden, size: tuple[int, int, int], rows: Tensor) -> Tensor:
    return hidden.pixels(rows, *size)
