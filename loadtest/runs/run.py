"""A run at a server, in real time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from signal import SIGINT

import anyio

from loadtest.results.records import Record
from loadtest.results.run import Load, Run
from loadtest.results.summary import About, Alone, Measurement, summarize
from loadtest.runs import probe
from loadtest.runs.load_client import Endpoint, LoadClient
from loadtest.runs.provenance import provenance
from loadtest.workloads.texts import Texts

OnEnd = Callable[[Record], None]


@dataclass(frozen=True)
class Target:
    """A server under test.

    label            what it is called in the figures
    alone            what its prompts take on an idle machine: only the ratios between users depend on it
    bytes_per_token  of its tokenizer; None: it is measured first
    """

    endpoint: Endpoint
    label: str
    alone: Alone
    bytes_per_token: float | None = None


def run(load: Load, target: Target, on_end: OnEnd, *, nonce: str) -> Run:
    """On the real clock, until all have ended or Ctrl-C, which ends it in order: what came is kept."""
    backend = {"use_uvloop": True}
    return anyio.run(_run, load, target, on_end, nonce, backend_options=backend)


async def _run(load: Load, target: Target, on_end: OnEnd, nonce: str) -> Run:
    endpoint = target.endpoint
    texts = await _texts(target, nonce)
    latency = 0.0
    if load.workload.loop == "closed":
        latency = endpoint.speed * await probe.latency(endpoint.base_url, endpoint.model, endpoint.api_key)
    client = LoadClient(endpoint, texts)
    began, cpu = time.perf_counter(), time.process_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_stop_on_interrupt, tasks.cancel_scope)
        await client.run(load.plan, on_end)
        tasks.cancel_scope.cancel()
    used = (time.process_time() - cpu) / (time.perf_counter() - began)
    about = About(
        workload=load.workload.name,
        seed=load.options.seed,
        clock="real",
        policy=target.label,
        model=endpoint.model,
        note=load.workload.note,
        provenance=provenance(
            server=await probe.server_version(endpoint.base_url, endpoint.api_key),
            bytes_per_token=f"{texts.bytes_per_token:.3f}",
            speed="" if endpoint.speed == 1 else f"{endpoint.speed:g}",
        ),
    )
    measurement = Measurement(load.plan, client.records, target.alone, load.slo, latency, client_cpu=used)
    return Run(summarize(about, measurement), client.records)


async def _stop_on_interrupt(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(SIGINT) as signals:
        async for _ in signals:
            scope.cancel()


async def _texts(target: Target, nonce: str) -> Texts:
    """In the server's own measure, unless it was given."""
    if target.bytes_per_token is not None:
        return Texts(bytes_per_token=target.bytes_per_token, nonce=nonce)
    endpoint = target.endpoint
    return await probe.measure(endpoint.base_url, endpoint.model, endpoint.api_key, nonce=nonce)
