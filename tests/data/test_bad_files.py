"""Files as they come from phones, screens and broken downloads: right pictures and times, or a clear error."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from jepa.data.image import ImageReader
from jepa.data.sources import SourceConfig, open_source
from jepa.data.video import VideoError, available_backends, open_video
from jepa.types import ClipConfig

BACKENDS = available_backends()


def picture(number: int, height: int, width: int) -> np.ndarray:
    """Red tells the frame's number, green rises to the right, blue to the bottom."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[..., 0] = number % 25 * 10
    frame[..., 1] = np.linspace(0, 200, width).astype(np.uint8)
    frame[..., 2] = np.linspace(0, 200, height).astype(np.uint8)[:, None]
    return frame


def write(
    path: Path, times_ms: list[int], size: tuple[int, int] = (48, 64), codec: str = "libx264", pixels: str = "yuv420p",
    **options: str,
) -> Path:  # fmt: skip
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"bf": "0", "crf": "10", **options})
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for number, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(frames: np.ndarray) -> list[int]:
    return [round(float(frame[..., 0].mean()) / 10) for frame in frames]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_variable_frame_rate_is_read_by_the_clock(backend: str, tmp_path: Path) -> None:
    times = [0, 100, 200, 300, 1000, 1100, 1900, 2000, 2050, 2100]
    path = write(tmp_path / "a.mp4", times)
    with open_video(path, backend) as reader:
        shown = numbers(reader.read(range(reader.num_frames)))
        assert reader.info.variable_rate
        assert reader.info.num_frames == 10
        assert [type(value) for value in reader.info[2:4]] == [float, int]  # numpy's become tensors in workers
        assert reader.num_frames / reader.fps == pytest.approx(2.15, abs=0.06)
        assert set(shown) == set(range(10))  # no frame is lost, though the average is 5 a second
        for tick, number in enumerate(shown):
            second = tick / reader.fps
            assert times[number] / 1000 <= second + 1e-3
            assert number + 1 == len(times) or second < times[number + 1] / 1000
        assert numbers(reader.read([3, 3, 0])) == [shown[3], shown[3], shown[0]]
    clip = open_source(SourceConfig(path=str(tmp_path))).load_clip(0, ClipConfig(num_frames=4, fps=2.0, crop_size=32))
    seconds = [clip.start_s + k / 2 for k in range(4)]
    assert numbers(clip.frames) == [max(n for n, t in enumerate(times) if t / 1000 <= s + 1e-3) for s in seconds]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_even_rate_stays_as_it_is(backend: str, tmp_path: Path) -> None:
    with open_video(write(tmp_path / "a.mp4", [33, 67, 100, 133, 167, 200]), backend) as reader:  # rounded, late start
        assert not reader.info.variable_rate
        assert numbers(reader.read(range(6))) == [0, 1, 2, 3, 4, 5]


def rotate(path: Path, turns: int) -> Path:
    """Write a rotation into the track header's matrix (ISO 14496-12, 8.3.2)."""
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][turns]
    matrix = b"".join(
        (value % 2**32).to_bytes(4, "big")
        for value in (cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    )
    data = path.read_bytes()
    place = data.index(b"tkhd") + 4 + 40
    path.write_bytes(data[:place] + matrix + data[place + 36 :])
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotated_videos_stand_upright(backend: str, turns: int, tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.mp4", [0, 100, 200], (64, 128))
    with open_video(plain, backend) as reader:
        upright = np.rot90(reader.read([2])[0], -turns)
    turned = write(tmp_path / "turned.mp4", [0, 100, 200], (64, 128))
    with open_video(rotate(turned, turns), backend) as reader:
        assert reader.native == reader.size == upright.shape[:2]
        assert np.abs(reader.read([2])[0].astype(int) - upright).mean() < 1
        assert reader.info.rotation in (None, 360 - 90 * turns, 90 * turns)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "size", "codec", "pixels", "options"),
    [
        ("odd.mkv", (33, 47), "ffv1", "yuv420p", {}),
        ("odd.mp4", (33, 47), "libx264", "yuv444p", {}),
        ("ten.mkv", (48, 64), "ffv1", "yuv420p10le", {}),
        ("grey.mkv", (48, 64), "ffv1", "gray", {}),
        ("alpha.mkv", (48, 64), "ffv1", "yuva420p", {}),
        ("sixteen.mkv", (48, 64), "ffv1", "gray16le", {}),
        ("tiny.mkv", (2, 2), "ffv1", "yuv444p", {}),
    ],
)  # fmt: skip
def test_odd_sizes_and_depths(
    backend: str, name: str, size: tuple[int, int], codec: str, pixels: str, options: dict[str, str], tmp_path: Path
) -> None:
    path = write(tmp_path / name, [0, 100, 200], size, codec, pixels, **options)
    if backend == "decord" and size[1] != 64:
        pytest.skip("decord pads rows of this width; the reader refuses it, and PyAV takes over")
    with open_video(path, backend) as reader:
        frame = reader.read([2])[0].astype(int)
    assert frame.shape == (*size, 3)
    expected = picture(2, *size).astype(int)
    if "gray" in pixels:
        assert np.abs(frame - (expected @ [0.299, 0.587, 0.114])[..., None]).mean() < 3
    elif min(size) > 2:
        assert np.abs(frame - expected).mean() < 4


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_one_frame(backend: str, tmp_path: Path) -> None:
    path = write(tmp_path / "one.mp4", [0])
    with open_video(path, backend) as reader:
        assert reader.num_frames == 1
        assert numbers(reader.read([0, 0])) == [0, 0]
    clip = open_source(SourceConfig(path=str(tmp_path))).load_clip(0, ClipConfig(num_frames=3, fps=5, crop_size=32))
    assert clip.frames.shape[0] == 3
    assert clip.distinct == 1


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_sound_without_pictures_is_named(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for start in range(0, 16000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match=r"sound.mp4 (holds no video stream|cannot be opened)"):
        open_video(path, backend)


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_a_download_that_broke_off_is_named(name: str, share: float, tmp_path: Path) -> None:
    whole = write(tmp_path / name, list(range(0, 6000, 100)), g="10", movflags="faststart").read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(VideoError, match=name), open_video(path, "pyav") as reader:
        reader.read(range(reader.num_frames))


def test_pictures_of_every_mode(tmp_path: Path) -> None:
    grey = np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5)
    expected = np.repeat(grey[..., None], 3, axis=2)
    alpha = np.full((5, 5), 255, np.uint8)
    alpha[0] = 0
    see_through = np.where(alpha[..., None] == 0, 0, expected)
    sixteen = grey.astype(np.uint16) * 257
    modes = {
        "grey.png": (Image.fromarray(grey), expected),
        "sixteen.png": (Image.fromarray(sixteen), expected),
        "alpha.png": (Image.fromarray(np.dstack((expected, alpha))), see_through),
        "grey_alpha.png": (Image.fromarray(np.dstack((grey, alpha)), "LA"), see_through),
        "palette.png": (Image.fromarray(expected).convert("P", palette=Image.Palette.ADAPTIVE, colors=256), expected),
        "bits.png": (Image.fromarray(grey > 100), np.where(expected > 100, 255, 0)),
    }
    for name, (image, pixels) in modes.items():
        image.save(tmp_path / name)
        with ImageReader(tmp_path / name) as reader:
            assert np.array_equal(reader.read([0])[0], pixels), name
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(VideoError, match=r"float.tiff cannot be read as an image: it holds floating-point"):
        ImageReader(tmp_path / "float.tiff")


def test_a_picture_is_turned_by_its_tag(tmp_path: Path) -> None:
    image = Image.fromarray(picture(3, 8, 16))
    tag = Image.Exif()
    tag[0x0112] = 6  # turn right
    image.save(tmp_path / "a.png", exif=tag)
    assert np.array_equal(ImageReader(tmp_path / "a.png").read([0])[0], np.rot90(picture(3, 8, 16), -1))


def test_zero_bytes_and_half_pictures(tmp_path: Path) -> None:
    (tmp_path / "none.png").touch()
    Image.fromarray(picture(3, 64, 64)).save(tmp_path / "half.png")
    data = (tmp_path / "half.png").read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    for name in ("none.png", "half.png"):
        with pytest.raises(VideoError, match=f"{name} cannot be read as an image"):
            ImageReader(tmp_path / name)
