"""Every kind of input, other clips than the model's own, windows, cameras: against features made another way."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support import SMALL_CLIP, moving, small_encoder
from torch import Tensor, nn

from jepa.data.encoding import write_video
from jepa.data.sources import SourceConfig
from jepa.data.transforms import ClipTransform
from jepa.data.video import VideoError, open_video
from jepa.encode import encode, encode_stream
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.types import Batch, ClipConfig, TokenGrid
from jepa.windows import WindowRule

CLIP = SMALL_CLIP


@pytest.fixture(scope="module")
def model() -> Encoder:
    return small_encoder()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "my video.mp4"
    write_video(path, moving(23), fps=10.0, gop=8)
    return path


def frames_of(path: Path) -> np.ndarray:
    with open_video(path, "pyav") as reader:
        return reader.read(range(reader.num_frames))


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves files, and parts of files, as web servers do."""

    def do_GET(self) -> None:
        data = Path(self.translate_path(self.path)).read_bytes()
        asked = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")
        first, last = int(asked[0]), min(int(asked[1] or len(data)), len(data) - 1)
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(data[first : last + 1])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(video: Path) -> Iterator[str]:
    handler = lambda *args: Ranges(*args, directory=str(video.parent))  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}/my%20video.mp4"
        web.shutdown()


def test_urls(model: Encoder, video: Path, server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    expected = encode(video, model).tokens
    for url in (server, video.as_uri()):
        torch.testing.assert_close(encode(url, model).tokens, expected)
    (tmp_path / "list.txt").write_text(f"{server}\n")
    assert encode(tmp_path / "list.txt", model).sources == (server,)
    with pytest.raises(VideoError, match=r"127.0.0.1.*no_such"):
        encode(server.replace("my%20video", "no_such"), model)


def test_url_of_a_video_larger_than_the_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP/1.1: reading the index ends at the end of the file, and the first frame needs a second request."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(Ranges, "protocol_version", "HTTP/1.1")
    noise = np.random.default_rng(0).integers(0, 255, (40, 96, 96, 3), dtype=np.uint8)
    with av.open(str(tmp_path / "large.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=10, options={"qmin": "2", "qmax": "2"})
        stream.width = stream.height = 96
        stream.bit_rate = 20_000_000
        for picture in noise:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    assert (tmp_path / "large.mp4").stat().st_size > 400_000
    handler = lambda *args: Ranges(*args, directory=str(tmp_path))  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        web.daemon_threads = True
        web.block_on_close = False
        threading.Thread(target=web.serve_forever, daemon=True).start()
        with open_video(f"http://127.0.0.1:{web.server_port}/large.mp4", "pyav") as reader:
            read = reader.read([0, 39, 3])
        web.shutdown()
    np.testing.assert_array_equal(read, frames_of(tmp_path / "large.mp4")[[0, 39, 3]])


def test_lists_of_paths_with_spaces_and_spans(model: Encoder, video: Path, tmp_path: Path) -> None:
    expected = encode(video, model).tokens
    for name, text in {
        "a.txt": f"{video}\n{video}\n",
        "b.csv": f'path\n"{video}"\n"{video}"\n',
        "c.tsv": f"path\tlabel\n{video}\t1\n{video}\t2\n",
    }.items():
        (tmp_path / name).write_text(text)
        torch.testing.assert_close(encode(tmp_path / name, model).tokens, expected.expand(2, -1, -1))
    (tmp_path / "d.csv").write_text(f"path,start_s,end_s\n{video},0.5,0.9\n")
    frames = frames_of(video)
    for inputs in (tmp_path / "d.csv", SourceConfig(path=str(tmp_path / "d.csv"))):
        spanned = encode(inputs, model)
        torch.testing.assert_close(spanned.tokens, encode(frames[5:9], model).tokens)
        assert spanned.start_s[0, 0].item() == pytest.approx(0.5)


def test_a_span_behind_the_end_is_no_clip(model: Encoder, video: Path, tmp_path: Path) -> None:
    table = tmp_path / "late.csv"
    table.write_text(f"path,start_s,end_s\n{video},0,1\n{video},5,9\n")
    for options in ({}, {"overlap": 0.0}):
        with pytest.raises(VideoError, match=r"my video.mp4 is over after 2.30 s, its span begins at 5 s"):
            encode(table, model, **options)
        kept = encode(table, model, on_error="skip", **options)
        assert kept.end_s.max() <= 1.3
        assert len(kept.metadata["failed"]) == 1


def test_batches_of_arrays_and_npy(model: Encoder, tmp_path: Path) -> None:
    batch = np.stack([moving(9, seed=seed) for seed in range(3)])
    expected = torch.cat([encode(frames, model).tokens for frames in batch])
    torch.testing.assert_close(encode(batch, model).tokens, expected)
    torch.testing.assert_close(encode(torch.from_numpy(batch), model, 2).tokens, expected)
    np.save(tmp_path / "clips.npy", batch)
    torch.testing.assert_close(encode(tmp_path / "clips.npy", model, fps=10.0).tokens, expected)
    slow = encode(tmp_path / "clips.npy", model, fps=20.0)  # every second frame
    torch.testing.assert_close(slow.tokens, torch.cat([encode(f[1:8:2], model).tokens for f in batch]))


def test_fps_belongs_to_arrays(model: Encoder, video: Path) -> None:
    with pytest.raises(ValueError, match=r"fps 5 is the rate of arrays and iterators.*set clip_fps"):
        encode(video, model, fps=5.0)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_windows_of_files_arrays_and_cameras_equal_clips_cut_by_hand(
    model: Encoder, video: Path, overlap: float
) -> None:
    frames = frames_of(video)
    starts = WindowRule(num_frames=4, tubelet=2, overlap=overlap).starts(23)
    held = np.concatenate((frames, frames[-1:]))
    cut = np.stack([held[s : s + 4] for s in starts])
    expected = encode(torch.from_numpy(cut).permute(0, 4, 1, 2, 3), model, 3).tokens
    tensors = iter(list(torch.from_numpy(frames)))
    for inputs, fps in ((video, None), (frames, 10.0), (iter(frames), 10.0), (tensors, None)):
        found = encode(inputs, model, 2, overlap=overlap, fps=fps, workers=0)
        torch.testing.assert_close(found.tokens, expected)
        assert found.start_s[:, 0].tolist() == pytest.approx([s / 10 for s in starts])
    merged = encode(video, model, overlap=overlap, merge="mean", pool="mean")
    seen: dict[int, list[Tensor]] = {}
    for start, tokens in zip(starts, expected, strict=True):
        for k in range(2):
            if start + 2 * k < 23:
                seen.setdefault(start // 2 + k, []).append(tokens[4 * k : 4 * k + 4].mean(0))
    torch.testing.assert_close(merged.pooled(), torch.stack([torch.stack(seen[k]).mean(0) for k in range(12)]))
    assert merged.start_s[:, 0].tolist() == pytest.approx([0.2 * k for k in range(12)])
    assert merged.end_s[:, -1].tolist() == pytest.approx([0.2 * k + 0.2 for k in range(12)])


def test_workers_change_nothing(model: Encoder, video: Path) -> None:
    files = [video] * 5
    for options in ({"overlap": 0.5}, {"segments": 2}):
        alone = encode(files, model, 3, workers=0, **options)
        for workers in (1, 3):
            shared = encode(files, model, 3, workers=workers, **options)
            assert torch.equal(shared.tokens, alone.tokens)
            assert torch.equal(shared.start_s, alone.start_s)


def test_a_camera_gives_each_window_when_its_last_frame_is_there(model: Encoder) -> None:
    frames, taken = moving(40), 0

    def camera() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            yield frames[taken % 40]
            taken += 1

    stream = encode_stream(camera(), model, fps=10.0, overlap=0.5)
    whole = encode(frames, model, overlap=0.5, fps=10.0)
    for number in range(5):
        features = next(stream)
        assert taken == 2 * number + 3
        torch.testing.assert_close(features.tokens, whole.tokens[number : number + 1])
        torch.testing.assert_close(features.start_s, whole.start_s[number : number + 1])
    with pytest.raises(ValueError, match=r"frame 1 is uint8 \[32, 40, 3\], not uint8 \[32, 48, 3\]"):
        list(encode_stream([frames[0], frames[1, :, :40]], model))
    with pytest.raises(ValueError, match=r"frame 0 is float64 \[32, 48, 3\], not uint8 \[H, W, 3\]"):
        list(encode_stream([frames[0] / 255.0], model))


def normalised(frames: np.ndarray, size: tuple[int, int]) -> Tensor:
    pictures = F.interpolate(torch.from_numpy(frames).permute(0, 3, 1, 2), size=size, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (CLIP.mean, CLIP.std))
    return ((pictures.transpose(0, 1).float() / 255 - mean) / std)[None]


def test_other_resolutions_lengths_rates_and_shapes(model: Encoder, video: Path) -> None:
    frames = frames_of(video)
    wide = normalised(frames[10:14], (64, 96))
    with torch.inference_mode():
        keep = encode(video, model, crop_size=64, fit="keep")
        assert keep.grid == TokenGrid(2, 4, 6)
        torch.testing.assert_close(keep.tokens, model(wide), rtol=0, atol=1e-5)
        cut = encode(video, model, crop_size=64)
        torch.testing.assert_close(cut.tokens, model(wide[..., 16:80]), rtol=0, atol=1e-5)
        stretched = encode(video, model, fit="stretch").tokens
        torch.testing.assert_close(stretched, model(normalised(frames[10:14], (32, 32))), rtol=0, atol=1e-5)
        longer = encode(video, model, num_frames=8, fit="keep")
        torch.testing.assert_close(longer.tokens, model(normalised(frames[8:16], (32, 48))), rtol=0, atol=1e-5)
        slower = encode(video, model, clip_fps=5.0, fit="keep")
        torch.testing.assert_close(slower.tokens, model(normalised(frames[8:15:2], (32, 48))), rtol=0, atol=1e-5)
    assert slower.end_s[0, -1].item() - slower.start_s[0, 0].item() == pytest.approx(0.8)
    assert keep.metadata["clip"]["fit"] == "keep"
    with pytest.raises(ValueError, match="different token grids"):
        encode([video, moving(4, 64, 32)], model, fit="keep")
    with pytest.raises(ValueError, match="5"):
        encode(video, model, num_frames=5)


def test_metadata_tells_what_was_done(model: Encoder, video: Path, tmp_path: Path) -> None:
    Image.fromarray(moving(1, 64, 40)[0]).save(tmp_path / "one.png")
    about = encode([video, tmp_path / "one.png"], model, layers=[0, 1]).metadata
    assert about["files"][str(video)] == {
        "native_size": [32, 48], "fps": 10.0, "num_frames": 23, "rotation": 0, "variable_rate": False,
        "distinct_frames": 4,
    }  # fmt: skip
    assert about["files"][str(tmp_path / "one.png")]["native_size"] == [64, 40]
    assert about["files"][str(tmp_path / "one.png")]["distinct_frames"] == 1  # held
    assert (about["model"], about["layers"], about["pool"], about["window"]) == ("Encoder", [0, 1], "none", None)
    assert about["clip"]["mean"] == list(CLIP.mean)
    window = encode(video, model, overlap=0.5, merge="mean", pool="mean").metadata
    assert window["window"] == {"num_frames": 4, "stride_frames": 2, "overlap": 0.5}
    assert (window["merge"], window["pool"]) == ("mean", "mean")


class Probe(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.pooler = _Pooler(width)


class _Pooler(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(2, width))

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.softmax(self.query @ tokens.transpose(1, 2), dim=-1) @ tokens


def test_pooling_while_encoding_equals_pooling_after(model: Encoder, video: Path) -> None:
    torch.manual_seed(1)
    probe, full = Probe(24), encode(video, model, overlap=0.0)
    mean = encode(video, model, overlap=0.0, pool="mean")
    attentive = encode(video, model, overlap=0.0, pool="attentive", probe=probe)
    torch.testing.assert_close(mean.pooled(), full.pooled())
    torch.testing.assert_close(attentive.pooled(), full.pooled(probe))
    assert attentive.pooled().shape == (6, 48)
    with pytest.raises(ValueError, match="does not fit tokens of width 24"):
        full.pooled(Probe(16))
    with pytest.raises(ValueError, match="pool 'attentive' and a probe go together"):
        encode(video, model, pool="attentive")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"overlap": 1.0}, "overlap must be a share"),
    ({"overlap": 0.5, "segments": 2}, "leave out segments 2"),
    ({"merge": "mean"}, "set overlap"),
    ({"merge": "median", "overlap": 0.5}, "merge must be one of none, mean, latest, not 'median'"),
    ({"pool": "max"}, "pool must be one of none, mean, attentive"),
    ({"batch_size": 0}, "batch_size must be 'auto' or at least 1, not 0"),
    ({"workers": -1}, "workers must be 'auto' or a number of at least 0"),
    ({"layers": []}, "layers is empty"),
    ({"fit": "squash"}, "fit must be one of crop, keep, stretch"),
    ({"clip_fps": -1.0}, "fps must be positive"),
    ({"crop_size": 33}, "33"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_options_are_named(model: Encoder, video: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(video, model, **options)


def test_an_image_model_sees_every_frame_or_as_many_as_asked(video: Path) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(embed_dim=24, depth=1, num_heads=2, patch_size=16, tubelet_size=1, position="sincos")
    image_model = Encoder(config, ClipConfig(num_frames=1, crop_size=32)).eval()
    frames = frames_of(video)
    assert encode(video, image_model).tokens.shape == (1, 4, 24)
    every = encode(video, image_model, overlap=0.0)
    torch.testing.assert_close(every.tokens, torch.cat([encode(frame, image_model).tokens for frame in frames]))
    assert every.start_s[:, 0].tolist() == pytest.approx([k / 10 for k in range(23)])
    some = encode(video, image_model, overlap=0.0, clip_fps=2.0)
    torch.testing.assert_close(some.tokens, every.tokens[::5])


def test_ready_floats_are_transformed_like_files(model: Encoder, video: Path) -> None:
    clip = torch.from_numpy(frames_of(video)[9:13]).permute(3, 0, 1, 2)[None]
    ready = ClipTransform(CLIP)(Batch(clip=clip)).clip
    with torch.inference_mode():
        torch.testing.assert_close(encode(clip.float() / 255, model).tokens, model(ready))
