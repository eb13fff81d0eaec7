"""The simulated engine: the published figures, vLLM's composition rules by hand, and the laws under random use."""

from collections.abc import Iterable
from dataclasses import replace
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.engine import Engine, Sequence, Step, prefill_alone
from loadtest.profile import KINDS, EngineProfile, load_profile

BF16 = load_profile("gemma-4-26b-bf16")
NVFP4 = load_profile("gemma-4-26b-nvfp4")

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


# The published figures: spark.md's derived curves and residual tables, from the measurements of Django de Vreng,
# github.com/djangodevreng/dgx-spark-benchmarks, CC-BY-4.0.


@pytest.mark.parametrize(
    ("profile", "milliseconds"),
    [
        (BF16, {256: 248, 1024: 341, 2048: 477, 4096: 790, 8192: 1578, 16384: 3963, 25000: 7557}),
        (NVFP4, {256: 115, 1024: 213, 2048: 357, 4096: 688, 8192: 1523, 16384: 3952, 25000: 7568}),
    ],
)
def test_prefill_alone(profile: EngineProfile, milliseconds: dict[int, int]) -> None:
    for tokens, expected in milliseconds.items():
        assert prefill_alone(profile, tokens) * 1000 == pytest.approx(expected, abs=1)


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
def test_a_batch_of_users(
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


def test_async_an_arrival_during_step_k_joins_step_k_plus_2() -> None:
    engine = Engine(FLAT)
    early, late = Sequence(10, 5), Sequence(10, 5)
    engine.add(early)
    engine.begin()
    engine.add(late)  # during step 0; step 1 is composed already
    engine.end()
    assert one_step(engine).chunks == []
    assert one_step(engine).chunks == [(late, 10)]


def test_sync_an_arrival_during_step_k_joins_step_k_plus_1() -> None:
    engine = Engine(SYNC)
    early, late = Sequence(10, 5), Sequence(10, 5)
    engine.add(early)
    engine.begin()
    engine.add(late)
    engine.end()
    assert one_step(engine).chunks == [(late, 10)]


def test_async_an_empty_step_is_composed_anew() -> None:
    """Nothing was to follow step 0, so a late arrival starts as soon as it ends."""
    engine = Engine(FLAT)
    engine.add(Sequence(10, 1))
    engine.begin()
    late = Sequence(10, 1)
    engine.add(late)
    engine.end()
    assert one_step(engine).chunks == [(late, 10)]


@pytest.mark.parametrize("profile", [FLAT, SYNC])
def test_a_sequence_runs_for_its_tokens_and_no_step_more(profile: EngineProfile) -> None:
    engine = Engine(profile)
    sequence = Sequence(250, 4)  # three steps of prompt, the third with the first token
    engine.add(sequence)
    steps = drain(engine)
    assert [step.chunks for step in steps] == [[(sequence, 100)], [(sequence, 100)], [(sequence, 50)], [], [], []]
    assert [step.emitted for step in steps] == [[], [], [sequence], [sequence], [sequence], [sequence]]
    assert [step.first for step in steps] == [[], [], [sequence], [], [], []]
    assert [step.finished for step in steps] == [[], [], [], [], [], [sequence]]


@pytest.mark.parametrize(("profile", "joins"), [(FLAT, 3), (SYNC, 2)])
def test_async_a_seat_is_held_until_its_last_step_ends(profile: EngineProfile, joins: int) -> None:
    engine = Engine(profile.with_flags(max_num_seqs=2))
    short, long, third = Sequence(10, 2), Sequence(10, 9), Sequence(10, 1)
    for sequence in (short, long, third):
        engine.add(sequence)  # `short` ends with step 1
    chunks = [step.chunks for step in drain(engine)]
    assert chunks.index([(third, 10)]) == joins


def test_running_prompts_go_on_before_waiting_ones_start() -> None:
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


def test_nobody_passes_the_head_of_the_line() -> None:
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
def test_abort_during_a_step_takes_its_token(profile: EngineProfile, steps: int) -> None:
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


def test_async_an_aborted_sequence_still_costs_its_part_of_the_composed_step() -> None:
    profile = replace(FLAT, tt_s_per_token=0.01)
    engine = Engine(profile)
    leaver = Sequence(200, 1)
    engine.add(leaver)
    engine.begin()
    engine.abort(leaver)
    engine.end()
    assert [step.duration_s for step in drain(engine)] == [pytest.approx(2.0)]


def test_abort_takes_its_context_out_of_the_steps_to_come() -> None:
    engine = Engine(replace(SYNC, tk_s_per_token=1.0))
    leaver, other = Sequence(10, 9), Sequence(20, 4)
    engine.add(leaver)
    engine.add(other)
    assert [one_step(engine).duration_s for _ in range(2)] == [1, 1 + 11 + 21]
    engine.abort(leaver)
    assert [step.duration_s for step in drain(engine)] == [1 + 22, 1 + 23]


def test_abort_of_one_that_has_finished_is_no_error() -> None:
    engine = Engine(FLAT)
    sequence = Sequence(1, 1)
    engine.add(sequence)
    drain(engine)
    engine.abort(sequence)
    assert (engine.running, engine.waiting) == (0, 0)


# Noise


def test_noise_is_the_seeds() -> None:
    def durations(seed: int, noise: float) -> list[float]:
        engine = Engine(FLAT, seed=seed, noise=noise)
        engine.add(Sequence(1, 500))
        return [step.duration_s for step in drain(engine)]

    assert durations(1, 0.1) == durations(1, 0.1) != durations(2, 0.1)
    assert durations(1, 0.0) == [1.0] * 500
    assert mean(durations(1, 0.1)) == pytest.approx(1.0, abs=0.02)
    assert {min(durations(1, 9.0)), max(durations(1, 9.0))} == {0.5, 2.0}


# Laws, under random use

flags = st.builds(
    FLAT.with_flags,
    max_num_batched_tokens=st.integers(4, 40),
    max_num_seqs=st.integers(1, 4),
    long_prefill_token_threshold=st.integers(0, 12),
    async_scheduling=st.booleans(),
)
sequences = st.builds(Sequence, st.integers(1, 60), st.integers(1, 9))


@given(
    profile=flags,
    arriving=st.lists(st.lists(sequences, max_size=3), max_size=12),
    leaving=st.lists(st.integers(0, 40), max_size=8),
)
def test_laws(profile: EngineProfile, arriving: list[list[Sequence]], leaving: list[int]) -> None:
    """Budget and seats hold in every step; starts are first come, first served; everybody gets what they came for."""
    engine = Engine(profile)
    arrived: list[Sequence] = []
    started: list[Sequence] = []
    prefilled: dict[Sequence, int] = {}
    tokens: dict[Sequence, int] = {}
    aborted: set[Sequence] = set()
    to_come, to_leave = [*arriving], [*leaving]
    while (step := engine.begin()) is not None or to_come:
        if to_come:
            for sequence in to_come.pop():  # during the step, if there is one
                arrived.append(sequence)
                engine.add(sequence)
        if to_leave and (index := to_leave.pop()) < len(arrived):
            aborted.add(arrived[index])
            engine.abort(arrived[index])
        if step is None:
            continue
        assert len(step.decoding) + sum(chunk for _, chunk in step.chunks) <= profile.max_num_batched_tokens
        assert engine.running <= profile.max_num_seqs
        for sequence, chunk in step.chunks:
            assert chunk > 0
            if sequence not in prefilled:
                started.append(sequence)
            prefilled[sequence] = prefilled.get(sequence, 0) + chunk
        for sequence in engine.end().emitted:
            assert sequence not in aborted or tokens.get(sequence) == sequence.output_tokens
            tokens[sequence] = tokens.get(sequence, 0) + 1
            assert engine.generated(sequence) == tokens[sequence]
    assert started == [sequence for sequence in arrived if sequence in prefilled]
    for sequence in arrived:
        if sequence not in aborted:
            assert prefilled[sequence] == sequence.prompt_tokens
            assert tokens[sequence] == sequence.output_tokens
    assert (engine.running, engine.waiting) == (0, 0)


@given(
    profile=flags,
    arriving=st.lists(sequences, min_size=1, max_size=8),
    leaving=st.lists(st.none() | st.integers(0, 7), max_size=20),
)
def test_the_context_that_a_step_reads(
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
