"""What latents hold of the pixels, and what a predictor expects of hidden ones: both decoded by a small probe.

Tokens of even a random transformer carry enough to reconstruct their own pixels. So beside the decoded target latents
(the ceiling) stand decoded predictions at places that the model did not see, a random encoder with a predictor of its
own, and guesses that learn nothing. No gradient reaches an encoder.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from evals.features.harness import FeatureSet, Split, compute_splits, feature_splits
from evals.features.representations import EncoderRepresentation, encoder_hash
from evals.outcome import identities, versions
from evals.pages import reconstruction_page
from evals.pages.reconstruction_page import PICTURES, Pictures
from evals.reconstruction.by_clip import BEST, FILE, MEAN, PSNR, ByClip
from evals.reconstruction.generative import Generative
from evals.reconstruction.models import RANDOM, Model, open_models
from evals.reconstruction.predicting import (
    FORECAST,
    MASKED,
    Expecting,
    Hidden,
    expected,
    fit_predictor,
    guesses,
    hide,
    token_of,
    training_mean,
)
from evals.reconstruction.probe import Latents, build_decoder, count, decode, fit_decoder, latents_of
from evals.reconstruction.rollouts import dream, is_world_model
from evals.reconstruction.rows import (
    ALL,
    GUESS,
    PREDICTED,
    TARGET,
    Judge,
    ReconstructionRow,
    Scored,
    table,
    values_of,
)
from evals.reconstruction.sampled import SampledRow, ScoredSamples, sampled_tables
from evals.reconstruction.shown import Shown, open_sides, read
from evals.settings import EvalConfig, TaskResult
from evals.subjects import TRAINED, facts, home, open_subjects
from evals.tracking import demo_scenes
from jepa.config import ConfigError
from jepa.distributed import Run
from jepa.models.pixel_decoder import PixelDecoder
from jepa.types import ClipConfig, TokenGrid

log = logging.getLogger("jepa")
GUESSES = ("training mean", "mean frame", "copy last")
Sides = Mapping[str, Shown]


def reconstruct(config: EvalConfig) -> TaskResult:
    """Fit decoders on frozen latents of the training clips and judge what they make of the test clips; of a world model
    on frames, and of its rollouts.

    Raises ``ValueError`` for missing data, clips that cannot be decoded, and settings that do not fit the model.
    """
    if config.segments != 1 or config.views != 1 or config.train_views != 1 or config.cells != (1, 1, 1):
        raise ConfigError("the task reconstruction sees every clip once: leave segments, views and cells out")
    if is_world_model(config.run):
        return dream(config)
    began = time.perf_counter()
    with Run.start(config.device, config.precision) as run:
        subjects = open_subjects(config)
        models = open_models(config, {s.name: (s.model, s.encoder) for s in subjects})
        hashes = {model.name: encoder_hash(model.encoder) for model in models}
        sources = open_sides(config, models[0].encoder.clip)
        clips = {
            clip: {side: read(source, clip, config.batch_size, config.workers) for side, source in sources.items()}
            for clip in dict.fromkeys(model.encoder.clip for model in models)
        }
        features = encode(config, models, run)(sources)
        seconds, began = {"clips and features": time.perf_counter() - began}, time.perf_counter()
        bench = Bench(config, models[0], clips, run, len(sources["test"]))
        for model in models:
            bench.look(model, {side: features[side][model.name] for side in sources})
            seconds[model.name], began = time.perf_counter() - began, time.perf_counter()
    check_untouched(models, hashes)
    about = {subject.name: facts(subject, hashes[subject.name]) for subject in subjects}
    shown = clips[models[0].encoder.clip]
    floor = bench.judge(models[0]).floor
    result = {
        **about[TRAINED], "models": about, "device": str(run.device), "precision": run.precision, "floor": floor,
        "train_clips": len(shown["train"]), "versions": versions(),
        "unreadable": {side: list(part.failures.values()) for side, part in shown.items()},
        "sampled": [row._asdict() for row in bench.sampled],
    }  # fmt: skip
    tables = [part for part in (table(bench.rows, floor), sampled_tables(bench.sampled)) if part]
    return TaskResult(
        bench.rows, seconds, result, "\n\n".join(tables),
        {FILE: bench.by_clip.pack(identities(sources["test"])), PICTURES: bench.pictures.pack()},
        "\n\n".join(bench.notes), functools.partial(reconstruction_page.draw, pictures=bench.pictures),
    )  # fmt: skip


def encode(config: EvalConfig, models: list[Model], run: Run) -> Callable[..., dict[str, dict[str, FeatureSet]]]:
    """From sources to the tokens of all models, kept where other probes find them."""
    own = [EncoderRepresentation(model.name, model.encoder, run, layers=model.encoded) for model in models]
    folder: Path = home(config) / "features"

    def encoded(sources: dict) -> dict[str, dict[str, FeatureSet]]:
        splits = feature_splits(config, sources, folder)
        tokens = {name: Split(source, replace(options, tokens=True)) for name, (source, options) in splits.items()}
        return compute_splits(own, tokens, run)

    return encoded


def check_untouched(models: list[Model], hashes: Mapping[str, str]) -> None:
    """The leak check: no weight of an encoder has a gradient or has changed."""
    for model in models:
        assert all(p.grad is None and not p.requires_grad for p in model.encoder.parameters()), model.name
        assert encoder_hash(model.encoder) == hashes[model.name], f"the encoder of {model.name} changed"


class Bench:
    """Looks at one model after the other; ``rows``, ``sampled``, ``by_clip`` (of so many ``items`` of the test source),
    ``pictures`` and ``notes`` gather what is found."""

    def __init__(
        self, config: EvalConfig, first: Model, clips: Mapping[ClipConfig, Sides], run: Run, items: int
    ) -> None:  # fmt: skip
        self.config, self.task, self.first, self.clips, self.run = config, config.reconstruction, first, clips, run
        self.rows: list[ReconstructionRow] = []
        self.sampled: list[SampledRow] = []
        self.by_clip = ByClip(items)
        self.notes: list[str] = []
        self.pictures = Pictures(self.task.pictures)
        self.judges: dict[ClipConfig, Judge] = {}

    def judge(self, model: Model) -> Judge:
        """Who compares clips of the model's kind; features are those of the eval's own model where its clips are."""
        clip = model.encoder.clip
        if clip not in self.judges:
            shown, own = self.clips[clip]["test"], self.first if clip == self.first.encoder.clip else model
            if own is not self.first:
                self.notes.append(f"{model.name} sees other clips: distances of features are by its own encoder.")
            scenes = demo_scenes(shown.paths, clip)
            encoder = own.encoder.to(self.run.device)
            self.judges[clip] = Judge(shown, encoder, scenes, self.config.random_seed)
        return self.judges[clip]

    def look(self, model: Model, features: Mapping[str, FeatureSet]) -> None:
        """All that is measured of one model."""
        sides = self.clips[model.encoder.clip]
        for side, found in features.items():
            if not torch.equal(found.items, sides[side].items):
                raise ConfigError(f"clips of the {side} source changed while they were read; try again")
        levels = None if model.encoded is None else model.own
        latents = {side: latents_of(found, levels) for side, found in features.items()}
        decoder, last = self._decoder(model, latents, None)
        for pool in self.task.pools:
            self._decoder(model, {side: latents_of(f, levels, pool) for side, f in features.items()}, None)
        for block in model.blocks:
            if (block,) == levels:
                own = last._replace(row=last.row._replace(layer=block))  # the same latents, the same decoder
                self._add(model, own)
            else:
                self._decoder(model, {side: latents_of(f, (block,)) for side, f in features.items()}, block)
        if model is self.first:
            self._guess_all(sides)
        hidden: list[Hidden] = []
        if isinstance(model.expecting, str):
            self.notes.append(f"{model.name} predicts nothing: {model.expecting}.")
        else:
            if model.name == RANDOM:
                fit_predictor(model.expecting, sides["train"], self.task, self.run)
            hidden = self._hidden(model, model.expecting, latents["test"].stored, len(sides["test"]))
            self._expect(model, model.expecting, latents["test"], decoder, hidden)
        if self.task.samples:
            self._sample(model, latents, hidden)

    def _add(self, model: Model, scored: Scored) -> None:
        self.rows.append(scored.row)
        items = self.clips[model.encoder.clip]["test"].items
        self.by_clip.add(scored.row._asdict(), PSNR, scored.psnr, scored.hidden, items)

    def _add_samples(self, model: Model, found: Sequence[ScoredSamples]) -> None:
        items = self.clips[model.encoder.clip]["test"].items
        for scored in found:
            self.sampled.append(scored.row)
            for kind, psnr in ((MEAN, scored.mean), (BEST, scored.best)):
                self.by_clip.add(scored.row._asdict(), kind, psnr, scored.hidden, items)

    def _decoder(
        self, model: Model, latents: Mapping[str, Latents], block: int | None
    ) -> tuple[PixelDecoder, Scored]:  # fmt: skip
        """Fit a decoder to ``latents`` and judge it on all places."""
        sides = self.clips[model.encoder.clip]
        decoder = build_decoder(self.task, model.encoder, latents["train"], sides["train"])
        fit_decoder(decoder, latents["train"], sides["train"], self.task, self.run)
        made = decode(decoder, latents["test"], sides["test"], self.task, self.run)
        scored = self.judge(model).scored(
            TARGET, model.name, values_of(made), None, block, latents["test"].grid.size, count(decoder)
        )  # fmt: skip
        row = scored.row
        log.info("%s, %s latents of %s: PSNR %.2f dB", model.name, row.tokens,
                 "its output" if block is None else f"block {block}", row.psnr)  # fmt: skip
        self._add(model, scored)
        kind = model.name if block is None else f"{model.name}, block {block}"
        self.pictures.add(ALL, kind if not latents["test"].pool > 1 else f"{kind}, {row.tokens} tokens", made)
        return decoder, scored

    def _guess_all(self, sides: Sides) -> None:
        self.pictures.add(ALL, "truth", sides["test"].pixels, first=True)
        still = training_mean(sides["train"])[None, :, None]
        frames = sides["test"].pixels.shape[1]
        scored = self.judge(self.first).scored(
            GUESS, "training mean", lambda rows: still.expand(len(rows), -1, frames, -1, -1)
        )  # fmt: skip
        self._add(self.first, scored)

    def _hidden(self, model: Model, expecting: Expecting, grid: TokenGrid, count: int) -> list[Hidden]:
        """What is hidden of so many clips of the model, by the first model's masks where these suit its ``grid``."""
        same = isinstance(self.first.expecting, Expecting) and grid == self.first.encoder.grid
        masks = self.first.expecting if same and isinstance(self.first.expecting, Expecting) else expecting
        names = [name for name in (MASKED, FORECAST) if name in self.task.places]
        if grid.t < 2 and FORECAST in names:
            self.notes.append(f"{model.name}: a clip of one tubelet has no future.")
            names.remove(FORECAST)
        return [hide(name, masks, grid, count, self.task) for name in names]

    def _expected(self, model: Model, expecting: Expecting, hidden: Hidden) -> Callable[[Tensor], Tensor]:
        """From rows of the test clips to latents, the hidden ones predicted."""
        token = token_of(hidden.name, expecting, self.task)
        return expected(expecting, self.clips[model.encoder.clip]["test"], hidden, token, self.run)

    def _expect(
        self, model: Model, expecting: Expecting, target: Latents, decoder: PixelDecoder, places: Sequence[Hidden]
    ) -> None:
        """What is hidden: the ceiling, the predictions, and once the guesses."""
        sides, judge = self.clips[model.encoder.clip], self.judge(model)
        test, tokens = sides["test"], target.grid.size
        whole = decode(decoder, target, test, self.task, self.run)
        for hidden in places:
            made = decode(decoder, self._expected(model, expecting, hidden), test, self.task, self.run)
            for what, pixels in ((TARGET, whole), (PREDICTED, made)):
                scored = judge.scored(what, model.name, values_of(pixels), hidden, None, tokens, count(decoder))
                self._add(model, scored)
            log.info("%s, %s: PSNR of predictions %.2f dB", model.name, hidden.name, scored.row.psnr)
            if model is self.first:
                self._guess(sides, hidden, hidden.name)
                self.pictures.add(hidden.name, "target latents", whole)
            self.pictures.add(hidden.name, f"predicted, {model.name}", made)

    def _sample(self, model: Model, latents: Mapping[str, Latents], places: Sequence[Hidden]) -> None:
        """The same by a generative decoder: samples of target latents at all places, and of predicted ones."""
        train = self.clips[model.encoder.clip]["train"]
        probe = Generative(model.name, model.encoder, latents["train"], train, self.judge(model), self.task, self.run)
        drawn_as = [model.name, *("target latents" if model is self.first else "" for _ in places)]
        self._add_samples(model, probe.look(TARGET, latents["test"], [None, *places], self.pictures, drawn_as))
        for hidden in places:
            assert isinstance(model.expecting, Expecting), "nothing is hidden from who predicts nothing"
            predicted = self._expected(model, model.expecting, hidden)
            found = probe.look(PREDICTED, predicted, [hidden], self.pictures, [f"predicted, {model.name}"])
            self._add_samples(model, found)

    def _guess(self, sides: Sides, hidden: Hidden, name: str) -> None:
        """Rows of what needs no model, and the first lines of the pictures."""
        test, mean = sides["test"], training_mean(sides["train"])
        for guess in GUESSES:
            pixels = functools.partial(one_guess, guess, test, hidden, mean)
            self._add(self.first, self.judge(self.first).scored(GUESS, guess, pixels, hidden))
        drawn = torch.arange(min(self.task.pictures, len(test)))
        if len(drawn):
            mask = hidden.pixels(drawn, *test.pixels.shape[1:4])[:, 0, ..., None]
            self.pictures.add(name, "truth", test.pixels)
            self.pictures.add(
                name, "seen", torch.where(mask, torch.full((), 128, dtype=torch.uint8), test.pixels[drawn])
            )
            copied = guesses(test, hidden, mean, drawn)["copy last"]
            self.pictures.add(name, "copy last", (copied * 255).round().byte().movedim(1, -1))


def one_guess(name: str, test: Shown, hidden: Hidden, mean: Tensor, rows: Tensor) -> Tensor:
    """Of ``guesses``, the one of this name."""
    return guesses(test, hidden, mean, rows)[name]
