"""What a command line of ``jepa launch`` amounts to: jobs, checked as far as the login node can."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from app.launch import sweep
from app.launch.checks import Checker, absolute, resolve
from app.launch.records import launch_folder
from app.launch.settings import LaunchConfig
from app.launch.submit import Planned
from jepa.config import ConfigError, suggest, to_dict

_SHOWN = 5  # invalid entries of a sweep named in the message


def plan_training(path: str, overrides: Sequence[str], settings: LaunchConfig) -> tuple[list[Planned], Path]:
    """One training run, and its directory. Raises ``ConfigError`` naming file and key."""
    one = _train(path, overrides, Checker(settings), {})
    return [one], one.run_dir


def plan_sweep(
    path: str, overrides: Sequence[str], sweep_path: str, settings: LaunchConfig
) -> tuple[list[Planned], Path]:
    """Every run of a sweep, and the directory that holds theirs. Raises ``ConfigError`` naming each invalid entry."""
    home = Path(os.path.abspath(resolve(path, overrides).run_dir))
    entries = sweep.read_entries(sweep_path)
    if settings.executor == "local" and len(entries) > settings.array_parallelism:
        raise ConfigError(
            f"{sweep_path} has {len(entries)} runs, and the executor local starts all of them at once: raise "
            f"--array-parallelism (now {settings.array_parallelism}) to have it so"
        )
    checker, plan, wrong = Checker(settings), [], []
    for number, (name, entry) in enumerate(zip(sweep.name_runs(entries), entries, strict=True)):
        words = [*overrides, *sweep.as_overrides(entry), f"run_dir={home / name}"]
        try:
            plan.append(_train(path, words, checker, entry))
        except ValueError as error:
            wrong.append(f"entry {number} {entry}: {error}")
    if wrong:
        more = f" (and {len(wrong) - _SHOWN} more)" if len(wrong) > _SHOWN else ""
        count = f"{len(wrong)} of {len(entries)} entries cannot run, so nothing is submitted"
        raise ConfigError(f"{sweep_path}: {count}: {'; '.join(wrong[:_SHOWN])}{more}")
    return plan, home


def _train(path: str, overrides: Sequence[str], checker: Checker, entry: dict[str, object]) -> Planned:
    config = absolute(resolve(path, overrides))
    try:
        checker.check(config)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    run_dir = Path(config.run_dir)
    command = ["train", str(launch_folder(run_dir) / "config.yaml")]
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    return Planned(run_dir=run_dir, command=command, config=text, overrides=entry)


def plan_command(name: str, words: Sequence[str], run_dir: str | None) -> tuple[list[Planned], Path]:
    """Another command of `jepa`; its words are parsed here, so that a mistake is seen at once."""
    from app.cli import COMMANDS, build_parser, parse

    known = [command for command in COMMANDS if command not in ("launch", "train")]
    if name not in known:
        raise ConfigError(f"--app {name!r} is no command that can be launched{suggest(name, known)}")
    if run_dir is None:
        raise ConfigError(f"--app {name} needs --run-dir FOLDER, for launch/ with its log and the code")
    _check_words(parse([name, *words], build_parser(name)), name)
    home = Path(os.path.abspath(run_dir))
    return [Planned(run_dir=home, command=[name, *words])], home


def _check_words(args: argparse.Namespace, name: str) -> None:
    """What can be said of another command's words without running it: options of an eval, models, the output's kind."""
    from jepa.load import check_model

    models = [args.model] if getattr(args, "model", None) is not None else []
    if name == "eval":
        from evals.options import COMPARE, config_from

        if args.folders[:1] != [COMPARE]:
            config = config_from(args)
            models = [config.run, *config.against]
    for model in models:
        check_model(model)
    if name == "encode":
        from jepa.features.store import check_suffix

        check_suffix(Path(args.out))
