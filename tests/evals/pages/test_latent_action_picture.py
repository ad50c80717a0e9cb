"""The table behind the picture, and that both kinds of panel are drawn."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from evals.pages.latent_action_picture import Panel, code_table, draw_panels, principal


def test_shares_of_each_code() -> None:
    ids, classes = np.array([0, 0, 0, 2, 2]), np.array([0, 0, 1, 1, 1])
    table = code_table(ids, 4, classes, 3)
    assert table.tolist() == [[2 / 3, 0, 0, 0], [1 / 3, 0, 1, 0], [0, 0, 0, 0]]


def test_principal_components_keep_distances_of_a_plane() -> None:
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(20, 2))
    turned = plane @ np.linalg.qr(rng.normal(size=(5, 5)))[0][:2] + 3
    found = principal(turned)
    apart = np.linalg.norm(plane[:, None] - plane, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(found[:, None] - found, axis=-1), apart)
    assert (principal(plane[:, :1])[:, 1] == 0).all()


def test_a_picture_of_both_kinds() -> None:
    rng = np.random.default_rng(1)
    classes, names = rng.integers(0, 3, 50), ("up", "down", "still")
    panels = [
        Panel("codes", rng.normal(size=(50, 2)), rng.integers(0, 4, 50), 4),
        Panel("continuous", rng.normal(size=(50, 3)), None),
    ]
    picture = Image.open(io.BytesIO(draw_panels(panels, classes, names)))
    assert picture.format == "PNG"
    assert picture.width > 2 * picture.height
