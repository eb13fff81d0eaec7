"""`fairlane load trade`: what each pace of long prompts brings short ones, and costs."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import track

from gateway.cli.options import user_errors
from loadtest.charts import trade_curve
from loadtest.cli import load_options as options
from loadtest.cli.load import GatewayOptions, LoadOptions, deployment, read_load
from loadtest.results.trade import Point, at_most, best_threshold
from loadtest.simulation.tradeoff import SHARES, setups, sweep
from loadtest.storage.engine_profiles import load_profile
from loadtest.storage.results_folder import encode

PAGE, POINTS = "trade.html", "trade.json"


def trade(
    workload: options.Name,
    profile: options.Machine = options.BF16,
    policy: Annotated[str, typer.Option(help="Who decides at the gateway.")] = "fair",
    shares: Annotated[
        list[float] | None,
        typer.Option("--share", min=0.01, max=1, help="A long_share; repeat it.", show_default="from 1 to 0.2"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Loads to take the mean of: seeds 0 and up.")] = 5,
    users: options.Users = None,
    duration: options.Duration = None,
    assignments: options.Assignments = None,
    noise: options.Noise = 0.1,
    out: Annotated[Path | None, typer.Option(help=f"Folder for {PAGE} and {POINTS}.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the points alone, as JSON.")] = False,
) -> None:
    """Draw what long prompts' pace trades: their first token against short prompts' first token, answer and speed.

    Simulated: the gateway at each `long_share`, and the engine alone with each long-prefill threshold; means of seeds.
    """
    with user_errors(RuntimeError, ImportError):
        machine = load_profile(profile).with_flags(enable_prefix_caching=True)
        plans = [(seed, read_load(LoadOptions(workload, seed, users, duration)).plan) for seed in range(seeds)]
        gateway = deployment(policy, machine, GatewayOptions(assignments))
        chosen = setups(gateway, machine, shares or SHARES)
        console = Console(stderr=True)
        points = list(track(sweep(plans, chosen, noise), "simulating", len(chosen), console=console, transient=True))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / POINTS).write_bytes(encode(points) + b"\n")
        note = f"Simulated {machine.name}, {policy}, means over {seeds} seeds, {100 * noise:g} % noise on each step."
        (out / PAGE).write_text(trade_curve.page(points, f"{workload}: what a pace of long prompts trades", note))
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(points), indent=2).decode())
        return
    shown = Console(width=None if Console().is_terminal else 140, highlight=False)
    shown.print(trade_curve.table(points))
    shown.print()
    shown.print(trade_curve.chart(points))
    shown.print(_said(points), soft_wrap=True)
    if out is not None:
        shown.print(f"wrote {out / PAGE}")


def _said(points: list[Point]) -> str:
    """The engine's best flag, and the pace that is no worse for long prompts."""
    flag = best_threshold(points)
    ours = at_most(points, flag.figures.long_ttft_p50_s)
    if ours is None:
        return f"At every share long prompts' median is later than with {flag.name}."
    e2e, p95 = (
        getattr(flag.figures, name) / getattr(ours.figures, name) for name in ("short_e2e_p50_s", "short_ttft_p95_s")
    )
    return (
        f"Where long prompts have their first token no later than with {flag.name}, at a share of {ours.long_share:g}, "
        f"short answers are {e2e:.2f} times as fast and short prompts' p95 is {p95:.1f} times better."
    )
