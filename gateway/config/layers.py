"""Settings from several layers, of which a later one wins: a file, the environment, the command line.

`merge` keeps where each value came from, so that `fairlane config show` can say it, and answers a key that it does not
know with the one that was probably meant. `gateway.storage.config_file` reads the layers.
"""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from pydantic import ValidationError

from gateway.config.fields import fields
from gateway.config.settings import Settings


class ConfigError(ValueError):
    """What is wrong with the configuration, a line for each fault, each with its remedy."""


class Layer(NamedTuple):
    """
    source  where the values come from, in words
    values  tables inside of tables, as in TOML
    """

    source: str
    values: dict[str, Any]


Sources = dict[str, str]  # dotted key -> where its value came from


def merge(layers: Iterable[Layer]) -> tuple[Settings, Sources]:
    """Settings, and the source of each value that is not a default. Raises ConfigError."""
    merged: dict[str, Any] = {}
    sources: Sources = {}
    for layer in layers:
        sources.update(dict.fromkeys(_dotted(layer.values), layer.source))
        _update(merged, layer.values)
    try:
        return Settings(**merged), sources
    except ValidationError as error:
        raise ConfigError("\n".join(_faults(error, sources))) from error


def assigned(assignments: Iterable[str]) -> dict[str, Any]:
    """Of KEY=VALUE, each value as TOML reads it, so that lists and booleans can be given; a bare word is a string."""
    flags = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: write KEY=VALUE")
        flags[key.strip()] = _value(value.strip())
    return flags


def nested(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Of dotted keys, tables inside of tables. Raises ConfigError."""
    tables: dict[str, Any] = {}
    for key, value in flags.items():
        *parents, name = key.split(".")
        table = tables
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{parent} is a table: set {parent}.{name} alone, or the table")
        table[name] = value
    return tables


def suggestion(name: str, known: Iterable[str]) -> str:
    """The known name that was probably meant, to be put behind the fault."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ": see `fairlane config show` for what there is"


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _faults(error: ValidationError, sources: Sources) -> Iterator[str]:
    keys = [field.key for field in fields()]
    known = {*keys, *(key.partition(".")[0] for key in keys)}
    for fault in error.errors():
        key = ".".join(map(str, fault["loc"]))
        source = next((sources[each] for each in sources if each == key or each.startswith(f"{key}.")), None)
        where = f" ({source})" if source else ""
        if fault["type"] == "extra_forbidden":
            yield f"unknown key {key}{where}{suggestion(key, known)}"
        else:
            message = fault["msg"].removeprefix("Value error, ")
            yield f"{key}{where}: {message}" if key else message


def _dotted(layer: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in layer.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _update(merged: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            _update(merged[key], value)
        else:
            merged[key] = value
