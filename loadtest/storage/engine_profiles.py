"""Reads engine profiles: the simulated machines that are shipped, and those of a user's own file."""

import tomllib
from importlib.resources import files
from pathlib import Path

import msgspec

from loadtest.spark.profile import KINDS, EngineProfile


def load_profile(name_or_path: str) -> EngineProfile:
    """A profile by its name in profiles.toml, or from a file like it: `path:table`, `path` for its only one."""
    tables = tomllib.loads((files("loadtest.spark") / "profiles.toml").read_text())
    path, name = "", name_or_path
    if name not in tables:
        path, name = (name, "") if Path(name).is_file() else name.rpartition(":")[::2]
        if not Path(path).is_file():
            raise ValueError(
                f"no engine profile {name_or_path!r}: name one of {', '.join(tables)}, "
                "or a TOML file like loadtest/spark/profiles.toml, as path or path:table"
            )
        tables = tomllib.loads(Path(path).read_text())
        if not name and len(tables) == 1:
            (name,) = tables
    if name not in tables:
        raise ValueError(f"which profile of {path}? {', '.join(f'{path}:{table}' for table in tables)}")
    table = {**tables[name], "name": name}
    if isinstance(table.get("d"), int | float):
        table["d"] = dict.fromkeys(KINDS, table["d"])
    try:
        return msgspec.convert(table, EngineProfile)
    except (TypeError, msgspec.ValidationError) as error:
        raise ValueError(f"engine profile {name_or_path}: {error}") from None
