"""``jepa models [NAME] [--family F] [--json] [--download]``"""

from __future__ import annotations

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="show this model in full")
    parser.add_argument("--family", help="only ijepa, vjepa, vjepa2, vjepa2_ac, vjepa2_1, probe or transformers")
    parser.add_argument("--json", action="store_true", help="everything that is known, as JSON")
    parser.add_argument("--download", action="store_true", help="bring the named model into the cache, print its path")


def run(args: argparse.Namespace) -> None:
    from jepa.pretrained.download import cached_file
    from jepa.pretrained.zoo import find_model, list_models

    if args.name and args.family:
        raise ValueError("give a NAME or --family, not both")
    if args.download:
        if not args.name:
            raise ValueError("--download needs the NAME of one model")
        print(cached_file(find_model(args.name)))
        return
    rows = [_row(model) for model in ([find_model(args.name)] if args.name else list_models(args.family))]
    if args.json:
        import json

        print(json.dumps(rows[0] if args.name else rows, indent=1))
    elif args.name:
        print("\n".join(_in_full(rows[0])))
    else:
        print("\n".join(_table(rows)))


def _row(model: Any) -> dict[str, Any]:
    """A model as plain data, with where it goes and whether it is there."""
    from jepa.config import to_dict
    from jepa.pretrained.download import cache_path, is_cached

    row = to_dict(model)
    return {**row, "resolution": model.resolution, "frames": model.frames, "path": str(cache_path(model)),
            "cached": is_cached(model)}  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> list[str]:
    from jepa.files import cache_folder

    head = ("name", "parameters", "pixels", "frames", "source", "licence", "cached")
    cells = [
        (row["name"], _millions(row["parameters"]), str(row["resolution"]), str(row["frames"]), row["source"],
         row["licence"], "yes" if row["cached"] else "-")
        for row in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    lines = ["  ".join(_pad(text, width, i) for i, (text, width) in enumerate(zip(line, widths, strict=True))).rstrip()
             for line in (head, *cells)]  # fmt: skip
    there = sum(row["cached"] for row in rows)
    return [*lines, "", f"{len(rows)} models, {there} in {cache_folder()}; `jepa models NAME` shows one in full"]


def _pad(text: str, width: int, column: int) -> str:
    return text.rjust(width) if column in (1, 2, 3) else text.ljust(width)


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M"


def _in_full(row: dict[str, Any]) -> list[str]:
    """One fact a line; what is not known is left out."""
    place = row["url"] or f"https://huggingface.co/{row['hub_repo']}"
    size = f"{row['size_bytes']:,} bytes ({row['size_bytes'] / 2**30:.2f} GiB)" if row["size_bytes"] else None
    facts = {
        "family": row["family"], "parameters": _millions(row["parameters"]), "licence": row["licence"],
        "source": f"{row['source']}, {row['repository']}", "from": place, "size": size, "SHA-256": row["sha256"],
        "goes to": row["path"] + ("" if row["cached"] else " (not there yet)"), "weights": row["weights"],
        "probe of": row["encoder"], "reads blocks": row["layers"] and ", ".join(map(str, row["layers"])),
        "notes": row["notes"],
    }  # fmt: skip
    lines = [row["name"], *(f"  {key:<13} {value}" for key, value in facts.items() if value)]
    for title, part in (("architecture", row["architecture"]), ("preprocessing", row["clip"])):
        known = {key: value for key, value in part.items() if value is not None}
        lines += [f"  {title}", *(f"    {key:<22} {_value(value)}" for key, value in known.items())]
    use = f'jepa.load_pretrained("{row["name"]}").probe' if row["family"] == "probe" else f'jepa.load("{row["name"]}")'
    return [*lines, f"  use           {use}"]


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
