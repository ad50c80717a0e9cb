"""``jepa predict MODEL VIDEO...``: the surprise of a model over whole videos, and where it is highest."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jepa.predictive import Predictive
    from jepa.surprise_curve import SurpriseCurve

SUFFIXES = (".json", ".csv", ".png", ".html")
MAX_DRAWN = 12  # videos in one PNG


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="run directory or checkpoint with a predictor, or the name of a published model")
    parser.add_argument("videos", nargs="+", help="videos, folders, patterns, CSVs, .npy or .npz files")
    parser.add_argument(
        "-o", "--out", action="append", default=[], metavar="FILE",
        help="write the curves to .json, .csv, .png or .html; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--context", metavar="FRAMES",
        help="frames of each window that are seen, one number or several (4,6,8), the rest is predicted; default: half",
    )  # fmt: skip
    parser.add_argument("--num-frames", type=int, help="frames of a window (default: the model's)")
    parser.add_argument("--stride", type=int, metavar="FRAMES", help="from window to window (default: one tubelet)")
    parser.add_argument("--mask-token", type=int, default=0, help="which mask token of the predictor (default: 0)")
    parser.add_argument("--measure", choices=("l1", "smooth_l1", "cosine"), default="l1", help="error (default: l1)")
    parser.add_argument(
        "--threshold", type=float, metavar="Q", help="also list what lies above this quantile of the video's own curve"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="windows at once (default: 8)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")


def run(args: argparse.Namespace) -> int:
    from jepa.inputs import list_inputs
    from jepa.predictive import load_predictive

    outs = [Path(out) for out in args.out]
    wrong = [out for out in outs if out.suffix not in SUFFIXES]
    if wrong:
        raise ValueError(f"--out must end in one of {', '.join(SUFFIXES)}, not {wrong[0]}")
    if args.threshold is not None and not 0 < args.threshold < 1:
        raise ValueError(f"--threshold must be a quantile between 0 and 1, for example 0.95, not {args.threshold}")
    model = load_predictive(args.model)
    videos = list_inputs(args.videos, model.clip)
    if any(out.suffix == ".png" for out in outs) and len(videos) > MAX_DRAWN:
        raise ValueError(f"a .png shows at most {MAX_DRAWN} videos, these are {len(videos)}: write an .html instead")
    curves, failed = measure(model, videos, args)
    if not curves:
        raise ValueError(f"no video could be used; the first: {failed[0]}")
    for out in outs:
        write(out, curves, failed, args)
    if failed:
        print(f"{len(failed)} of {len(videos)} videos could not be used:")
        print("\n".join(f"  {reason}" for reason in failed))
    return 1 if failed else 0


def measure(model: Predictive, videos: list[Any], args: argparse.Namespace) -> tuple[list[SurpriseCurve], list[str]]:
    """The curves of the videos that can be read, printed as they come, and what is wrong with the others."""
    import sys

    from tqdm import tqdm

    from jepa.data.video import VideoError
    from jepa.masks.chosen import Tubelet, tubelets_of
    from jepa.surprise import surprise

    tubelet = Tubelet(model.context_encoder.config.tubelet_size, 1.0)
    words = [word.strip() for word in args.context.split(",")] if args.context else []
    contexts = [tubelets_of("--context", f"{word} frames", tubelet) for word in words] or None
    stride = 1 if args.stride is None else tubelets_of("--stride", f"{args.stride} frames", tubelet)
    curves, failed = [], []
    for video in videos:
        with tqdm(total=100, unit="%", desc=video.name, leave=False, disable=not sys.stderr.isatty()) as bar:
            try:
                curve = surprise(
                    video, model, contexts, stride_tubelets=stride, num_frames=args.num_frames,
                    mask_token=args.mask_token, measure=args.measure, batch_size=args.batch_size, device=args.device,
                    precision=args.precision, progress=lambda share, bar=bar: bar.update(round(100 * share) - bar.n),
                )  # fmt: skip
            except VideoError as error:
                failed.append(str(error))
                continue
        curves.append(curve)
        print("\n".join(describe(curve, args.threshold)), flush=True)
    return curves, failed


def describe(curve: SurpriseCurve, quantile: float | None) -> list[str]:
    """What is said of one video."""
    top, middle = curve.highest(), float(curve.mean().nanmedian())
    skill = float(curve.skill().mean())
    lines = [
        f"{curve.source}: highest surprise {top.surprise:.3g} at {top.start_s:.2f}-{top.end_s:.2f} s "
        f"({top.surprise / max(middle, 1e-12):.2f} times the median), mean {curve.score():.3g}, skill {skill:.2f}"
    ]
    if skill <= 0:
        lines.append("  no better here than predicting that nothing changes: what rises may be change alone")
    if quantile is not None:
        lines += [
            f"  above the {quantile:g} quantile: {e.start_s:.2f}-{e.end_s:.2f} s (up to {e.surprise:.3g})"
            for e in curve.events(quantile)
        ]
    return lines


def write(out: Path, curves: list[SurpriseCurve], failed: list[str], args: argparse.Namespace) -> None:
    """The curves in the format of ``out``, in one move. Raises ``ValueError`` naming the file."""
    import json

    from app.output import write_output
    from app.surprise_picture import picture

    if out.suffix == ".json":
        videos = [as_json(curve, args.threshold) for curve in curves]
        data = (json.dumps({"videos": videos, "failed": failed}, indent=1, allow_nan=False) + "\n").encode()
    elif out.suffix == ".csv":
        data = as_csv(curves).encode()
    elif out.suffix == ".png":
        data = picture(curves, [curve.source for curve in curves], args.threshold)
    else:
        data = as_html(curves, failed, args.threshold).encode()
    write_output(out, data)


def as_json(curve: SurpriseCurve, quantile: float | None) -> dict[str, Any]:
    """Everything of a curve; null where nothing was predicted."""
    import math

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    names = (
        "start_s", "end_s", "surprise", "peak", "windows", "copy_last", "context_mean", "window_start",
        "window_surprise",
    )  # fmt: skip
    return {
        "source": curve.source, "context_tubelets": list(curve.context_tubelets), "mean": plain(curve.mean().tolist()),
        **{name: plain(getattr(curve, name).tolist()) for name in names},
        "score_mean": curve.score("mean"), "score_max": curve.score("max"), "skill": plain(curve.skill().tolist()),
        "events": [] if quantile is None else [event._asdict() for event in curve.events(quantile)],
        "metadata": curve.metadata,
    }  # fmt: skip


def as_csv(curves: list[SurpriseCurve]) -> str:
    """One line per video, tubelet and context length; empty where nothing was predicted."""
    import csv
    import io

    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    columns = ("surprise", "peak", "copy_last", "context_mean")
    table.writerow(("source", "start_s", "end_s", "context_frames", *columns, "windows"))
    for curve in curves:
        frames = curve.metadata["tubelet_frames"]
        for tubelet in range(len(curve)):
            for row, seen in enumerate(curve.context_tubelets):
                count = int(curve.windows[row, tubelet])
                values = [f"{float(getattr(curve, name)[row, tubelet]):.6g}" if count else "" for name in columns]
                times = (f"{float(curve.start_s[tubelet]):.6g}", f"{float(curve.end_s[tubelet]):.6g}")
                table.writerow((curve.source, *times, seen * frames, *values, count))
    return text.getvalue()


def as_html(curves: list[SurpriseCurve], failed: list[str], quantile: float | None) -> str:
    """A page: what was found in a table, then a picture per video."""
    import base64

    from app.surprise_picture import picture
    from app.view_page import Names, document
    from evals.pages import page

    names = Names([curve.source for curve in curves])
    head = ("video", "highest at", "surprise", "times the median", "mean", "skill")
    rows = []
    for curve in curves:
        top, middle = curve.highest(), float(curve.mean().nanmedian())
        numbers = (top.surprise, top.surprise / max(middle, 1e-12), curve.score(), float(curve.skill().mean()))
        rows.append((names(curve.source), f"{top.start_s:.2f}-{top.end_s:.2f} s", *(f"{n:.3g}" for n in numbers)))
    parts = [page.section("Where surprise is highest", page.card(page.table(head, rows)))]
    for curve in curves:
        drawn = base64.b64encode(picture([curve], [names(curve.source)], quantile)).decode()
        parts.append(page.card(page.image(f"data:image/png;base64,{drawn}", f"surprise over {names(curve.source)}")))
    if failed:
        parts.append(page.section("Not used", *(page.text(reason) for reason in failed)))
    about = curves[0].metadata
    seen = ", ".join(str(n * about["tubelet_frames"]) for n in curves[0].context_tubelets)
    subtitle = f"{about['model']}: {seen} of {about['clip']['num_frames']} frames are seen, the rest is predicted"
    return document("Surprise", subtitle, parts)
