"""Measures the variants at an engine, each run through a gateway process of its own, fresh from one calibration."""

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import httpx
from rich.console import Console

from loadtest.benchmark.figures import Trial
from loadtest.benchmark.shape import LONG, Shape
from loadtest.benchmark.slice_counters import SliceCounters
from loadtest.benchmark.variant import Variant
from loadtest.results.records import Record
from loadtest.results.run import Load
from loadtest.results.summary import Alone, Slo
from loadtest.runs.load_client import Endpoint
from loadtest.runs.probe import ServerError
from loadtest.runs.process import running
from loadtest.runs.run import Target
from loadtest.runs.watched import run_watched
from loadtest.workloads.plan import Plan
from loadtest.workloads.workload import Options, Workload

NAME = "preempt"
READY_TIMEOUT_S = 30.0  # until a gateway knows the engine, and what was learned of it


class Interrupted(Exception):
    """By Ctrl-C, during a run; what had ended by then is kept."""


@dataclass(frozen=True)
class VariantRunner:
    """An engine, and what the gateways before it are told.

    alone        what its prompts take by themselves
    state_file   what was learned of it; each gateway gets a copy
    assignments  the user's settings, as --set has them
    out          folder for the runs, each in its own: VARIANT/NUMBER
    """

    console: Console
    engine: Endpoint
    alone: Alone
    state_file: Path
    assignments: tuple[str, ...] = ()
    out: Path | None = None
    trials: dict[str, list[Trial]] = field(default_factory=dict)

    def unloaded(self, shape: Shape) -> list[Record]:
        """Short prompts one by one, without a gateway. Raises ServerError, and Interrupted."""
        records = self._probe(shape, shape.unloaded(), self.engine.base_url, "short prompts, one at a time")
        return records[1:]  # the first is a warm-up

    def measure(self, variant: Variant, number: int, shape: Shape) -> None:
        """One run more. Raises Interrupted; a run that was cut off is on the disk alone."""
        title = f"{variant.name} #{number}" if number > 1 else variant.name
        folder = self.out / variant.name / str(number) if self.out else None
        with ExitStack() as stack:
            url = self.engine.base_url if variant.direct else stack.enter_context(self._gateway(variant))
            records = self._probe(shape, shape.alone(), url, f"{title}: long prompts, one at a time")
            alone = median(record.ttft for record in records if record.request.kind == LONG)
            before = None if variant.direct else _slices(url)
            run = run_watched(_load(shape, shape.plan()), self._target(url, variant.name), self.console, title, folder)
            if run.summary.interrupted:
                raise Interrupted
            after = None if variant.direct else _slices(url)
        slices = after.since(before) if before and after else None
        self.trials.setdefault(variant.name, []).append(Trial(run.result, alone, slices))

    def _probe(self, shape: Shape, plan: Plan, url: str, title: str) -> list[Record]:
        run = run_watched(_load(shape, plan), self._target(url, title), self.console, title)
        if run.summary.interrupted:
            raise Interrupted
        for record in run.records:
            if not record.completed:
                raise ServerError(
                    f"{self.engine.base_url} does not answer a prompt of {record.request.prompt_tokens} tokens: "
                    f"{record.outcome.replace('_', ' ')} {record.detail}".rstrip()
                )
        return run.records

    def _target(self, url: str, label: str) -> Target:
        return Target(replace(self.engine, base_url=url, ignore_eos=True), label, self.alone)

    @contextmanager
    def _gateway(self, variant: Variant) -> Iterator[str]:
        """From when it knows the engine."""
        copy = self.state_file.with_name("gateway.json")
        shutil.copyfile(self.state_file, copy)
        given = [*self.assignments, *variant.assignments, f"state_file={copy}", "host=127.0.0.1"]
        command = ["serve", "--upstream", self.engine.base_url, *(f"--set={each}" for each in given)]
        key = self.engine.api_key
        with running(command, **({"FAIRLANE_UPSTREAM_KEY": key} if key else {})) as url:
            deadline = time.monotonic() + READY_TIMEOUT_S
            while not _knows(url):
                if time.monotonic() > deadline:
                    raise ServerError(f"a gateway does not get to know {self.engine.base_url}")
                time.sleep(0.05)
            yield url


def _load(shape: Shape, plan: Plan) -> Load:
    workload = Workload(NAME, "", "long prompts at once, short ones meanwhile", "open", lambda options: plan)
    return Load(workload, Options(shape.seed), plan, Slo())


def _metrics(url: str) -> str:
    return httpx.get(f"{url}/metrics", timeout=30, trust_env=False).raise_for_status().text


def _knows(url: str) -> bool:
    """It has what was learned, and the engine's own metrics, if there are any to be had."""
    lines = _metrics(url).splitlines()
    samples = [line for line in lines if line.startswith('fairlane_samples{of="prefill"}')]
    return any(float(line.rpartition(" ")[2]) > 0 for line in samples)


def _slices(url: str) -> SliceCounters | None:
    return SliceCounters.read(_metrics(url))
