"""Every config in configs/ loads, and takes one step with its own masks, loss and schedules at a toy size; those of
evals run from end to end on a toy model and a toy copy of their data set."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from eval_layouts import LAYOUTS
from made_worlds import write_worlds
from support import tiny_settings, write_clips

from evals.main import evaluate
from evals.options import add_arguments, config_from
from evals.settings import EvalConfig
from jepa.checkpoint import load_checkpoint
from jepa.config import from_dict, load_yaml, merge
from jepa.train import TrainConfig, fit

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
EVALS = sorted((CONFIGS / "eval").rglob("*.yaml"))
RECIPES = [path for path in FILES if "base" not in path.parts and path not in EVALS]


def shrink(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe with a toy encoder, predictor, clip and source, and one step of two clips."""
    encoder = settings.get("encoder", {})
    tubelet, levels = encoder.get("tubelet_size", 2), encoder.get("levels", ())
    frames = min(int(settings["clip"].get("num_frames", 16)), max(4, 2 * tubelet))
    predictor = "decoder" if settings["objective"]["kind"] == "pixels" else "predictor"
    toy = {
        "run_dir": str(folder / "run"),
        "init_from": None,
        "clip": {"num_frames": frames, "crop_size": 64, "short_side": None},
        "data": {
            "sources": [{"path": str(write_clips(folder / "clips.npz", clips=6, frames=frames, side=64))}],
            "validation": [], "holdout": 0, "workers": 0,
        },
        "encoder": {
            "embed_dim": 24, "depth": max(1, len(levels)), "num_heads": 2, "patch_size": 8,
            "tubelet_size": min(tubelet, frames), "levels": list(range(len(levels))), "activation_checkpointing": False,
        },
        "objective": {predictor: {"embed_dim": 24, "depth": 1, "num_heads": 2}},
        "train": {
            "steps": 1, "batch_size": 2, "accumulate": 1, "device": "cpu", "precision": "fp32", "compile": False,
            "progress": "off", "tensorboard": False,
        },
    }  # fmt: skip
    if settings["objective"]["kind"] == "world_model":
        toy = merge(toy, toy_world(settings, folder))
    elif settings["objective"]["kind"] == "latent_action":
        codes = {"num_codes": 4} if settings["objective"]["bottleneck"]["kind"] == "vq" else {}
        toy = merge(toy, {"objective": {"bottleneck": codes, "rollout_steps": 2}})
    elif settings["objective"]["kind"] == "controller":
        del toy["encoder"]  # the model's
        toy |= toy_controller(folder, toy["data"])
    elif settings["objective"]["kind"] == "policy":
        del toy["encoder"]  # the model's
        toy |= toy_policy(folder, toy["data"])
    elif settings["objective"]["kind"] == "decoder":
        del toy["encoder"]  # the model's
        toy |= toy_decoder(settings["objective"]["model"], folder, toy["data"])
    if settings["objective"].get("inherit_latent"):
        del toy["encoder"]  # the model's
        toy["objective"] |= {"encoder_from": toy_latent_action(folder), "momentum": None}
    return merge(settings, toy)


def toy_decoder(model: str, folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    """The toy of the model that is decoded, trained for a step, and its data."""
    (folder / "base").mkdir()
    recipes = {"runs/demo/forecast": "demo_forecast", "runs/rooms/model": "world_model/rooms"}
    recipes["runs/rooms/latent_action"] = "world_model/rooms_latent_action"
    base = shrink(load_yaml(CONFIGS / f"{recipes[model]}.yaml"), folder / "base")
    own = {"model": str(fit(from_dict(TrainConfig, base))), "decoder": {"embed_dim": 24, "depth": 1, "num_heads": 2}}
    return {"data": {**data, "sources": base["data"]["sources"]}, "objective": own}


def toy_policy(folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    """The toy of the world model that is acted in, trained for a step, and its data."""
    (folder / "base").mkdir()
    world = shrink(load_yaml(CONFIGS / "world_model" / "rooms.yaml"), folder / "base")
    own = {"model": str(fit(from_dict(TrainConfig, world))), "goal_steps": 2, "horizon": 2}
    return {"data": {**data, "sources": world["data"]["sources"]}, "objective": own}


def toy_controller(folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    """Data with actions, and the toy of the model that is controlled, trained for a step."""
    sources = [{"path": str(write_worlds(folder / "worlds", length=16)), "trajectory": {}}]
    own = {"model": toy_latent_action(folder), "labels": 4}
    return {"data": {**data, "sources": sources}, "objective": own}


def toy_latent_action(folder: Path) -> str:
    """The toy of the latent-action model, trained for a step."""
    (folder / "base").mkdir()
    settings = load_yaml(CONFIGS / "world_model" / "rooms_latent_action.yaml")
    return str(fit(from_dict(TrainConfig, shrink(settings, folder / "base"))))


def toy_world(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What else is small in a world model: its data, whose widths are found, a short rollout, and, in the place of a
    frozen encoder of a billion weights, one that is trained along."""
    own = settings["objective"]
    joint: dict[str, Any] = {"encoder_from": None, "momentum": [0.99, 1.0]} if own.get("encoder_from") else {}
    return {
        "data": {"sources": [{"path": str(write_worlds(folder / "worlds", length=16)), "trajectory": {}}]},
        "objective": {
            **joint, "rollout_steps": min(own.get("rollout_steps", 2), 2), "state_update": "none",
            "predictor": {"action_dim": None, "state_dim": 0 if own["predictor"].get("state_dim") == 0 else None},
        },
    }  # fmt: skip


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_config_takes_a_step(path: Path, tmp_path: Path) -> None:
    settings = load_yaml(path)
    from_dict(TrainConfig, settings)  # as it stands, with every check of its values
    state = load_checkpoint(fit(from_dict(TrainConfig, shrink(settings, tmp_path))))
    assert state["step"] == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_config_is_short_and_has_a_header(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 40
    assert lines[0].startswith("# ")
    if path in RECIPES:
        header = "\n".join(line for line in lines if line.startswith("#"))
        for words in ("Command", "Hardware", "Time", "Expected|result"):
            assert any(word in header for word in words.split("|")), f"the header names no {words}"
    if path in EVALS:
        header = "\n".join(line for line in lines if line.startswith("#"))
        for word in ("Command:  jepa eval", "Source:", "Hardware:", "Expected:"):
            assert word in header, f"the header names no {word}"
        assert path.relative_to(CONFIGS.parent).as_posix() in header, "the command names another file"


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 8
    assert len(EVALS) >= 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one step (with a predictor), and every data set's toy copy, made when it is first asked for."""
    root = tmp_path_factory.mktemp("evals")
    settings = tiny_settings(root, steps=1, device="cpu", precision="fp32")
    fit(from_dict(TrainConfig, merge(settings, {"clip": {"frame_step": None, "fps": 4.0}})))
    return root


def shrink_eval(settings: dict[str, Any], world: Path, name: str) -> dict[str, Any]:
    """The eval on the toy model and data: few frames, blocks, heads and steps; everything else is its own."""
    data = (settings.get("dataset") or {}).get("name") or name
    root = world / data
    if data in LAYOUTS and not root.exists():
        LAYOUTS[data](root)
    toy: dict[str, Any] = {
        "run": str(world / "run"), "out": str(world / "out" / name), "device": "cpu", "precision": "fp32",
        "workers": 0, "batch_size": 32, "cache": True, "cache_gb": 1.0,
        "probes": [shrink_probe(probe) for probe in settings.get("probes", ({"kind": "linear"},))],
    }  # fmt: skip
    if "dataset" in settings:
        toy["dataset"] = {"root": str(root)}
    for side in {"train", "test"} & settings.keys():
        path = Path(settings[side]["path"])
        toy[side] = {"path": str(root if data == "davis2017" else root / path.name)}
    if "num_frames" in settings.get("clip", {}):
        toy["clip"] = {"num_frames": 4}
    if "layers" in settings:
        toy["layers"] = [0, 1]
    if "cells" in settings:
        toy["cells"] = [2, 2, 2]
    if "few_shot" in settings:
        toy |= {"few_shot": ["50%"], "few_shot_seeds": 2}
    if settings["task"] == "tracking":
        toy["tracking"] = {"side": 32}
    if name == "built_in":
        toy["watching"] = {"pairs": 2}
    return merge(settings, toy)


def shrink_probe(probe: dict[str, Any]) -> dict[str, Any]:
    """Two learning rates, one weight decay, two steps."""
    grid = {key: probe[key][:count] for key, count in (("learning_rates", 2), ("weight_decays", 1)) if key in probe}
    steps = {"steps": 2, "batch_size": 8} if probe["kind"] in ("linear", "attentive") else {"penalties": [1.0]}
    return {**probe, **grid, **steps}


@pytest.mark.parametrize("path", EVALS, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_eval_runs(path: Path, world: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert config_from(parser.parse_args(["MODEL", "--config", str(path)])).run == "MODEL"  # as it stands
    settings = load_yaml(path)
    config = from_dict(EvalConfig, shrink_eval(settings, world, path.stem))
    results = evaluate(config)
    assert results["task"] == settings["task"]
    assert json.loads((world / "out" / path.stem / "results.json").read_text())["rows"] == results["rows"] != []
    names = {row.get("encoder", row.get("predictor")) for row in results["rows"]}
    assert {"trained", *settings.get("baselines", ())} - {"pixels"} <= names
