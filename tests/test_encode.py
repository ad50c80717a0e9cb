"""encode() and load(): every kind of input leads to the same features; bad input gets a clear message."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import SMALL_CLIP, moving, small_encoder
from torch import Tensor

import jepa
from jepa.checkpoint import CheckpointError, save_checkpoint
from jepa.config import ConfigError, to_dict
from jepa.data.prepare import write_video
from jepa.data.transforms import ClipTransform
from jepa.data.video import VideoError, open_video
from jepa.encode import encode
from jepa.features import tubelet_times
from jepa.load import load
from jepa.models.encoder import Encoder
from jepa.types import Batch, TokenGrid

CLIP = SMALL_CLIP


@pytest.fixture(scope="module")
def model() -> Encoder:
    return small_encoder()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for number in range(3):
        (root / "ab"[number % 2]).mkdir(exist_ok=True)
        write_video(root / "ab"[number % 2] / f"{number}.mp4", moving(20, seed=number), fps=10.0, gop=4)
    return root


def frames_of(path: Path) -> np.ndarray:
    with open_video(path) as reader:
        return reader.read(range(reader.num_frames))


def test_path_array_and_tensors_give_equal_features(model: Encoder, folder: Path) -> None:
    path = folder / "a" / "0.mp4"
    by_path = encode(path, model)
    frames = frames_of(path)
    assert by_path.tokens.shape == (1, 8, 24)
    assert by_path.grid == TokenGrid(2, 2, 2)
    torch.testing.assert_close(encode(frames, model).tokens, by_path.tokens, rtol=0, atol=1e-6)
    torch.testing.assert_close(encode(torch.from_numpy(frames), model, fps=10.0).tokens, by_path.tokens)
    middle = torch.from_numpy(frames[8:12]).permute(3, 0, 1, 2)[None]  # 17 starts, the middle one is 8
    torch.testing.assert_close(encode(middle, model).tokens, by_path.tokens)
    torch.testing.assert_close(encode(middle.float() / 255, model).tokens, by_path.tokens)
    ready = ClipTransform(CLIP, None)(Batch(clip=middle)).clip
    torch.testing.assert_close(encode(ready, model, normalised=True).tokens, by_path.tokens)
    with torch.no_grad():
        torch.testing.assert_close(model(ready), by_path.tokens)


def test_folder_glob_list_and_csv_keep_their_order(model: Encoder, folder: Path, tmp_path: Path) -> None:
    names = ["a/0.mp4", "a/2.mp4", "b/1.mp4"]
    singles = torch.cat([encode(folder / name, model).tokens for name in names])
    whole = encode(folder, model)
    assert [Path(source).relative_to(folder).as_posix() for source in whole.sources] == names
    torch.testing.assert_close(whole.tokens, singles)
    torch.testing.assert_close(encode(str(folder / "*" / "*.mp4"), model).tokens, singles)
    torch.testing.assert_close(encode([folder / name for name in reversed(names)], model).tokens, singles.flip(0))
    mixed = encode([frames_of(folder / names[0]), folder / names[1], frames_of(folder / names[2])], model)
    torch.testing.assert_close(mixed.tokens, singles)
    table = tmp_path / "list.csv"
    table.write_text("path,label\n" + "".join(f"{folder / name},0\n" for name in names))
    torch.testing.assert_close(encode(table, model).tokens, singles)


def test_features_do_not_depend_on_the_batch_size(model: Encoder, folder: Path) -> None:
    clips = torch.randn(5, 3, 4, 32, 32)
    reference = encode(clips, model, batch_size=5, normalised=True).tokens
    assert not torch.allclose(reference[0], reference[1])
    for batch_size in (1, 2, 64):
        torch.testing.assert_close(encode(clips, model, batch_size, normalised=True).tokens, reference)
        torch.testing.assert_close(encode(folder, model, batch_size).tokens, encode(folder, model).tokens)


def test_segments_and_times(model: Encoder, folder: Path) -> None:
    features = encode([folder / "a" / "0.mp4", folder / "b" / "1.mp4"], model, segments=2)
    assert features.tokens.shape[0] == 4
    assert [Path(s).name for s in features.sources] == ["0.mp4", "0.mp4", "1.mp4", "1.mp4"]
    assert features.start_s is not None
    assert features.end_s is not None
    assert features.start_s.shape == (4, 2)
    torch.testing.assert_close(features.end_s - features.start_s, torch.full((4, 2), 0.2, dtype=torch.float64))
    torch.testing.assert_close(features.start_s[:, 1], features.end_s[:, 0])
    assert features.start_s[0, 0] < 0.8 < features.start_s[1, 0]
    frames = frames_of(folder / "a" / "0.mp4")
    start = round(features.start_s[1, 0].item() * 10)
    alone = encode(frames[start : start + 4], model)
    torch.testing.assert_close(alone.tokens[0], features.tokens[1])


def test_tubelet_times_split_the_clip_evenly() -> None:
    start, end = tubelet_times([0.0, 1.0], [2.0, 1.4], TokenGrid(4, 1, 1))
    assert start.tolist() == [[0.0, 0.5, 1.0, 1.5], pytest.approx([1.0, 1.1, 1.2, 1.3])]
    assert end.tolist() == [[0.5, 1.0, 1.5, 2.0], pytest.approx([1.1, 1.2, 1.3, 1.4])]


def test_pooled_maps_and_layers(model: Encoder) -> None:
    clips = torch.randn(2, 3, 6, 32, 48)
    features = encode(clips, model, normalised=True)
    assert features.grid == TokenGrid(3, 2, 3)
    torch.testing.assert_close(features.pooled(), features.tokens.mean(dim=1))
    maps = features.maps()
    assert maps.shape == (2, 3, 2, 3, 24)
    torch.testing.assert_close(maps[1, 2, 1, 0], features.tokens[1, 2 * 6 + 1 * 3 + 0])
    both = encode(clips, model, normalised=True, layers=[0, -1]).tokens
    assert both.shape == (2, 18, 48)
    torch.testing.assert_close(both[..., 24:], features.tokens)
    assert not torch.allclose(both[..., :24], features.tokens)


def test_an_image_is_a_held_frame(model: Encoder, tmp_path: Path) -> None:
    picture = moving(1, 32, 40)[0]
    Image.fromarray(picture).save(tmp_path / "one.png")
    by_path = encode(tmp_path / "one.png", model).tokens
    torch.testing.assert_close(encode(picture, model).tokens, by_path)
    torch.testing.assert_close(encode(np.stack([picture] * 4), model).tokens, by_path)


def saved(model: Encoder, run_dir: Path) -> Path:
    weights = {f"encoder.{k}": torch.zeros_like(v) for k, v in model.state_dict().items()}
    weights |= {f"target_encoder.{k}": v for k, v in model.state_dict().items()}
    state = {"config": {}, "clip": to_dict(model.clip), "encoder_config": to_dict(model.config), "objective": weights}
    return save_checkpoint(run_dir, 3, state)


def test_load_a_run_directory_or_a_checkpoint(model: Encoder, tmp_path: Path) -> None:
    file = saved(model, tmp_path / "run")
    clips = torch.randn(1, 3, 4, 32, 32)
    expected = encode(clips, model, normalised=True).tokens
    for place in (tmp_path / "run", str(file)):
        again = jepa.load(place)
        assert not any(p.requires_grad for p in again.parameters())
        torch.testing.assert_close(jepa.encode(clips, again, normalised=True).tokens, expected)
    assert load(file, weights="encoder").norm.weight.sum() == 0
    clip = torch.randint(0, 256, (1, 3, *_clip_shape(model)), dtype=torch.uint8)
    assert torch.equal(encode(clip, file).tokens, encode(clip, load(file)).tokens)


def _clip_shape(model: Encoder) -> tuple[int, int, int]:
    return model.clip.num_frames, model.clip.crop_size, model.clip.crop_size


def test_load_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="unknown model 'vit_hugo'"):
        load("vit_hugo")
    with pytest.raises(CheckpointError, match="nowhere"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="by a path or a name, not by int"):
        load(3)  # type: ignore[arg-type]


BAD_ARRAYS: list[tuple[object, str]] = [
    (np.zeros((4, 32, 32, 3), np.float32), r"float32 \[4, 32, 32, 3\].*uint8 \[T, H, W, 3\]"),
    (np.zeros((4, 32, 32, 4), np.uint8), r"uint8 \[4, 32, 32, 4\]"),
    (np.zeros((0, 32, 32, 3), np.uint8), "empty"),
    (torch.zeros(1, 3, 4, 32, 32, dtype=torch.int64), r"int64 \[1, 3, 4, 32, 32\]"),
    (torch.full((1, 3, 4, 32, 32), 200.0), r"\[0, 1\]; these reach from 200 to 200.*normalised=True"),
    (torch.full((1, 3, 4, 32, 32), float("nan")), "reach from nan to nan"),
    (iter([]), "the iterator gave no frames"),
    (torch.rand(1, 3, 5, 32, 32), "5"),
    ([], "empty list"),
    (7, "not int"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_ARRAYS)
def test_bad_arrays_are_named(model: Encoder, bad: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(bad, model)


def test_bad_options_are_named(model: Encoder) -> None:
    clips = torch.zeros(1, 3, 4, 32, 32)
    with pytest.raises(ValueError, match="segments must be at least 1"):
        encode(clips, model, segments=0)
    with pytest.raises(ValueError, match="layers names block 7"):
        encode(clips, model, layers=[7])
    with pytest.raises(ValueError, match="normalised=True is for float"):
        encode(clips.to(torch.uint8), model, normalised=True)
    with pytest.raises(ValueError, match="different token grids"):
        encode([clips, torch.zeros(1, 3, 4, 32, 48)], model, normalised=True)
    with pytest.raises(ValueError, match="on_error"):
        encode(clips, model, on_error="ignore")  # type: ignore[arg-type]


def test_bad_files_are_named_or_skipped(model: Encoder, folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("this is no video\n" * 50)
    (tmp_path / "nothing.mp4").touch()
    for bad, message in ((text, "text.mp4"), (tmp_path / "nothing.mp4", "0 bytes"), ("missing.mp4", "does not exist")):
        with pytest.raises(VideoError, match=message):
            encode(bad, model)
    with pytest.raises(VideoError, match="matches no file"):
        encode(str(tmp_path / "*.avi"), model)
    (tmp_path / "void").mkdir()
    with pytest.raises(ConfigError, match="no video or image"):
        encode(tmp_path / "void", model)
    good = folder / "a" / "0.mp4"
    features = encode([text, good], model, on_error="skip")
    assert features.sources == (str(good),)
    assert "text.mp4" in str(features.metadata["failed"])
    with pytest.raises(VideoError, match="no input can be decoded"):
        encode(text, model, on_error="skip")
