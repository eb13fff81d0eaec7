"""`fairlane bench`: what the gateway would do at one's own engine, measured there."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console

from gateway.cli.options import Assignments, user_errors
from gateway.config import layers
from gateway.config.settings import ENV_PREFIX, Settings
from gateway.pricing.profile import Profile
from gateway.storage.config_file import load as load_settings
from gateway.storage.state_file import StateFile
from loadtest.benchmark import shape as shaping
from loadtest.benchmark.advice import Advice, Bounds, Prefer, advise
from loadtest.benchmark.calibration import Calibration
from loadtest.benchmark.engine_probe import DEFAULT_CONTEXT, Target
from loadtest.benchmark.figures import Measured, Trial, figures
from loadtest.benchmark.findings import Findings
from loadtest.benchmark.shape import LongPrompts, Shape
from loadtest.benchmark.table import table
from loadtest.benchmark.variant import NAMES, Variant, variants
from loadtest.benchmark.variant_runner import Interrupted, VariantRunner
from loadtest.charts.units import shown
from loadtest.cli.profile import MIN_PROMPTS, calibrating, cost_model, find_engine
from loadtest.report import page
from loadtest.runs.load_client import Endpoint
from loadtest.runs.provenance import provenance
from loadtest.storage.results_folder import SUMMARY, ResultError, encode
from loadtest.storage.templates import report_template

app = typer.Typer(no_args_is_help=True, help="Measure at an engine what the gateway would do for it.")


@app.callback()
def _group() -> None:  # with a callback a group of one command is one, too
    """Measure at an engine what the gateway would do for it."""


@app.command("preempt")
def preempt(
    upstream: Annotated[str, typer.Option(help="Where vLLM answers, such as http://127.0.0.1:8000.")],
    longs: Annotated[int, typer.Option(min=1, help="Long prompts, all at once.")] = 6,
    long_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of each.", show_default="24000; what it takes, and prefills in 10 s")
    ] = None,
    long_answer: Annotated[int, typer.Option(min=1, help="Tokens of a long prompt's answer.")] = 128,
    shorts: Annotated[int, typer.Option(min=1, help="Short prompts, one after the other, whoever waits.")] = 40,
    short_tokens: Annotated[int, typer.Option(min=1, help="Of each.")] = 200,
    short_answer: Annotated[int, typer.Option(min=1, help="Tokens of a short prompt's answer.")] = 64,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Short prompts a second.", show_default="5, or what it can do")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VARIANT",
            help="Besides direct: gated (no slices), sliced, sliced-SECONDS (max_stall), paced-SHARE (long_share), "
            "tpot-SECONDS (tpot_target), or some of them with a +. Repeat it, or use commas.",
            show_default=", ".join(NAMES),
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each variant, in turns.")] = 1,
    prefer: Annotated[Prefer, typer.Option(help="What is to be best: short TTFT p95, or short E2E p50.")] = "ttft",
    long_median_at_most: Annotated[
        float, typer.Option(min=0, help="What long prompts may lose for it: their median TTFT, to direct.")
    ] = Bounds.long_median,
    makespan_at_most: Annotated[
        float, typer.Option(min=0, help="What all together may lose: until everybody is done, to direct.")
    ] = Bounds.makespan,
    calibrate: Annotated[float, typer.Option(min=1, help="Seconds in which its cost is measured first.")] = 15.0,
    seed: Annotated[int, typer.Option(help="Of the short prompts' arrivals.")] = 1,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for each run's rows, summary.json and report.html.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary alone, as JSON.")] = False,
    assignments: Assignments = None,
) -> None:
    """Measure preemptible prefill at an engine, beside the engine by itself, and say what to set.

    A few long prompts at once and short ones meanwhile, the same load again and again: straight at the engine, and
    through gateways that are started for it with different settings. It takes some minutes, best while nobody else
    uses the engine. Prompts are new in every run, so that no prefix cache has them. How the engine was started is told
    by --set, as in --set engine.step_tokens=2048; a key for it is upstream_key, or FAIRLANE_UPSTREAM_KEY. What the
    engine costs is measured first; nothing is kept of it, nor written anywhere but to --out. Ctrl-C ends it in order:
    the runs that were whole are shown.
    """
    console = Console(width=None if Console().is_terminal else 120, highlight=False, stderr=as_json)
    given = tuple(assignments or ())
    with user_errors(RuntimeError), tempfile.TemporaryDirectory(prefix="fairlane-") as folder:
        chosen = variants(only)
        settings = _settings(upstream, given, chosen)
        _check_empty(out)
        target = find_engine(console, settings, "it will show.")
        most = min(target.served.max_model_len or DEFAULT_CONTEXT, target.longest)
        if short_tokens + short_answer > most:
            raise ValueError(f"this model takes {most} tokens: --short-tokens {most - short_answer} at the most")
        sizes = LongPrompts(long_tokens, most, long_answer, settings.long_prompt_tokens)
        sizes.tokens(lambda tokens: 0.0)  # what is wrong whatever it costs is said before that is measured
        cost, state_file = _calibrated(console, target, settings, calibrate, Path(folder))
        shape = Shape(longs, sizes.tokens(cost.prefill), long_answer, shorts, short_tokens, short_answer, seed=seed)
        engine = Endpoint(target.base_url, target.model, target.api_key)
        runner = VariantRunner(console, engine, cost.prefill, state_file, given, out)
        course = _run(runner, shape, rate, chosen, repeat)
        measured = [Measured(each, figures(runner.trials[each.name])) for each in chosen if each.name in runner.trials]
        advice = advise(measured, prefer, Bounds(long_median_at_most, makespan_at_most))
        findings = Findings(target.served.name, course.shape, course.unloaded, measured, advice)
        _tell(console, findings, given, as_json=as_json)
        if out and measured:
            _keep(out, findings, runner.trials)
            console.print(f"wrote {out}", soft_wrap=True)
        _end(console, course, measured)


def _check_empty(out: Path | None) -> None:
    """Raises ResultError."""
    if out and out.exists() and any(out.iterdir()):
        raise ResultError(f"{out} is not empty: nothing in it is overwritten; name another folder, or remove it")


def _keep(out: Path, findings: Findings, trials: dict[str, list[Trial]]) -> None:
    (out / SUMMARY).write_bytes(encode(findings.summary(provenance())) + b"\n")
    groups = [[trial.result for trial in trials[each.variant.name]] for each in findings.measured]
    (out / "report.html").write_text(page.html(groups, report_template()))


def _end(console: Console, course: "_Course", measured: Sequence[Measured]) -> None:
    """Raises what cut it short."""
    if course.interrupted:
        console.print(f"interrupted: {'what was measured by then is told' if measured else 'nothing is measured'}")
        raise typer.Exit(130)
    if course.failure:
        raise course.failure


@dataclass
class _Course:
    """How it went."""

    shape: Shape
    unloaded: dict[str, float]
    interrupted: bool = False
    failure: RuntimeError | None = None


def _settings(upstream: str, assignments: Sequence[str], chosen: Sequence[Variant]) -> Settings:
    """Raises ConfigError, for those of a variant, too."""
    name = f"{ENV_PREFIX}UPSTREAM_KEY"
    environ = {name: os.environ[name]} if name in os.environ else {}
    given = {"upstream": upstream, **layers.assigned(assignments)}
    for variant in chosen:
        load_settings(None, environ, given | variant.settings)
    return load_settings(None, environ, given)[0]


def _calibrated(
    console: Console, target: Target, settings: Settings, seconds: float, folder: Path
) -> tuple[Profile, Path]:
    """What the engine costs, and the file that tells a gateway. Raises ServerError, ValueError and OSError."""
    calibration = Calibration(cost_model(settings))
    try:
        calibrating(console, target, calibration, seconds, settings)
    except KeyboardInterrupt:
        console.print("interrupted: nothing is measured")
        raise typer.Exit(130) from None
    if len(calibration.trials) < MIN_PROMPTS:
        raise ValueError(f"{len(calibration.trials)} prompts in that time tell no curve: --calibrate more seconds")
    path = folder / "learned.json"
    if not StateFile(path).write(calibration.learned(target.served.name, settings.profile, None)):
        raise OSError(f"{path} cannot be written")
    return calibration.model.profile, path


def _run(runner: VariantRunner, shape: Shape, rate: float | None, chosen: Sequence[Variant], repeat: int) -> _Course:
    """All of it, or what came before Ctrl-C, or before the engine failed, which is raised where nothing came before."""
    course = _Course(shape, {})
    try:
        records = runner.unloaded(shape)
        course.unloaded = {
            "ttft_s": median(record.ttft for record in records),
            "e2e_s": median(record.e2e for record in records),
        }
        course.shape = replace(shape, rate=shaping.rate(rate, **course.unloaded))
        runner.console.print(f"{course.shape.text}; a short one alone: {shown(course.unloaded['ttft_s'], 's')}")
        for number in range(1, repeat + 1):
            for variant in chosen:
                runner.measure(variant, number, course.shape)
    except (KeyboardInterrupt, Interrupted):
        course.interrupted = True
    except RuntimeError as error:
        if not runner.trials:
            raise
        course.failure = error
    return course


def _tell(console: Console, findings: Findings, assignments: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print(encode(findings.summary(provenance())).decode())
    elif findings.measured:
        console.print(table(findings.measured, findings.unloaded["ttft_s"]))
        _tell_advice(console, findings.advice, assignments)


def _tell_advice(console: Console, advice: Advice | None, assignments: Sequence[str]) -> None:
    if advice is None:
        console.print("\nNothing beside direct was measured, so nothing can be advised.")
        return
    console.print()
    for words in advice.words:
        console.print(words, soft_wrap=True)
    if lines := advice.lines(layers.assigned(assignments)):
        flags = " ".join(f"--set {line.replace(' = ', '=', 1)}" for line in lines)
        toml = "\n".join(lines)
        said = f"\nAt the top of fairlane.toml:\n\n{toml}\n\nor `fairlane serve {flags}`."
        console.print(said, soft_wrap=True, markup=False)
