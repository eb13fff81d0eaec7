"""A run at a server that a person watches: with its progress on the console, and its rows kept as they come."""

import secrets
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from loadtest.results.records import Record
from loadtest.results.run import Load, Run
from loadtest.runs.live_display import displaying
from loadtest.runs.run import Target, run
from loadtest.storage.results_folder import writing


def run_watched(load: Load, target: Target, console: Console, title: str, folder: Path | None = None) -> Run:
    """Raises ResultError if the folder has results already."""
    with ExitStack() as stack:
        display = stack.enter_context(displaying(console, title, len(load.plan.requests)))
        writer = stack.enter_context(writing(folder)) if folder else None

        def ended(record: Record) -> None:
            if writer:
                writer.add(record)
            display.ended(record)

        # A nonce each time: it stands at the begin of each text, so that nothing of it is in any cache.
        finished = run(load, target, ended, nonce=secrets.token_hex(4))
        if writer:
            writer.finish(finished.summary)
    return finished
