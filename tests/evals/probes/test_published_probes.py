"""Published probes on test clips alone, against the golden file of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evals.probes import ProbeConfig
from evals.probes.published import open_published, score_published
from jepa.models.attentive import AttentiveConfig, AttentiveProbe

GOLDEN = Path(__file__).parents[2] / "golden" / "probe"
CONFIG = ProbeConfig(kind="published", file=str(GOLDEN / "checkpoint.pt"), attention_heads=2)
NAMES = [f"class {number}" for number in range(11)]


def saved(path: Path, config: AttentiveConfig) -> tuple[AttentiveProbe, ProbeConfig]:
    """A random probe in the layout of the published files."""
    torch.manual_seed(0)
    probe = AttentiveProbe(config).eval()
    state = {}
    for name, value in probe.state_dict().items():
        parts = name.split(".")
        head = f"{parts[1]}_classifier.{parts[2]}" if parts[0] == "classifiers" else name
        state[f"module.{head}"] = value
    torch.save({"classifiers": [state]}, path)
    return probe, ProbeConfig(kind="published", file=str(path), attention_heads=config.num_heads)


def test_answers_are_those_of_the_golden_file() -> None:
    io = load_file(GOLDEN / "io.safetensors")
    probe, levels = open_published(CONFIG)
    assert (probe.config.depth, probe.config.num_classes, levels) == (4, 11, None)
    expected = io["logits"].softmax(dim=-1)
    label = io["logits"].argmax(dim=-1)
    result = score_published(CONFIG, io["tokens"], label, "label", NAMES)
    torch.testing.assert_close(result.probabilities, expected, rtol=1e-4, atol=1e-5)
    assert (result.accuracy, result.num_train, result.heads[0].accuracy) == (1.0, 0, None)
    # two views: the mean of the probabilities, not the probabilities of anything averaged
    views = torch.stack((io["tokens"], io["tokens"].flip(-1)), dim=1)
    other = probe(io["tokens"].flip(-1)).softmax(dim=-1)
    result = score_published(CONFIG, views, label, "label", NAMES)
    torch.testing.assert_close(result.probabilities, (expected + other) / 2, rtol=1e-4, atol=1e-5)


def test_a_probe_with_several_classifiers_answers_for_each_label(tmp_path: Path) -> None:
    shape = AttentiveConfig(embed_dim=16, num_heads=4, depth=2, classifiers={"verb": 3, "noun": 5, "action": 7})
    probe, config = saved(tmp_path / "anticipation.pt", shape)
    tokens, labels = torch.randn(6, 10, 16), torch.zeros(6, dtype=torch.int64)
    logits = probe(tokens)
    for label, classes in shape.classifiers.items():
        result = score_published(config, tokens, labels, label, NAMES[:classes])
        torch.testing.assert_close(result.probabilities, logits[label].softmax(dim=-1), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="answers for verb, noun, action; there is no 'object'"):
        score_published(config, tokens, labels, "object", NAMES[:3])


def test_several_blocks_are_read_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe, config = saved(tmp_path / "probe.pt", AttentiveConfig(embed_dim=16, num_heads=4, num_classes=3))
    monkeypatch.setattr("evals.probes.published.open_published", lambda config: (probe, (5, 7)))
    levels = [torch.randn(6, 10, 16) for _ in range(2)]
    labels = torch.zeros(6, dtype=torch.int64)
    result = score_published(config, torch.cat(levels, dim=-1), labels, "label", NAMES[:3], (5, 7))
    expected = probe(torch.cat(levels, dim=1)).softmax(dim=-1)
    torch.testing.assert_close(result.probabilities, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"reads the blocks \(5, 7\): set layers to them, not to None"):
        score_published(config, levels[0], labels, "label", NAMES[:3])


def asked(tokens: Tensor, names: list[str], config: ProbeConfig = CONFIG) -> None:
    score_published(config, tokens, torch.zeros(len(tokens), dtype=torch.int64), "label", names)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    tokens = torch.randn(2, 9, 64)
    with pytest.raises(ValueError, match=r"knows 11 classes, but 'label' has 10"):
        asked(tokens, NAMES[:10])
    with pytest.raises(ValueError, match=r"takes tokens 64 wide of 1 block\(s\), but the encoder's are 32 wide"):
        asked(tokens[..., :32], NAMES)
    with pytest.raises(ValueError, match=r"attention_heads of .* are missing"):
        asked(tokens, NAMES, ProbeConfig(kind="published", file=CONFIG.file))
    with pytest.raises(ValueError, match="unknown model 'vjepa_nothing'"):
        asked(tokens, NAMES, ProbeConfig(kind="published", file="vjepa_nothing"))
    with pytest.raises(ValueError, match="is an encoder, not a probe"):
        asked(tokens, NAMES, ProbeConfig(kind="published", file="vjepa2_vit_large"))
    with pytest.raises(ValueError, match="NaN or infinity"):
        asked(tokens * float("nan"), NAMES)
    with pytest.raises(ValueError, match="'published' needs file"):
        ProbeConfig(kind="published")
    with pytest.raises(ValueError, match="file is for the probe 'published', not for 'linear'"):
        ProbeConfig(file="x.pt")
