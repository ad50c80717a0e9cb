"""``jepa export RUN DST --format transformers|safetensors|onnx|torch-export|checkpoint``"""

from __future__ import annotations

import argparse

FORMATS = ("transformers", "safetensors", "onnx", "torch-export", "checkpoint")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN", help="run directory, checkpoint, published name or exported folder")
    parser.add_argument("destination", metavar="DST", help="folder, or file .onnx, .pt2 (graphs) or .pt (checkpoint)")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--weights", choices=("target_encoder", "encoder"), default="target_encoder")
    parser.add_argument("--frames", type=int, help="frames of the clip that a graph is made for (default: the model's)")
    parser.add_argument("--resolution", type=int, help="pixels a side of that clip (default: the model's)")
    parser.add_argument("--dynamic-size", action="store_true", help="a graph for clips of every length and size")
    parser.add_argument("--opset", type=int, help="version of the ONNX operators (default: PyTorch's choice)")
    parser.add_argument("--force", action="store_true", help="replace an export that is there")


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from jepa.export import export

    path = export(
        args.model, args.destination, args.format, weights=args.weights, frames=args.frames,
        resolution=args.resolution, dynamic_size=args.dynamic_size, opset=args.opset, force=args.force,
    )  # fmt: skip
    files = [path, *path.parent.glob(f"{path.name}.*")] if path.is_file() else sorted(Path(path).iterdir())
    print("\n".join(f"{file}  {file.stat().st_size / 2**20:.1f} MiB" for file in files))
