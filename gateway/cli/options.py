"""What all commands share: options, and how they tell users what they did wrong."""

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
    """Tell users what they did wrong, in plain lines and with exit code 2 instead of a traceback.

    also  what else than ValueError and OSError is a user's mistake here: RuntimeError, where a server is not there
    """
    mistakes: tuple[type[Exception], ...] = (ValueError, OSError, *also)
    try:
        yield
    except typer.Exit:  # which is a RuntimeError
        raise
    except mistakes as error:
        for line in str(error).splitlines():
            print(f"fairlane: {line}", file=sys.stderr)
        raise typer.Exit(2) from error
