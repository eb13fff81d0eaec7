"""The article's closed loops, as llama-benchy sends them: batches in lock-step, point after point.

For each prompt length, for each concurrency, three batches: all requests of a batch leave together (asyncio lets them
go one after the other, some milliseconds apart), and the next batch when the slowest has its answer. Nobody asks again
sooner, so this is no pool of users who are always busy.

The tool counts tokens by the vocabulary of gpt2, the engine by the model's: `ENGINE_TOKENS` has what gemma's came to
in the article's runs, chat template included. It does not tell the engine to ignore the end of an answer. A, B, E and
F were cut at `tg`. In C and G the model came to an end by itself; how long those answers were is not in the results.
We estimate it, from what the whole tests took and from how far throughput per request, times requests, lies above that
of the batch: log-normal, with a mean of 570 tokens in C and 550 in G, and a sigma of 0.35.

Not sent: the tool's warm-up, its question for the capital of France and its measurements of latency.
"""

from dataclasses import dataclass
from itertools import product
from math import log
from random import Random

from loadtest.workloads.plan import Plan, Point, Request
from loadtest.workloads.workload import Options

ENGINE_TOKENS = {256: 240, 1024: 905, 2048: 1900, 4096: 3680, 8192: 7436, 16_384: 14_880, 25_000: 22_490}

RUNS = 3
STAGGER_S = 0.003
ANSWER_SIGMA = 0.35


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """Prompts of `pp` tokens, answers of at most `tg`, so many at a time.

    answer_tokens  the mean answer of a model that ends by itself; None: it goes on until it is cut
    stagger_s      between two requests of a batch
    system_tokens  of the prompt, how many are the system message
    """

    pp: tuple[int, ...]
    tg: int
    concurrency: tuple[int, ...]
    answer_tokens: float | None = None
    stagger_s: float = STAGGER_S
    system_tokens: int = 0

    def plan(self, options: Options) -> Plan:
        random = Random(options.seed)
        requests: list[Request] = []
        points: list[Point] = []
        batch: tuple[int, ...] = ()
        for pp, size in product(self.pp, self.concurrency):
            for _ in range(RUNS):
                start = len(requests)
                requests += [self._request(len(points), pp, slot, batch, random) for slot in range(size)]
                batch = tuple(range(start, start + size))
            points.append(Point(pp, self.tg, size))
        return Plan(tuple(requests), points=tuple(points))

    def _request(self, point: int, pp: int, slot: int, batch_before: tuple[int, ...], random: Random) -> Request:
        lag = slot * self.stagger_s
        return Request(
            at=0.0 if batch_before else lag,
            user=f"client-{slot + 1}",
            kind="batch",
            prompt_tokens=ENGINE_TOKENS[pp] - self.system_tokens,
            output_tokens=self._answer(random),
            max_tokens=self.tg,
            after=batch_before,
            delay=lag,
            system="context" if self.system_tokens else "",
            system_tokens=self.system_tokens,
            text="book",
            point=point,
        )

    def _answer(self, random: Random) -> int:
        if self.answer_tokens is None:
            return self.tg
        return max(1, round(random.lognormvariate(log(self.answer_tokens) - ANSWER_SIGMA**2 / 2, ANSWER_SIGMA)))


CONTEXT_SCALING = ClosedLoop((4096, 8192, 16_384, 25_000), 256, (1, 5, 10))
CONCURRENCY_STRESS = ClosedLoop((25_000,), 256, (5, 10, 20))
# Cut at 1024, the mean is 570.
OUTPUT_THROUGHPUT = ClosedLoop((1024,), 1024, (1, 5, 10), answer_tokens=575)
# `--depth 4` is four tokens of context, not turns, and the tool's own allowance for the template leaves one of them.
MULTI_TURN = ClosedLoop((2048,), 512, (1, 5, 10), system_tokens=1)
RAG_MIX = ClosedLoop((8192,), 512, (5, 10, 20))
# The published times to the first token fit requests that leave at once.
LONG_OUTPUT = ClosedLoop((256,), 4096, (1, 5, 10), answer_tokens=550, stagger_s=0.0)
