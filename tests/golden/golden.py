"""Golden results: what simulations and their decisions came to before the code was moved and renamed.

Every case is one workload on one deployment, on the virtual clock, with a fixed seed and no noise. A case's entry has
digests, which say whether anything changed at all, and figures, which say what kind of change it was:

    records_sha256    every instant and count of every request
    decisions_sha256  who was dispatched at each event, and what the budgets had given out; independent of field names
    log_sha256        the text of the decision log, which also changes when its format does

`record.py` writes the entries and compares against them. `decision_logs_v1` has whole logs in the first format, from
simulations, from a real gateway, and from admission driven at random; these must always replay.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from unittest.mock import patch

from gateway.scheduling.admission import Admission
from gateway.scheduling.events import Event
from gateway.telemetry.decision_log import DecisionLog
from loadtest.cli.load import GatewayOptions, LoadOptions, deployment, read_load
from loadtest.results.records import Record
from loadtest.storage.engine_profiles import load_profile
from loadtest.workloads.catalogue import WORKLOADS
from policies.base import Job

Entry = dict[str, int | float | str]

HERE = Path(__file__).parent
FILE = HERE / "golden.json"
LOGS = HERE / "decision_logs_v1"

SEED = 1
PROFILES = ("gemma-4-26b-bf16", "gemma-4-26b-nvfp4")
# A full check should take a few minutes, and this workload alone is most of it.
FIRST_REQUESTS = {"rate-sweep": 250}

# Of each mode, whether the engine has a prefix cache, and the gateway's settings. Without a cache nothing is sliced.
MODES: dict[str, tuple[bool, list[str]]] = {
    "plain": (False, []),
    "whole": (True, ["slicing=false"]),
    "sliced": (True, []),
    "limited": (
        True,
        ["queue_timeout=15", "flow_in_flight=3", "flow_queued=4", "engine.max_num_seqs=8", "engine.kv_tokens=90000"],
    ),
}


@dataclass(frozen=True, slots=True)
class Case:
    workload: str
    profile: str
    deployment: str
    mode: str

    @property
    def name(self) -> str:
        return f"{self.workload} {self.profile} {self.deployment} {self.mode}"


def cases() -> list[Case]:
    return [*_everywhere(), *_elsewhere()]


def _everywhere() -> Iterator[Case]:
    """All workloads on both machines."""
    for workload in WORKLOADS:
        for profile in PROFILES:
            for mode in ("plain", "whole", "sliced"):
                for policy in ("fair", "fifo", "shortest"):
                    yield Case(workload, profile, policy, mode)
            for mode in ("plain", "whole"):
                yield Case(workload, profile, "direct", mode)


def _elsewhere() -> Iterator[Case]:
    """The other deployments, and requests that are refused or wait too long, with the workloads that are quick."""
    for workload in ("office-mix", "starvation", "office-minute"):
        for other in ("drr", "deadline", "semaphore", "priority"):
            yield Case(workload, PROFILES[0], other, "plain")
        for policy in ("drr", "deadline"):
            yield Case(workload, PROFILES[0], policy, "sliced")
        for policy in ("fair", "fifo", "shortest", "drr", "deadline"):
            yield Case(workload, PROFILES[0], policy, "limited")


def entry(case: Case) -> Entry:
    records, log = _simulate(case)
    found = _figures(records) | {"records_sha256": _digest(map(_row, records))}
    if log:
        found |= {
            "log_lines": len(log),
            "log_sha256": _digest(log),
            "decisions_sha256": _digest(map(_decision, log[1:])),
        }
    return found


def recorded() -> dict[str, Entry]:
    """By the case's name."""
    found: dict[str, Entry] = json.loads(FILE.read_text())["cases"]
    return found


# Only what follows depends on names in the code under test. A move or a rename is followed here.


def _simulate(case: Case) -> tuple[list[Record], list[str]]:
    """The records and the decision log, which is empty where nothing stands before the engine."""
    cache, settings = MODES[case.mode]
    machine = load_profile(case.profile).with_flags(enable_prefix_caching=cache)
    load = read_load(LoadOptions(case.workload, SEED, requests=FIRST_REQUESTS.get(case.workload)))
    deployed = deployment(case.deployment, machine, GatewayOptions(settings))
    with _logging(case.deployment) as log:
        records = deployed.simulate(load.plan, machine, seed=load.options.seed)
    return records, log


@contextmanager
def _logging(policy: str) -> Iterator[list[str]]:
    """What a decision log says of the simulation in this block. It has one admission, known when it is told."""
    lines: list[str] = []
    logs: list[DecisionLog] = []

    apply = Admission.apply

    def apply_and_log(admission: Admission, event: Event) -> list[Job]:
        if not logs:
            logs.append(DecisionLog(lines.append, policy, admission))
        dispatched = apply(admission, event)
        logs[0](event, dispatched)
        return dispatched

    with patch.object(Admission, "apply", apply_and_log):
        yield lines


def _row(record: Record) -> str:
    of_the_plan = (record.number, record.scheduled, record.prompt_tokens)
    instants = (record.sent, record.queue, len(record.tokens), *record.tokens, record.ended)
    end = (str(record.outcome), record.detail, record.output_tokens, record.cached_tokens)
    return repr((*of_the_plan, *instants, *end)) + "\n"


def _decision(line: str) -> str:
    """A line's event number, job, those who were dispatched, and the budgets."""
    event = json.loads(line)
    return repr((event["n"], event.get("job"), event["dispatched"], list(event["held"].values()))) + "\n"


def _figures(records: list[Record]) -> Entry:
    done = [record for record in records if record.tokens]
    to_first = sorted(record.tokens[0] - record.scheduled for record in done)
    to_last = sorted(record.tokens[-1] - record.scheduled for record in done)
    return {
        "requests": len(records),
        "completed": sum(str(record.outcome) == "completed" for record in records),
        "ttft_p50_s": _quantile(to_first, 0.5),
        "ttft_p95_s": _quantile(to_first, 0.95),
        "e2e_p50_s": _quantile(to_last, 0.5),
        "makespan_s": round(max(record.ended or 0.0 for record in records), 3),
    }


# No names from here on.


def _quantile(ordered: list[float], share: float) -> float:
    """The nearest value, to the millisecond."""
    return round(ordered[round(share * (len(ordered) - 1))], 3)


def _digest(lines: Iterable[str]) -> str:
    digest = sha256()
    for line in lines:
        digest.update(line.encode())
    return digest.hexdigest()
