"""`fairlane demo`: why Fairlane exists, in a few minutes, on a machine without a GPU.

The same minute of an office is sent three times at a simulated DGX Spark, in real time at `speed`: straight at
the engine with stock flags; straight at it with the long-prefill threshold that is best for short prompts; and
through the gateway, with the engine flags of our deploy profile. The engine has its prefix cache each time, as vLLM has
by default, so that the gateway can cut long prompts. Servers and gateway are processes of their own, started by the
commands that a user would type. All figures are in Spark seconds.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import anyio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from gateway.config import layers
from gateway.pricing.profile import Profile
from gateway.storage.config_file import load as load_settings
from loadtest.results.office_minute import documents_before_second_paster
from loadtest.results.office_minute import figures as office_figures
from loadtest.results.records import Record
from loadtest.runs.load_client import Endpoint, LoadClient
from loadtest.runs.probe import served_model
from loadtest.runs.process import running
from loadtest.simulation.simulation import Simulation
from loadtest.spark.engine import Engine
from loadtest.spark.profile import EngineProfile
from loadtest.workloads.office import office
from loadtest.workloads.plan import Plan, Request

# The engine flags of deploy/; `tests/test_deploy.py` holds the two together.
DEPLOY_THRESHOLD = 2560

# Thresholds among which the best for the short prompts' p95 is taken as the engine's own answer.
THRESHOLDS = (512, 1024, 2048)

NOISE = 0.1

# A slice may take so long, in Spark seconds: what it is worth in bf16. The gateway would find that out by itself, but
# it begins with another machine's prices here, and the minute is short.
STALL_S = 1.0


@dataclass(frozen=True)
class Demo:
    """What is shown: one load, one simulated machine, one gateway.

    engine_name  what `fairlane sim --profile` is given
    cost         the profile that the gateway starts from: on purpose another machine's
    settings     of the gateway, each KEY=VALUE, in Spark seconds
    """

    engine_name: str
    engine: EngineProfile
    cost: Profile
    policy: str
    seed: int
    speed: float
    settings: tuple[str, ...] = ()

    @property
    def arrivals(self) -> list[Request]:
        return office(self.seed)

    def best_threshold(self) -> int:
        """By simulation under a virtual clock, which takes a fraction of a second."""

        def short_p95(threshold: int) -> float:
            engine = self.engine.with_flags(long_prefill_token_threshold=threshold)
            records = Simulation(Engine(engine, seed=self.seed, noise=NOISE)).run(self.arrivals)
            return office_figures(records)["short_ttft_p95_s"]

        return min(THRESHOLDS, key=short_p95)


Runs = dict[str, list[Record]]  # by name: direct, direct_tuned, gateway


@dataclass(frozen=True)
class Shown:
    """What came of the three runs. The last one's servers are still there, at these URLs."""

    runs: Runs
    gateway: str
    engine: str


@contextmanager
def show(demo: Demo, console: Console) -> Iterator[Shown]:
    """Run all three, with progress on the console. Raises RuntimeError if a server does not start, ValueError at once
    for settings that are none."""
    settings = gateway_settings(demo)
    threshold = demo.best_threshold()
    titles = {
        "direct": "straight at the engine, stock flags",
        "direct_tuned": f"straight, best threshold ({threshold} of {', '.join(map(str, THRESHOLDS))})",
        "gateway": f"through Fairlane, {demo.policy}",
    }
    runs: Runs = {}
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with ExitStack() as servers:
        with Progress(*columns, console=console) as progress:
            total = len(demo.arrivals)
            bars = {name: progress.add_task(title, total=total, start=False) for name, title in titles.items()}

            def load(name: str, url: str) -> None:
                progress.start_task(bars[name])
                client = LoadClient(Endpoint(url, served_model(url), speed=demo.speed))
                runs[name] = anyio.run(client.run, Plan(tuple(demo.arrivals)), lambda _: progress.advance(bars[name]))

            with _simulated_spark(demo, 0) as url:
                load("direct", url)
            with _simulated_spark(demo, threshold) as url:
                load("direct_tuned", url)
            engine = servers.enter_context(_simulated_spark(demo, DEPLOY_THRESHOLD))
            gateway = servers.enter_context(_gateway(demo, engine, settings))
            load("gateway", gateway)
        yield Shown(runs, gateway, engine)


def figures(runs: Runs) -> dict[str, dict[str, float]]:
    """What `--json` prints."""
    return {name: office_figures(records) for name, records in runs.items()}


def table(runs: Runs) -> Table:
    """The three runs side by side: what readers feel, short and long, and what it costs."""
    rows = figures(runs)
    drawn = Table(title="One office minute, in Spark seconds", title_justify="left")
    drawn.add_column("")
    for name in ("direct", "direct tuned", "Fairlane", "Fairlane / direct"):
        drawn.add_column(name, justify="right")
    for key, title in (
        ("short_ttft_p50_s", "short: first token, median"),
        ("short_ttft_p95_s", "short: first token, p95"),
        ("short_e2e_p50_s", "short: whole answer, median"),
        ("short_e2e_p95_s", "short: whole answer, p95"),
        ("short_tpot_p50_ms", "short: ms a token, median"),
        ("itl_p99_s", "all: gap between tokens, p99"),
        ("long_ttft_p50_s", "25k documents: first token, median"),
        ("long_ttft_max_s", "25k documents: first token, last"),
        ("second_paster_ttft_s", "second paster: first token"),
        ("makespan_s", "everybody done"),
    ):
        values = [row[key] for row in rows.values()]
        digits = 0 if key.endswith("_ms") else 1
        cells = [f"{value:.{digits}f}" for value in values]
        drawn.add_row(title, *cells, f"{values[2] / values[0]:.2f} x")
    before = [str(documents_before_second_paster(records)) for records in runs.values()]
    drawn.add_row("documents before the second paster's", *before, "")
    drawn.add_row("failed", *(f"{row['failed']:.0f}" for row in rows.values()), "")
    return drawn


def sentence(runs: Runs) -> str:
    """The trade, whole, in words."""
    rows = figures(runs)
    direct, tuned, ours = rows["direct"], rows["direct_tuned"], rows["gateway"]
    return (
        f"A short question waited up to {direct['short_ttft_p95_s']:.0f} s for its first token (p95) straight at the "
        f"engine, {tuned['short_ttft_p95_s']:.1f} s with its best flag, {ours['short_ttft_p95_s']:.1f} s through "
        f"Fairlane. For that the long documents' first tokens came "
        f"{ours['long_ttft_p50_s'] / direct['long_ttft_p50_s']:.2f} times later (median), a short answer took "
        f"{ours['short_e2e_p50_s'] / direct['short_e2e_p50_s']:.2f} times and the whole office "
        f"{ours['makespan_s'] / direct['makespan_s']:.2f} times as long."
    )


@contextmanager
def _simulated_spark(demo: Demo, threshold: int) -> Iterator[str]:
    options = ["--profile", demo.engine_name, "--speed", str(demo.speed), "--seed", str(demo.seed)]
    flags = ["--noise", str(NOISE), "--long-prefill-token-threshold", str(threshold), "--enable-prefix-caching"]
    with running(["sim", *options, *flags]) as url:
        yield url


@contextmanager
def _gateway(demo: Demo, engine: str, settings: list[str]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        # Its clock is ours, so what work costs there is what it costs on the Spark, divided by the speed.
        profile = Path(folder) / "profile.toml"
        profile.write_text(demo.cost.scaled(1 / demo.speed).toml("demo"))
        command = ["serve", "--upstream", engine, "--policy", demo.policy, "--profile", str(profile)]
        with running([*command, *(word for each in settings for word in ("--set", each))]) as url:
            yield url


def gateway_settings(demo: Demo) -> list[str]:
    """As `serve --set` takes them. What slices of long prompts go by is in the gateway's own seconds."""
    settings, _ = load_settings(flags={"max_stall": STALL_S} | layers.assigned(demo.settings))
    paced = [f"max_stall={settings.max_stall / demo.speed}"]
    if settings.tpot_target is not None:
        paced.append(f"tpot_target={settings.tpot_target / demo.speed}")
    # Nothing is to be left of it, nor found by the next one.
    return [f"engine.long_prefill_threshold={DEPLOY_THRESHOLD}", "state_file=off", *demo.settings, *paced]


def hold(console: Console, shown: Shown) -> None:
    """Say where everything is, and wait until interrupted."""
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20, "stream": True})
    console.print(
        f"Still running, until Ctrl-C:\n"
        f"  gateway          {shown.gateway}/v1   (metrics: {shown.gateway}/metrics)\n"
        f"  simulated Spark  {shown.engine}/v1\nTry:\n"
        f"  curl -N {shown.gateway}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    with suppress(KeyboardInterrupt):
        Event().wait()
