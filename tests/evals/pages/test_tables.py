"""Tables and curves of probes: plain rows, other measures, few labels and layers, each where it belongs."""

import base64
import re
from typing import Any

import numpy as np
import pytest

from evals.pages import drawing, sections, tables, variant_sections
from evals.settings import Row, variant_words

NAMES = ("trained", "random", "pixels")


def made_row(encoder: str, accuracy: float, **changes: Any) -> Row:
    """A row of 200 test clips in four classes."""
    plain = Row(
        probe="linear", label="object", encoder=encoder, accuracy=accuracy, error=0.02,
        interval=[accuracy - 0.04, accuracy + 0.04], chance=0.25, held_out=accuracy, chosen={"lr": 0.1},
        heads=[{"setting": {"lr": 0.1}, "accuracy": accuracy, "loss": 1.0}], heads_on_test=[accuracy],
        max_on_test=accuracy, per_class={}, confusion={}, num_train=400, num_test=200, num_undecodable=0,
        num_classes=4, seconds=1.0,
    )  # fmt: skip
    return plain._replace(**changes)


def made_rows() -> list[Row]:
    """Three encoders, each also with 5 of each class and with 10 %, two of them also block by block."""
    rows = [made_row(name, 0.9 - 0.2 * place) for place, name in enumerate(NAMES)]
    for place, name in enumerate(NAMES):
        for shots, count, share in (("10%", 40, 0.7), ("5", 20, 0.6)):
            draws = [share - 0.1 * place + step for step in (-0.02, 0.0, 0.02)]
            rows.append(made_row(
                name, float(np.mean(draws)), shots=shots, num_train=count, seeds=draws, spread=float(np.std(draws)),
            ))  # fmt: skip
    for place, name in enumerate(NAMES[:2]):
        rows += [made_row(name, 0.4 + 0.1 * layer - 0.05 * place, layer=layer) for layer in (0, 1)]
    return rows


def test_the_main_table_shows_plain_rows_only() -> None:
    text = tables.table(made_rows()).splitlines()
    assert text[0] == "| probe | label | trained | random | pixels | chance | classes | train clips | test clips |"
    assert text[2] == (
        "| linear | object | 90.0 ± 2.0 [86.0, 94.0] | 70.0 ± 2.0 [66.0, 74.0] | 50.0 ± 2.0 [46.0, 54.0] | 25.0 | 4 | "
        "400 | 200 |"
    )
    assert text[3] == ""
    assert tables.table([made_row("trained", 0.5)]).count("\n") == 2  # nothing else below it


def test_few_labels_and_layers_have_tables_in_order() -> None:
    rows = [row._asdict() for row in made_rows()]
    found = tables.label_table(rows)
    assert found.head == ["probe", "label", "labels used", "train clips", "seeds", *NAMES, "chance"]
    assert [line[2:5] for line in found.lines] == [["5 per class", "20", "3"], ["10%", "40", "3"], ["all", "400", "1"]]
    assert found.lines[0][5] == f"60.0 ± {100 * np.std([-0.02, 0, 0.02]):.1f}"
    assert found.lines[2][5:8] == ["90.0", "70.0", "50.0"]  # one draw has no spread
    layered = tables.layer_table(rows)
    assert layered.head == ["probe", "label", "block", "trained", "random", "chance"]  # pixels have no blocks
    assert [line[2:5] for line in layered.lines] == [
        ["0", "40.0 ± 2.0", "35.0 ± 2.0"], ["1", "50.0 ± 2.0", "45.0 ± 2.0"], ["output", "90.0 ± 2.0", "70.0 ± 2.0"],
    ]  # fmt: skip
    assert layered.best == [3, 3, 3]
    assert tables.label_table([made_row("trained", 0.5)._asdict()]).lines == []


def test_other_measures_are_shown_where_rows_have_them() -> None:
    rows = [made_row("trained", 0.9, top5=0.99, recall_at_5=0.97), made_row("random", 0.5, top5=0.8)]
    text = tables.table(rows)
    assert "| linear | object | top-5 accuracy | 99.0 | 80.0 |" in text
    assert "| linear | object | mean-class recall at 5 | 97.0 | – |" in text
    assert "top-5" not in tables.table(made_rows())


def test_sections_draw_a_line_per_encoder() -> None:
    results = {"rows": [row._asdict() for row in made_rows()]}
    for section, lines in ((variant_sections.label_section(results), 3), (variant_sections.layer_section(results), 2)):
        (uri,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', section)
        svg = base64.b64decode(uri).decode()
        drawn = [colour for colour in drawing.COLOURS[:3] if f"stroke: {colour}" in svg]
        assert len(drawn) == lines
    plain = {"rows": [made_row("trained", 0.5)._asdict()]}
    assert variant_sections.label_section(plain) == variant_sections.layer_section(plain) == ""
    results["config"] = {"probes": [{"kind": "linear", "holdout": 0.2}]}
    assert sections.probe_section(results).count('class="bar"') == 3  # variants are no bars


def test_labels_of_a_logarithmic_axis_have_room() -> None:
    assert variant_sections.spaced([100, 110, 10, 1000]) == [10, 110, 1000]
    assert variant_sections.spaced([7]) == [7]


@pytest.mark.parametrize(
    ("shots", "layer", "words"),
    [("all", None, ""), ("10%", None, "10%"), ("5", None, "5 per class"), ("all", 3, "layer 3")],
)
def test_a_variant_reads_the_same_from_a_row_and_from_json(shots: str, layer: int | None, words: str) -> None:
    assert variant_words(shots, layer) == made_row("trained", 0.5, shots=shots, layer=layer).variant == words


def test_shares_that_are_not_known_are_a_dash() -> None:
    assert [tables.share(value) for value in (0.123, None, float("nan"))] == ["12.3", "–", "–"]
