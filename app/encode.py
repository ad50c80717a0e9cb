"""``jepa encode VIDEOS... -o features.parquet --model M``"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "videos, images, URLs, folders, globs, CSV/TSV/txt lists, .npy or .npz"
    parser.add_argument("inputs", nargs="+", metavar="VIDEO", help=what)
    parser.add_argument("-o", "--out", required=True, help=".parquet, .safetensors or .npz file to write")
    parser.add_argument("--model", required=True, help="run directory, checkpoint, timm:NAME, or name (`jepa models`)")
    parser.add_argument("--weights", choices=("target_encoder", "encoder"), default="target_encoder")
    parser.add_argument(
        "--pool", choices=("mean", "none", "attentive"), default="mean",
        help="one vector per row by the mean or by --probe, or all tokens (default: mean)",
    )  # fmt: skip
    parser.add_argument("--probe", help="attentive probe for --pool attentive: a published name, or a file")
    parser.add_argument("--probe-config", help="JSON of its embed_dim, num_heads, ... (default: config.json beside it)")
    parser.add_argument("--layers", type=int, nargs="+", help="blocks to take tokens from (negative: from the last)")
    parser.add_argument("--segments", type=int, default=1, help="clips spread over each video (default: 1, the middle)")
    parser.add_argument("--overlap", type=float, help="slide over whole videos; share of a window, e.g. 0.5")
    parser.add_argument(
        "--merge", choices=("none", "mean", "latest"), default="none",
        help="with --overlap: a row per window, or one per tubelet (default: none)",
    )  # fmt: skip
    parser.add_argument("--fps", type=float, help="sample videos at this rate instead of the model's")
    parser.add_argument("--num-frames", type=int, help="frames of a clip instead of the model's")
    parser.add_argument("--crop-size", type=int, help="resolution in pixels instead of the model's")
    parser.add_argument("--fit", choices=("crop", "keep", "stretch"), help="centre crop, keep the shape, or stretch")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--precision", default="auto", help="auto, fp32, bf16, fp16")
    parser.add_argument("--batch-size", type=_auto_or_number, default="auto", help="clips at once, or auto")
    parser.add_argument("--workers", type=_auto_or_number, default="auto", help="decoding processes, or auto")
    parser.add_argument("--force", action="store_true", help="replace OUT where it holds other features")


def _auto_or_number(text: str) -> int | str:
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be auto or a whole number, not {text!r}")
    return text if text == "auto" else int(text)


def _load_probe(path: str, config: str | None) -> object:
    """The attentive probe of this name, or of a published file, whose shape stands in ``config``."""
    import json
    import os

    from jepa.pretrained import load_pretrained
    from jepa.pretrained.zoo import MODELS

    if path in MODELS and not os.path.exists(path):
        return load_pretrained(path).probe
    config = config or os.path.join(os.path.dirname(path), "config.json")
    try:
        with open(config) as file:
            shape = json.load(file)
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"--probe {path}: its shape cannot be read from {config}: {error}") from None
    return load_pretrained(path, **{"family": "probe", **shape}).probe


def run(args: argparse.Namespace) -> int:
    from jepa.logging import duration
    from jepa.streaming import encode_files

    probe = None if args.probe is None else _load_probe(args.probe, args.probe_config)
    result = encode_files(
        args.inputs, args.out, args.model, weights=args.weights, pool=args.pool, probe=probe, layers=args.layers,
        segments=args.segments, overlap=args.overlap, merge=args.merge, clip_fps=args.fps, num_frames=args.num_frames,
        crop_size=args.crop_size, fit=args.fit, device=args.device, precision=args.precision,
        batch_size=args.batch_size, workers=args.workers, overwrite=args.force,
    )  # fmt: skip
    if result.is_main:
        print(f"{result.path}: {result.rows} rows")
        if result.seconds:
            print(
                f"{result.clips_per_s:.1f} clips/s, {duration(result.seconds)}; "
                f"the device waited for data {result.wait_share:.0%} of the time"
            )
        for reason in result.failed:
            print(f"failed: {reason}")
        if result.failed:
            print(f"{len(result.failed)} inputs failed; the others are in {result.path}")
    return 1 if result.failed else 0
