"""`fairlane load`: workloads on either clock, and what came of them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from gateway import from_settings
from gateway.cli.options import user_errors
from gateway.config import layers
from gateway.storage.config_file import load as load_settings
from gateway.storage.profile_file import load as load_cost_profile
from loadtest.cli import load_options as options
from loadtest.report import comparison, page, terminal, vllm_json
from loadtest.report.suite_page import suite_page
from loadtest.results.measurements import HELD_OUT
from loadtest.results.result import Result
from loadtest.results.run import Load, Run
from loadtest.results.suite import SuiteTest
from loadtest.results.summary import Slo
from loadtest.runs.load_client import Endpoint
from loadtest.runs.probe import served_model
from loadtest.runs.provenance import provenance
from loadtest.runs.run import Target
from loadtest.runs.watched import run_watched
from loadtest.simulation import fit
from loadtest.simulation.accuracy import accuracies
from loadtest.simulation.cost_fit import cost_profile
from loadtest.simulation.deployment import Deployment
from loadtest.simulation.run import simulate
from loadtest.spark.profile import EngineProfile
from loadtest.storage.engine_profiles import load_profile
from loadtest.storage.measurements import measurements
from loadtest.storage.results_folder import encode, has, load_apart, put_aside, writing
from loadtest.storage.results_folder import load as load_results
from loadtest.storage.templates import report_template, suite_template
from loadtest.workloads.catalogue import PRESETS, WORKLOADS
from loadtest.workloads.catalogue import find as find_workload
from loadtest.workloads.workload import Dataset, Workload
from loadtest.workloads.workload import Options as WorkloadOptions

app = typer.Typer(
    no_args_is_help=True,
    help="Load a server, real or simulated, with a workload, and tell what its users felt.",
)


@dataclass(frozen=True)
class LoadOptions:
    """What the command line says of a load; None leaves it as the workload has it."""

    workload: str
    seed: int | None = None
    users: int | None = None
    duration: float | None = None
    requests: int | None = None
    max_concurrency: int | None = None
    dataset: Path | None = None
    slo: str = options.DEFAULT_SLO


@dataclass(frozen=True)
class GatewayOptions:
    """What it says of what stands before a simulated engine."""

    assignments: list[str] | None = None
    seats: int = 8
    pricing: str = "learned"


@app.command("list")
def list_workloads() -> None:
    """Say what workloads and presets there are."""
    table = Table("name", "", "what it asks of a server", box=None, pad_edge=False)
    for workload in WORKLOADS.values():
        table.add_row(workload.name, workload.letter, workload.title)
    console = Console()
    console.print(table)
    for name, members in PRESETS.items():
        console.print(f"\n{name}: {', '.join(members)}", highlight=False)


@app.command("simulate")
def simulate_workload(
    workload: options.Name,
    profile: options.Machine = options.BF16,
    policy: options.Policies = None,
    pricing: options.Pricings = None,
    seed: options.Seed = None,
    users: options.Users = None,
    duration: options.Duration = None,
    requests: options.Requests = None,
    max_concurrency: options.Concurrency = None,
    dataset: options.DatasetFile = None,
    slo: options.SloText = options.DEFAULT_SLO,
    assignments: options.Assignments = None,
    seats: options.Seats = 8,
    noise: options.Noise = 0.0,
    max_num_batched_tokens: options.BatchedTokens = None,
    max_num_seqs: options.NumSeqs = None,
    long_prefill_token_threshold: options.Threshold = None,
    enable_prefix_caching: options.Caching = None,
    kv_cache_tokens: options.CacheTokens = None,
    out: options.Out = None,
    label: options.Label = "",
    vllm_json_file: options.VllmJson = None,
    as_json: options.AsJson = False,
) -> None:
    """Run a workload at a simulated Spark, on the virtual clock: minutes of load in seconds.

    Direct, or through the gateway's own admission and policies.
    """
    with user_errors(RuntimeError, ImportError):
        machine = load_profile(profile).with_flags(
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            long_prefill_token_threshold=long_prefill_token_threshold,
            enable_prefix_caching=enable_prefix_caching,
            kv_cache_tokens=kv_cache_tokens,
        )
        load = read_load(LoadOptions(workload, seed, users, duration, requests, max_concurrency, dataset, slo))
        gateway = GatewayOptions(assignments, seats)
        compared = _deployments(policy or ["direct"], pricing or ["learned"], machine, gateway)
        results = []
        for title, each in compared.items():
            folder = out if out is None or len(compared) == 1 else out / title.replace(", ", "-")
            run = simulate(load, each, machine, noise=noise, label=label).with_provenance(provenance())
            results.append(_keep(run, folder))
        _show(results, out, as_json)
        if vllm_json_file:
            _write_vllm_json(vllm_json_file, results[0])


@app.command("run")
def run_workload(
    workload: options.Name,
    base_url: options.BaseUrl,
    model: options.Model = "",
    api_key: options.ApiKey = None,
    user_header: options.UserHeader = "x-openwebui-user-id",
    seed: options.Seed = None,
    users: options.Users = None,
    duration: options.Duration = None,
    requests: options.Requests = None,
    max_concurrency: options.Concurrency = None,
    dataset: options.DatasetFile = None,
    slo: options.SloText = options.DEFAULT_SLO,
    speed: options.Speed = 1.0,
    timeout: options.Timeout = 3600.0,
    ignore_eos: options.IgnoreEos = False,
    bytes_per_token: options.BytesPerToken = None,
    profile: Annotated[str, typer.Option(help="What prompts cost there alone, to compare users by.")] = options.BF16,
    out: options.Out = None,
    label: Annotated[str, typer.Option(help="What the server is called in the figures.")] = "direct",
    vllm_json_file: options.VllmJson = None,
    as_json: options.AsJson = False,
) -> None:
    """Run a workload at any OpenAI server, in real time. Ctrl-C ends it; what was measured is kept."""
    with user_errors(RuntimeError, ImportError):
        load = read_load(LoadOptions(workload, seed, users, duration, requests, max_concurrency, dataset, slo))
        endpoint = Endpoint(
            base_url, model or served_model(base_url, api_key), api_key, user_header, speed, timeout, ignore_eos
        )
        target = Target(endpoint, label, load_cost_profile(profile).prefill, bytes_per_token)
        result = run_watched(load, target, Console(stderr=True), f"{load.workload.name}, {label}", out).result
        _show([result], out, as_json)
        if vllm_json_file:
            _write_vllm_json(vllm_json_file, result)
        if not result.summary.completed:
            raise typer.Exit(1)


@app.command("compare")
def compare_runs(
    folders: Annotated[list[Path], typer.Argument(metavar="A B [C...]", help="Of runs, or of repeated runs of one.")],
    html: Annotated[Path | None, typer.Option(help="Write the page there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison alone, as JSON.")] = False,
) -> None:
    """Put runs side by side: ratios to the first, with 95 % bootstrap intervals; with --html as a page."""
    with user_errors(RuntimeError, ImportError):
        groups = load_apart(folders)
        compared = comparison.compare(groups)
        if as_json:
            print(msgspec.json.format(msgspec.json.encode(compared), indent=2).decode())
        else:
            Console().print(terminal.comparison_table(compared))
        if html:
            html.write_text(page.html(groups, report_template()))


@app.command("suite")
def run_suite(
    preset: options.Preset,
    out: Annotated[Path, typer.Option(help="Folder for the runs and index.html; what it has is not run again.")],
    profile: options.Machine = options.BF16,
    policy: options.Policies = None,
    base_url: Annotated[str, typer.Option(help="Run at this server, in real time, instead of simulating.")] = "",
    model: options.Model = "",
    api_key: options.ApiKey = None,
    speed: options.Speed = 1.0,
    label: Annotated[str, typer.Option(help="What that server is called in the figures.")] = "direct",
    seed: options.Seed = None,
    requests: options.Requests = None,
    dataset: options.DatasetFile = None,
    slo: options.SloText = options.DEFAULT_SLO,
    assignments: options.Assignments = None,
    seats: options.Seats = 8,
    long_prefill_token_threshold: options.Threshold = None,
) -> None:
    """Run a preset, on either clock, and write a page with a real Spark's measured figures beside ours.

    Stopped and started again, it goes on where it was.
    """
    with user_errors(RuntimeError, ImportError):
        members = PRESETS.get(preset) or tuple(preset.split(","))
        loads = [read_load(LoadOptions(name, seed, requests=requests, dataset=dataset, slo=slo)) for name in members]
        run_one: Callable[[Load, str, Path], None]
        if base_url:
            names = [label]
            endpoint = Endpoint(base_url, model or served_model(base_url, api_key), api_key, speed=speed)
            run_one = ServerSuite(endpoint)
        else:
            names = policy or ["direct"]
            machine = load_profile(profile).with_flags(long_prefill_token_threshold=long_prefill_token_threshold)
            run_one = SimulatedSuite(machine, GatewayOptions(assignments, seats))
        _run_suite(loads, names, out, run_one)


@app.command("fit")
def fit_machine(
    measured: Annotated[str, typer.Argument(metavar="MACHINE", help=f"Of {', '.join(measurements())}.")],
    start: Annotated[str, typer.Option(help="Profile to start from.", show_default="the machine's own")] = "",
    tries: Annotated[int, typer.Option(min=1, help="Steps; each simulates every test a dozen times.")] = 20,
) -> None:
    """Fit a simulated machine to what a real one measured, and print its profiles; a minute or more.

    Tests I and J stay out of the fit: their figures are predictions.
    """
    with user_errors(RuntimeError, ImportError):
        console = Console(stderr=True)
        if measured not in measurements():
            raise ValueError(f"nothing was measured on {measured!r}: name one of {', '.join(measurements())}")
        with console.status("fitting") as status:
            fitted = fit.fit(
                load_profile(start or measured),
                measurements()[measured],
                lambda error: status.update(f"fitting: median error now {100 * error:.2f} %"),
                tries=tries,
            )
        print(fit.toml(fitted.machine))
        print("# What the gateway is to know of it, in a file of its own: fairlane serve --profile FILE.toml")
        print(cost_profile(fitted.machine).toml(measured))
        table = Table("test", "", "figures", "median error / 90th percentile", box=None, pad_edge=False)
        for test, accuracy in accuracies(fitted.errors).items():
            table.add_row(test, "held out" if test in HELD_OUT else "", str(accuracy.figures), str(accuracy))
        console.print(table)


@dataclass(frozen=True)
class SimulatedSuite:
    """Runs a suite's workloads at a simulated Spark."""

    machine: EngineProfile
    gateway: GatewayOptions
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def __call__(self, load: Load, name: str, folder: Path) -> None:
        with self.console.status(f"{load.workload.name}, {name}"):
            run = simulate(load, deployment(name, self.machine, self.gateway), self.machine)
        _keep(run.with_provenance(provenance()), folder)
        self.console.print(f"{folder}: {run.summary.completed} of {run.summary.offered} completed")


@dataclass(frozen=True)
class ServerSuite:
    """Runs a suite's workloads at a server, in real time."""

    endpoint: Endpoint
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def __call__(self, load: Load, name: str, folder: Path) -> None:
        target = Target(self.endpoint, name, load_cost_profile(options.BF16).prefill)
        run = run_watched(load, target, self.console, f"{load.workload.name}, {name}", folder)
        if run.summary.interrupted:
            self.console.print("interrupted; the same command goes on from here")
            raise typer.Exit(130)


def _run_suite(
    loads: Sequence[Load], names: Sequence[str], out: Path, run_one: Callable[[Load, str, Path], None]
) -> None:
    """What the folder has is not run again."""
    console = Console(stderr=True)
    for load in loads:
        for name in names:
            folder = out / load.workload.name / name
            if has(folder, load, name):
                console.print(f"{folder}: is there already")
                continue
            if beside := put_aside(folder):
                console.print(f"{folder}: was interrupted; what it had is in {beside.name}")
            run_one(load, name, folder)
    file = out / "index.html"
    tests = [_suite_test(out, load.workload, names) for load in loads]
    file.write_text(suite_page(tests, names, suite_template()))
    console.print(f"wrote {file}")


def _suite_test(out: Path, workload: Workload, names: Sequence[str]) -> SuiteTest:
    summaries = [load_results(out / workload.name / name)[0].summary for name in names]
    measured = measurements().get(summaries[0].profile, {}).get(workload.letter)
    return SuiteTest.of(workload, summaries, measured)


def _deployments(
    policies: Sequence[str], pricings: Sequence[str], machine: EngineProfile, gateway: GatewayOptions
) -> dict[str, Deployment]:
    """By title: where nobody prices, it is the same run whoever would."""
    found = (
        deployment(policy, machine, replace(gateway, pricing=pricing)) for policy in policies for pricing in pricings
    )
    return {each.title: each for each in found}


def deployment(policy: str, machine: EngineProfile, gateway: GatewayOptions) -> Deployment:
    """A gateway that knows how this engine was started, what work costs there unless it is told otherwise, and the
    settings that were given."""
    engine = {
        "engine.step_tokens": machine.max_num_batched_tokens,
        "engine.long_prefill_threshold": machine.long_prefill_token_threshold,
        "engine.max_num_seqs": min(machine.max_num_seqs, load_settings()[0].engine.max_num_seqs),
    }
    if machine.kv_cache_tokens is not None:
        engine["engine.kv_tokens"] = machine.kv_cache_tokens
    given = layers.assigned(gateway.assignments or [])
    settings, _ = load_settings(flags=engine | given)
    cost = load_cost_profile(settings.profile) if "profile" in given else cost_profile(machine)
    return Deployment(
        policy,
        cost,
        from_settings.limits(settings, cost),
        settings.queue_timeout,
        gateway.seats,
        gateway.pricing,
        from_settings.slicing(settings),
    )


def read_load(wanted: LoadOptions) -> Load:
    workload = find_workload(wanted.workload)
    dataset = None if wanted.dataset is None else Dataset(str(wanted.dataset), wanted.dataset.read_bytes())
    seed = workload.seed if wanted.seed is None else wanted.seed
    asked = WorkloadOptions(seed, wanted.users, wanted.duration, dataset=dataset)
    plan = workload.plan(asked)
    duration = wanted.duration
    if duration is not None and workload.loop != "people":
        plan = plan.only(lambda request: request.at < duration)
    if wanted.requests is not None:
        plan = plan.first(wanted.requests)
    if wanted.max_concurrency is not None:
        plan = plan.capped(wanted.max_concurrency if wanted.max_concurrency else None)
    if not plan.requests:
        raise ValueError(f"nothing of {workload.name} is left: it begins later, or has no requests")
    return Load(workload, asked, plan, read_slo(wanted.slo))


def read_slo(text: str) -> Slo:
    """Of "ttft=2s,tpot=150ms"; either may be left out. Raises ValueError."""
    found: dict[str, float | None] = {"ttft": None, "tpot": None}
    for part in filter(None, map(str.strip, text.split(","))):
        match = re.fullmatch(r"(ttft|tpot)\s*=\s*([0-9.]+)\s*(ms|s)", part)
        if match is None:
            raise ValueError(f"--slo {text!r}: write it like {options.DEFAULT_SLO}")
        name, number, unit = match.groups()
        found[name] = float(number) * (1e-3 if unit == "ms" else 1.0)
    return Slo(**found)


def _keep(run: Run, folder: Path | None) -> Result:
    if folder is not None:
        with writing(folder) as writer:
            for record in run.records:
                writer.add(record)
            writer.finish(run.summary)
    return run.result


def _show(results: list[Result], out: Path | None, as_json: bool) -> None:
    """The summary, or the comparison of several, on the terminal; and as a page in the folder."""
    groups = [[result] for result in results]
    if out is not None:
        (out / "report.html").write_text(page.html(groups, report_template()))
    if as_json:
        summaries = [msgspec.to_builtins(result.summary) for result in results]
        print(encode(summaries[0] if len(summaries) == 1 else summaries).decode())
        return
    console = Console()
    for result in results:
        console.print(terminal.summary_table(result.summary))
    if len(results) > 1:
        console.print(terminal.comparison_table(comparison.compare(groups)))
    if out is not None:
        console.print(f"wrote {out / 'report.html'}", highlight=False)


def _write_vllm_json(file: Path, result: Result) -> None:
    file.write_bytes(msgspec.json.encode(vllm_json.bench_result(result.summary, result.rows)))
