"""``load_pretrained``: a published checkpoint as an encoder, a predictor and a probe of this toolkit."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jepa.models.action_predictor import ActionPredictor
from jepa.models.attentive import AttentiveProbe
from jepa.models.encoder import Encoder
from jepa.models.predictor import Predictor
from jepa.pretrained import layouts
from jepa.pretrained.architecture import (
    Architecture,
    build_encoder,
    build_predictor,
    build_probe,
    default_clip,
    read_architecture,
)
from jepa.pretrained.download import cached_file
from jepa.pretrained.zoo import MODELS, PublishedModel
from jepa.tensorfiles import CheckpointError, build_loaded, read_torch_file
from jepa.types import ClipConfig

log = logging.getLogger("jepa")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrained:
    """The parts that a published checkpoint has (None for the others), frozen, on the CPU, in eval mode.

    ``encoder(clip [B, C, T, H, W]) -> [B, N, D]``; ``predictor(context_tokens, context_ids, target_ids) -> [B, Nt, D]``
    or, of V-JEPA 2-AC, ``predictor(latents, actions, states)``; ``probe(tokens [B, N, D]) -> logits``.
    ``weights``: the file's entry that the encoder came from. ``ignored``: keys of the file that were not used, or of
    the model that the file lacks, with the reason; empty unless they are known to be unused, or were allowed.
    """

    family: str
    path: str
    encoder: Encoder | None = None
    predictor: Predictor | ActionPredictor | None = None
    probe: AttentiveProbe | None = None
    weights: str | None = None
    ignored: dict[str, str] = field(default_factory=dict)


def load_pretrained(
    path: str | os.PathLike[str],
    family: str | None = None,
    *,
    weights: str | None = None,
    allow: Sequence[str] = (),
    classifier: int | None = None,
    clip: ClipConfig | None = None,
    **architecture: Any,
) -> Pretrained:
    """Load a published checkpoint, strictly, into the parts of this toolkit.

    ``path``: the file (for ``family="transformers"`` the folder), or a name of ``jepa.list_models()``, which needs
    nothing more. ``family``: ijepa, vjepa, vjepa2, vjepa2_ac, vjepa2_1, probe or transformers. ``architecture``: the
    model's shape, by the keys of ``jepa.pretrained.architecture.Architecture`` (embed_dim, depth, num_heads, ...).
    ``weights``: "target_encoder" (the averaged encoder, the default), "encoder" (the trained one), or "ema_encoder",
    another name for the first. ``allow``: patterns of keys that may be missing, unexpected or mis-shaped; what was
    passed over is logged and listed in ``ignored``. ``classifier``: which probe of a file that holds several.
    ``clip``: the preprocessing, where it is not the published one.

    Raises ``CheckpointError`` naming the file, and the keys that do not fit; ``ConfigError`` for the arguments.
    """
    name = os.fspath(path)
    if name in MODELS and not os.path.exists(name):
        return _load_published(MODELS[name], weights, allow, classifier, clip, architecture)
    if family == "transformers":
        from jepa.pretrained.transformers_layout import load_transformers

        return load_transformers(name, clip=clip, allow=allow)
    arch = read_architecture(family, architecture)
    if not os.path.isfile(name):
        raise CheckpointError(f"{name} is neither a file nor a published model; `jepa models` lists the names")
    entries = layouts.check_family(read_torch_file(name, mmap=True), arch.family, name)
    if arch.family == "probe":
        return _load_probe(entries, arch, name, classifier, allow)
    chosen = layouts.choose_weights(entries, weights or arch.expected_outputs_from or "target_encoder", name)
    return _load_parts(entries, arch, name, chosen, clip or default_clip(arch), allow)


def _load_published(
    model: PublishedModel, weights: str | None, allow: Sequence[str], classifier: int | None, clip: ClipConfig | None,
    architecture: Mapping[str, Any],
) -> Pretrained:  # fmt: skip
    """A named model from the cache, downloading it first where it is not there."""
    if architecture:
        raise CheckpointError(f"{model.name} is a published model: leave out {', '.join(architecture)}")
    file = cached_file(model)
    if model.family == "transformers":
        return load_pretrained(file, "transformers", allow=allow, clip=clip or model.clip)
    return load_pretrained(
        file, model.family, weights=weights or model.weights, allow=allow, classifier=classifier,
        clip=clip or model.clip, **model.architecture,
    )  # fmt: skip


def _load_parts(
    entries: Mapping[str, Any], arch: Architecture, path: str, weights: str, clip: ClipConfig, allow: Sequence[str]
) -> Pretrained:
    """Encoder and predictor of a trainer's file."""
    patterns = (*layouts.UNUSED.get(arch.family, ()), *allow)
    tensors = layouts.encoder_tensors(entries[weights], arch.family)
    encoder, ignored = build_loaded(
        lambda: build_encoder(arch, clip), tensors, path, part="encoder", allow=patterns
    )
    predictor = None
    if isinstance(entries.get("predictor"), Mapping):
        tensors = layouts.predictor_tensors(entries["predictor"], arch.family)
        predictor, passed_over = build_loaded(
            lambda: build_predictor(arch, encoder), tensors, path, part="predictor", allow=patterns
        )
        ignored |= passed_over
        if isinstance(predictor, Predictor):
            predictor.note_untrained()
    _say(ignored, path)
    return Pretrained(
        family=arch.family, path=path, encoder=encoder, predictor=predictor, weights=weights, ignored=ignored
    )


def _load_probe(
    entries: Mapping[str, Any], arch: Architecture, path: str, classifier: int | None, allow: Sequence[str]
) -> Pretrained:
    tensors = layouts.probe_tensors(entries, classifier, path)
    assert tensors is not None, "check_family saw a classifier"
    if arch.num_classes is None and not arch.classifiers:
        arch = replace(arch, classifiers=layouts.classifier_sizes(tensors))
    patterns = (*layouts.UNUSED["probe"], *allow)
    probe, ignored = build_loaded(lambda: build_probe(arch), tensors, path, part="probe", allow=patterns)
    _say(ignored, path)
    return Pretrained(family="probe", path=path, probe=probe, ignored=ignored)


def _say(ignored: Mapping[str, str], path: str) -> None:
    for key, why in ignored.items():
        log.warning("%s: %s %s; left as it is", path, key, why)
