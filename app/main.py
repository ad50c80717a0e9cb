"""``python -m app.main --fname CONFIG [key=value ...]``: the reference's spelling of ``jepa train``."""

from __future__ import annotations

import argparse
import sys

from app.cli import main as jepa


def main() -> int:
    parser = argparse.ArgumentParser(prog="app.main", description="Train from a config file (same as jepa train).")
    parser.add_argument("--fname", required=True, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    return jepa(["train", args.fname, *args.overrides])


if __name__ == "__main__":
    sys.exit(main())
