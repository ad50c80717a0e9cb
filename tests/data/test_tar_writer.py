"""Writing shards: complete, reproducible, resumable, readable by webdataset, honest about what is left out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from evals.split_checks import leaks
from jepa.config import ConfigError
from jepa.data.encoding import WriteError
from jepa.data.sources import SourceConfig, open_source
from jepa.data.tar_writer import write_shards


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def test_shards_are_of_the_size_asked_for_and_say_what_they_hold(video_folder, tmp_path):
    result = write_shards([SourceConfig(path=str(video_folder))], tmp_path / "a", shard_mb=0.03, progress=False)
    sizes = [path.stat().st_size for path in (tmp_path / "a").glob("*.tar")]
    facts = json.loads((tmp_path / "a" / "index" / "index.json").read_text())
    assert len(sizes) > 2
    assert max(sizes) < 0.03 * 2**20 + 10240 + 1024  # tar fills its last record
    assert [record["bytes"] for record in facts["shards"]] == [len(data) for data in contents(tmp_path / "a").values()]
    assert (result.samples, facts["samples"], sorted(facts["labels"])) == (12, 12, ["left", "right"])
    assert (result.written, result.bytes, result.failed) == (len(sizes), sum(sizes), [])


def test_webdataset_reads_them_and_every_file_is_there_once(video_folder, tmp_path):
    (video_folder / "table.csv").write_text(
        "path,label,word\n" + "".join(f"{p.relative_to(video_folder)},x{i % 3},w{i}\n"
                                      for i, p in enumerate(sorted(video_folder.rglob("*.mp4"))))
    )  # fmt: skip
    try:
        table = SourceConfig(path=str(video_folder / "table.csv"))
        write_shards([table], tmp_path / "a", shard_count=2, progress=False)
    finally:
        (video_folder / "table.csv").unlink()
    samples = list(wds.WebDataset([str(p) for p in sorted((tmp_path / "a").glob("*.tar"))], shardshuffle=False))
    assert len(samples) == 12
    for sample in samples:
        facts = json.loads(sample["json"])
        assert sample["mp4"] == (video_folder / facts["path"]).read_bytes()
        assert f"x{sample['cls'].decode()}" == facts["label"] == f"x{int(facts['word'][1:]) % 3}"
    words = open_source(SourceConfig(path=str(tmp_path / "a"), label_column="word"))
    assert sorted(words.class_names, key=lambda w: int(w[1:])) == [f"w{i}" for i in range(12)]


def test_the_same_job_makes_the_same_bytes_and_goes_on_where_it_stopped(video_folder, tmp_path):
    sources = [SourceConfig(path=str(video_folder))]
    write_shards(sources, tmp_path / "a", shard_count=4, progress=False)
    straight = contents(tmp_path / "a")
    write_shards(sources, tmp_path / "b", shard_count=4, progress=False)
    assert contents(tmp_path / "b") == straight
    (tmp_path / "b" / "shard-000002.tar").unlink()
    (tmp_path / "b" / ".shard-000002.tar.tmp").write_bytes(b"half")  # what a killed run leaves
    result = write_shards(sources, tmp_path / "b", shard_count=4, progress=False)
    assert (result.written, result.kept, contents(tmp_path / "b")) == (1, 3, straight)
    assert not list((tmp_path / "b").glob(".*"))
    write_shards(sources, tmp_path / "c", shard_count=4, shuffle=None, progress=False)
    names = [os.path.basename(path) for path in open_source(SourceConfig(path=str(tmp_path / "c"))).paths]
    videos = [name.split("_")[1] for name in names]
    assert videos == [Path(path).name for path in open_source(sources[0]).paths]
    with pytest.raises(ConfigError, match=r"holds shards of other sources or settings .*shuffle: 0 -> 1"):
        write_shards(sources, tmp_path / "a", shard_count=4, shuffle=1, progress=False)
    (tmp_path / "a" / "shards.json").unlink()
    with pytest.raises(ConfigError, match="shards that this command did not write"):
        write_shards(sources, tmp_path / "a", shard_count=4, progress=False)
    with pytest.raises(ConfigError, match="is one of the sources: write the shards to another folder"):
        write_shards([SourceConfig(path=f"{tmp_path}/b/")], tmp_path / "b", progress=False)


def test_a_full_disk_is_noticed_before_and_while_writing(video_folder, tmp_path, monkeypatch):
    sources = [SourceConfig(path=str(video_folder))]
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(WriteError, match=r"the shards need about .* GB more, but the disk"):
        write_shards(sources, tmp_path / "a", progress=False)
    monkeypatch.undo()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("webdataset.writer.TarWriter.write", full)
    with pytest.raises(WriteError, match=r"shard-000000\.tar cannot be written: No space left.*run the same command"):
        write_shards(sources, tmp_path / "a", progress=False)
    assert contents(tmp_path / "a") == {}


def test_arrays_images_shards_and_bad_files(video_folder, tmp_path):
    (tmp_path / "images" / "cat").mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.full((8, 8, 3), 60 * number, np.uint8)).save(tmp_path / f"images/cat/v1.{number}.png")
    (tmp_path / "images" / "cat" / "none.jpg").touch()
    clips = np.arange(2 * 5 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 5, 8, 8, 3)
    np.savez(tmp_path / "clips.npz", clips=clips, labels=np.array(["left", "owl"]))
    write_shards([SourceConfig(path=str(video_folder))], tmp_path / "first", progress=False)
    paths = [tmp_path / "images", tmp_path / "clips.npz", tmp_path / "first"]
    sources = [SourceConfig(path=str(path)) for path in paths]
    result = write_shards(sources, tmp_path / "all", progress=False)
    assert [(Path(f.path).name, f.reason) for f in result.failed] == [("none.jpg", "it is empty (0 bytes)")]
    source = open_source(SourceConfig(path=str(tmp_path / "all")))
    assert (len(source), source.class_names) == (17, ("cat", "left", "owl", "right"))
    assert np.bincount(source.labels).tolist() == [3, 7, 1, 6]
    arrays = {int(source.labels[i]): i for i, path in enumerate(source.paths) if path.endswith(".npy")}
    with source.open(arrays[2]) as reader:
        assert np.array_equal(reader.read(range(5)), clips[1])
    assert sorted(Path(path).name[9:] for path in source.paths if path.endswith("png")) == [
        "v1-0.png", "v1-1.png", "v1-2.png"
    ]  # fmt: skip


def test_an_eval_sees_the_same_sample_on_both_sides(video_folder, tmp_path):
    write_shards([SourceConfig(path=str(video_folder))], tmp_path / "a", shard_count=3, progress=False)
    whole = open_source(SourceConfig(path=str(tmp_path / "a")))
    part = open_source(SourceConfig(path=os.path.relpath(tmp_path / "a") + "/shard-00000{0..1}.tar"))
    assert len(leaks([whole], [part])) == len(part) == 8
    other = open_source(SourceConfig(path=str(tmp_path / "a" / "shard-000002.tar")))
    assert leaks([part], [other]) == []
