"""A grid of 20 probe heads: encoded once and trained together, against encoding every epoch, one head after another.

    python benchmarks/probe.py [--clips 5000] [--epochs 20] [--probe attentive] [--model runs/demo] [--memory-gb 0.25]

Both sides read the same videos of the built-in world with the same reader, encoder, clips, heads, batch size, number of
steps and schedule. The peer does what the reference repository does: every epoch decodes and encodes all clips again,
and every head is a module with an optimizer of its own; it judges all heads on the test clips after the last epoch.
Ours is ``jepa eval`` with an empty cache: it also fits every head on four fifths of the training clips to choose one.
Prints times and their ratio, the test accuracies of the heads of both sides, and our peak of private memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs by path, too

import jepa
from benchmarks import common
from evals.main import evaluate
from evals.probes import ProbeConfig
from evals.probes.heads import schedule
from evals.probes.sklearn_bridge import digit_images
from evals.settings import EvalConfig
from jepa.data.batches import collate
from jepa.data.settings import eval_options
from jepa.data.sources import Source, SourceConfig, open_source
from jepa.data.synthetic.dataset import Glyphs, WorldConfig, write_world
from jepa.data.transforms import ClipTransform
from jepa.export.folders import write_safetensors
from jepa.export.source import Source as ExportSource
from jepa.models import Encoder, EncoderConfig
from jepa.models.attentive import AttentiveConfig, AttentiveProbe
from jepa.models.base import ClipEncoder
from jepa.types import ClipConfig

GRIDS = {  # 20 heads: learning rates x weight decays
    "linear": ((1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (0.0, 0.01, 0.1, 1.0)),
    "attentive": ((1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (0.0, 0.01, 0.1, 0.4)),
}
T = TypeVar("T")
LABEL, BATCH = "motion", 128


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        train, test = make_world(Path(folder) / "world", options.clips)
        model = options.model or str(random_model(Path(folder) / "model"))
        print(
            f"{options.probe}, {len(train)} training and {len(test)} test clips, 20 heads, {options.epochs} epochs of "
            f"batches of {BATCH}; {common.describe_machine('cpu')}"
        )
        with MemoryPeak() as peak:
            results, wall, cpu = timed(lambda: ours(model, train, test, options, Path(folder) / "results"))
        heads = {"ours": results["rows"][0]["heads_on_test"]}
        stages = ", ".join(f"{name} {value:.1f} s" for name, value in results["seconds"].items() if name != "total")
        print(f"  ours:  {wall:.1f} s, {cpu:.1f} s of processor time ({stages})", flush=True)
        print(f"         private memory grew by {peak.grown / 2**20:.0f} MiB", flush=True)
        heads["peer"], wall_peer, cpu_peer = timed(lambda: peer(jepa.load(model), train, test, options))
        print(f"  peer:  {wall_peer:.1f} s, {cpu_peer:.1f} s of processor time")
    print(f"  ratio: {wall_peer / wall:.1f}x by the clock, {cpu_peer / cpu:.1f}x in processor time")
    print(f"  reported by ours, chosen on training clips: {100 * results['rows'][0]['accuracy']:.1f} %")
    for name, scores in heads.items():
        print(f"  heads of {name} on test clips: best {100 * max(scores):.1f} %, median {100 * median(scores):.1f} %")
    error = (max(heads["ours"]) * (1 - max(heads["ours"])) / len(test)) ** 0.5
    print(f"  one standard error of an accuracy: {100 * error:.1f} points")


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """What ``work`` returns, its seconds by the clock and of processor time (for busy machines)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=5000, help="four fifths of them to train on")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--probe", choices=tuple(GRIDS), default="linear")
    parser.add_argument("--model", help="any that jepa.load takes (default: the demo's architecture, random weights)")
    parser.add_argument("--memory-gb", type=float, default=4.0, help="larger features are read from disk in batches")
    parser.add_argument("--folder", help="where videos and features lie for a while (default: the system's)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def make_world(folder: Path, clips: int) -> tuple[Source, Source]:
    """The built-in videos: training and test source."""
    write_world(folder, Glyphs(*digit_images()), WorldConfig(train=clips * 4 // 5, test=clips - clips * 4 // 5))
    train = open_source(SourceConfig(path=str(folder / "train.csv"), label_column=LABEL))
    test = open_source(SourceConfig(path=str(folder / "test.csv"), label_column=LABEL), None, train.class_names)
    return train, test


def random_model(folder: Path) -> Path:
    """The demo's encoder with random weights, as a folder."""
    clip = ClipConfig(num_frames=8, frame_step=2, crop_size=64, short_side=64, mean=(0.5,) * 3, std=(0.25,) * 3)
    config = EncoderConfig(size="vit_nano", embed_dim=96, depth=4, num_heads=3, patch_size=8, init="xavier")
    torch.manual_seed(0)
    encoder = Encoder(config, clip)
    folder.mkdir()
    parts = {"predictor": None, "probe": None, "family": "run", "weights": None}
    write_safetensors(ExportSource(name="random", encoder=encoder, **parts), folder)
    return folder


def probe_of(options: argparse.Namespace, clips: int) -> ProbeConfig:
    rates, decays = GRIDS[options.probe]
    return ProbeConfig(
        kind=options.probe, learning_rates=rates, weight_decays=decays, batch_size=BATCH,
        steps=options.epochs * -(-clips // BATCH),
    )  # fmt: skip


def ours(model: str, train: Source, test: Source, options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """``jepa eval``, from files to results.json."""
    return evaluate(
        EvalConfig(
            run=model, train=train.config, test=test.config, baselines=(), probes=(probe_of(options, len(train)),),
            batch_size=32, memory_gb=options.memory_gb, out=str(out),
        )
    )  # fmt: skip


# ---- the peer --------------------------------------------------------------------------------------------------------


def peer(encoder: ClipEncoder, train: Source, test: Source, options: argparse.Namespace) -> list[float]:
    """Test accuracy of every head, each a module with its own optimizer, trained on clips that are encoded anew."""
    torch.manual_seed(0)
    probe = probe_of(options, len(train))
    heads = [build_head(options.probe, encoder.embed_dim, len(train.class_names)) for _ in probe.settings()]
    steps = probe.num_steps()
    optimizers = [
        torch.optim.AdamW(head.parameters(), lr=s["learning_rate"], weight_decay=s["weight_decay"])
        for head, s in zip(heads, probe.settings(), strict=True)
    ]
    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: schedule(step, steps)) for o in optimizers]
    began = time.perf_counter()
    for epoch in range(1, options.epochs + 1):
        for tokens, labels in encoded(encoder, train, torch.randperm(len(train))):
            for head, optimizer, scheduler in zip(heads, optimizers, schedulers, strict=True):
                F.cross_entropy(head(tokens), labels).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                scheduler.step()
        print(f"    peer, epoch {epoch} of {options.epochs}: {time.perf_counter() - began:.0f} s", flush=True)
    right = torch.zeros(len(heads))
    for head in heads:
        head.eval()
    with torch.inference_mode():
        for tokens, labels in encoded(encoder, test, torch.arange(len(test))):
            right += torch.tensor([int((head(tokens).argmax(dim=1) == labels).sum()) for head in heads])
    return (right / len(test)).tolist()


def build_head(kind: str, width: int, classes: int) -> nn.Module:
    """As published: batch norm without parameters and a linear layer on the mean; or the attentive probe of V-JEPA."""
    if kind == "attentive":
        return AttentiveProbe(AttentiveConfig(embed_dim=width, num_heads=3, num_classes=classes))
    return nn.Sequential(Mean(), nn.BatchNorm1d(width, affine=False), nn.Linear(width, classes))


class Mean(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(dim=1)


def encoded(encoder: ClipEncoder, source: Source, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens ``[B, N, D]`` and labels ``[B]`` of all clips in this order."""
    transform, options = ClipTransform(encoder.clip), eval_options(encoder.clip)
    reading = Source(config=source.config, options=options, paths=source.paths, labels=source.labels)
    for items in order.split(BATCH):
        batch = collate([reading.load_clip(i, encoder.clip) for i in items.tolist()], items.tolist(), [0] * len(items))
        with torch.inference_mode():
            tokens = encoder(transform(batch).clip)
        yield tokens.clone(), torch.from_numpy(source.labels)[items]


class MemoryPeak:
    """By how much this process's private memory (RssAnon: mapped files are the system's to drop) grew at most."""

    def __enter__(self) -> MemoryPeak:
        self.first = self.most = private_bytes()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.05):
            self.most = max(self.most, private_bytes())

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()

    @property
    def grown(self) -> int:
        return self.most - self.first


def private_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    sys.exit("this benchmark reads private memory from /proc/self/status, which only Linux has")


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
