"""The command line of an eval: what is given is laid over the file, and nothing else."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli import main as jepa
from evals.datasets import DatasetConfig
from evals.main import main
from evals.options import add_arguments, config_from
from evals.probes import ProbeConfig
from evals.settings import EvalConfig
from evals.task_configs import ClipChanges
from jepa.config import ConfigError, from_dict
from jepa.data.sources import SourceConfig

FILE = {
    "task": "video", "segments": 3, "baselines": [], "cache_gb": 2, "random_seed": 9, "views": 2,
    "dataset": {"name": "ssv2", "root": "data", "max_missing": 0.5}, "watching": {"pairs": 7},
    "probes": [{"kind": "attentive", "depth": 4, "learning_rates": [0.01]}, {"kind": "linear", "steps": 5}],
}  # fmt: skip


def read(*words: str) -> EvalConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return config_from(parser.parse_args(words))


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "eval.yaml"
    path.write_text(yaml.safe_dump(FILE))
    return str(path)


def test_without_options_the_file_and_the_defaults_stand(file: str) -> None:
    assert read("m") == EvalConfig(run="m")
    assert read("m", "--config", file) == from_dict(EvalConfig, {"run": "m", **FILE})


def test_options_change_what_they_name(file: str) -> None:
    base = from_dict(EvalConfig, {"run": "m", **FILE})
    found = read("m", "--config", file, "--segments", "2", "--data", "elsewhere", "--pairs", "8", "--labels", "a,b")
    assert (found.segments, found.labels, found.watching.pairs) == (2, ("a", "b"), 8)
    assert found.dataset == DatasetConfig(name="ssv2", root="elsewhere", max_missing=0.5)
    assert (found.probes, found.views, found.baselines, found.random_seed) == (base.probes, 2, (), 9)
    seeded = read("m", "--config", file, "--seed", "4")
    assert (seeded.random_seed, [probe.seed for probe in seeded.probes]) == (5, [4, 4])


def test_every_option_reaches_its_key() -> None:
    found = read(
        "m", "--no-cache", "--memory-gb", "2", "--cache-gb", "1", "--layers=-2,-1", "--sweep-layers", "--views", "3",
        "--train-views", "2", "--average-segments", "--segments", "8", "--few-shot", "1%,10%,5", "--few-shot-seeds",
        "4", "--allow", "leak,unseen_classes", "--probe", "attentive", "--depth", "4", "--queries", "2", "--token-pool",
        "1,2,2", "--steps", "9", "--cells", "2,1,1", "--train", "a.csv", "--test", "b.csv", "--where", "slot=digit",
        "--span", "ending", "--against", "x,y", "--against", "z", "--context-frames", "2,4", "--batch-size", "6",
        "--set", "clip.num_frames=16", "--set", "probes.0.batch_size=64", "--set", "tracking.radius=9",
    )  # fmt: skip
    side = SourceConfig(path="a.csv", where={"slot": "digit"}, span="ending")
    probe = ProbeConfig(kind="attentive", depth=4, queries=2, token_pool=(1, 2, 2), steps=9, batch_size=64)
    expected = EvalConfig(
        run="m", cache=False, memory_gb=2.0, cache_gb=1.0, layers=(-2, -1), sweep_layers=True, views=3, train_views=2,
        join_segments=False, segments=8, few_shot=("1%", "10%", "5"), few_shot_seeds=4,
        allow=("leak", "unseen_classes"), probes=(probe,), cells=(2, 1, 1), train=side,
        test=SourceConfig(path="b.csv", where={"slot": "digit"}, span="ending"), against=("x", "y", "z"), batch_size=6,
        clip=ClipChanges(num_frames=16), watching=found.watching, tracking=found.tracking,
    )  # fmt: skip
    assert found == expected
    assert (found.tracking.radius, found.watching.context_frames, found.watching.batch_size) == (9, (2, 4), 6)


def test_the_anticipation_time_goes_where_the_task_reads_it() -> None:
    data = ["--dataset", "epic100", "--data", "d", "--anticipation-s", "0.5"]
    action, video = read("m", "--task", "anticipation", *data), read("m", *data)
    assert action.dataset is not None
    assert video.dataset is not None
    assert (action.anticipation.anticipation_s, action.dataset.anticipation_s) == (0.5, None)
    assert (video.anticipation.anticipation_s, video.dataset.anticipation_s) == (1.0, 0.5)


def test_a_probe_keeps_the_settings_of_its_kind_in_the_file(file: str) -> None:
    found = read("m", "--config", file, "--probe", "attentive,knn", "--steps", "3")
    attentive = ProbeConfig(kind="attentive", depth=4, learning_rates=(0.01,), steps=3)
    assert found.probes == (attentive, ProbeConfig(kind="knn"))


def test_sources_take_the_place_of_a_data_set_and_the_other_way_round(file: str, tmp_path: Path) -> None:
    found = read("m", "--config", file, "--train", "a", "--test", "b")
    assert (found.dataset, found.train) == (None, SourceConfig(path="a"))
    own = tmp_path / "own.yaml"
    own.write_text("train: {path: a, span: centred}\ntest: {path: b}\n")
    assert read("m", "--config", str(own), "--train", "c").train == SourceConfig(path="c", span="centred")
    found = read("m", "--config", str(own), "--dataset", "ssv2", "--data", "d")
    assert (found.train, found.test, found.dataset) == (None, None, DatasetConfig(name="ssv2", root="d"))


def test_the_model_may_come_from_either(file: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("run: mine\n")
    assert (read("--config", str(own)).run, read("m", "--config", str(own)).run) == ("mine", "m")
    with pytest.raises(ConfigError, match="give a MODEL"):
        read("--config", file)


def test_check_prints_what_can_be_read_again(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    assert main(["--probe", "knn", "m", "--config", file, "--check"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "full.yaml").write_text(printed)
    assert read("--config", str(tmp_path / "full.yaml")) == read("m", "--config", file, "--probe", "knn")
    assert jepa(["eval", "--probe", "knn", "m", "--check", "--config", file]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "FILE", "--set", "sgements=2"], "FILE.*unknown config key 'sgements', did you mean 'segments'"),
        (["--set", "probes.0.dpeth=2", "--probe", "attentive"], r"'probes\.0\.dpeth', did you mean 'depth'"),
        (["--set", "tracking.radius=-1"], "radius must be at least 0"),
        (["--config", "nothing.yaml"], "nothing.yaml does not exist"),
        (["--depth", "4"], "--depth is for the probes attentive: name one with --probe"),
        (["--probe", "knn", "--steps", "4"], "--steps is for the probes linear and attentive"),
        (["--probe", "lineal"], "unknown probe 'lineal', did you mean 'linear'"),
        (["--layers", "a"], "--layers needs whole numbers A,B, not 'a'"),
        (["--cells", "2,2"], "--cells needs three whole numbers T,H,W, not '2,2'"),
        (["--allow", "leaks"], r"allow\.0' must be one of 'leak', 'unseen_classes'"),
        (["--max-missing", "0.5"], "--max-missing is for --dataset"),
        (["--span", "ending"], "--where and --span are for CSV files"),
        (["--set", "clip.fps=4", "--set", "clip.frame_step=4"], "set one of fps and frame_step"),
        (["--set", "cache_gb=.nan"], "cache_gb and memory_gb must not be negative: nan"),
        (["--set", "probes.0.learning_rates=[0.1, .nan]"], "learning_rates must be positive numbers, not nan"),
        (["--set", "probes.0.weight_decays=[-1]"], "weight_decays must be numbers of at least 0, not -1"),
        (["--set", "probes.0.neighbours=[0]"], "neighbours must be at least 1, not 0"),
        (["--set", "probes.0.penalties=[0]"], "penalties must be positive numbers, not 0"),
        (["--few-shot", "5,101%"], "few_shot: '101%' is neither a share like"),
        (["--task", "physics", "--set", "clip.num_frames=4"], r"set watching\.num_frames"),
    ],
)
def test_wrong_options(file: str, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("FILE", file)):
        read("m", *(file if word == "FILE" else word for word in words))


def test_a_wrong_key_of_the_file_is_named_with_it(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    wrong: dict[str, Any] = {"probes": [{"kind": "linear", "learning_rate": 1}]}
    path.write_text(yaml.safe_dump(wrong))
    with pytest.raises(ConfigError, match=r"wrong\.yaml.*'probes\.0\.learning_rate', did you mean 'learning_rates'"):
        read("m", "--config", str(path))


@pytest.mark.parametrize("probes", ["linear", ["linear"], {"kind": "linear"}])
def test_probes_that_are_no_list_of_mappings(probes: Any, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({"probes": probes, "train": "a.csv"}))
    with pytest.raises(ConfigError, match="'probes' must be a list of mappings with keys, not"):
        read("m", "--config", str(path), "--probe", "linear")
    path.write_text(yaml.safe_dump({"train": "a.csv"}))
    with pytest.raises(ConfigError, match=r"'train' must be a mapping with keys, not 'a\.csv'"):
        read("m", "--config", str(path), "--train", "b.csv")
