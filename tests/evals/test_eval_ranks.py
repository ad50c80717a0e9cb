"""Evals under torchrun: two processes share the encoding, and give what one process gives."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ranks import by_two, outputs
from support import small_encoder, write_clips

from evals.main import evaluate
from evals.probes import ProbeConfig
from evals.settings import EvalConfig
from jepa.checkpoint import save_checkpoint
from jepa.config import to_dict
from jepa.data.sources import SourceConfig

FILL = """
import sys
from pathlib import Path

import torch

sys.path.insert(0, "tests")
from support import SMALL_CLIP, small_encoder

from evals.features.harness import FeatureOptions, compute_features
from evals.features.representations import EncoderRepresentation
from jepa.data.loader import eval_options
from jepa.data.sources import SourceConfig, open_source
from jepa.distributed import Run

torch.set_num_threads(1)
with Run.start("cpu") as run:
    of = EncoderRepresentation("trained", small_encoder(), run)
    source = open_source(SourceConfig(path="{clips}"), eval_options(SMALL_CLIP))
    seen, forward = [], of.encoder.forward
    of.encoder.forward = lambda clip, **rest: seen.append(len(clip)) or forward(clip, **rest)
    for cache in (None, Path("{cache}")):
        seen.clear()
        found = compute_features([of], source, run, FeatureOptions(cache_dir=cache))["trained"]
        print(sum(seen), repr(found.matrix().double().sum().item()), found.items.tolist(), flush=True)
    if run.rank == 1:
        of.encoder.norm.weight.data.fill_(torch.nan)
    try:
        compute_features([of], source, run, FeatureOptions())
    except ValueError as error:
        print(error, flush=True)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EvalConfig:
    root = tmp_path_factory.mktemp("ranks")
    encoder = small_encoder()
    state = {
        "config": {}, "clip": to_dict(encoder.clip), "encoder_config": to_dict(encoder.config),
        "objective": {f"target_encoder.{k}": v for k, v in encoder.state_dict().items()},
    }  # fmt: skip
    save_checkpoint(root / "run", 3, state)
    train, test = (write_clips(root / f"{name}.npz", clips=n, seed=n) for name, n in (("train", 40), ("test", 22)))
    return EvalConfig(
        run=str(root / "run"), train=SourceConfig(path=str(train)), test=SourceConfig(path=str(test)), device="cpu",
        baselines=("pixels",), probes=(ProbeConfig(steps=20), ProbeConfig(kind="attentive", steps=5)), views=1,
        train_views=2,
    )  # fmt: skip


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "seconds": 0} for row in rows]


def test_two_processes_give_the_rows_of_one(config: EvalConfig, tmp_path: Path) -> None:
    both = by_two(replace(config, out=str(tmp_path / "two")), "undecodable", "classes")
    alone = evaluate(replace(config, cache_gb=0, out=str(tmp_path / "one")))
    assert timeless(both[0]["rows"]) == timeless(both[1]["rows"]) == timeless(alone["rows"])
    assert both[0]["classes"] == alone["classes"]


def test_two_processes_share_the_clips_and_errors(tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "clips.npz", clips=40)
    first, second = (text.splitlines() for text in outputs(FILL.format(clips=clips, cache=tmp_path / "features")))
    for number in (0, 1):  # in memory, on disk
        counts, sums = zip(*(line[number].split(" ", 1) for line in (first, second)))
        assert counts == ("24", "16")  # blocks 0 and 2 here, block 1 there
        assert len(set(sums)) == 1
    assert first[0] == first[1]
    assert first[2] == second[2]
    assert "features of trained for the clips clip" in first[2]
    assert "clips.npz[16]" in first[2]


def test_the_command_prints_and_writes_once(config: EvalConfig, tmp_path: Path) -> None:
    assert config.train is not None
    assert config.test is not None
    arguments = [
        config.run, "--probe", "knn", "--train", config.train.path, "--test", config.test.path, "--device", "cpu",
        "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    printed = outputs(f"import sys; from evals.main import main; sys.exit(main({arguments!r}))")
    assert [text.count("| probe | label | trained |") for text in printed] == [1, 0]
    assert (tmp_path / "out" / "results.json").is_file()
