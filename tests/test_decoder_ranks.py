"""A decoder trained by two processes, with copies and in shards, is that of one process."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from made_worlds import world_settings
from ranks import outputs
from support import tiny_settings

from jepa.checkpoint import load_checkpoint
from jepa.config import from_dict
from jepa.decoding import load_decoder
from jepa.logging import read_metrics
from jepa.train import TrainConfig, fit

SCRIPT = """
import json
from jepa.config import from_dict
from jepa.train import TrainConfig, fit

for settings in json.loads('''{settings}'''):
    fit(from_dict(TrainConfig, settings))
"""
SMALL = {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8}
LOOP = {"device": "cpu", "precision": "fp32", "steps": 4}
KINDS = ("masked", "world", "flow")


def train(settings: dict[str, Any]) -> None:
    fit(from_dict(TrainConfig, settings))


def settings_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Of decoders over a masked model (with a perceptual loss), over a world model, and of a generative one."""
    masked, world = tiny_settings(folder, **LOOP), world_settings(folder)
    world["train"] |= {"steps": 2}
    train({**masked, "run_dir": str(folder / "base"), "train": {**masked["train"], "steps": 2}})
    train({**world, "run_dir": str(folder / "base-world")})
    own = {key: value for key, value in masked.items() if key not in ("encoder", "masks")}
    own |= {"monitor": {"every": 4, "clips": 4}}
    frames = {key: value for key, value in world.items() if key != "encoder"}
    frames["train"] = {**frames["train"], "steps": 4}

    def decoder(model: str, **objective: Any) -> dict[str, Any]:
        return {"kind": "decoder", "model": str(folder / model), "loss": "mse", **objective}

    net, flow = {"kind": "deterministic", **SMALL}, {"kind": "flow", **SMALL}
    return {
        "masked": {**own, "objective": decoder("base", decoder=net, perceptual_weight=0.2)},
        "world": {**frames, "objective": decoder("base-world", decoder={**net, "tubelet_size": 1})},
        "flow": {**own, "objective": decoder("base", decoder=flow, loss="l1")},
    }


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    settings, runs = settings_of(tmp_path), []
    for name in KINDS:
        train({**settings[name], "run_dir": str(tmp_path / name)})
        for parallel in ("ddp", "fsdp"):
            changed = copy.deepcopy(settings[name])
            changed["run_dir"] = str(tmp_path / f"{name}-{parallel}")
            changed["train"]["parallel"] = parallel
            runs.append(changed)
    outputs(SCRIPT.format(settings=json.dumps(runs)))
    for name in KINDS:
        expected = load_checkpoint(tmp_path / name)["objective"]
        copies = load_checkpoint(tmp_path / f"{name}-ddp")["objective"]
        shards = load_checkpoint(tmp_path / f"{name}-fsdp")["objective"]
        assert set(shards) == set(copies) == set(expected)
        for key, tensor in expected.items():
            torch.testing.assert_close(shards[key], copies[key], atol=2e-4, rtol=1e-3)
            if name != "flow":  # whose noise every process draws for itself
                torch.testing.assert_close(copies[key], tensor, atol=2e-4, rtol=1e-3)
            if not key.startswith("decoder."):
                assert torch.equal(shards[key], tensor), f"{key} is frozen"
        for parallel in ("ddp", "fsdp"):
            loaded = load_decoder(tmp_path / f"{name}-{parallel}")
            assert loaded.fingerprint == load_decoder(tmp_path / name).fingerprint
            one, two = (read_metrics(tmp_path / run)[-1] for run in (name, f"{name}-{parallel}"))
            if name != "flow":
                assert abs(one["monitor/psnr"] - two["monitor/psnr"]) < 0.02
