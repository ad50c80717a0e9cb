"""Probes as they were published, on test clips alone: nothing is fitted, nothing is standardised."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from evals import metrics
from evals.features.rows import Rows
from evals.probes import HeadScore, ProbeConfig, ProbeResult, preprocess
from evals.probes.fitting import mean_probability
from jepa.models.attentive import AttentiveProbe
from jepa.pretrained import find_model, layouts, load_pretrained
from jepa.tensorfiles import read_torch_file


def open_published(config: ProbeConfig) -> tuple[AttentiveProbe, tuple[int, ...] | None]:
    """The probe that ``config.file`` names, on the CPU, and the blocks whose tokens it reads (None: the last alone).

    A published name knows its shape; a file tells all of it but the attention heads, which ``config.attention_heads``
    says. Raises ``ValueError`` where they are missing or the file is none of a probe.
    """
    assert config.file is not None
    if not os.path.exists(config.file):
        model = find_model(config.file)
        if model.family != "probe":
            raise ValueError(f"{config.file} is an encoder, not a probe; `jepa models` lists the probes")
        probe, levels = load_pretrained(config.file).probe, model.layers
    else:
        entries = layouts.check_family(read_torch_file(config.file, mmap=True), "probe", config.file)
        if config.attention_heads is None:
            raise ValueError(
                f"attention_heads of {config.file} are missing: the file does not say them (V-JEPA: 16): "
                "--set probes.0.attention_heads=16"
            )
        tensors = layouts.probe_tensors(entries, None, config.file)
        assert tensors is not None, "check_family saw a classifier"
        width = tensors["pooler.query_tokens"].shape[-1]
        shape = {
            "embed_dim": width, "num_heads": config.attention_heads,
            "depth": 1 + len({name.split(".")[2] for name in tensors if name.startswith("pooler.blocks.")}),
            "mlp_ratio": len(tensors["pooler.cross_attention_block.mlp.fc1.weight"]) / width,
        }  # fmt: skip
        if "linear.weight" in tensors:
            shape["num_classes"] = len(tensors["linear.weight"])
        probe, levels = load_pretrained(config.file, "probe", **shape).probe, None
    assert probe is not None
    return probe.eval().requires_grad_(False), levels


def score_published(
    config: ProbeConfig, test: Tensor | Rows, test_labels: Tensor, label: str, names: Sequence[str],
    levels: Sequence[int] | None = None, device: torch.device | None = None,
) -> ProbeResult:  # fmt: skip
    """The answers of a published probe to ``test``: tokens as its encoder's last norm gives them, as ``fit_probe``
    takes them. Probabilities are means over views.

    ``names``: of the classes, in the order of the probe's. A probe with several classifiers (verb, noun, action)
    answers with the one called ``label``. ``levels``: blocks whose tokens stand side by side along the width; the probe
    reads them one after the other. Raises ``ValueError`` where widths, blocks or classes do not fit.
    """
    began = time.perf_counter()
    probe, wanted = open_published(config)
    rows = Rows.of(test)
    blocks = tuple(levels or ())
    if wanted is not None and blocks != wanted:
        raise ValueError(f"{config.file} reads the blocks {wanted}: set layers to them, not to {blocks or None}")
    width, folds = probe.config.embed_dim, len(wanted or ()) or 1
    if rows.shape[-1] != width * folds:
        raise ValueError(
            f"{config.file} takes tokens {width} wide of {folds} block(s), but the encoder's are {rows.shape[-1]} wide "
            "in all: it was published with another encoder, or for other layers"
        )
    classes = _classes(probe, config, label)
    if len(names) != classes:
        raise ValueError(f"{config.file} knows {classes} classes, but {label!r} has {len(names)} in this data")
    place = device or rows.device
    probe = probe.to(place)
    labels = test_labels.cpu()
    answers = []
    for x in preprocess.Inputs(rows, place, name="test").chunks(torch.arange(len(rows))):
        tokens = x.flatten(0, 1).float().unflatten(-1, (folds, width)).transpose(1, 2).flatten(1, 2)
        with torch.inference_mode():
            logits = probe(tokens)
        logits = logits if isinstance(logits, Tensor) else logits[label]
        answers.append(mean_probability(logits.log_softmax(dim=-1)[None].unflatten(1, x.shape[:2]))[0].exp().cpu())
    probabilities = torch.cat(answers)
    predictions = probabilities.argmax(dim=-1)
    accuracy = metrics.accuracy(predictions, labels)
    return ProbeResult(
        kind=config.kind, accuracy=accuracy, error=metrics.standard_error(accuracy, len(labels)),
        chance=metrics.chance(labels, labels), chosen={}, heads=[HeadScore({}, None, None)], predictions=predictions,
        probabilities=probabilities, head_predictions=predictions[None], num_train=0, num_test=len(labels),
        num_classes=classes, seconds=time.perf_counter() - began,
    )  # fmt: skip


def _classes(probe: AttentiveProbe, config: ProbeConfig, label: str) -> int:
    if probe.config.num_classes is not None:
        return probe.config.num_classes
    known = probe.config.classifiers
    if label not in known:
        raise ValueError(f"{config.file} answers for {', '.join(known)}; there is no {label!r}: set labels to these")
    return known[label]
