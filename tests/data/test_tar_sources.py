"""Tar shards as sources: exact, complete, the same for any number of workers and ranks, honest about damage."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import pickle
import shutil
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from batch_checks import assert_same, take
from PIL import Image

from jepa.config import ConfigError
from jepa.data.batches import eval_batches
from jepa.data.loader import DataConfig, TrainLoader, eval_options, open_data
from jepa.data.mixture import FullOrder, Mixture, ShardOrder
from jepa.data.sources import SourceConfig, open_source
from jepa.data.tar_files import fetched_path
from jepa.data.tar_writer import write_shards
from jepa.data.video import VideoError, available_backends, open_video
from jepa.types import ClipConfig

CLIP = ClipConfig(num_frames=4, fps=10, crop_size=32, short_side=40)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JEPA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def shards(video_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twelve videos in five shards of 2, 2, 3, 2 and 3."""
    folder = tmp_path_factory.mktemp("tar") / "shards"
    write_shards([SourceConfig(path=str(video_folder))], folder, shard_count=5, progress=False)
    return folder


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def picture(grey: int, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), grey, dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def loader(path: str | Path, batch_size: int = 6, rank: int = 0, world_size: int = 1, **options: object) -> TrainLoader:
    keys = {name: options.pop(name) for name in ("shuffle_shards", "weight") if name in options}
    data = DataConfig(sources=[SourceConfig(path=str(path), **keys)], **{"workers": 0, **options})  # type: ignore[arg-type]
    return TrainLoader(data, CLIP, [], batch_size, seed=5, rank=rank, world_size=world_size)


def test_a_shard_holds_the_clips_of_the_files_and_their_labels(video_folder, shards):
    plain, tar = (open_source(SourceConfig(path=str(path)), eval_options(CLIP)) for path in (video_folder, shards))
    assert (len(tar), tar.class_names) == (12, ("left", "right"))
    files = {Path(path).stem: item for item, path in enumerate(plain.paths)}
    for item, name in enumerate(tar.paths):
        assert name.startswith(f"{shards}/shard-00000")
        own = files[Path(name).stem.split("_")[1]]
        assert tar.labels[item] == plain.labels[own]
        assert np.array_equal(tar.load_clip(item, CLIP).frames, plain.load_clip(own, CLIP).frames)
    facts = [record["samples"] for record in json.loads((shards / "index" / "index.json").read_text())["shards"]]
    assert facts == tar.tar.shard_sizes().tolist() == [2, 2, 3, 2, 3]


@pytest.mark.parametrize("backend", available_backends())
def test_every_reader_reads_from_memory_and_from_pieces_what_it_reads_from_a_file(make_video, backend, shards):
    path = make_video(count=20)
    with open_video(path, backend, short_side=32) as plain:
        expected = plain.read([3, 11, 19])
    for file in (io.BytesIO(path.read_bytes()), path.open("rb")):
        with open_video("shard.tar/a.mp4", backend, 32, file=file) as reader:
            assert np.array_equal(reader.read([3, 11, 19]), expected)
    with pytest.raises(VideoError, match=r"shard\.tar/a\.mp4"):
        open_video("shard.tar/a.mp4", backend, file=io.BytesIO(b"no video at all" * 50))


def test_long_members_are_read_in_pieces(shards, monkeypatch):
    source = open_source(SourceConfig(path=str(shards)), eval_options(CLIP, "pyav"))
    whole = source.load_clip(4, CLIP)
    monkeypatch.setattr("jepa.data.tar_files._IN_MEMORY", 100)
    assert not isinstance(source.tar.file(4), io.BytesIO)
    assert source.tar.file(4).read() == source.tar.file(4).read(source.tar.size(4) + 9)
    assert np.array_equal(source.load_clip(4, CLIP).frames, whole.frames)


@pytest.mark.parametrize("lanes", [1, 2])
def test_batches_do_not_depend_on_workers_ranks_or_stops(shards, lanes):
    straight = take(loader(shards, lanes=lanes, shuffle_shards=2), 6)
    for one, other in zip(straight, take(loader(shards, lanes=lanes, shuffle_shards=2, workers=2), 6), strict=True):
        assert_same(one, other)
    ranks = [take(loader(shards, lanes=lanes, shuffle_shards=2, rank=r, world_size=2), 6) for r in range(2)]
    for step, whole in enumerate(straight):
        assert torch.equal(torch.cat([rank[step].clip for rank in ranks]), whole.clip)
    copy = pickle.loads(pickle.dumps(loader(shards, lanes=lanes, shuffle_shards=2).dataset))  # as for a spawned worker
    assert_same(copy[3][0], straight[3])
    stopped = loader(shards, lanes=lanes, shuffle_shards=2)
    take(stopped, 2)
    resumed = loader(shards, lanes=lanes, shuffle_shards=2)
    read = []
    items = resumed.sources[0].tar
    original = items.file
    items.file = lambda item: read.append(item) or original(item)
    batches = take(resumed, 4, resumed.load_state_dict(stopped.state_dict()))
    for one, other in zip(straight[2:], batches, strict=True):
        assert_same(one, other)
    assert len(read) == 4 * 6  # nothing that was consumed is read, let alone decoded, again


def test_a_changed_setting_or_shard_cannot_resume(shards, tmp_path):
    state = loader(shards).state_dict()
    part = f"{shards}/shard-{{000000..000003}}.tar"
    for other in (loader(shards, lanes=2), loader(shards, shuffle_shards=1), loader(part)):
        with pytest.raises(ConfigError, match="sources have changed"):
            other.load_state_dict(state)
    assert loader(shutil.copytree(shards, tmp_path / "moved")).load_state_dict(state) == 0


@pytest.mark.parametrize(
    ("sizes", "batch", "lanes"), [([7, 1, 12, 5, 3], 4, 1), ([7, 1, 12, 5, 4], 6, 3), ([3] * 9, 8, 8)]
)
@pytest.mark.parametrize("window", [0, 1, 2])
def test_every_sample_is_drawn_exactly_once_an_epoch_over_all_rows(sizes, batch, lanes, window):
    """Rows of a batch are what ranks and workers share out, so counting rows counts for all of them."""
    total = sum(sizes)
    mixture = Mixture([ShardOrder(np.array(sizes), window)], [1.0], seed=2, batch_size=batch, lanes=lanes)
    drawn = [mixture.locate(p)[1] for p in range(3 * batch * total)]
    parts = np.split(np.array(drawn).reshape(-1, batch), lanes, axis=1)
    for epoch in range(3):
        seen: Counter[int] = Counter()
        for number, part in enumerate(parts):  # a lane's own samples in their order
            own = part.reshape(-1)
            share = total * (number + 1) // lanes - total * number // lanes
            assert abs(share - total / lanes) < 1
            seen.update(own[epoch * share : (epoch + 1) * share].tolist())
        assert seen == Counter(range(total))
    assert drawn[:total] != drawn[total : 2 * total]


def test_shuffling_mixes_only_shards_of_a_window_and_every_epoch_differs():
    sizes = np.array([50] * 12)
    order = ShardOrder(sizes, 3)
    mixture = Mixture([order], [1.0], seed=0)
    epochs = [np.array([mixture.locate(p)[1] for p in range(600 * e, 600 * e + 600)]) for e in range(2)]
    windows = [{*(epoch[i : i + 150] // 50).tolist()} for epoch in epochs for i in range(0, 600, 150)]
    assert {len(window) for window in windows} == {3}  # three shards at a time
    assert windows[:4] != windows[4:]
    assert len({*(epochs[0][:20] // 50).tolist()}) == 3  # and these are mixed
    assert np.abs(np.diff(epochs[0])).mean() > 20
    assert [mixture.locate(p)[1] for p in (599, 0, 300)] == epochs[0][[599, 0, 300]].tolist()
    near = [mixture.replacement(10, attempt)[1] // 50 for attempt in range(20)]
    assert {*near} <= windows[0]  # a stand-in comes from shards that are at hand


def test_lanes_keep_to_their_own_shards():
    mixture = Mixture([ShardOrder(np.array([10] * 16), 2)], [1.0], seed=0, batch_size=8, lanes=4)
    rows = np.array([[mixture.locate(8 * step + row)[1] // 10 for row in range(8)] for step in range(20)])
    lanes = [{*rows[:, 2 * lane : 2 * lane + 2].reshape(-1).tolist()} for lane in range(4)]
    assert [len(lane) for lane in lanes] == [4] * 4
    assert set.union(*lanes) == set(range(16))
    with pytest.raises(ConfigError, match="multiple of lanes x clips_per_video = 3 x 2"):
        Mixture([FullOrder(9)], [1.0], 0, clips_per_video=2, batch_size=9, lanes=3)


def test_shards_mix_with_other_sources_by_weight_and_share_class_ids(shards, video_folder):
    sources = [SourceConfig(path=str(shards), weight=3.0), SourceConfig(path=str(video_folder / "left"))]
    mixed = TrainLoader(DataConfig(sources=sources, workers=0), CLIP, [], 64, seed=0)
    share = np.mean([mixed.dataset.mixture.locate(p)[0] for p in range(1024)])
    assert share == 0.25
    batch = take(mixed, 1)[0]
    assert {0, 1} <= {*batch.label.tolist()}


def test_holdout_validation_and_evals_read_shards(shards):
    data = DataConfig(sources=[SourceConfig(path=str(shards))], holdout=3, workers=0)
    train, held = open_data(data, CLIP)
    assert (len(train[0]), len(held[0]), {*train[0].paths} & {*held[0].paths}) == (9, 3, set())
    assert int(train[0].tar.shard_sizes().sum()) == 9
    batches = list(eval_batches(held[0], CLIP, 2))
    assert [len(batch.clip) for batch in batches] == [2, 1]
    part = open_source(SourceConfig(path=f"{shards}/shard-00000{{1,4}}.tar"))
    assert part.tar.shard_sizes().tolist() == [2, 3]
    assert [Path(path).parent.name for path in part.paths] == ["shard-000001.tar"] * 2 + ["shard-000004.tar"] * 3


def test_foreign_shards_labels_and_members(tmp_path, cache, caplog):
    clip = np.zeros((3, 40, 60, 3), dtype=np.uint8)
    array = io.BytesIO()
    np.save(array, clip + 7)
    members = {
        "x/a.jpg": picture(100, "jpeg"), "x/a.cls": b"3\n", "x/b.webp": picture(50, "webp"),
        "x/b.json": b'{"label": "1", "word": "owl"}', "c.npy": array.getvalue(), "c.left.png": picture(200),
        "c.json": json.dumps({"label": 2, "start_s": 0.1, "end_s": 0.3, "word": "cat"}).encode(), "d.txt": b"text",
        "e.png": b"", "f.png": picture(9), "f.json": b"{", "__meta__.png": picture(1),
    }  # fmt: skip
    path = write_tar(tmp_path / "a.tar", members)
    with caplog.at_level(logging.WARNING, "jepa"):
        source = open_source(SourceConfig(path=str(path), fps=10.0))
    assert [Path(name).name for name in source.paths] == ["a.jpg", "b.webp", "c.npy"]
    assert (source.labels.tolist(), len(source.class_names)) == ([3, 1, 2], 4)
    assert source.spans[2].tolist() == [0.1, 0.3]
    assert source.spans[0].tolist() == [0.0, float("inf")]
    assert source.load_clip(2, CLIP).frames.tolist() == (clip[:1] + 7).repeat(4, axis=0).tolist()
    assert abs(int(source.load_clip(0, CLIP).frames.mean()) - 100) < 2
    text = caplog.text
    assert f"{path}/d: it has no video, array or image, only .txt" in text
    assert f"{path}/e.png: it is empty" in text
    assert f"{path}/f.png: its label cannot be read" in text
    words = open_source(SourceConfig(path=str(path), label_column="word"))
    assert (words.labels.tolist(), words.class_names) == ([-1, 1, 0], ("cat", "owl"))
    assert [Path(p).name for p in open_source(SourceConfig(path=str(path), member="left.png")).paths] == ["c.left.png"]
    with pytest.raises(ConfigError, match=r"no sample has a \.json member with 'colour'"):
        open_source(SourceConfig(path=str(path), label_column="colour"))
    made = sorted((cache / "shards").iterdir())
    open_source(SourceConfig(path=str(path), fps=10.0))
    assert sorted((cache / "shards").iterdir()) == made  # the headers are read once
    write_tar(path, {"z.png": picture(3)})
    assert len(open_source(SourceConfig(path=str(path)))) == 1  # but a changed shard is noticed


def test_bad_members_are_replaced_and_named_with_their_shard(shards, tmp_path):
    good = {f"{i:02d}.png": picture(10 * i) for i in range(19)}
    write_tar(tmp_path / "a.tar", {**good, "bad.png": b"not a picture"})
    source = loader(tmp_path / "a.tar", max_failed=0.05)
    batches = take(source, 4)
    assert list(source.failed) == [f"{tmp_path}/a.tar/bad.png"]
    assert sum(batch.skipped for batch in batches) >= 1
    for one, other in zip(batches, take(loader(tmp_path / "a.tar", workers=2), 4), strict=True):
        assert_same(one, other)
    write_tar(tmp_path / "b.tar", {**good, "bad.png": b"not a picture", "empty.png": b""})
    with pytest.raises(VideoError, match="2 of 21 files cannot be decoded"):
        take(loader(tmp_path / "b.tar"), 8)


@pytest.mark.parametrize(
    ("damage", "says", "left"),
    [
        (lambda data: data[:1024], "cut off", 0), (lambda data: data[: 6 * 512], "cut off", 2),
        (lambda data: data[: 2 * 512] + b"junk" * 128 + data[3 * 512 :], "damaged at byte 1024", 1),
        (lambda data: data[:1540], "it ends within b.ppm", 1), (lambda data: b"", "empty file", 0),
    ],
)  # fmt: skip
def test_damaged_shards_are_named_and_counted(tmp_path, damage, says, left, caplog):
    clean = write_tar(tmp_path / "good.tar", {"a.ppm": b"P6 1 1 255 abc", "b.ppm": b"P6 1 1 255 def"})
    data = clean.read_bytes()[: 4 * 512]
    bad = tmp_path / "bad.tar"
    bad.write_bytes(damage(data + clean.read_bytes()[4 * 512 :]) if left < 2 else damage(data)[: 4 * 512])
    if left == 0 and says == "cut off":
        bad.write_bytes(data[:512])  # a header and nothing behind it
    pattern = f"{tmp_path}/{{good,bad}}.tar"
    with caplog.at_level(logging.WARNING, "jepa"):
        assert len(open_source(SourceConfig(path=pattern))) == 2 + left
    assert f"shard {bad} is damaged" in caplog.text
    assert says in caplog.text
    with pytest.raises(VideoError, match=r"1 of 2 shards are damaged.*bad\.tar"):
        loader(pattern)
    assert len(loader(pattern, max_failed=0.5).sources[0]) == 2 + left


def test_missing_shards_and_empty_ones_are_found_at_the_start(shards, tmp_path):
    with pytest.raises(ConfigError, match=r"3 of 8 shards do not exist, the first: .*shard-000005\.tar"):
        open_source(SourceConfig(path=f"{shards}/shard-{{000000..000007}}.tar"))
    write_tar(tmp_path / "a.tar", {"a.txt": b"x"})
    with pytest.raises(ConfigError, match=r"none of its 1 shards holds a sample; .*a\.tar/a: it has no"):
        open_source(SourceConfig(path=str(tmp_path / "a.tar")))
    with pytest.raises(ConfigError, match="'where' chooses rows of a CSV"):
        open_source(SourceConfig(path=str(shards), where={"a": "b"}))
    with pytest.raises(ConfigError, match=r"none of its 1 shards.*use pipe:COMMAND"):
        open_source(SourceConfig(path="s3://bucket/a.tar"))
    with pytest.raises(ConfigError, match=r"none of its 1 shards.*ended with status 1"):
        open_source(SourceConfig(path=f"pipe:cat {tmp_path}/nothing.tar"))


def test_a_folder_that_lacks_shards_or_holds_videos_too_is_refused(shards, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    (folder / "shard-000003.tar").unlink()  # deleted, not copied, or not yet written
    with pytest.raises(ConfigError, match=r"was to write 5 shards there, but 4 are there.*run it again.*\*\.tar"):
        open_source(SourceConfig(path=str(folder)))
    assert len(open_source(SourceConfig(path=f"{folder}/*.tar"))) == 10
    (folder / "a.mp4").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"4 tar shards \(shard-000000\.tar, \.\.\.\) and 1 videos \(a\.mp4"):
        open_source(SourceConfig(path=str(folder)))


def test_members_behind_another_of_their_kind_are_named(tmp_path, caplog):
    names = ("film.part1.png", "film.part2.png", "film.json", "b.npy", "b.png", "c.png")
    path = write_tar(tmp_path / "a.tar", {name: b"{}" for name in names})
    for _ in range(2):  # read, and from the kept index
        caplog.clear()
        with caplog.at_level(logging.WARNING, "jepa"):
            assert len(open_source(SourceConfig(path=str(path)))) == 3
        assert f"1 members are not used, the first: {path}/film.part2.png. Members make one sample" in caplog.text
    with caplog.at_level(logging.WARNING, "jepa"):
        caplog.clear()
        assert len(open_source(SourceConfig(path=str(path), member="part2.png"))) == 1
    assert "not used" not in caplog.text


def test_pipes_give_the_batches_of_local_shards_and_are_fetched_within_the_room(shards, tmp_path, cache):
    local = take(loader(shards, shuffle_shards=2), 6)
    log = tmp_path / "log"
    pattern = f"pipe:echo x >> {log}; cat {shards}/shard-{{000000..000004}}.tar"
    for one, other in zip(local, take(loader(pattern, shuffle_shards=2, workers=2), 6), strict=True):
        assert torch.equal(one.clip, other.clip)
        assert torch.equal(one.label, other.label)
    assert log.read_text() == "x\n" * 5  # once for all, the index included
    for fetched in (cache / "shards").glob("*.tar"):
        fetched.unlink()
    small = loader(pattern, shuffle_shards=1, shard_cache_gb=1e-9)
    batches = take(small, 2, 3)
    assert len(list((cache / "shards").glob("*.tar"))) <= 2
    for one, other in zip(batches, take(loader(shards, shuffle_shards=1), 2, 3), strict=True):
        assert torch.equal(one.clip, other.clip)
    packed = tmp_path / "a.tar.gz"
    subprocess.run(f"gzip -c {shards}/shard-000002.tar > {packed}", shell=True, check=True)
    source = open_source(SourceConfig(path=str(packed)))
    assert source.load_clip(2, CLIP).frames.shape == (4, 40, 60, 3)
    assert fetched_path(str(packed)).read_bytes() == (shards / "shard-000002.tar").read_bytes()


def test_a_stream_that_breaks_off_is_no_shard(shards, cache):
    name = f"pipe:head -c 3000 {shards}/shard-000000.tar"
    with pytest.raises(ConfigError, match=r"none of its 1 shards holds a sample.*cut off"):
        open_source(SourceConfig(path=name))
    name = f"pipe:cat {shards}/shard-000000.tar; exit 3"
    with pytest.raises(ConfigError, match="ended with status 3"):
        open_source(SourceConfig(path=name))
    assert not fetched_path(name).exists()


def test_memory_of_a_process_does_not_grow_with_the_samples_it_visits(tmp_path):
    """4,000 more samples visited cost no more than 512 KiB: 130 bytes for each would be seen."""
    write_tar(tmp_path / "a.tar", {f"{i:06d}.ppm": b"P6 1 1 255 abc" for i in range(6_000)})
    source, clip = open_source(SourceConfig(path=str(tmp_path / "a.tar"))), ClipConfig(num_frames=1, crop_size=1)

    def visit(items: range) -> int:
        names = 0
        for item in items:
            source.load_clip(item, clip)
            names += len(source.paths[item])
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = visit(range(2_000))
    assert visit(range(2_000, 6_000)) - before < 2**19
