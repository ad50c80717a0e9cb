"""Reading random training clips: a prepared folder against the long-GOP originals that it was made from.

    python benchmarks/decode.py [--videos 6] [--seconds 20] [--clips 40] [--rounds 5]

The originals are made here: moving textures, 854x480, 30 fps, a key frame every 250 frames, with B-frames: what
x264 and most web video use. Both folders are then read through the same ``Source`` (16 frames at 5 per second, short
side 128), one thread, alternating; the medians of the rounds are compared. Needs no network and no GPU.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F

from jepa.data.prepare import prepare
from jepa.data.sources import ReadOptions, Source, SourceConfig, open_source
from jepa.data.video import choose_backend
from jepa.types import ClipConfig

HEIGHT, WIDTH, FPS, GOP = 480, 854, 30, 250
CLIP = ClipConfig(num_frames=16, fps=5, crop_size=112, short_side=128)


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth noise with detail at several scales, uint8 ``[height, width, 3]``, periodic."""
    picture = np.zeros((height, width, 3))
    for cell in (8, 32, 128):
        noise = torch.from_numpy(rng.normal(size=(1, 3, height // cell + 1, width // cell + 1)))
        picture += F.interpolate(noise, size=(height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
    return np.clip(127 + 45 * picture, 0, 255).astype(np.uint8)


def write_original(path: Path, seconds: float, seed: int) -> None:
    """A background that drifts one way and a patch that moves another, long GOP."""
    rng = np.random.default_rng(seed)
    back, front = texture(rng, HEIGHT, WIDTH), texture(rng, 160, 160)
    dy, dx, fy, fx = rng.integers(-4, 5, size=4)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "medium", "crf": "23", "g": str(GOP)})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for t in range(round(seconds * FPS)):
            frame = np.roll(back, (dy * t, dx * t), axis=(0, 1))
            y, x = (100 + fy * t) % (HEIGHT - 160), (200 + fx * t) % (WIDTH - 160)
            frame[y : y + 160, x : x + 160] = front
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def seconds_per_clip(source: Source, clips: int, seed: int) -> tuple[float, float]:
    """Mean time of a random clip of a random video: by the clock, and of the processor (fair on a busy machine)."""
    rng = np.random.default_rng(seed)
    begin, busy = time.perf_counter(), time.process_time()
    for item in rng.integers(len(source), size=clips):
        source.load_clip(int(item), CLIP, rng)
    return (time.perf_counter() - begin) / clips, (time.process_time() - busy) / clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--clips", type=int, default=40, help="clips per round and folder")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        originals, prepared = Path(folder) / "originals", Path(folder) / "prepared"
        originals.mkdir()
        for number in range(args.videos):
            write_original(originals / f"{number}.mp4", args.seconds, number)
        begin = time.perf_counter()
        prepare(originals, prepared, short_side=128, fps=15, gop=8, progress=False)
        print(f"prepared {args.videos} videos of {args.seconds:.0f} s in {time.perf_counter() - begin:.1f} s")
        options = ReadOptions(short_side=CLIP.short_side)
        sources = {name: open_source(SourceConfig(path=str(path)), options)
                   for name, path in (("originals", originals), ("prepared", prepared))}  # fmt: skip
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
        for round_number in range(-1, args.rounds):  # the first one warms up and does not count
            for name, source in sources.items():
                taken = seconds_per_clip(source, args.clips if round_number >= 0 else 4, round_number + 1)
                if round_number >= 0:
                    times[name].append(taken)
        medians = {name: statistics.median(wall for wall, _ in values) for name, values in times.items()}
        busy = {name: statistics.median(cpu for _, cpu in values) for name, values in times.items()}
        print(f"reader {choose_backend()}, {HEIGHT}x{WIDTH} at {FPS} fps, a key frame every {GOP} frames")
        for name, median in medians.items():
            size = sum(p.stat().st_size for p in (originals if name == "originals" else prepared).glob("*.mp4"))
            print(f"{name:10s} {1e3 * median:8.1f} ms a clip, {1e3 * busy[name]:8.1f} ms of processor time, "
                  f"{1 / median:8.1f} clips/s, {size / 2**20:6.1f} MiB")  # fmt: skip
        print(f"ratio {medians['originals'] / medians['prepared']:.1f}x by the clock, "
              f"{busy['originals'] / busy['prepared']:.1f}x in processor time (aim: at least 5x)")  # fmt: skip


if __name__ == "__main__":
    main()
