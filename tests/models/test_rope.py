"""Rotary positions: relative, norm-preserving, and the fast path equals the formula."""

from typing import Any

import pytest
import torch

from jepa.models import rope as rope_module
from jepa.models.rope import RopeConfig, axis_dim, rope_table, rotate, rotate_qkv
from jepa.types import TokenGrid

GRID = TokenGrid(4, 5, 6)


@pytest.mark.parametrize(("head_dim", "per_axis"), [(32, 10), (64, 20), (88, 28), (80, 26), (6, 2)])
def test_axis_dim(head_dim: int, per_axis: int) -> None:
    assert axis_dim(head_dim) == per_axis
    table = rope_table(GRID, GRID.ids()[None], head_dim)
    assert table.shape == (1, GRID.size, head_dim // 2, 2)
    rest = table[:, :, 3 * per_axis // 2 :]
    assert torch.equal(rest[..., 0], torch.ones_like(rest[..., 0]))
    assert torch.equal(rest[..., 1], torch.zeros_like(rest[..., 1]))


def test_known_angles() -> None:
    """Token (t=1, h=2, w=3), head of 12: 2 pairs per axis, omegas 1 and 1/100, order t, h, w."""
    token = (1 * GRID.h + 2) * GRID.w + 3
    table = rope_table(GRID, torch.tensor([[token]]), 12)[0, 0]
    angles = torch.tensor([1, 0.01, 2, 0.02, 3, 0.03])
    torch.testing.assert_close(table, torch.stack((angles.cos(), angles.sin()), dim=-1))
    x = torch.zeros(1, 1, 1, 12)
    x[..., 4] = 1.0  # the first of the row axis's first pair
    turned = rotate(x, table[None, None])[0, 0, 0]
    torch.testing.assert_close(turned[4:6], torch.tensor([2.0]).cos().new_tensor([-0.4161468, 0.9092974]))
    assert turned.count_nonzero() == 2


def test_rotation_keeps_norms() -> None:
    x = torch.randn(2, GRID.size, 3, 32)
    turned = rotate(x, rope_table(GRID, GRID.ids()[None], 32))
    assert not torch.allclose(x, turned)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_scores_depend_on_coordinate_differences_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 32, dtype=torch.float64)

    def score(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
        ids = [torch.tensor([[(t * 9 + h) * 9 + w]]) for t, h, w in (a, b)]
        tables = [rope_table(TokenGrid(9, 9, 9), i, 32) for i in ids]
        return float((rotate(q.float(), tables[0]) * rotate(k.float(), tables[1])).sum())

    base = score((1, 2, 3), (2, 0, 4))
    for dt, dh, dw in ((1, 0, 0), (0, 4, 0), (0, 0, 4), (6, 6, 4)):
        assert score((1 + dt, 2 + dh, 3 + dw), (2 + dt, 0 + dh, 4 + dw)) == pytest.approx(base, abs=1e-5)
    assert abs(score((1, 2, 3), (2, 1, 4)) - base) > 1e-3


@pytest.mark.parametrize("batched", [False, True])
def test_fast_path_equals_formula(batched: bool) -> None:
    ids = torch.stack([torch.randperm(GRID.size)[:7] for _ in range(2)]) if batched else GRID.ids()[None]
    table = rope_table(GRID, ids, 32)
    qkv = torch.randn(2, ids.shape[1], 3, 4, 32, requires_grad=True)
    weights = torch.randn(3, 2, ids.shape[1], 4, 32)
    fast = rotate_qkv(qkv, table)
    q, k, v = qkv.unbind(2)
    slow = (rotate(q, table), rotate(k, table), v)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b)
    grads = [
        torch.autograd.grad(sum((w * y).sum() for w, y in zip(weights, out, strict=True)), qkv)[0]
        for out in (fast, slow)
    ]
    torch.testing.assert_close(*grads)


def test_table_is_float32_for_any_activation() -> None:
    table = rope_table(GRID, GRID.ids()[None], 32)
    assert table.dtype == torch.float32
    x = torch.randn(1, GRID.size, 2, 32)
    turned = rotate(x.bfloat16(), table)
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned, rotate(x.bfloat16().float(), table).bfloat16(), rtol=0, atol=0)


def test_tiled_frequencies_written_out() -> None:
    """Dimension j of an axis turns by omega of j mod d/2, pairs being (2m, 2m+1): neither norm nor relation is kept."""
    config, head_dim = RopeConfig(frequencies="tiled"), 14  # 4 dimensions per axis, omegas 1 and 1/100, 2 left over
    x = torch.randn(1, GRID.size, 2, head_dim)
    turned = rotate(x, rope_table(GRID, GRID.ids()[None], head_dim, config))
    expected = x.clone()
    for token in range(GRID.size):
        for axis, place in enumerate(GRID.coordinates(torch.tensor(token)).tolist()):
            for j in range(4):
                angle = torch.tensor(place * 100.0 ** -(j % 2))
                own, other = x[0, token, :, 4 * axis + j], x[0, token, :, 4 * axis + (j ^ 1)]
                expected[0, token, :, 4 * axis + j] = own * angle.cos() + (other if j % 2 else -other) * angle.sin()
    torch.testing.assert_close(turned, expected)
    assert (turned.norm(dim=-1) - x.norm(dim=-1)).abs().max() > 0.1
    torch.testing.assert_close(turned[..., 12:], x[..., 12:])


def test_tiled_gradients_and_the_spelled_out_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast product and the plain one agree, values and gradients."""
    table = rope_table(GRID, GRID.ids()[None], 14, RopeConfig(frequencies="tiled"))
    weight = torch.randn(2, GRID.size, 3, 14)
    results = []
    for plain in (False, True):
        monkeypatch.setattr(rope_module, "_spelled_out", lambda _, plain=plain: plain)
        x = torch.arange(2.0 * GRID.size * 42).view(2, GRID.size, 3, 14).sin().requires_grad_()
        turned = rotate(x, table)
        (turned * weight).sum().backward()
        results.append((turned.detach(), x.grad))
    torch.testing.assert_close(*results)


def test_tiled_qkv_equals_rotate() -> None:
    table = rope_table(GRID, GRID.ids()[None], 32, RopeConfig(frequencies="tiled"))
    qkv = torch.randn(2, GRID.size, 3, 4, 32)
    q, k, v = rotate_qkv(qkv, table)
    torch.testing.assert_close(q, rotate(qkv[:, :, 0], table))
    torch.testing.assert_close(k, rotate(qkv[:, :, 1], table))
    assert torch.equal(v, qkv[:, :, 2])


def test_interpolated_rows_and_columns() -> None:
    corners, cells = RopeConfig(base_grid=16), RopeConfig(base_grid=16, spread="cells")
    assert [corners.scale(n) for n in (1, 16, 31)] == [1.0, 1.0, 0.5]
    assert [cells.scale(n) for n in (8, 16, 32)] == [2.0, 1.0, 0.5]
    assert RopeConfig().scale(99) == 1.0
    wide, base = TokenGrid(2, 31, 31), TokenGrid(2, 16, 16)
    for t, h, w in ((0, 0, 0), (1, 7, 3), (1, 15, 15)):  # every second row of 31 lies where a row of 16 does
        one = rope_table(wide, torch.tensor([[(t * 31 + 2 * h) * 31 + 2 * w]]), 32, corners)
        torch.testing.assert_close(one, rope_table(base, torch.tensor([[(t * 16 + h) * 16 + w]]), 32, corners))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"frequencies": "paired"}, "'interleaved' or 'tiled'"), ({"spread": "edges"}, "'corners' or 'cells'"),
     ({"base_grid": 1}, "at least 2")],
)  # fmt: skip
def test_bad_rope_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RopeConfig(**changes)
