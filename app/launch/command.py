"""``jepa launch CONFIG [key=value ...] --partition P --nodes N --gpus-per-node G --time MIN``"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from app.launch.settings import LaunchConfig, add_settings, settings_from

if TYPE_CHECKING:
    from app.launch.records import Launch
    from app.launch.submit import Planned


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Another command: jepa launch --app eval --run-dir FOLDER --partition P --time MIN -- MODEL --task video. "
        "Relative paths mean the directory in which this is called, for the job too."
    )
    parser.add_argument("config", nargs="?", help="YAML file to train from; with --app: after --, its own words")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.steps=100 run_dir=runs/try")
    parser.add_argument("--app", default="train", metavar="COMMAND", help="which command (default: train)")
    parser.add_argument(
        "--run-dir", metavar="FOLDER", help="where launch/ with logs, config and code goes (default: the config's)"
    )
    parser.add_argument("--array", metavar="SWEEP", help="YAML: config keys to lists (a grid), or a list of mappings")
    parser.add_argument("--dry-run", action="store_true", help="check, print script and config, submit nothing")
    add_settings(parser.add_argument_group("job", "any of these may stand in --launch-config, with _ for -"))
    later = parser.add_argument_group("afterwards", "RUN: the run directory, or that of a sweep")
    later.add_argument("--status", metavar="RUN", help="state, step, loss, and why it waits or ended")
    later.add_argument("--save", action="store_true", help="with --status: also write RUN/summary.csv and summary.md")
    later.add_argument("--cancel", metavar="RUN", help="end it, or every run of a sweep")
    later.add_argument("--tail", metavar="RUN", help="the end of its log, and errors")
    later.add_argument("-f", "--follow", action="store_true", help="with --tail: go on until the job ends")
    later.add_argument("--rank", type=int, default=0, help="with --tail: of which process (default: 0)")
    later.add_argument("--lines", type=int, default=40, help="with --tail: how many (default: 40)")


def run(args: argparse.Namespace) -> int | None:
    """Launch, or look after what was launched. Raises ``ValueError`` for the user's mistakes."""
    chosen = [name for name in ("status", "cancel", "tail") if getattr(args, name) is not None]
    if len(chosen) > 1 or (chosen and args.config is not None):
        raise ValueError(f"--{chosen[0]} stands alone: give one RUN and no config")
    if args.status is not None:
        return _status(Path(args.status), args.save)
    if args.cancel is not None:
        return _cancel(Path(args.cancel))
    if args.tail is not None:
        return _tail(args)
    if args.app == "train" and args.config is None:
        raise ValueError("which config? jepa launch CONFIG --partition P --time MIN (jepa launch --help)")
    settings = settings_from(args)
    _check_gpus(settings)
    plan, home = _plan(args, settings)
    if args.dry_run:
        return _dry_run(settings, plan, home)
    from app.launch.submit import submit

    _refuse_live(home, plan)
    launches = submit(settings, plan, home, is_sweep=args.array is not None)
    _report(settings, plan, launches, home)
    return None


# ---- launching -------------------------------------------------------------------------------------------------------


def _plan(args: argparse.Namespace, settings: LaunchConfig) -> tuple[list[Planned], Path]:
    """The jobs, checked, and the directory that holds them all."""
    from app.launch.plan import plan_command, plan_sweep, plan_training

    if args.app != "train":
        if args.array is not None:
            raise ValueError(f"--array varies the keys of a training config: it is not for --app {args.app}")
        words = [word for word in (args.config, *args.overrides) if word is not None]
        return plan_command(args.app, words, args.run_dir)
    assert args.config is not None
    overrides = [*args.overrides, *([] if args.run_dir is None else [f"run_dir={args.run_dir}"])]
    if args.array is not None:
        return plan_sweep(args.config, overrides, args.array, settings)
    return plan_training(args.config, overrides, settings)


def _check_gpus(settings: LaunchConfig) -> None:
    if settings.executor == "slurm" or not settings.gpus_per_node:
        return
    import torch

    count = torch.cuda.device_count()
    if count < settings.gpus_per_node:
        raise ValueError(
            f"gpus_per_node {settings.gpus_per_node}: the executor {settings.executor} runs on this machine, where "
            f"torch sees {count} CUDA devices; leave it out, or use --executor slurm"
        )


def _refuse_live(home: Path, plan: list[Planned]) -> None:
    """Two jobs must not write into one directory, nor may the code of a waiting one be replaced."""
    from app.launch.records import launch_folder, read_launch, read_sweep
    from app.launch.status import find_launches, is_live, states_of

    launches = {} if read_sweep(home) is None else find_launches(home)
    is_single = [one.run_dir for one in plan] == [home]
    if (launches and is_single) or (read_launch(home) is not None and not is_single):
        raise ValueError(f"{home} holds {'a sweep' if is_single else 'a single run'}: choose another run_dir")
    for one in plan:
        launch = read_launch(one.run_dir)
        if launch is not None:
            launches[one.run_dir] = launch
            if launch.command[0] != one.command[0]:
                raise ValueError(
                    f"{launch_folder(one.run_dir)} belongs to `jepa {launch.command[0]}`: choose another --run-dir"
                )
    for run_dir, state in states_of(launches).items():
        if is_live(state):
            raise ValueError(
                f"{run_dir} is {state.state} as job {launches[run_dir].job_id}{': ' if state.reason else ''}"
                f"{state.reason}; end it first with jepa launch --cancel {run_dir}, or choose another run_dir"
            )


def _dry_run(settings: LaunchConfig, plan: list[Planned], home: Path) -> None:
    import yaml

    from jepa.config import to_dict

    if settings.executor == "slurm":
        from app.launch.submit import script

        print(script(settings, home, len(plan)))
    else:
        print(yaml.safe_dump({"resources": to_dict(settings)}, sort_keys=False))
    for one in plan:
        print(f"# {one.run_dir}: jepa {' '.join(one.command)}")
    if len(plan) > 1:
        print("# config of the first run")
    print(plan[0].config, end="")
    print("dry run: nothing was submitted", file=sys.stderr)


def _report(settings: LaunchConfig, plan: list[Planned], launches: list[Launch], home: Path) -> None:
    from app.launch.records import log_path
    from app.launch.slurm import base_ids

    place = f"partition {settings.partition}, " if settings.partition else ""
    limit = f"{settings.time_min} min" if settings.time_min else "no time limit"
    what = f"{len(launches)} runs, each " if len(launches) > 1 else ""
    own = [launch.job_id for launch in launches]
    ids = ", ".join(base_ids(own) if settings.executor == "slurm" else own)
    print(f"job {ids} ({settings.executor}): {what}{settings.nodes} x {settings.tasks} processes, {place}{limit}")
    for launch in launches[:3]:
        print(f"  log     {log_path(launch)}")
    if len(launches) > 3:
        print(f"  ... and {len(launches) - 3} more in {launches[0].logs}")
    for name, folder, further in (("tail", plan[0].run_dir, " -f"), ("status", home, ""), ("cancel", home, "")):
        print(f"  {name:7} jepa launch --{name} {shlex.quote(str(folder))}{further}")


# ---- afterwards ------------------------------------------------------------------------------------------------------


def _status(folder: Path, save: bool) -> None:
    from app.launch.records import read_sweep, write_text
    from app.launch.status import as_csv, as_markdown, describe, find_launches, read_status, states_of, table

    launches = find_launches(folder)
    states = states_of(launches)
    statuses = [read_status(run_dir, launch, states[run_dir]) for run_dir, launch in launches.items()]
    rows = table(statuses)
    print(describe(statuses[0]) if read_sweep(folder) is None else as_markdown(rows).rstrip())
    if save:
        for name, text in (("summary.csv", as_csv(rows)), ("summary.md", as_markdown(rows))):
            write_text(folder / name, text)
            print(f"wrote {folder / name}", file=sys.stderr)


def _cancel(folder: Path) -> None:
    import os
    import signal

    from app.launch import slurm
    from app.launch.records import read_sweep
    from app.launch.status import find_launches, is_live, states_of

    launches = find_launches(folder)
    live = {run_dir: launches[run_dir] for run_dir, state in states_of(launches).items() if is_live(state)}
    queued = [launch.job_id for launch in live.values() if launch.executor == "slurm"]
    if queued:
        slurm.cancel(queued if read_sweep(folder) is None else slurm.base_ids(queued))
    for run_dir, launch in live.items():
        if launch.executor == "local":
            if not launch.is_here:
                raise ValueError(f"{run_dir} runs on {launch.host}: cancel it there")
            os.kill(int(launch.job_id), signal.SIGTERM)  # submitit's controller passes it on; the run saves and ends
    if not live:
        print("nothing to cancel: no job of it waits or runs")
    for run_dir, launch in live.items():
        print(f"cancelled job {launch.job_id}: {run_dir}")


def _tail(args: argparse.Namespace) -> None:
    from app.launch.records import read_sweep
    from app.launch.status import find_launches
    from app.launch.tail import tail

    folder = Path(args.tail)
    sweep = read_sweep(folder)
    if sweep is not None:
        raise ValueError(f"{folder} is a sweep: name one of its runs, such as {folder / next(iter(sweep.runs))}")
    tail(folder, find_launches(folder)[folder], args.rank, args.lines, args.follow)
