"""The load generator: a plan's requests, sent to an OpenAI server in real time, each when it is due.

It runs on asyncio and on uvloop.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from time import perf_counter
from urllib.parse import quote

import anyio
import msgspec
from anyio.abc import TaskGroup

from loadtest.results.records import Outcome, Record
from loadtest.runs.connection import Server
from loadtest.runs.streamed_answer import StreamedAnswer
from loadtest.workloads.plan import Plan
from loadtest.workloads.schedule import Due, Schedule
from loadtest.workloads.texts import Texts

# What may stand in a header as it is. The rest, umlauts and line ends, is written as in a URL.
_IN_HEADERS = " !\"#$%&'()*+,/:;<=>?@[\\]^`{|}~"

OnEnd = Callable[[Record], None]


@dataclass(frozen=True)
class Endpoint:
    """A server, and how it is spoken to.

    user_header  tells who asks, beside the body's `user`
    speed        of the server's clock, which all times are on: a second of it is 1/speed s of ours
    timeout      seconds after which a request has failed
    ignore_eos   asks vLLM for answers of the very length that is asked for
    """

    base_url: str
    model: str
    api_key: str | None = None
    user_header: str = "x-openwebui-user-id"
    speed: float = 1.0
    timeout: float = 3600.0
    ignore_eos: bool = False


class LoadClient:
    """Streams chat requests, each once, whatever comes of it.

    records  what is measured, from the run's begin on; what there is of it when the run is cut off
    texts    makes the prompts, in the server's tokens
    """

    def __init__(self, endpoint: Endpoint, texts: Texts | None = None) -> None:
        self.records: list[Record] = []
        self.endpoint = endpoint
        self.server = Server(endpoint.base_url)
        self._texts = texts or Texts()
        self._headers = {"authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
        self._body = {"model": endpoint.model, "stream": True, "stream_options": {"include_usage": True}}
        if endpoint.ignore_eos:
            self._body["ignore_eos"] = True

    async def run(self, plan: Plan, on_end: OnEnd | None = None) -> list[Record]:
        """A record of each request, in the plan's order; `on_end` is told of each that ends. Cancelled, it hangs up,
        and what is under way or not yet due stays interrupted."""
        self.records = [Record(request, number) for number, request in enumerate(plan.requests)]
        await self.server.resolve()
        async with anyio.create_task_group() as tasks:
            await _Run(self, plan, tasks, on_end).until_over()
        return self.records

    def write(self, plan: Plan, number: int, answers: Mapping[int, str]) -> bytes:
        """A request as it goes over the wire; `answers` are those that came to the ones that it continues."""
        request = plan.requests[number]
        headers = {**self._headers, self.endpoint.user_header: quote(request.user, _IN_HEADERS)}
        if request.session:
            headers["x-session-id"] = quote(request.session, _IN_HEADERS)
        messages = self._messages(plan, number, answers)
        body = {**self._body, "user": request.user, "max_tokens": request.asks_for, "messages": messages}
        return self.server.request("/chat/completions", msgspec.json.encode(body), headers)

    def _messages(self, plan: Plan, number: int, answers: Mapping[int, str]) -> list[dict[str, str]]:
        turns = [number]
        while (before := plan.requests[turns[-1]].continues) is not None:
            turns.append(before)
        first = plan.requests[turns[-1]]
        messages = []
        if first.system_tokens:
            messages.append({"role": "system", "content": self._texts.system(first.system, first.system_tokens)})
        for turn in reversed(turns):
            messages.append({"role": "user", "content": self._texts.prompt(turn, plan.requests[turn])})
            if turn != number:
                messages.append({"role": "assistant", "content": answers.get(turn, "")})
        return messages


class _Run:
    """One run of a plan. A timer rings for who is due next; each request under way has a task."""

    def __init__(self, client: LoadClient, plan: Plan, tasks: TaskGroup, on_end: OnEnd | None) -> None:
        self._client = client
        self._speed = client.endpoint.speed
        self._plan = plan
        self._tasks = tasks
        self._on_end = on_end
        self._schedule = Schedule(plan)
        self._unfinished = len(plan.requests)
        self._over = anyio.Event()
        self._due: list[Due] = []
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._continued = {request.continues for request in plan.requests}
        self._answers: dict[int, str] = {}  # of those that are continued
        self._start = perf_counter()

    async def until_over(self) -> None:
        try:
            self._wait_for(self._schedule.start())
            if self._unfinished:
                await self._over.wait()
        finally:
            if self._timer:
                self._timer.cancel()

    def _now(self) -> float:
        return (perf_counter() - self._start) * self._speed

    def _wait_for(self, due: Iterable[Due]) -> None:
        for each in due:
            heappush(self._due, each)
        if self._timer:
            self._timer.cancel()
        if self._due:
            seconds = (self._due[0][0] - self._now()) / self._speed
            self._timer = self._loop.call_later(max(0.0, seconds), self._ring)

    def _ring(self) -> None:
        now = self._now()
        while self._due and self._due[0][0] <= now:
            when, number = heappop(self._due)
            self._client.records[number].scheduled = when
            self._send(self._schedule.arrive(number), when)
        self._wait_for(())

    def _send(self, numbers: Iterable[int], since: float) -> None:
        for number in numbers:
            self._tasks.start_soon(self._request, number, since)

    async def _request(self, number: int, since: float) -> None:
        """`since` when it might be sent."""
        client, record = self._client, self._client.records[number]
        answer = StreamedAnswer(record, self._speed, keep_text=number in self._continued)
        wire = client.write(self._plan, number, self._answers)
        record.sent = self._now()
        record.lag = max(0.0, record.sent - since)
        with anyio.move_on_after(client.endpoint.timeout / self._speed) as limit:
            try:
                await client.server.exchange(wire, answer, self._now)
            except OSError as error:
                record.outcome, record.detail = Outcome.UNREACHABLE, error.strerror or str(error) or "no connection"
        if limit.cancelled_caught:
            record.outcome = Outcome.TIMEOUT
        if answer.keep_text and record.completed:
            self._answers[number] = answer.text
        self._end(record)

    def _end(self, record: Record) -> None:
        now = record.ended = self._now()
        if self._on_end:
            self._on_end(record)
        sent, due = self._schedule.end(record.number, now)
        self._send(sent, now)
        if due:
            self._wait_for(due)
        self._unfinished -= 1
        if not self._unfinished:
            self._over.set()
