"""``jepa view``: a page with feature maps of videos, nearest neighbours, and a scatter of all clips."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jepa.features import FeatureTable
    from jepa.models.base import ClipEncoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", help="one feature file of `jepa encode`, or videos, images and folders")
    parser.add_argument("-o", "--out", default="view.html", help="page to write (default: view.html)")
    parser.add_argument("--model", help="encoder of videos; beside a feature file it draws maps of its videos")
    parser.add_argument("--videos", nargs="+", default=[], help="beside a feature file: draw maps of these")
    parser.add_argument("--max-maps", type=int, default=3, help="draw maps of so many videos (default: 3)")
    parser.add_argument("--segments", type=int, default=4, help="clips taken from every video given (default: 4)")
    parser.add_argument("--layers", type=int, nargs="+", help="blocks to take features from (default: the last)")
    parser.add_argument("--max-clips", type=int, default=2000, help="clips in the scatter (default: 2000)")
    parser.add_argument("--queries", type=int, default=6, help="clips whose neighbours are shown (default: 6)")
    parser.add_argument("-k", type=int, default=6, help="neighbours shown of every clip (default: 6)")
    parser.add_argument("--tsne", action="store_true", help="also arrange the scatter by t-SNE (slow for many clips)")
    parser.add_argument("--labels", metavar="CSV", help="colour clips by the labels in this CSV, not by folder")
    parser.add_argument("--label-column", help="column of the CSV that holds the labels (default: label)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of queries (default: 0)")
    parser.add_argument("--device", default="auto")


def run(args: argparse.Namespace) -> None:
    from app.maps import video_maps
    from app.recorded import open_encoder
    from app.scatter import clip_sections
    from app.view_page import map_section, view_page, write_page

    for name, least in (("max_maps", 0), ("segments", 1), ("max_clips", 2), ("queries", 0), ("k", 1)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(args, name)}")
    given = [path for path in args.inputs if is_feature_file(path)]
    if given and len(args.inputs) > 1:
        raise ValueError(f"give one feature file, or videos: {given[0]} is a feature file (use --videos for videos)")
    if args.videos and not given:
        raise ValueError("--videos goes with a feature file; videos alone are given without it")
    encoder, failed = None, list[str]()
    if given:
        from jepa.features import open_features

        table, layers = open_features(given[0]), args.layers
        videos = list_videos(args.videos or (dict.fromkeys(table.sources) if args.model else []))
        if videos:
            encoder = open_encoder(given[0], table.metadata, args.model)
            layers = args.layers or table.metadata.get("layers") or None
    else:
        from jepa.load import load

        if args.model is None:
            raise ValueError(
                "videos need an encoder: give a run directory, a checkpoint or a model's name with --model"
            )
        encoder, videos, layers = load(args.model), list_videos(args.inputs), args.layers
        table, failed = encode_videos(videos, encoder, args)
    maps, unread = video_maps(videos[: args.max_maps], encoder, layers, args.device) if encoder else ([], [])
    sections = clip_sections(table, args)
    facts = {
        "clips": f"{len(table):,}", "files": f"{len(set(table.sources)):,}",
        "features per clip": f"{table.vectors.shape[1]:,}", "not readable": f"{len(failed):,}" if failed else "",
    }  # fmt: skip
    made = table.metadata.get("model")
    by = f"by `{made}`" if made else "by an encoder that the file does not name"
    subtitle = f"Features {by}" + (f", in `{given[0]}`." if given else ".")
    if len(videos) > args.max_maps and encoder:
        unread.append(f"Maps of the first {args.max_maps} of {len(videos)} videos (--max-maps).")
    page = view_page("A look at the features", subtitle, facts, [map_section(maps, unread), *sections])
    write_page(args.out, page)
    print(f"{args.out}: {len(table):,} clips, maps of {len(maps)} videos  (open it in a browser)")


def is_feature_file(path: str) -> bool:
    """A file of features by its name; an ``.npz`` (which may hold clips) by what is in it."""
    import zipfile

    if path.lower().endswith(".npz"):
        return zipfile.is_zipfile(path) and "feature.npy" in zipfile.ZipFile(path).namelist()
    return path.lower().endswith((".parquet", ".safetensors"))


def list_videos(inputs: Iterable[str]) -> list[str]:
    """Every file once: folders become the videos and images below them, CSVs the files that they name."""
    import os

    from jepa.data.sources import SourceConfig, open_source

    listed = [
        open_source(SourceConfig(path=path)).paths
        if os.path.isdir(path) or path.lower().endswith((".csv", ".tsv", ".txt"))
        else [path]
        for path in inputs
    ]
    return list(dict.fromkeys(file for files in listed for file in files))


def encode_videos(paths: list[str], encoder: ClipEncoder, args: argparse.Namespace) -> tuple[FeatureTable, list[str]]:
    """Pooled features of ``--segments`` clips of every video, and why others could not be read.

    Raises ``VideoError`` if none can be read.
    """
    import numpy as np

    from app.recorded import encoded_clips
    from jepa.encode import encode
    from jepa.features import FeatureTable

    made = encode(
        paths, encoder, device=args.device, layers=args.layers, segments=args.segments, pool="mean", on_error="skip"
    )
    clips = dict(zip(encoded_clips(made), made.pooled().numpy()))  # a short video's clips may be all the same one
    sources, start_s, end_s = zip(*clips)
    times = (np.array(x, dtype=np.float64) for x in (start_s, end_s))
    metadata = {**made.metadata, "model": args.model}
    return FeatureTable(list(sources), *times, np.stack(list(clips.values())), metadata), made.metadata["failed"]
