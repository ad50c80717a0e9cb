"""A world model trained by two processes, with copies and in shards, is that of one process."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from made_worlds import world_settings
from ranks import outputs

from jepa.checkpoint import load_checkpoint
from jepa.config import from_dict
from jepa.train import TrainConfig, fit
from jepa.world_model import load_world_model

SCRIPT = """
import json
from jepa.config import from_dict
from jepa.train import TrainConfig, fit

for settings in json.loads('''{settings}'''):
    fit(from_dict(TrainConfig, settings))
"""


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    own = {"momentum": [0.5, 1.0], "inverse_weight": 0.5, "rollout_context": 2}
    settings = world_settings(tmp_path, **own)
    frozen = world_settings(tmp_path, encoder_from=str(tmp_path / "one"), regularizer=None, latent={"pool": [2, 2]})
    frozen.pop("encoder")
    settings["run_dir"], runs = str(tmp_path / "one"), []
    fit(from_dict(TrainConfig, settings))
    fit(from_dict(TrainConfig, {**frozen, "run_dir": str(tmp_path / "one_frozen")}))
    chosen = (("ddp", ""), ("fsdp", ""), ("fsdp", "_frozen"))
    for parallel, name in chosen:
        changed = copy.deepcopy(frozen if name else settings)
        changed["run_dir"] = str(tmp_path / f"{parallel}{name}")
        changed["train"]["parallel"] = parallel
        runs.append(changed)
    outputs(SCRIPT.format(settings=json.dumps(runs)))
    for parallel, name in chosen:
        expected = load_checkpoint(tmp_path / f"one{name}")["objective"]
        found = load_checkpoint(tmp_path / f"{parallel}{name}")["objective"]
        assert set(found) == set(expected)
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, atol=2e-4, rtol=1e-3)
        assert load_world_model(tmp_path / f"{parallel}{name}").action_dim == 2
