"""Random scenarios, step by step through vLLM's own scheduler and through our engine: a report of each, as JSON.

Run it with the Python of vLLM's own environment, the repository's root in PYTHONPATH:
`python scheduler_steps.py MODEL_FOLDER SCENARIOS`. The scheduler is vLLM's code, with and without async scheduling;
the loop around it is EngineCore's, without a model: every sequence has an answer that is drawn beforehand.

Compared are

    in every step       who is scheduled, each with how many tokens; how many run and wait; the cache's usage;
                        who gets a token at its end
    when all have left  how many tokens were looked up in the prefix cache, and found there, and each sequence's part;
                        how often each was preempted; and that nobody is left

and drawn are the budget, the seats, the threshold, the cache's size and its blocks', prefix caching, the policy,
async scheduling, texts that start alike, priorities, when who comes, and who is aborted in the middle.
"""

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import count
from random import Random
from typing import Any

from loadtest.spark.engine import Engine, Sequence
from loadtest.spark.profile import EngineProfile
from loadtest.storage.engine_profiles import load_profile

torch = importlib.import_module("torch")  # absent from the development environment, as is vLLM
config = importlib.import_module("vllm.config")
hashing = importlib.import_module("vllm.utils.hashing")
kv_cache_interface = importlib.import_module("vllm.v1.kv_cache_interface")
kv_cache_utils = importlib.import_module("vllm.v1.core.kv_cache_utils")
outputs = importlib.import_module("vllm.v1.outputs")
request = importlib.import_module("vllm.v1.request")
sampling_params = importlib.import_module("vllm.sampling_params")
async_scheduler = importlib.import_module("vllm.v1.core.sched.async_scheduler")
scheduler = importlib.import_module("vllm.v1.core.sched.scheduler")
structured_output = importlib.import_module("vllm.v1.structured_output")

VOCABULARY = 1000
MAX_MODEL_LEN = 4096  # longer than any text here
MAX_STEPS = 5000  # more than any scenario takes
FLAGS = (
    *("max_num_batched_tokens", "max_num_seqs", "long_prefill_token_threshold", "async_scheduling", "kv_cache_tokens"),
    *("block_size", "enable_prefix_caching", "scheduling_policy"),
)

Parts = dict[str, int]  # who is scheduled in a step, with how many tokens


@dataclass(frozen=True)
class Asked:
    """What somebody wants. It is aborted in step `leaves`, before or after its end."""

    name: str
    prompt: list[int]
    answer: list[int]
    priority: int
    arrives: int
    leaves: int | None
    leaves_between: bool


@dataclass(frozen=True)
class Scenario:
    profile: EngineProfile
    blocks: int
    asked: list[Asked]


@dataclass
class Report:
    """`difference` is empty if there was none. The numbers say what the scenario was good for."""

    flags: dict[str, Any]
    difference: str = ""
    steps: int = 0
    aborted: int = 0
    preemptions: int = 0
    hits: int = 0


@dataclass
class Totals:
    """At the end: by sequence what its first token said was cached, and how often it was preempted."""

    queries: int
    hits: int
    cached: Parts
    preemptions: Parts
    left: tuple[int, int]


@dataclass
class Scheduled:
    """A step of vLLM's, on its way to the model and back: the token that each sequence gets, if it gets one."""

    output: Any
    tokens: dict[str, list[int]] = field(default_factory=dict)


class Theirs:
    """EngineCore around vLLM's scheduler: its `step`, or with async scheduling its `step_with_batch_queue`."""

    def __init__(self, scenario: Scenario, model: Any) -> None:
        profile = scenario.profile
        self._async = profile.async_scheduling
        size = profile.block_size
        cache = config.CacheConfig(block_size=size, enable_prefix_caching=profile.enable_prefix_caching)
        whole = config.VllmConfig(
            scheduler_config=config.SchedulerConfig(
                max_num_seqs=profile.max_num_seqs,
                max_num_batched_tokens=profile.max_num_batched_tokens,
                max_model_len=MAX_MODEL_LEN,
                long_prefill_token_threshold=profile.long_prefill_token_threshold,
                enable_chunked_prefill=True,
                async_scheduling=profile.async_scheduling,
                policy=profile.scheduling_policy,
                is_encoder_decoder=False,
            ),
            model_config=model,
            cache_config=cache,
            device_config=config.DeviceConfig("cpu"),
        )
        layer = kv_cache_interface.FullAttentionSpec(block_size=size, num_kv_heads=1, head_size=1, dtype=torch.float32)
        cache.num_gpu_blocks = scenario.blocks + 1  # vLLM keeps one for itself
        kind = async_scheduler.AsyncScheduler if self._async else scheduler.Scheduler
        self._scheduler = kind(
            vllm_config=whole,
            kv_cache_config=kv_cache_interface.KVCacheConfig(
                num_blocks=cache.num_gpu_blocks,
                kv_cache_tensors=[],
                kv_cache_groups=[kv_cache_interface.KVCacheGroupSpec(["layer"], layer)],
            ),
            block_size=size,
            log_stats=True,
            structured_output_manager=structured_output.StructuredOutputManager(whole),
        )
        self._block_hasher = kv_cache_utils.get_request_block_hasher(size, hashing.sha256)
        self._arrivals = count()
        self._answers: dict[str, list[int]] = {}
        self._requests: dict[str, Any] = {}
        self._steps: list[Scheduled] = []  # the one that runs, and with async scheduling the next
        self._queries = self._hits = 0
        self._cached: Parts = {}

    def add(self, asked: Asked) -> None:
        self._answers[asked.name] = asked.answer
        self._requests[asked.name] = request.Request(
            request_id=asked.name,
            prompt_token_ids=list(asked.prompt),
            sampling_params=sampling_params.SamplingParams(
                max_tokens=len(asked.answer), ignore_eos=True, temperature=0
            ),
            pooling_params=None,
            priority=asked.priority,
            arrival_time=float(next(self._arrivals)),
            block_hasher=self._block_hasher,
        )
        self._scheduler.add_request(self._requests[asked.name])

    def abort(self, name: str) -> None:
        self._scheduler.finish_requests(name, request.RequestStatus.FINISHED_ABORTED)

    def begin(self) -> Parts | None:
        while not self._steps:  # a step that took a seat may be empty, and the next one is not
            if not self._scheduler.has_requests():
                return None
            self._schedule()
        if self._async and self._scheduler.has_requests():
            self._schedule()
        return dict(self._steps[0].output.num_scheduled_tokens)

    def end(self) -> list[str]:
        return self._update(self._steps.pop(0))

    @property
    def state(self) -> tuple[int, int, float]:
        running, waiting = self._scheduler.get_request_counts()
        return running, waiting, round(self._scheduler.kv_cache_manager.usage, 9)

    def totals(self) -> Totals:
        return Totals(
            queries=self._queries,
            hits=self._hits,
            cached=self._cached,
            preemptions={name: each.num_preemptions for name, each in self._requests.items()},
            left=self._scheduler.get_request_counts(),
        )

    def _schedule(self) -> None:
        step = Scheduled(self._scheduler.schedule())
        for name in step.output.num_scheduled_tokens:
            each = self._scheduler.requests[name]
            at = each.num_computed_tokens - each.num_prompt_tokens  # in its answer, once this step is over
            step.tokens[name] = [] if each.is_prefill_chunk else [self._answers[name][at]]
        if step.output.total_num_scheduled_tokens:
            self._steps.append(step)
        else:
            self._update(step)

    def _update(self, step: Scheduled) -> list[str]:
        computed = outputs.ModelRunnerOutput(
            req_ids=list(step.tokens),
            req_id_to_index={name: index for index, name in enumerate(step.tokens)},
            sampled_token_ids=list(step.tokens.values()),
        )
        emitted: list[str] = []
        for of_client in self._scheduler.update_from_output(step.output, computed).values():
            for each in of_client.outputs:
                if each.new_token_ids:
                    emitted.append(each.request_id)
                if each.prefill_stats:  # with the first token
                    self._cached[each.request_id] = each.prefill_stats.num_cached_tokens
            if of_client.scheduler_stats and (found := of_client.scheduler_stats.prefix_cache_stats):
                self._queries += found.queries
                self._hits += found.hits
        return sorted(emitted)


class Ours:
    """Our engine, asked the same."""

    def __init__(self, scenario: Scenario) -> None:
        self._engine = Engine(scenario.profile)
        self._size = scenario.profile.block_size
        self._sequences: dict[str, Sequence] = {}
        self._names: dict[Sequence, str] = {}
        self._cached: Parts = {}

    def add(self, asked: Asked) -> None:
        sequence = Sequence(
            len(asked.prompt),
            len(asked.answer),
            priority=asked.priority,
            keys=tuple(keys(asked.prompt + asked.answer, self._size)),
        )
        self._sequences[asked.name] = sequence
        self._names[sequence] = asked.name
        self._engine.add(sequence)

    def abort(self, name: str) -> None:
        self._engine.abort(self._sequences[name])

    def begin(self) -> Parts | None:
        step = self._engine.begin()
        if step is None:
            return None
        prefilling = {self._names[sequence]: chunk for sequence, chunk in step.chunks}
        return prefilling | {self._names[sequence]: 1 for sequence in step.decoding}

    def end(self) -> list[str]:
        step = self._engine.end()
        self._cached |= {self._names[sequence]: sequence.cached for sequence in step.first}
        return sorted(self._names[sequence] for sequence in step.emitted)

    @property
    def state(self) -> tuple[int, int, float]:
        return self._engine.running, self._engine.waiting, round(self._engine.kv_usage, 9)

    def totals(self) -> Totals:
        return Totals(
            queries=self._engine.prefix_queries,
            hits=self._engine.prefix_hits,
            cached=self._cached,
            preemptions={name: sequence.preemptions for name, sequence in self._sequences.items()},
            left=(self._engine.running, self._engine.waiting),
        )


def keys(text: list[int], size: int) -> Iterator[int]:
    """One for each full block, of all that is before its end."""
    key = 0
    for end in range(size, len(text) + 1, size):
        key = hash((key, *text[end - size : end]))
        yield key


def draw(seed: int) -> Scenario:
    """Small enough numbers for the limits to meet each other in every way."""
    random = Random(seed)
    size = random.choice((1, 2, 4, 4, 8, 16))
    seats = random.choice((1, 2, 3, 5, 8, 20))
    budget = max(seats, random.choice((4, 8, 16, 40, 100)))
    caching = random.random() < 0.6
    by_priority = random.random() < 0.5
    longest_prompt, longest_answer = random.choice((5, 20, 60)), random.choice((1, 5, 30))
    asked: list[Asked] = []
    for number in range(random.randint(1, 25)):
        prompt = random.choices(range(VOCABULARY), k=random.randint(1, longest_prompt))
        answer = random.choices(range(VOCABULARY), k=random.randint(1, longest_answer))
        kind = random.random()
        if caching and asked and kind < 0.6:  # without caching, what a text says makes no difference
            before = random.choice(asked)
            text = before.prompt + before.answer
            if kind < 0.35:
                prompt = text[: random.randint(1, len(text))] + prompt[: random.randint(0, 4)]
            else:
                prompt = list(before.prompt)
            if random.random() < 0.5 and text[: len(prompt)] == prompt:
                same = text[len(prompt) :][: len(answer)]
                answer = same + answer[len(same) :]
        asked.append(
            Asked(
                name=f"{number:02}",
                prompt=prompt,
                answer=answer,
                priority=random.choice((0, 0, 1, 2, -1)) if by_priority else 0,
                arrives=random.choice((0, 0, random.randint(0, 30))),
                leaves=random.randint(1, 60) if random.random() < 0.15 else None,
                leaves_between=random.random() < 0.5,
            )
        )
    largest = max(-(-(len(each.prompt) + len(each.answer)) // size) for each in asked)
    blocks = largest + random.choice((0, 0, 1, 2, 5, 20, 200))
    profile = load_profile("gemma-4-26b-bf16").with_flags(
        max_num_batched_tokens=budget,
        max_num_seqs=seats,
        long_prefill_token_threshold=random.choice((0, 0, 1, 3, 7, 20) if budget >= 20 else (0, 2, budget)),
        async_scheduling=random.random() < 0.5,
        kv_cache_tokens=blocks * size + random.randrange(size),
        block_size=size,
        enable_prefix_caching=caching,
        scheduling_policy="priority" if by_priority else "fcfs",
    )
    return Scenario(profile, blocks, asked)


def remaining(parts: Parts | None, gone: set[str]) -> Parts | None:
    return None if parts is None else {name: tokens for name, tokens in parts.items() if name not in gone}


def compare(scenario: Scenario, model: Any) -> Report:
    """Up to the first difference."""
    report = Report({flag: getattr(scenario.profile, flag) for flag in FLAGS})
    theirs, ours = Theirs(scenario, model), Ours(scenario)
    to_come = sorted(scenario.asked, key=lambda each: each.arrives)
    inside: list[Asked] = []
    gone: set[str] = set()

    def differ(what: str, of_theirs: object, of_ours: object) -> bool:
        if of_theirs != of_ours:
            report.difference = f"step {report.steps}, {what}: vLLM {of_theirs}, ours {of_ours}"
        return of_theirs != of_ours

    def abort(between: bool) -> None:
        for each in inside:
            if each.leaves == report.steps and each.leaves_between == between:
                before = ours.state
                gone.add(each.name)
                theirs.abort(each.name)
                ours.abort(each.name)
                report.aborted += ours.state != before  # it had not left already

    while report.steps < MAX_STEPS:
        report.steps += 1
        while to_come and to_come[0].arrives < report.steps:
            each = to_come.pop(0)
            inside.append(each)
            theirs.add(each)
            ours.add(each)
        their_parts, our_parts = theirs.begin(), ours.begin()
        # A step that was composed before somebody left is still computed with its part, which vLLM lists and we do not.
        if differ("scheduled", remaining(their_parts, gone), remaining(our_parts, gone)):
            return report
        if differ("running, waiting and usage", theirs.state, ours.state):
            return report
        if their_parts is not None:
            abort(between=False)
            if differ("tokens out", theirs.end(), ours.end()):
                return report
        elif not to_come:
            break
        abort(between=True)
    else:
        report.difference = f"no end after {MAX_STEPS} steps"
        return report

    totals = ours.totals()
    differ("in all", theirs.totals(), totals)
    report.preemptions, report.hits = sum(totals.preemptions.values()), totals.hits
    return report


def main(folder: str, scenarios: int) -> None:
    kv_cache_utils.init_none_hash(hashing.sha256)
    model = config.ModelConfig(
        model=folder, tokenizer=folder, dtype="bfloat16", skip_tokenizer_init=True, max_model_len=MAX_MODEL_LEN
    )
    json.dump([asdict(compare(draw(seed), model)) for seed in range(scenarios)], sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
