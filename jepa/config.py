"""YAML -> frozen, typed dataclasses. An unknown key, a wrong type or a missing value is an error that names it.

A config file may name another one with ``base: other.yaml`` (relative to itself); its own keys win. Every part of
the toolkit owns the dataclass that configures it; this file only knows how to fill a dataclass from plain data.
Where a field's type is a union of dataclasses, each of them has a field ``kind: Literal["..."]`` that tells them apart.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

T = TypeVar("T")


class ConfigError(ValueError):
    """A user's configuration is wrong; the message says which key of which file and what to do."""


def load_yaml(path: str | Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML mapping, following ``base:``. Raises ``ConfigError`` naming the file."""
    path = Path(path)
    if path.resolve() in _seen:
        raise ConfigError(f"{path}: 'base' leads back to the file itself")
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values, not {type(data).__name__}")
    base = data.pop("base", None)
    if base is None:
        return data
    return merge(load_yaml(path.parent / str(base), (*_seen, path.resolve())), data)


def merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``update`` laid over it, mappings merged key by key, everything else replaced."""
    merged = dict(base)
    for key, value in update.items():
        old = merged.get(key)
        merged[key] = value
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            kind = old.get("kind")
            if value.get("kind", kind) == kind:  # keys of one kind of part make no sense under another
                merged[key] = merge(old, value)
    return merged


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay command-line overrides ``a.b.c=value`` (value read as YAML) over plain data; list items go by number."""
    result: Any = dict(data)
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise ConfigError(f"override {override!r} must look like key.sub_key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from None
        result = _set(result, key.split("."), value, override)
    return result


def _set(node: Any, keys: list[str], value: Any, override: str) -> Any:
    if not keys:
        return value
    head, *rest = keys
    if isinstance(node, list):
        if not head.isdigit() or int(head) >= len(node):
            raise ConfigError(f"override {override!r}: {head!r} is not one of the list's positions 0..{len(node) - 1}")
        return [_set(item, rest, value, override) if i == int(head) else item for i, item in enumerate(node)]
    if node is None:
        node = {}
    if not isinstance(node, Mapping):
        raise ConfigError(f"override {override!r}: {head!r} lies below a plain value")
    return {**node, head: _set(node.get(head), rest, value, override)}


def from_dict(kind: type[T], data: Any, where: str = "") -> T:
    """Fill dataclass ``kind`` from plain data, casting by declared type.

    Raises ``ConfigError`` for an unknown key (with a suggestion), a missing key, or a value of the wrong type.
    """
    return _cast(kind, data, where)


def to_dict(config: Any) -> Any:
    """Plain data (dicts, lists, numbers, strings) for YAML, JSON and checkpoints; the inverse of ``from_dict``."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(k): to_dict(v) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(v) for v in config]
    if isinstance(config, Path):
        return str(config)
    return config


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Human-readable lines ``key: old -> new`` for every leaf in which two plain configs differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines: list[str] = []
        for key in sorted({*old, *new}, key=str):
            lines += differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
        return lines
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{prefix}.{i}")]
    return [] if old == new else [f"{prefix}: {old!r} -> {new!r}"]


def suggest(name: str, known: typing.Iterable[str]) -> str:
    """``", did you mean 'x'?"`` for the nearest known name, or a list of what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _describe(where: str) -> str:
    return f"config key '{where}'" if where else "config"


def _cast(kind: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _cast_dataclass(kind, value, where)
    if origin in (Union, types.UnionType):
        return _cast_union(args, value, where)
    if origin is Literal:
        word = {False: "off", True: "on"}.get(value) if isinstance(value, bool) else None  # as YAML reads off and on
        value = word if word in args else value
        if value not in args:
            raise ConfigError(f"{_describe(where)} must be one of {', '.join(map(repr, args))}, not {value!r}")
        return value
    if origin in (list, tuple, Sequence):
        return _cast_sequence(origin, args, value, where)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{_describe(where)} must be a mapping, not {value!r}")
        return {_cast(args[0], k, where): _cast(args[1], v, f"{where}.{k}") for k, v in value.items()}
    return _cast_scalar(kind, value, where)


def _cast_sequence(origin: Any, args: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{_describe(where)} must be a list, not {value!r}")
    if origin is tuple and not (len(args) == 2 and args[1] is ...):
        if len(value) != len(args):
            raise ConfigError(f"{_describe(where)} must have {len(args)} values, not {len(value)}: {value!r}")
        return tuple(_cast(kind, item, f"{where}.{i}") for i, (kind, item) in enumerate(zip(args, value, strict=True)))
    items = [_cast(args[0], item, f"{where}.{i}") for i, item in enumerate(value)]
    return tuple(items) if origin is tuple else items


def _cast_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    options = [arg for arg in args if arg is not type(None)]
    classes: list[Any] = [arg for arg in options if dataclasses.is_dataclass(arg)]
    if classes and dataclasses.is_dataclass(type(value)):
        return value
    if classes and isinstance(value, Mapping):
        if len(classes) == 1:
            return _cast(classes[0], value, where)
        kinds = {typing.get_args(_hints(cls)["kind"])[0]: cls for cls in classes}
        name = value.get("kind")
        if name not in kinds:
            raise ConfigError(f"{_describe(where + '.kind')} is {name!r}{suggest(str(name), kinds)}")
        return _cast(kinds[name], value, where)
    errors = []
    for option in options:
        try:
            return _cast(option, value, where)
        except ConfigError as error:
            errors.append(str(error))
    raise ConfigError(errors[0] if errors else f"{_describe(where)} must not be {value!r}")


def _cast_scalar(kind: Any, value: Any, where: str) -> Any:
    def refuse() -> ConfigError:
        wanted = _NAMES.get(kind, kind)
        return ConfigError(f"{_describe(where)} must be {wanted}, not {value!r} ({type(value).__name__})")

    if kind is bool:
        if not isinstance(value, bool):
            raise refuse()
        return value
    if kind is float:  # PyYAML reads 1e-4 as a string
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise refuse()
        try:
            return float(value)
        except ValueError:
            raise refuse() from None
    if kind is int:
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, str) and value.strip().lstrip("+-").replace("_", "").isdigit():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise refuse()
        return value
    if kind is str:
        if not isinstance(value, (str, Path)):
            raise refuse()
        return str(value)
    if kind is Path:
        if not isinstance(value, (str, Path)):
            raise refuse()
        return Path(value)
    if not isinstance(value, kind):
        raise refuse()
    return value


_NAMES = {bool: "true or false", float: "a number", int: "a whole number", str: "text", Path: "a path"}


def _cast_dataclass(kind: Any, value: Any, where: str) -> Any:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{_describe(where)} must be a mapping with keys, not {value!r}")
    hints: dict[str, Any] = _hints(kind)  # type: ignore[arg-type]
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    unknown = [str(key) for key in value if key not in fields]
    if unknown:
        path = f"{where}.{unknown[0]}" if where else unknown[0]
        raise ConfigError(f"unknown config key '{path}'{suggest(unknown[0], fields)}")
    missing = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and name not in value
    ]
    if missing:
        raise ConfigError(f"config key '{where + '.' if where else ''}{missing[0]}' is missing")
    filled = {key: _cast(hints[key], item, f"{where}.{key}" if where else key) for key, item in value.items()}
    try:
        return kind(**filled)
    except ConfigError:
        raise
    except ValueError as error:  # __post_init__ checks speak of the field; add where it stands
        raise ConfigError(f"{_describe(where)}: {error}") from None
