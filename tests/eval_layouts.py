"""Tiny made-up copies of the layouts that the files of configs/eval name: 12 training and 6 test items, two classes."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from support import moving

from jepa.data.encoding import write_video

SPLITS = {"train": range(12), "test": range(12, 18)}


@functools.cache
def video(label: int) -> bytes:
    """An mp4 of 16 frames at 8 per second that drifts in the direction of its class."""
    frames = moving(16, 32, 32, seed=label)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, frames[::-1] if label else frames, fps=8)
        return path.read_bytes()


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def picture(path: Path, label: int, side: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(moving(1, side, side, seed=label)[0]).save(path)


def kinetics(root: Path) -> None:
    for split, name in (("train", "train"), ("test", "val")):
        lines = ["label,youtube_id,time_start,time_end,split"]
        for item in SPLITS[split]:
            lines.append(f"{'ab'[item % 2]},{item:011d},0,10,{name}")
            put(root / name / f"{item:011d}_000000_000010.mp4", video(item % 2))
        put(root / f"annotations/{name}.csv", "\n".join(lines))


def ssv2(root: Path) -> None:
    templates = {"Pushing something": "0", "Pulling something": "1"}
    put(root / "labels/labels.json", json.dumps(templates))
    for split, name in (("train", "train"), ("test", "validation")):
        rows = [{"id": str(i), "template": list(templates)[i % 2].replace("something", "[something]"), "label": "x"}
                for i in SPLITS[split]]  # fmt: skip
        put(root / f"labels/{name}.json", json.dumps(rows))
        for item in SPLITS[split]:
            put(root / f"20bn-something-something-v2/{item}.mp4", video(item % 2))


def imagenet(root: Path) -> None:
    for split, name in (("train", "train"), ("test", "val")):
        for item in SPLITS[split]:
            picture(root / name / f"n0000000{item % 2}" / f"{item}.jpg", item % 2)


def diving48(root: Path) -> None:
    put(root / "Diving48_vocab.json", json.dumps([["Back", "15som"], ["Forward", "Dive"]]))
    for split, items in SPLITS.items():
        rows = [{"vid_name": f"v{i}", "label": i % 2, "start_frame": 0, "end_frame": 16} for i in items]
        put(root / f"Diving48_V2_{split}.json", json.dumps(rows))
        for item in items:
            put(root / f"rgb/v{item}.mp4", video(item % 2))


def jester(root: Path) -> None:
    put(root / "jester-v1-labels.csv", "Swiping Left\nStop Sign")
    for split, name in (("train", "train"), ("test", "validation")):
        lines = [f"{item};{('Swiping Left', 'Stop Sign')[item % 2]}" for item in SPLITS[split]]
        put(root / f"jester-v1-{name}.csv", "\n".join(lines))
        for item in SPLITS[split]:
            for frame in range(1, 7):
                picture(root / f"20bn-jester-v1/{item}/{frame:05d}.jpg", item % 2)


def coin(root: Path) -> None:
    found = {}
    for split, name in (("train", "training"), ("test", "testing")):
        for item in SPLITS[split]:
            found[f"{item:011d}"] = {
                "class": ("Weld", "Bake")[item % 2], "recipe_type": item % 2, "subset": name, "duration": 2.0,
                "annotation": [],
            }  # fmt: skip
            put(root / f"videos/{item % 2}/{item:011d}.mp4", video(item % 2))
    put(root / "COIN.json", json.dumps({"database": found}))


def epic100(root: Path, classes: int = 2) -> None:
    """Actions at 1.5 s of videos of two seconds; noun and verb are the class."""
    put(root / "EPIC_100_verb_classes.csv", "\n".join(["id,key", *(f"{i},verb{i}" for i in range(classes))]))
    put(root / "EPIC_100_noun_classes.csv", "\n".join(["id,key", *(f"{i},noun{i}" for i in range(classes))]))
    for split, name in (("train", "train"), ("test", "validation")):
        lines = ["participant_id,video_id,start_timestamp,stop_timestamp,verb_class,noun_class"]
        for item in SPLITS[split]:
            lines.append(f"P01,P01_{item},00:00:01.50,00:00:02.00,{item % classes},{item % classes}")
            put(root / f"P01/videos/P01_{item}.MP4", video(item % 2))
        put(root / f"EPIC_100_{name}.csv", "\n".join(lines))


def davis(root: Path) -> None:
    for time in range(4):
        mask = np.zeros((32, 48), np.uint8)
        mask[8:20, 4 + 4 * time : 18 + 4 * time] = 1
        for kind, suffix, pixels in (("JPEGImages", "jpg", 60 + 150 * mask), ("Annotations", "png", mask)):
            path = root / kind / "480p" / "one" / f"{time:05d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels.astype(np.uint8))
            (image if suffix == "png" else image.convert("RGB")).save(path)
    put(root / "ImageSets/2017/val.txt", "one\n")


def dense(root: Path) -> None:
    """Images with ADE20K's numbers (0: none) and NYU's millimetres."""
    for split, name in (("train", "training"), ("test", "validation"), ("train", "train"), ("test", "test")):
        for item in SPLITS[split]:
            picture(root / name / "images" / f"{item}.jpg", item)
            numbers = np.full((32, 32), 1 + item % 2, np.uint8)
            numbers[:8] = 2
            numbers[-4:] = 0
            for folder, values in (("annotations", numbers), ("depth", 1000 * numbers.astype(np.uint16))):
                (root / name / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(root / name / folder / f"{item}.png")


def intphys(root: Path) -> None:
    for number in range(1, 5):
        for frame in range(1, 19):
            picture(root / f"dev/O1/01/{number}/scene/scene_{frame:03d}.png", number + frame)
        put(root / f"dev/O1/01/{number}/status.json", json.dumps({"header": {"is_possible": number < 3}}))


def grasp(root: Path) -> None:
    for folder in ("P_Collision", "IP_Collision"):
        put(root / "level2" / folder / "000.mp4", video(len(folder) % 2))


def inflevel(root: Path) -> None:
    for label, kind in enumerate(("vv", "ii", "vi", "iv")):
        put(root / f"continuity/center__continuity__cup__duck__{kind}__LR.mp4", video(label % 2))


def grid_digits(root: Path) -> None:
    for split, items in SPLITS.items():
        lines = ["path,start_s,end_s,word,slot"]
        for item in items:
            put(root / f"{split}/{item}.mp4", video(item % 2))
            word = ("one", "two")[item % 2]
            lines += [f"{split}/{item}.mp4,0.5,1.5,{word},digit", f"{split}/{item}.mp4,0,1,x,letter"]
        put(root / f"{split}.csv", "\n".join(lines))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "kinetics": kinetics, "ssv2": ssv2, "imagenet": imagenet, "diving48": diving48, "jester": jester, "coin": coin,
    "epic100": epic100, "intphys": intphys, "grasp": grasp, "inflevel": inflevel, "davis2017": davis,
    "ade20k_linear": dense, "nyu_depth_linear": dense, "grid_digits": grid_digits,
}  # fmt: skip
