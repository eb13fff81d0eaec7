"""The simulated engine: published figures, vLLM's scheduling rules by hand, and invariants under random use."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from math import ceil
from statistics import mean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.spark.engine import Engine, Sequence, Step, prefill_alone
from loadtest.spark.profile import KINDS, EngineProfile, SchedulingPolicy, StepWork
from loadtest.workloads.plan import TextKind

# The fits that the published figures below were simulated with; the profiles that ship may be fitted anew.
BF16 = EngineProfile(
    name="v1_bf16",
    tf_s=0.03340968619140063,
    te_s=0.11739491209761935,
    td_s=0.00038265660450588235,
    tt_s_per_token=0.00011256850431155101,
    ta_s_per_token2=1.3027520225414931e-08,
    tk_s_per_token=9.728031362270508e-08,
    to_s=0.06834495777116312,
    q=0.0625,
    d={"book": 1.0532013527485802, "random": 1.0502517269630005, "reasoning": 0.5929, "mixed": 1.0502517269630005},
    max_num_batched_tokens=8192,
    max_num_seqs=1024,
    long_prefill_token_threshold=0,
    async_scheduling=True,
    tt_factor={"random": 1.12025528701898},
)
NVFP4 = EngineProfile(
    name="v1_nvfp4",
    tf_s=0.03174831132611528,
    te_s=0.03708765798347837,
    td_s=0.0005417895453575115,
    tt_s_per_token=0.00011939679329453817,
    ta_s_per_token2=1.3735913486467608e-08,
    tk_s_per_token=6.550281395318869e-08,
    to_s=0.015000837865700624,
    q=0.0625,
    d={"book": 0.5435145166610694, "random": 0.6313188154918239, "reasoning": 0.4249, "mixed": 0.6313188154918239},
    max_num_batched_tokens=8192,
    max_num_seqs=1024,
    long_prefill_token_threshold=0,
    async_scheduling=True,
    tt_factor={"random": 1.0432082181216709},
)

# Every step takes one second, whatever is in it.
FLAT = EngineProfile(
    name="flat",
    tf_s=1.0,
    te_s=0.0,
    td_s=0.0,
    tt_s_per_token=0.0,
    ta_s_per_token2=0.0,
    tk_s_per_token=0.0,
    to_s=0.0,
    q=0.0,
    d=dict.fromkeys(KINDS, 1.0),
    max_num_batched_tokens=100,
    max_num_seqs=10,
    long_prefill_token_threshold=0,
    async_scheduling=True,
)
SYNC = FLAT.with_flags(async_scheduling=False)


def one_step(engine: Engine) -> Step:
    assert engine.begin() is not None
    return engine.end()


def drain(engine: Engine) -> list[Step]:
    steps = []
    while engine.begin() is not None:
        steps.append(engine.end())
    return steps


def token_times(engine: Engine, arrivals: Iterable[tuple[float, Sequence]]) -> dict[Sequence, list[float]]:
    """Run on a virtual clock: when each token of each sequence reaches the client."""
    ahead = sorted(arrivals, key=lambda arrival: arrival[0], reverse=True)
    times: dict[Sequence, list[float]] = {sequence: [] for _, sequence in ahead}
    now = 0.0
    while True:
        while ahead and ahead[-1][0] <= now:
            engine.add(ahead.pop()[1])
        if (step := engine.begin()) is None:
            if not ahead:
                return times
            now = ahead[-1][0]
            continue
        now += step.duration_s
        while ahead and ahead[-1][0] < now:
            engine.add(ahead.pop()[1])
        for sequence in engine.end().emitted:
            times[sequence].append(now + engine.profile.to_s)


# The published figures: derived curves and residual tables, from the measurements of Django de Vreng,
# github.com/djangodevreng/dgx-spark-benchmarks, CC-BY-4.0.


@pytest.mark.parametrize(
    ("profile", "milliseconds"),
    [
        (BF16, {256: 248, 1024: 341, 2048: 477, 4096: 790, 8192: 1578, 16384: 3963, 25000: 7557}),
        (NVFP4, {256: 115, 1024: 213, 2048: 357, 4096: 688, 8192: 1523, 16384: 3952, 25000: 7568}),
    ],
)
def test_prefill_times_match_the_published_figures(profile: EngineProfile, milliseconds: dict[int, int]) -> None:
    for tokens, expected in milliseconds.items():
        assert prefill_alone(profile, tokens) * 1000 == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(
    ("profile", "milliseconds"),
    [
        (BF16, {1: 42, 2: 50, 5: 71, 8: 89, 10: 99, 16: 124, 20: 137, 25: 150, 50: 188, 100: 233, 200: 315}),
        (NVFP4, {1: 34, 2: 36, 5: 43, 10: 53, 16: 63, 20: 69, 25: 76, 50: 106, 100: 152, 200: 236}),
    ],
)
def test_decode_step_times_match_the_published_figures(profile: EngineProfile, milliseconds: dict[int, int]) -> None:
    """Sequences of 4500 tokens of context each; the table is rounded to milliseconds."""
    for sequences, expected in milliseconds.items():
        step_s = profile.step_s(profile.mixed_work(decoding=sequences, context=4500 * sequences))
        assert step_s * 1000 == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize(
    ("profile", "prompt", "answer", "users", "stagger", "ttft", "decode"),
    [
        # llama-benchy tests A, B, F, G; the book's routing diversity d; server tokens, about 0.90 of nominal
        (BF16, 3680, 256, 10, 0.003, 3818.2, 9.43),
        (BF16, 7436, 512, 20, 0.003, 14712.5, 6.12),
        (BF16, 22490, 256, 1, 0.003, 6347.1, 22.88),
        (BF16, 22490, 256, 10, 0.003, 34966.8, 5.08),
        (BF16, 22490, 256, 20, 0.003, 66599.1, 3.03),
        (NVFP4, 22490, 256, 10, 0.003, 35471.4, 7.31),
        (NVFP4, 1900, 512, 10, 0.003, 1995.6, 19.60),
        # the fit of test G has the batch arrive in one instant
        (BF16, 240, 4096, 10, 0.0, 493.1, None),
        (NVFP4, 240, 4096, 10, 0.0, 374.4, None),
    ],
)
def test_throughput_of_batches_matches_the_published_figures(
    profile: EngineProfile,
    prompt: int,
    answer: int,
    users: int,
    stagger: float,
    ttft: float,
    decode: float | None,
) -> None:
    """Mean TTFT (ms, from the start of the batch) and mean tokens/s of each user in decode."""
    arrivals = [(stagger * user, Sequence(prompt, answer, text="book")) for user in range(users)]
    times = token_times(Engine(profile), arrivals).values()
    assert mean(each[0] for each in times) * 1000 == pytest.approx(ttft, rel=0.001)
    if decode is not None:
        rates = [(len(each) - 1) / (each[-1] - each[0]) for each in times]
        assert mean(rates) == pytest.approx(decode, rel=0.002)


# Composition, by hand.


def test_async_scheduling_admits_an_arrival_two_steps_later() -> None:
    engine = Engine(FLAT)
    early, late = Sequence(10, 5), Sequence(10, 5)
    engine.add(early)
    engine.begin()
    engine.add(late)  # during step 0; step 1 is composed already
    engine.end()
    assert one_step(engine).chunks == []
    assert one_step(engine).chunks == [(late, 10)]


def test_sync_scheduling_admits_an_arrival_one_step_later() -> None:
    engine = Engine(SYNC)
    early, late = Sequence(10, 5), Sequence(10, 5)
    engine.add(early)
    engine.begin()
    engine.add(late)
    engine.end()
    assert one_step(engine).chunks == [(late, 10)]


def test_async_scheduling_recomposes_an_empty_step() -> None:
    """Nothing was to follow step 0, so a late arrival starts as soon as it ends."""
    engine = Engine(FLAT)
    engine.add(Sequence(10, 1))
    engine.begin()
    late = Sequence(10, 1)
    engine.add(late)
    engine.end()
    assert one_step(engine).chunks == [(late, 10)]


@pytest.mark.parametrize("profile", [FLAT, SYNC])
def test_a_sequence_runs_exactly_as_many_steps_as_tokens(profile: EngineProfile) -> None:
    engine = Engine(profile)
    sequence = Sequence(250, 4)  # three steps of prompt, the third with the first token
    engine.add(sequence)
    steps = drain(engine)
    assert [step.chunks for step in steps] == [[(sequence, 100)], [(sequence, 100)], [(sequence, 50)], [], [], []]
    assert [step.emitted for step in steps] == [[], [], [sequence], [sequence], [sequence], [sequence]]
    assert [step.first for step in steps] == [[], [], [sequence], [], [], []]
    assert [step.finished for step in steps] == [[], [], [], [], [], [sequence]]


@pytest.mark.parametrize(("profile", "joins"), [(FLAT, 3), (SYNC, 2)])
def test_async_scheduling_holds_a_seat_until_the_last_step_ends(profile: EngineProfile, joins: int) -> None:
    engine = Engine(profile.with_flags(max_num_seqs=2))
    short, long, third = Sequence(10, 2), Sequence(10, 9), Sequence(10, 1)
    for sequence in (short, long, third):
        engine.add(sequence)  # `short` ends with step 1
    chunks = [step.chunks for step in drain(engine)]
    assert chunks.index([(third, 10)]) == joins


def test_running_prompts_continue_before_waiting_ones_start() -> None:
    engine = Engine(FLAT)
    first, second = Sequence(150, 3), Sequence(60, 1)
    engine.add(first)
    engine.add(second)
    assert [step.chunks for step in drain(engine)[:3]] == [
        [(first, 100)],
        [(first, 50), (second, 50)],
        [(second, 10)],
    ]


def test_decoding_sequences_take_their_budget_first() -> None:
    engine = Engine(SYNC)
    talker, long = Sequence(1, 5), Sequence(300, 1)
    engine.add(talker)
    one_step(engine)
    engine.add(long)
    step = one_step(engine)
    assert step.decoding == [talker]
    assert step.chunks == [(long, 99)]


def test_no_request_passes_the_head_of_the_queue() -> None:
    engine = Engine(FLAT.with_flags(max_num_seqs=1))
    head, tail = Sequence(100, 3), Sequence(1, 1)
    engine.add(head)
    engine.add(tail)
    assert [step.finished for step in drain(engine)] == [[], [], [head], [tail]]


def test_the_threshold_caps_each_prompt_in_each_step() -> None:
    engine = Engine(FLAT.with_flags(long_prefill_token_threshold=40))
    one, two, three = Sequence(100, 1), Sequence(60, 1), Sequence(30, 1)
    for sequence in (one, two, three):
        engine.add(sequence)
    assert [step.chunks for step in drain(engine)] == [
        [(one, 40), (two, 40), (three, 20)],
        [(one, 40), (two, 20), (three, 10)],
        [(one, 20)],
    ]


def test_the_threshold_is_ignored_for_the_only_request() -> None:
    engine = Engine(SYNC.with_flags(long_prefill_token_threshold=40))
    alone = Sequence(250, 1)
    engine.add(alone)
    assert one_step(engine).chunks == [(alone, 100)]
    engine.add(Sequence(10, 1))
    assert one_step(engine).chunks[0] == (alone, 40)


# Abort


def test_abort_while_waiting() -> None:
    engine = Engine(FLAT.with_flags(max_num_seqs=1))
    running, waiting = Sequence(10, 3), Sequence(10, 3)
    engine.add(running)
    engine.add(waiting)
    one_step(engine)
    assert (engine.running, engine.waiting) == (1, 1)
    engine.abort(waiting)
    assert (engine.running, engine.waiting) == (1, 0)
    assert all(step.emitted == [running] for step in drain(engine))


@pytest.mark.parametrize("profile", [FLAT, SYNC])
@pytest.mark.parametrize("steps", [0, 1, 2, 3], ids=["prefill", "first token", "decode", "last token"])
def test_abort_during_a_step_drops_its_token(profile: EngineProfile, steps: int) -> None:
    engine = Engine(profile)
    leaver, other = Sequence(150, 3), Sequence(10, 9)
    engine.add(leaver)
    engine.add(other)
    before = [one_step(engine) for _ in range(steps)]
    engine.begin()
    engine.abort(leaver)
    assert engine.running + engine.waiting == 1
    after = [engine.end(), *drain(engine)]
    assert all(leaver not in [*step.emitted, *step.finished] for step in after)
    assert [other in step.emitted for step in before + after].count(True) == 9


def test_async_scheduling_still_runs_an_aborted_sequences_composed_step() -> None:
    profile = replace(FLAT, tt_s_per_token=0.01)
    engine = Engine(profile)
    leaver = Sequence(200, 1)
    engine.add(leaver)
    engine.begin()
    engine.abort(leaver)
    engine.end()
    assert [step.duration_s for step in drain(engine)] == [pytest.approx(2.0)]


def test_abort_removes_its_context_from_later_steps() -> None:
    engine = Engine(replace(SYNC, tk_s_per_token=1.0))
    leaver, other = Sequence(10, 9), Sequence(20, 4)
    engine.add(leaver)
    engine.add(other)
    assert [one_step(engine).duration_s for _ in range(2)] == [1, 1 + 11 + 21]
    engine.abort(leaver)
    assert [step.duration_s for step in drain(engine)] == [1 + 22, 1 + 23]


def test_aborting_a_finished_sequence_is_no_error() -> None:
    engine = Engine(FLAT)
    sequence = Sequence(1, 1)
    engine.add(sequence)
    drain(engine)
    engine.abort(sequence)
    assert (engine.running, engine.waiting) == (0, 0)


# Noise


def test_noise_depends_on_the_seed_only() -> None:
    def durations(seed: int, noise: float) -> list[float]:
        engine = Engine(FLAT, seed=seed, noise=noise)
        engine.add(Sequence(1, 500))
        return [step.duration_s for step in drain(engine)]

    assert durations(1, 0.1) == durations(1, 0.1) != durations(2, 0.1)
    assert durations(1, 0.0) == [1.0] * 500
    assert mean(durations(1, 0.1)) == pytest.approx(1.0, abs=0.02)
    assert {min(durations(1, 9.0)), max(durations(1, 9.0))} == {0.5, 2.0}


# Kinds of text


def test_each_kind_of_text_has_its_own_diversity() -> None:
    """It is summed over those who decode in the step, as they come and go."""
    engine = Engine(NVFP4.with_flags(async_scheduling=False))
    kinds: tuple[TextKind, ...] = ("book", "reasoning", "reasoning")
    for answer, kind in enumerate(kinds, start=2):
        engine.add(Sequence(10, answer, text=kind))
    steps = drain(engine)
    for step, context in zip(steps[1:], (33, 24, 13), strict=True):
        routed = sum(NVFP4.d[sequence.text] for sequence in step.decoding)
        expected = NVFP4.step_s(StepWork(decoding=len(step.decoding), context=context, routed=routed))
        assert step.duration_s == pytest.approx(expected, rel=1e-12)


def test_a_random_prompt_costs_more_by_its_factor() -> None:
    engine = Engine(NVFP4)
    engine.add(Sequence(300, 1, text="random"))
    engine.add(Sequence(200, 1, text="book"))
    (step,) = drain(engine)
    weighted = 300 * NVFP4.tt_factor["random"] + 200
    expected = NVFP4.step_s(StepWork(prefilled=500, attended=300 * 150 + 200 * 100, weighted=weighted))
    assert step.duration_s == pytest.approx(expected, rel=1e-12)


# Scheduling by priority

PRIORITY = SYNC.with_flags(scheduling_policy="priority")


def test_a_lower_priority_value_runs_earlier() -> None:
    engine = Engine(PRIORITY.with_flags(max_num_seqs=1))
    late, first, second, early = (Sequence(1, 1, priority=priority) for priority in (1, 0, 0, -5))
    for sequence in (late, first, second, early):
        engine.add(sequence)
    assert [step.started for step in drain(engine)] == [[early], [first], [second], [late]]


def test_fcfs_ignores_priority() -> None:
    engine = Engine(SYNC.with_flags(max_num_seqs=1))
    first, second = Sequence(1, 1, priority=9), Sequence(1, 1, priority=-9)
    engine.add(first)
    engine.add(second)
    assert [step.started for step in drain(engine)] == [[first], [second]]


def test_a_waiting_request_takes_no_running_ones_seat() -> None:
    engine = Engine(PRIORITY.with_flags(max_num_seqs=1))
    seated, urgent = Sequence(1, 5), Sequence(1, 1, priority=-9)
    engine.add(seated)
    one_step(engine)
    engine.add(urgent)
    assert [step.started for step in drain(engine)] == [[], [], [], [], [urgent]]


# The KV cache, by hand: blocks of 4 tokens


def small(blocks: int, profile: EngineProfile = SYNC, **flags: Any) -> EngineProfile:
    return profile.with_flags(kv_cache_tokens=4 * blocks, block_size=4, **flags)


def test_a_prompt_starts_when_all_of_it_fits_and_none_passes_it() -> None:
    engine = Engine(small(10))
    first, long, short = Sequence(20, 2), Sequence(21, 1), Sequence(1, 1)
    for sequence in (first, long, short):
        engine.add(sequence)
    steps = drain(engine)  # `first` holds 5 blocks, then 6; `long` wants 6
    assert [step.started for step in steps] == [[first], [], [long, short]]
    assert engine.preemptions == 0


def test_a_prompt_need_not_fit_beside_the_future_growth_of_others() -> None:
    engine = Engine(small(10, long_prefill_token_threshold=8))
    first, second = Sequence(30, 2), Sequence(20, 1)
    engine.add(first)
    engine.add(second)  # 5 blocks, and the first holds 2 of 10, though it will hold 8
    steps = drain(engine)
    assert [step.chunks for step in steps[:4]] == [[(first, 8), (second, 8)]] * 2 + [[(first, 8)], [(first, 6)]]
    assert steps[5].chunks == [(second, 20)]  # from its start, and since it has no token yet, this is its first
    assert steps[5].first == [second]
    assert (steps[0].started, second.preemptions) == ([first, second], 1)


def test_blocks_are_allocated_as_tokens_arrive() -> None:
    engine = Engine(small(10, max_num_batched_tokens=10))
    engine.add(Sequence(15, 7))
    usage = []
    while engine.begin() is not None:
        usage.append(round(10 * engine.kv_usage))
        engine.end()
    assert usage == [3, 4, 4, 5, 5, 5, 5, 6]  # for 10 and 15 tokens, then 16 to 21; the last one's is never computed
    assert engine.kv_usage == 0


def test_a_request_that_never_fits_is_refused_at_once() -> None:
    engine = Engine(SYNC.with_flags(kv_cache_tokens=47))
    engine.add(Sequence(30, 2))
    with pytest.raises(ValueError, match="kv_cache_tokens"):
        engine.add(Sequence(31, 2))  # it has 2 whole blocks of 16
    assert len(drain(engine)) == 2


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_the_last_started_sequence_is_preempted_and_resumed_first(policy: SchedulingPolicy) -> None:
    engine = Engine(small(5, scheduling_policy=policy))
    first, second, third = Sequence(8, 9), Sequence(4, 9), Sequence(4, 1)
    engine.add(first)
    engine.add(second)
    steps = [one_step(engine)]
    engine.add(third)
    steps += drain(engine)
    # They hold 2 blocks and 1, from step 1 on 3 and 2. In step 5 the first begins its fourth, and the second's go. It
    # has 5 tokens of 9, so 9 to prefill. That does not fit before the first has left, and `third` stays behind it.
    assert [step.decoding for step in steps[4:10]] == [[first, second], *[[first]] * 4, []]
    assert [step.chunks for step in steps[1:10]] == [*[[]] * 8, [(second, 9), (third, 4)]]
    assert (steps[9].first, steps[9].resumed, steps[9].started) == ([third], [second], [third])
    assert [step.emitted for step in steps[10:]] == [[second]] * 3
    assert (engine.preemptions, first.preemptions, second.preemptions) == (1, 0, 1)


def test_a_sequence_may_preempt_itself() -> None:
    engine = Engine(small(4))
    first, second = Sequence(5, 4), Sequence(8, 3)
    engine.add(first)
    engine.add(second)
    steps = drain(engine)
    assert [step.decoding for step in steps] == [[], [first], [first], [first], [], [second]]
    assert steps[4].chunks == [(second, 9)]


def test_priority_scheduling_preempts_the_least_urgent() -> None:
    engine = Engine(small(4, PRIORITY))
    idler, worker = Sequence(4, 9, priority=1), Sequence(8, 5)
    engine.add(idler)
    one_step(engine)
    engine.add(worker)
    one_step(engine)
    assert one_step(engine).decoding == [worker]  # its ninth token
    assert (idler.preemptions, worker.preemptions) == (1, 0)


def test_among_equal_priorities_the_latest_arrival_is_preempted() -> None:
    engine = Engine(small(4, PRIORITY, max_num_seqs=2))
    other, early, late = Sequence(1, 1), Sequence(4, 5, priority=1), Sequence(8, 5, priority=1)
    for sequence in (other, early, late):
        engine.add(sequence)
    assert [one_step(engine).started for _ in range(2)] == [[other, early], [late]]
    assert one_step(engine).decoding == [early]
    assert (early.preemptions, late.preemptions) == (0, 1)


def test_the_preempted_sequences_budget_goes_to_later_ones() -> None:
    engine = Engine(small(10, PRIORITY, long_prefill_token_threshold=8, max_num_batched_tokens=20))
    loser, one, two = Sequence(30, 1, priority=1), Sequence(16, 1), Sequence(16, 1)
    engine.add(Sequence(1, 1))  # not alone, the loser gets the threshold's share
    engine.add(loser)
    one_step(engine)
    engine.add(one)
    engine.add(two)
    assert one_step(engine).chunks == [(loser, 8), (one, 8), (two, 4)]
    assert one_step(engine).chunks == [(one, 8), (two, 8)]  # 6 blocks of 10 were the loser's, and `one` wants 4
    assert loser.computed == 0


def test_the_preempted_sequences_decode_token_goes_to_later_ones() -> None:
    profile = PRIORITY.with_flags(max_num_seqs=3, max_num_batched_tokens=8, long_prefill_token_threshold=4)
    engine = Engine(profile.with_flags(kv_cache_tokens=22, block_size=2))
    loser, one, two = Sequence(4, 9, priority=1), Sequence(12, 1), Sequence(12, 1)
    engine.add(Sequence(1, 1))
    engine.add(loser)
    one_step(engine)
    engine.add(one)
    engine.add(two)
    steps = [one_step(engine) for _ in range(3)]
    assert [step.chunks for step in steps] == [[(one, 4), (two, 3)], [(one, 4), (two, 3)], [(one, 4), (two, 4)]]
    assert [step.decoding for step in steps] == [[loser], [loser], []]


def test_no_sequence_starts_in_a_step_with_a_preemption() -> None:
    engine = Engine(small(5, PRIORITY))
    first, second = Sequence(8, 9), Sequence(4, 9)
    engine.add(first)
    engine.add(second)
    steps = [one_step(engine)]
    urgent = Sequence(4, 1, priority=-1)
    steps += [one_step(engine) for _ in range(4)]
    engine.add(urgent)
    steps += drain(engine)
    assert [step.started for step in steps[5:7]] == [[], [urgent]]  # though one block is free in step 5


def test_priority_scheduling_gives_nothing_to_sequences_after_the_preempted_one() -> None:
    """As in vLLM, whose loop ends there; it cannot happen to the last one seated."""
    engine = Engine(small(4, PRIORITY))
    before, loser, after = Sequence(1, 9), Sequence(7, 9, priority=1), Sequence(1, 9)
    steps = []
    for sequence in (before, loser, after):
        engine.add(sequence)
        steps.append(one_step(engine))
    steps.append(one_step(engine))  # the loser wants a third block
    assert steps[3].decoding == [before]
    assert engine.generated(after) == 1
    steps += drain(engine)
    assert steps[4].decoding == [before, after]
    assert [each in step.emitted for step in steps for each in (before, loser, after)].count(True) == 27


def test_preempting_one_sequence_may_be_enough() -> None:
    """The step would be empty, so it is composed anew; the engine does not stand still."""
    engine = Engine(small(3, PRIORITY))
    loser, after = Sequence(7, 4, priority=1), Sequence(1, 9)
    engine.add(loser)
    one_step(engine)
    engine.add(after)
    one_step(engine)
    step = one_step(engine)
    assert step.decoding == [after]
    assert loser.preemptions == 1
    assert [each in step.emitted for step in drain(engine) for each in (loser, after)].count(True) == 2 + 7


def a_last_token_under_way() -> tuple[Engine, Sequence, Sequence]:
    """Step 1 runs, which ends the second one's answer; step 2 is composed, and took its block for the first one."""
    engine = Engine(small(2, FLAT))
    first, second = Sequence(3, 5), Sequence(1, 2)
    engine.add(first)
    engine.add(second)
    one_step(engine)
    engine.begin()
    assert (engine.running, engine.waiting, engine.preemptions) == (1, 1, 1)
    assert engine.generated(second) == 1
    return engine, first, second


def test_async_scheduling_delivers_the_token_of_a_preempted_sequence() -> None:
    engine, first, second = a_last_token_under_way()
    step = engine.end()
    assert step.emitted == [first, second]
    assert step.finished == [second]
    assert (engine.running, engine.waiting) == (1, 0)
    assert all(step.emitted == [first] for step in drain(engine))


def test_async_abort_of_a_preempted_sequence_drops_its_token() -> None:
    engine, first, second = a_last_token_under_way()
    engine.abort(second)
    step = engine.end()
    assert (step.emitted, step.finished, engine.waiting) == ([first], [], 0)


def test_abort_frees_its_blocks() -> None:
    engine = Engine(small(4))
    running, waiting = Sequence(15, 1), Sequence(1, 1)
    engine.add(running)
    engine.add(waiting)
    engine.begin()
    assert engine.kv_usage == 1
    engine.abort(running)
    assert engine.kv_usage == 0
    engine.end()
    assert one_step(engine).started == [waiting]


# Prefix caching, by hand

CACHED_ASYNC = FLAT.with_flags(enable_prefix_caching=True, block_size=4)
CACHED = CACHED_ASYNC.with_flags(async_scheduling=False)


def test_a_cached_prefix_leaves_the_cost_of_the_rest() -> None:
    profile = NVFP4.with_flags(enable_prefix_caching=True)
    engine = Engine(profile)
    prefix = tuple(range(100))
    engine.add(Sequence(1600, 1, keys=prefix))
    drain(engine)
    follower = Sequence(1710, 1, keys=(*prefix, *range(200, 206)))
    engine.add(follower)
    (step,) = drain(engine)
    assert step.chunks == [(follower, 110)]
    expected = profile.step_s(profile.mixed_work(prefilled=110, attended=110 * (1600 + 55)))
    assert step.duration_s == pytest.approx(expected, rel=1e-12)
    assert follower.cached == engine.prefix_hits == 1600
    assert engine.prefix_queries == 1600 + 1710


@pytest.mark.parametrize(("tokens", "cached"), [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8), (13, 12)])
def test_cache_hits_are_whole_blocks_and_leave_one_token(tokens: int, cached: int) -> None:
    engine = Engine(CACHED)
    engine.add(Sequence(14, 1, keys=(1, 2, 3)))
    drain(engine)
    again = Sequence(tokens, 1, keys=(1, 2, 3)[: tokens // 4])
    engine.add(again)
    assert one_step(engine).chunks == [(again, tokens - cached)]
    assert again.cached == cached


@pytest.mark.parametrize("profile", [SYNC, small(20), small(20, enable_prefix_caching=True)])
def test_nothing_is_cached_without_prefix_caching_or_keys(profile: EngineProfile) -> None:
    engine = Engine(profile)
    keys = () if profile.enable_prefix_caching else (1, 2, 3)
    for _ in range(2):
        sequence = Sequence(12, 1, keys=keys)
        engine.add(sequence)
        assert one_step(engine).chunks == [(sequence, 12)]
        assert sequence.cached == engine.prefix_hits == 0


def test_blocks_scheduled_in_a_step_are_found_by_sequences_that_start_in_it() -> None:
    """vLLM writes all of a step's keys and values before it reads any. What comes later is computed by both."""
    engine = Engine(CACHED.with_flags(long_prefill_token_threshold=10))
    one, two = Sequence(20, 1, keys=(1, 2, 3, 4, 5)), Sequence(20, 1, keys=(1, 2, 3, 4, 5))
    engine.add(one)
    engine.add(two)
    assert [step.chunks for step in drain(engine)] == [[(one, 10), (two, 10)], [(one, 10), (two, 2)]]
    assert two.cached == 8


@pytest.mark.parametrize("profile", [CACHED, CACHED_ASYNC])
def test_an_answer_is_cached_except_its_last_token(profile: EngineProfile) -> None:
    """That one is never computed: nobody reads on from there."""
    for answer, cached in ((5, 8), (6, 12)):
        engine = Engine(profile)
        engine.add(Sequence(7, answer, keys=(1, 2, 3)))
        drain(engine)
        follower = Sequence(20, 1, keys=(1, 2, 3, 4, 5))
        engine.add(follower)
        one_step(engine)
        assert follower.cached == cached


@pytest.mark.parametrize(
    ("profile", "size", "found"),
    [(CACHED, 4, [4, 8, 8]), (CACHED_ASYNC, 4, [4, 4, 8]), (CACHED, 1, [7, 8, 9]), (CACHED_ASYNC, 1, [6, 7, 8])],
)
def test_a_block_of_an_answer_is_cached_once_its_tokens_are_known(
    profile: EngineProfile, size: int, found: list[int]
) -> None:
    """Its eighth token is computed in step 3. Followers start in step 2, 3 and 4."""
    for start, cached in zip((2, 3, 4), found, strict=True):
        engine = Engine(profile.with_flags(block_size=size))
        keys = tuple(range(14 // size))
        engine.add(Sequence(5, 9, keys=keys))
        for _ in range(start - 1 - profile.async_scheduling):
            one_step(engine)
        engine.begin()
        follower = Sequence(20, 1, keys=keys)
        engine.add(follower)
        engine.end()
        starts = [follower in step.started for step in drain(engine)]
        assert starts.index(True) == profile.async_scheduling
        assert follower.cached == cached


def test_of_two_that_end_together_the_first_started_is_evicted_first() -> None:
    engine = Engine(small(4, enable_prefix_caching=True, long_prefill_token_threshold=4))
    engine.add(Sequence(8, 1, keys=(1, 2)))  # it ends in step 1
    engine.add(Sequence(4, 2, keys=(7,)))  # so does this, though its answer began in step 0
    drain(engine)
    engine.add(Sequence(8, 1))  # of its 2 blocks one was cached
    drain(engine)
    for keys, cached in (((7, 8), 4), ((1, 2), 4)):
        follower = Sequence(9, 1, keys=keys)
        engine.add(follower)
        drain(engine)
        assert follower.cached == cached


def test_a_resumed_sequence_finds_its_own_blocks() -> None:
    engine = Engine(small(5, enable_prefix_caching=True))
    first, second = Sequence(8, 9), Sequence(4, 9, keys=(1, 2, 3))
    engine.add(first)
    engine.add(second)
    steps = drain(engine)
    # As above, but of its 9 tokens to prefill the first 4 are still there; the other block went to the first one.
    assert [step.chunks for step in steps if step.chunks] == [[(first, 8), (second, 4)], [(second, 5)]]
    assert second.cached == engine.prefix_hits == 0  # that counts once, when it is first seated
    assert engine.prefix_queries == 12


def test_shared_blocks_in_use_take_no_extra_room() -> None:
    engine = Engine(small(6, enable_prefix_caching=True))
    first, same, other = Sequence(16, 3, keys=(1, 2, 3, 4)), Sequence(19, 1, keys=(1, 2, 3, 4)), Sequence(19, 1)
    engine.add(first)
    one_step(engine)
    engine.add(same)
    engine.add(other)
    steps = drain(engine)
    assert steps[0].started == [same]  # 4 blocks and one more each; `other` would have wanted 5
    assert [step.started for step in steps[1:]] == [[], [other]]


def test_an_unlimited_cache_keeps_everything() -> None:
    engine = Engine(CACHED)
    for first in range(0, 400, 4):
        engine.add(Sequence(16, 1, keys=tuple(range(first, first + 4))))
    drain(engine)
    again = Sequence(17, 1, keys=(0, 1, 2, 3))
    engine.add(again)
    one_step(engine)
    assert again.cached == 16
    assert engine.kv_usage == 0


# Laws, under random use

flags = st.builds(
    FLAT.with_flags,
    max_num_batched_tokens=st.integers(4, 40),
    max_num_seqs=st.integers(1, 4),
    long_prefill_token_threshold=st.integers(0, 12),
    async_scheduling=st.booleans(),
    kv_cache_tokens=st.none() | st.integers(69, 150),  # 60 + 9 tokens fit, in blocks of 1 or 3
    block_size=st.sampled_from([1, 3]),
    enable_prefix_caching=st.booleans(),
    scheduling_policy=st.sampled_from(["fcfs", "priority"]),
)


@st.composite
def any_sequence(draw: st.DrawFn) -> Sequence:
    """Some start alike: there are two texts, and each goes on in two ways after any block."""
    text, common, other = draw(st.integers(0, 1)), draw(st.integers(0, 69)), draw(st.integers(1, 2))
    keys = [1000 * text + index for index in range(common)]
    keys += [100_000 * other + 10_000 * text + 100 * common + index for index in range(common, 70)]
    prompt_tokens, output_tokens = draw(st.integers(1, 60)), draw(st.integers(1, 9))
    return Sequence(prompt_tokens, output_tokens, priority=draw(st.integers(0, 2)), keys=tuple(keys))


sequences = any_sequence()


def check_blocks(engine: Engine) -> None:
    """Every block is free, or held by as many as say so; who has a seat has the blocks of its tokens, and no more."""
    cache = engine.cache_snapshot()
    if cache is None:
        return
    assert cache.holdings.keys() == engine.seated
    holders = Counter(block for holding in cache.holdings.values() for block in holding.keyed)
    assert all(block.holders == count for block, count in holders.items())
    assert cache.cached == holders.keys() | cache.idle
    used = len(holders) + sum(holding.plain for holding in cache.holdings.values())
    assert used + cache.free == cache.total
    for sequence, holding in cache.holdings.items():
        tokens = sequence.computed
        if sequence.first_step >= 0:  # up to its last step, whose token is never computed itself
            tokens = sequence.prompt_tokens + min(engine.next_step - sequence.first_step, sequence.output_tokens) - 1
        assert len(holding) == ceil(tokens / engine.profile.block_size)


@settings(max_examples=200)
@given(
    profile=flags,
    arriving=st.lists(st.lists(sequences, max_size=3), max_size=12),
    leaving=st.lists(st.integers(0, 40), max_size=8),
)
def test_the_engine_keeps_its_invariants_under_random_use(
    profile: EngineProfile, arriving: list[list[Sequence]], leaving: list[int]
) -> None:
    """Budget, seats and blocks hold in every step, and everybody gets what they came for."""
    engine = Engine(profile)
    arrived: list[Sequence] = []
    started: list[Sequence] = []
    first: list[Sequence] = []
    prefilled: Counter[Sequence] = Counter()
    tokens: Counter[Sequence] = Counter()
    aborted: set[Sequence] = set()
    to_come, to_leave = [*arriving], [*leaving]
    while (step := engine.begin()) is not None or to_come:
        if step is not None:
            started += step.started
        if to_come:
            for sequence in to_come.pop():  # during the step, if there is one
                arrived.append(sequence)
                engine.add(sequence)
        if to_leave and (index := to_leave.pop()) < len(arrived):
            aborted.add(arrived[index])
            engine.abort(arrived[index])
        check_blocks(engine)
        if step is None:
            continue
        assert len(step.decoding) + sum(chunk for _, chunk in step.chunks) <= profile.max_num_batched_tokens
        assert engine.running <= profile.max_num_seqs
        for sequence, chunk in step.chunks:
            assert chunk > 0
            prefilled[sequence] += chunk
        for sequence in arrived:
            if sequence not in aborted and tokens[sequence] < sequence.output_tokens:
                assert engine.generated(sequence) == tokens[sequence]
        engine.end()
        first += step.first
        for sequence in step.emitted:
            assert sequence not in aborted or tokens[sequence] == sequence.output_tokens
            tokens[sequence] += 1
            assert engine.generated(sequence) == tokens[sequence]
        check_blocks(engine)
    assert len(set(started)) == len(started)
    assert len(set(first)) == len(first)
    if profile.scheduling_policy == "fcfs":
        assert started == [sequence for sequence in arrived if sequence in started]
    for sequence in arrived:
        if sequence not in aborted:
            assert tokens[sequence] == sequence.output_tokens
            assert sequence in started
            assert sequence in first
            if not sequence.preemptions:
                assert prefilled[sequence] == sequence.prompt_tokens - sequence.cached
    assert (engine.running, engine.waiting, engine.kv_usage) == (0, 0, 0)
    assert engine.preemptions == sum(sequence.preemptions for sequence in arrived)
    if (cache := engine.cache_snapshot()) is not None:
        assert cache.free == cache.total


@given(profile=flags, arriving=st.lists(sequences, max_size=8))
def test_waiting_requests_are_ordered_by_priority_then_arrival(
    profile: EngineProfile, arriving: list[Sequence]
) -> None:
    """All are there from the start: the first seats go by priority, whoever loses one on the way."""
    engine = Engine(profile.with_flags(scheduling_policy="priority"))
    for sequence in arriving:
        engine.add(sequence)
    started = [sequence for step in drain(engine) for sequence in step.started]
    assert started == sorted(arriving, key=lambda sequence: sequence.priority)


@given(profile=flags, arriving=st.lists(sequences, min_size=1, max_size=8))
def test_a_cache_that_is_never_full_changes_nothing(profile: EngineProfile, arriving: list[Sequence]) -> None:
    """Blocks are counted or not, the steps are the same."""
    composed = []
    for limit in (None, 10_000):
        engine = Engine(replace(profile, kv_cache_tokens=limit))
        mine = [replace(sequence) for sequence in arriving]
        for sequence in mine:
            engine.add(sequence)
        steps = drain(engine)
        number = {sequence: index for index, sequence in enumerate(mine)}
        composed.append([[(number[each], chunk) for each, chunk in step.chunks] for step in steps])
        assert engine.preemptions == 0
    assert composed[0] == composed[1]


@given(
    profile=flags,
    arriving=st.lists(sequences, min_size=1, max_size=8),
    leaving=st.lists(st.none() | st.integers(0, 7), max_size=20),
)
def test_the_context_read_by_a_step_is_summed(
    profile: EngineProfile, arriving: list[Sequence], leaving: list[int | None]
) -> None:
    """The engine keeps the sum as it changes; here it is counted anew, by letting a step cost it."""
    engine = Engine(replace(profile, tk_s_per_token=1.0))
    for sequence in arriving:
        engine.add(sequence)
    tokens = dict.fromkeys(arriving, 0)
    to_leave = [*leaving]
    left_in = -2  # the last step that somebody left in; what was composed by then costs what it was to do
    number = 0
    while (step := engine.begin()) is not None:
        if number > left_in + 1:
            context = sum(sequence.prompt_tokens + tokens[sequence] for sequence in step.decoding)
            assert step.duration_s == 1 + context
        if to_leave and (index := to_leave.pop()) is not None and index < len(arriving):
            engine.abort(arriving[index])
            left_in = number
        for sequence in engine.end().emitted:
            tokens[sequence] += 1
        number += 1
