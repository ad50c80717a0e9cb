"""Features: encoded once, cached, the same whatever the batch size; three representations side by side."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evals.features.harness import FeatureOptions, compute_features
from evals.features.representations import EncoderRepresentation, Pixels, encoder_hash, random_twin
from evals.features.rows import Rows
from evals.main import evaluate, main
from evals.probes import ProbeConfig
from evals.settings import EvalConfig
from jepa.checkpoint import save_checkpoint
from jepa.config import ConfigError, to_dict
from jepa.data.loader import eval_options
from jepa.data.sources import Source, SourceConfig, open_source
from jepa.data.transforms import ClipTransform
from jepa.distributed import Run
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.types import Batch, ClipConfig

CLIP = ClipConfig(num_frames=4, fps=10.0, crop_size=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
RUN = Run(torch.device("cpu"), "fp32")
COLOURS = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220]])


def make_clips(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy clips ``[K, 4, 16, 16, 3]`` of a square in one of three colours."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    clips = rng.integers(0, 60, (count, 4, 16, 16, 3))
    for clip, label in zip(clips, labels):
        row, column = rng.integers(0, 10, 2)
        clip[:, row : row + 6, column : column + 6] = COLOURS[label]
    return clips.astype(np.uint8), labels


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    config = EncoderConfig(embed_dim=24, depth=1, num_heads=2, patch_size=4, tubelet_size=2)
    return Encoder(config, CLIP).eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for split, count, seed in (("train", 60, 0), ("test", 40, 1)):
        clips, labels = make_clips(count, seed)
        np.savez(root / f"{split}.npz", clips=clips, labels=labels)
    return root


@pytest.fixture(scope="module")
def run_dir(encoder: Encoder, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    weights = {f"target_encoder.{k}": v for k, v in encoder.state_dict().items()}
    sources = {"sources": [{"path": str(data / "train.npz")}], "validation": [{"path": str(data / "test.npz")}]}
    state = {
        "config": {"data": sources}, "clip": to_dict(CLIP), "encoder_config": to_dict(encoder.config),
        "objective": weights,
    }  # fmt: skip
    save_checkpoint(root, 7, state)
    return root


def open_split(data: Path, split: str) -> Source:
    return open_source(SourceConfig(path=str(data / f"{split}.npz")), eval_options(CLIP))


def whole(rows: Rows) -> torch.Tensor:
    """Everything, ``[K, R, N, D]``."""
    return rows.gather(torch.arange(len(rows)))


def test_features_equal_the_encoder_and_do_not_depend_on_batches(encoder: Encoder, data: Path) -> None:
    source = open_split(data, "test")
    representation = EncoderRepresentation("trained", encoder, RUN)
    found = [
        compute_features([representation], source, RUN, FeatureOptions(batch_size=size))["trained"]
        for size in (7, 40)
    ]
    torch.testing.assert_close(whole(found[0].tokens), whole(found[1].tokens))
    clips = torch.from_numpy(make_clips(40, 1)[0]).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        expected = encoder(ClipTransform(CLIP, None)(Batch(clip=clips)).clip)
    torch.testing.assert_close(whole(found[0].tokens)[:, 0], expected)
    torch.testing.assert_close(found[0].matrix(), expected.mean(dim=1))
    assert found[0].items.tolist() == list(range(40))


def test_cells_keep_place_and_time(encoder: Encoder, data: Path) -> None:
    source, options = open_split(data, "test"), FeatureOptions()
    plain = compute_features([EncoderRepresentation("trained", encoder, RUN)], source, RUN, options)["trained"]
    halves = EncoderRepresentation("trained", encoder, RUN, cells=(2, 1, 1))
    found = compute_features([halves], source, RUN, options)["trained"]
    tokens = whole(plain.tokens)[:, 0]
    early, late = tokens.chunk(2, dim=1)  # tokens run through time first
    torch.testing.assert_close(found.matrix(), torch.cat((early.mean(dim=1), late.mean(dim=1)), dim=1))
    everything = EncoderRepresentation("trained", encoder, RUN, cells=tuple(encoder.grid))
    found = compute_features([everything], source, RUN, options)["trained"]
    torch.testing.assert_close(found.matrix(), tokens.flatten(1))
    assert halves.fingerprint != everything.fingerprint


def test_pixels_are_averages_in_place(encoder: Encoder) -> None:
    pixels = Pixels(CLIP, encoder.grid, side=8)
    clip = torch.rand(2, 3, 4, 16, 16)
    tokens, vector = pixels(clip)
    torch.testing.assert_close(vector, F.avg_pool3d(clip, (1, 2, 2)).flatten(1))
    assert tokens.shape == (2, 32, 3 * 2 * 4 * 4 + 24)
    token = clip[1, :, 2:4, 4:8, 12:16]  # time 1, row 1, column 3
    torch.testing.assert_close(tokens[1, 1 * 16 + 1 * 4 + 3, :96], token.flatten())
    assert len({tuple(row) for row in tokens[0, :, 96:].tolist()}) == 32  # every place differs
    torch.testing.assert_close(tokens[0, :, 96:], tokens[1, :, 96:])


def test_random_twin_differs_in_weights_only(encoder: Encoder) -> None:
    state = torch.random.get_rng_state()
    twin, same = random_twin(encoder, 1), random_twin(encoder, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert twin.config == encoder.config
    assert encoder_hash(twin) == encoder_hash(same) != encoder_hash(encoder)


def test_evaluate_writes_a_table_with_all_three_encoders(run_dir: Path, tmp_path: Path) -> None:
    probes = tuple(ProbeConfig(kind=kind, steps=60, neighbours=(3,)) for kind in ("linear", "attentive", "knn"))
    results = evaluate(EvalConfig(run=str(run_dir), probes=probes, device="cpu"), tmp_path / "out")
    assert len(results["rows"]) == 9
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["rows"] == results["rows"]
    assert stored["step"] == 7
    assert stored["config"]["run"] == str(run_dir)
    by_cell = {(row["probe"], row["encoder"]): row for row in results["rows"]}
    assert by_cell["linear", "random"]["accuracy"] > 0.9  # colour survives a random projection and a mean
    assert by_cell["attentive", "pixels"]["accuracy"] > 0.8
    row = by_cell["knn", "trained"]
    assert (row["num_train"], row["num_test"], row["num_classes"]) == (60, 40, 3)
    counts = np.bincount(make_clips(40, 1)[1], minlength=3) / 40
    assert row["accuracy"] == pytest.approx(sum(counts[c] * row["per_class"][str(c)] for c in range(3)))
    lines = results["table"].splitlines()
    assert lines[0].startswith("| probe | label | trained | random | pixels | chance |")
    assert len(lines) == 5
    assert (run_dir / "features").is_dir()


def test_several_labels_of_one_manifest_share_features(run_dir: Path, data: Path, tmp_path: Path) -> None:
    clips, labels = make_clips(24, 2)
    from PIL import Image

    for number, clip in enumerate(clips):
        Image.fromarray(clip[0]).save(tmp_path / f"{number}.png")
    lines = [f"{n}.png,{'rgb'[labels[n]]},{n % 2}" for n in range(24)]
    lines[5] = f"5.png,{'rgb'[labels[5]]},"
    (tmp_path / "list.csv").write_text("path,colour,parity\n" + "\n".join(lines))
    source = SourceConfig(path=str(tmp_path / "list.csv"))
    config = EvalConfig(
        run=str(run_dir), train=source, test=source, labels=("colour", "parity"), probes=(ProbeConfig(steps=40),),
        baselines=("random",), cache_gb=0, device="cpu", allow=("leak",),
    )  # fmt: skip
    rows = {(row["label"], row["encoder"]): row for row in evaluate(config, tmp_path / "out")["rows"]}
    assert rows["colour", "trained"]["num_train"] == 24
    assert rows["parity", "trained"]["num_train"] == 23  # the clip without that label is left out
    assert list(rows["colour", "trained"]["per_class"]) == ["b", "g", "r"]


def test_command_line(run_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main([str(run_dir), "--probe", "knn", "--train-limit", "30", "--device", "cpu", "--out", out]) == 0
    printed = capsys.readouterr()
    assert "| knn | label |" in printed.out
    assert printed.err.splitlines()[-1] == f"report: {out}/report.html (beside it results.json and results.md)"
    assert json.loads((tmp_path / "out" / "results.json").read_text())["rows"][0]["num_train"] == 30
    for arguments, message in (
        ([str(run_dir), "--probe", "linaer"], "did you mean 'linear'"),
        ([str(run_dir), "--task", "vido"], "did you mean 'video'"),
        ([str(tmp_path / "nowhere")], "nowhere"),
        ([str(run_dir), "--test", str(tmp_path / "no.csv")], "no.csv does not exist"),
        ([str(run_dir), "--token-pool", "2"], "three whole numbers"),
        ([str(run_dir), "--cells", "1,2"], "--cells needs three whole numbers"),
        ([str(run_dir), "--cells", "1,0,2"], "cells must be at least 1"),
        ([str(run_dir), "--cells", "9,1,1"], "must not exceed the token grid"),
        ([str(run_dir), "--baselines", "noise"], "'noise' is unknown"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_missing_labels_and_sources_are_named(run_dir: Path, data: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "plain.npy", np.zeros((3, 4, 16, 16, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"plain.npy has no labels for 'label'"):
        evaluate(EvalConfig(run=str(run_dir), test=SourceConfig(path=str(tmp_path / "plain.npy")), device="cpu"))
