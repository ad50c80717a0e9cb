"""Downloads against a server on this machine: whole, resumed, cut off, wrong, at once from several sides, offline."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from jepa.files import cache_folder
from jepa.pretrained.download import cache_path, cached_file, is_cached
from jepa.pretrained.zoo import PublishedModel, find_model

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class FileServer(ThreadingHTTPServer):
    """One file, with Range. ``cut_at``: break the next answer's connection after so many bytes (once)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.cut_at, self.ranges = CONTENT, 0, list[str]()
        self.started, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/folder/model.pt"


class Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_HEAD(self) -> None:
        self._headers(200, len(self.server.content))

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range", "")
        server.ranges.append(wanted)
        server.started.set()
        server.go_on.wait(10)
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        body = server.content[start:]
        self._headers(206 if wanted else 200, len(body), start if wanted else None)
        if server.cut_at:
            body, server.cut_at = body[: server.cut_at], 0
            self.close_connection = True
        self.wfile.write(body)

    def _headers(self, status: int, length: int, start: int | None = None) -> None:
        size = len(self.server.content)
        self.send_response(status if self.path == "/folder/model.pt" else 404)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", f'"{hashlib.md5(self.server.content).hexdigest()}"')
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def _plain_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JEPA_OFFLINE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME", "http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("JEPA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits between its tries
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # read when the library was imported
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)  # what it writes at once: 10 MiB


def served(server: FileServer, **changes: object) -> PublishedModel:
    known = {"url": server.url, "size_bytes": len(CONTENT), "sha256": SHA256, **changes}
    return dataclasses.replace(find_model("vjepa2_vit_large"), **known)  # type: ignore[arg-type]


def part_of(model: PublishedModel) -> Path:
    (part,) = cache_path(model).parent.glob("model.pt.*.part")
    return part


def interrupt(server: FileServer, model: PublishedModel, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill a download after some bytes: the transport fails, and the library's own tries find no server either."""
    server.cut_at = after

    def no_second_try(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("time.sleep", no_second_try)
        with pytest.raises(KeyboardInterrupt):
            cached_file(model)


def test_downloads_once_with_progress(
    server: FileServer, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_POSITION", "-1")  # the library's bar shows on a terminal only, or with this
    model = served(server)
    assert not is_cached(model)
    path = cached_file(model)
    assert path == tmp_path / "cache" / "vjepa2_vit_large" / "model.pt"
    assert path.read_bytes() == CONTENT
    assert "100%" in capfd.readouterr().err
    assert cached_file(model) == path
    assert is_cached(model)
    assert server.ranges == [""]
    assert not list(path.parent.glob("*.part"))


def test_a_connection_cut_mid_way_is_taken_up_at_once(server: FileServer) -> None:
    server.cut_at = 123_456
    assert cached_file(served(server)).read_bytes() == CONTENT
    assert server.ranges == ["", "bytes=120000-"]


def test_a_killed_download_is_resumed_by_the_next_call(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = served(server)
    interrupt(server, model, 200_000, monkeypatch)
    assert part_of(model).read_bytes() == CONTENT[:200_000]
    assert not is_cached(model)
    assert cached_file(model).read_bytes() == CONTENT
    assert server.ranges == ["", "bytes=200000-"]


def test_a_part_of_another_version_is_not_continued(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = served(server, size_bytes=None, sha256=None)
    interrupt(server, model, 200_000, monkeypatch)
    server.content = CONTENT[::-1]
    assert cached_file(model).read_bytes() == CONTENT[::-1]
    assert server.ranges == ["", ""]


def test_a_wrong_sum_deletes_the_download(server: FileServer) -> None:
    model = served(server)
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(ValueError, match=f"{SHA256}; the file was deleted"):
        cached_file(model)
    assert [p.name for p in cache_path(model).parent.iterdir() if p.name != ".lock"] == []
    server.content = CONTENT
    assert cached_file(model).read_bytes() == CONTENT


def test_a_wrong_size_at_the_source_is_not_downloaded(server: FileServer) -> None:
    with pytest.raises(ValueError, match=r"300,000 bytes, but vjepa2_vit_large was published with 300,001"):
        cached_file(served(server, size_bytes=300_001))
    assert server.ranges == []


def test_started_at_once_it_downloads_once(server: FileServer) -> None:
    model = served(server)
    server.go_on.clear()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(cached_file, model) for _ in range(4)]
        assert server.started.wait(10)
        server.go_on.set()
        assert {future.result(20).read_bytes() for future in waiting} == {CONTENT}
    assert server.ranges == [""]


def test_a_full_disk_is_seen_before(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(ValueError, match="JEPA_CACHE"):
        cached_file(served(server))
    assert server.ranges == []


@pytest.mark.parametrize("variable", ["JEPA_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_says_what_to_put_where(server: FileServer, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = served(server)
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ValueError, match=variable) as caught:
        cached_file(model)
    folder = cache_path(model).parent
    for told in (server.url, "model.pt into", str(folder)):
        assert told in str(caught.value)
    assert server.ranges == []
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(CONTENT)
    assert cached_file(model).read_bytes() == CONTENT


def test_no_network_and_no_such_file_say_the_same(server: FileServer) -> None:
    gone = served(server, url=server.url.replace("folder", "gone"))
    with pytest.raises(ValueError, match="404") as caught:
        cached_file(gone)
    assert f"put the file model.pt into {cache_path(gone).parent}" in str(caught.value)
    unreachable = served(server, url="http://127.0.0.1:9/model.pt")
    with pytest.raises(ValueError, match="could not be downloaded") as caught:
        cached_file(unreachable)
    assert "download http://127.0.0.1:9/model.pt elsewhere" in str(caught.value)


def test_a_file_put_there_by_hand_is_checked_and_kept(server: FileServer) -> None:
    model = served(server)
    path = cache_path(model)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(ValueError, match="damaged or another file"):
        cached_file(model)
    path.write_bytes(CONTENT[:1000])
    with pytest.raises(ValueError, match="1,000 bytes"):
        cached_file(model)
    assert path.stat().st_size == 1000
    path.write_bytes(CONTENT)
    assert cached_file(model) == path
    assert server.ranges == []


def test_the_sum_is_read_once_and_again_after_a_change(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = served(server)
    path = cached_file(model)
    reads = []
    original = hashlib.file_digest
    monkeypatch.setattr("hashlib.file_digest", lambda *args: reads.append(1) or original(*args))
    cached_file(model)
    assert reads == []
    path.write_bytes(bytes(len(CONTENT)))
    with pytest.raises(ValueError, match="damaged"):
        cached_file(model)
    assert reads == [1]


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("JEPA_CACHE")
    assert cache_folder() == tmp_path / ".cache" / "jepa"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "jepa"
    assert cache_folder("~/own") == tmp_path / "own"


def test_a_hub_repository_is_whole_with_every_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    model = find_model("facebook/vjepa2-vitl-fpc64-256")
    calls = []
    shards = {"encoder.norm": "model-1-of-2.safetensors", "predictor.norm": "model-2-of-2.safetensors"}

    def snapshot_download(repo: str, *, local_dir: Path, allow_patterns: list[str]) -> None:
        calls.append((repo, local_dir))
        (local_dir / "config.json").write_text("{}")
        (local_dir / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
        for name in list(shards.values())[: len(calls)]:
            (local_dir / name).touch()

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(ValueError, match=r"model-2-of-2\.safetensors missing: try again\. Without a network"):
        cached_file(model)
    folder = cached_file(model)
    assert folder == cache_folder() / "facebook--vjepa2-vitl-fpc64-256"
    assert calls == [(model.hub_repo, folder)] * 2
    assert cached_file(model) == folder
    assert len(calls) == 2
    (folder / "model-1-of-2.safetensors").unlink()
    monkeypatch.setenv("JEPA_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"every \.safetensors file of https://huggingface\.co/facebook/vjepa2-vitl"):
        cached_file(model)
