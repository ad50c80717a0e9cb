"""Sine-cosine tables in the documented order, and equal to the published ones."""

import json
import math
from pathlib import Path

import pytest
import torch

from jepa.models.positions import PositionTable, SinCos, sincos_1d, sincos_positions
from jepa.types import TokenGrid

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"


def test_one_axis_by_hand() -> None:
    table = sincos_1d(torch.tensor([0.0, 2.0]), 4)
    expected = [[0.0, 0.0, 1.0, 1.0], [math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02)]]
    torch.testing.assert_close(table, torch.tensor(expected))


def test_clip_order_is_t_h_w_each_sin_then_cos() -> None:
    """Width 10: 2*ceil(10/6) = 4 values per axis, [t t t t h h h h w w], the last ones cut."""
    grid = TokenGrid(3, 4, 5)
    row = sincos_positions(grid, grid, 10)[(2 * 4 + 3) * 5 + 1]
    expected = [f(x * o) for x in (2, 3, 1) for f in (math.sin, math.cos) for o in (1, 0.01)][:10]
    torch.testing.assert_close(row, torch.tensor(expected))


def test_image_order_is_w_h() -> None:
    grid = TokenGrid(1, 4, 5)
    row = sincos_positions(grid, grid, 8)[3 * 5 + 1]
    expected = [f(x * o) for x in (1, 3) for f in (math.sin, math.cos) for o in (1, 0.01)]
    torch.testing.assert_close(row, torch.tensor(expected))


def test_other_grids_cover_the_same_extent() -> None:
    """Twice the tokens per side stand at quarter points around the native ones; the native table is reproduced."""
    native, finer = TokenGrid(2, 2, 2), TokenGrid(2, 4, 4)
    positions = SinCos(native, 12)
    torch.testing.assert_close(positions(native), sincos_positions(native, native, 12))
    row = positions(finer)[0]
    torch.testing.assert_close(row[4:8], sincos_1d(torch.tensor(-0.25), 4))
    assert positions.state_dict() == {}


@pytest.mark.parametrize("family", ["ijepa", "vjepa"])
def test_equals_published_tables(family: str) -> None:
    folder = GOLDEN / family
    if not folder.is_dir():
        pytest.skip("golden checkpoints are not here")
    config = json.loads((folder / "config.json").read_text())
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    side = config["img_size"] // config["patch_size"]
    grid = TokenGrid(config["num_frames"] // config["tubelet_size"], side, side)
    for part, width in (("target_encoder", "embed_dim"), ("predictor", "predictor_embed_dim")):
        (table,) = (value for key, value in state[part].items() if key.endswith("pos_embed"))
        torch.testing.assert_close(sincos_positions(grid, grid, config[width]), table[0], rtol=0, atol=1e-6)


def test_a_stored_table_starts_as_sines_and_is_in_the_state_dict() -> None:
    native = TokenGrid(4, 3, 3)
    table = PositionTable(native, 24)
    assert torch.equal(table(native), sincos_positions(native, native, 24))
    assert list(table.state_dict()) == ["table"]


def test_a_stored_table_is_interpolated_and_cut() -> None:
    native = TokenGrid(4, 3, 3)
    module = PositionTable(native, 24)
    module.table.copy_(torch.randn(36, 24))
    assert torch.equal(module(TokenGrid(2, 3, 3)), module.table[:18])  # a shorter clip: the first tubelets
    longer = module(TokenGrid(8, 3, 3)).unflatten(0, (8, 3, 3))
    stored = module.table.unflatten(0, (4, 3, 3))
    torch.testing.assert_close(longer[0], stored[0])  # at the ends the outer value is held,
    torch.testing.assert_close(longer[1], 0.75 * stored[0] + 0.25 * stored[1])  # between cells it is linear
    assert module(TokenGrid(4, 5, 2)).shape == (40, 24)


def test_an_image_table_is_the_same_in_every_frame() -> None:
    module = PositionTable(TokenGrid(1, 4, 4), 24)
    two = module(TokenGrid(2, 6, 5)).unflatten(0, (2, 6, 5))
    assert torch.equal(two[0], two[1])
    picture = module.table.unflatten(0, (4, 4)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(picture, size=(6, 5), mode="bicubic")[0].permute(1, 2, 0)
    torch.testing.assert_close(two[0], expected)
