"""``python -m app.main_distributed --fname CONFIG --folder RUN_DIR ...``: the reference's spelling of ``jepa launch``.

All other options are those of ``jepa launch``, and its own spelling works too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from app.cli import main as jepa


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="app.main_distributed", add_help=False, allow_abbrev=False)
    parser.add_argument("--fname", help="YAML file")
    parser.add_argument("--folder", help="run directory")
    args, rest = parser.parse_known_args(argv)
    own = [] if args.fname is None else [args.fname]
    folder = [] if args.folder is None else [f"--run-dir={args.folder}"]
    return jepa(["launch", *own, *folder, *rest])


if __name__ == "__main__":
    sys.exit(main())
