"""Scheduling hints in request headers, parsed alone and through a gateway."""

from math import inf

import pytest

from gateway.api.hints import MAX_PRIORITY, MAX_SESSION, SchedulingHints, read_hints
from gateway.errors import BadRequest
from tests.support.running_gateway import RunningGateway, StartGateway
from tests.support.scripted_engine import ReceivedRequest, ScriptedEngine
from tests.support.wire import chat


def test_without_headers_hints_have_their_defaults() -> None:
    assert read_hints({}) == SchedulingHints(deadline=inf, priority=0.0, session="")


def test_hints_are_read_from_headers() -> None:
    headers = {b"x-fairlane-deadline": b"2.5", b"x-fairlane-priority": b"-30", b"x-session-id": b"agent 7"}
    assert read_hints(headers) == SchedulingHints(2.5, -30.0, "agent 7")


def test_open_webuis_chat_is_a_session() -> None:
    assert read_hints({b"x-openwebui-chat-id": b"chat 1"}).session == "chat 1"
    assert read_hints({b"x-openwebui-chat-id": b"chat 1", b"x-session-id": b"agent 7"}).session == "agent 7"


def test_hints_are_clamped_to_their_bounds() -> None:
    headers = {b"x-fairlane-priority": b"1e300", b"x-session-id": b"x" * 10_000}
    assert read_hints(headers) == SchedulingHints(inf, MAX_PRIORITY, "x" * MAX_SESSION)


@pytest.mark.parametrize("name", [b"x-fairlane-deadline", b"x-fairlane-priority"])
@pytest.mark.parametrize("value", [b"soon", b"", b"nan", b"inf", b"1e999", b"\xff"])
def test_an_invalid_number_is_refused_with_a_reason(name: bytes, value: bytes) -> None:
    with pytest.raises(BadRequest) as wrong:
        read_hints({name: value})
    assert wrong.value.param == name.decode()


@pytest.mark.parametrize("value", [b"0", b"-1"])
def test_a_deadline_must_be_positive(value: bytes) -> None:
    with pytest.raises(BadRequest, match="positive"):
        read_hints({b"x-fairlane-deadline": value})


def test_an_invalid_hint_answers_400(gateway: RunningGateway) -> None:
    answer = gateway.post(chat(), headers={"x-fairlane-priority": "high"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-fairlane-priority"


KEYS = [
    {"key": "chief", "owner": "ann", "priority": 60.0},
    {"key": "clerk", "owner": "ben"},
    {"key": "third", "owner": "cem"},
]


@pytest.mark.parametrize(
    ("key", "wish", "first"),
    [("chief", "50", True), ("clerk", "50", False), ("clerk", "-50", False), ("chief", "0", False)],
    ids=["upwards, allowed", "upwards, not allowed", "downwards", "none"],
)
def test_priority_goes_up_only_as_far_as_the_key_allows(
    engine: ScriptedEngine, start_gateway: StartGateway, key: str, wish: str, first: bool
) -> None:
    """Others of one flow wait already; who wishes is of another flow, which comes later and has the same tag."""
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1}, keys=KEYS, front_ends=[])

    def ask(key: str, name: str, **headers: str) -> None:
        bearer = {"authorization": f"Bearer {key}"}
        gateway.ask(chat(name), headers={**bearer, **{n.replace("_", "-"): v for n, v in headers.items()}})

    ask("third", "runs")
    running = engine.asked()
    ask("clerk" if key == "chief" else "chief", "other")
    gateway.wait_queued(1)
    ask(key, "wishes", x_fairlane_priority=wish)
    gateway.wait_queued(2)
    running.answer()
    names = []
    for _ in range(2):
        call = engine.asked()
        names.append(call.json["messages"][0]["content"])
        call.answer()
    assert (names[0] == "wishes") == first


def served(engine: ScriptedEngine, running: ReceivedRequest, count: int) -> list[str]:
    """What is asked of the engine, in order, when one after the other is answered."""
    order = []
    for _ in range(count):
        running.answer()
        running = engine.asked()
        order.append(running.json["messages"][0]["content"])
    running.answer()
    return order


def test_a_conversation_is_a_session_by_its_first_message(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    """An agent has asked three more times before its user asks something else: that is second, not fourth."""
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1})
    gateway.ask(chat("runs", user="ben"))
    running = engine.asked()
    for n, (name, turns) in enumerate([("agent", 1), ("agent", 2), ("agent", 3), ("question", 1)], start=1):
        messages = [{"role": "user", "content": name}, *([{"role": "assistant", "content": "."}] * (turns - 1))]
        gateway.ask({"messages": messages, "user": "ann"})
        gateway.wait_queued(n)
    assert served(engine, running, 4) == ["agent", "question", "agent", "agent"]


def test_user_names_of_a_client_that_is_no_front_end_split_its_own_share(
    engine: ScriptedEngine, start_gateway: StartGateway
) -> None:
    """ann's two users take turns between them; ben's turn comes no later for there being two."""
    keys = [{"key": "k-ann", "owner": "ann"}, {"key": "k-ben", "owner": "ben"}]
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1}, keys=keys)
    gateway.ask(chat("runs"), headers={"authorization": "Bearer k-ann"})
    running = engine.asked()
    asks = [("a1", "ann", "one"), ("a2", "ann", "one"), ("a3", "ann", "one"), ("a4", "ann", "two"), ("b", "ben", None)]
    for n, (name, owner, user) in enumerate(asks, start=1):
        gateway.ask(chat(name, user=user), headers={"authorization": f"Bearer k-{owner}"})
        gateway.wait_queued(n)
    order = served(engine, running, 5)
    assert order.index("b") <= 1
    assert order.index("a4") < order.index("a2") < order.index("a3")


def test_sessions_share_their_users_share(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    """An agent has asked three times before its user's own chat asks once: the chat is second, not fourth."""
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1})
    gateway.ask(chat("runs", user="ben"))
    running = engine.asked()
    for n, (name, session) in enumerate([("a1", "agent"), ("a2", "agent"), ("a3", "agent"), ("chat", "chat")], start=1):
        gateway.ask(chat(name, user="ann"), headers={"x-session-id": session})
        gateway.wait_queued(n)
    running.answer()
    order = []
    for _ in range(4):
        call = engine.asked()
        order.append(call.json["messages"][0]["content"])
        call.answer()
    assert order == ["a1", "chat", "a2", "a3"]
