"""Settings from where they are kept: one TOML file, the environment over it, the command line over both.

`load` keeps where each value came from, so that `fairlane config show` can say it, and answers what it does not
know with what was probably meant.
"""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import EnvSettingsSource

from gateway.config.settings import ENV_PREFIX, Settings, Unit


class ConfigError(ValueError):
    """What is wrong with the configuration, a line for each fault, each with its remedy."""


Sources = dict[str, str]  # dotted key -> where its value came from


def load(
    file: Path | None = None, environ: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None
) -> tuple[Settings, Sources]:
    """Settings, and the source of each value that is not a default. Raises ConfigError."""
    layers: list[tuple[str, dict[str, Any]]] = []
    if file is not None:
        layers.append((str(file), _read_file(file)))
    layers.append(("environment", _read_environment(environ or {})))
    layers.append(("command line", _nested(flags or {})))

    merged: dict[str, Any] = {}
    sources: Sources = {}
    for source, layer in layers:
        sources.update(dict.fromkeys(_dotted(layer), source))
        _update(merged, layer)
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


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def fields(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every setting: its dotted key, its unit, its description."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            unit = next((str(item) for item in field.metadata if isinstance(item, Unit)), "")
            yield f"{prefix}{name}", unit, field.description or ""


def _read_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    ours = {name: value for name, value in environ.items() if name.startswith(ENV_PREFIX)}
    known = {ENV_PREFIX + key.upper().replace(".", "__") for key, _, _ in fields()} | {ENV_PREFIX + "CONFIG"}
    if unknown := [f"unknown variable {name}{_suggestion(name, known)}" for name in ours if name not in known]:
        raise ConfigError("\n".join(unknown))
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): value for name, value in ours.items()}
    try:
        return source()
    except ValueError as error:
        raise ConfigError(f"environment: {error}: lists are written as JSON") from error


def _faults(error: ValidationError, sources: Sources) -> Iterator[str]:
    known = {key for key, _, _ in fields()} | {key.partition(".")[0] for key, _, _ in fields()}
    for fault in error.errors():
        key = ".".join(map(str, fault["loc"]))
        source = next((sources[each] for each in sources if each == key or each.startswith(f"{key}.")), None)
        where = f" ({source})" if source else ""
        if fault["type"] == "extra_forbidden":
            yield f"unknown key {key}{where}{_suggestion(key, known)}"
        else:
            message = fault["msg"].removeprefix("Value error, ")
            yield f"{key}{where}: {message}" if key else message


def _suggestion(name: str, known: set[str]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ": see `fairlane config show` for what there is"


def _nested(flags: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flags.items():
        *parents, name = key.split(".")
        table = nested
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{parent} is a table: set {parent}.{name} alone, or the table")
        table[name] = value
    return nested


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
