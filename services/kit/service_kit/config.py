"""Settings: a frozen dataclass, read once at the entry point from a flat TOML file."""

import dataclasses
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigError(Exception):
    """A setting is unknown, missing or of the wrong type; the message names it and the file."""


def load(cls: type[T], path: Path) -> T:
    """An instance of the dataclass cls from the file at path.

    Field types: str, int, float, bool, Path, tuple[str, ...], and any of them or None. Raises ConfigError.
    """
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise ConfigError(f"{path}: unknown setting {name!r}")
    hints = typing.get_type_hints(cls)
    settings = {}
    for name, field in fields.items():
        if name in values:
            settings[name] = _convert(hints[name], values[name], f"{path}: setting {name!r}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{path}: setting {name!r} is missing")
    return cls(**settings)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if typing.get_origin(hint) is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} must be {getattr(hint, '__name__', hint)}, not {type(value).__name__}")
    return value
