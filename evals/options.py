"""The command line of ``jepa eval``: its options, and what they make of an ``EvalConfig``, alone or over a YAML file.

Every option's default is None, so that only what was really given is laid over the file.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch is imported only once a command runs
    from evals.settings import EvalConfig

COMPARE = "compare"  # a first word that is no model (./compare is one)
PROBES = ("linear", "attentive", "knn", "logistic", "published")
TRAINED_PROBES = ("linear", "attentive")
_PLAIN = {  # options whose value is that of a config key
    "task": "task", "weights": "weights", "segments": "segments", "views": "views",
    "train_views": "train_views", "train_limit": "train_limit", "few_shot_seeds": "few_shot_seeds",
    "batch_size": "batch_size", "workers": "workers", "device": "device", "precision": "precision",
    "cache_gb": "cache_gb", "memory_gb": "memory_gb", "out": "out", "sweep_layers": "sweep_layers",
    "pairs": "watching.pairs", "window_frames": "watching.num_frames", "clip_fps": "watching.clip_fps",
    "mask_token": "watching.mask_token", "measure": "watching.measure",
    "env": "world_model.env", "episodes": "world_model.episodes",
}  # fmt: skip
_WORDS = ("labels", "baselines", "few_shot", "allow")  # lists with commas


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``jepa eval``."""
    parser.add_argument(  # one list, as options may stand between its words
        "folders", nargs="*", metavar="MODEL", help="run directory, checkpoint file, name of a published model, or "
        f"timm:NAME (left out: the config's); or {COMPARE} RUN RUN ..., to set the results of earlier evals side by "
        "side: folders with a results.json each",
    )  # fmt: skip
    parser.add_argument("--encoders", metavar="A,B", help=f"with {COMPARE}: which of each folder (default: trained)")
    parser.add_argument(
        "--config", metavar="FILE", help="settings of the eval as YAML (configs/eval has published ones), over which "
        "options are laid",
    )  # fmt: skip
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", help="any setting of the eval, as --set tracking.radius=9 "
        "or --set probes.0.batch_size=64 (docs/evaluation.md); goes before all else; may be given again",
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", default=None, help="only print the settings in full")
    parser.add_argument("--task", help="which eval (default: video)")
    parser.add_argument("--against", metavar="MODEL[,MODEL]", action="append", help="further models, a column each")
    parser.add_argument("--weights", choices=("target_encoder", "encoder"), help="default: target_encoder")
    parser.add_argument("--baselines", help="shown beside the encoder (default: random,pixels); '' for none")
    parser.add_argument(
        "--out", metavar="FOLDER",
        help="where results go, and the features of a model without a run (default: RUN/evals/TASK-PROBE; without a "
        "run in runs/NAME; a comparison is only printed)",
    )  # fmt: skip
    parser.add_argument("--device", help="default: auto")
    parser.add_argument("--precision", help="default: auto")
    parser.add_argument("--batch-size", type=int, help="clips encoded at once (default: 16)")
    parser.add_argument("--workers", type=int, help="processes that decode videos (default: 0)")
    parser.add_argument("--no-cache", action="store_true", default=None, help="encode anew in every step, augmented")
    parser.add_argument("--cache-gb", type=float, help="most that features take on disk (default: 20); 0: none kept")
    parser.add_argument("--memory-gb", type=float, help="larger features are read batch by batch (default: 4)")
    _add_data(parser.add_argument_group("data"))
    _add_probes(parser.add_argument_group("probes"))
    physics = parser.add_argument_group("task physics", "pairs of --dataset, of a --test PAIRS.csv, or built-in ones")
    physics.add_argument("--pairs", type=int, help="built-in pairs for each condition (default: 100)")
    physics.add_argument("--context-frames", metavar="A,B", help="how many of 16 frames are seen (2,4,6,8,10)")
    physics.add_argument("--window-frames", type=int, help="length of the windows (default: the model's clip)")
    physics.add_argument("--clip-fps", type=float, help="frames per second of the windows (default: the model's)")
    physics.add_argument("--mask-token", type=int, help="which of the predictor's (default: 0)")
    physics.add_argument("--measure", choices=("l1", "smooth_l1", "cosine"), help="of surprise (default: l1)")
    world = parser.add_argument_group("task world_model", "--data FOLDER of recorded episodes (default: the run's own)")
    world.add_argument("--env", help="also plan there: rooms, a gymnasium id, or MODULE:FUNCTION")
    world.add_argument("--episodes", type=int, help="episodes of every agent in --env (default: 50)")


def _add_data(group: Any) -> None:
    group.add_argument("--train", metavar="PATH", help="labelled clips to fit probes on (default: the run's sources)")
    group.add_argument("--test", metavar="PATH", help="labelled clips to report on (default: the run's validation)")
    group.add_argument("--dataset", metavar="NAME", help="a published data set instead (docs/datasets.md lists them)")
    group.add_argument("--data", metavar="ROOT", help="its folder")
    group.add_argument("--splits", metavar="FIT,REPORT", help="other splits of it than the usual ones")
    group.add_argument("--anticipation-s", type=float, help="epic100: clips end so many seconds before their action")
    group.add_argument("--max-missing", type=float, help="share of its videos that may be missing (default: 0.05)")
    group.add_argument("--labels", metavar="A,B", help="label columns of CSV files or data set, probed one by one")
    group.add_argument("--where", metavar="COL=VALUE", action="append", help="keep these rows of the CSVs")
    group.add_argument("--span", choices=("inside", "centred", "ending"), help="clips and start_s, end_s of a CSV")
    group.add_argument("--segments", type=int, help="clips per video (default: 1)")
    group.add_argument(
        "--average-segments", action="store_true", default=None, help="classify each by itself and average the "
        "probabilities (default: all tokens together)",
    )  # fmt: skip
    group.add_argument("--views", type=int, help="crops of every test clip, averaged (default: 1, the centre)")
    group.add_argument("--train-views", type=int, help="views of every training clip: the plain one, then augmented")
    group.add_argument("--allow", metavar="A,B", help="refused otherwise: leak, unseen_classes")


def _add_probes(group: Any) -> None:
    group.add_argument("--probe", help=f"one of {', '.join(PROBES)}; several with commas (default: linear)")
    group.add_argument("--probe-file", metavar="FILE", help="or name in `jepa models`, of the probe published")
    group.add_argument("--steps", type=int, help="training steps of linear and attentive probes")
    group.add_argument("--depth", type=int, help="blocks of attentive probes: 1 (V-JEPA) or 4 (V-JEPA 2)")
    group.add_argument("--queries", type=int, help="learned queries of attentive probes (default: 1)")
    group.add_argument("--token-pool", metavar="T,H,W", help="average tokens before attentive probes (1,1,1)")
    group.add_argument("--cells", metavar="T,H,W", help="other probes: means of so many parts, side by side (1,1,1)")
    group.add_argument("--layers", metavar="A,B", help="outputs of these blocks side by side; --layers=-1 is the last")
    group.add_argument("--sweep-layers", action="store_true", default=None, help="also every block on its own")
    group.add_argument("--train-limit", type=int, metavar="N", help="fit probes on N training clips only")
    group.add_argument("--few-shot", metavar="A,B", help="also with so few labels: shares, or clips of a class: 1%%,5")
    group.add_argument("--few-shot-seeds", type=int, metavar="N", help="draws of each (default: 3)")
    group.add_argument("--seed", type=int, help="of the probes (default: 0); the random encoder has seed + 1")


def config_from(args: argparse.Namespace) -> EvalConfig:
    """The file's settings, the options given over them, ``--set`` over both, checked. Raises ``ConfigError``."""
    from evals.settings import EvalConfig
    from jepa.config import ConfigError, apply_overrides, from_dict, load_yaml

    data = {} if args.config is None else load_yaml(args.config)
    data = lay_over(data, args)
    if args.folders:
        data["run"] = args.folders[0]
    data = apply_overrides(data, args.set or ())
    if data.get("run") is None:
        raise ConfigError("give a MODEL: a run directory, a checkpoint, the name of a published model, or timm:NAME")
    try:
        return from_dict(EvalConfig, data)
    except ConfigError as error:
        where = "" if args.config is None else f"{args.config}, with the options given: "
        raise ConfigError(f"{where}{error}") from None


def lay_over(data: Mapping[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """``data`` with the options that were given in their places. Raises ``ConfigError``."""
    result = dict(data)
    given = {name: value for name, value in vars(args).items() if value is not None}
    for option, key in _PLAIN.items():
        if option in given:
            _put(result, key, given[option])
    for option in _WORDS:
        if option in given:
            result[option] = list(split(given[option]))
    for option, key in (("no_cache", "cache"), ("average_segments", "join_segments")):
        if option in given:
            result[key] = False
    if "against" in given:
        result["against"] = list(split(",".join(given["against"])))
    if "cells" in given:
        result["cells"] = _numbers("--cells", given["cells"], "T,H,W", 3)
    if "layers" in given:
        result["layers"] = _numbers("--layers", given["layers"], "A,B")
    if "context_frames" in given:
        _put(result, "watching.context_frames", _numbers("--context-frames", given["context_frames"], "A,B"))
    if "batch_size" in given:
        _put(result, "watching.batch_size", given["batch_size"])
    if "seed" in given:
        result["random_seed"] = given["seed"] + 1
    _lay_data(result, given)
    _lay_probes(result, given)
    return result


def _lay_data(result: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Sources or a data set: what is named on the command line takes the place of the other in the file."""
    from jepa.config import ConfigError

    if "data" in given and "dataset" not in given and result.get("task") == "world_model":
        given = {name: value for name, value in given.items() if name != "data"} | {"test": given["data"]}
    if {"train", "test"} & given.keys() and "dataset" not in given:
        result.pop("dataset", None)
    if "dataset" in given:
        for side in {"train", "test"} - given.keys():
            result.pop(side, None)
    for side in {"train", "test"} & given.keys():
        _put(result, f"{side}.path", given[side])
    if result.get("dataset") is None and ("dataset" in given) != ("data" in given):
        raise ConfigError("--dataset NAME and --data ROOT go together")
    for option, key in (("dataset", "name"), ("data", "root")):
        if option in given:
            _put(result, f"dataset.{key}", given[option])
    known = result.get("dataset") is not None
    if "anticipation_s" in given and result.get("task") == "anticipation":
        _put(result, "anticipation.anticipation_s", given["anticipation_s"])
    elif not known and {"splits", "anticipation_s"} & given.keys():
        raise ConfigError("--splits and --anticipation-s are for --dataset NAME")
    elif "anticipation_s" in given:
        _put(result, "dataset.anticipation_s", given["anticipation_s"])
    if "splits" in given:
        if len(split(given["splits"])) != 2:
            raise ConfigError(f"--splits needs two names FIT,REPORT, not {given['splits']!r}")
        _put(result, "dataset.splits", list(split(given["splits"])))
    if "max_missing" in given:
        if not known:
            raise ConfigError("--max-missing is for --dataset NAME")
        _put(result, "dataset.max_missing", given["max_missing"])
    sides = [side for side in ("train", "test") if result.get(side) is not None]
    if {"where", "span"} & given.keys() and (known or not sides):
        raise ConfigError("--where and --span are for CSV files, not for --dataset: give --train or --test with them")
    for side in sides:
        for pair in given.get("where", ()):
            _put(result, f"{side}.where.{pair.partition('=')[0]}", pair.partition("=")[2])
        if "span" in given:
            _put(result, f"{side}.span", given["span"])


def _lay_probes(result: dict[str, Any], given: Mapping[str, Any]) -> None:
    """The probes named (with the file's settings, where it has that kind), and what is given for them."""
    from jepa.config import ConfigError, suggest

    listed = result.get("probes") or [{}]
    if not isinstance(listed, list) or not all(isinstance(probe, Mapping) for probe in listed):
        raise ConfigError(f"config key 'probes' must be a list of mappings with keys, not {listed!r}")
    probes = [dict(probe) for probe in listed]
    if "probe" in given:
        known = {probe.get("kind", "linear"): probe for probe in reversed(probes)}
        for kind in split(given["probe"]):
            if kind not in PROBES:
                raise ConfigError(f"unknown probe {kind!r}{suggest(kind, PROBES)}")
        probes = [known.get(kind, {}) | {"kind": kind} for kind in split(given["probe"])]
    settings: list[tuple[str, str, tuple[str, ...], Any]] = [
        ("--steps", "steps", TRAINED_PROBES, given.get("steps")),
        ("--depth", "depth", ("attentive",), given.get("depth")),
        ("--queries", "queries", ("attentive",), given.get("queries")),
        ("--probe-file", "file", ("published",), given.get("probe_file")),
        ("--seed", "seed", PROBES, given.get("seed")),
    ]
    if "token_pool" in given:
        pool = _numbers("--token-pool", given["token_pool"], "T,H,W", 3)
        settings.append(("--token-pool", "token_pool", ("attentive",), pool))
    for option, key, kinds, value in settings:
        fitting = [probe for probe in probes if probe.get("kind", "linear") in kinds]
        if value is not None and not fitting:
            raise ConfigError(f"{option} is for the probes {' and '.join(kinds)}: name one with --probe")
        for probe in fitting if value is not None else ():
            probe[key] = value
    if probes != [{}] or "probes" in result or any(pair.startswith("probes.") for pair in given.get("set", ())):
        result["probes"] = probes


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    """Set ``a.b.c`` in nested mappings, which are copied and made where they are missing."""
    head, _, rest = key.partition(".")
    if rest:
        inner = data.get(head) or {}
        if not isinstance(inner, Mapping):
            from jepa.config import ConfigError

            raise ConfigError(f"config key {head!r} must be a mapping with keys, not {inner!r}")
        inner = dict(inner)
        _put(inner, rest, value)
        value = inner
    data[head] = value


def _numbers(option: str, text: str, form: str, count: int | None = None) -> list[int]:
    from jepa.config import ConfigError

    words = split(text)
    if not words or not all(word.removeprefix("-").isdecimal() for word in words) or count not in (None, len(words)):
        raise ConfigError(f"{option} needs {'three ' if count else ''}whole numbers {form}, not {text!r}")
    return [int(word) for word in words]


def split(text: str) -> tuple[str, ...]:
    """Words between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
