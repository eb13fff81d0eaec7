"""Measures the variants at an engine, each run through a gateway process of its own, fresh from one calibration."""

import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx
from rich.console import Console

from gateway.pricing.profile import Profile
from loadtest.calibration.measure import Target
from loadtest.client.probe import ServerError
from loadtest.plan.plan import Plan
from loadtest.preempt.counters import Slices
from loadtest.preempt.figures import Trial
from loadtest.preempt.shape import LONG, Shape
from loadtest.preempt.variant import Variant
from loadtest.results.records import Record
from loadtest.results.summary import Slo, row
from loadtest.runs.live_display import displaying
from loadtest.runs.process import running
from loadtest.runs.run import Load, Run
from loadtest.runs.run import Target as Server
from loadtest.runs.run import run as run_at
from loadtest.storage.results_folder import Result, Writer, writing
from loadtest.workloads.workload import Options, Workload

NAME = "preempt"
GETS_TO_KNOW_S = 30.0  # the engine, and what was learned of it


class Interrupted(Exception):
    """By Ctrl-C, during a run; what had ended by then is kept."""


@dataclass(frozen=True)
class Bench:
    """An engine, and what the gateways before it are told.

    cost         what its prompts cost
    state_file   what was learned of it; each gateway gets a copy
    assignments  the user's settings, as --set has them
    out          folder for the runs, each in its own: VARIANT/NUMBER
    """

    console: Console
    target: Target
    cost: Profile
    state_file: Path
    assignments: tuple[str, ...] = ()
    out: Path | None = None
    trials: dict[str, list[Trial]] = field(default_factory=dict)

    def unloaded(self, shape: Shape) -> list[Record]:
        """Short prompts one by one, without a gateway. Raises ServerError, and Interrupted."""
        records = self._probe(shape, shape.unloaded(), self.target.base_url, "short prompts, one at a time")
        return records[1:]  # the first is a warm-up

    def measure(self, variant: Variant, number: int, shape: Shape) -> None:
        """One run more. Raises Interrupted; a run that was cut off is on the disk alone."""
        title = f"{variant.name} #{number}" if number > 1 else variant.name
        with ExitStack() as stack:
            url = self.target.base_url if variant.direct else stack.enter_context(self._gateway(variant))
            records = self._probe(shape, shape.alone(), url, f"{title}: long prompts, one at a time")
            alone = median(record.ttft for record in records if record.request.kind == LONG)
            before = None if variant.direct else _slices(url)
            writer = stack.enter_context(writing(self.out / variant.name / str(number))) if self.out else None
            run = self._run(shape, shape.plan(), url, variant.name, title, writer)
            if run.summary.interrupted:
                raise Interrupted
            after = None if variant.direct else _slices(url)
        slices = after.since(before) if before and after else None
        result = Result(variant.name, run.summary, tuple(map(row, run.records)))
        self.trials.setdefault(variant.name, []).append(Trial(result, alone, slices))

    def _probe(self, shape: Shape, plan: Plan, url: str, title: str) -> list[Record]:
        run = self._run(shape, plan, url, title, title)
        if run.summary.interrupted:
            raise Interrupted
        for record in run.records:
            if not record.completed:
                raise ServerError(
                    f"{self.target.base_url} does not answer a prompt of {record.request.prompt_tokens} tokens: "
                    f"{record.outcome.replace('_', ' ')} {record.detail}".rstrip()
                )
        return run.records

    def _run(self, shape: Shape, plan: Plan, url: str, label: str, title: str, writer: Writer | None = None) -> Run:
        workload = Workload(NAME, "", "long prompts at once, short ones meanwhile", "open", lambda options: plan)
        load = Load(workload, Options(shape.seed), plan, Slo())
        model = next(iter(self.target.served.lengths))
        server = Server(url, model, label, self.cost, self.target.api_key, ignore_eos=True)
        with displaying(self.console, title, len(plan.requests)) as display:

            def ended(record: Record) -> None:
                if writer:
                    writer.add(record)
                display.ended(record)

            # A nonce each time: it stands at the begin of each text, and so nothing of it is in any cache.
            run = run_at(load, server, ended, nonce=secrets.token_hex(4))
        if writer:
            writer.finish(run.summary)
        return run

    @contextmanager
    def _gateway(self, variant: Variant) -> Iterator[str]:
        """From when it knows the engine."""
        copy = self.state_file.with_name("gateway.json")
        shutil.copyfile(self.state_file, copy)
        given = [*self.assignments, *variant.assignments, f"state_file={copy}", "host=127.0.0.1"]
        command = ["serve", "--upstream", self.target.base_url, *(f"--set={each}" for each in given)]
        key = self.target.api_key
        with running(command, **({"FAIRLANE_UPSTREAM_KEY": key} if key else {})) as url:
            deadline = time.monotonic() + GETS_TO_KNOW_S
            while not _knows(url):
                if time.monotonic() > deadline:
                    raise ServerError(f"a gateway does not get to know {self.target.base_url}")
                time.sleep(0.05)
            yield url


def _metrics(url: str) -> str:
    return httpx.get(f"{url}/metrics", timeout=30, trust_env=False).raise_for_status().text


def _knows(url: str) -> bool:
    """It has what was learned, and the engine's own metrics, if there are any to be had."""
    lines = _metrics(url).splitlines()
    samples = [line for line in lines if line.startswith('fairlane_samples{of="prefill"}')]
    return any(float(line.rpartition(" ")[2]) > 0 for line in samples)


def _slices(url: str) -> Slices | None:
    return Slices.read(_metrics(url))
