"""Crops against references: slicing, F.interpolate, and the two implementations against each other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from jepa.data.transforms import AugmentConfig, ClipTransform, random_boxes, resample, resample_uint8, uniform
from jepa.types import Batch, ClipConfig


def batch_of(count: int, height: int, width: int, frames: int = 2, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    clip = torch.randint(0, 256, (count, frames, height, width, 3), dtype=torch.uint8, generator=generator)
    size = torch.tensor([[height, width]]).expand(count, 2)
    return Batch(clip=clip.permute(0, 4, 1, 2, 3), size=size, augment_seed=torch.arange(100, 100 + count))


def pixels(clip: torch.Tensor, config: ClipConfig) -> torch.Tensor:
    """Undo the normalisation: grey levels 0..255."""
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) * 255 for v in (config.mean, config.std))
    return clip * std + mean


def test_centre_crop_without_resizing_is_a_slice_and_normalisation_is_exact():
    config = ClipConfig(num_frames=2, fps=1, crop_size=8, short_side=12)
    batch = batch_of(3, 12, 20)
    out = ClipTransform(config)(batch)
    cut = batch.clip[..., 2:10, 6:14].float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (config.mean, config.std))
    assert out.clip.shape == (3, 3, 2, 8, 8)
    assert out.clip.dtype == torch.float32
    torch.testing.assert_close(out.clip, (cut - mean) / std, rtol=1e-5, atol=1e-5)
    assert out.label is batch.label


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (10, 14)])
def test_resize_and_centre_crop_equal_interpolate_and_slice(height, width):
    config = ClipConfig(num_frames=2, fps=1, crop_size=16, short_side=20)
    batch = batch_of(2, height, width)
    scaled = (20, 30) if (height, width) == (40, 60) else (30, 20) if (height, width) == (60, 40) else (20, 28)
    frames = batch.clip.transpose(1, 2).flatten(0, 1).float()
    full = F.interpolate(frames, size=scaled, mode="bilinear", antialias=True)
    top, left = (scaled[0] - 16) // 2, (scaled[1] - 16) // 2
    expected = full[..., top : top + 16, left : left + 16].unflatten(0, (2, 2)).transpose(1, 2)
    assert (pixels(ClipTransform(config)(batch).clip, config) - expected).abs().max() < 1.01  # uint8 rounds
    exact = resample(batch.clip, ClipTransform(config).boxes(batch), (16, 16))
    torch.testing.assert_close(exact, expected, rtol=1e-4, atol=1e-2)


def test_the_accelerator_path_and_the_cpu_path_agree_with_augmentation():
    config = ClipConfig(num_frames=2, fps=1, crop_size=16)
    batch = batch_of(12, 24, 30)
    boxes = ClipTransform(config, AugmentConfig()).boxes(batch)
    assert 0 < int(boxes.flip.sum()) < 12
    difference = (resample(batch.clip, boxes, (16, 16)) - resample_uint8(batch.clip, boxes, (16, 16))).abs()
    assert difference.max() < 2.5  # rounded after each of the two axes
    assert difference.mean() < 0.5


@pytest.mark.parametrize(("height", "width"), [(40, 60), (61, 37), (12, 9)])
@pytest.mark.parametrize("fit", ["crop", "keep", "stretch"])
def test_bicubic_and_every_fit_equal_interpolate_and_slice(height, width, fit):
    config = ClipConfig(num_frames=2, fps=1, crop_size=20, fit=fit, interpolation="bicubic")
    batch = batch_of(2, height, width)
    scaled = tuple(round(side * 20 / min(height, width)) for side in (height, width))
    rows, columns = {"crop": (20, 20), "keep": (scaled[0] // 4 * 4, scaled[1] // 4 * 4), "stretch": (20, 20)}[fit]
    scaled = (20, 20) if fit == "stretch" else scaled
    frames = batch.clip.transpose(1, 2).flatten(0, 1).float()
    full = F.interpolate(frames, size=scaled, mode="bicubic", antialias=True).clamp(0, 255)
    top, left = (scaled[0] - rows) // 2, (scaled[1] - columns) // 2
    expected = full[..., top : top + rows, left : left + columns].unflatten(0, (2, 2)).transpose(1, 2)
    transform = ClipTransform(config, multiple=4)
    made = pixels(transform(batch).clip, config)
    assert made.shape[3:] == (rows, columns)
    assert (made - expected).abs().mean() < 0.6  # uint8 rounds after each of the two axes
    exact = resample(batch.clip, transform.boxes(batch), (rows, columns), "bicubic")
    torch.testing.assert_close(exact, expected, rtol=1e-4, atol=0.02)


def test_flip_mirrors():
    config = ClipConfig(num_frames=2, fps=1, crop_size=12)
    batch = batch_of(2, 12, 12)
    still = AugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    plain = ClipTransform(config, still)(batch).clip
    mirrored = ClipTransform(config, AugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1.0))(batch).clip
    torch.testing.assert_close(plain, ClipTransform(config)(batch).clip)
    torch.testing.assert_close(mirrored, plain.flip(-1))


def test_boxes_stay_inside_the_valid_area_and_follow_scale_and_ratio():
    generator = torch.Generator().manual_seed(0)
    size = torch.randint(20, 200, (4000, 2), generator=generator)
    boxes = random_boxes(size, torch.arange(4000), AugmentConfig(), 16)
    assert bool((boxes.top >= 0).all() & (boxes.left >= 0).all())
    assert bool((boxes.top + boxes.height <= size[:, 0]).all())
    assert bool((boxes.left + boxes.width <= size[:, 1]).all())
    square = random_boxes(torch.tensor([[1000, 1000]]).expand(4000, 2), torch.arange(4000), AugmentConfig(), 16)
    share = square.height * square.width / 1e6
    assert float(share.min()) == pytest.approx(0.3, abs=0.01)
    assert float(share.mean()) == pytest.approx(0.65, abs=0.02)
    assert float(square.flip.float().mean()) == pytest.approx(0.5, abs=0.03)
    small = share < 0.7  # where no side meets the picture's edge
    ratio = (square.width / square.height)[small]
    assert float(ratio.min()) == pytest.approx(0.75, abs=0.01)
    assert float(ratio.max()) == pytest.approx(1.35, abs=0.01)


def test_padding_never_shows():
    """A white clip padded with black keeps white crops."""
    batch = batch_of(20, 40, 40)
    batch.clip.zero_()
    batch.clip[:, :, :, :25, :31] = 255
    batch.size = torch.tensor([[25, 31]]).expand(20, 2)
    config = ClipConfig(num_frames=2, fps=1, crop_size=16)
    for augment in (AugmentConfig(), None):
        assert pixels(ClipTransform(config, augment)(batch).clip, config).min() > 254.9
        assert resample(batch.clip, ClipTransform(config, augment).boxes(batch), (16, 16)).min() > 254.9


def test_crops_depend_on_the_seed_alone_not_on_the_batch():
    config = ClipConfig(num_frames=2, fps=1, crop_size=16)
    transform, batch = ClipTransform(config, AugmentConfig()), batch_of(6, 24, 30)
    whole = transform(batch).clip
    part = Batch(clip=batch.clip[3:], size=batch.size[3:], augment_seed=batch.augment_seed[3:])
    assert torch.equal(transform(part).clip, whole[3:])
    again = transform(Batch(clip=batch.clip, size=batch.size, augment_seed=batch.augment_seed + 1000)).clip
    assert not torch.equal(again, whole)


def test_uniform_numbers_are_splitmix64_and_uniform():
    """The first outputs of SplitMix64 for seed 1234567 (its published test vector), in their top 24 bits."""
    values = uniform(torch.tensor([1234567]), 3)[0] * 2**24
    reference = (6457827717110365317, 3203168211198807973, 9817491932198370423)
    assert values.to(torch.int64).tolist() == [value >> 40 for value in reference]
    many = uniform(torch.arange(20000), 3)
    assert many.mean(0).tolist() == pytest.approx([0.5] * 3, abs=0.01)
    assert many.std(0).tolist() == pytest.approx([12**-0.5] * 3, abs=0.01)
    assert abs(float(torch.corrcoef(many.T)[0, 1])) < 0.03


def test_bad_augmentation_settings_are_named():
    for wrong in ({"scale": (0.0, 1.0)}, {"scale": (0.9, 0.5)}, {"ratio": (2.0, 1.0)}, {"flip": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AugmentConfig(**wrong)
