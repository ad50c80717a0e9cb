"""The ``jepa`` command: a table of sub-commands, each in its own small file, and one place that reports errors.

A sub-command file has ``add_arguments(parser)`` and ``run(args)``. Only the chosen one is imported, and none imports
torch before ``run``, so that ``jepa --help`` and a mistyped option answer at once.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

COMMANDS = {
    "train": ("app.train", "pretrain from a config, or continue the run in its run_dir"),
    "eval": ("evals.main", "probe a frozen encoder beside a random one and raw pixels"),
    "encode": ("app.encode", "turn videos, images or arrays into features"),
    "predict": ("app.predict", "surprise: how wrong a model's expectations are, over whole videos"),
    "plan": ("app.plan", "act in an environment by planning through a world model, or plan from a recording"),
    "decode": ("app.decode", "what latents hold and what a model expects, as videos and pictures"),
    "play": ("app.play", "steer a world model by keyboard and watch its dream, decoded, beside the real world"),
    "export": ("app.export", "write a model in the format of another program, with its model card"),
    "models": ("app.models", "list the published checkpoints, show one in full, or bring it into the cache"),
    "similar": ("app.similar", "find the clips of a feature file nearest to a video"),
    "view": ("app.view", "a page with feature maps, nearest neighbours and a scatter of clips"),
    "launch": ("app.launch.command", "run a command as a job: SLURM or this machine; look after it; sweeps"),
    "data": ("app.data", "prepare videos for fast reading, or render the built-in ones"),
    "demo": ("app.demo", "the whole way on this machine: render videos, pretrain, probe, draw a report"),
}


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser; only the ``chosen`` sub-command gets its arguments."""
    parser = argparse.ArgumentParser(prog="jepa", description="Joint-embedding predictive architectures for video.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            importlib.import_module(module).add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line. Returns the exit status: the command's own (0), 2 for an error of the user's, 130 after a
    second Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    args = parse(argv, build_parser(chosen))
    if not args.debug:
        warnings.filterwarnings("ignore", module=r"torch\..*")
    _print_log()
    try:
        status = importlib.import_module(COMMANDS[args.command][0]).run(args) or 0
        sys.stdout.flush()
        return status
    except ValueError as error:  # the toolkit's errors for users (config, files, checkpoints, ...) are all ValueErrors
        if args.debug:
            raise
        print(f"jepa: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has had enough (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails again
        return 141  # what a shell reports for SIGPIPE
    except OSError as error:  # a full disk, a folder that went away: the system's own words, and where
        if args.debug:
            raise
        print(f"jepa: error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jepa: interrupted", file=sys.stderr)
        return 130


def parse(argv: list[str], parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse; ``--debug`` may stand anywhere, and so may overrides, folders and videos (argparse: in one place)."""
    args, rest = parser.parse_known_args([word for word in argv if word != "--debug"])
    args.debug = "--debug" in argv
    given = (getattr(args, name, None) for name in ("folders", "videos"))
    paths = next((found for found in given if isinstance(found, list)), None)
    if rest and hasattr(args, "overrides") and all("=" in word and not word.startswith("-") for word in rest):
        args.overrides = [*args.overrides, *rest]
    elif paths is not None and not any(word.startswith("-") for word in rest):
        paths += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def _print_log() -> None:
    """Show the toolkit's messages on stderr; a training run replaces this by its own log."""
    root = logging.getLogger()
    for earlier in [handler for handler in root.handlers if handler.name == "jepa-command"]:
        root.removeHandler(earlier)  # of an earlier call in this process, whose stderr may be closed
    handler = logging.StreamHandler()
    handler.set_name("jepa-command")
    handler.addFilter(logging.Filter("jepa"))
    root.addHandler(handler)
    logging.getLogger("jepa").setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
