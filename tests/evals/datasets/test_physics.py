"""Pairs of possible and impossible videos."""

from __future__ import annotations

import logging

import pytest

from evals.datasets.physics import PhysicsPair, open_physics
from jepa.config import ConfigError


@pytest.fixture
def intphys(layout):
    for block, possible in (("O1/01", "1100"), ("O1/02", "0110"), ("O3/01", "1010")):
        for number, flag in enumerate(possible, 1):
            layout.picture(f"dev/{block}/{number}/scene/scene_001.png")
            layout.json(f"dev/{block}/{number}/status.json", {"header": {"is_possible": flag == "1"}, "frames": []})
    return layout


def test_intphys_blocks_give_four_pairs_of_frame_folders(intphys):
    pairs = open_physics("intphys", intphys.root)
    assert len(pairs) == 12
    assert [(p.condition, p.block) for p in pairs[::4]] == [("O1", "O1/01"), ("O1", "O1/02"), ("O3", "O3/01")]
    base = intphys.root / "dev/O1/02"
    made = {(p.possible_path, p.impossible_path) for p in pairs[4:8]}
    assert made == {(f"{base}/{a}/scene", f"{base}/{b}/scene") for a in (2, 3) for b in (1, 4)}
    assert {(p.fps, p.matched) for p in pairs} == {(15.0, None)}
    assert open_physics("intphys", intphys.root / "dev") == pairs


def test_intphys_errors(intphys):
    video = "dev/O1/02/3"
    intphys.json(f"{video}/status.json", {"header": {"is_possible": False}})
    with pytest.raises(ConfigError, match="02 has 1 possible and 3 impossible videos, not 2 and 2"):
        open_physics("intphys", intphys.root)
    intphys.json(f"{video}/status.json", {"header": {"is_possible": "yes"}})
    with pytest.raises(ConfigError, match=r"3/status\.json has no header\.is_possible that is true or false"):
        open_physics("intphys", intphys.root)
    (intphys.root / video / "status.json").unlink()
    with pytest.raises(ConfigError, match="is missing: only the dev set of IntPhys says which videos are possible"):
        open_physics("intphys", intphys.root)


def test_inflevel_pairs_by_name(layout, caplog):
    for kind in ("vv", "ii", "vi", "iv"):
        layout.video(f"continuity/center__continuity__cup__duck__{kind}__LR.mp4")
        if kind != "iv":
            layout.video(f"continuity/center__continuity__cup__duck__{kind}__RL.mp4")
    for kind in ("ui", "cv", "uv", "ci"):
        layout.video(f"gravity/left__gravity__cup__duck__{kind}.mp4")
    with caplog.at_level(logging.WARNING, "jepa"):
        pairs = open_physics("inflevel", layout.root)
    assert "1 of 2 blocks of continuity lack a video and are left out: center__continuity__cup__duck__RL" in caplog.text
    assert len(pairs) == 8
    first = f"{layout.root}/continuity/center__continuity__cup__duck__"
    block = "center__continuity__cup__duck__LR"
    expected = PhysicsPair(f"{first}vv__LR.mp4", f"{first}vi__LR.mp4", "continuity", block, None, True)
    assert pairs[0] == expected
    kinds = {(p.possible_path[-6:-4], p.impossible_path[-6:-4]): p.matched for p in pairs[4:]}
    assert kinds == {("ui", "uv"): True, ("ui", "ci"): False, ("cv", "uv"): False, ("cv", "ci"): True}
    layout.video("gravity/left__gravity__cup__duck__vv.mp4")
    with pytest.raises(ConfigError, match=r"vv\.mp4 is not called CAMERA__gravity__.* with a TYPE of ui, cv, uv, ci"):
        open_physics("inflevel", layout.root)


def test_grasp_pairs_by_number(layout, caplog):
    layout.video("level2/P_Collision/000.mp4", "level2/P_Collision/001.mp4", "level2/P_Gravity2/000.mp4")
    layout.video("level2/IP_Collision/000.mp4", "level2/IP_Gravity2/000.mp4", "level2/IP_Gravity2/007.mp4")
    with caplog.at_level(logging.WARNING, "jepa"):
        pairs = open_physics("grasp", layout.root)
    assert [(p.condition, p.block) for p in pairs] == [("Collision", "Collision/000"), ("Gravity2", "Gravity2/000")]
    assert pairs[0].impossible_path.endswith("level2/IP_Collision/000.mp4")
    assert caplog.text.count("1 videos of") == 2
    layout.video("level2/P_Support/000.mp4")
    with pytest.raises(ConfigError, match="has no folder IP_Support"):
        open_physics("grasp", layout.root)


def test_wrong_roots(layout):
    with pytest.raises(ConfigError, match="unknown physics data set 'intphys2', did you mean 'intphys'"):
        open_physics("intphys2", layout.root)
    with pytest.raises(ConfigError, match="nothing is not a folder"):
        open_physics("grasp", layout.root / "nothing")
    for name in ("intphys", "inflevel", "grasp"):
        with pytest.raises(ConfigError, match=f"data set {name} in .* has no pair"):
            open_physics(name, layout.root)
