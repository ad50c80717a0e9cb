"""``jepa eval``: probe a model beside others, print the table, write results.json, results.md and report.html."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch is imported only once a command runs
    from evals.datasets import DatasetConfig
    from evals.settings import EvalConfig
    from evals.watching import Watching

COMPARE = "compare"  # a first word that is no model (./compare is one)
PROBES = ("linear", "attentive", "knn", "logistic")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``jepa eval``."""
    parser.add_argument(
        "run", metavar="MODEL", help="run directory, checkpoint file, name of a published model, or timm:NAME; or the "
        f"word {COMPARE}, to set the results of earlier evals side by side"
    )  # fmt: skip
    parser.add_argument("folders", nargs="*", metavar="RUN", help=f"with {COMPARE}: folders with a results.json each")
    parser.add_argument("--encoders", metavar="A,B", help=f"with {COMPARE}: which of each folder (default: trained)")
    parser.add_argument(
        "--against", metavar="MODEL[,MODEL]", action="append", default=[], help="further models, a column each"
    )
    parser.add_argument("--task", default="video", help="which eval (default: video)")
    parser.add_argument("--probe", default="linear", help=f"one of {', '.join(PROBES)}; several with commas")
    parser.add_argument("--train", metavar="PATH", help="labelled clips to fit probes on (default: the run's sources)")
    parser.add_argument("--test", metavar="PATH", help="labelled clips to report on (default: the run's validation)")
    parser.add_argument("--dataset", metavar="NAME", help="a published data set instead (docs/datasets.md lists them)")
    parser.add_argument("--data", metavar="ROOT", help="its folder")
    parser.add_argument("--splits", metavar="FIT,REPORT", help="other splits of it than the usual ones")
    parser.add_argument("--anticipation-s", type=float, help="epic100: clips end so many seconds before their action")
    parser.add_argument("--max-missing", type=float, default=0.05, help="share of its videos that may be missing")
    parser.add_argument("--labels", metavar="A,B", help="label columns of CSV files or data set, probed one by one")
    parser.add_argument("--where", metavar="COL=VALUE", action="append", default=[], help="keep these rows of the CSVs")
    parser.add_argument(
        "--span", choices=("inside", "centred", "ending"), default="inside", help="clips and start_s, end_s of a CSV"
    )
    parser.add_argument("--weights", choices=("target_encoder", "encoder"), default="target_encoder")
    parser.add_argument("--baselines", default="random,pixels", help="shown beside the trained encoder; '' for none")
    parser.add_argument("--segments", type=int, default=1, help="clips per video (default: 1)")
    parser.add_argument("--train-limit", type=int, metavar="N", help="fit probes on N training clips only")
    parser.add_argument("--steps", type=int, help="training steps of linear and attentive probes")
    parser.add_argument("--token-pool", metavar="T,H,W", default="1,1,1", help="average tokens before attentive probes")
    parser.add_argument(
        "--cells", metavar="T,H,W", default="1,1,1", help="other probes: means of so many parts, side by side"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the probe and of the random encoder (seed + 1)")
    parser.add_argument("--batch-size", type=int, default=16, help="clips encoded at once")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode videos")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--cache-gb", type=float, default=20.0, help="most that features take on disk; 0: none kept")
    parser.add_argument(
        "--set", metavar="TASK.KEY=VALUE", action="append", default=[],
        help="a setting of the tasks retrieval, tracking, dense (docs/evaluation.md lists them); may be given again",
    )  # fmt: skip
    physics = parser.add_argument_group("task physics", "pairs of --dataset, of a --test PAIRS.csv, or built-in ones")
    physics.add_argument("--pairs", type=int, default=100, help="built-in pairs for each condition (default: 100)")
    physics.add_argument("--context-frames", metavar="A,B", default="2,4,6,8,10", help="how many of 16 frames are seen")
    physics.add_argument("--window-frames", type=int, help="length of the windows (default: the model's clip)")
    physics.add_argument("--clip-fps", type=float, help="frames per second of the windows (default: the model's)")
    physics.add_argument("--mask-token", type=int, default=0, help="which of the predictor's (default: 0)")
    physics.add_argument("--measure", choices=("l1", "smooth_l1", "cosine"), default="l1", help="of surprise")
    parser.add_argument(
        "--out", metavar="FOLDER",
        help="where results go, and the features of a model without a run (default: RUN/evals/TASK-PROBE; without a "
        "run in runs/NAME; a comparison is only printed)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Run one ``jepa eval`` command line. Raises ``ValueError`` for the user's mistakes."""
    if args.run == COMPARE:
        _compare(args)
        return
    if args.folders or args.encoders is not None:
        what = f"unexpected {args.folders[0]!r}" if args.folders else "--encoders"
        raise ValueError(f"{what}: several folders and --encoders are for jepa eval {COMPARE}; models go to --against")
    config = config_from(args)
    results = evaluate(config)
    print("\n\n".join(part for part in (results["table"], results["notes"]) if part))


def _compare(args: argparse.Namespace) -> None:
    from evals.compare import compare, markdown, write

    plain = argparse.ArgumentParser()
    add_arguments(plain)
    for name, default in vars(plain.parse_args([COMPARE])).items():
        if getattr(args, name) != default and name not in ("folders", "encoders", "out"):
            raise ValueError(f"--{name.replace('_', '-')} has no meaning for jepa eval {COMPARE}: leave it out")
    comparison = compare(args.folders, _split(args.encoders or "trained"))
    if args.out is not None:
        write(comparison, Path(args.out))
    print(markdown(comparison))


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m evals.main``: the same as ``jepa eval``."""
    parser = argparse.ArgumentParser(prog="jepa eval", description=__doc__)
    add_arguments(parser)
    try:
        run(parser.parse_intermixed_args(argv))
    except ValueError as error:
        print(f"jepa eval: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def config_from(args: argparse.Namespace) -> EvalConfig:
    """Command-line options to a checked ``EvalConfig``."""
    from evals.probes import ProbeConfig
    from evals.settings import EvalConfig
    from jepa.config import ConfigError, suggest
    from jepa.data.sources import SourceConfig

    for kind in _split(args.probe):
        if kind not in PROBES:
            raise ConfigError(f"unknown probe {kind!r}{suggest(kind, PROBES)}")
    where = dict(pair.partition("=")[::2] for pair in args.where)
    pool, cells = _three("--token-pool", args.token_pool), _three("--cells", args.cells)

    def source(path: str | None) -> SourceConfig | None:
        return None if path is None else SourceConfig(path=path, where=where, span=args.span)

    return EvalConfig(
        run=args.run, against=_split(",".join(args.against)), task=args.task, weights=args.weights,
        train=source(args.train), test=source(args.test), dataset=_dataset(args),
        labels=_split(args.labels or ""), baselines=_split(args.baselines), random_seed=args.seed + 1,
        probes=tuple(
            ProbeConfig(kind=kind, steps=args.steps, token_pool=pool, seed=args.seed)  # type: ignore[arg-type]
            for kind in _split(args.probe)
        ),
        cells=cells, segments=args.segments, train_limit=args.train_limit, batch_size=args.batch_size,
        workers=args.workers, device=args.device, precision=args.precision, cache_gb=args.cache_gb, out=args.out,
        watching=_watching(args), **_task_configs(args.set),
    )  # fmt: skip


def _dataset(args: argparse.Namespace) -> DatasetConfig | None:
    from evals.datasets import DatasetConfig
    from jepa.config import ConfigError

    if (args.dataset is None) != (args.data is None):
        raise ConfigError("--dataset NAME and --data ROOT go together")
    if args.dataset is None:
        if args.splits or args.anticipation_s is not None:
            raise ConfigError("--splits and --anticipation-s are for --dataset NAME")
        return None
    if args.where or args.span != "inside":
        raise ConfigError("--where and --span are for CSV files, not for --dataset")
    splits = _split(args.splits or "")
    if splits and len(splits) != 2:
        raise ConfigError(f"--splits needs two names FIT,REPORT, not {args.splits!r}")
    return DatasetConfig(
        name=args.dataset, root=args.data, splits=(splits[0], splits[1]) if splits else None,
        anticipation_s=args.anticipation_s, max_missing=args.max_missing,
    )  # fmt: skip


def _watching(args: argparse.Namespace) -> Watching:
    from evals.watching import Watching
    from jepa.config import ConfigError

    contexts = _split(args.context_frames)
    if not all(word.isdecimal() for word in contexts):
        raise ConfigError(f"--context-frames needs whole numbers A,B, not {args.context_frames!r}")
    return Watching(
        context_frames=tuple(int(word) for word in contexts), num_frames=args.window_frames, clip_fps=args.clip_fps,
        mask_token=args.mask_token, measure=args.measure, batch_size=args.batch_size, pairs=args.pairs,
    )


def _task_configs(overrides: Sequence[str]) -> dict[str, Any]:
    from evals.task_configs import DenseConfig, RetrievalConfig, TrackingConfig
    from jepa.config import ConfigError, apply_overrides, from_dict, suggest

    kinds = {"retrieval": RetrievalConfig, "tracking": TrackingConfig, "dense": DenseConfig}
    given = apply_overrides({}, overrides)
    for name in given:
        if name not in kinds:
            raise ConfigError(f"--set {name}: no task with such settings{suggest(name, kinds)}")
    return {name: from_dict(kind, given.get(name, {}), name) for name, kind in kinds.items()}


def _three(option: str, text: str) -> tuple[int, int, int]:
    from jepa.config import ConfigError

    numbers = [int(n) for n in _split(text) if n.isdecimal()]
    if len(numbers) != 3:
        raise ConfigError(f"{option} needs three whole numbers T,H,W, not {text!r}")
    return numbers[0], numbers[1], numbers[2]


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def evaluate(config: EvalConfig, out: str | Path | None = None) -> dict[str, Any]:
    """Run an eval and write ``results.json`` and ``results.md`` to ``out``, ``config.out`` or RUN/evals/TASK-PROBES.

    Returns what the file holds: ``rows`` (dicts of ``evals.settings.Row``), ``table`` (Markdown), ``seconds`` per
    stage, the ``config``, and ``facts`` about encoder, clips and data. Several probes at once share the features.
    """
    from evals.subjects import results_folder
    from evals.tables import table
    from evals.tasks import TASKS
    from jepa.checkpoint import code_version
    from jepa.config import ConfigError, suggest, to_dict

    if config.task not in TASKS:
        raise ConfigError(f"unknown task {config.task!r}{suggest(config.task, TASKS)}")
    config = config if out is None else replace(config, out=str(out))
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
    files = dict(result.files)
    if result.report is not None:
        files["report.html"] = result.report(results).encode()
    folder = results_folder(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (folder / "results.md").write_text("\n\n".join((results["table"], results["notes"])).strip() + "\n")
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise ConfigError(f"results cannot be written to {folder}: {error.strerror or error}; choose --out") from None
    return results


if __name__ == "__main__":
    sys.exit(main())
