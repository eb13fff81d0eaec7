"""The gateway's commands: `serve`, `config`, `keys`. `loadtest.cli` adds its own to them."""

import logging
import os
import socket
import sys
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway import from_settings
from gateway.app import create_gateway
from gateway.cli import keys as key_commands
from gateway.cli.options import Assignments, ConfigFile, user_errors
from gateway.config import layers
from gateway.config.fields import fields
from gateway.config.settings import Settings
from gateway.server.server import Server
from gateway.storage.config_file import load as load_settings
from gateway.storage.profile_file import load as load_profile
from policies import names

config_app = typer.Typer(no_args_is_help=True, help="Look at the settings.")


def create_app() -> typer.Typer:
    app = typer.Typer(
        name="fairlane",
        help="Admission control in front of vLLM: prefill is priced, queued fairly and traced.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback(invoke_without_command=True)(main_options)
    app.command()(serve)
    app.add_typer(config_app, name="config")
    app.add_typer(key_commands.app, name="keys")
    return app


def serve(
    upstream: Annotated[str | None, typer.Option(help="Where vLLM answers, such as http://127.0.0.1:8000.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    policy: Annotated[str | None, typer.Option(help=f"Who is next: {', '.join(names())}.")] = None,
    profile: Annotated[str | None, typer.Option(help="What work costs: a shipped name or a .toml file.")] = None,
    trace_file: Annotated[Path | None, typer.Option(help="Write finished spans there, a line of JSON each.")] = None,
    decision_log: Annotated[Path | None, typer.Option(help="Write admission's events and decisions there.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond loopback without keys.")] = False,
    config_file: ConfigFile = None,
    assignments: Assignments = None,
) -> None:
    """Run the gateway in front of a vLLM server.

    Clients use http://HOST:8100/v1 as their base URL. Traces go where the OTEL_EXPORTER_OTLP_* variables say.
    SIGTERM drains; SIGHUP reads the settings anew: policy, limits, weights, keys and timeouts, without a restart.
    """
    flags = {
        "upstream": upstream,
        "host": host,
        "port": port,
        "policy": policy,
        "profile": profile,
        "trace_file": trace_file,
        "decision_log": decision_log,
        "insecure": insecure or None,
    }

    def read_settings() -> Settings:
        return load_settings(config_file, os.environ, _given(flags) | layers.assigned(assignments or []))[0]

    with user_errors():
        settings = read_settings()
        _start_logging(settings.log_level)
        gateway = create_gateway(settings)
        server = Server(gateway, lambda bound: _greet(settings, bound), lambda: gateway.reconfigure(read_settings()))
    server.run()


@config_app.command("show")
def show(config_file: ConfigFile = None, assignments: Assignments = None) -> None:
    """Print every setting: its value, its unit, where it comes from, what it is for."""
    with user_errors():
        settings, sources = load_settings(config_file, os.environ, layers.assigned(assignments or []))
    Console(width=None if sys.stdout.isatty() else 160).print(_table(settings, sources))


def main_options(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if show_version:
        print(version("fairlane"))
        raise typer.Exit


def main() -> None:
    create_app()()


def _start_logging(level: str) -> None:
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=level.upper(), format=form, stream=sys.stderr)
    # httpx logs every request that it sends, and uvicorn every stage that it is in; our own line says more.
    for name in ("httpx", "httpcore", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flags.items() if value is not None}


def _table(settings: Settings, sources: layers.Sources) -> Table:
    table = Table("setting", "value", "unit", "source", "what it is", box=None, pad_edge=False)
    for field in fields():
        value = _shown(attrgetter(field.key)(settings))
        description = f"{field.description} (takes a restart)" if field.restart else field.description
        table.add_row(field.key, escape(value), field.unit, sources.get(field.key, "default"), escape(description))
    return table


def _shown(value: object) -> str:
    if value is None or value == ():
        return "-"
    if isinstance(value, tuple):
        return ", ".join(str(getattr(item, "owner", None) or item) for item in value)
    return str(value)


def _greet(settings: Settings, port: int) -> None:
    """What an admin wants to know first: the URLs to paste, and what rules are in force."""
    cost = load_profile(settings.profile)
    limits = from_settings.limits(settings, cost)
    local, scheme = settings.on_loopback, "https" if settings.tls_certificate else "http"
    closed = "not reachable: listen with --host 0.0.0.0 and keys (or --insecure)"
    lines = [
        f"fairlane {version('fairlane')}, in front of {settings.base_url}",
        f"  base URL on this host    {scheme}://{settings.host if local else '127.0.0.1'}:{port}/v1",
        f"  base URL in the LAN      {closed if local else f'{scheme}://{_lan_address()}:{port}/v1'}",
        f"  base URL in containers   {closed if local else f'{scheme}://host.docker.internal:{port}/v1'}",
        f"  keys                     {_keys(settings)}",
        f"  policy                   {settings.policy}",
        f"  short lane               prompts up to {limits.long_prompt_tokens} tokens, "
        f"{limits.short_lane_tokens} of them together",
        f"  long lane                {limits.long_lane_jobs} at a time until its first token",
        f"  seats                    {limits.max_num_seqs} sequences",
        f"  costs                    {settings.profile}: 1 000 tokens {cost.prefill(1000):.2g} s, "
        f"25 000 tokens {cost.prefill(25000):.2g} s",
    ]
    print("\n".join(lines), file=sys.stderr, flush=True)


def _keys(settings: Settings) -> str:
    if settings.keys_file:
        return f"{len(settings.keys)}, and those of {settings.keys_file}"
    return str(len(settings.keys) or "none: any key is taken")


def _lan_address() -> str:
    """This host's address as others see it. Connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
