"""Measures an engine: prompts one at a time, then a few streams at once, in about so many seconds."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

from gateway.api.chat import CHAT
from gateway.engine.client import EngineClient
from gateway.engine.monitor import Served, served
from gateway.errors import GatewayError
from gateway.pricing.prompt import Prompt
from gateway.scheduling.reconciler import EngineState
from loadtest.benchmark import ladder
from loadtest.benchmark.calibration import Calibration
from loadtest.results.records import Outcome, Record
from loadtest.runs.load_client import Endpoint, LoadClient
from loadtest.runs.probe import ServerError, measure
from loadtest.workloads.plan import Plan, Request
from loadtest.workloads.texts import Texts

DEFAULT_CONTEXT = 32_768  # prompt, where the engine does not tell what it takes
MIN_CONTEXT = 1024  # context from which a curve can be told
RESERVED_TOKENS = 64  # tokens of the context that no prompt gets: an answer, and a tokenizer that cuts this text finer
PROMPT_SHARE = 0.65  # of the time; the rest is for streams
STREAM_TOKENS = (32, 25)  # tokens of its prompt and its answer
WARM_UP_S = 600.0  # an engine may compile at its first prompt
TIMEOUT_FACTOR = 3.0  # times the whole time, after which a prompt is given up

Say = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """An engine, and how it is spoken to: `Served` is what it says that it is, `others` how many sequences it runs
    before anything was asked of it."""

    base_url: str
    api_key: str | None
    served: Served
    others: int = 0

    @property
    def model(self) -> str:
        """The first that it serves."""
        return next(iter(self.served.lengths))

    @property
    def longest(self) -> int:
        """Tokens that a prompt may have. Raises ServerError."""
        length = self.served.max_model_len or DEFAULT_CONTEXT
        if length < MIN_CONTEXT:
            raise ServerError(
                f"{self.base_url} takes {length} tokens at the most: too few to tell what they cost; start vLLM with a "
                f"--max-model-len of {MIN_CONTEXT} or more"
            )
        return int(0.97 * length) - RESERVED_TOKENS


async def find(base_url: str, api_key: str | None) -> Target:
    """Raises ServerError."""
    upstream = EngineClient(base_url, key=api_key)
    try:
        found = await served(upstream)
        metrics = (await upstream.get("/metrics")).content
    except GatewayError as error:
        raise ServerError(f"{error.message} Does vLLM run, and there?") from error
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise ServerError(
                f"{base_url} wants an API key, and {'not this one' if api_key else 'got none'}: it is upstream_key, "
                "in the settings or as FAIRLANE_UPSTREAM_KEY"
            ) from error
        raise ServerError(f"{base_url} lists no model: is that an OpenAI server, with its model loaded?") from error
    finally:
        await upstream.aclose()
    if b"\nfairlane_seats " in metrics:
        raise ServerError(f"{base_url} is a Fairlane: calibrate the engine behind it")
    state = EngineState.read(metrics)
    return Target(base_url, api_key, found, round(state.running + state.waiting) if state else 0)


async def calibrate(
    target: Target, calibration: Calibration, seconds: float, *, most_streams: int, say: Say = lambda said: None
) -> None:
    """Teach it. What it has learned stays learned, however this ends. Raises ServerError."""
    probe = EngineProbe(target, seconds)
    prompts = ladder.Prompts(target.longest)
    say("counting tokens")
    await probe.get_ready()
    say("warm-up: an engine may compile at its first prompt, so this one does not count")
    await probe.warm_up()
    end = perf_counter() + seconds
    await _measure_prompts(probe, prompts, calibration, end - (1 - PROMPT_SHARE) * seconds, say)
    if not calibration.trials:
        raise ServerError(
            f"nothing can be learned from {target.base_url}: it counts no tokens in `usage`, or others' prompts were "
            "before ours all the time"
        )
    await _measure_streams(probe, calibration, most_streams, end, say)


async def _measure_prompts(
    probe: "EngineProbe", prompts: ladder.Prompts, calibration: Calibration, end: float, say: Say
) -> None:
    """Prompts one at a time, until the end."""
    while size := prompts.next(end - perf_counter(), calibration.model.profile.prefill):
        say(f"a prompt of {size:,} tokens")
        parsed, record = await probe.prompt(size)
        if not record.completed:
            probe.check_goes_on(size, record)
            prompts.refused(size)
            continue
        # One that waited in the engine's own line for most of its time says nothing, but the next one may.
        calibration.prompt(size, parsed, record)
        prompts.took(size, record.ttft_send)


async def _measure_streams(
    probe: "EngineProbe", calibration: Calibration, most_streams: int, end: float, say: Say
) -> None:
    """Several answers at once, until the end."""

    def expected(sequences: int) -> float:
        prompt, answer = STREAM_TOKENS
        return calibration.model.profile.prefill(prompt * sequences) + answer * calibration.model.step.at(sequences)

    done: list[int] = []
    while many := ladder.streams(done, end - perf_counter(), most_streams, expected):
        say(f"{many} answers at once" if many > 1 else "an answer by itself")
        records = await probe.streams(many)
        if not all(record.completed for record in records):
            break
        calibration.streams(records)
        done.append(many)


class EngineProbe:
    """Prompts of a length that is asked for, each of text that nobody has sent before."""

    def __init__(self, target: Target, seconds: float) -> None:
        self._target = target
        self._model = target.model
        self._timeout = TIMEOUT_FACTOR * seconds
        self._texts = Texts()

    async def get_ready(self) -> None:
        target = self._target
        self._texts = await measure(target.base_url, self._model, target.api_key, nonce=secrets.token_hex(4))

    async def warm_up(self) -> None:
        """Raises ServerError, if it does not answer."""
        _, (record,) = await self._send([_request(ladder.FIRST_TOKENS, 2)], WARM_UP_S)
        if not record.completed:
            self._give_up(ladder.FIRST_TOKENS, record)

    async def prompt(self, tokens: int) -> tuple[tuple[Prompt, ...], Record]:
        client, (record,) = await self._send([_request(tokens, 1)], self._timeout)
        wire = client.write(Plan((record.request,)), 0, {})
        return CHAT.parse(wire.partition(b"\r\n\r\n")[2]).prompts, record

    async def streams(self, many: int) -> list[Record]:
        _, records = await self._send([_request(*STREAM_TOKENS)] * many, self._timeout)
        return records

    def check_goes_on(self, tokens: int, record: Record) -> None:
        """A prompt that was too long, or took too long, is an answer, too. Raises ServerError for anything else."""
        too_long = record.outcome is Outcome.HTTP_ERROR and record.detail.startswith(("400", "413"))
        if not (too_long or record.outcome is Outcome.TIMEOUT) or tokens <= ladder.FIRST_TOKENS:
            self._give_up(tokens, record)

    async def _send(self, requests: list[Request], timeout: float) -> tuple[LoadClient, list[Record]]:
        target = self._target
        # A nonce each time: it stands at the begin of each text, and so nothing of it is in any cache.
        texts = replace(self._texts, nonce=secrets.token_hex(4))
        client = LoadClient(
            Endpoint(target.base_url, self._model, target.api_key, timeout=timeout, ignore_eos=True), texts
        )
        return client, await client.run(Plan(tuple(requests)))

    def _give_up(self, tokens: int, record: Record) -> None:
        detail = f", {record.detail}" if record.detail else ""
        raise ServerError(
            f"{self._target.base_url} does not answer a prompt of {tokens} tokens: "
            f"{record.outcome.replace('_', ' ')}{detail}"
        )


def _request(prompt_tokens: int, output_tokens: int) -> Request:
    return Request(0.0, "fairlane-calibrate", "calibration", prompt_tokens, output_tokens)
