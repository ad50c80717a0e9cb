import base64
import io
import re

import numpy as np
import torch
from PIL import Image

from evals.pages import drawing
from evals.pages.drawing import Panel
from jepa.types import ClipConfig, Mask, TokenGrid

CLIP = ClipConfig(num_frames=4, fps=8.0, crop_size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def decode(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])


def test_curves_show_series_that_exist_and_nothing_else() -> None:
    records = [{"step": s, "loss": 1.0 / (s + 1), "bad": "nan"} for s in range(50)]
    panels = [Panel("Loss", (("loss", "loss"),)), Panel("Rank", (("monitor/rankme", "rank"),))]
    svg = decode(drawing.curves(records, panels)).decode()
    assert svg.count('id="axes_') == 1
    assert drawing.curves(records, [panels[1]]) == ""


def test_gif_keeps_frames_size_and_pace() -> None:
    frames = np.zeros((5, 8, 12, 3), np.uint8)
    for number in range(5):
        frames[number, :, number * 2 : number * 2 + 2] = (250, 120, 10)
    with Image.open(io.BytesIO(decode(drawing.gif(frames, fps=10.0)))) as picture:
        assert (picture.n_frames, picture.size, picture.info["duration"]) == (5, (12, 8), 100)
        picture.seek(3)
        assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - frames[3]).max() <= 2


def test_to_frames_undoes_the_normalisation() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), dtype=np.uint8)
    clip = (torch.from_numpy(pixels).float() / 255 - torch.tensor(CLIP.mean)) / torch.tensor(CLIP.std)
    np.testing.assert_array_equal(drawing.to_frames(clip.permute(0, 4, 1, 2, 3), CLIP), pixels)


def test_feature_frames_give_like_patches_like_colours() -> None:
    grid = TokenGrid(2, 2, 2)
    kinds = torch.tensor([[0, 0, 1, 1, 0, 1, 0, 1]])
    tokens = torch.nn.functional.one_hot(kinds, 2).float() @ torch.randn(2, 6)
    shown = drawing.feature_frames(tokens, grid, num_frames=4, size=8)
    assert shown.shape == (1, 4, 8, 8, 3)
    first, second = shown[0, 0, 0, 0], shown[0, 0, 7, 7]
    assert (first != second).any()
    assert (shown[0, 0, :4] == first).all()
    assert (shown[0, 0, 4:] == second).all()
    assert (shown[0, 1] == shown[0, 0]).all()  # held for its tubelet
    assert (shown[0, 2, :, :4] == first).all()


def test_mask_picture_shows_context_and_hides_the_rest() -> None:
    grid = TokenGrid(2, 2, 2)
    mask = Mask(torch.tensor([[0, 5]]), torch.tensor([[[1, 2], [3, 4]]]))  # 6 and 7 are neither
    frames = np.full((4, 16, 16, 3), 200, np.uint8)
    drawn = drawing.mask_picture(frames, mask, grid, least=16, gap=4)
    assert drawn.shape == (16, 16 + 4 + 16, 4)
    assert (drawn[:8, :8, :3] == 200).all()  # token 0
    assert (drawn[:8, 28:36, :3] == 200).all()  # token 5: second tubelet, first row, second column
    target, neither = drawn[2, 10, :3].tolist(), drawn[12, 24, :3].tolist()
    assert target[2] > target[0]
    assert len(set(neither)) == 1
    assert (drawn[:, 16:20, 3] == 0).all()


def test_side_by_side_brings_clips_to_one_height() -> None:
    small, large = np.zeros((3, 4, 4, 3), np.uint8), np.full((3, 8, 8, 3), 9, np.uint8)
    row = drawing.side_by_side([small, large], gap=2)
    assert row.shape == (3, 8, 8 + 2 + 8, 3)
    assert (row[:, :, 10:] == 9).all()


def test_png_is_a_png() -> None:
    uri = drawing.png(np.zeros((3, 5, 4), np.uint8))
    assert re.match(r"data:image/png;base64,", uri)
    with Image.open(io.BytesIO(decode(uri))) as picture:
        assert picture.size == (5, 3)
