"""jepa similar: the right clips in the right order, from a file, a row or a source; clear errors."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_features import Made, write_run
from support import error_of

from app.cli import main
from app.thumbnails import Clip
from app.view_page import clock
from jepa.encode import encode
from jepa.features import Features, open_features


def found(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    capsys.readouterr()
    assert main(["similar", *words, "--json", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out)


def cosines(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """``[K]``: the largest cosine to any query, in float64."""
    v, q = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors.astype(float), queries.astype(float)))
    return (v @ q.T).max(axis=1)


def test_a_row_finds_the_others_by_cosine(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = open_features(made.table).vectors
    answer = found(capsys, made.table, "#3", "-k", "5")
    scores = cosines(vectors, vectors[[3]])
    scores[3] = -2
    expected = np.argsort(-scores)[:5]
    assert [result["row"] for result in answer["results"]] == expected.tolist()
    np.testing.assert_allclose([result["similarity"] for result in answer["results"]], scores[expected], atol=2e-6)
    assert answer["query"]["rows"] == [3]
    assert (answer["method"], answer["searched"], answer["skipped"]) == ("exact", 8, 0)
    first = answer["results"][0]
    assert first["source"] == made.videos[first["row"] // 2]
    assert len(found(capsys, made.table, "#3", "-k", "50")["results"]) == 7
    others = found(capsys, made.table, "#3", "-k", "50", "--other-files")["results"]
    assert sorted(result["row"] for result in others) == [0, 1, 4, 5, 6, 7]


def test_a_source_of_the_table_is_not_encoded(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = open_features(made.table).vectors
    scores = cosines(vectors, vectors[2:4])
    scores[2:4] = -2
    answer = found(capsys, made.table, made.videos[1], "-k", "3", "--model", "/nowhere")
    assert [result["row"] for result in answer["results"]] == np.argsort(-scores)[:3].tolist()
    again = found(capsys, made.table, os.path.relpath(made.videos[1]), "-k", "3")  # the same file by another name
    assert again["results"] == answer["results"]


def test_a_new_file_is_encoded_as_the_table_was(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copy(made.videos[2], tmp_path / "new.mp4")
    table = open_features(made.table)
    answer = found(capsys, made.table, str(copy), "-k", "8")
    scores = cosines(table.vectors, encode(str(copy), made.run, segments=2, device="cpu").pooled().numpy())
    rows = [result["row"] for result in answer["results"]]
    assert set(rows[:2]) == {4, 5}  # the clips of the video that it is a copy of, both with similarity 1
    assert rows[2:] == np.argsort(-scores)[2:].tolist()
    np.testing.assert_allclose([result["similarity"] for result in answer["results"]], np.sort(scores)[::-1], atol=2e-6)
    assert answer["query"]["rows"] == []
    same = found(capsys, made.table, str(copy), "-k", "8", "--model", made.run)
    assert same["results"] == answer["results"]


def test_windows_and_preprocessing_are_those_of_the_table(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, new = tmp_path / "windows.parquet", str(shutil.copy(made.videos[2], tmp_path / "new.mp4"))
    how = {"overlap": 0.5, "crop_size": 48, "layers": [0, -1], "device": "cpu"}
    encode(made.videos, made.run, pool="mean", **how).save(path)  # type: ignore[arg-type]
    table, query = open_features(path), encode(new, made.run, **how).pooled().numpy()  # type: ignore[arg-type]
    assert query.shape == (9, 48)  # 10 tubelets in windows of 2 that share one; two layers
    answer = found(capsys, str(path), new, "-k", "5")
    scores = cosines(table.vectors, query)
    assert len(answer["query"]["clips"]) == 9
    np.testing.assert_allclose([r["similarity"] for r in answer["results"]], np.sort(scores)[::-1][:5], atol=2e-6)
    assert {r["source"] for r in answer["results"]} == {made.videos[2]}


def test_the_recorded_weights_encode_the_query(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", 24, seed=0, context_seed=3)  # the context encoder differs from the target's
    new, tables = str(shutil.copy(made.videos[2], tmp_path / "new.mp4")), []
    for weights in ("encoder", "target_encoder"):
        tables.append(str(tmp_path / f"{weights}.parquet"))
        words = [made.videos[2], "-o", tables[-1], "--model", run, "--weights", weights, "--device", "cpu"]
        assert main(["encode", *words]) == 0
        (result,) = found(capsys, tables[-1], new)["results"]
        assert result["similarity"] == pytest.approx(1, abs=1e-5)
    assert cosines(*(open_features(table).vectors for table in tables))[0] < 0.99


def test_attentive_tables_say_what_to_do(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, new = tmp_path / "attentive.parquet", str(shutil.copy(made.videos[0], tmp_path / "new.mp4"))
    dataclasses.replace(Features.load(made.table), pool="attentive").save(path)
    assert "was pooled by an attentive probe" in error_of(["similar", str(path), new], capsys)
    assert len(found(capsys, str(path), made.videos[0])["results"]) == 6


def test_table_and_page_for_people(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "out" / "similar.html"
    assert main(["similar", made.table, "#0", "-k", "2", "--html", str(page), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"query: {made.videos[0]}, 00:00.4-00:00.8")
    assert lines[1].split() == ["rank", "similarity", "row", "time", "source"]
    assert len(lines) == 5
    assert lines[-1] == "exact search among 8 clips by cosine"
    text = page.read_text()
    assert text.count('<figure class="thumb"') == text.count('src="data:image/jpeg;base64,') == 3
    assert "http" not in text.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [((0, 59.96), "00:00.0-01:00.0"), ((62.04, 3599.9), "01:02.0-59:59.9"), ((3600, 36000), "1:00:00.0-10:00:00.0")],
)
def test_clock(seconds: tuple[float, float], words: str) -> None:
    assert clock(Clip("film.mp4", *seconds)) == words


def test_mistakes(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has the rows #0 to #7, not #8" in error_of(["similar", made.table, "#8"], capsys)
    assert "has the rows #0 to #7, not #x" in error_of(["similar", made.table, "#x"], capsys)
    assert "none.mp4 is neither a file" in error_of(["similar", made.table, "none.mp4"], capsys)
    assert "-k must be at least 1, not 0" in error_of(["similar", made.table, "#1", "-k", "0"], capsys)
    assert "does not exist" in error_of(["similar", "none.parquet", "#1"], capsys)
    new = str(shutil.copy(made.videos[0], tmp_path / "new.mp4"))
    other = write_run(tmp_path / "wide", 36, seed=1)
    message = error_of(["similar", made.table, new, "--model", other, "--device", "cpu"], capsys)
    assert "new.mp4 was encoded to 36 numbers by" in message
    assert "features.parquet has 24" in message
    shutil.move(made.run, made.run + "-moved")
    try:
        message = error_of(["similar", made.table, new, "--device", "cpu"], capsys)
        assert f"features.parquet was made with the model {made.run}, which cannot be loaded" in message
        assert "give it with --model" in message
    finally:
        shutil.move(made.run + "-moved", made.run)
