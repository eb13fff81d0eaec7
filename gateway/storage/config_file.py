"""Settings from where they are kept: one TOML file, the environment over it, the command line over both."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_settings import EnvSettingsSource

from gateway.config.fields import fields
from gateway.config.layers import ConfigError, Layer, Sources, merge, nested, suggestion
from gateway.config.settings import ENV_PREFIX, Settings


def load(
    file: Path | None = None, environ: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None
) -> tuple[Settings, Sources]:
    """Settings, and the source of each value that is not a default; `flags` have dotted keys. Raises ConfigError."""
    layers = [] if file is None else [Layer(str(file), _read_file(file))]
    layers.append(Layer("environment", _read_environment(environ or {})))
    layers.append(Layer("command line", nested(flags or {})))
    return merge(layers)


def _read_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    ours = {name: value for name, value in environ.items() if name.startswith(ENV_PREFIX)}
    known = {ENV_PREFIX + field.key.upper().replace(".", "__") for field in fields()} | {ENV_PREFIX + "CONFIG"}
    if unknown := [f"unknown variable {name}{suggestion(name, known)}" for name in ours if name not in known]:
        raise ConfigError("\n".join(unknown))
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): value for name, value in ours.items()}
    try:
        return source()
    except ValueError as error:
        raise ConfigError(f"environment: {error}: lists are written as JSON") from error
