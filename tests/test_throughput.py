"""Speeds of a run: FLOPs against torch's own counter, peaks of devices, figures in the log, the profile."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_settings
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jepa.checkpoint import load_checkpoint
from jepa.compiling import compile_parts, graphs_made, mask_shapes
from jepa.config import from_dict, merge
from jepa.distributed import Run
from jepa.logging import read_metrics
from jepa.masks import IJepaConfig, MultiBlockConfig, build_masks
from jepa.models import EncoderConfig, PredictorConfig
from jepa.models.recompute import set_recompute
from jepa.objectives import MaskedConfig, Objective, PixelsConfig, build_objective
from jepa.session import build, train_step
from jepa.throughput import Meter, device_peak, listed_peak, measured_peak, peak_memory_gib, speed_text
from jepa.train import TrainConfig, fit
from jepa.types import Batch, ClipConfig, TokenGrid

CLIP = ClipConfig(num_frames=4, fps=4, crop_size=32)
NARROW = PredictorConfig(embed_dim=24, depth=2, num_heads=2)
ENCODER = EncoderConfig(embed_dim=48, depth=2, num_heads=4, patch_size=8)
FAMILIES = (MultiBlockConfig(num_blocks=2, scale=(0.2, 0.2)), MultiBlockConfig(num_blocks=1, scale=(0.5, 0.5)))


def batch_of(objective: Objective, families: tuple[Any, ...], clips: int = 3) -> Batch:
    rng = np.random.default_rng(0)
    masks = [family.draw(rng, clips) for family in build_masks(families, objective.encoder.grid)]
    return Batch(clip=torch.randn(clips, 3, CLIP.num_frames, 32, 32), masks=masks)


def counted(objective: Objective, batch: Batch) -> int:
    """Forward and backward by torch's counter; attention as plain products, whose backward pass is two forward ones."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(batch, 0.0).total.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
@pytest.mark.parametrize("kind", ["masked", "pixels"])
def test_flops_are_those_that_torch_counts(kind: str, mlp: str) -> None:
    config = MaskedConfig(predictor=NARROW) if kind == "masked" else PixelsConfig(decoder=NARROW)
    encoder = EncoderConfig(embed_dim=48, depth=2, num_heads=4, patch_size=8, mlp=mlp)  # type: ignore[arg-type]
    objective = build_objective(config, encoder, CLIP, 2)
    batch = batch_of(objective, FAMILIES)
    work = objective.work(batch)
    assert work.flops == counted(objective, batch)
    context = sum(mask.context_ids.numel() for mask in batch.masks)
    assert work.tokens == context + (3 * objective.encoder.grid.size if kind == "masked" else 0)


def test_flops_of_several_target_blocks_and_of_recomputation() -> None:
    """I-JEPA predicts its blocks apart; what is computed again is work of the device, not of the model."""
    objective = build_objective(MaskedConfig(predictor=NARROW), ENCODER, CLIP, 1)
    batch = batch_of(objective, (IJepaConfig(context_scale=(0.9, 1.0), target_scale=(0.15, 0.2)),))
    assert batch.masks[0].target_ids.shape[1] == 4
    work = objective.work(batch)
    assert work.flops == counted(objective, batch)
    set_recompute(objective, "full")
    assert counted(objective, batch) > 1.1 * work.flops


def test_peaks_by_the_names_that_torch_gives() -> None:
    bf16 = {
        "NVIDIA A100-SXM4-80GB": 312, "NVIDIA H100 80GB HBM3": 989.4, "NVIDIA H100 PCIe": 756, "NVIDIA H100 NVL": 835.5,
        "NVIDIA H200": 989.4, "NVIDIA B200": 2250, "NVIDIA L4": 121, "NVIDIA L40S": 362.1, "NVIDIA A10": 125,
        "NVIDIA GeForce RTX 4090": 165.2,
    }  # fmt: skip
    for name, tflops in bf16.items():
        peak = listed_peak(name, "bf16")
        assert peak is not None
        assert peak.flops == pytest.approx(tflops * 1e12)
        assert name in peak.source
    tf32 = listed_peak("NVIDIA A100 80GB PCIe", "tf32")
    assert tf32 is not None
    assert tf32.flops == 156e12
    assert listed_peak("NVIDIA H200", "fp16") == (989.4e12, "data sheet of NVIDIA H200, dense fp16")
    for name in ("NVIDIA A10G", "NVIDIA GeForce RTX 4090 D", "NVIDIA A1000", "Some Device"):
        assert listed_peak(name, "bf16") is None  # a likeness is no entry: the peak is measured
    assert listed_peak("Tesla T4", "bf16") is None  # no bf16 units


def test_the_cpu_is_measured_and_called_so() -> None:
    peak = device_peak(torch.device("cpu"), "fp32")
    assert peak.source == "measured here by a fp32 product of 1024 x 1024 matrices"
    assert 1e9 < peak.flops < 1e14
    assert measured_peak(torch.device("cpu"), "fp32") is peak  # once per process


def test_peak_memory_is_that_of_the_process() -> None:
    status = Path("/proc/self/status").read_text()
    peak_kib = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    assert peak_memory_gib(torch.device("cpu")) == pytest.approx(peak_kib / 2**20, rel=0.05)


def test_the_log_has_all_figures_and_they_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepa.throughput.device_peak", lambda device, precision: measured_peak(device, precision))
    settings = tiny_settings(tmp_path, steps=6, log_every=3)
    config = from_dict(TrainConfig, settings)
    fit(config)
    first, second = (r for r in read_metrics(tmp_path / "run") if "loss" in r)
    assert first["time/warmup_steps"] == 1
    assert first["time/warmup_s"] > 0
    assert "time/warmup_s" not in second
    peak = measured_peak(torch.device("cpu"), "fp32")
    for record in (first, second):
        assert record["time/clips_per_s"] == pytest.approx(4 / record["time/step_s"])
        assert record["time/clips_per_s_per_device"] == record["time/clips_per_s"]
        assert record["time/tflops_per_device"] == pytest.approx(record["time/step_tflop"] / record["time/step_s"])
        assert record["time/mfu"] == pytest.approx(record["time/tflops_per_device"] * 1e12 / peak.flops)
        # a 2 x 4 x 4 grid: 32 tokens of the targets, and two contexts of fewer
        assert 32 < record["time/tokens_per_s"] * record["time/step_s"] / 4 < 96
        assert 0 <= record["time/data_wait_share"] < 1
        assert record["memory/peak_gib"] > 0.1
    said = (tmp_path / "run" / "log.txt").read_text()
    assert "for 1 of 3 steps" in said
    assert "MFU 100% is" in said
    assert "measured here by a fp32 product" in said
    assert speed_text({**second, "time/data_wait_share": 0.2}).endswith("data wait 20%")
    assert "wait" not in speed_text({**second, "time/data_wait_share": 0.01})


# ---- profile ---------------------------------------------------------------------------------------------------------


def test_a_profile_changes_nothing_and_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {}
    for name in ("plain", "traced"):
        folder = tmp_path / name
        folder.mkdir()
        settings = tiny_settings(folder, steps=8, log_every=4)
        weights[name] = load_checkpoint(fit(from_dict(TrainConfig, settings), profile=name == "traced"))["objective"]
    assert all(torch.equal(tensor, weights["plain"][name]) for name, tensor in weights["traced"].items())
    printed = capsys.readouterr().out
    assert "CPU time by operator" in printed
    assert 8 <= len(printed.splitlines()) <= 14
    trace = json.loads(gzip.decompress((tmp_path / "traced/run/profile/rank0.json.gz").read_bytes()))
    names = [str(event.get("name")) for event in trace["traceEvents"]]
    steps = {name for name in names if name.startswith("ProfilerStep#")}
    assert len(steps) == 3
    assert sum("addmm" in name for name in names) > 3 * 10
    assert "perfetto" in (tmp_path / "traced/run/log.txt").read_text()


def test_a_run_too_short_for_a_profile_says_so(settings: dict[str, Any]) -> None:
    fit(from_dict(TrainConfig, merge(settings, {"train": {"steps": 4}})), profile=True)
    assert "no profile: it needs" in (Path(settings["run_dir"]) / "log.txt").read_text()


# ---- compilation -----------------------------------------------------------------------------------------------------

FIXED = MultiBlockConfig(num_blocks=2, scale=(0.2, 0.2), aspect_ratio=(1.0, 1.0), levels=1)


def test_which_masks_have_one_shape() -> None:
    grid = TokenGrid(4, 8, 8)
    (fixed,) = build_masks([FIXED], grid)
    (varied,) = build_masks([MultiBlockConfig(num_blocks=2, scale=(0.2, 0.2))], grid)
    assert len(mask_shapes(fixed)) == 1
    assert len(mask_shapes(varied)) > 1


def test_compile_is_static_where_masks_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, dynamic=None: asked.append(dynamic))
    objective = build_objective(MaskedConfig(predictor=NARROW), ENCODER, CLIP, 1)
    grid = TokenGrid(4, 8, 8)
    assert compile_parts(objective, build_masks([FIXED], grid))
    assert not compile_parts(objective, build_masks([FIXED, MultiBlockConfig(num_blocks=2)], grid))
    assert asked == [False] * 3 + [None] * 3


def test_a_compiled_run_reports_its_warm_up(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the eager backend: the graphs are traced, no code is generated. Same losses as without."""
    plain = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: plain(self, backend="eager", **options))
    torch._dynamo.reset()
    masks = [{"kind": "multiblock", "num_blocks": 2, "scale": [0.2, 0.2], "aspect_ratio": [1.0, 1.0], "levels": 1}]
    settings |= {"masks": masks, "encoder": {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8}}
    losses, figures = {}, {}
    for compiled in (False, True):
        config = from_dict(TrainConfig, merge(settings, {"train": {"compile": compiled}}))
        session, before = build(config, Run(torch.device("cpu"), "fp32")), graphs_made()
        batches, meter, losses[compiled] = session.loader.iterate(0), Meter(session), []
        for step in range(4):
            batch = next(batches)
            losses[compiled].append(train_step(session, batch, step)["loss"].item())
            meter.stepped(batch, torch.tensor(0.0))
        batches.close()
        figures[compiled] = meter.figures()
        assert (graphs_made() > before) == compiled
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert figures[True]["time/warmup_steps"] == 1
    assert figures[True]["time/warmup_s"] > 2 * figures[True]["time/step_s"]
