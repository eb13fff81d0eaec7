"""One run of a workload, on either clock, and what is kept of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from signal import SIGINT

import anyio

from gateway.pricing.profile import Profile
from loadtest.client import probe
from loadtest.client.load_client import LoadClient
from loadtest.client.texts import Texts
from loadtest.plan.plan import Plan
from loadtest.results.records import Record
from loadtest.results.summary import About, Slo, Summary, summarize
from loadtest.runs.provenance import provenance
from loadtest.simulation.deployment import Deployment
from loadtest.spark.engine import prefill_alone, word_latency
from loadtest.spark.profile import EngineProfile
from loadtest.workloads.workload import Options, Workload

OnEnd = Callable[[Record], None]


@dataclass(frozen=True)
class Load:
    """What is sent, and what a good answer to it is."""

    workload: Workload
    options: Options
    plan: Plan
    slo: Slo


@dataclass(frozen=True)
class Run:
    summary: Summary
    records: list[Record]


def simulate(load: Load, front: Deployment, machine: EngineProfile, *, noise: float = 0.0, label: str = "") -> Run:
    """On the virtual clock."""
    records = front.simulate(load.plan, machine, seed=load.options.seed, noise=noise)
    about = About(
        workload=load.workload.name,
        seed=load.options.seed,
        clock="virtual",
        policy=label or front.title,
        profile=machine.name,
        model=machine.name,
        note=load.workload.note,
        provenance=provenance(engine=flags(machine), noise=f"{noise:g}", **front.settings()),
    )

    @lru_cache
    def alone(prompt_tokens: int) -> float:
        return prefill_alone(machine, prompt_tokens)

    latency = word_latency(machine)
    return Run(summarize(about, load.plan, records, alone=alone, slo=load.slo, latency=latency), records)


@dataclass(frozen=True)
class Target:
    """A server, and how it is spoken to.

    label    what it is called in the figures
    speed    of its clock, if it is a simulated one
    timeout  seconds after which a request counts as failed
    cost     what its prompts cost on an idle machine: only the ratios between users hang on it
    """

    base_url: str
    model: str
    label: str
    cost: Profile
    api_key: str | None = None
    user_header: str = "x-openwebui-user-id"
    speed: float = 1.0
    timeout: float | None = None
    ignore_eos: bool = False
    bytes_per_token: float | None = None


def run(load: Load, target: Target, on_end: OnEnd, *, nonce: str) -> Run:
    """On the real clock, until all have ended or Ctrl-C, which ends it in order: what came is kept."""
    backend = {"use_uvloop": True}
    return anyio.run(_run, load, target, on_end, nonce, backend_options=backend)


async def _run(load: Load, target: Target, on_end: OnEnd, nonce: str) -> Run:
    texts = await _texts(target, nonce)
    latency = 0.0
    if load.workload.loop == "closed":
        latency = target.speed * await probe.latency(target.base_url, target.model, target.api_key)
    loader = LoadClient(
        target.base_url,
        target.model,
        speed=target.speed,
        api_key=target.api_key,
        user_header=target.user_header,
        timeout=target.timeout,
        ignore_eos=target.ignore_eos,
        texts=texts,
    )
    began, cpu = time.perf_counter(), time.process_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_stop_on_interrupt, tasks.cancel_scope)
        await loader.run(load.plan, on_end)
        tasks.cancel_scope.cancel()
    used = (time.process_time() - cpu) / (time.perf_counter() - began)
    about = About(
        workload=load.workload.name,
        seed=load.options.seed,
        clock="real",
        policy=target.label,
        model=target.model,
        note=load.workload.note,
        provenance=provenance(
            server=await probe.server_version(target.base_url, target.api_key),
            bytes_per_token=f"{texts.bytes_per_token:.3f}",
            speed="" if target.speed == 1 else f"{target.speed:g}",
        ),
    )
    summary = summarize(
        about, load.plan, loader.records, alone=target.cost.prefill, slo=load.slo, latency=latency, client_cpu=used
    )
    return Run(summary, loader.records)


async def _stop_on_interrupt(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(SIGINT) as signals:
        async for _ in signals:
            scope.cancel()


async def _texts(target: Target, nonce: str) -> Texts:
    """In the server's own measure, unless it was given."""
    if target.bytes_per_token is not None:
        return Texts(bytes_per_token=target.bytes_per_token, nonce=nonce)
    return await probe.measure(target.base_url, target.model, target.api_key, nonce=nonce)


def flags(machine: EngineProfile) -> str:
    """As vLLM would be started."""
    said = [f"--max-num-batched-tokens {machine.max_num_batched_tokens}", f"--max-num-seqs {machine.max_num_seqs}"]
    if machine.long_prefill_token_threshold:
        said.append(f"--long-prefill-token-threshold {machine.long_prefill_token_threshold}")
    if machine.scheduling_policy != "fcfs":
        said.append(f"--scheduling-policy {machine.scheduling_policy}")
    said.append("--enable-prefix-caching" if machine.enable_prefix_caching else "--no-enable-prefix-caching")
    if machine.kv_cache_tokens is not None:
        said.append(f"cache of {machine.kv_cache_tokens} tokens")
    return " ".join(said)
