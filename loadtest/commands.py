"""The commands that the load tester adds to the command line."""

from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from loadtest.engine import load_profile
from loadtest.sim_server import create_app


def register(app: typer.Typer) -> None:
    app.command()(sim)


def sim(
    profile: Annotated[str, typer.Option(help="Engine profile: a shipped name, or a .toml file.")] = "gemma-4-26b-bf16",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    speed: Annotated[float, typer.Option(min=0.01, help="How many times as fast as life.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the steps' noise.")] = 0,
    noise: Annotated[float, typer.Option(min=0.0, help="Sigma of a step's duration, as a share of it.")] = 0.1,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="vLLM's flag of that name.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="vLLM's flag of that name.")] = None,
    long_prefill_token_threshold: Annotated[int | None, typer.Option(help="vLLM's flag of that name.")] = None,
) -> None:
    """Serve a simulated DGX Spark: an OpenAI server that takes as long as vLLM would there."""
    try:
        engine = load_profile(profile).with_flags(
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            long_prefill_token_threshold=long_prefill_token_threshold,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    server = create_app(engine, speed=speed, seed=seed, noise=noise)
    uvicorn.run(server, host=host, port=port, log_level="warning", timeout_graceful_shutdown=1)
