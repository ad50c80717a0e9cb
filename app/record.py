"""``jepa data record ENV --out FOLDER``: episodes of an environment, as data to train a world model on."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("env", metavar="ENV", help="rooms, an id of gymnasium, or MODULE:FUNCTION")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write; a second run continues")
    parser.add_argument("--episodes", type=int, required=True, metavar="N", help="number of episodes")
    parser.add_argument(
        "--policy", default="random", metavar="NAME",
        help="random, held, smooth, uniform or MODULE:FUNCTION (default: random)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=100, help="actions of an episode (default: 100)")
    parser.add_argument(
        "--fps-step", type=int, default=1, metavar="K",
        help="steps of the environment for one action and one frame (default: 1)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="options",
        help="an option of the environment, such as rooms=4; may be repeated",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")


def run(args: argparse.Namespace) -> None:
    from jepa.config import apply_overrides
    from jepa.envs.record import RecordConfig, record

    config = RecordConfig(
        env=args.env, episodes=args.episodes, policy=args.policy, steps=args.steps, hold=args.fps_step, seed=args.seed,
        options=apply_overrides({}, args.options),
    )  # fmt: skip
    result = record(config, args.out, args.workers)
    short = f", {result.short} of them ended early" if result.short else ""
    print(
        f"{result.folder}: {result.written} episodes written ({result.frames} frames{short}), {result.kept} were there "
        "already"
    )
    print(f"train on them: jepa train CONFIG data.sources='[{{path: {result.folder}, trajectory: {{}}}}]'")
