"""``jepa encode RUN INPUT... --out features.npz``"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="run directory or checkpoint file")
    parser.add_argument("inputs", nargs="+", help="videos, images, folders, CSVs, .npy or .npz files")
    parser.add_argument("--out", required=True, help=".npz file to write")
    parser.add_argument("--pooled", action="store_true", help="one vector per clip instead of one per token")
    parser.add_argument("--weights", choices=("target_encoder", "encoder"), default="target_encoder")
    parser.add_argument("--segments", type=int, default=1, help="clips spread over each video (default: 1)")
    parser.add_argument("--layers", type=int, nargs="+", help="blocks to take tokens from (negative: from the last)")
    parser.add_argument("--batch-size", type=int, default=8, help="clips encoded at once")
    parser.add_argument("--skip-bad", action="store_true", help="leave out files that cannot be decoded")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")


def run(args: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    import numpy as np

    from jepa.checkpoint import atomic_write
    from jepa.encode import encode
    from jepa.load import load

    out = Path(args.out)
    if out.suffix != ".npz":
        raise ValueError(f"--out must name an .npz file, not {out}")
    features = encode(
        args.inputs, load(args.model, args.weights), batch_size=args.batch_size, device=args.device,
        precision=args.precision, layers=args.layers, segments=args.segments,
        on_error="skip" if args.skip_bad else "raise",
    )  # fmt: skip
    assert features.start_s is not None
    assert features.end_s is not None
    arrays = {
        "features": (features.pooled() if args.pooled else features.tokens).numpy(),
        "grid": np.array(features.grid),
        "start_s": features.start_s.numpy(),
        "end_s": features.end_s.numpy(),
        "sources": np.array(features.sources),
        "metadata": np.array(json.dumps(features.metadata, default=str)),
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise ValueError(f"{out} cannot be written: {error.strerror or error}; choose another --out") from error
    shape = " x ".join(str(n) for n in arrays["features"].shape)
    print(f"{out}: features {shape}, {len(set(features.sources))} sources, grid {' x '.join(map(str, features.grid))}")
