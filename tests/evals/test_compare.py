"""Runs side by side: paired on the same clips in whatever order, refused on different ones; the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import error_of, write_clips

from app.cli import main as jepa
from evals import metrics
from evals.compare import compare, markdown, write
from evals.main import main
from evals.matching import relative
from jepa.config import ConfigError

CLASSES = ["cat", "dog", "eel"]


def write_eval(
    folder: Path, said: dict[str, list[int]], labels: list[int], order: list[int] | None = None, **changes: Any
) -> Path:
    """An eval's files: the predictions of some encoders (one probe, one label) on clips ``v0.mp4``, ``v1.mp4``..., at
    seconds 0 to 1 of each, written in ``order``."""
    folder.mkdir(parents=True)
    order = order or list(range(len(labels)))
    rows = []
    arrays: dict[str, Any] = {
        "path": np.array([changes.get("paths", [f"/data/v{n}.mp4" for n in range(len(labels))])[n] for n in order]),
        "span_s": np.array([changes.get("span", (0.0, 1.0))] * len(order)),
        "labels/label": np.array([labels[n] for n in order]),
    }
    for encoder, predictions in said.items():
        right = [a == b for a, b in zip(predictions, labels, strict=True) if b >= 0]
        share = sum(right) / len(right)
        rows.append({
            "probe": changes.get("probe", "knn"), "label": "label", "encoder": encoder, "accuracy": share,
            "error": metrics.standard_error(share, len(right)), "interval": [0.0, 1.0], "num_train": 9,
            "num_test": len(right), **changes.get("variant", {}),
        })  # fmt: skip
        probe = " ".join(part for part in (rows[-1]["probe"], changes.get("variant_words")) if part)
        arrays[f"{probe}/label/{encoder}/predictions"] = np.array([predictions[n] for n in order])
    np.savez_compressed(folder / "predictions.npz", **arrays)
    results = {
        "rows": rows, "model": f"runs/{folder.name}", "classes": {"label": changes.get("classes", CLASSES)},
        "models": {"trained": {"model": f"runs/{folder.name}", "encoder_hash": "abc"}},
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    return folder


LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 2, -1]
FIRST = [0, 1, 2, 0, 1, 0, 1, 2, 0, -1]  # right on clips 0 to 4
SECOND = [0, 1, 0, 0, 1, 2, 0, 1, 2, -1]  # right on all but clip 2


def test_difference_equals_counting_by_hand_in_any_order(tmp_path: Path) -> None:
    a = write_eval(tmp_path / "a", {"trained": FIRST}, LABELS)
    b = write_eval(tmp_path / "b", {"trained": SECOND}, LABELS, order=[7, 3, 9, 1, 0, 2, 8, 6, 5, 4])
    found = compare([a, b])
    assert [column["name"] for column in found["columns"]] == ["runs/a", "runs/b"]
    (row,) = found["rows"]
    first, second = row["cells"]
    assert "difference" not in first
    assert (second["only_this"], second["only_first"]) == (4, 1)
    assert second["p"] == pytest.approx(2 * (1 + 5) / 2**5)  # 0 or 1 heads of 5 throws, on both sides
    assert second["difference"] == pytest.approx(3 / 9)
    rng = np.random.default_rng(0)
    steps = [(SECOND[n] == LABELS[n]) - (FIRST[n] == LABELS[n]) for n in range(9)]  # clip by clip: paired
    means = sorted(sum(steps[n] for n in rng.integers(9, size=9)) / 9 for _ in range(2000))
    assert second["difference_interval"] == pytest.approx(np.quantile(means, (0.025, 0.975)).tolist())
    assert compare([a, b]) == found
    backward = compare([b, a])["rows"][0]["cells"][1]
    assert (backward["difference"], backward["p"]) == pytest.approx((-second["difference"], second["p"]))


def test_classes_are_matched_by_name_and_several_encoders_are_columns(tmp_path: Path) -> None:
    a = write_eval(tmp_path / "a", {"trained": FIRST, "random": SECOND}, LABELS)
    turned = [1, 2, 0, -1]  # the class ids of the other eval: dog 2, eel 0, cat 1
    b = write_eval(
        tmp_path / "b", {"trained": [turned[c] for c in SECOND], "random": [turned[c] for c in FIRST]},
        [turned[c] for c in LABELS], classes=["eel", "cat", "dog"],
    )  # fmt: skip
    found = compare([a, b], ["trained", "random"])
    names = [f"runs/{folder} {encoder}" for folder in "ab" for encoder in ("trained", "random")]
    assert [column["name"] for column in found["columns"]] == names
    cells = found["rows"][0]["cells"]
    assert [cell.get("difference") for cell in cells] == [None, pytest.approx(1 / 3), pytest.approx(1 / 3), 0.0]
    assert (cells[3]["p"], cells[3]["difference_interval"]) == (1.0, [0.0, 0.0])
    text = markdown(found)
    assert "| knn | label | 55.6 ± 16.6 [0.0, 100.0] | 88.9 ± 10.5" in text
    assert "+33.3 [" in text
    assert "p = 0.3750" in text


def test_rows_that_one_eval_lacks_are_a_dash(tmp_path: Path) -> None:
    a = write_eval(tmp_path / "a", {"trained": FIRST}, LABELS)
    b = write_eval(tmp_path / "b", {"trained": SECOND}, LABELS)
    c = write_eval(tmp_path / "c", {"trained": SECOND}, LABELS, probe="linear")
    found = compare([a, b, c])
    assert [cell is None for cell in found["rows"][0]["cells"]] == [False, False, True]
    assert "| – |" in markdown(found)
    with pytest.raises(ConfigError, match=r"share no row .*runs/a: knn of label; runs/c: linear of label"):
        compare([a, c])


def test_a_clip_named_twice_is_two_clips(tmp_path: Path) -> None:
    paths = ["/data/v0.mp4"] * 2 + [f"/data/v{n}.mp4" for n in range(8)]
    a, b = (write_eval(tmp_path / name, {"trained": FIRST}, LABELS[:1] * 2 + LABELS[2:], paths=paths) for name in "ab")
    assert compare([a, b])["rows"][0]["cells"][1]["difference"] == 0.0


def test_rows_are_matched_by_variant(tmp_path: Path) -> None:
    few = {"shots": "10%", "seeds": [0.5, 0.7], "spread": 0.1, "num_train": 4}
    plain = [write_eval(tmp_path / name, {"trained": FIRST}, LABELS) for name in "ab"]
    (layer,) = (write_eval(tmp_path / "l", {"trained": FIRST}, LABELS, variant={"layer": 3}, variant_words="layer 3"),)
    with pytest.raises(ConfigError, match=r"share no row .*knn of label \(layer 3\)"):
        compare([plain[0], layer])
    a = write_eval(tmp_path / "fa", {"trained": FIRST}, LABELS, variant=few, variant_words="10%")
    b = write_eval(
        tmp_path / "fb", {"trained": SECOND}, LABELS, variant={**few, "accuracy": 0.75}, variant_words="10%"
    )  # fmt: skip
    found = compare([a, b])
    (row,) = found["rows"]
    assert row["variant"] == "10%"
    assert row["cells"][1]["difference"] == pytest.approx(0.75 - 5 / 9)
    assert not {"p", "difference_interval"} & row["cells"][1].keys()  # means of draws: nothing is paired
    text = markdown(found)
    assert "| knn, 10% | label | 55.6 ± 10.0 | 75.0 ± 10.0 | 9 |" in text
    assert "With few labels" in text
    write(found, tmp_path / "out")
    assert "75.0 ± 10.0 (+19.4)" in (tmp_path / "out" / "comparison.html").read_text()


def test_a_folder_that_moved_is_matched_by_relative_paths_and_says_so(tmp_path: Path) -> None:
    def moved(folder: str) -> list[str]:
        return [f"{folder}/{'xy'[n % 2]}/v{n}.mp4" for n in range(10)]

    a = write_eval(tmp_path / "a", {"trained": FIRST}, LABELS, paths=moved("/data/test"))
    b = write_eval(
        tmp_path / "b", {"trained": SECOND}, LABELS, order=[7, 3, 9, 1, 0, 2, 8, 6, 5, 4], paths=moved("/scratch/own")
    )  # fmt: skip
    found = compare([a, b])
    assert found["rows"][0]["cells"][1]["difference"] == pytest.approx(3 / 9)
    assert "runs/b have other absolute paths" in markdown(found)
    same = write_eval(tmp_path / "c", {"trained": SECOND}, LABELS, paths=moved("/data/test"))
    assert compare([a, same])["notes"] == []
    other = write_eval(tmp_path / "d", {"trained": SECOND}, LABELS, paths=[f"/data/test/z/v{n}.mp4" for n in range(10)])
    with pytest.raises(ConfigError, match=r"9 of 9 test clips"):
        compare([a, other])
    wrong = write_eval(tmp_path / "e", {"trained": FIRST}, [1, *LABELS[1:]], paths=moved("/scratch/own"))
    with pytest.raises(ConfigError, match=r"/data/test/x/v0.mp4 has 'label' 'cat'"):
        compare([a, wrong])


def test_relative_paths_start_at_the_deepest_common_folder() -> None:
    assert relative([("/a/b/c.mp4", 0.0, 1.0, 0), ("/a/b/d/e.mp4", 0.0, 1.0, 0)]) == [
        ("c.mp4", 0.0, 1.0, 0), ("d/e.mp4", 0.0, 1.0, 0)
    ]  # fmt: skip
    urls = [("https://host/a.mp4", 0.0, 1.0, 0)]
    assert relative(urls) == urls


def write_task(folder: Path, task: str, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({
        "task": task, "rows": rows, "model": f"runs/{folder.name}", "models": {},
    }))  # fmt: skip
    return folder


TASK_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "tracking": (
        {"encoder": "trained", "jf": 0.5, "low": 0.4, "high": 0.6, "j_mean": 0.45, "f_mean": 0.55, "sequences": 3,
         "objects": 7},
        "| J&F (%) | 50.0 [40.0, 60.0] | 50.0 [40.0, 60.0] | 3 sequences, 7 objects |",
    ),
    "dense": (
        {"encoder": "trained", "measure": "RMSE (m)", "score": 0.5, "low": 0.25, "high": 0.75, "second": 0.9,
         "num_test": 4},
        "| RMSE (m) | 0.500 [0.250, 0.750] | 0.500 [0.250, 0.750] | 4 images |",
    ),
    "retrieval": (
        {"encoder": "trained", "label": "object", "map": 0.3, "error": 0.02, "recall": {"1": 0.4}, "queries": 9,
         "gallery": 8},
        "| object: recall@1 (%) | 40.0 | 40.0 | 9 queries, 8 clips |",
    ),
    "physics": (
        {"predictor": "trained", "condition": "all", "over": "max", "accuracy": 0.7, "low": 0.6, "high": 0.8,
         "auroc": 0.65, "pairs": 20},
        "| all, max surprise: AUROC | 0.650 | 0.650 | 20 pairs |",
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", list(TASK_ROWS))
def test_other_tasks_stand_side_by_side_without_a_test(tmp_path: Path, task: str) -> None:
    row, line = TASK_ROWS[task]
    a, b = (write_task(tmp_path / name, task, [row]) for name in "ab")
    found = compare([a, b])
    assert line in markdown(found)
    assert "No test" in markdown(found)
    write(found, tmp_path / "out")
    assert "No test" in (tmp_path / "out" / "comparison.html").read_text()
    size = next(name for name in ("objects", "num_test", "queries", "pairs") if name in row)
    c = write_task(tmp_path / "c", task, [{**row, size: 99}])
    with pytest.raises(ConfigError, match=r"the test sets differ: .* 99 "):
        compare([a, c])
    probes = write_eval(tmp_path / "probes", {"trained": FIRST}, LABELS)
    with pytest.raises(ConfigError, match=rf"is an eval of the task {task}, others are not \({task}, probes\)"):
        compare([a, probes])


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    a = write_eval(tmp_path / "a", {"trained": FIRST}, LABELS)
    shorter = write_eval(tmp_path / "shorter", {"trained": FIRST[:8]}, LABELS[:8])
    moved = write_eval(tmp_path / "moved", {"trained": FIRST}, LABELS, span=(0.0, 2.0))
    other = write_eval(tmp_path / "other", {"trained": FIRST}, [1, *LABELS[1:]])
    old = write_eval(tmp_path / "old", {"trained": FIRST}, LABELS)
    (old / "predictions.npz").unlink()
    torn = write_eval(tmp_path / "torn", {"trained": FIRST}, LABELS)
    (torn / "predictions.npz").write_bytes(b"PK damaged")
    physics = write_eval(tmp_path / "physics", {"trained": FIRST}, LABELS)
    (physics / "results.json").write_text(json.dumps({"rows": [{"encoder": "trained", "accuracy": 0.5}]}))
    dense = write_eval(tmp_path / "dense", {"trained": FIRST}, LABELS)
    plain = json.loads((dense / "results.json").read_text())
    (dense / "results.json").write_text(json.dumps({k: v for k, v in plain.items() if k != "classes"}))
    for folders, message in (
        ([a, dense], "dense/results.json has no 'classes'"),
        ([a, shorter], r"test sets differ: 1 of 9 test clips with 'label' in .*/a are not in .*shorter, .*v8.mp4"),
        ([shorter, a], r"test sets differ: 1 of 9 test clips with 'label' in .*/a are not in .*shorter, .*v8.mp4"),
        ([a, moved], r"9 of 9 .*v0.mp4, 0 to 1 s"),
        ([a, other], r"v0.mp4 has 'label' 'cat' in .*/a and 'dog' in .*other"),
        ([a, a], "named twice"),
        ([a], "two columns at least"),
        ([a, tmp_path], "has no results.json"),
        ([a, old], r"has no predictions.npz: run that eval again"),
        ([a, torn], r"predictions.npz cannot be read"),
        ([a, physics], "holds no rows of probes"),
    ):
        with pytest.raises(ConfigError, match=message):
            compare(folders)
    tracking = write_task(tmp_path / "tracking", "tracking", [])
    with pytest.raises(ConfigError, match=r"holds no rows"):
        compare([tracking, tracking])
    with pytest.raises(ConfigError, match=r"no encoder 'trainde', did you mean 'trained'"):
        compare([a], ["trainde"])


def test_command_line_from_eval_to_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for split, seed in (("train", 0), ("test", 1)):
        write_clips(tmp_path / f"{split}.npz", clips=16, seed=seed)
    data = ["--train", "train.npz", "--test", "test.npz", "--device", "cpu", "--probe", "knn", "--baselines", "pixels"]
    for size in ("32", "48"):
        weights = tmp_path / f"{size}.safetensors"
        write_weights(weights, int(size))
        assert main([f"timm:test_vit@{weights}?frames=2&size={size}", *data, "--out", size]) == 0
    capsys.readouterr()
    assert main(["compare", "32", "48/results.json", "--out", "both"]) == 0
    table = capsys.readouterr().out
    assert (tmp_path / "both" / "comparison.md").read_text() == table
    stored = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert stored["rows"][0]["cells"][1]["num_test"] == 16
    text = (tmp_path / "both" / "comparison.html").read_text()
    assert "Evals compared" in text
    assert "src=" not in text
    for call in (main, lambda words: jepa(["eval", *words])):  # options may stand between the folders
        assert call(["compare", "--out", "again", "32", "--encoders", "trained", "48"]) == 0
        assert capsys.readouterr().out == table
    assert main(["compare", "32", "--encoders", "trained,pixels"]) == 0
    assert "pixels |" in capsys.readouterr().out
    for arguments, message in (
        (["compare", "32", "nowhere"], "nowhere has no results.json"),
        (["compare", "32"], "two columns at least"),
        (["compare", "32", "48", "--probe", "knn"], "--probe has no meaning for jepa eval compare"),
        (["compare", "32", "48", "--out", "train.npz/x"], "the comparison cannot be written"),
        (["runs/x", "48"], "unexpected '48'"),
        (["runs/x", "--encoders", "trained"], "--encoders"),
    ):
        assert message in error_of(["eval", *arguments], capsys)
        assert main(arguments) == 2
        capsys.readouterr()


def write_weights(path: Path, seed: int) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    save_file(timm.create_model("test_vit").state_dict(), path)
