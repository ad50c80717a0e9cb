"""Scores of decoded clips, and their tables.

Shape legend: K clips, B of them at once, C channels, T frames, H/W pixels, D feature width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evals import pixel_metrics as pm
from evals.metrics import bootstrap_interval
from evals.pages.tables import DASH
from evals.reconstruction.predicting import FORECAST, MASKED, Hidden
from evals.reconstruction.shown import Shown, normalise
from evals.tracking import Scene, bright_places, near
from jepa.models.base import ClipEncoder

ALL = "all"
ROLLOUT = "rollout"
TARGET, PREDICTED, GUESS = "target", "predicted", "guess"
MOVED = 0.15  # how much a pixel (3 x 3 averaged) changes over the clip where something moves past it
_BATCH = 16
TITLES = {
    ALL: "Target latents, decoded: what they hold",
    MASKED: "Masked places, of which the model saw nothing",
    FORECAST: "What follows the frames that were seen",
    ROLLOUT: "Rollouts of the world model under the recorded actions",
}


class ReconstructionRow(NamedTuple):
    """One way to fill in the pixels of a kind of ``places`` ("all", "masked", "forecast" or "rollout") of test clips.

    ``what``: "target" (decoded latents of the whole clip: the ceiling), "predicted" (of latents that were predicted at
    these places) or "guess" (nothing is learned); ``model``: whose latents, or the guess's name. ``layer``: the block
    that latents come from (None: those that the model's own predictor predicts, else its output); ``tokens`` of a clip.
    ``psnr`` in dB, mean over clips with its 95 % bootstrap interval (``low``, ``high``); ``moving``: the same over
    those of the pixels past which something moves. ``ssim``. ``feature``: L1 between layer-normed features (of the
    eval's own model) of true clips and of those with these pixels filled in, at these places; ``frechet`` and
    ``kernel``: distances of the sets of both, as ``set_distances`` says. ``near``: share of the frames whose object is
    hidden in which it is found within one patch of where the simulator had it, ``apart`` the median distance in
    patches; both None where nobody knows, as beyond the demo's world. ``frames``: ``psnr`` and ``near`` of every hidden
    frame of a forecast, or so many steps ahead of a rollout (``evals.reconstruction.rollouts``). ``parameters`` of the
    decoder. ``throughout``: share of the clips in which the object is near in every frame of a forecast. None: does not
    apply.
    """

    places: str
    what: str
    model: str
    layer: int | None
    tokens: int | None
    psnr: float
    low: float
    high: float
    moving: float | None
    ssim: float | None
    feature: float | None
    frechet: float | None
    kernel: float | None
    near: float | None
    apart: float | None
    frames: list[dict[str, Any]]
    parameters: int | None
    clips: int
    throughout: float | None = None


class Scored(NamedTuple):
    """A row, the ``psnr`` of each of its clips (float64 ``[K]``, dB) and what was judged of it: ``hidden`` int64
    ``[K]``, as ``digests`` has it. Two evals can be compared clip by clip where these agree."""

    row: ReconstructionRow
    psnr: Tensor
    hidden: Tensor


class Judge:
    """Compares clips with those of ``shown``; ``encoder`` gives the features, ``patch`` is its patch in shares of the
    picture, ``scenes`` what a simulator knows of every clip (None: no simulator)."""

    def __init__(self, shown: Shown, encoder: ClipEncoder, scenes: Sequence[Scene] | None, seed: int) -> None:
        self.shown, self.encoder, self.scenes, self.seed = shown, encoder, scenes, seed
        self.patch = 1 / encoder.grid.w
        self.device = next(encoder.parameters()).device
        self.real = self._features(shown.values)

    def _features(self, values: Callable[[Tensor], Tensor]) -> Tensor:
        parts = torch.arange(len(self.shown)).split(_BATCH)
        clip = self.shown.clip
        found = [pm.clip_features(self.encoder, normalise(values(rows), clip).to(self.device)) for rows in parts]
        return torch.cat([part.cpu() for part in found])

    @property
    def floor(self) -> dict[str, float | None]:
        """Set distances of real clips from other real clips."""
        return set_distances(self.real, self.real)

    def scored(
        self, what: str, model: str, pixels: Callable[[Tensor], Tensor], hidden: Hidden | None = None,
        layer: int | None = None, tokens: int | None = None, parameters: int | None = None,
    ) -> Scored:  # fmt: skip
        """``pixels``: from rows to clips ``[B, C, T, H, W]`` in 0..1, judged where they are ``hidden`` (None: all)."""
        found: dict[str, list[Tensor]] = {}
        for rows in torch.arange(len(self.shown)).split(_BATCH):
            for name, value in self._batch(rows, pixels(rows), hidden).items():
                found.setdefault(name, []).append(value)
        all_ = {name: torch.cat(parts) for name, parts in found.items()}
        low, high = bootstrap_interval(all_["psnr"], seed=self.seed)
        sets = set_distances(self.real, all_["features"])
        judged = all_.get("judged")
        row = ReconstructionRow(
            places=ALL if hidden is None else hidden.name, what=what, model=model, layer=layer, tokens=tokens,
            psnr=float(all_["psnr"].mean()), low=low, high=high, moving=_mean(all_["moving"]), ssim=_mean(all_["ssim"]),
            feature=float(all_["feature"].mean()), **sets,
            near=None if judged is None else _mean(all_["near"][judged].double()),
            apart=None if judged is None else _median(all_["apart"][judged] / self.patch),
            frames=self._frames(all_, hidden), parameters=parameters, clips=len(self.shown),
            throughout=self._throughout(all_),
        )  # fmt: skip
        return Scored(row, all_["psnr"], all_["hidden"])

    def _batch(self, rows: Tensor, made: Tensor, hidden: Hidden | None) -> dict[str, Tensor]:
        """Numbers of every clip."""
        true, clip = self.shown.values(rows), self.shown.clip
        size = true.shape[2:]
        mask = torch.ones(len(rows), 1, *size, dtype=torch.bool) if hidden is None else hidden.pixels(rows, *size)
        made = torch.where(mask, made.float(), true)  # what was seen is known
        found = {"psnr": pm.psnr(made, true, mask), "moving": moving_psnr(made, true, mask), "hidden": digests(mask)}
        found["ssim"] = pm.ssim(made, true, mask) if min(size[1:]) >= pm.WINDOW else torch.full((len(rows),), torch.nan)
        ready = [normalise(values, clip).to(self.device) for values in (made, true)]
        ids = None if hidden is None else hidden.ids(rows).to(self.device)
        found["feature"] = pm.feature_distance(self.encoder, ready[0], ready[1], ids).cpu()
        found["features"] = pm.clip_features(self.encoder, ready[0]).cpu()
        if hidden is not None and hidden.name == FORECAST:
            later = mask[0].any(dim=(0, 2, 3))
            by_frame = (side[:, :, later].transpose(1, 2)[:, :, :, None] for side in (made, true))
            found["by_frame"] = pm.psnr(*by_frame)
        if self.scenes is not None:
            scenes = [self.scenes[row] for row in rows.tolist()]
            background, places = (torch.stack([scene[k] for scene in scenes]) for k in (1, 0))
            seen = bright_places(made, background)
            found["apart"], found["near"] = (seen - places).norm(dim=-1), near(seen, places, self.patch)
            found["judged"] = _at(mask, places)
        return found

    def _frames(self, found: Mapping[str, Tensor], hidden: Hidden | None) -> list[dict[str, Any]]:
        if hidden is None or "by_frame" not in found:
            return []
        frames, later, close = self.shown.pixels.shape[1], found["by_frame"].shape[1], found.get("near")
        return [
            {"frame": frame, "psnr": float(found["by_frame"][:, frame - frames].mean()),
             "near": None if close is None else float(close[:, frame].double().mean())}
            for frame in range(frames - later, frames)
        ]  # fmt: skip

    def _throughout(self, found: Mapping[str, Tensor]) -> float | None:
        if "by_frame" not in found or "near" not in found:
            return None
        return float(found["near"][:, -found["by_frame"].shape[1] :].all(dim=1).double().mean())


def digests(mask: Tensor) -> Tensor:
    """A number for the size of each clip and the pixels in question, bool ``[B, 1, T, H, W]``: int64 ``[B]``."""
    found = []
    for clip in mask.cpu().numpy():
        found.append(digest(f"{clip.shape}".encode() + np.packbits(clip).tobytes()))
    return torch.tensor(found, dtype=torch.int64)


def digest(content: bytes) -> int:
    """A number of 64 bits, with its sign, that differs where ``content`` does."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)


def values_of(pixels: Tensor) -> Callable[[Tensor], Tensor]:
    """From rows to clips of values in 0..1, of decoded ``pixels`` uint8 ``[K, T, H, W, 3]``."""
    return lambda rows: pixels[rows].movedim(-1, 1).float() / 255


def _at(mask: Tensor, places: Tensor) -> Tensor:
    """``mask`` ``[B, 1, T, H, W]`` at ``places`` ``[B, T, 2]``: bool ``[B, T]``."""
    height, width = mask.shape[-2:]
    x, y = (places * places.new_tensor([width, height])).long().unbind(-1)
    flat = mask[:, 0].flatten(2)
    return flat.gather(2, (y.clamp(0, height - 1) * width + x.clamp(0, width - 1))[..., None])[..., 0]


def moving_psnr(made: Tensor, true: Tensor, mask: Tensor) -> Tensor:
    """PSNR ``[B]`` over those pixels of ``mask`` past which something moves: whose brightness, averaged over 3 x 3,
    changes by more than ``MOVED`` over the clip; NaN where nothing does."""
    flat = F.avg_pool3d(true.mean(dim=1, keepdim=True), (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    moves = (flat.amax(dim=2, keepdim=True) - flat.amin(dim=2, keepdim=True) > MOVED) & mask
    found = torch.full((len(true),), torch.nan, dtype=torch.float64)
    some = moves.flatten(1).any(dim=1)
    if some.any():
        found[some] = pm.psnr(made[some], true[some], moves[some])
    return found


def set_distances(real: Tensor, made: Tensor) -> dict[str, float | None]:
    """Frechet and polynomial-kernel distance between features ``[K, D]`` of the ``real`` first half of the clips and
    the ``made`` second half: never the same clips, and as many on each side. With the real ones again for ``made``
    this is the floor. None for less than four clips."""
    half = len(real) // 2
    if half < 2:
        return {"frechet": None, "kernel": None}
    one, other = real[:half], made[half : 2 * half]
    return {"frechet": pm.frechet_distance(one, other), "kernel": pm.kernel_distance(one, other)}


def _mean(values: Tensor) -> float | None:
    """Of those that are numbers."""
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else None


def _median(values: Tensor) -> float | None:
    """NaN counts as infinitely far; None where that is the median, and for no values."""
    middle = float(values.nan_to_num(torch.inf).median()) if len(values) else torch.inf
    return middle if middle < torch.inf else None


def number(value: float | None, digits: int) -> str:
    """With so many digits behind the point; a dash for None."""
    return DASH if value is None else f"{value:.{digits}f}"


HEAD = ("latents", "model", "layer", "tokens", "PSNR", "moving", "SSIM", "features", "Frechet", "kernel", "near")


def cells(rows: Sequence[Mapping[str, Any]], places: str) -> list[list[str]]:
    """Lines of the table of some places, under ``HEAD``."""
    return [
        [row["what"], row["model"], DASH if row["layer"] is None else str(row["layer"]),
         DASH if row["tokens"] is None else str(row["tokens"]),
         f"{row['psnr']:.2f} [{row['low']:.2f}, {row['high']:.2f}]", number(row["moving"], 2), number(row["ssim"], 3),
         number(row["feature"], 3), number(row["frechet"], 3), number(row["kernel"], 4),
         DASH if row["near"] is None else f"{100 * row['near']:.0f}"]
        for row in rows if row["places"] == places
    ]  # fmt: skip


def table(rows: Sequence[ReconstructionRow], floor: Mapping[str, float | None]) -> str:
    """Markdown: a table for each kind of places."""
    plain, parts = [row._asdict() for row in rows], list[str]()
    for places, title in TITLES.items():
        lines = cells(plain, places)
        if lines:
            text = ["| " + " | ".join(line) + " |" for line in (HEAD, *lines)]
            parts += [title, "\n".join([text[0], "|" + "---|" * len(HEAD), *text[1:]])]
    return "\n\n".join([*parts, words(plain, floor)])


def words(rows: Sequence[Mapping[str, Any]], floor: Mapping[str, float | None]) -> str:
    """What the columns are."""
    said = (
        f"{rows[0]['clips']} test clips. PSNR in dB [95 % bootstrap interval over clips]; moving: of pixels past which "
        "something moves; features: L1 between layer-normed features of the eval's model; Frechet and kernel: "
        "distances of sets of such features (not of Inception's)"
    )
    if floor["frechet"] is not None:
        said += f", real against real {floor['frechet']:.3f} and {floor['kernel']:.4f}"
    if any(row["near"] is not None for row in rows):
        said += "; near: per cent of frames in which the object is within one patch of its true place"
    return said + "."
