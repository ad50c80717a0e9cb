"""``jepa data prepare SRC DST``, ``jepa data shard SRC... DST``, ``jepa data demo DST``, ``jepa data physics DST``,
``jepa data record ENV``"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from app import record

if TYPE_CHECKING:
    from jepa.data.synthetic.dataset import Glyphs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    prepare = actions.add_parser("prepare", help="re-encode a folder of videos for fast random access")
    prepare.add_argument("src", help="folder of videos; subfolders are kept")
    prepare.add_argument("dst", help="folder to write; a second run continues where the first one stopped")
    prepare.add_argument("--short-side", type=int, default=128, help="pixels of the shorter side (default: 128)")
    prepare.add_argument("--fps", type=float, help="frames per second (default: as they are)")
    prepare.add_argument("--gop", type=int, default=8, help="frames from one key frame to the next (default: 8)")
    prepare.add_argument("--workers", type=int, help="processes (default: one per core)")
    add_shard(actions.add_parser("shard", help="write sources as tar shards, for data sets of any size"))
    record.add_arguments(actions.add_parser("record", help="record an environment as episodes for world models"))
    demo = actions.add_parser("demo", help="render the built-in world to mp4 files with a manifest")
    demo.add_argument("dst", help="folder to write")
    demo.add_argument("--train", type=int, help="number of training clips")
    demo.add_argument("--test", type=int, help="number of test clips")
    demo.add_argument("--side", type=int, help="pixels of each side")
    demo.add_argument("--seed", type=int, help="of everything that is drawn")
    demo.add_argument("--workers", type=int, help="processes (default: one per core)")
    physics = actions.add_parser("physics", help="render matched pairs of possible and impossible video")
    physics.add_argument("dst", help="folder to write")
    physics.add_argument("--pairs", type=int, help="pairs for each condition, an even number (default: 100)")
    physics.add_argument("--conditions", metavar="A,B", help="which laws are broken (default: all)")
    physics.add_argument("--frames", dest="num_frames", type=int, help="frames of a video (default: 32)")
    physics.add_argument("--fps", type=float, help="frames per second (default: 16)")
    physics.add_argument("--side", type=int, help="pixels of each side (default: 64)")
    physics.add_argument("--seed", type=int, help="of everything that is drawn")
    physics.add_argument("--workers", type=int, help="processes (default: one per core)")


def add_shard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", nargs="+", help="folder, CSV, array or shards: what a config's data.sources may name")
    parser.add_argument("dst", help="folder to write; a second run continues where the first one stopped")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--shard-mb", type=float, default=256.0, help="MiB of a shard (default: 256)")
    size.add_argument("--shard-count", type=int, help="number of shards, with as many samples each")
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--shuffle", type=int, default=0, metavar="SEED", help="of the samples' order (default: 0)")
    order.add_argument("--no-shuffle", action="store_true", help="keep the order of the sources")
    parser.add_argument("--label-column", help="column (or name in .json) of the labels")
    parser.add_argument("--short-side", type=int, help="re-encode videos to this size first, like `jepa data prepare`")
    parser.add_argument("--fps", type=float, help="frames per second when re-encoding (default: as they are)")
    parser.add_argument("--gop", type=int, default=8, help="frames between key frames when re-encoding (default: 8)")
    parser.add_argument("--workers", type=int, help="processes that re-encode (default: one per core)")


def run(args: argparse.Namespace) -> None:
    if args.action == "prepare":
        from jepa.data.prepare import prepare
        from jepa.data.video import VideoError

        settings = {"short_side": args.short_side, "fps": args.fps, "gop": args.gop, "workers": args.workers}
        result = prepare(args.src, args.dst, **settings)
        print(f"{result.manifest}: {result.written} videos written, {result.kept} were there already")
        if result.failed:
            names = ", ".join([failure.path for failure in result.failed[:5]] + ["..."] * (len(result.failed) > 5))
            raise VideoError(f"{len(result.failed)} files cannot be decoded and were left out: {names}")
        return
    if args.action == "shard":
        shard(args)
        return
    if args.action == "record":
        record.run(args)
        return
    from evals.probes.sklearn_bridge import digit_images
    from jepa.data.synthetic.dataset import Glyphs, WorldConfig, write_world

    if args.action == "physics":
        render_pairs(args, Glyphs(*digit_images()))
        return
    chosen = {name: getattr(args, name) for name in ("train", "test", "side", "seed")}
    config = WorldConfig(**{name: value for name, value in chosen.items() if value is not None})
    path = write_world(args.dst, Glyphs(*digit_images()), config, args.workers)
    print(f"{path}: {config.train} training and {config.test} test clips; labels in train.csv and test.csv")


def shard(args: argparse.Namespace) -> None:
    """The shards of ``jepa data shard``."""
    from tqdm import tqdm

    from jepa.config import ConfigError
    from jepa.data.prepare import prepare
    from jepa.data.sources import SourceConfig
    from jepa.data.tar_writer import write_shards
    from jepa.data.video import VideoError

    if args.short_side is None and args.fps is not None:
        raise ConfigError("--fps re-encodes videos: give --short-side PIXELS too")
    sources, failed, prepared = list(args.src), [], Path(args.dst) / "prepared"
    if args.short_side is not None:
        for number, src in enumerate(args.src):
            settings = {"short_side": args.short_side, "fps": args.fps, "gop": args.gop, "workers": args.workers}
            made = prepare(src, prepared / str(number), **settings)
            sources[number] = str(prepared / str(number))
            failed += made.failed
    result = write_shards(
        [SourceConfig(path=path, label_column=args.label_column) for path in sources], args.dst, args.shard_mb,
        args.shard_count, None if args.no_shuffle else args.shuffle,
    )  # fmt: skip
    failed += result.failed
    print(
        f"{result.folder}: {result.written} shards written, {result.kept} were there already; "
        f"{result.samples} samples, {tqdm.format_sizeof(result.bytes, 'B')}"
    )
    print(f"train on them: jepa train CONFIG data.sources='[{{path: {result.folder}}}]'")
    if prepared.exists():
        print(f"{prepared} holds the re-encoded videos: delete it when you need them no more")
    if failed:
        names = ", ".join([failure.path for failure in failed[:5]] + ["..."] * (len(failed) > 5))
        raise VideoError(f"{len(failed)} files cannot be read and were left out: {names}")


def render_pairs(args: argparse.Namespace, glyphs: Glyphs) -> None:
    """The pairs of ``jepa data physics``."""
    from jepa.data.synthetic.physics import PhysicsConfig, write_physics

    chosen = {name: getattr(args, name) for name in ("pairs", "num_frames", "fps", "side", "seed")}
    if args.conditions is not None:
        chosen["conditions"] = tuple(name.strip() for name in args.conditions.split(",") if name.strip())
    config = PhysicsConfig(**{name: value for name, value in chosen.items() if value is not None})
    path = write_physics(args.dst, glyphs, config, args.workers)
    print(f"{path}: {config.pairs} pairs for each of {', '.join(config.conditions)}")
