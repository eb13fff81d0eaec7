"""`fairlane load`: workloads on either clock, and what came of them."""

import re
import secrets
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
from loadtest.client.probe import served_model
from loadtest.fitting import fit
from loadtest.fitting.accuracy import accuracies
from loadtest.fitting.measurements import measurements
from loadtest.report import comparison, terminal, vllm_json
from loadtest.report import page as report
from loadtest.results.records import Record
from loadtest.results.summary import Slo, row
from loadtest.runs import suite
from loadtest.runs.live_display import displaying
from loadtest.runs.run import Load, Run, Target, simulate
from loadtest.runs.run import run as run_real
from loadtest.simulation.deployment import Deployment, deployments
from loadtest.simulation.pricing import PRICINGS
from loadtest.spark.cost_fit import cost_profile
from loadtest.spark.profile import EngineProfile, load_profile
from loadtest.storage.results_folder import Result, encode, load_apart, writing
from loadtest.workloads import PRESETS, WORKLOADS
from loadtest.workloads import find as find_workload
from loadtest.workloads.workload import Options

BF16 = "gemma-4-26b-bf16"
DEFAULT_SLO = "ttft=2s,tpot=150ms"

app = typer.Typer(
    no_args_is_help=True,
    help="Load a server, real or simulated, with a workload, and tell what its users felt.",
)

Name = Annotated[str, typer.Argument(metavar="WORKLOAD", help="By name or letter; `fairlane load list` has them.")]
Preset = Annotated[str, typer.Argument(metavar="PRESET", help=f"{', '.join(PRESETS)}, or workloads with commas.")]
Machine = Annotated[str, typer.Option("--profile", help="Simulated machine: a shipped name, or a .toml file.")]
Fronts = Annotated[
    list[str] | None,
    typer.Option(
        "--policy", help=f"Who decides: {', '.join(deployments())}. Repeat it to compare.", show_default="direct"
    ),
]
Pricings = Annotated[
    list[str] | None,
    typer.Option(
        "--pricing",
        help=f"Who prices requests at the gateway: {', '.join(PRICINGS)}. Repeat it to compare.",
        show_default="learned",
    ),
]
Seed = Annotated[int | None, typer.Option(help="Of the load.", show_default="the published one")]
Users = Annotated[int | None, typer.Option(min=1, help="How many people, in office-mix.")]
Duration = Annotated[float | None, typer.Option(min=1, help="Leave out what would begin after so many seconds.")]
Requests = Annotated[int | None, typer.Option(min=1, help="Only the first so many requests.")]
Concurrency = Annotated[int | None, typer.Option(min=0, help="The client's own cap; 0 takes a workload's away.")]
Dataset = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="ShareGPT's JSON, for sharegpt-replay.")
]
SloText = Annotated[str, typer.Option("--slo", help="What a good answer is: first token, from arrival; time a token.")]
Out = Annotated[Path | None, typer.Option(help="Folder for results.jsonl, summary.json and report.html.")]
VllmJson = Annotated[Path | None, typer.Option("--vllm-json", help="Write the figures as `vllm bench serve` does.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary alone, as JSON.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A gateway setting of `fairlane config show`.")
]
Seats = Annotated[int, typer.Option(min=1, help="Of the semaphore.")]
Noise = Annotated[float, typer.Option(min=0, help="Sigma of a step's duration, as a share of it.")]
Label = Annotated[str, typer.Option(help="What it is called in the figures.", show_default="the policy")]
BatchedTokens = Annotated[int | None, typer.Option("--max-num-batched-tokens", help="vLLM's flag of that name.")]
NumSeqs = Annotated[int | None, typer.Option("--max-num-seqs", help="vLLM's flag of that name.")]
Threshold = Annotated[int | None, typer.Option("--long-prefill-token-threshold", help="vLLM's flag of that name.")]
Caching = Annotated[
    bool | None,
    typer.Option("--enable-prefix-caching/--no-enable-prefix-caching", help="vLLM's flag.", show_default="as measured"),
]
CacheTokens = Annotated[int | None, typer.Option(min=16, help="Size of the cache.", show_default="the profile's")]
BaseUrl = Annotated[str, typer.Option(help="Where the server answers, such as http://127.0.0.1:8100/v1.")]
Model = Annotated[str, typer.Option(help="Its name there.", show_default="the first it serves")]
ApiKey = Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Bearer token.", show_default=False)]
UserHeader = Annotated[str, typer.Option(help="Header that names each request's user.")]
Speed = Annotated[float, typer.Option(min=0.01, help="That `fairlane sim` runs at; figures are in its seconds.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds after which a request has failed.")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Ask vLLM for answers of full length.")]
BytesPerToken = Annotated[float | None, typer.Option(min=0.1, help="Of its tokenizer.", show_default="measured first")]


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
    workload: Name,
    profile: Machine = BF16,
    policy: Fronts = None,
    pricing: Pricings = None,
    seed: Seed = None,
    users: Users = None,
    duration: Duration = None,
    requests: Requests = None,
    max_concurrency: Concurrency = None,
    dataset: Dataset = None,
    slo: SloText = DEFAULT_SLO,
    assignments: Assignments = None,
    seats: Seats = 8,
    noise: Noise = 0.0,
    max_num_batched_tokens: BatchedTokens = None,
    max_num_seqs: NumSeqs = None,
    long_prefill_token_threshold: Threshold = None,
    enable_prefix_caching: Caching = None,
    kv_cache_tokens: CacheTokens = None,
    out: Out = None,
    label: Label = "",
    vllm_json_file: VllmJson = None,
    as_json: AsJson = False,
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
        wanted = read_load(workload, seed, users, duration, requests, max_concurrency, dataset, slo)
        chosen = (
            front(name, machine, assignments, seats, pricing=price)
            for name in policy or ["direct"]
            for price in pricing or ["learned"]
        )
        # By title: where nobody prices, it is the same run whoever would.
        compared = {each.title: each for each in chosen}
        runs = []
        for title, each in compared.items():
            run = simulate(wanted, each, machine, noise=noise, label=label)
            folder = out if out is None or len(compared) == 1 else out / title.replace(", ", "-")
            runs.append(_keep(run, folder))
        _show(runs, out, as_json)
        if vllm_json_file:
            _write_vllm_json(vllm_json_file, runs[0])


@app.command("run")
def run_workload(
    workload: Name,
    base_url: BaseUrl,
    model: Model = "",
    api_key: ApiKey = None,
    user_header: UserHeader = "x-openwebui-user-id",
    seed: Seed = None,
    users: Users = None,
    duration: Duration = None,
    requests: Requests = None,
    max_concurrency: Concurrency = None,
    dataset: Dataset = None,
    slo: SloText = DEFAULT_SLO,
    speed: Speed = 1.0,
    timeout: Timeout = 3600.0,
    ignore_eos: IgnoreEos = False,
    bytes_per_token: BytesPerToken = None,
    profile: Annotated[str, typer.Option(help="What prompts cost there alone, to compare users by.")] = BF16,
    out: Out = None,
    label: Annotated[str, typer.Option(help="What the server is called in the figures.")] = "direct",
    vllm_json_file: VllmJson = None,
    as_json: AsJson = False,
) -> None:
    """Run a workload at any OpenAI server, in real time. Ctrl-C ends it; what was measured is kept."""
    with user_errors(RuntimeError, ImportError):
        wanted = read_load(workload, seed, users, duration, requests, max_concurrency, dataset, slo)
        target = Target(
            base_url=base_url,
            model=model or served_model(base_url, api_key),
            label=label,
            cost=load_cost_profile(profile),
            api_key=api_key,
            user_header=user_header,
            speed=speed,
            timeout=timeout,
            ignore_eos=ignore_eos,
            bytes_per_token=bytes_per_token,
        )
        result = _run(wanted, target, out, Console(stderr=True))
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
            html.write_text(report.html(groups))


@app.command("suite")
def run_suite(
    preset: Preset,
    out: Annotated[Path, typer.Option(help="Folder for the runs and index.html; what it has is not run again.")],
    profile: Machine = BF16,
    policy: Fronts = None,
    base_url: Annotated[str, typer.Option(help="Run at this server, in real time, instead of simulating.")] = "",
    model: Model = "",
    api_key: ApiKey = None,
    speed: Speed = 1.0,
    label: Annotated[str, typer.Option(help="What that server is called in the figures.")] = "direct",
    seed: Seed = None,
    requests: Requests = None,
    dataset: Dataset = None,
    slo: SloText = DEFAULT_SLO,
    assignments: Assignments = None,
    seats: Seats = 8,
    long_prefill_token_threshold: Threshold = None,
) -> None:
    """Run a preset, on either clock, and write a page with a real Spark's measured figures beside ours.

    Stopped and started again, it goes on where it was.
    """
    with user_errors(RuntimeError, ImportError):
        console = Console(stderr=True)
        machine = load_profile(profile).with_flags(long_prefill_token_threshold=long_prefill_token_threshold)
        names = [label] if base_url else policy or ["direct"]
        members = PRESETS.get(preset) or tuple(preset.split(","))
        loads = [read_load(name, seed, None, None, requests, None, dataset, slo) for name in members]
        served = (model or served_model(base_url, api_key)) if base_url else ""
        for wanted in loads:
            for name in names:
                folder = out / wanted.workload.name / name
                if suite.has(folder, wanted, name):
                    console.print(f"{folder}: is there already")
                    continue
                if beside := suite.put_aside(folder):
                    console.print(f"{folder}: was interrupted; what it had is in {beside.name}")
                if base_url:
                    target = Target(base_url, served, name, load_cost_profile(BF16), api_key, speed=speed)
                    if _run(wanted, target, folder, console).summary.interrupted:
                        console.print("interrupted; the same command goes on from here")
                        raise typer.Exit(130)
                else:
                    with console.status(f"{wanted.workload.name}, {name}"):
                        run = simulate(wanted, front(name, machine, assignments, seats), machine)
                    _keep(run, folder)
                    console.print(f"{folder}: {run.summary.completed} of {run.summary.offered} completed")
        page = out / "index.html"
        page.write_text(suite.page(out, [wanted.workload for wanted in loads], names))
        console.print(f"wrote {page}")


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
            table.add_row(test, "held out" if test in fit.HELD_OUT else "", str(accuracy.figures), str(accuracy))
        console.print(table)


def front(
    name: str,
    machine: EngineProfile,
    assignments: list[str] | None = None,
    seats: int = 8,
    *,
    pricing: str = "learned",
) -> Deployment:
    """A gateway that knows how this engine was started, what work costs there unless it is told otherwise, and the
    settings that were given."""
    engine = {
        "engine.step_tokens": machine.max_num_batched_tokens,
        "engine.long_prefill_threshold": machine.long_prefill_token_threshold,
        "engine.max_num_seqs": min(machine.max_num_seqs, load_settings()[0].engine.max_num_seqs),
    }
    if machine.kv_cache_tokens is not None:
        engine["engine.kv_tokens"] = machine.kv_cache_tokens
    given = layers.assigned(assignments or [])
    settings, _ = load_settings(flags=engine | given)
    cost = load_cost_profile(settings.profile) if "profile" in given else cost_profile(machine)
    return Deployment(
        name,
        cost,
        from_settings.limits(settings, cost),
        settings.queue_timeout,
        seats,
        pricing,
        from_settings.slicing(settings),
    )


def read_load(
    name: str,
    seed: int | None,
    users: int | None,
    duration: float | None,
    requests: int | None,
    max_concurrency: int | None,
    dataset: Path | None,
    slo: str,
) -> Load:
    workload = find_workload(name)
    options = Options(workload.seed if seed is None else seed, users, duration, dataset=dataset)
    plan = workload.plan(options)
    if duration is not None and workload.loop != "people":
        plan = plan.only(lambda request: request.at < duration)
    if requests is not None:
        plan = plan.first(requests)
    if max_concurrency is not None:
        plan = plan.capped(max_concurrency or None)
    if not plan.requests:
        raise ValueError(f"nothing of {workload.name} is left: it begins later, or has no requests")
    return Load(workload, options, plan, read_slo(slo))


def read_slo(text: str) -> Slo:
    """Of "ttft=2s,tpot=150ms"; either may be left out. Raises ValueError."""
    found: dict[str, float | None] = {"ttft": None, "tpot": None}
    for part in filter(None, map(str.strip, text.split(","))):
        match = re.fullmatch(r"(ttft|tpot)\s*=\s*([0-9.]+)\s*(ms|s)", part)
        if match is None:
            raise ValueError(f"--slo {text!r}: write it like {DEFAULT_SLO}")
        name, number, unit = match.groups()
        found[name] = float(number) * (1e-3 if unit == "ms" else 1.0)
    return Slo(**found)


def _run(wanted: Load, target: Target, folder: Path | None, console: Console) -> Result:
    """At a real server, with its progress on the console; rows are kept as they come."""
    nonce = secrets.token_hex(4)
    with displaying(console, f"{wanted.workload.name}, {target.label}", len(wanted.plan.requests)) as display:
        if folder is None:
            run = run_real(wanted, target, display.ended, nonce=nonce)
        else:
            with writing(folder) as writer:

                def ended(record: Record) -> None:
                    writer.add(record)
                    display.ended(record)

                run = run_real(wanted, target, ended, nonce=nonce)
                writer.finish(run.summary)
    return _result(run)


def _keep(run: Run, folder: Path | None) -> Result:
    if folder is not None:
        with writing(folder) as writer:
            for record in run.records:
                writer.add(record)
            writer.finish(run.summary)
    return _result(run)


def _result(run: Run) -> Result:
    return Result(run.summary.policy, run.summary, tuple(map(row, run.records)))


def _show(results: list[Result], out: Path | None, as_json: bool) -> None:
    """The summary, or the comparison of several, on the terminal; and as a page in the folder."""
    groups = [[result] for result in results]
    if out is not None:
        (out / "report.html").write_text(report.html(groups))
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
    file.write_bytes(msgspec.json.encode(vllm_json.bench(result.summary, result.rows)))
