"""What work costs at an engine: `fairlane calibrate` measures it, `fairlane profile` shows it."""

import os
import re
import time
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from gateway.cli.options import Assignments, ConfigFile, user_errors
from gateway.config import layers
from gateway.config.settings import Settings
from gateway.pricing.cost_model import CostModel
from gateway.pricing.profile import Profile
from gateway.pricing.snapshot import CostSnapshot
from gateway.pricing.token_estimator import TokenEstimator
from gateway.storage.config_file import load as load_settings
from gateway.storage.profile_file import load as load_profile
from gateway.storage.profile_file import shipped
from gateway.storage.state_file import StateFile, chosen_path
from loadtest.benchmark import engine_probe
from loadtest.benchmark.calibration import Calibration
from loadtest.charts.price_curve import PriceCurve, accuracy, formula, ms, percent, took
from loadtest.charts.units import NOTHING, number

MIN_PROMPTS = 3  # to tell a curve

app = typer.Typer(no_args_is_help=True, help="Look at what work costs: as shipped, as measured, as learned.")

EngineClient = Annotated[str | None, typer.Option(help="Where vLLM answers, such as http://127.0.0.1:8000.")]


def calibrate(
    upstream: EngineClient = None,
    profile: Annotated[
        str | None, typer.Option(help="What is believed before: a shipped name or a .toml file.")
    ] = None,
    duration: Annotated[float, typer.Option("--seconds", min=1, help="About how long it takes.")] = 20.0,
    state_file: Annotated[
        str | None, typer.Option(help="Where `serve` finds it: auto, off, or a path.", show_default="auto")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write it as a profile, too: a .toml file.", dir_okay=False)] = None,
    config_file: ConfigFile = None,
    assignments: Assignments = None,
) -> None:
    """Measure what prompts and answers cost at an engine, and keep it for `fairlane serve`.

    A few prompts one at a time, each of new text, then a few short answers at once; best while nobody else uses the
    engine. Settings are read as `serve` reads them; a key for vLLM is `upstream_key`. What was measured earlier of the
    same engine is replaced. A gateway that runs meanwhile takes it over within a minute, in place of what it has
    learned itself. Interrupted by Ctrl-C, it shows what it has, and keeps nothing.
    """
    console = Console(width=None if Console().is_terminal else 100, highlight=False)
    with user_errors(RuntimeError):
        flags = {"upstream": upstream, "profile": profile, "state_file": state_file}
        settings = _settings(config_file, flags, assignments)
        warning = "what is measured is theirs, too. Do it again when they are gone."
        target = find_engine(console, settings, warning)
        calibration = Calibration(cost_model(settings))
        interrupted = False
        try:
            calibrating(console, target, calibration, duration, settings)
        except KeyboardInterrupt:
            interrupted = True
        _tell(console, settings, calibration)
        if interrupted:
            console.print("interrupted: nothing is kept")
            raise typer.Exit(130)
        if len(calibration.trials) < MIN_PROMPTS:
            raise ValueError(f"{len(calibration.trials)} prompts in that time tell no curve: give it more --seconds")
        _keep(console, settings, calibration, target.served.name, out)


@app.command("show")
def show(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|FILE]", help="A profile, instead of what was learned.")
    ] = None,
    upstream: EngineClient = None,
    state_file: Annotated[Path | None, typer.Option(help="What was learned, by its file.", dir_okay=False)] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw the curve into this file, too.", dir_okay=False)] = None,
    config_file: ConfigFile = None,
    assignments: Assignments = None,
) -> None:
    """Draw what a prompt costs, with the samples that it was learned from; without arguments, at the engine of the
    settings, as `serve` reads them."""
    console = Console(width=None if Console().is_terminal else 100, highlight=False)
    with user_errors(RuntimeError):
        if name and (upstream or state_file):
            raise ValueError("a profile has no samples: name it, or give --upstream or --state-file")
        settings = _settings(config_file, {"upstream": upstream}, assignments)
        path = state_file or chosen_path(settings.state_file, settings.base_url)
        learned = None if name else _read(path, must_exist=state_file is not None)
        if learned is None or path is None:
            title = name or settings.profile
            if not name:
                console.print(
                    f"Nothing was learned of {settings.base_url} yet (there is no {path}). This is what is believed "
                    "until then; `fairlane calibrate` measures.",
                    style="yellow",
                )
            console.print(title, style="bold")
            curve = PriceCurve(_brief(title), load_profile(title))
            _tell_curve(console, curve)
        else:
            title = learned.engine
            console.print(title, style="bold")
            console.print(f"{path}, written {_ago(path)} ago", soft_wrap=True)
            model = cost_model(settings, learned)
            curve = PriceCurve.of(model, _brief(learned.name) or "its profile")
            _tell_curve(console, curve)
            _tell_samples(console, model)
        if svg:
            svg.write_text(curve.svg(f"Prefill of {title}"))
            console.print(f"wrote {svg}", soft_wrap=True)


@app.command("list")
def list_profiles() -> None:
    """Name the profiles that are shipped."""
    table = Table(box=None, pad_edge=False)
    table.add_column("profile")
    for title in ("1 000 tokens", "25 000 tokens", "output token"):
        table.add_column(title, justify="right")
    for name in shipped():
        profile = load_profile(name)
        costs = took(profile.prefill(1000)), took(profile.prefill(25_000)), ms(profile.decode_s_per_token)
        table.add_row(name, *costs)
    Console(highlight=False).print(table)


def find_engine(console: Console, settings: Settings, warning: str) -> engine_probe.Target:
    """The engine of the settings; the warning is for where others use it. Raises ServerError."""
    key = settings.upstream_key
    target = anyio.run(engine_probe.find, settings.base_url, key.get_secret_value() if key else None)
    console.print(f"{target.served.name}, at {settings.base_url}", style="bold")
    if target.others:
        console.print(f"Others use the engine, {target.others} at this moment: {warning}", style="yellow")
    return target


def calibrating(
    console: Console, target: engine_probe.Target, calibration: Calibration, duration: float, settings: Settings
) -> None:
    """With its progress on the console. Raises ServerError; what was measured by then is in the calibration."""
    columns = (SpinnerColumn(), BarColumn(20), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=duration)
        began = time.monotonic()

        def say(said: str) -> None:
            progress.update(task, description=said, completed=min(duration, time.monotonic() - began))

        async def run() -> None:
            await engine_probe.calibrate(
                target, calibration, duration, most_streams=settings.engine.max_num_seqs, say=say
            )

        anyio.run(run)


def _tell(console: Console, settings: Settings, calibration: Calibration) -> None:
    console.print(f"start: {settings.profile}")
    prompts = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("prompt, tokens", "times", "measured", "start", "learned", "error"):
        prompts.add_column(title, justify="right")
    for size in calibration.sizes:
        told = map(took, (size.seconds, size.start_s, size.learned_s))
        prompts.add_row(f"{size.tokens:,}".replace(",", " "), str(size.times), *told, f"{100 * size.error:+.1f} %")
    steps = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("answers at once", "a token each", "start", "learned"):
        steps.add_column(title, justify="right")
    for step in calibration.steps:
        steps.add_row(str(step.sequences), *map(ms, (step.seconds, step.start_s, step.learned_s)))
    console.print(prompts)
    if calibration.steps:
        console.print()
        console.print(steps)
    console.print(f"\n{formula(calibration.model.profile)}")
    if errors := calibration.errors:
        middle = errors[len(errors) // 2]
        console.print(f"{len(errors)} prompts: median error {percent(middle)}, largest {percent(errors[-1])}")


def _keep(console: Console, settings: Settings, calibration: Calibration, engine: str, out: Path | None) -> None:
    """Raises OSError for a file that cannot be written."""
    path = chosen_path(settings.state_file, settings.base_url)
    if path is None:
        console.print("state_file is off: the gateway will not know of it, unless as a --profile of --out")
    else:
        file = StateFile(path)
        if not file.write(calibration.learned(engine, settings.profile, file.read())):
            raise OSError(f"what was measured is not kept: {path} cannot be written")
        console.print(
            f"Kept in {path}. `fairlane serve --upstream {settings.base_url}` reads it when it starts; one that runs "
            "takes it over within a minute.",
            soft_wrap=True,
        )
    if out:
        name = re.sub(r"[^a-z0-9_-]+", "-", out.stem.lower()) or "measured"
        out.write_text(_rounded(calibration.model.profile).toml(name))
        console.print(f"Wrote {out}: `fairlane serve --profile {out}` starts from it.", soft_wrap=True)


def _rounded(profile: Profile) -> Profile:
    """To so many digits as were measured."""
    figures = {key: float(f"{value:.5g}") for key, value in profile if isinstance(value, float)}
    steps = {sequences: float(f"{value:.4g}") for sequences, value in profile.decode_step_s.items()}
    return profile.model_copy(update=figures | {"decode_step_s": steps})


def _tell_curve(console: Console, curve: PriceCurve) -> None:
    console.print(curve.drawn())
    console.print(formula(curve.best))
    for table in (curve.table(), curve.steps()):
        if table:
            console.print()
            console.print(table)
    console.print(f"\nan output token is charged {ms(curve.best.decode_s_per_token)}")


def _tell_samples(console: Console, model: CostModel) -> None:
    prefill, step, tokens = model.prefill.regression, model.step.regression, model.estimator.regression
    counts = f"{len(prefill.samples)} of prefill, {len(step.samples)} of decode steps, {len(tokens.samples)} of tokens"
    console.print(f"samples kept      {counts}")
    console.print(f"error, prefill    {accuracy(prefill.errors())}")
    console.print(f"error, steps      {accuracy(step.errors())}")
    console.print(f"bytes per token   {_bytes_per_token(model.estimator)}")


def _bytes_per_token(estimator: TokenEstimator) -> str:
    words, marks, wide, message = estimator.regression.theta
    each = [
        f"{number(1 / share, 2) if share else NOTHING} of {what}"
        for share, what in ((words, "prose"), (marks, "digits and punctuation"), (wide, "other scripts"))
    ]
    return f"{', '.join(each)};\n{'':18}{number(message, 2)} tokens around a message"


def _brief(profile: str) -> str:
    """A shipped profile's name, or that of its file."""
    return Path(profile).name.removesuffix(".toml")


def _settings(file: Path | None, flags: dict[str, Any], assignments: list[str] | None) -> Settings:
    given = {key: value for key, value in flags.items() if value is not None}
    given["insecure"] = (
        True  # nobody is let in here, so that its keys, which a service may have elsewhere, can be absent
    )
    return load_settings(file, os.environ, given | layers.assigned(assignments or []))[0]


def cost_model(settings: Settings, learned: CostSnapshot | None = None) -> CostModel:
    """As a gateway of these settings begins with it."""
    start = learned.profile if learned else load_profile(settings.profile)
    engine = settings.engine
    model = CostModel(start, step_tokens=engine.step_tokens, threshold=engine.long_prefill_threshold)
    if learned:
        learned.apply_to(model)
    return model


def _read(path: Path | None, *, must_exist: bool) -> CostSnapshot | None:
    """Raises ValueError, and OSError."""
    if path is None or not (must_exist or path.exists()):
        return None
    try:
        return CostSnapshot.read(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not what a gateway keeps: {error}") from error


def _ago(path: Path) -> str:
    passed = max(0.0, time.time() - path.stat().st_mtime)
    for unit, length in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if passed >= 2 * length:
            return f"{passed / length:.0f} {unit}"
    return f"{passed:.0f} seconds"
