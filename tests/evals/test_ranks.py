"""Work shared by several processes: everyone has all results in order, and hears of errors."""

import torch
from ranks import outputs

from evals.shares import share_out
from jepa.distributed import Run

WRONG = """
import torch
from evals.shares import share_out
from jepa.distributed import Run

with Run.start("cpu") as run:
    try:
        share_out(run, ["1", "x", "3"], int)
    except ValueError as error:
        print("heard", error, flush=True)
"""


def test_alone_everything_is_done_in_order() -> None:
    run = Run(torch.device("cpu"), "fp32")
    assert share_out(run, [3, 1, 2], lambda n: n * n) == [9, 1, 4]
    assert share_out(run, [], int) == []


def test_an_error_of_one_process_is_raised_on_all() -> None:
    assert all("heard invalid literal" in printed for printed in outputs(WRONG))
