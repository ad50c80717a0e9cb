"""Scaling efficiency of training over processes on this machine: weak and strong, DDP and FSDP.

    python benchmarks/scaling.py [--processes 1,2,4] [--parallel ddp,fsdp] [--size vit_nano] [--device cpu]

Every layout trains the same synthetic clips through ``jepa.train.fit`` in fresh processes. Weak scaling keeps the clips
per process, strong scaling the clips of the whole batch. The efficiency is clips/s over (processes x the clips/s of one
process); on CPUs each process has ``--threads`` threads, whatever the number of processes, so that more of them than
there are cores share those: then the best that can be reached is cores / (processes x threads), which is printed, too.
Rounds are taken in turns and the median counts. Prints a Markdown table with hardware, versions and date.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that the file runs by path, too

WORKER = """
import json, sys
import torch
torch.set_num_threads(int(sys.argv[2]))
from jepa.config import from_dict
from jepa.train import TrainConfig, fit
fit(from_dict(TrainConfig, json.loads(open(sys.argv[1]).read())))
"""


class Layout(NamedTuple):
    """One row of the table: ``clips`` are those of the whole batch."""

    parallel: str
    scaling: str
    processes: int
    clips: int


def main() -> None:
    options = arguments()
    counts = [int(number) for number in options.processes.split(",")]
    layouts = [
        Layout(parallel, scaling, number, options.batch_size * (number if scaling == "weak" else 1))
        for parallel in options.parallel.split(",")
        for scaling in ("weak", "strong")
        for number in counts
    ]
    wrong = [layout for layout in layouts if layout.clips % layout.processes]
    if wrong:
        raise SystemExit(f"--batch-size {options.batch_size} must be a multiple of {wrong[0].processes} processes")
    speeds: dict[Layout, list[float]] = {layout: [] for layout in layouts}
    with tempfile.TemporaryDirectory() as folder:
        clips = write_clips(Path(folder), options)
        for number in range(options.rounds):
            for layout in layouts:
                speeds[layout].append(clips_per_s(layout, Path(folder) / f"{number}", clips, options))
                print(f"round {number + 1}: {tuple(layout)}: {speeds[layout][-1]:.1f} clips/s", file=sys.stderr)
    print_table({layout: statistics.median(found) for layout, found in speeds.items()}, options)


def arguments() -> argparse.Namespace:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="1,2,4", help="numbers of processes; the first one is the reference")
    parser.add_argument("--parallel", default="ddp,fsdp")
    parser.add_argument("--device", default=device, choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--size", default="vit_nano" if device == "cpu" else "vit_large")
    parser.add_argument("--crop-size", type=int, default=64 if device == "cpu" else 224)
    parser.add_argument("--num-frames", type=int, default=8 if device == "cpu" else 16)
    parser.add_argument("--batch-size", type=int, default=8, help="clips per process (weak) and in all (strong)")
    parser.add_argument("--steps", type=int, default=12, help="steady steps that are timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


def write_clips(folder: Path, options: argparse.Namespace) -> Path:
    """Noise, enough for one batch of the largest layout: reading costs next to nothing."""
    count = options.batch_size * max(int(number) for number in options.processes.split(","))
    shape = (count, options.num_frames, options.crop_size, options.crop_size, 3)
    clips = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(folder / "clips.npz", clips=clips, labels=np.zeros(count, np.int64))
    return folder / "clips.npz"


def settings(layout: Layout, run_dir: Path, clips: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The training config. The log's second line is what counts: the first one holds the warm-up."""
    block = {"kind": "multiblock", "aspect_ratio": [1.0, 1.0], "levels": 1}
    small = options.device == "cpu"
    return {
        "run_dir": str(run_dir),
        "clip": {"num_frames": options.num_frames, "frame_step": 1, "crop_size": options.crop_size},
        "data": {"sources": [{"path": str(clips)}], "workers": 0},
        "encoder": {"size": options.size, "patch_size": 8 if small else 16},
        "masks": [{**block, "num_blocks": 8, "scale": [0.15, 0.15]}, {**block, "num_blocks": 2, "scale": [0.7, 0.7]}],
        "objective": {
            "kind": "masked",
            "predictor": {"embed_dim": 96, "depth": 2, "num_heads": 4} if small else {},
        },
        "train": {
            "steps": options.steps + 3, "log_every": 3, "save_every": 10**6, "batch_size": layout.clips,
            "parallel": layout.parallel, "device": options.device, "precision": options.precision,
            "compile": options.compile, "progress": "off", "tensorboard": False,
        },
        "monitor": {"every": 10**6, "clips": 2},
    }  # fmt: skip


def clips_per_s(layout: Layout, folder: Path, clips: Path, options: argparse.Namespace) -> float:
    """One training run in ``layout.processes`` processes: clips/s over its steady steps."""
    run_dir = folder / "-".join(map(str, layout))
    run_dir.mkdir(parents=True)
    config = run_dir / "settings.json"
    config.write_text(json.dumps(settings(layout, run_dir / "run", clips, options)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(layout.processes)}
    started = []
    for rank in range(layout.processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": str(options.threads)}
        environment = {**os.environ, **place, **own, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", WORKER, str(config), str(options.threads)]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate()[1] for process in started]
    for process, error in zip(started, errors, strict=True):
        if process.returncode:
            raise SystemExit(f"{tuple(layout)} failed:\n{error[-3000:]}")
    lines = [json.loads(line) for line in (run_dir / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["time/step_s"] for line in lines if "time/step_s" in line][1:]
    return layout.clips / statistics.median(steps)


def print_table(speeds: dict[Layout, float], options: argparse.Namespace) -> None:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cuda = options.device == "cuda"
    machine = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if cuda else f"{cores} CPU cores"
    print(
        f"{machine} ({platform.machine()}), {options.device}, {'NCCL' if cuda else 'gloo'}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {datetime.date.today()}; {options.size}, {options.num_frames} frames at "
        f"{options.crop_size} px, precision {options.precision}, {options.threads} CPU threads per process; median of "
        f"{options.rounds} rounds of {options.steps} steps.\n"
    )
    print("| parallel | scaling | processes | clips per step | clips/s | efficiency | best possible here |")
    print("|---|---|---|---|---|---|---|")
    single = {(layout.parallel, layout.scaling): speed for layout, speed in reversed(speeds.items())}
    reference = {(layout.parallel, layout.scaling): layout.processes for layout in reversed(speeds)}
    available = torch.cuda.device_count() if cuda else cores / options.threads
    for layout, speed in speeds.items():
        key = (layout.parallel, layout.scaling)
        efficiency = speed / single[key] * reference[key] / layout.processes
        best = min(1.0, available / layout.processes) / min(1.0, available / reference[key])
        print(
            f"| {layout.parallel} | {layout.scaling} | {layout.processes} | {layout.clips} | {speed:.1f} | "
            f"{efficiency:.0%} | {best:.0%} |"
        )
    if not cuda and max(layout.processes for layout in speeds) * options.threads > cores:
        print(
            f"\nWith more than {cores / options.threads:.0f} processes the {cores} cores are shared: nothing can scale."
        )


if __name__ == "__main__":
    main()
