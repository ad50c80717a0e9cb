"""``jepa similar FEATURES QUERY``: the clips of a feature file nearest to a video, an image or one of its rows."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from app.thumbnails import Clip
    from jepa.features import FeatureTable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("features", help="feature file that `jepa encode` wrote")
    parser.add_argument("query", help="video or image; or a file that the table has already; or '#ROW', from 0")
    parser.add_argument("-k", type=int, default=10, help="how many clips to find (default: 10)")
    parser.add_argument("--model", help="encoder of the query (default: the one named in the feature file)")
    parser.add_argument("--other-files", action="store_true", help="leave out every clip of the query's own file")
    parser.add_argument("--exact", action="store_true", help="compare with every clip, however many there are")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", metavar="OUT", help="also write a page with pictures")
    parser.add_argument("--device", default="auto")


class Query(NamedTuple):
    """``vectors`` ``[n, D]`` of the query's ``clips``; ``rows``: which rows of the table they are, if they are."""

    vectors: NDArray[np.float32]
    clips: list[Clip]
    rows: list[int]


class Result(NamedTuple):
    """Row ``row`` of the table and the largest ``similarity`` (cosine) to any of the query's clips."""

    row: int
    similarity: float


def run(args: argparse.Namespace) -> None:
    import json

    from app.recorded import clips_of, rows_of_source
    from jepa.features import open_features
    from jepa.search import nearest

    if args.k < 1:
        raise ValueError(f"-k must be at least 1, not {args.k}")
    table = open_features(args.features)
    query = find_query(args, table)
    hidden = set(query.rows)
    if args.other_files:
        hidden.update(row for own in query.rows for row in rows_of_source(table, table.sources[own]))
    found = nearest(
        table.vectors, query.vectors, args.k + len(hidden), device=args.device,
        method="exact" if args.exact else "auto", index_path=f"{args.features}.index",
    )  # fmt: skip
    best: dict[int, float] = {}
    for ids, scores in zip(found.ids.tolist(), found.scores.tolist(), strict=True):
        for row, score in zip(ids, scores, strict=True):
            best[row] = max(score, best.get(row, score))
    order = sorted((row for row in best if row not in hidden), key=lambda row: (-best[row], row))
    results = [Result(row, best[row]) for row in order[: args.k]]
    clips = clips_of(table)
    if args.json:
        print(json.dumps(as_json(query, results, clips, found.method, found.skipped), indent=1))
    else:
        print(as_table(query, results, clips, found.method, found.skipped))
    if args.html:
        write_html(args, query, [(clips[result.row], result.similarity) for result in results], table, found.method)


def find_query(args: argparse.Namespace, table: FeatureTable) -> Query:
    """What QUERY names. Raises ``ValueError`` for a row that is not there, or a file that does not fit the table."""
    import os

    from app.recorded import clips_of, encode_as_recorded, rows_of_source

    if len(table) == 0:
        raise ValueError(f"{args.features} has no rows")
    if args.query.startswith("#") and not os.path.exists(args.query):
        number = args.query[1:]
        if not number.isdecimal() or int(number) >= len(table):
            raise ValueError(f"{args.features} has the rows #0 to #{len(table) - 1}, not {args.query}")
        rows = [int(number)]
    else:
        rows = rows_of_source(table, args.query)
    if rows:
        clips = clips_of(table)
        return Query(table.vectors[rows], [clips[row] for row in rows], rows)
    if not os.path.exists(args.query) and "://" not in args.query:
        raise ValueError(f"{args.query} is neither a file, nor a source in {args.features}, nor a row such as '#0'")
    clips, vectors = encode_as_recorded(args.query, args.features, table.metadata, args.model, args.device)
    if vectors.shape[1] != table.vectors.shape[1]:
        made = table.metadata.get("model") or "a model that it does not name"
        raise ValueError(
            f"{args.query} was encoded to {vectors.shape[1]} numbers by {args.model or made}, but {args.features} has "
            f"{table.vectors.shape[1]} (made with {made}): give the same model with --model"
        )
    return Query(vectors, clips, [])


def write_html(
    args: argparse.Namespace, query: Query, found: list[tuple[Clip, float]], table: FeatureTable, method: str
) -> None:
    """The page with pictures."""
    from app.thumbnails import thumbnails
    from app.view_page import similar_page, write_page

    fps = (table.metadata.get("clip") or {}).get("fps")
    drawn = thumbnails([*query.clips[:4], *(clip for clip, _ in found)], fps)
    facts = {"clips searched": f"{len(table):,}", "search": method, "model": str(table.metadata.get("model") or "")}
    write_page(args.html, similar_page(args.features, query.clips, found, drawn, facts))
    print(f"{args.html}  (open it in a browser)", file=sys.stderr)


def as_table(query: Query, results: list[Result], clips: list[Clip], method: str, skipped: int) -> str:
    """Lines for the terminal."""
    from app.view_page import clock

    lines = [f"query: {query.clips[0].source}, " + ", ".join(clock(clip) for clip in query.clips[:4])]
    if len(query.clips) > 4:
        lines[0] += f" and {len(query.clips) - 4} more clips"
    rows = [("rank", "similarity", "row", "time", "source")]
    for rank, result in enumerate(results, 1):
        clip = clips[result.row]
        rows.append((str(rank), f"{result.similarity:.4f}", f"#{result.row}", clock(clip), clip.source))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines += ["  ".join([*(cell.rjust(width) for cell, width in zip(row, widths)), row[4]]) for row in rows]
    noted = f", {skipped:,} left out (zero or not finite)" if skipped else ""
    return "\n".join([*lines, f"{method} search among {len(clips):,} clips by cosine{noted}"])


def as_json(query: Query, results: list[Result], clips: list[Clip], method: str, skipped: int) -> dict[str, Any]:
    """The same for programs."""
    found = [
        {"rank": rank, "similarity": round(result.similarity, 6), "row": result.row, **clips[result.row]._asdict()}
        for rank, result in enumerate(results, 1)
    ]
    asked = {"clips": [clip._asdict() for clip in query.clips], "rows": query.rows}
    return {"query": asked, "method": method, "searched": len(clips), "skipped": skipped, "results": found}
