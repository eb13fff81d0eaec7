"""Profiles from TOML files: those that are shipped, by name, and anybody's own, by path."""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gateway.pricing.profile import Profile


def shipped() -> list[str]:
    """Names of the shipped profiles."""
    return list(_shipped_tables())


def load(name: str) -> Profile:
    """The shipped profile of that name, or the profile in the TOML file at that path, which holds one table.

    Raises ValueError, with what can be done about it.
    """
    tables = _shipped_tables()
    if name in tables:
        return _profile(name, tables[name])
    if not name.endswith(".toml"):
        raise ValueError(f"no profile {name!r}: choose {' or '.join(tables)}, or give the path of a .toml file")
    try:
        tables = tomllib.loads(Path(name).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"cannot read the profile {name}: {error}") from error
    if len(tables) != 1 or not all(isinstance(table, dict) for table in tables.values()):
        held = ", ".join(tables) or "nothing"
        raise ValueError(f"{name} must hold one table ([some-name] and its keys); it holds {held}")
    return _profile(name, *tables.values())


def _shipped_tables() -> dict[str, Any]:
    return tomllib.loads((files("gateway.storage") / "profiles.toml").read_text())


def _profile(name: str, table: Any) -> Profile:
    try:
        return Profile.model_validate(table)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"the profile {name} is wrong: {faults}") from error
