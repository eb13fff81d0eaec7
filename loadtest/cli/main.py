"""The whole command line: the gateway's commands and those of the load tester."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
from rich.console import Console

from gateway.cli import main as gateway_commands
from gateway.cli.options import user_errors
from gateway.storage.profile_file import load as load_cost_profile
from loadtest import demo as demonstration
from loadtest.cli import bench as bench_commands
from loadtest.cli import load as load_commands
from loadtest.cli import load_options
from loadtest.cli import profile as profile_commands
from loadtest.cli import trade as trade_commands
from loadtest.simulation import policy_table
from loadtest.simulation.deployment import check_policy, policy_names
from loadtest.simulation.replay import Divergence
from loadtest.simulation.replay import replay as replay_log
from loadtest.spark_server.options import ServerOptions
from loadtest.spark_server.server import create_app as create_spark
from loadtest.storage.engine_profiles import load_profile

BF16, NVFP4 = "gemma-4-26b-bf16", "gemma-4-26b-nvfp4"

EngineName = Annotated[str, typer.Option("--profile", help="Engine profile: a shipped name, or a .toml file like it.")]


def create_app() -> typer.Typer:
    app = gateway_commands.create_app()
    app.command()(demo)
    app.command()(sim)
    app.command()(replay)
    app.command()(policies)
    app.command()(profile_commands.calibrate)
    app.add_typer(bench_commands.app, name="bench")
    app.add_typer(profile_commands.app, name="profile")
    load_commands.app.command("trade")(trade_commands.trade)
    app.add_typer(load_commands.app, name="load")
    return app


def demo(
    profile: EngineName = BF16,
    policy: Annotated[str, typer.Option(help=f"The gateway's policy: {', '.join(policy_names())}.")] = "fair",
    seed: Annotated[int, typer.Option(help="Seed of the load and of the machine's noise.")] = 1,
    speed: Annotated[float, typer.Option(min=0.1, max=20, help="How many times as fast as life.")] = 4.0,
    assignments: load_options.Assignments = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave gateway and engine running; print their URLs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures only, as JSON.")] = False,
) -> None:
    """Show what Fairlane is for: one office minute, at a simulated Spark, without it and with it.

    Takes about 340 / SPEED seconds. Nothing but this machine is needed. The gateway's idea of what work costs is
    on purpose that of the model's other precision.
    """
    with user_errors(RuntimeError):
        check_policy(policy)
        engine = load_profile(profile)
        cost = load_cost_profile(BF16 if engine.name == NVFP4 else NVFP4)
        console = Console(stderr=as_json)
        wanted = demonstration.Demo(profile, engine, cost, policy, seed, speed, tuple(assignments or ()))
        with demonstration.show(wanted, console) as shown:
            rows = demonstration.figures(shown.runs)
            if as_json:
                print(json.dumps(rows), flush=True)
            else:
                console.print(demonstration.table(shown.runs))
                console.print(demonstration.sentence(shown.runs))
            if keep:
                demonstration.hold(console, shown)
    if any(row["failed"] for row in rows.values()):
        raise typer.Exit(1)


def sim(
    profile: EngineName = BF16,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    speed: Annotated[float, typer.Option(min=0.01, help="How many times as fast as life.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the steps' noise.")] = 0,
    noise: Annotated[float, typer.Option(min=0.0, help="Sigma of a step's duration, as a share of it.")] = 0.1,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="vLLM's flag of that name.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="vLLM's flag of that name.")] = None,
    long_prefill_token_threshold: Annotated[int | None, typer.Option(help="vLLM's flag of that name.")] = None,
    enable_prefix_caching: Annotated[
        bool | None,
        typer.Option(
            "--enable-prefix-caching/--no-enable-prefix-caching", help="vLLM's flag.", show_default="as measured, off"
        ),
    ] = None,
    scheduling_policy: Annotated[str, typer.Option(help="vLLM's flag: fcfs or priority.")] = "fcfs",
    kv_cache_tokens: Annotated[
        int | None, typer.Option(min=16, help="Size of the cache.", show_default="the profile's")
    ] = None,
    block_size: Annotated[int | None, typer.Option(min=1, help="vLLM's flag.", show_default="the profile's")] = None,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="vLLM's flag.", show_default="the profile's")] = None,
    max_num_queued_reqs: Annotated[int | None, typer.Option(help="vLLM's flag: 503 above so many requests.")] = None,
    max_num_queued_tokens: Annotated[int | None, typer.Option(help="vLLM's flag: 503 above so many tokens.")] = None,
    served_model_name: Annotated[str | None, typer.Option(help="vLLM's flag.", show_default="the profile's")] = None,
    bytes_per_token: Annotated[float, typer.Option(min=1, max=6, help="Of its tokenizer.")] = 3.2,
) -> None:
    """Serve a simulated DGX Spark: an OpenAI server that takes as long as vLLM would there."""
    if scheduling_policy not in ("fcfs", "priority"):
        raise typer.BadParameter(f"--scheduling-policy is fcfs or priority, not {scheduling_policy!r}")
    with user_errors():
        engine = load_profile(profile).with_flags(
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            long_prefill_token_threshold=long_prefill_token_threshold,
            enable_prefix_caching=enable_prefix_caching,
            scheduling_policy="priority" if scheduling_policy == "priority" else "fcfs",
            kv_cache_tokens=kv_cache_tokens,
            block_size=block_size,
            max_model_len=max_model_len,
        )
    options = ServerOptions(
        speed=speed,
        seed=seed,
        noise=noise,
        bytes_per_token=bytes_per_token,
        served_model_name=served_model_name,
        max_num_queued_reqs=max_num_queued_reqs,
        max_num_queued_tokens=max_num_queued_tokens,
    )
    server = create_spark(engine, options)
    print(f"simulated Spark, {engine.name}, {speed:g} times as fast as life: http://{host}:{port}/v1", file=sys.stderr)
    uvicorn.run(server, host=host, port=port, log_level="warning", timeout_graceful_shutdown=1)


def replay(
    log: Annotated[Path, typer.Argument(help="What `fairlane serve --decision-log` wrote.", exists=True)],
    policy: Annotated[str | None, typer.Option(help="Decide by this policy instead of the log's own.")] = None,
) -> None:
    """Take a gateway's decisions again, from its decision log, and say whether they are the same."""
    try:
        with user_errors(), log.open() as lines:
            events = replay_log(lines, policy)
    except Divergence as error:
        print(f"{log}: {error}")
        raise typer.Exit(1) from error
    print(f"{log}: {events} events, the same decisions")


def policies(
    profile: EngineName = BF16,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeded office minutes each policy gets.")] = 3,
) -> None:
    """Compare all policies on the same office minutes, simulated; prints a Markdown table in a few seconds."""
    with user_errors():
        engine = load_profile(profile).with_flags(long_prefill_token_threshold=demonstration.DEPLOY_THRESHOLD)
    cost = load_cost_profile(BF16 if engine.name == NVFP4 else NVFP4)
    print(policy_table.markdown(policy_table.table(engine, cost, policy_names(), range(1, seeds + 1))))


app = create_app()


def main() -> None:
    app()
