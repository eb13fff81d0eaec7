"""From a client's connection to a request that can be queued: read, identified, priced."""

from time import perf_counter

from gateway.api.base import InferenceRequest
from gateway.api.hints import read_hints
from gateway.config.settings import Settings
from gateway.errors import Rejected
from gateway.identity.callers import Caller
from gateway.lifecycle.core import Core
from gateway.lifecycle.lifecycle import Lifecycle, PricedRequest
from gateway.outcome import Outcome
from gateway.pricing.cost_model import Price
from gateway.proxy.access import Access
from gateway.proxy.call import Call
from gateway.proxy.client_connection import ClientConnection
from gateway.proxy.sliced_prefill import sliceable
from gateway.proxy.waiting_room import WaitingRoom
from gateway.tokenizers.engine import BoundedTokenizer
from policies.base import Job


class Reception:
    def __init__(
        self, settings: Settings, access: Access, core: Core, waiting: WaitingRoom, tokenizer: BoundedTokenizer | None
    ) -> None:
        self.access = access
        self._core = core
        self._waiting = waiting
        self._tokenizer = tokenizer
        self.reconfigure(settings)

    def reconfigure(self, settings: Settings) -> None:
        self.client_stall = settings.client_stall
        self.max_body = settings.max_body
        self.body_timeout = settings.body_timeout
        self.weights = settings.weights
        self.background_delay = settings.background_delay

    async def read(self, call: Call) -> tuple[Caller, InferenceRequest]:
        """Who asks, and for what. Raises UnknownKey, BadRequest, BodyTooLarge, RequestTimeout, Rejected."""
        client = call.client
        caller, body = await self.read_body(client)
        call.request = request = call.route.api.parse(body, client.headers.get(b"content-type", b""))
        estimator = self._core.cost_model.estimator
        self._check_length(request, max(estimator.min_tokens(prompt.size) for prompt in request.prompts))
        self.access.check_user(caller, request)
        return caller, request

    async def read_body(self, client: ClientConnection) -> tuple[Caller, bytes]:
        """Raises UnknownKey, BodyTooLarge, RequestTimeout, ClientLeft."""
        caller = self.access.identify(client.address, client.headers)
        return caller, await client.body(self.max_body, self.body_timeout)

    async def price(self, call: Call, request: InferenceRequest, caller: Caller) -> None:
        """What it will cost; from here on it has a life. Raises Rejected, BadRequest."""
        price = call.price = await self._price(call, request)
        job = self._job(call, request, price, caller)
        model = request.model or ""
        priced = PricedRequest(
            request.prompts,
            price,
            model=model,
            max_tokens=request.max_tokens,
            plan=self._core.plan(price, len(call.ids)) if call.ids is not None else None,
            streamed=request.stream,
        )
        call.life = Lifecycle(self._core, job, priced, self._waiting.apply)

    async def _price(self, call: Call, request: InferenceRequest) -> Price:
        """Counted where something depends on it; with its token ids, where it may be sliced."""
        core, tokenizer = self._core, self._tokenizer
        price = core.cost_model.price(request.prompts)
        if tokenizer is None or not call.route.api.tokenized or not core.needs_count(price):
            return price
        call.asked_at = perf_counter()
        if core.nearly_long(price) and core.may_slice(request.model or "", call.asked_at) and sliceable(request):
            call.ids = await tokenizer.encode(request)
            counted = len(call.ids) if call.ids else None
        else:
            counted = await tokenizer.count(request)
        call.counted_at = perf_counter()
        if counted is None:
            return price
        if len(request.prompts) == 1:
            self._check_length(request, counted)
        core.cost_model.learn_tokens(request.prompts, counted)
        return core.cost_model.price(request.prompts, counted)

    def compare_count(self, call: Call) -> None:
        """The engine has counted the prompt, too."""
        price, usage = call.price, call.begun.settlement.usage
        if self._tokenizer and price and price.counted and usage and call.outcome is Outcome.COMPLETED:
            self._tokenizer.compare(price.tokens, usage.prompt_tokens)

    def _check_length(self, request: InferenceRequest, min_tokens: int) -> None:
        """What can never fit need not wait to be told so. What might fit is the engine's to judge."""
        limit = self._core.max_model_len
        if limit is not None and min_tokens > limit and not request.truncatable:
            raise Rejected(
                Outcome.TOO_LONG,
                f"This model's maximum context length is {limit} tokens. "
                f"However, the prompt has at least {min_tokens}.",
            )

    def _job(self, call: Call, request: InferenceRequest, price: Price, caller: Caller) -> Job:
        headers, rights = call.client.headers, caller.rights
        hints = read_hints(headers)
        flow = caller.flow(request.user)
        head_start = min(hints.priority, rights.priority)
        call.background = self.access.is_background(caller, request, headers)
        if call.background:
            # Behind all who ask within so many seconds of work, not for ever; its user's share stays one.
            head_start = min(head_start, -self.background_delay)
        return Job(
            flow=flow,
            lane=self._core.lane(price),
            tokens=price.uncached,
            cost=price.seconds,
            arrival=call.arrived_at,
            seats=request.seats,
            id=call.id,
            kv_tokens=self._core.kv_tokens(price, request.seats, request.max_tokens),
            session=hints.session or caller.subdivision(request.user) or request.session,
            weight=self.weights.get(flow.partition(":")[2], rights.weight),
            head_start=head_start,
            deadline=call.arrived_at + hints.deadline,
            flow_in_flight=rights.flow_in_flight,
            flow_queued=rights.flow_queued,
        )
