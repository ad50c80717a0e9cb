"""``jepa demo``: render videos, pretrain on them, probe what was learned, draw it. One folder, one report."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from jepa.train import TrainConfig

T = TypeVar("T")
Decoded = dict[str, Mapping[str, Any]]  # rows of the task reconstruction by way

TRAIN_CLIPS = 2400
FORECAST = "forecast"  # folder of the second model
LABELS = ("object", "motion")
PROBES = ("linear", "attentive")
POOL = {"linear": (1, 1, 1), "attentive": (1, 2, 2)}  # attentive probes see 2 x 2 patches averaged: 4 times cheaper
CONFIG = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"
FORECAST_CONFIG = CONFIG.with_name("demo_forecast.yaml")
PAIRS = 8  # possible and impossible videos for each condition
SHORT_PAIRS = 2
DECODE = {"train_clips": 1024, "test_clips": 128, "depth": 1, "steps": 600, "predictor_steps": 600, "latent_noise": 0.2}
SHORT_DECODE = {  # only shows that it works: most of its time is the scoring of test clips
    "train_clips": 128, "test_clips": 8, "depth": 1, "steps": 60, "predictor_steps": 30, "batch_size": 8,
}  # fmt: skip
SHORT_FORECAST_STEPS = 60
SHORT = {"train_clips": 1200, "test_clips": 400, "steps": 400, "probes": ("linear",)}  # what CI can afford
SHORT_MARGIN = 0.1  # by how much the short run's linear motion probe must beat the random encoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="runs/demo", help="folder for videos, run and report (default: runs/demo)")
    parser.add_argument("--config", default=str(CONFIG), help="training config (default: configs/demo.yaml)")
    parser.add_argument("--seed", type=int, default=0, help="of the training and the probes (default: 0)")
    parser.add_argument("--train-clips", type=int, default=TRAIN_CLIPS)
    parser.add_argument("--test-clips", type=int, default=600)
    parser.add_argument("--steps", type=int, help="training steps (default: the config's)")
    parser.add_argument(
        "--short", action="store_true", help="a run of a few minutes that fails unless the encoder learned"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the training config")


class Stages:
    """Runs the stages one by one, says which one is running, and keeps their seconds."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names, self.seconds = names, dict[str, float]()

    def run(self, name: str, work: Callable[[], T]) -> T:
        print(f"[{self.names.index(name) + 1}/{len(self.names)}] {name}", flush=True)
        began = time.perf_counter()
        result = work()
        self.seconds[name] = round(time.perf_counter() - began, 1)
        return result


def run(args: argparse.Namespace) -> None:
    from evals.pages.decoded_section import verdict

    out = Path(args.out if not args.short or args.out != "runs/demo" else "runs/demo-short")
    if args.short:
        args.train_clips, args.test_clips = SHORT["train_clips"], SHORT["test_clips"]
        args.steps = args.steps or SHORT["steps"]
    stages = Stages(("render", "pretrain", "probe", "physics", "forecast", "decode", "report"))
    folder = out / ("world" if args.train_clips == TRAIN_CLIPS else f"world-{args.train_clips}")
    world = stages.run("render", lambda: render_world(folder, args))
    config, forecaster = training_config(args, out, world), forecast_config(args, out, world)
    stages.run("pretrain", lambda: pretrain(config))
    results = stages.run("probe", lambda: probe(config, world, SHORT["probes"] if args.short else PROBES, args.seed))
    physics = stages.run("physics", lambda: judge(config, SHORT_PAIRS if args.short else PAIRS, args.seed))
    stages.run("forecast", lambda: pretrain(forecaster))
    decoded = stages.run("decode", lambda: decode(forecaster, world, SHORT_DECODE if args.short else DECODE, args.seed))
    summary = {**summarise(config, results), "physics": physics_scores(physics), "decoded": decoded_scores(decoded)}
    report = stages.run("report", lambda: draw(results, out, stages.seconds, args.short))
    summary["seconds"] = first_seconds(out / "summary.json", summary["steps"], stages.seconds)
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(f"\n{results['table']}\n\n{physics['table']}\n\n{verdict(decoded)}")
    print(f"\nsummary: {out / 'summary.json'}\nreport:  {report}  (open it in a browser)")
    if args.short:
        check_learned(summary)


def render_world(folder: Path, args: argparse.Namespace) -> Path:
    """The built-in videos, rendered unless they are there already."""
    from evals.probes.sklearn_bridge import digit_images
    from jepa.data.synthetic.dataset import Glyphs, WorldConfig, write_world

    return write_world(folder, Glyphs(*digit_images()), WorldConfig(train=args.train_clips, test=args.test_clips))


def training_config(args: argparse.Namespace, out: Path, world: Path) -> TrainConfig:
    """The demo's config with this run's folders, seed and length."""
    steps = [] if args.steps is None else [f"train.steps={args.steps}"]
    return _config(args.config, out, args.seed, world, [*steps, *args.overrides])


def forecast_config(args: argparse.Namespace, out: Path, world: Path) -> TrainConfig:
    """The config of the second model, which predicts what follows."""
    steps = [f"train.steps={SHORT_FORECAST_STEPS}"] if args.short else []
    return _config(FORECAST_CONFIG, out / FORECAST, args.seed, world, steps)


def _config(path: str | Path, run_dir: Path, seed: int, world: Path, overrides: list[str]) -> TrainConfig:
    from jepa.config import apply_overrides, from_dict, load_yaml
    from jepa.train import TrainConfig

    own = [f"run_dir={run_dir}", f"seed={seed}", f"data.sources.0.path={world / 'train.csv'}"]
    return from_dict(TrainConfig, apply_overrides(load_yaml(path), [*own, *overrides]))


def pretrain(config: TrainConfig) -> None:
    """Train, unless the run has reached its last step already."""
    from evals.online import OnlineProbes
    from jepa.train import fit

    fit(config, OnlineProbes)


def probe(config: TrainConfig, world: Path, probes: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Linear and attentive probes of the trained encoder, a random one and raw pixels, on clips never trained on."""
    from evals.main import evaluate
    from evals.probes import ProbeConfig
    from evals.settings import EvalConfig
    from jepa.data.sources import SourceConfig

    return evaluate(
        EvalConfig(
            run=config.run_dir,
            train=SourceConfig(path=str(world / "train.csv")),
            test=SourceConfig(path=str(world / "test.csv")),
            labels=LABELS,
            probes=tuple(ProbeConfig(kind=kind, seed=seed, token_pool=POOL[kind]) for kind in probes),  # type: ignore[arg-type]
            random_seed=seed + 1,
            batch_size=32,
            cache_gb=4.0,  # about 1 GB, tokens and all; the report uses them again
        )
    )


def judge(config: TrainConfig, pairs: int, seed: int) -> dict[str, Any]:
    """Is the model more surprised by impossible videos than by possible ones, and than others are?"""
    from evals.main import evaluate
    from evals.settings import EvalConfig
    from evals.watching import Watching

    watching = Watching(pairs=pairs, batch_size=32, stride_tubelets=2)  # every other window: half the time
    out = str(physics_folder(Path(config.run_dir)))
    return evaluate(EvalConfig(run=config.run_dir, task="physics", random_seed=seed + 1, watching=watching, out=out))


def physics_folder(run_dir: Path) -> Path:
    """Where the results of the physics stage are, and its videos."""
    return run_dir / "evals" / "physics"


def physics_scores(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Accuracy over all pairs of every predictor, by the mean and by the largest surprise."""
    scores: dict[str, dict[str, float]] = {}
    for row in results["rows"]:
        if row["condition"] == "all":
            scores.setdefault(row["predictor"], {})[row["over"]] = round(row["accuracy"], 4)
    return scores


def decode(config: TrainConfig, world: Path, settings: dict[str, int], seed: int) -> Decoded:
    """What does the forecaster expect, in pixels? Of test clips the first half is seen. ``settings``: of
    ``evals.task_configs.ReconstructionTask``."""
    from evals.main import evaluate
    from evals.pages.decoded_section import compared
    from evals.settings import EvalConfig
    from evals.task_configs import ReconstructionTask
    from jepa.data.sources import SourceConfig

    results = evaluate(
        EvalConfig(
            run=config.run_dir,
            task="reconstruction",
            train=SourceConfig(path=str(world / "train.csv")),
            test=SourceConfig(path=str(world / "test.csv")),
            precision=config.train.precision,
            random_seed=seed + 1,
            batch_size=32,
            cache_gb=0.0,  # nobody uses these tokens again
            reconstruction=ReconstructionTask(places=("forecast",), pictures=4, seed=seed, **settings),  # type: ignore[arg-type]
            out=str(decoded_folder(Path(config.run_dir))),
        )
    )
    return compared(results["rows"], "forecast")


def decoded_folder(run_dir: Path) -> Path:
    """Where the results of the decode stage are."""
    return run_dir / "evals" / "reconstruction"


def decoded_scores(decoded: Decoded) -> dict[str, dict[str, float | None]]:
    """Of every way to fill in what was hidden: PSNR in dB and, where objects move, ``moving``; the share of frames
    (``near``), and of clips in the last frame and in all of them, with the object within one patch of its true place.
    None: not known."""
    scores: dict[str, dict[str, float | None]] = {}
    for way, row in decoded.items():
        last = row["frames"][-1]["near"] if row["frames"] else None
        found = {"psnr": row["psnr"], "moving": row["moving"], "near": row["near"], "near_last": last,
                 "near_throughout": row["throughout"]}  # fmt: skip
        scores[way] = {name: None if value is None else round(value, 4) for name, value in found.items()}
    return scores


def summarise(config: TrainConfig, results: dict[str, Any]) -> dict[str, Any]:
    """The numbers of the run: ``summary[probe][label][encoder]`` accuracies, speed, steps and effective rank."""
    from jepa.logging import read_metrics

    summary: dict[str, Any] = {}
    for row in results["rows"]:
        cell = summary.setdefault(row["probe"], {}).setdefault(row["label"], {"chance": round(row["chance"], 4)})
        cell[row["encoder"]] = round(row["accuracy"], 4)
    records = read_metrics(config.run_dir)
    speeds = sorted(r["time/clips_per_s"] for r in records if "time/clips_per_s" in r)
    ranks = [r["monitor/rankme"] for r in records if "monitor/rankme" in r]
    summary["clips_per_s"] = round(speeds[len(speeds) // 2], 1) if speeds else None
    summary["steps"] = results["step"]
    summary["rankme"] = round(ranks[-1], 1) if ranks else None
    return summary


def first_seconds(path: Path, steps: int, seconds: dict[str, float]) -> dict[str, float]:
    """Seconds per stage and in total; a stage that an earlier call had done already keeps the time it took then."""
    earlier = json.loads(path.read_text()) if path.exists() else {}
    before = earlier.get("seconds", {}) if earlier.get("steps") == steps else {}
    kept = {stage: max(value, before.get(stage, 0.0)) for stage, value in seconds.items()}
    return {**kept, "total": round(sum(kept.values()), 1)}


def draw(results: dict[str, Any], out: Path, seconds: dict[str, float], short: bool) -> Path:
    """The report: one self-contained HTML file."""
    from evals.pages.report import ReportConfig, write_report

    command = "jepa demo --short" if short else "make demo"
    return write_report(
        ReportConfig(
            results=results,
            out=out / "report.html",
            seconds=seconds,
            command=command,
            physics=physics_folder(out),
            decoded=decoded_folder(out / FORECAST),
        )
    )


def check_learned(summary: dict[str, Any]) -> None:
    """Raise ``ValueError`` unless the short run's linear motion probe clearly beats the random encoder's."""
    cell = summary["linear"]["motion"]
    if cell["trained"] < cell["random"] + SHORT_MARGIN:
        raise ValueError(
            f"the short demo did not learn: linear motion probe {cell['trained']:.3f} trained, {cell['random']:.3f} "
            f"random; at least {SHORT_MARGIN} more was expected"
        )
