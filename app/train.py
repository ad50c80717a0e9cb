"""``jepa train CONFIG [key.sub_key=value ...]``"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file, for example configs/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.steps=100 run_dir=runs/try")
    parser.add_argument("--check", action="store_true", help="only check the config and print it in full")
    parser.add_argument("--compile", action="store_true", help="the same as train.compile=true")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="also trace a few steps into run_dir/profile; changes no result",
    )


def run(args: argparse.Namespace) -> None:
    from evals.online import OnlineProbes
    from jepa.config import apply_overrides, from_dict, load_yaml, to_dict
    from jepa.train import TrainConfig, fit

    overrides = [*args.overrides, *(["train.compile=true"] if args.compile else [])]
    config = from_dict(TrainConfig, apply_overrides(load_yaml(args.config), overrides))
    if args.check:
        import yaml

        print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")
        return
    fit(config, OnlineProbes, profile=args.profile)
