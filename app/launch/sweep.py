"""Sweeps: what ``sweep.yaml`` says becomes one set of overrides, and one folder name, per run.

A mapping of dotted config keys to lists is a grid: every combination is a run. A list of mappings names the runs one
by one.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jepa.config import ConfigError

_LONGEST = 80  # characters of a folder name


def read_entries(path: str) -> list[dict[str, Any]]:
    """The overrides of every run, dotted key to value. Raises ``ConfigError`` naming the file and the entry."""
    try:
        data = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError(f"sweep file {path} does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"sweep file {path} cannot be read: {error}") from None
    if isinstance(data, Mapping) and data:
        for key, values in data.items():
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{path}: {key!r} must have a list of values, as in [1, 2], not {values!r}")
        keys = [str(key) for key in data]
        entries = [dict(zip(keys, values, strict=True)) for values in itertools.product(*data.values())]
    elif isinstance(data, list) and data and all(isinstance(entry, Mapping) and entry for entry in data):
        entries = [{str(key): value for key, value in entry.items()} for entry in data]
    else:
        raise ConfigError(f"{path} must map config keys to lists (a grid), or be a list of mappings (a run each)")
    _check(path, entries)
    return entries


def _check(path: str, entries: Sequence[Mapping[str, Any]]) -> None:
    seen: dict[str, int] = {}
    for number, entry in enumerate(entries):
        if "run_dir" in entry:
            raise ConfigError(f"{path}: entry {number} sets run_dir, but runs get folders in the config's run_dir")
        first = seen.setdefault(json.dumps(entry, sort_keys=True, default=str), number)
        if first != number:
            raise ConfigError(f"{path}: entries {first} and {number} are the same: {entry}")


def as_overrides(entry: Mapping[str, Any]) -> list[str]:
    """The words ``key=value`` that say the same on a command line."""
    return [f"{key}={json.dumps(value, default=str)}" for key, value in entry.items()]  # JSON is YAML, too


def name_runs(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """A folder name per run: its number, and its keys (as much of their ends as tells them apart) with their values.

    >>> name_runs([{"optim.lr.peak": 0.001, "seed": 0}, {"optim.lr.peak": 0.01, "seed": 0}])
    ['000_peak-0.001_seed-0', '001_peak-0.01_seed-0']
    """
    short = short_keys({key: None for entry in entries for key in entry})
    digits = max(3, len(str(len(entries) - 1)))
    names = []
    for number, entry in enumerate(entries):
        words = [f"{short[key]}-{_word(value)}" for key, value in entry.items()]
        names.append("_".join([f"{number:0{digits}}", *words])[:_LONGEST].rstrip("-_."))
    return names


def short_keys(keys: Mapping[str, Any]) -> dict[str, str]:
    """Dotted keys to the shortest ends that still tell them apart."""
    short = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        short[key] = next(
            (end for end in ends if not any(other != key and f".{other}".endswith(f".{end}") for other in keys)), key
        )
    return short


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-.") or "empty"
