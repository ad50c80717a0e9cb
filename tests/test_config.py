"""Typed configs: casting by declared type, and errors that name the key and the remedy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from jepa.config import ConfigError, apply_overrides, differences, from_dict, load_yaml, merge, to_dict
from jepa.train import LoopConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Red:
    kind: Literal["red"] = "red"
    depth: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Blue:
    kind: Literal["blue"] = "blue"
    rate: float = 0.5

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate must be positive, not {self.rate}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    steps: int
    lr: float = 1e-3
    flip: bool = False
    scale: tuple[float, float] = (0.3, 1.0)
    names: list[str] = field(default_factory=list)
    mode: Literal["a", "b"] = "a"
    limit: int | None = None
    parts: list[Red | Blue] = field(default_factory=list)


def test_values_are_cast_by_declared_type():
    made = from_dict(Whole, {"steps": 10.0, "lr": "1e-4", "scale": [1, 2], "parts": [{"kind": "blue", "rate": 1}]})
    assert made == Whole(steps=10, lr=1e-4, scale=(1.0, 2.0), parts=[Blue(rate=1.0)])
    assert isinstance(made.steps, int)
    assert from_dict(Whole, to_dict(made)) == made


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"steps": 1, "lrr": 1}, "unknown config key 'lrr', did you mean 'lr'"),
        ({}, "config key 'steps' is missing"),
        ({"steps": 1.5}, "config key 'steps' must be a whole number, not 1.5"),
        ({"steps": True}, "config key 'steps' must be a whole number, not True"),
        ({"steps": 1, "flip": 1}, "config key 'flip' must be true or false"),
        ({"steps": 1, "lr": "fast"}, "config key 'lr' must be a number, not 'fast'"),
        ({"steps": 1, "scale": [1]}, "config key 'scale' must have 2 values, not 1"),
        ({"steps": 1, "mode": "c"}, "config key 'mode' must be one of 'a', 'b', not 'c'"),
        ({"steps": 1, "limit": "many"}, "config key 'limit' must be a whole number"),
        ({"steps": 1, "parts": [{"kind": "bleu"}]}, "config key 'parts.0.kind' is 'bleu', did you mean 'blue'"),
        ({"steps": 1, "parts": [{"kind": "blue", "rate": 0}]}, "config key 'parts.0': rate must be positive"),
        ({"steps": 1, "names": "one"}, "config key 'names' must be a list"),
    ],
)
def test_mistakes_name_the_key(data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Whole, data)


def test_off_is_a_word_where_one_is_asked_for(tmp_path):
    """YAML reads it as false."""
    (tmp_path / "c.yaml").write_text("{steps: 1, batch_size: 1, progress: off}\n")
    assert from_dict(LoopConfig, load_yaml(tmp_path / "c.yaml")).progress == "off"
    with pytest.raises(ConfigError, match="progress' must be one of 'auto', 'bar', 'lines', 'off', not True"):
        from_dict(LoopConfig, {"steps": 1, "batch_size": 1, "progress": True})


def test_overrides_reach_into_mappings_and_lists():
    data = {"a": {"b": 1}, "c": [{"d": 1}, {"d": 2}]}
    assert apply_overrides(data, ["a.b=2", "c.1.d=[3, 4]", "e.f=1e-4"]) == {
        "a": {"b": 2}, "c": [{"d": 1}, {"d": [3, 4]}], "e": {"f": "1e-4"},
    }  # fmt: skip
    assert data == {"a": {"b": 1}, "c": [{"d": 1}, {"d": 2}]}
    for wrong, message in (("a.b", "must look like"), ("c.7.d=1", "positions 0..1"), ("a.b.c=1", "plain value")):
        with pytest.raises(ConfigError, match=message):
            apply_overrides(data, [wrong])


def test_base_is_merged_and_a_new_kind_replaces_the_old_keys(tmp_path):
    (tmp_path / "base.yaml").write_text("x: {kind: red, depth: 3}\ny: {p: 1, q: 2}\nz: 1\n")
    (tmp_path / "own.yaml").write_text("base: base.yaml\nx: {kind: blue, rate: 2}\ny: {q: 3}\n")
    assert load_yaml(tmp_path / "own.yaml") == {"x": {"kind": "blue", "rate": 2}, "y": {"p": 1, "q": 3}, "z": 1}
    assert merge({"x": {"kind": "red", "depth": 3}}, {"x": {"depth": 4}}) == {"x": {"kind": "red", "depth": 4}}


def test_files_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    (tmp_path / "loop.yaml").write_text("base: loop.yaml\n")
    cases = {"none": "does not exist", "list": "must hold a mapping", "broken": "not valid YAML", "loop": "leads back"}
    for name, message in cases.items():
        with pytest.raises(ConfigError, match=rf"{name}\.yaml.*{message}"):
            load_yaml(tmp_path / f"{name}.yaml")


def test_differences_are_listed_leaf_by_leaf():
    old, new = {"a": {"b": 1, "c": 2}, "l": [1, 2]}, {"a": {"b": 1, "c": 3}, "l": [1, 4]}
    assert differences(old, new) == ["a.c: 2 -> 3", "l.1: 2 -> 4"]
    assert differences(old, old) == []
