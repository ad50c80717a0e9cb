"""Features on disk: block by block, resumable, mapped, shared by probes and processes; other data is noticed."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import SMALL_CLIP, small_encoder, write_clips

from evals.features import jobs as feature_jobs
from evals.features import storage
from evals.features.cache import TOKENS, VECTORS, Layout
from evals.features.encoding import Views
from evals.features.harness import FeatureOptions, FeatureSet, Split, compute_features, compute_splits
from evals.features.representations import EncoderRepresentation, Pixels, random_twin
from evals.features.rows import Rows
from evals.features.storage import check_memory, readable, source_hash
from jepa.config import ConfigError
from jepa.data.loader import eval_options
from jepa.data.sources import Source, SourceConfig, open_source
from jepa.distributed import Run

RUN = Run(torch.device("cpu"), "fp32")
ITEMS = 40  # three blocks


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_path(write_clips(tmp_path_factory.mktemp("clips") / "clips.npz", clips=ITEMS))


@pytest.fixture
def trained() -> EncoderRepresentation:
    return EncoderRepresentation("trained", small_encoder(), RUN)


@pytest.fixture
def options(tmp_path: Path) -> FeatureOptions:
    return FeatureOptions(cache_dir=tmp_path / "features")


def open_path(path: Path) -> Source:
    return open_source(SourceConfig(path=str(path)), eval_options(SMALL_CLIP))


def pictures(folder: Path, count: int, broken: tuple[int, ...] = ()) -> Source:
    """Noise pictures in a folder; ``broken`` ones cannot be decoded."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number:03d}.png"
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
        if number in broken:
            path.write_bytes(b"no picture")
    return open_path(folder)


def everything(rows: Rows | None) -> torch.Tensor:
    assert rows is not None
    return rows.gather(torch.arange(len(rows)))


def same(first: FeatureSet, second: FeatureSet) -> bool:
    assert first.items.tolist() == second.items.tolist()
    assert first.failures == second.failures
    return all(torch.equal(everything(a), everything(b)) for a, b in zip(first[1:3], second[1:3]))


class Counted:
    """A representation that counts the clips that it encodes, and stops after ``most``."""

    def __init__(self, of: EncoderRepresentation, most: int = 10**9) -> None:
        self.of, self.most, self.clips = of, most, 0

    def __getattr__(self, name: str):
        return getattr(self.of, name)

    def __call__(self, clip: torch.Tensor):
        self.clips += len(clip)
        if self.clips > self.most:
            raise KeyboardInterrupt
        return self.of(clip)


def folder_of(options: FeatureOptions) -> Path:
    """The only cached features."""
    assert options.cache_dir is not None
    (folder,) = options.cache_dir.iterdir()
    return folder


def test_layout_of_blocks_and_files() -> None:
    small = Layout(items=40, views=2, tokens=8, width=24, vector=24)
    assert (small.block, small.blocks, list(small.block_items(2))) == (16, 3, list(range(32, 40)))
    assert (small.item_bytes(VECTORS), small.item_bytes(TOKENS)) == (2 * 24 * 4, 2 * 8 * 24 * 4)
    large = Layout(items=100_000, views=1, tokens=1568, width=1024, vector=1024)
    assert (large.block, large.blocks, large.token_rows) == (256, 391, 10)
    assert large.token_rows * large.item_bytes(TOKENS) <= 64 * 2**20 < (large.token_rows + 1) * large.item_bytes(TOKENS)
    assert [number for n in range(large.blocks) for number in large.block_items(n)] == list(range(100_000))


def test_the_cache_gives_what_memory_gives_and_maps_it(
    source: Source, trained: EncoderRepresentation, options: FeatureOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evals.features.cache._FILE_BYTES", 3000)  # three clips of 768 bytes
    kept = compute_features([trained], source, RUN, options)["trained"]
    fresh = compute_features([trained], source, RUN, FeatureOptions())["trained"]
    assert same(kept, fresh)
    assert kept.items.tolist() == list(range(ITEMS))
    folder = folder_of(options)
    assert len(list(folder.glob("*.vectors.npy"))) == 3
    assert len(list(folder.glob("000000-*.tokens.npy"))) == 6  # 5 files of three clips and one of one
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert maps.read_text().count(f"{folder}/000000-") == 6
    assert json.loads((folder / "meta.json").read_text())["layout"]["items"] == ITEMS
    counted = Counted(trained)
    assert same(compute_features([counted], source, RUN, options)["trained"], fresh)
    assert counted.clips == 0
    assert not list(folder.glob(".*"))


def test_what_is_done_with_copies_never_reaches_the_disk(
    source: Source, trained: EncoderRepresentation, options: FeatureOptions
) -> None:
    first = compute_features([trained], source, RUN, options)["trained"]
    before = everything(first.vectors).clone()
    first.vectors.blocks[0].zero_()
    again = compute_features([trained], source, RUN, options)["trained"]
    assert torch.equal(everything(again.vectors), before)


def test_an_interrupted_encoding_goes_on(
    source: Source, trained: EncoderRepresentation, options: FeatureOptions
) -> None:
    stopped = Counted(trained, most=20)
    with pytest.raises(KeyboardInterrupt):
        compute_features([stopped], source, RUN, options)
    folder = folder_of(options)
    assert [path.name for path in folder.glob("*.vectors.npy")] == ["000000.vectors.npy"]
    counted = Counted(trained)
    found = compute_features([counted], source, RUN, options)["trained"]
    assert counted.clips == ITEMS - 16  # the first block was complete
    assert same(found, compute_features([trained], source, RUN, FeatureOptions())["trained"])


def test_tokens_are_added_to_vectors_that_are_there(
    source: Source, trained: EncoderRepresentation, options: FeatureOptions
) -> None:
    vectors = FeatureOptions(cache_dir=options.cache_dir, tokens=False)
    assert compute_features([trained], source, RUN, vectors)["trained"].tokens is None
    folder = folder_of(options)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.vectors.npy")}
    assert not list(folder.glob("*.tokens.npy"))
    found = compute_features([trained], source, RUN, options)["trained"]
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.vectors.npy")} == before
    assert same(found, compute_features([trained], source, RUN, FeatureOptions())["trained"])
    counted = Counted(trained)
    compute_features([counted], source, RUN, vectors)
    assert counted.clips == 0


@pytest.mark.parametrize("name", ["000001.vectors.npy", "000001.json", "000001-000.tokens.npy"])
@pytest.mark.parametrize("how", ["cut", "nonsense", "gone"])
def test_a_damaged_block_is_encoded_again(
    source: Source, trained: EncoderRepresentation, options: FeatureOptions, name: str, how: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    first = compute_features([trained], source, RUN, options)["trained"]
    path = folder_of(options) / name
    whole = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(whole[: len(whole) // 2] if how == "cut" else b"damaged")
    counted = Counted(trained)
    with caplog.at_level(logging.WARNING, "jepa"):
        repaired = compute_features([counted], source, RUN, options)["trained"]
    assert counted.clips == 16
    assert (f"{name} is damaged and will be written again" in caplog.text) == (how != "gone")
    assert same(repaired, first)
    assert path.read_bytes() == whole


def test_undecodable_items_and_their_reasons_are_kept(
    trained: EncoderRepresentation, options: FeatureOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = pictures(tmp_path / "pictures", 20, broken=(3, 17, 18, 19))  # the last block has none
    first = compute_features([trained], source, RUN, options)["trained"]
    assert first.items.tolist() == [0, 1, 2, *range(4, 17)]
    assert sorted(first.failures) == [3, 17, 18, 19]
    assert "003.png" in first.failures[3]
    counted = Counted(trained)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "jepa"):
        again = compute_features([counted], source, RUN, options)["trained"]
    assert counted.clips == 0
    assert same(again, first)
    assert sum("017.png" in record.message for record in caplog.records) == 1
    none = pictures(tmp_path / "none", 3, broken=(0, 1, 2))
    for keep in (options, FeatureOptions()):
        with pytest.raises(ConfigError, match=r"none: no clip can be decoded; the first: .*000\.png"):
            compute_features([trained], none, RUN, keep)


def test_other_weights_views_and_data_have_other_folders(
    source: Source, trained: EncoderRepresentation, options: FeatureOptions, tmp_path: Path
) -> None:
    assert options.cache_dir is not None
    twin = EncoderRepresentation("trained", random_twin(trained.encoder, 5), RUN)
    levels = EncoderRepresentation("trained", trained.encoder, RUN, layers=(0, -1))
    cells = EncoderRepresentation("trained", trained.encoder, RUN, cells=(2, 1, 1))
    segments = FeatureOptions(cache_dir=options.cache_dir, views=Views(segments=2))
    path = write_clips(tmp_path / "other.npz", clips=5)
    for number, (representation, clips, how) in enumerate(
        [
            (trained, source, options), (twin, source, options), (levels, source, options), (cells, source, options),
            (trained, source, segments), (trained, source.subset(range(10)), options),
            (trained, open_path(path), options),
        ]
    ):  # fmt: skip
        compute_features([representation], clips, RUN, how)
        assert len(list(options.cache_dir.iterdir())) == number + 1
    write_clips(path, clips=5, seed=1)  # changed under the cache
    changed = compute_features([trained], open_path(path), RUN, options)["trained"]
    assert len(list(options.cache_dir.iterdir())) == 8
    fresh = compute_features([trained], open_path(path), RUN, FeatureOptions())["trained"]
    assert same(changed, fresh)


def test_a_folder_of_another_model_is_refused(
    source: Source, trained: EncoderRepresentation, options: FeatureOptions
) -> None:
    compute_features([trained], source, RUN, options)
    meta = folder_of(options) / "meta.json"
    about = json.loads(meta.read_text())
    own = about["model"]
    meta.write_text(json.dumps({**about, "model": "another-fp32"}))
    with pytest.raises(ConfigError, match=rf"holds features of another model: another-fp32, not {own}"):
        compute_features([trained], source, RUN, options)
    meta.write_text(json.dumps({**about, "colour": "red"}))
    with pytest.raises(ConfigError, match="holds features of an unknown colour: red"):
        compute_features([trained], source, RUN, options)


def test_a_rewritten_picture_in_a_folder_of_frames_is_noticed(tmp_path: Path) -> None:
    frames = tmp_path / "videos" / "one"
    frames.parent.mkdir()
    pictures(frames, 4)
    (tmp_path / "list.csv").write_text("path\nvideos/one\n")
    source = open_path(tmp_path / "list.csv")
    before = source_hash(source)
    assert source_hash(source) == before
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(frames / "002.png")
    assert source_hash(source) != before


def test_a_source_that_shrinks_is_another_source(source: Source, trained: EncoderRepresentation) -> None:
    assert source_hash(source) != source_hash(source.subset(range(39)))


def test_sizes_are_said_and_checked_before_anything_is_encoded(
    source: Source, trained: EncoderRepresentation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    counted, pixels = Counted(trained), Pixels(SMALL_CLIP, trained.grid)
    features = tmp_path / "features"
    own = 4 * ITEMS * (8 * 24 + 24)
    other = 4 * ITEMS * (8 * (3 * 2 * 4 * 4 + 24) + 3 * 4 * 16 * 16)
    options = FeatureOptions(cache_dir=features, cache_gb=(2 * own + 2 * other + 2e4) / 1e9)
    splits = {"train": Split(source, options), "test": Split(source.subset(range(ITEMS)), options)}
    tight = {n: Split(s, FeatureOptions(cache_dir=features, cache_gb=1e-4)) for n, (s, _) in splits.items()}
    with pytest.raises(ConfigError, match=r"more than cache_gb 0.0001 allows.*--cache-gb 0.00.*--cache-gb 0 holds"):
        compute_splits([counted, pixels], tight, RUN)
    monkeypatch.setattr(storage, "free_disk", lambda folder: 1000)
    with pytest.raises(ConfigError, match="but the disk has 1 kB left"):
        compute_splits([counted, pixels], splits, RUN)
    monkeypatch.setattr(storage, "available_memory", lambda: own)
    memory = {n: Split(s, FeatureOptions()) for n, (s, _) in splits.items()}
    with pytest.raises(ConfigError, match=rf"take {readable(2 * (own + other))} of memory, but {readable(own)} are"):
        compute_splits([counted, pixels], memory, RUN)
    assert counted.clips == 0
    assert not features.exists()
    monkeypatch.undo()
    caplog.clear()  # other tests may have turned messages on
    with caplog.at_level(logging.INFO, "jepa"):
        compute_splits([counted, pixels], splits, RUN)
        compute_splits([counted, pixels], splits, RUN)
    lines = [record.message for record in caplog.records if record.message.startswith("features of ")]
    assert len(lines) == 4  # both splits, twice
    assert f"features of {ITEMS} train clips: {readable(own + other)} in {features}" in lines[0]
    assert f"{readable(own + other)} to encode: trained {readable(own)}, pixels {readable(other)}" in lines[0]
    assert "all of it there already" in lines[2]
    written = sum(path.stat().st_size for path in features.rglob("*.npy"))
    assert own + other <= written <= 1.02 * (own + other) + 128 * 20  # both splits are the same clips


def test_check_memory_counts_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "available_memory", lambda: 1000)
    check_memory(500, 2)
    with pytest.raises(ConfigError, match="501 B of memory in each of 2 processes, but 1 kB are available"):
        check_memory(501, 2)
    monkeypatch.setattr(storage, "available_memory", lambda: None)
    check_memory(10**18, 1)


def test_features_that_are_no_numbers_are_named_and_never_kept(
    trained: EncoderRepresentation, options: FeatureOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pictures(tmp_path / "pictures", 20)
    monkeypatch.setattr(
        feature_jobs, "encode_views",
        lambda batch, *rest, real=feature_jobs.encode_views: {
            name: (vectors.index_fill(0, torch.tensor([2]), torch.nan) if 18 in batch.index else vectors, tokens)
            for name, (vectors, tokens) in real(batch, *rest).items()
        },
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"features of trained for the test clip .*018\.png hold NaN or infinity"):
        compute_features([trained], source, RUN, options, "test")
    assert (folder_of(options) / "000000.json").exists()
    assert not (folder_of(options) / "000001.json").exists()


def test_a_folder_that_cannot_be_written_is_named(
    source: Source, trained: EncoderRepresentation, tmp_path: Path
) -> None:
    (tmp_path / "features").write_text("a file")
    with pytest.raises(ConfigError, match=r"features cannot be written to .*features.*--cache-gb 0"):
        compute_features([trained], source, RUN, FeatureOptions(cache_dir=tmp_path / "features"))
