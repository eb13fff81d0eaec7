"""What the gateway's commands share: options, and how they say what went wrong."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", envvar="FAIRLANE_CONFIG", help="TOML file with settings.", dir_okay=False),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting of `fairlane config show`; may be repeated."),
]


@contextmanager
def user_errors(*also: type[Exception]) -> Iterator[None]:
    """What a person got wrong is told in plain lines and exit code 2, not in a traceback; and errors of these kinds."""
    told: tuple[type[Exception], ...] = (ValueError, OSError, *also)
    try:
        yield
    except typer.Exit:  # which is a RuntimeError
        raise
    except told as error:
        for line in str(error).splitlines():
            print(f"fairlane: {line}", file=sys.stderr)
        raise typer.Exit(2) from error
