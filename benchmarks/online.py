"""What online probes cost a training run: steps with one look among them, against the same steps without.

    python benchmarks/online.py --clock cpu --threads 1 CONFIG 'online.labels=[object,motion]' [key.sub_key=value ...]

Both sides take turns in one process on one model. The first look, which decodes the clips, is the warm-up. From the
ratio follows which share of the time a look every so many steps takes, and how often a share allows one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs by path, too

from benchmarks.common import CLOCKS, alternate, describe_machine
from evals.online import OnlineProbes
from jepa.config import apply_overrides, from_dict, load_yaml
from jepa.distributed import Run
from jepa.logging import RunLog
from jepa.session import build, train_step
from jepa.train import TrainConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, default=10, help="training steps of each turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: this process's own CPU seconds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder, Run.start(precision="auto") as run:
        settings = apply_overrides(load_yaml(options.config), [*options.overrides, f"run_dir={folder}"])
        session = build(from_dict(TrainConfig, settings), run)
        log = RunLog(folder, total_steps=1, progress="off", tensorboard=False)
        probes, batches, step = OnlineProbes(session, log), session.loader.iterate(0), 0

        def steps() -> None:
            nonlocal step
            for _ in range(options.steps):
                train_step(session, next(batches), step)
                step += 1

        def probed() -> None:
            steps()
            probes.look(step)

        seconds = alternate({"with": probed, "without": steps}, options.repeats, str(run.device), options.clock)
        batches.close()
        log.close()
    look, each = seconds["with"] - seconds["without"], seconds["without"] / options.steps
    print(f"{describe_machine(str(run.device))}, {options.clock} seconds, medians of {options.repeats} in turns")
    print(f"a step {each:.3f} s, a look {look:.2f} s, as long as {look / each:.0f} steps")
    for share in (0.05, 0.1, 0.2):
        print(f"online.max_share {share:g}: a look every {look / each / share:.0f} steps")


if __name__ == "__main__":
    main()
