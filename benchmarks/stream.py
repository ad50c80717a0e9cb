"""A million samples in tar shards: memory of a worker and speed, beside webdataset's own pipeline.

    python benchmarks/stream.py [--samples 1000000] [--workers 2] [--videos 400] [--folder DIR]

Makes shards of 10,000 tiny members each (one shard, copied: it is the reading that counts), builds the index, and lets
``--workers`` processes go through one whole epoch of raw members: through this toolkit's order and index, and through
``webdataset.WebLoader`` (shards shuffled, a buffer of 1000). Every worker reports what memory is its own (not shared
with others) on the way. Then clips are cut from ``--videos`` small videos in shards by both, one worker each. Needs
1.1 kB of disk for each sample.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader, Dataset

from jepa.data.encoding import write_video
from jepa.data.loader import DataConfig, TrainLoader
from jepa.data.mixture import Mixture, ShardOrder
from jepa.data.sampling import frame_indices
from jepa.data.sources import Source, SourceConfig, open_source
from jepa.data.tar_writer import write_shards
from jepa.data.video import open_video
from jepa.types import ClipConfig

PER_SHARD, BATCH = 10_000, 100
CLIP = ClipConfig(num_frames=16, fps=8, crop_size=64, short_side=64)
MEMBER = b"P6 1 1 255 abc"


def own_memory() -> float:
    """MiB that this process shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def write_members(folder: Path, samples: int) -> None:
    """``samples`` tiny members in shards."""
    folder.mkdir()
    with tarfile.open(folder / "000000.tar", "w") as tar:
        for number in range(min(PER_SHARD, samples)):
            info = tarfile.TarInfo(f"{number:08d}.ppm")
            info.size = len(MEMBER)
            tar.addfile(info, io.BytesIO(MEMBER))
    for shard in range(1, samples // PER_SHARD):
        shutil.copy(folder / "000000.tar", folder / f"{shard:06d}.tar")


class Raw(Dataset[tuple[int, int, float]]):
    """Step -> (bytes read, worker's number, its memory)."""

    def __init__(self, source: Source) -> None:
        assert source.tar is not None
        self.items, order = source.tar, ShardOrder(source.tar.shard_sizes(), source.config.shuffle_shards)
        self.mixture = Mixture([order], [1.0], seed=0, batch_size=BATCH)

    def __getitem__(self, step: int) -> tuple[int, int, float]:
        drawn = [self.mixture.locate(position)[1] for position in range(step * BATCH, (step + 1) * BATCH)]
        count = sum(len(self.items.file(item).read()) for item in drawn)
        return count, os.getpid(), own_memory() if step % 100 < 8 else 0.0


class Measure:
    """What a webdataset pipeline does with a batch: the same as ``Raw``."""

    def __init__(self) -> None:
        self.batches = 0

    def __call__(self, batch: tuple[Any, ...]) -> tuple[int, int, float]:
        self.batches += 1
        return sum(map(len, batch[0])), os.getpid(), own_memory() if self.batches % 50 < 4 else 0.0


def report(name: str, batches: Iterator[tuple[int, int, float]], samples: int) -> None:
    """Go through an epoch; say how fast it was and how the workers' memory went."""
    begin, seen, total = time.perf_counter(), 0, 0
    memory: dict[int, list[tuple[int, float]]] = {}
    for size, worker, own in batches:
        seen, total = seen + BATCH, total + size
        if own:
            memory.setdefault(worker, []).append((seen, own))
        if sys.stderr.isatty():
            print(f"\r{name} {seen}", end="", file=sys.stderr)
    seconds = time.perf_counter() - begin
    assert total == samples * len(MEMBER), "an epoch must hold every sample once"
    marks = [0.1, 0.25, 0.5, 0.75, 1.0]
    rows = [[next((own for at, own in values if at >= mark * 0.98 * samples), values[-1][1]) for mark in marks]
            for values in memory.values()]  # fmt: skip
    worst = np.array(rows).max(axis=0)
    told = ", ".join(f"{own:.0f} at {mark:.0%}" for mark, own in zip(marks, worst, strict=True))
    print(f"{name:12s} {samples / seconds:10.0f} members/s   own memory of a worker, MiB: {told}", flush=True)


def compare_members(folder: Path, samples: int, workers: int) -> None:
    before = own_memory()
    begin = time.perf_counter()
    source = open_source(SourceConfig(path=str(folder)))
    print(f"index of {samples} samples: built in {time.perf_counter() - begin:.1f} s", flush=True)
    begin = time.perf_counter()
    open_source(SourceConfig(path=str(folder)))
    again, more = time.perf_counter() - begin, own_memory() - before
    print(f"  opened again in {again:.2f} s; the main process has {more:.0f} MiB more of its own", flush=True)
    loader = DataLoader(Raw(source), batch_size=None, sampler=range(samples // BATCH), num_workers=workers)
    report("jepa", iter(loader), samples)
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    pipeline = (
        wds.WebDataset(urls, shardshuffle=len(urls), seed=0, empty_check=False).shuffle(1000).to_tuple("ppm")
        .batched(BATCH, collation_fn=lambda rows: tuple(zip(*rows, strict=True))).map(Measure())
    )  # fmt: skip
    report("webdataset", iter(wds.WebLoader(pipeline, batch_size=None, num_workers=workers)), samples)


def decode(data: bytes) -> torch.Tensor:
    """A clip the way this toolkit cuts it, for webdataset's pipeline."""
    with open_video("member.mp4", "auto", 64, file=io.BytesIO(data)) as video:
        choice = frame_indices(video.num_frames, video.fps, CLIP, np.random.default_rng())
        return torch.from_numpy(video.read(choice.indices))


def clips_per_second(batches: Iterator[Any], count: Callable[[Any], int], clips: int) -> float:
    seen = -count(next(batches))  # the first one starts the worker
    begin = time.perf_counter()
    seen = 0
    while seen < clips:
        seen += count(next(batches))
    return seen / (time.perf_counter() - begin)


def compare_clips(folder: Path, videos: int, rounds: int = 3) -> None:
    rng = np.random.default_rng(0)
    (folder / "videos").mkdir()
    for number in range(videos):
        noise = rng.integers(0, 255, (1, 16, 16, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
        frames = np.concatenate([np.roll(noise, shift, axis=2) for shift in range(48)])
        write_video(folder / "videos" / f"{number:05d}.mp4", frames, fps=16)
    write_shards([SourceConfig(path=str(folder / "videos"))], folder / "shards", shard_count=8, progress=False)
    urls = sorted(str(path) for path in (folder / "shards").glob("*.tar"))
    speeds: dict[str, list[float]] = {"jepa, folder": [], "jepa, shards": [], "webdataset": []}
    for _ in range(rounds):
        for name, path in (("jepa, folder", folder / "videos"), ("jepa, shards", folder / "shards")):
            data = DataConfig(sources=[SourceConfig(path=str(path))], workers=1)
            batches = TrainLoader(data, CLIP, [], 16).iterate()
            speeds[name].append(clips_per_second(batches, lambda batch: len(batch.clip), 2 * videos))
            batches.close()
        plain = wds.WebDataset(urls, shardshuffle=8, seed=0, empty_check=False).repeat().shuffle(100).to_tuple("mp4")
        pipeline = plain.map_tuple(decode).batched(16)
        loader = iter(wds.WebLoader(pipeline, batch_size=None, num_workers=1))
        speeds["webdataset"].append(clips_per_second(loader, lambda batch: len(batch[0]), 2 * videos))
        del loader
    for name, values in speeds.items():
        print(f"{name:12s} {np.median(values):8.1f} clips/s (of {', '.join(f'{value:.0f}' for value in values)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1_000_000, help=f"a multiple of {PER_SHARD}")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--videos", type=int, default=400)
    parser.add_argument("--folder", help="where to make the shards (default: the system's temporary folder)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("jepa").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        os.environ["JEPA_CACHE"] = str(Path(folder) / "cache")
        write_members(Path(folder) / "members", args.samples)
        compare_members(Path(folder) / "members", args.samples, args.workers)
        compare_clips(Path(folder), args.videos)


if __name__ == "__main__":
    main()
