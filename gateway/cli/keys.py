"""`fairlane keys`: give somebody a key, see who has one, take one back."""

import os
import secrets
import sys
from datetime import UTC, datetime
from math import inf, isfinite
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.cli.options import ConfigFile, user_errors
from gateway.config import layers
from gateway.identity.keys import KEY_PREFIX, Key, key_digest, with_key, without_key
from gateway.storage.config_file import load as load_settings
from gateway.storage.keys_file import change, read_keys_file

app = typer.Typer(no_args_is_help=True, help="API keys: give one, list them, take one back.")

File = Annotated[
    Path | None,
    typer.Option("--file", help="The keys file; left out, the configuration's keys_file.", dir_okay=False),
]


@app.command("add")
def add(
    owner: Annotated[str, typer.Argument(help="Whose turn a request with the key takes; may have several keys.")],
    front_end: Annotated[bool, typer.Option("--front-end", help="A program that may name its users.")] = False,
    admin: Annotated[bool, typer.Option("--admin", help="Sees everybody's place in the queue.")] = False,
    weight: Annotated[
        float, typer.Option(help="Part of the engine against others' 1; of a front end, each user's.")
    ] = 1,
    priority: Annotated[
        float, typer.Option(help="Most seconds of head start that x-fairlane-priority may ask for.")
    ] = 0,
    flow_in_flight: Annotated[int | None, typer.Option(min=1, help="Requests in the engine at once.")] = None,
    flow_queued: Annotated[int | None, typer.Option(min=1, help="Requests that may wait.")] = None,
    file: File = None,
    config_file: ConfigFile = None,
) -> None:
    """Make a key and print it, once: the file keeps only its hash.

    A gateway that runs with this keys_file takes it within a second, without a signal or a restart.
    """
    with user_errors():
        path = _path(file, config_file)
        if not owner.strip() or not 0 < weight < inf or not isfinite(priority):
            raise ValueError("an owner has a name, a weight above 0, and both weight and priority are finite numbers")
        secret = KEY_PREFIX + secrets.token_urlsafe(32)
        key = Key(
            digest=key_digest(secret),
            owner=owner,
            front_end=front_end,
            admin=admin,
            weight=weight,
            priority=priority,
            flow_in_flight=flow_in_flight,
            flow_queued=flow_queued,
            created=datetime.now(UTC).date().isoformat(),
        )
        change(path, lambda text: with_key(text, key))
    print(secret)
    print(
        f"This is the key of {owner}, shown this once; its id is {key.id}. A gateway with keys_file = {path} takes "
        "it within a second.",
        file=sys.stderr,
    )


@app.command("list")
def list_keys(file: File = None, config_file: ConfigFile = None) -> None:
    """Whose keys there are and what they may do. The keys themselves nobody can see again."""
    with user_errors():
        keys = read_keys_file(_path(file, config_file))
    table = Table(
        *("id", "owner", "front end", "admin", "weight", "priority", "flow_in_flight", "flow_queued", "created"),
        box=None,
        pad_edge=False,
    )
    for key in keys:
        table.add_row(
            key.id,
            escape(key.owner),
            "yes" if key.front_end else "-",
            "yes" if key.admin else "-",
            f"{key.weight:g}",
            f"{key.priority:g}",
            str(key.flow_in_flight or "-"),
            str(key.flow_queued or "-"),
            escape(key.created or "-"),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `fairlane keys list` shows it.")],
    file: File = None,
    config_file: ConfigFile = None,
) -> None:
    """Take a key back. A running gateway knows it no more within a second; what it has let in goes on."""
    with user_errors():
        path = _path(file, config_file)
        change(path, lambda text: without_key(text, key_id))
    print(f"Revoked {key_id}. A gateway that runs with keys_file = {path} refuses it within a second.", file=sys.stderr)


def _path(file: Path | None, config_file: Path | None) -> Path:
    """Raises ConfigError."""
    path = file or load_settings(config_file, os.environ)[0].keys_file
    if path is None:
        raise layers.ConfigError(
            'which file? Say --file FILE, or set keys_file = "/etc/fairlane/keys.jsonl" in the configuration, and name '
            "that by --config or FAIRLANE_CONFIG"
        )
    return path
