"""``jepa decode DECODER KIND [VIDEO...]``: what latents hold, and what a model expects, as pictures."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.decoding.bench import Bench
    from app.decoding.panels import Shown

KINDS = {
    "reconstruct": "clips through their own latents",
    "inpaint": "hidden places, as a masked model expects them",
    "forecast": "what follows the first frames, as a masked model expects it",
    "rollout": "what follows a frame under recorded or given actions, as a world model imagines it",
    "plan": "the imagined path of a plan from a first frame to a goal",
    "codes": "each latent action held for some steps from the same frame",
}
_OWN = {  # the options that say something with these kinds alone
    "mask": ("inpaint",), "mask_token": ("inpaint", "forecast"), "context": ("forecast", "rollout", "plan"),
    "horizon": ("rollout", "plan", "codes"), "step": ("rollout", "plan"), "actions": ("rollout",),
    "goal_frame": ("plan",), "env": ("plan",), "planner": ("plan",), "energy": ("plan",), "set": ("plan",),
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("decoder", help="run directory or checkpoint of objective decoder")
    parser.add_argument("kind", choices=KINDS, help="; ".join(f"{name}: {words}" for name, words in KINDS.items()))
    parser.add_argument(
        "videos", nargs="*", metavar="VIDEO",
        help="videos, folders or recordings (default: what the decoder's run validated on or held out)",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="RUN", help="whose latents these are (default: what the decoder was made for)"
    )
    parser.add_argument(
        "--out", default="decoded", metavar="DIR", help="for KIND.mp4, .gif, .png, .json (default: decoded)"
    )
    parser.add_argument("--clips", type=int, default=3, help="how many clips or episodes are shown (default: 3)")
    parser.add_argument("--fps", type=float, default=4.0, help="of the film, however fast the clip is (default: 4)")
    what = parser.add_argument_group("what is predicted")
    what.add_argument("--mask", help="inpaint: the number of a mask family of the model's run, or 'middle'")
    what.add_argument("--mask-token", type=int, help="inpaint, forecast: which one stands at hidden places")
    what.add_argument(
        "--context",
        help="forecast: what is seen, such as '4 frames' or '0.5 s'; rollout, plan: frames seen (default: 1)",
    )
    what.add_argument("--horizon", type=int, help="rollout, plan, codes: steps (default: 8)")
    what.add_argument(
        "--step", type=int, default=0, help="rollout, plan: the first frame, at the model's rate (default: 0)"
    )
    what.add_argument(
        "--actions", metavar="FILE", help="rollout: .npy or .csv, a row for each step, not those recorded"
    )
    what.add_argument("--goal-frame", type=int, help="plan: the frame to plan to (default: a plan's length on)")
    what.add_argument("--env", help="plan: in this environment, where the plan is then carried out, such as rooms")
    what.add_argument("--planner", metavar="KIND", help="plan: cem (default), icem, mppi, gradient or random")
    what.add_argument("--energy", metavar="KIND", help="plan: l1 (default), l2, cosine, or MODULE:FUNCTION")
    what.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="plan: as of `jepa plan`, such as planner.samples=64",
    )
    how = parser.add_argument_group("a generative decoder")
    how.add_argument("--samples", type=int, help="drawn for each clip (default: 4)")
    how.add_argument("--sampling-steps", type=int, help="from noise to a clip (default: 8)")
    how.add_argument("--guidance", type=float, help="above 1: lean more on the latents than was learned (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of masks, plans and samples (default: 0)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from app.decoding.bench import open_bench
    from app.decoding.sheets import write_sheets
    from app.output import check_output, write_output

    check_arguments(args)
    bench = open_bench(args)
    out = Path(args.out)
    check_output(out)
    shown = list(draw(bench, args))
    write_sheets(out, args.kind, [one.example for one in shown], args.fps)
    write_output(out / f"{args.kind}.json", as_json(bench, args, shown))
    print("\n".join(describe(one) for one in shown))
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for numbers that make no sense, and for options that would do nothing."""
    for name, kinds in _OWN.items():
        idle: object = {"set": [], "step": 0}.get(name)
        if args.kind not in kinds and getattr(args, name) != idle:
            raise ValueError(f"--{name.replace('_', '-')} is for {', '.join(kinds)}, not for {args.kind}: leave it out")
    for name in ("clips", "horizon"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if not args.fps > 0:
        raise ValueError(f"--fps must be positive, not {args.fps:g}")


def draw(bench: Bench, args: argparse.Namespace) -> list[Shown]:
    """The examples of the command line."""
    from app.decoding import acted, masked, planned

    kinds = {
        "reconstruct": masked.reconstruct, "inpaint": masked.inpaint, "forecast": masked.forecast,
        "rollout": acted.rollout, "plan": planned.plan, "codes": acted.codes,
    }  # fmt: skip
    return list(kinds[args.kind](bench, args))


def as_json(bench: Bench, args: argparse.Namespace, shown: list[Shown]) -> bytes:
    """What the pictures are worth in numbers."""
    import json

    about = {
        "kind": args.kind, "decoder": args.decoder, "model": bench.model, "seed": args.seed, "samples": bench.samples,
        "sampling_steps": bench.steps if bench.decoder.generative else None,
        "guidance": bench.guidance if bench.decoder.generative else None,
    }  # fmt: skip
    clips = [{"name": one.example.name, **one.numbers} for one in shown]
    return (json.dumps({**about, "clips": clips}, indent=1) + "\n").encode()


def describe(shown: Shown) -> str:
    """One line of an example: the words above its panels."""
    words = [f"{panel.label} {panel.detail}" for panel in shown.example.panels if "dB" in panel.detail]
    return f"{shown.example.name}: {', '.join(words) or f'{len(shown.example.panels)} panels'}"
