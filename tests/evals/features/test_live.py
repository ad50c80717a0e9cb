"""Features that are not kept: plain views are those of the cache, drawn ones those of a clip augmented by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import by_two, outputs
from support import SMALL_CLIP, small_encoder, write_clips

from evals.features.encoding import SEED_BITS, Views
from evals.features.harness import compute_features
from evals.features.jobs import FeatureOptions, Split
from evals.features.live import LiveRows, live_set
from evals.features.representations import EncoderRepresentation
from evals.main import evaluate
from evals.probes import ProbeConfig
from evals.settings import EvalConfig
from jepa.config import ConfigError
from jepa.data.batches import collate
from jepa.data.mixture import SAMPLE, stream
from jepa.data.settings import eval_options
from jepa.data.sources import ClipRequest, Source, SourceConfig, open_source
from jepa.data.transforms import AugmentConfig, ClipTransform
from jepa.distributed import Run
from jepa.export.folders import write_safetensors
from jepa.export.source import Source as ExportSource

RUN = Run(torch.device("cpu"), "fp32")
AUGMENT = AugmentConfig(scale=(0.3, 0.9))
ROWS = torch.tensor([4, 0, 4, 7, 2])
SEEDS = torch.tensor([5, 9, 11, 5, 2**31 - 1])


def open_clips(path: Path) -> Source:
    if not path.exists():
        write_clips(path, clips=9, frames=9)
    return open_source(SourceConfig(path=str(path)), eval_options(SMALL_CLIP))


def live(path: Path, kind: str = "tokens", segments: int = 2, joined: bool = True, workers: int = 0, run: Run = RUN):
    """Rows of all clips, and their plain features as the cache would keep them."""
    source, of = open_clips(path), EncoderRepresentation("trained", small_encoder(), run)
    split = Split(source, FeatureOptions(views=Views(segments, joined)))
    plain = compute_features([of], source, run, split.options)["trained"]
    config = EvalConfig(run="", cache=False, augment=AUGMENT, batch_size=3, workers=workers)
    return getattr(live_set(plain._replace(tokens=None), split, of, config, run, True), kind), plain


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_plain_views_are_those_of_the_cache(tmp_path: Path, joined: bool, workers: int) -> None:
    rows, plain = live(tmp_path / "clips.npz", joined=joined, workers=workers)
    assert isinstance(rows, LiveRows)
    assert not rows.stored
    assert rows.shape == plain.tokens.shape == ((9, 1, 16, 24) if joined else (9, 2, 8, 24))
    assert torch.allclose(rows.gather(ROWS), plain.tokens.gather(ROWS), atol=1e-6)
    assert torch.allclose(torch.cat(list(rows.chunks(4))), torch.cat(list(plain.tokens.chunks())), atol=1e-6)
    narrow = rows.take(torch.tensor([8, 3, 4])).part(5, 9)
    assert narrow.shape[0] == 3
    assert torch.allclose(narrow.gather(torch.tensor([1])), plain.tokens.gather(torch.tensor([3]))[..., 5:9], atol=1e-6)


@pytest.mark.parametrize("kind", ["tokens", "vectors"])
def test_drawn_views_are_clips_cut_and_augmented_by_hand(tmp_path: Path, kind: str) -> None:
    rows, _ = live(tmp_path / "clips.npz", kind)
    source, encoder, transform = open_clips(tmp_path / "clips.npz"), small_encoder(), ClipTransform(SMALL_CLIP, AUGMENT)
    found = next(rows.stream([(ROWS, SEEDS)]))
    for number, (row, seed) in enumerate(zip(ROWS.tolist(), SEEDS.tolist(), strict=True)):
        rng = stream(seed, SAMPLE)
        clips = source.load_clips(row, SMALL_CLIP, [ClipRequest(rng, (0, 2)), ClipRequest(rng, (1, 2))])
        seeds = [((seed << SEED_BITS) + segment) << SEED_BITS for segment in (0, 1)]
        with torch.no_grad():
            tokens = encoder(transform(collate(clips, [row, row], seeds)).clip)
        expected = tokens.flatten(0, 1) if kind == "tokens" else tokens.mean(dim=(0, 1))[None]
        assert torch.allclose(found[number], expected, atol=1e-6)
    assert not torch.allclose(found[0], found[2])  # one clip, two seeds


def test_a_long_training_says_how_far_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = live(tmp_path / "clips.npz")
    monkeypatch.setattr("evals.features.encoding._LOG_SECONDS", 0.0)
    with caplog.at_level("INFO", "jepa"):
        assert len(list(rows.stream([(ROWS, SEEDS)] * 3))) == 3
        assert len(list(rows.stream([(ROWS, SEEDS)]))) == 1  # one batch says nothing
    told = [line for line in caplog.messages if line.startswith("encode anew")]
    assert [line.split(" clips,")[0] for line in told] == [
        f"encode anew for the probe of trained: {done} of 15" for done in (5, 10, 15)
    ]


def test_one_segment_is_drawn_where_they_are_not_joined(tmp_path: Path) -> None:
    rows, _ = live(tmp_path / "clips.npz", joined=False)
    assert next(rows.stream([(ROWS, SEEDS)])).shape == (5, 8, 24)
    assert torch.equal(rows.gather(ROWS, SEEDS), next(rows.stream([(ROWS, SEEDS)])))
    assert rows.draws > 1e9


def test_a_clip_that_breaks_meanwhile_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    from PIL import Image

    for name in "ab":
        Image.fromarray(np.full((40, 40, 3), 99, np.uint8)).save(folder / f"{name}.png")
    (tmp_path / "list.csv").write_text(f"path,label\n{folder}/a.png,0\n{folder}/b.png,1\n")
    source = open_source(SourceConfig(path=str(tmp_path / "list.csv")), eval_options(SMALL_CLIP))
    of = EncoderRepresentation("trained", small_encoder(), RUN)
    plain = compute_features([of], source, RUN, FeatureOptions(tokens=False))["trained"]
    config = EvalConfig(run="", cache=False)
    rows = live_set(plain, Split(source, FeatureOptions()), of, config, RUN, True).tokens
    assert rows is not None
    (folder / "b.png").write_bytes(b"no picture any more")
    with pytest.raises(ConfigError, match=r"b\.png could be decoded at first"):
        rows.gather(torch.tensor([0, 1]))


WORKER = """
import sys
from dataclasses import replace
from pathlib import Path
from jepa.distributed import Run
sys.path += ["tests", "tests/evals/features"]
from test_live import ROWS, SEEDS, live

with Run.start("cpu") as run:
    alone = Run(run.device, run.precision)
    whole, _ = live(Path("PATH"), run=alone)
    shared, _ = live(Path("PATH"), run=alone)
    shared = replace(shared, run=run)
    for few in (5, 1):
        plan = [(ROWS[:few], SEEDS[:few])]
        difference = (next(shared.stream(plan)) - next(whole.stream(plan))).abs().max().item()
        plain = (shared.gather(ROWS[:few]) - whole.gather(ROWS[:few])).abs().max().item()
        print("differences", run.rank, few, difference, plain, flush=True)
"""


def test_two_processes_encode_a_part_of_each_batch(tmp_path: Path) -> None:
    open_clips(tmp_path / "clips.npz")
    for printed in outputs(WORKER.replace("PATH", str(tmp_path / "clips.npz"))):
        found = re.findall(r"differences \d (\d) (\S+) (\S+)", printed)
        assert [few for few, _, _ in found] == ["5", "1"]
        assert all(float(value) < 1e-6 for _, *values in found for value in values)


def settings(folder: Path) -> EvalConfig:
    model = folder / "model"
    if not model.exists():
        model.mkdir()
        facts = {"predictor": None, "probe": None, "family": "run", "weights": None}
        write_safetensors(ExportSource(name="small", encoder=small_encoder(), **facts), model)
        for name, count in (("train", 24), ("test", 13)):  # dark ones and bright ones
            labels = np.arange(count) % 2
            noise = np.random.default_rng(count).integers(0, 100, (count, 9, 32, 32, 3))
            np.savez(folder / f"{name}.npz", clips=(noise + 60 * labels[:, None, None, None, None]).astype(np.uint8),
                     labels=labels)  # fmt: skip
    attentive = ProbeConfig(kind="attentive", steps=5, batch_size=8, learning_rates=(3e-3,), weight_decays=(0.01,))
    linear = ProbeConfig(steps=12, batch_size=8, learning_rates=(1e-2,), weight_decays=(0.01,))
    return EvalConfig(
        run=str(model), train=SourceConfig(path=str(folder / "train.npz")), cache=False, baselines=("pixels",),
        test=SourceConfig(path=str(folder / "test.npz")), probes=(linear, attentive), out=str(folder / "out"),
        augment=AugmentConfig(scale=(0.8, 1.0), flip=0.0),
    )  # fmt: skip


def test_an_eval_without_a_cache_learns_and_keeps_no_tokens(tmp_path: Path) -> None:
    config = settings(tmp_path)
    first, second = evaluate(config), evaluate(config)
    scores = {(row["probe"], row["encoder"]): row["accuracy"] for row in first["rows"]}
    assert [{**row, "seconds": 0} for row in first["rows"]] == [{**row, "seconds": 0} for row in second["rows"]]
    assert scores["linear", "pixels"] == scores["linear", "trained"] == 1.0
    assert list((tmp_path / "out" / "features").rglob("*.vectors.npy"))
    assert not list((tmp_path / "out" / "features").rglob("*.tokens.npy"))
    kept = evaluate(replace(config, cache=True))
    assert [row["heads"] for row in kept["rows"]] != [row["heads"] for row in first["rows"]]  # other views


def test_two_processes_without_a_cache_find_what_one_finds(tmp_path: Path) -> None:
    config = settings(tmp_path)
    (alone, *_), both = evaluate(config)["rows"], by_two(config)
    for rows in (found["rows"] for found in both):
        assert rows[0]["accuracy"] == alone["accuracy"]
        assert rows[0]["heads"][0]["loss"] == pytest.approx(alone["heads"][0]["loss"], rel=1e-4)
