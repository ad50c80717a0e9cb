"""Views and levels: crops along the longer side, augmented views, segments apart, several blocks in one pass."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from support import SMALL_CLIP, small_encoder, write_clips

from evals.features import encoding
from evals.features.encoding import Progress, Views
from evals.features.harness import FeatureOptions, compute_features, feature_splits
from evals.features.representations import EncoderRepresentation, Pixels, build_representations
from evals.features.rows import Rows
from evals.settings import EvalConfig
from jepa.config import ConfigError
from jepa.data.loader import eval_options
from jepa.data.sources import Source, SourceConfig, open_source
from jepa.data.transforms import AugmentConfig, ClipTransform
from jepa.distributed import Run
from jepa.load import load
from jepa.types import Batch, ClipConfig

RUN = Run(torch.device("cpu"), "fp32")
PLAIN = ClipConfig(num_frames=4, fps=10.0, crop_size=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Whole:
    """A representation whose vector is the clip itself."""

    name, fingerprint, levels = "whole", "whole", None

    def __init__(self, clip: ClipConfig = PLAIN) -> None:
        self.clip, self.grid = clip, Pixels(clip, small_encoder().grid).grid

    def widths(self) -> tuple[tuple[int, ...], int]:
        return (1,), 3 * 4 * 32 * 32

    def __call__(self, clip: torch.Tensor) -> encoding.Encoded:
        return encoding.Encoded(clip.flatten(1)[:, :8, None], clip.flatten(1))


def source_of(clips: np.ndarray, folder: Path) -> Source:
    np.save(folder / "clips.npy", clips)
    return open_source(SourceConfig(path=str(folder / "clips.npy")), eval_options(PLAIN))


def noise(count: int, frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, frames, height, width, 3), dtype=np.uint8)


def everything(rows: Rows | None) -> torch.Tensor:
    assert rows is not None
    return rows.gather(torch.arange(len(rows)))


def pictures_of(rows: Rows) -> torch.Tensor:
    """Vectors of ``Whole`` as clips ``[K, R, C, T, H, W]``."""
    return everything(rows)[:, :, 0].unflatten(2, (3, 4, 32, 32))


@pytest.mark.parametrize(("height", "width"), [(32, 50), (50, 32)])
def test_views_are_crops_from_one_end_to_the_other(height: int, width: int, tmp_path: Path) -> None:
    clips = noise(3, 4, height, width)
    source = source_of(clips, tmp_path)
    found = compute_features([Whole()], source, RUN, FeatureOptions(views=Views(count=3)))["whole"]
    assert found.vectors.shape == (3, 3, 1, 3 * 4 * 32 * 32)
    assert found.tokens is not None
    assert found.tokens.shape[:2] == (3, 3)
    seen = pictures_of(found.vectors)
    plain = torch.from_numpy(clips).permute(0, 4, 1, 2, 3) / 255
    for view, start in enumerate((0, 9, 18)):
        cut = plain[..., start : start + 32, :] if height > width else plain[..., start : start + 32]
        torch.testing.assert_close(seen[:, view], cut, atol=1e-6, rtol=0)
    one = compute_features([Whole()], source, RUN, FeatureOptions())["whole"]
    assert torch.equal(everything(one.vectors)[:, 0], everything(found.vectors)[:, 1])  # the middle one is the centre
    assert torch.allclose(found.matrix(), everything(found.vectors).mean(dim=(1, 2)))


def test_square_pictures_look_the_same_from_everywhere(tmp_path: Path) -> None:
    found = compute_features([Whole()], source_of(noise(2, 4, 40, 40), tmp_path), RUN,
                             FeatureOptions(views=Views(count=2)))["whole"]  # fmt: skip
    seen = pictures_of(found.vectors)
    assert torch.equal(seen[:, 0], seen[:, 1])
    stretched = Whole(replace(PLAIN, fit="stretch"))
    with pytest.raises(ConfigError, match="2 views need a crop, but clips are fitted by 'stretch'"):
        compute_features([stretched], source_of(noise(2, 4, 40, 40), tmp_path), RUN,
                         FeatureOptions(views=Views(count=2)))  # fmt: skip


def test_augmented_views_depend_on_item_segment_and_view_alone(tmp_path: Path) -> None:
    clips = noise(5, 4, 32, 36)
    source = source_of(clips, tmp_path)
    augment = AugmentConfig(scale=(0.3, 0.6))
    views = Views(segments=2, joined=False, count=3, augment=augment)
    together = compute_features([Whole()], source, RUN, FeatureOptions(views=views, batch_size=32))["whole"]
    apart = compute_features([Whole()], source, RUN, FeatureOptions(views=views, batch_size=2))["whole"]
    seen = pictures_of(together.vectors)
    assert seen.shape[:2] == (5, 6)
    assert torch.equal(seen, pictures_of(apart.vectors))
    plain = pictures_of(compute_features([Whole()], source, RUN, FeatureOptions())["whole"].vectors)
    assert torch.equal(seen[:, 0], plain[:, 0])  # the first view of a segment is plain
    assert torch.equal(seen[:, 3], plain[:, 0])  # four frames leave no room for another time
    seeds = torch.tensor([(((3 << 12) + 1) << 12) + 2])  # item 3, segment 1, view 2
    batch = Batch(clip=torch.from_numpy(clips[3:4]).permute(0, 4, 1, 2, 3), augment_seed=seeds)
    torch.testing.assert_close(seen[3, 3 + 2], ClipTransform(PLAIN, augment)(batch).clip[0])
    flat = seen.flatten(0, 1).flatten(1)
    assert len({row.sum().item() for row in flat}) == 5 * 5  # all random crops differ


def test_segments_are_joined_or_views_of_their_own(tmp_path: Path) -> None:
    source = source_of(noise(3, 8, 32, 32), tmp_path)
    trained = EncoderRepresentation("trained", small_encoder(), RUN)
    joined = compute_features([trained], source, RUN, FeatureOptions(views=Views(segments=2), batch_size=4))["trained"]
    apart = compute_features([trained], source, RUN, FeatureOptions(views=Views(2, joined=False)))["trained"]
    assert joined.tokens is not None
    assert apart.tokens is not None
    assert joined.tokens.shape == (3, 1, 16, 24)
    assert apart.tokens.shape == (3, 2, 8, 24)
    assert (joined.grid.t, apart.grid.t) == (4, 2)
    torch.testing.assert_close(everything(joined.tokens)[:, 0], everything(apart.tokens).flatten(1, 2))
    torch.testing.assert_close(joined.matrix(), everything(joined.tokens)[:, 0].mean(dim=1))
    torch.testing.assert_close(apart.matrix(), joined.matrix())
    torch.testing.assert_close(everything(apart.vectors)[:, :, 0], everything(apart.tokens).mean(dim=2))


@pytest.mark.parametrize("cells", [(1, 1, 1), (2, 1, 2)])
def test_levels_are_the_encoders_own_blocks_side_by_side(tmp_path: Path, cells: tuple[int, int, int]) -> None:
    source, encoder = open_clips(tmp_path), small_encoder()
    both = EncoderRepresentation("trained", encoder, RUN, cells, layers=(0, -1))
    found = compute_features([both], source, RUN, FeatureOptions())["trained"]
    assert (both.levels, found.levels, found.widths) == ((0, 1), (0, 1), (24, 24))
    for number in (0, 1):
        alone = EncoderRepresentation("alone", encoder, RUN, cells, layers=(number,))
        expected = compute_features([alone], source, RUN, FeatureOptions())["alone"]
        level = found.level(number)
        assert level.levels == (number,)
        assert torch.equal(everything(level.tokens), everything(expected.tokens))
        assert torch.equal(everything(level.vectors), everything(expected.vectors))
        assert level.vectors.shape[-1] == 24 * np.prod(cells)
    own = EncoderRepresentation("own", encoder, RUN, cells)
    last = compute_features([own], source, RUN, FeatureOptions())["own"]
    torch.testing.assert_close(everything(found.level(1).tokens), everything(last.tokens))
    assert (last.levels, last.widths) == (None, (24,))
    assert len({both.fingerprint, own.fingerprint}) == 2


def open_clips(folder: Path) -> Source:
    path = write_clips(folder / "clips.npz", clips=6)
    return open_source(SourceConfig(path=str(path)), eval_options(SMALL_CLIP))


def test_stages_of_other_models_differ_in_width(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.safetensors")
    encoder = load(f"timm:test_resnet@{tmp_path / 'weights.safetensors'}?frames=2&fps=8&size=32")
    stages = EncoderRepresentation("timm", encoder, RUN, layers=(1, -1))
    widths, vector = stages.widths()
    assert len(set(widths)) == 2
    assert vector == sum(widths)
    found = compute_features([stages], open_clips(tmp_path), RUN, FeatureOptions())["timm"]
    assert found.vectors.shape[-1] == vector
    first, last = (found.level(number) for number in stages.levels or ())
    assert (first.vectors.shape[-1], last.vectors.shape[-1]) == widths
    torch.testing.assert_close(torch.cat((first.matrix(), last.matrix()), dim=1), found.matrix())
    torch.testing.assert_close(last.matrix(), everything(last.tokens).mean(dim=(1, 2)))


def test_layers_are_checked_and_a_sweep_takes_all_blocks() -> None:
    encoders = {"trained": small_encoder()}
    with pytest.raises(ConfigError, match="trained: layers names block 2, but the encoder has blocks 0 to 1"):
        build_representations(EvalConfig(run="x", layers=(2,)), encoders, RUN)
    sweep = build_representations(EvalConfig(run="x", sweep_layers=True), encoders, RUN)
    assert [(one.name, one.levels) for one in sweep] == [("trained", (0, 1)), ("random", (0, 1)), ("pixels", None)]
    assert [one.levels for one in build_representations(EvalConfig(run="x"), encoders, RUN)] == [None] * 3


def test_widths_are_those_of_what_comes_out() -> None:
    for one in build_representations(EvalConfig(run="x", cells=(2, 1, 1), layers=(0, 1)), {"t": small_encoder()}, RUN):
        widths, vector = one.widths()
        tokens, found = one(torch.rand(2, 3, 4, 32, 32))
        assert (sum(widths), vector) == (tokens.shape[-1], found.shape[-1])


def test_an_evals_options_become_views(tmp_path: Path) -> None:
    source, augment = open_clips(tmp_path), AugmentConfig(flip=0.0)
    config = EvalConfig(run="x", segments=2, join_segments=False, views=3, train_views=4, augment=augment, cache_gb=0)
    splits = feature_splits(config, {"train": source, "test": source}, tmp_path)
    assert splits["train"].options.views == Views(2, False, 4, augment)
    assert splits["test"].options.views == Views(2, False, 3)
    assert splits["test"].options.cache_dir is None
    plain = feature_splits(EvalConfig(run="x"), {"train": source, "test": source}, tmp_path)
    assert plain["train"].options.views == plain["test"].options.views == Views()
    assert plain["train"].options.cache_dir == tmp_path


def test_workers_read_the_same_clips(tmp_path: Path) -> None:
    source = source_of(noise(20, 8, 32, 48), tmp_path)
    found = [
        compute_features([Whole()], source, RUN, FeatureOptions(views=Views(segments=3), batch_size=7, workers=workers))
        for workers in (0, 2)
    ]
    assert torch.equal(everything(found[0]["whole"].vectors), everything(found[1]["whole"].vectors))


def test_progress_says_speed_and_time_left(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    monkeypatch.setattr(encoding.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO, "jepa"), Progress("encode train", 100, True) as progress:
        for _ in range(4):
            now[0] += 20.0
            progress.step(10)
    assert [record.message for record in caplog.records] == [
        "encode train: 20 of 100 clips, 0.5 clips/s, 2m40s left",
        "encode train: 40 of 100 clips, 0.5 clips/s, 2m00s left",
    ]
