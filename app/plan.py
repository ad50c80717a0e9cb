"""``jepa plan MODEL``: act in an environment by planning through a world model, or plan from a recorded trajectory."""

from __future__ import annotations

import argparse

ACTING = {"episodes": 20, "max_steps": None, "against": "random", "out": None, "videos": 3, "axes": "0,1"}
RECORDED = {"episode": 0, "step": 0, "goal_frame": None, "json": False}
"""The options, with their defaults, that say something with --env alone, and with --trajectory alone."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="run directory or checkpoint of a world model, or the name of a published one")
    parser.add_argument(
        "--architecture",
        metavar="FILE",
        help="YAML or JSON with family and sizes, for a published file of another name",
    )
    parser.add_argument("--env", help="rooms, a gymnasium id, or MODULE:FUNCTION: act there")
    parser.add_argument("--trajectory", metavar="FILE", help="recorded episode(s): plan from one of its frames")
    what = parser.add_argument_group("planning")
    what.add_argument("--planner", metavar="KIND", help="cem (default), icem, mppi, gradient or random")
    what.add_argument("--samples", type=int, help="action sequences tried per round (default: 256)")
    what.add_argument("--iterations", type=int, help="rounds (default: 5)")
    what.add_argument("--horizon", type=int, help="steps of a plan (default: 8)")
    what.add_argument("--energy", metavar="KIND", help="l1 (default), l2, cosine, or MODULE:FUNCTION")
    what.add_argument("--context", type=int, help="frames that the model sees (default: up to 3)")
    what.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="anything of planner, energy, space, subgoal, env, trajectory or model, such as planner.elites=10",
    )  # fmt: skip
    what.add_argument(
        "--goal", action="append", default=[], metavar="IMAGE",
        help="with --env: on the way to the environment's own goal, or the goal where it shows none; may be repeated",
    )  # fmt: skip
    what.add_argument("--resize-goal", action="store_true", help="a goal image may have another size than the frames")
    what.add_argument("--seed", type=int, default=0)
    what.add_argument("--device", default="auto")
    what.add_argument("--precision", default="auto")
    what.add_argument(
        "--threads", type=int, metavar="N", help="of the CPU (default: torch's choice; 1 is faster for small models)"
    )
    acting = parser.add_argument_group("with --env")
    acting.add_argument("--episodes", type=int, default=ACTING["episodes"], help="default: 20")
    acting.add_argument("--max-steps", type=int, help="of the environment (default: until it ends the episode)")
    acting.add_argument(
        "--against", default=ACTING["against"], help="other agents: random, simulator, or none (default: random)"
    )
    acting.add_argument("--out", metavar="DIR", help="write results.json, videos and landscape.png there")
    acting.add_argument(
        "--videos", type=int, default=ACTING["videos"], metavar="K", help="of so many episodes, with --out (default: 3)"
    )
    acting.add_argument("--axes", default=ACTING["axes"], help="two action axes for the landscape (default: 0,1)")
    recorded = parser.add_argument_group("with --trajectory")
    recorded.add_argument(
        "--episode", type=int, default=RECORDED["episode"], help="which one of the file or folder (default: 0)"
    )
    recorded.add_argument(
        "--step", type=int, default=RECORDED["step"], help="the frame to plan from, at the model's rate (default: 0)"
    )
    recorded.add_argument("--goal-frame", type=int, help="the frame to plan to, at the model's rate; or --goal")
    recorded.add_argument("--json", action="store_true", help="print JSON alone")


def check_idle(args: argparse.Namespace) -> None:
    """Raises ``ValueError`` for an option that would do nothing, such as --out with a recording."""
    idle, given, wanted = (RECORDED, "env", "trajectory") if args.env is not None else (ACTING, "trajectory", "env")
    for name, default in idle.items():
        if getattr(args, name) != default:
            raise ValueError(f"--{name.replace('_', '-')} goes with --{wanted}, not with --{given}: leave it out")


def set_threads(count: int) -> None:
    """Of this process. Raises ``ValueError`` for fewer than 1."""
    import torch

    if count < 1:
        raise ValueError(f"--threads must be at least 1, not {count}")
    torch.set_num_threads(count)


def run(args: argparse.Namespace) -> int:
    from app.planning.settings import read_settings

    if (args.env is None) == (args.trajectory is None):
        raise ValueError("give either --env (act in an environment) or --trajectory (plan from a recording)")
    check_idle(args)
    if args.threads is not None:
        set_threads(args.threads)
    settings = read_settings(args)
    if args.env is not None:
        from app.planning.acting import act

        return act(args, settings)
    from app.planning.recorded import plan_recorded

    return plan_recorded(args, settings)
