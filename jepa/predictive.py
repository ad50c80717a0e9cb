"""``load_predictive``: both encoders and the predictor of a model, to predict with.

Shape legend: B batch, C channels, T frames, N tokens, Nc context, Nt targets, D encoder width, L levels, O what the
predictor predicts (L*D, where another model was not its teacher).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.config import from_dict
from jepa.data.transforms import ClipTransform
from jepa.data.video import VideoError
from jepa.distributed import Run, choose_device
from jepa.feed import Cut, Feed, Origin, Task
from jepa.inputs import Video
from jepa.load import check_published, read_run
from jepa.models.encoder import Encoder
from jepa.models.predictor import Predictor
from jepa.objectives import MaskedObjective, build_objective
from jepa.precision import choose_precision
from jepa.pretrained import load_pretrained
from jepa.pretrained.loader import Pretrained
from jepa.pretrained.zoo import MODELS
from jepa.tensorfiles import CheckpointError, build_loaded, read_torch_file
from jepa.types import Batch, ClipConfig, TokenGrid
from jepa.windows import WindowRule

Measure = Literal["l1", "smooth_l1", "cosine"]
MEASURES = ("l1", "smooth_l1", "cosine")
_SAME = "one encoder for both: the file holds no other"


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictive:
    """What sees the context, what makes the targets, and what goes from one to the other; frozen, in eval mode.

    ``metadata`` says where the parts come from; it is stored with everything that is predicted.
    """

    context_encoder: Encoder
    target_encoder: Encoder
    predictor: Predictor
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def clip(self) -> ClipConfig:
        """The clip that the model was trained with."""
        return self.target_encoder.clip

    @property
    def comparable(self) -> bool:
        """Whether the predictor predicts the target encoder's own latents, so that an error can be measured."""
        return self.predictor.out_dim == self.predictor.config.levels * self.target_encoder.embed_dim

    def to(self, device: torch.device | str) -> Predictive:
        """Move the parts to ``device``."""
        for part in (self.context_encoder, self.target_encoder, self.predictor):
            part.to(device)
        return self

    def targets(self, clip: Tensor) -> Tensor:
        """Layer-normed latents of the whole ``clip`` ``[B, C, T, H, W]``, fp32 ``[B, N, O]``; each level by itself.

        Raises ``ValueError`` for a predictor whose predictions are no latents of this encoder (``comparable``).
        """
        self._check_comparable()
        return self._normed(clip, None)

    def completed(self, clip: Tensor, context_ids: Tensor, mask_token: int = 0) -> Tensor:
        """The latents of the whole clip as the context ``context_ids`` ``[B, Nc]`` tells them, fp32 ``[B, N, O]``: of
        its own places by the target encoder, which sees nothing else, of all others as predicted; layer-normed as
        ``targets`` are. Raises ``ValueError`` as that does."""
        self._check_comparable()
        grid = self.grid_of(clip)
        hidden = torch.ones(len(clip), grid.size, dtype=torch.bool, device=clip.device).scatter(1, context_ids, False)
        target_ids = hidden.nonzero()[:, 1].view(len(clip), -1)
        seen = self._normed(clip, context_ids)
        whole = seen.new_empty(len(clip), grid.size, seen.shape[-1])
        whole.scatter_(1, context_ids[..., None].expand_as(seen), seen)
        predicted = self.predict(clip, context_ids, target_ids, mask_token)
        return whole.scatter_(1, target_ids[..., None].expand_as(predicted), predicted)

    def predict(self, clip: Tensor, context_ids: Tensor, target_ids: Tensor, mask_token: int = 0) -> Tensor:
        """Latents predicted at ``target_ids`` ``[B, Nt]`` from the tokens ``context_ids`` ``[B, Nc]``: fp32 ``[B, Nt,
        O]``. Only the context's pixels are read."""
        context = torch.cat(self._levels(self.context_encoder, clip, context_ids), dim=-1)
        predicted: Tensor = self.predictor(
            context, context_ids, target_ids, mask_token=mask_token, grid=self.grid_of(clip),
            modality="image" if clip.shape[2] == 1 else "video",
        )  # fmt: skip
        return predicted.float()

    def grid_of(self, clip: Tensor) -> TokenGrid:
        """Token grid of ``clip`` ``[B, C, T, H, W]``. Raises ``ValueError`` if patches do not divide it."""
        return self.context_encoder.grid_of(clip.shape)

    def _check_comparable(self) -> None:
        if not self.comparable:
            raise ValueError(
                f"surprise is not defined for {self.metadata.get('model', 'this model')}: its predictor gives "
                f"{self.predictor.out_dim} numbers per token, the latents of a teacher that the file does not hold, "
                f"and its own encoder {self.predictor.config.levels} x {self.target_encoder.embed_dim}. "
                "Predictions can be had (jepa.predict), their errors cannot"
            )

    def _normed(self, clip: Tensor, ids: Tensor | None) -> Tensor:
        levels = [tokens.float() for tokens in self._levels(self.target_encoder, clip, ids)]
        return torch.cat([F.layer_norm(tokens, tokens.shape[-1:]) for tokens in levels], dim=-1)

    def _levels(self, encoder: Encoder, clip: Tensor, ids: Tensor | None) -> list[Tensor]:
        """The outputs that the predictor works on, ``[B, N or Nc, D]`` each, from the lowest level up."""
        count = self.predictor.config.levels
        if count == 1:
            return [encoder(clip, ids)]
        return encoder(clip, ids, layers=encoder.config.levels[-count:])


def token_errors(predicted: Tensor, target: Tensor, measure: Measure = "l1") -> Tensor:
    """Error per token ``[...]`` of ``predicted`` against ``target``, both ``[..., D]``.

    "l1" (V-JEPA) and "smooth_l1" (I-JEPA) are means over the width, as in the losses; "cosine" is 1 - cosine.
    """
    if measure == "l1":
        return (predicted - target).abs().mean(dim=-1)
    if measure == "smooth_l1":
        return F.smooth_l1_loss(predicted, target.expand_as(predicted), reduction="none").mean(dim=-1)
    if measure == "cosine":
        return 1 - F.cosine_similarity(predicted, target, dim=-1)
    raise ValueError(f"measure must be one of {', '.join(MEASURES)}, not {measure!r}")


def load_predictive(
    model: str | os.PathLike[str] | Pretrained | Predictive, family: str | None = None, **architecture: Any
) -> Predictive:
    """The parts that predict, frozen, on the CPU, in eval mode.

    ``model``: a run directory or checkpoint of this toolkit (objective "masked"); the name of a published model; a
    published file, with its ``family`` and ``architecture`` as in ``jepa.load_pretrained``; a folder in the
    ``transformers`` layout; or what ``jepa.load_pretrained`` returned. The trained encoder sees the context, the
    averaged one makes the targets; where there is one encoder only, it does both, and ``metadata["note"]`` says so.

    Raises ``CheckpointError`` (a ``ValueError``) naming what cannot be loaded, or has no predictor of hidden places.
    """
    if isinstance(model, Predictive):
        return model
    if isinstance(model, Pretrained):
        return _from_pretrained(model, None)
    if not isinstance(model, (str, os.PathLike)):
        kind = type(model).__name__
        raise CheckpointError(
            f"an object of class {kind} has no predictor: give the run directory, file or name that jepa.load was "
            "given, or what jepa.load_pretrained or load_predictive returned"
        )
    name = os.fspath(model)
    if name.startswith("timm:"):
        raise CheckpointError(f"{name} has no predictor: timm models are encoders only")
    if os.path.isfile(os.path.join(name, "config.json")):
        return _from_pretrained(load_pretrained(name, "transformers"), None)
    if family is None and os.path.exists(name):
        return _from_run(name)
    if family is None:
        check_published(name)
    return _from_published(name, family, architecture)


def prepare(
    model: str | os.PathLike[str] | Pretrained | Predictive, mask_token: int, measure: Measure, device: str,
    precision: str,
) -> tuple[Predictive, Run]:  # fmt: skip
    """A model on its device and where that is, with the arguments that ``predict`` and ``surprise`` share checked."""
    if measure not in MEASURES:
        raise ValueError(f"measure must be one of {', '.join(MEASURES)}, not {measure!r}")
    place = choose_device(device)
    run = Run(place, choose_precision(precision, place))
    parts = load_predictive(model).to(place)
    count = len(parts.predictor.mask_tokens)
    if not 0 <= mask_token < count:
        raise ValueError(f"mask_token {mask_token} does not exist: the predictor has {count}, counted from 0")
    return parts, run


def batches(
    parts: Predictive, videos: Sequence[Video], clip: ClipConfig, rule: WindowRule | None, batch_size: int,
    normalised: bool, device: torch.device,
) -> Iterator[tuple[Tensor, list[Origin]]]:  # fmt: skip
    """Clips as the model takes them, ``[n, C, T, H, W]`` on ``device``, and where each came from.

    The windows of ``rule``, or (None) the middle clip of each video; the next batch is decoded meanwhile. Raises
    ``VideoError`` naming a file that cannot be read to its end.
    """
    config = parts.context_encoder.config
    tubelet = min(config.tubelet_size, clip.num_frames)
    yield from clip_batches(videos, clip, tubelet, config.patch_size, rule, batch_size, normalised, device)


def clip_batches(
    videos: Sequence[Video], clip: ClipConfig, tubelet: int, patch: int, rule: WindowRule | None, batch_size: int,
    normalised: bool, device: torch.device,
) -> Iterator[tuple[Tensor, list[Origin]]]:  # fmt: skip
    """As ``batches``, for any model, of which frames of a ``tubelet`` and pixels of a ``patch`` are known."""
    cut = Cut(clip=clip, tubelet=tubelet, segments=1, rule=rule, normalised=normalised)
    transform = ClipTransform(clip, None, patch)
    tasks = [Task(number, video) for number, video in enumerate(videos)]
    for work in Feed(tasks, cut, batch_size, workers=0, pin=False):
        failed = [end.reason for end in work.ends if end.reason]
        if failed:
            raise VideoError(failed[0])
        if work.clips is not None:
            moved = work.clips.to(device)
            yield transform(moved).clip if isinstance(moved, Batch) else moved, work.origins


def _from_run(path: str) -> Predictive:
    """A checkpoint of ours, rebuilt from its stored config."""
    from jepa.train import TrainConfig  # the loop and its loggers, which no other model needs

    file, state = read_run(path, "jepa.load_predictive")
    config = from_dict(TrainConfig, state["config"])
    objective, _ = build_loaded(
        lambda: build_objective(config.objective, config.encoder, config.clip, len(config.masks)), state["objective"],
        file,
    )  # fmt: skip
    if not isinstance(objective, MaskedObjective):
        raise CheckpointError(
            f"{file}: objective {config.objective.kind!r} has no predictor of latents, only {{kind: masked}} has; the "
            "encoder alone comes with jepa.load"
        )
    objective.predictor.note_untrained()
    metadata = {
        "model": path, "step": state["step"], "weights": {"context": "encoder", "target": "target_encoder"},
        "mask_families": [mask.kind for mask in config.masks],
    }  # fmt: skip
    return Predictive(
        context_encoder=objective.encoder, target_encoder=objective.target_encoder, predictor=objective.predictor,
        metadata=metadata,
    )  # fmt: skip


def _from_published(name: str, family: str | None, architecture: Mapping[str, Any]) -> Predictive:
    """A published file: its averaged encoder and predictor, and its trained encoder where it has that, too."""
    averaged = load_pretrained(name, family, weights=None if name in MODELS else "target_encoder", **architecture)
    trained = None
    if averaged.family != "transformers" and averaged.weights != "encoder" and averaged.predictor is not None:
        entries = read_torch_file(averaged.path, mmap=True)
        if isinstance(entries.get("encoder"), Mapping):
            trained = load_pretrained(name, family, weights="encoder", **architecture).encoder
    predictive = _from_pretrained(averaged, trained)
    return replace(predictive, metadata={**predictive.metadata, "model": name})


def _from_pretrained(loaded: Pretrained, trained: Encoder | None) -> Predictive:
    """``loaded`` with ``trained`` for the context, or, without one, with its only encoder for both."""
    path, encoder, predictor = Path(loaded.path), loaded.encoder, loaded.predictor
    if encoder is None or predictor is None:
        raise CheckpointError(f"{path} holds no {'encoder' if encoder is None else 'predictor'}: it cannot predict")
    if not isinstance(predictor, Predictor):
        raise CheckpointError(
            f"{path} has an action-conditioned predictor, which predicts from actions and not at hidden places; "
            "`jepa plan`, a later command, is for these models. Call it as jepa.load_pretrained(...).predictor"
        )
    own = loaded.weights or "encoder"
    weights = {"context": own if trained is None else "encoder", "target": own}
    metadata: dict[str, Any] = {"model": str(path), "family": loaded.family, "weights": weights}
    if trained is None:
        metadata["note"] = _SAME
    return Predictive(
        context_encoder=encoder if trained is None else trained, target_encoder=encoder, predictor=predictor,
        metadata=metadata,
    )  # fmt: skip
