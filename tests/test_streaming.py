"""encode_files: the same features as encode, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from slurm.cluster import free_ports
from support import SMALL_CLIP, moving, small_encoder

from app.cli import main
from jepa import parts
from jepa.checkpoint import save_checkpoint
from jepa.config import to_dict
from jepa.data.encoding import write_video
from jepa.encode import encode
from jepa.features import Features, open_features
from jepa.features.store import FeatureFileError
from jepa.models.attentive import AttentiveConfig, AttentiveProbe
from jepa.models.encoder import Encoder
from jepa.streaming import encode_files

ROOT = Path(__file__).parent.parent
CLIP = SMALL_CLIP


@pytest.fixture(scope="module")
def model() -> Encoder:
    return small_encoder()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos of 3 to 59 frames, the third of them damaged."""
    root = tmp_path_factory.mktemp("videos")
    for number, count in enumerate((20, 59, 30, 3, 25)):
        write_video(root / f"{number}.mp4", moving(count, seed=number), fps=10.0, gop=8)
    whole = (root / "2.mp4").read_bytes()
    (root / "2.mp4").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_SECONDS", 0.0)  # one after every batch


VARIANTS: list[dict[str, Any]] = [
    {"pool": "mean"},
    {"pool": "none", "segments": 2},
    {"pool": "mean", "overlap": 0.5, "layers": [0, -1]},
    {"pool": "mean", "overlap": 0.5, "merge": "mean"},
    {"pool": "none", "overlap": 0.75, "merge": "latest"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("workers", [0, 2])
def test_files_hold_what_encode_gives(
    model: Encoder, folder: Path, tmp_path: Path, variant: dict[str, Any], workers: int, small_parts: None
) -> None:
    expected = encode(folder, model, 3, on_error="skip", workers=0, **variant)
    suffix = ("parquet", "safetensors", "npz")[VARIANTS.index(variant) % 3]
    result = encode_files(folder, tmp_path / f"f.{suffix}", model, batch_size=3, workers=workers, **variant)
    again = Features.load(result.path)
    torch.testing.assert_close(again.tokens, expected.tokens, rtol=0, atol=1e-6)
    torch.testing.assert_close(again.start_s, expected.start_s)
    torch.testing.assert_close(again.end_s, expected.end_s)
    assert (again.sources, again.grid, again.layers) == (expected.sources, expected.grid, expected.layers)
    assert result.rows == len(expected)
    assert "2.mp4" in result.failed[0]
    assert again.metadata["failed"] == result.failed
    assert again.metadata["files"][str(folder / "1.mp4")]["native_size"] == [32, 48]
    assert again.metadata["files"][str(folder / "3.mp4")]["distinct_frames"] == 3
    assert [p.name for p in tmp_path.iterdir()] == [f"f.{suffix}"]


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
import importlib.util
spec = importlib.util.spec_from_file_location("test_streaming", {file!r})
t = importlib.util.module_from_spec(spec)
spec.loader.exec_module(t)
from jepa import parts
from jepa.models.encoder import Encoder
parts.PART_SECONDS = 0.0
forward = Encoder.forward
Encoder.forward = lambda self, *args, **more: time.sleep(0.05) or forward(self, *args, **more)
t.encode_files({folder!r}, {out!r}, t.small_encoder(), batch_size=2, device="cpu", workers={workers}, **{variant!r})
"""


def start(out: Path, folder: Path, variant: dict[str, Any], workers: int = 0, **environment: str) -> Any:
    script = SLOW.format(
        tests=str(ROOT / "tests"), file=__file__, folder=str(folder), out=str(out), variant=variant, workers=workers
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True)


def test_a_killed_job_goes_on_and_gives_the_same_file(folder: Path, tmp_path: Path) -> None:
    variant = VARIANTS[3]  # merging: rows of windows before the kill and after it are joined
    whole = tmp_path / "whole.parquet"
    assert encode_files(folder, whole, small_encoder(), batch_size=2, workers=0, device="cpu", **variant).rows > 20
    out = tmp_path / "killed.parquet"
    for kill_after in (2, 7):  # the second part stands in the middle of the second video
        process = start(out, folder, variant)
        deadline = time.monotonic() + 300
        while len(list(out.with_name("killed.parquet.parts").glob("*.safetensors"))) < kill_after:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists()
    encode_files(folder, out, small_encoder(), batch_size=2, workers=0, device="cpu", **variant)
    alone, resumed = Features.load(whole), Features.load(out)
    assert torch.equal(resumed.tokens, alone.tokens)  # to the last bit: batches fall as they would have
    assert torch.equal(resumed.start_s, alone.start_s)
    versions = [features.metadata.pop("code_version") for features in (alone, resumed)]  # someone may commit meanwhile
    assert resumed.metadata == alone.metadata
    assert versions[0] != versions[1] or out.read_bytes() == whole.read_bytes()
    assert not out.with_name("killed.parquet.parts").exists()


def interrupted(out: Path, folder: Path, model: Encoder, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Run until the third part would be written."""
    write = parts.Parts.write

    def fail(self: parts.Parts, name: str, *rest: Any) -> None:
        if name.endswith("2"):
            raise KeyboardInterrupt
        write(self, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, "write", fail)
        with pytest.raises(KeyboardInterrupt):
            encode_files(folder, out, model, batch_size=1, **options)


def test_another_job_is_refused(
    model: Encoder, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_parts: None
) -> None:
    out = tmp_path / "f.parquet"
    interrupted(out, folder, model, monkeypatch)
    other = small_encoder()
    other.norm.weight.data *= 2
    with pytest.raises(ValueError, match=r"another job \(settings.pool: 'mean' -> 'none'\).*or delete .*parquet.parts"):
        encode_files(folder, out, model, pool="none")
    with pytest.raises(ValueError, match=r"another job .model.weights: "):
        encode_files(folder, out, other)
    with pytest.raises(ValueError, match=r"another job .inputs: '5 inputs, .*-> '1 inputs"):
        encode_files(folder / "0.mp4", out, model)
    with pytest.raises(ValueError, match=r"clip.crop_size: 32 -> 64"):
        encode_files(folder, out, model, crop_size=64)
    result = encode_files(folder, out, model)
    np.testing.assert_allclose(
        open_features(out).vectors, encode(folder, model, on_error="skip").pooled(), rtol=0, atol=1e-6
    )
    assert result.rows == 4


def test_a_finished_job_is_not_repeated(model: Encoder, folder: Path, tmp_path: Path, caplog: Any) -> None:
    out = tmp_path / "f.npz"
    files = [folder / "0.mp4", folder / "1.mp4"]
    encode_files(files, out, model)
    with caplog.at_level("INFO", "jepa"):
        assert encode_files(files, out, model).clips == 0
    assert "nothing to do" in caplog.text
    assert list(tmp_path.iterdir()) == [out]
    before = out.read_bytes()
    with pytest.raises(FeatureFileError, match="exists and does not hold these features"):
        encode_files(files, out, model, pool="none")
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]
    assert encode_files(files, out, model, pool="none", overwrite=True).clips == 2


def test_a_probe_that_does_not_fit_leaves_nothing_behind(model: Encoder, folder: Path, tmp_path: Path) -> None:
    probe = AttentiveProbe(AttentiveConfig(embed_dim=2 * model.embed_dim, num_heads=2, num_classes=3))
    out = tmp_path / "f.npz"
    with pytest.raises(ValueError, match=f"does not fit tokens of width {model.embed_dim}"):
        encode_files(folder / "0.mp4", out, model, pool="attentive", probe=probe)
    assert list(tmp_path.iterdir()) == []
    assert encode_files(folder / "0.mp4", out, model, pool="attentive", probe=probe, layers=[0, -1]).rows == 1


def test_a_full_disk_leaves_no_file_and_the_job_can_go_on(
    model: Encoder, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_parts: None
) -> None:
    out = tmp_path / "f.parquet"

    class Full:
        """The disk takes 100 bytes more."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def write(self, data: Any) -> int:
            self.file.write(bytes(data)[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    opened = Path.open
    for what in ("parts", "result"):

        def full(self: Path, *args: Any, what: str = what, **more: Any) -> Any:
            file = opened(self, *args, **more)
            name = "-000001.safetensors.tmp" if what == "parts" else ".f.parquet.tmp"
            return Full(file) if self.name.endswith(name) else file

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", full)
            with pytest.raises(FeatureFileError, match=r"f.parquet cannot be written: No space left on device"):
                encode_files(folder, out, model, batch_size=2, workers=0)
        assert not out.exists()
        assert not list(tmp_path.rglob("*.tmp"))
    assert encode_files(folder, out, model, batch_size=2).rows == 4


def test_a_file_size_limit_is_a_clear_error(model: Encoder, folder: Path, tmp_path: Path, small_parts: None) -> None:
    """The system itself refuses to write on: every part is small, the whole is not."""
    limits, out = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "f.parquet"
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(FeatureFileError, match=r"f.parquet cannot be written: File too large"):
            encode_files(folder, out, model, batch_size=2, pool="none", overlap=0.5, workers=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["f.parquet.parts"]
    assert encode_files(folder, out, model, pool="none", overlap=0.5).rows > 20


@pytest.mark.parametrize("variant", VARIANTS[1:], ids=str)
def test_stopped_after_any_part_the_rest_is_the_same(
    model: Encoder, folder: Path, tmp_path: Path, variant: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
    small_parts: None,
) -> None:  # fmt: skip
    """In one process, stopped at every third part: the state of every merge and the order of every row survive."""
    write, written = parts.Parts.write, 0

    def stop(self: parts.Parts, *part: Any) -> None:
        nonlocal written
        write(self, *part)
        written += 1
        if written % 3 == 0:
            raise KeyboardInterrupt

    whole = Features.load(encode_files(folder, tmp_path / "a.npz", model, batch_size=3, workers=0, **variant).path)
    stops = 0
    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, "write", stop)
        while not (tmp_path / "b.npz").exists():
            try:
                encode_files(folder, tmp_path / "b.npz", model, batch_size=3, workers=0, **variant)
            except KeyboardInterrupt:
                stops += 1
    assert stops > 0
    again = Features.load(tmp_path / "b.npz")
    assert torch.equal(again.tokens, whole.tokens)
    assert torch.equal(again.start_s, whole.start_s)
    assert again.sources == whole.sources
    assert again.metadata["failed"] == whole.metadata["failed"]


def test_two_processes_write_the_result_of_one(folder: Path, tmp_path: Path) -> None:
    variant = VARIANTS[3]
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    encode_files(folder, one, small_encoder(), batch_size=2, workers=0, device="cpu", **variant)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0]), "WORLD_SIZE": "2"}
    running = [start(two, folder, variant, RANK=rank, LOCAL_RANK=rank, **place) for rank in "01"]
    try:
        for process in running:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors
    finally:
        for process in running:
            process.kill()
    alone, shared = Features.load(one), Features.load(two)
    torch.testing.assert_close(shared.tokens, alone.tokens, rtol=0, atol=1e-6)
    assert shared.sources == alone.sources
    assert torch.equal(shared.start_s, alone.start_s)
    assert shared.metadata["failed"] == alone.metadata["failed"]
    assert [p.name for p in tmp_path.iterdir() if "parts" in p.name] == []


def test_videos_that_keep_their_shape_go_to_one_file_when_pooled(model: Encoder, tmp_path: Path) -> None:
    write_video(tmp_path / "wide.mp4", moving(8, 32, 64), fps=10.0)
    write_video(tmp_path / "tall.mp4", moving(8, 96, 32), fps=10.0)
    files = [tmp_path / "wide.mp4", tmp_path / "tall.mp4"]
    encode_files(files, tmp_path / "f.parquet", model, fit="keep")
    vectors = open_features(tmp_path / "f.parquet").vectors
    for number, (path, grid) in enumerate(zip(files, [(2, 2, 4), (2, 6, 2)], strict=True)):
        alone = encode(path, model, fit="keep")
        assert alone.grid == grid
        np.testing.assert_allclose(vectors[number], alone.pooled()[0], atol=1e-6)
    assert Features.load(tmp_path / "f.parquet").grid == (2, 0, 0)
    with pytest.raises(ValueError, match=r"different shapes.*\[16, 24\] and \[24, 24\]"):
        encode_files(files, tmp_path / "g.parquet", model, fit="keep", pool="none")


def test_an_irregular_frame_rate_is_read_by_workers(model: Encoder, folder: Path, tmp_path: Path) -> None:
    irregular = tmp_path / "irregular.mkv"
    with av.open(irregular, "w") as file:
        stream = file.add_stream("mpeg4", rate=10, width=48, height=32)
        for time_ms, picture in zip((0, 100, 200, 900, 1000, 1900), moving(6), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    result = encode_files([irregular, folder / "0.mp4"], tmp_path / "f.parquet", model, workers=2)
    about = open_features(result.path).metadata["files"][str(irregular)]
    assert about["variable_rate"]
    assert about["fps"] == pytest.approx(6 / 2.0, abs=0.1)


def test_an_error_beside_workers_ends_the_process(folder: Path, tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from support import small_encoder
from test_streaming import encode_files
model = small_encoder()
model.forward = lambda *args, **kwargs: (_ for _ in ()).throw(ValueError("out of order"))
videos, out = [{str(folder / "1.mp4")!r}] * 8, {str(tmp_path / "f.parquet")!r}
encode_files(videos, out, model, batch_size=1, overlap=0.5, workers=2)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 1
    assert "ValueError: out of order" in done.stderr


def test_nothing_decodable_and_bad_names(model: Encoder, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no input can be decoded; the first: .*2.mp4"):
        encode_files(folder / "2.mp4", tmp_path / "f.parquet", model)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"f.csv must end in .parquet, .safetensors or .npz"):
        encode_files(folder, tmp_path / "f.csv", model)
    frames = iter(list(moving(9)))
    assert encode_files(frames, tmp_path / "camera.npz", model, fps=10.0).rows == 3


def test_the_command_reports_and_tells_failures(model: Encoder, folder: Path, tmp_path: Path, capsys: Any) -> None:
    weights = {f"{name}.{k}": v for k, v in model.state_dict().items() for name in ("encoder", "target_encoder")}
    state = {"config": {}, "clip": to_dict(model.clip), "encoder_config": to_dict(model.config), "objective": weights}
    save_checkpoint(tmp_path / "run", 1, state)
    out = tmp_path / "f.parquet"
    command = ["encode", str(folder), "-o", str(out), "--model", str(tmp_path / "run"), "--layers", "0", "-1"]
    assert main(command) == 1  # a file is damaged
    printed = capsys.readouterr().out
    assert f"{out}: 4 rows" in printed
    assert "the device waited for data" in printed
    assert "failed: " in printed
    assert "2.mp4" in printed
    assert open_features(out).vectors.shape == (4, 48)
    assert open_features(out).metadata["model"] == str(tmp_path / "run")
    good = ["encode", str(folder / "1.mp4"), "-o", str(out), "--model", str(tmp_path / "run")]
    more = ["--overlap", "0.5", "--merge", "mean", "--fps", "5", "--pool", "none", "--crop-size", "64"]
    assert main(good + more) == 2  # other features than those in the file
    assert main([*good, *more, "--force"]) == 0
    features = Features.load(out)
    assert features.tokens.shape == (15, 16, 24)
    assert features.metadata["clip"]["fps"] == 5.0
    assert features.start_s[:3, 0].tolist() == pytest.approx([0.0, 0.4, 0.8])
    assert main([*good[:-1], str(tmp_path / "nowhere")]) == 2


def test_what_a_model_counts_and_how_it_is_set_up_belong_to_the_job(folder: Path, tmp_path: Path) -> None:
    counting = small_encoder()
    counting.register_buffer("steps", torch.tensor(3))  # as batch norms have
    assert encode_files(folder / "0.mp4", tmp_path / "f.npz", counting).clips == 1
    assert encode_files(folder / "0.mp4", tmp_path / "f.npz", counting).clips == 0
    counting.steps += 1
    with pytest.raises(FeatureFileError, match="another model"):
        encode_files(folder / "0.mp4", tmp_path / "f.npz", counting)
    assert encode_files(folder / "0.mp4", tmp_path / "f.npz", counting, overwrite=True).clips == 1
