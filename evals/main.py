"""``jepa eval``: probe a model beside others, print the table, write results.json, results.md and report.html."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.options import COMPARE, add_arguments, config_from, split

if TYPE_CHECKING:  # torch is imported only once a command runs
    from evals.settings import EvalConfig

__all__ = ["add_arguments", "evaluate", "main", "run"]


def run(args: argparse.Namespace) -> None:
    """Run one ``jepa eval`` command line. Raises ``ValueError`` for the user's mistakes."""
    if args.folders[:1] == [COMPARE]:
        _compare(args)
        return
    if args.folders[1:] or args.encoders is not None:
        what = f"unexpected {args.folders[1]!r}" if args.folders[1:] else "--encoders"
        raise ValueError(f"{what}: several folders and --encoders are for jepa eval {COMPARE}; models go to --against")
    config = config_from(args)
    if args.check:
        import yaml

        from jepa.config import to_dict

        print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")
        return
    results = evaluate(config)
    if _writes():
        from evals.subjects import results_folder

        print("\n\n".join(part for part in (results["table"], results["notes"]) if part))
        report = results_folder(config) / "report.html"
        print(f"report: {report} (beside it results.json and results.md)", file=sys.stderr)


def _compare(args: argparse.Namespace) -> None:
    from evals.compare import compare, markdown, write

    plain = argparse.ArgumentParser()
    add_arguments(plain)
    for name in vars(plain.parse_args([COMPARE])).keys() - {"folders", "encoders", "out"}:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} has no meaning for jepa eval {COMPARE}: leave it out")
    comparison = compare(args.folders[1:], split(args.encoders or "trained"))
    if args.out is not None:
        write(comparison, Path(args.out))
    print(markdown(comparison))


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m evals.main``: the same as ``jepa eval``."""
    parser = argparse.ArgumentParser(prog="jepa eval", description=__doc__)
    add_arguments(parser)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("jepa").setLevel(logging.INFO if _writes() else logging.ERROR)
    try:
        run(parser.parse_intermixed_args(argv))
    except ValueError as error:
        print(f"jepa eval: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def evaluate(config: EvalConfig, out: str | Path | None = None) -> dict[str, Any]:
    """Run an eval and write ``results.json`` and ``results.md`` to ``out``, ``config.out`` or RUN/evals/TASK-PROBES.

    Returns what the file holds: ``rows`` (dicts of ``evals.settings.Row``), ``table`` (Markdown), ``seconds`` per
    stage, the ``config``, and ``facts`` about encoder, clips and data. Several probes at once share the features.
    """
    from evals.pages.tables import table
    from evals.subjects import results_folder
    from evals.tasks import TASKS
    from jepa.checkpoint import code_version
    from jepa.config import ConfigError, suggest, to_dict

    if config.task not in TASKS:
        raise ConfigError(f"unknown task {config.task!r}{suggest(config.task, TASKS)}")
    config = config if out is None else replace(config, out=str(out))
    folder = results_folder(config)
    _check_writable(folder)
    began = time.perf_counter()
    result = TASKS[config.task](config)
    results: dict[str, Any] = {
        "task": config.task,
        "rows": [row._asdict() for row in result.rows],
        "table": result.table or table(result.rows),
        "notes": result.notes,
        "seconds": {**result.seconds, "total": time.perf_counter() - began},
        "config": to_dict(config),
        "code_version": code_version(),
        **result.facts,
    }
    if not _writes():
        return results
    files = dict(result.files)
    if result.report is not None:
        files["report.html"] = result.report(results).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (folder / "results.md").write_text("\n\n".join((results["table"], results["notes"])).strip() + "\n")
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        print(results["table"])  # of what may have taken hours
        raise ConfigError(f"results cannot be written to {folder}: {error.strerror or error}; choose --out") from None
    return results


def _check_writable(folder: Path) -> None:
    """Raise ``ConfigError`` where ``folder`` cannot be made or written to, without making it."""
    from jepa.config import ConfigError

    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"results cannot be written to {folder}: {place} is no folder; choose --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"results cannot be written to {folder}: no right to write to {place}; choose --out")


def _writes() -> bool:
    """Whether this process prints and writes: of those of torchrun, which all have the same results, the first does."""
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    sys.exit(main())
