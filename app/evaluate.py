"""``jepa eval RUN ...``: options and work are in ``evals.main``, which imports torch only once it runs."""

from __future__ import annotations

from evals.main import add_arguments, run

__all__ = ["add_arguments", "run"]
