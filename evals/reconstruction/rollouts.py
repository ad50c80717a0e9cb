"""World models in the task ``reconstruction``: decoded frames, and decoded rollouts step by step.

A decoder is fitted to the latents of single frames of training episodes. Of windows of test episodes the first frames
are given; what the model imagines under the recorded actions is decoded and compared with what was recorded. Beside it
stands what the same architecture imagines with a random encoder, whose predictor is trained here.

Shape legend: F frames, W windows, h steps ahead, C channels, H/W pixels, n latents of a frame, D width, A actions,
S states, K things that are tracked.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evals import pixel_metrics as pm
from evals.features.representations import encoder_hash
from evals.outcome import versions
from evals.pages import reconstruction_page
from evals.pages.reconstruction_page import Pictures
from evals.pairwise import bootstrap_interval
from evals.reconstruction.by_clip import FILE
from evals.reconstruction.predicting import training_mean
from evals.reconstruction.probe import Latents, build_decoder, count, decode, fit_decoder
from evals.reconstruction.rollout_samples import pack, sample_rollouts
from evals.reconstruction.rows import (
    GUESS,
    PREDICTED,
    ROLLOUT,
    TARGET,
    ReconstructionRow,
    Scored,
    digest,
    moving_psnr,
    set_distances,
    table,
)
from evals.reconstruction.sampled import ScoredSamples, sampled_tables
from evals.reconstruction.shown import Shown, normalise
from evals.reconstruction.worlds import (
    FRAMES,
    Scale,
    Windows,
    cut,
    fit_predictor,
    open_seers,
    read_training,
    recipe_of,
)
from evals.settings import EvalConfig, TaskResult
from evals.subjects import TRAINED, Subject, facts, run_state
from evals.task_configs import ReconstructionTask
from evals.tracking import colour_places, near
from evals.world_models.collecting import choose_horizons
from evals.world_models.opening import Seer, lengths_of, open_parts, state_names
from jepa.config import ConfigError
from jepa.data.batches import Failure
from jepa.distributed import Run
from jepa.envs.rooms import RoomsConfig
from jepa.envs.rooms_draw import draw_looks
from jepa.models.pixel_decoder import PixelDecoder
from jepa.objectives.horizons import predict_horizons

log = logging.getLogger("jepa")
KINDS = ("world_model", "controller", "policy", "latent_action")  # objectives; the last is refused with a reason
STEPS = 8  # horizons that nobody asked for reach so far
TRUSTED = 0.9  # share of the true frames in which a tracker must be right before it judges others


def is_world_model(model: str) -> bool:
    """Whether ``model`` is a run whose latents are those of single frames."""
    state = run_state(model)
    return state is not None and state["config"]["objective"].get("kind") in KINDS


def dream(config: EvalConfig) -> TaskResult:
    """Decoded rollouts of the world model ``config.run``, and of its architecture with fresh weights where the
    baselines name that; horizons, context, windows and episodes are those of ``config.world_model``. Raises
    ``ValueError`` as the task world_model does, and for settings of whole clips."""
    if config.against or config.sweep_layers or config.layers is not None or config.reconstruction.pools:
        raise ConfigError("of a world model only its own latents are decoded: leave against, layers and pools out")
    began, task, own = time.perf_counter(), config.reconstruction, config.world_model
    with Run.start(config.device, config.precision) as run:
        seers, failures, recipe = open_seers(config, run), list[Failure](), recipe_of(config.run)
        seer = seers[TRAINED]
        hashes = {name: encoder_hash(one.world.encoder) for name, one in seers.items()}
        parts = open_parts(config, seer.world.clip)
        horizons = choose_horizons(own.horizons, lengths_of(parts.test, seer.world.clip), seer.context)
        if not own.horizons:
            horizons = list(range(1, min(STEPS, max(horizons)) + 1))
        training = read_training(parts.fit, seers, FRAMES * task.train_clips, recipe.frames, task.seed, failures)
        windows = cut(parts.test, seers, seer.context + max(horizons), own.windows, failures)
        seconds, began = {"frames": time.perf_counter() - began}, time.perf_counter()
        states = windows[TRAINED].states
        names = [] if states is None else state_names(parts.test, states.shape[-1])
        judge = Watcher(windows[TRAINED], names, seer, horizons, config.random_seed)
        sides, decoders = dict[tuple[str, str], Tensor](), dict[str, PixelDecoder]()
        latents, fitted = dict[str, dict[str, Latents]](), dict[str, tuple[Latents, Shown]]()
        framewise = replace(task, batch_size=FRAMES * task.batch_size)  # a decoder's rows are frames, not clips
        for name, one in seers.items():
            if name != TRAINED:
                fit_predictor(one, training.stretches[name], recipe, task)
            scale = Scale.of(training.latents[name])
            fitted[name] = scale.latents(training.latents[name], one), training.shown
            latents[name] = imagined(windows[name], one, scale, horizons, task)
            decoders[name], found = look(one, fitted[name], name, latents[name], len(horizons), framewise)
            sides |= {(what, name): made for what, made in found.items()}
            seconds[name], began = time.perf_counter() - began, time.perf_counter()
        sides |= guesses(windows[TRAINED], seer.context, len(horizons), training_mean(training.shown))
        scored = [judge.scored(what, name, made, decoders.get(name)) for (what, name), made in sides.items()]
        seconds["scores"], began = time.perf_counter() - began, time.perf_counter()
        pictures, sampled = Pictures(task.pictures), list[ScoredSamples]()
        for (what, name), made in {("", "truth"): judge.truth, **sides}.items():
            pictures.add(ROLLOUT, f"{what} {name}".strip(), made)
        for name, one in seers.items() if task.samples else ():
            sampled += sample_rollouts(
                name, one, fitted[name], latents[name], judge.truth, judge.scored, framewise, pictures
            )  # fmt: skip
            seconds[f"{name}, samples"], began = time.perf_counter() - began, time.perf_counter()
    for name, one in seers.items():
        assert encoder_hash(one.world.encoder) == hashes[name], f"the encoder of {name} changed"
    about = facts(Subject(TRAINED, config.run, seer.world.encoder), hashes[TRAINED])
    notes = [f"{len(failures)} episodes cannot be read and are left out."] if failures else []
    floor = set_distances(judge.real, judge.real)
    result = {
        **about, "models": {TRAINED: about}, "device": str(run.device), "precision": run.precision, "floor": floor,
        "train_clips": len(training.shown), "versions": versions(), "horizons": horizons, "tracked": judge.tracked,
        "unreadable": {failure.path: failure.reason for failure in failures},
        "sampled": [one.row._asdict() for one in sampled],
    }  # fmt: skip
    readable = [one.name for one in parts.test if one.name not in result["unreadable"]]
    rows, files = [one.row for one in scored], {FILE: pack(windows[TRAINED], readable, scored, sampled)}
    words = [part for part in (table(rows, floor), sampled_tables([one.row for one in sampled])) if part]
    report = functools.partial(reconstruction_page.draw, pictures=pictures)
    return TaskResult(rows, seconds, result, "\n\n".join(words), files, "\n\n".join(notes), report)


def look(
    seer: Seer, fitted: tuple[Latents, Shown], name: str, sides: Mapping[str, Latents], steps: int,
    task: ReconstructionTask,
) -> tuple[PixelDecoder, dict[str, Tensor]]:  # fmt: skip
    """A decoder of the latents of the model ``name``, ``fitted`` to those of single frames, and what it makes of the
    latents of every step of windows, ``[W * h, n, D]``: uint8 ``[W, h, H, W, 3]``."""
    latents, shown = fitted
    decoder = build_decoder(task, seer.world.encoder, latents, shown)
    fit_decoder(decoder, latents, shown, task, seer.run)
    found: dict[str, Tensor] = {}
    for what, own in sides.items():
        count = len(own.parts[0])
        like = shown.pixels[:1].expand(count, -1, -1, -1, -1)  # only counted and measured
        made = decode(decoder, own, Shown(like, torch.arange(count), [""] * count, shown.clip, {}), task, seer.run)
        found[what] = made[:, 0].unflatten(0, (-1, steps))
    log.info("%s: rollouts of %d windows decoded", name, len(made) // steps)
    return decoder, found


def imagined(
    windows: Windows, seer: Seer, scale: Scale, horizons: Sequence[int], task: ReconstructionTask
) -> dict[str, Latents]:
    """Latents of every horizon, ``[W * h, n, D]``: "target", of the true frames, and "predicted"."""
    device, context, world = seer.run.device, seer.context, seer.world
    found: dict[str, list[Tensor]] = {TARGET: [], PREDICTED: []}
    for rows in torch.arange(len(windows.pixels)).split(task.batch_size):
        states = windows.states[rows].to(device) if windows.states is not None and world.state_dim else None
        latents, actions = windows.latents[rows].to(device), windows.actions[rows].to(device)
        with seer.run.autocast():
            ahead = predict_horizons(world, latents, actions, states, context, horizons)
        for name, side in ((TARGET, "truth"), (PREDICTED, "predicted")):
            found[name].append(torch.stack([getattr(ahead[h], side).float().cpu() for h in horizons], dim=1))
    return {what: scale.latents(torch.cat(parts).flatten(0, 1), seer) for what, parts in found.items()}


def guesses(windows: Windows, context: int, horizons: int, mean: Tensor) -> dict[tuple[str, str], Tensor]:
    """What stands at every horizon if nothing is learned, uint8 ``[W, h, H, W, 3]``: the ``mean`` ``[C, H, W]`` of the
    training frames, and the last given frame."""
    still = (mean.movedim(0, -1) * 255).round().byte()
    return {
        (GUESS, "training mean"): still.expand(len(windows.pixels), horizons, -1, -1, -1),
        (GUESS, "copy last"): windows.pixels[:, context - 1 : context].expand(-1, horizons, -1, -1, -1),
    }


class Watcher:
    """Compares what stands at the horizons with what was recorded. ``tracked``: which things are followed: the discs of
    the rooms, by colour, where that finds them in the true frames."""

    def __init__(
        self, windows: Windows, names: Sequence[str], seer: Seer, horizons: Sequence[int], seed: int
    ) -> None:  # fmt: skip
        steps = torch.tensor([seer.context - 1 + h for h in horizons])
        self.windows, self.seer, self.horizons, self.seed = windows, seer, horizons, seed
        self.truth = windows.pixels[:, steps]
        self.latents = windows.latents[:, steps]
        self.real = self.latents.mean(dim=(1, 2))
        self.patch = 1 / seer.world.encoder.grid.w
        self.places: Tensor | None = None
        self.tracked: list[str] = []
        looks = draw_looks(RoomsConfig(), np.random.default_rng(0))
        colours = {"agent": looks.agent, "object": looks.thing}
        wanted = [thing for thing in colours if f"{thing}_x" in names and f"{thing}_y" in names]
        if windows.states is None or not wanted:
            return
        columns = [[names.index(f"{thing}_{axis}") for axis in "xy"] for thing in wanted]
        places = torch.stack([windows.states[:, steps][..., pair] for pair in columns], dim=2)  # [W, h, K, 2]
        self.colours = torch.from_numpy(np.stack([colours[thing] for thing in wanted])).float()
        right = near(colour_places(_values(self.truth), self.colours), places, self.patch)
        if float(right.double().mean()) >= TRUSTED:
            self.places, self.tracked = places, wanted

    def scored(self, what: str, model: str, made: Tensor, decoder: nn.Module | None) -> Scored:
        """Scores of ``made``, uint8 ``[W, h, H, W, 3]``, by ``decoder`` (None: nothing is decoded). Intervals are over
        episodes."""
        found = self._gather(_values, made)
        by_step = found["psnr"]  # [W, h]
        low, high = bootstrap_interval(by_step.mean(dim=1).numpy(), [str(e) for e in self.windows.episodes],
                                       seed=self.seed)  # fmt: skip
        known = found["moving"][~found["moving"].isnan()]
        close, apart = found.get("near"), found.get("apart")
        frames: list[dict[str, Any]] = [
            {"frame": h, "psnr": float(by_step[:, k].mean()),
             "near": None if close is None else float(close[:, k].double().mean())}
            for k, h in enumerate(self.horizons)
        ]  # fmt: skip
        middle = None if apart is None else float((apart / self.patch).nan_to_num(torch.inf).median())
        row = ReconstructionRow(
            places=ROLLOUT, what=what, model=model, layer=None, tokens=self.latents.shape[2] if decoder else None,
            psnr=float(by_step.mean()), low=low, high=high, moving=float(known.mean()) if len(known) else None,
            ssim=float(found["ssim"].mean()) if "ssim" in found else None, feature=float(found["feature"].mean()),
            **set_distances(self.real, found["features"]),
            near=None if close is None else float(close.double().mean()),
            apart=None if middle is None or middle == torch.inf else middle, frames=frames,
            parameters=count(decoder) if decoder else None, clips=len(made),
        )  # fmt: skip
        judged = digest(f"{self.seer.context} given, {list(self.horizons)} ahead, {list(made.shape[2:])}".encode())
        return Scored(row, by_step.mean(dim=1), torch.full((len(made),), judged))

    def _gather(self, values: Callable[[Tensor], Tensor], made: Tensor) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}
        for rows in torch.arange(len(made)).split(16):
            one, true = values(made[rows]), values(self.truth[rows])
            frames = [side.transpose(1, 2)[:, :, :, None] for side in (one, true)]  # every frame a clip of its own
            whole = torch.ones(len(rows), 1, *true.shape[2:], dtype=torch.bool)
            part = {"psnr": pm.psnr(*frames), "moving": moving_psnr(one, true, whole)}
            if min(true.shape[-2:]) >= pm.WINDOW:
                part["ssim"] = pm.ssim(one, true)
            ready = normalise(one, self.seer.world.clip).to(self.seer.run.device)
            latents = self.seer.encode(ready).cpu()
            part["feature"] = (latents - self.latents[rows]).abs().mean(dim=(1, 2, 3))
            part["features"] = latents.mean(dim=(1, 2))
            if self.places is not None:
                seen = colour_places(one, self.colours)
                part["near"] = near(seen, self.places[rows], self.patch)
                part["apart"] = (seen - self.places[rows]).norm(dim=-1)
            for name, value in part.items():
                found.setdefault(name, []).append(value)
        return {name: torch.cat(parts) for name, parts in found.items()}


def _values(pixels: Tensor) -> Tensor:
    """uint8 ``[B, T, H, W, 3]`` to ``[B, 3, T, H, W]`` in 0..1."""
    return pixels.movedim(-1, 1).float() / 255
