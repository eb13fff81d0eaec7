"""Background requests are served last, but are served."""

import json
from typing import Any

import pytest

from gateway import from_settings
from gateway.api.base import InferenceRequest
from gateway.api.chat import parse
from gateway.config.layers import ConfigError
from gateway.config.settings import Settings
from gateway.identity.background import OPEN_WEBUI_TASKS, OPEN_WEBUI_TEXTS, BackgroundRule, BackgroundRules
from gateway.identity.callers import Caller
from gateway.identity.keys import Rights
from gateway.storage.config_file import load
from gateway.types import OPENING_CHARS
from policies import POLICIES
from tests.support.running_gateway import TINY, StartGateway
from tests.support.scripted_engine import ReceivedRequest, ScriptedEngine
from tests.support.wire import chat

ANN = Caller("key:ann", None, Rights())
WEBUI = Caller("key:webui", "bob", Rights(front_end=True))

TITLE = "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.\n### Guidelines:\n"
# As Open WebUI begins them.
TASKS = [
    TITLE,
    "### Task:\nGenerate a concise title summarizing the chat history.\n### Guidelines:\n- The title should",
    "### Task:\nGenerate 1-3 broad tags categorizing the main themes of the chat history, along with 1-3 more specific",
    "### Task:\nSuggest 3-5 relevant follow-up questions or prompts that the user might naturally ask next in this",
    "### Task:\nYou are an autocompletion system. Continue the text in `<text>` based on the **completion type** in",
    "Your task is to reflect the speaker's likely facial expression through a fitting emoji. Interpret emotions",
]
# Of the same program, and somebody waits for what comes of them.
WAITED_FOR = [
    "### Task:\nRespond to the user query using the provided context, incorporating inline citations",
    "### Task:\nAnalyze the chat history to determine the necessity of generating search queries, in",
    "### Task:\nGenerate a detailed prompt for am image generation task based on the given language and context.",
    "What does this mean? ### Task:\nGenerate a concise, 3-5 word title",
    "### Task:",
    "",
]


def asked(text: str = "hello", **fields: Any) -> InferenceRequest:
    return parse(json.dumps(chat(text, **fields)).encode())


@pytest.mark.parametrize("text", TASKS)
def test_open_webuis_tasks_are_known(text: str) -> None:
    assert BackgroundRules().matches(WEBUI, asked(text), {})
    assert BackgroundRules().matches(WEBUI, asked(f"\n{text}"), {})
    assert not BackgroundRules(open_webui=False).matches(WEBUI, asked(text), {})


def test_each_open_webui_task_prompt_is_recognised() -> None:
    assert all(len([text for text in TASKS if text.startswith(begin)]) == 1 for begin in OPEN_WEBUI_TEXTS)
    assert all(len(begin) <= OPENING_CHARS for begin in OPEN_WEBUI_TEXTS)


@pytest.mark.parametrize("text", WAITED_FOR)
def test_interactive_requests_are_not_background(text: str) -> None:
    assert not BackgroundRules().matches(WEBUI, asked(text), {})


@pytest.mark.parametrize("task", sorted(OPEN_WEBUI_TASKS))
def test_a_header_may_mark_an_open_webui_task(task: bytes) -> None:
    assert BackgroundRules().matches(WEBUI, asked(), {b"x-openwebui-task": task})


@pytest.mark.parametrize("task", [b"", b"query_generation", b"image_prompt_generation", b"title"])
def test_other_tasks_are_not_background(task: bytes) -> None:
    """Of a plain question the header is there, and empty."""
    assert not BackgroundRules().matches(WEBUI, asked(), {b"x-openwebui-task": task})


# Rules.


@pytest.mark.parametrize(
    "rule",
    [
        BackgroundRule(owner="ann"),
        BackgroundRule(user="bob"),
        BackgroundRule(model="small"),
        BackgroundRule(header=b"x-batch"),
        BackgroundRule(header=b"x-batch", value=b"1"),
        BackgroundRule(text="Summarise"),
        BackgroundRule(owner="ann", user="bob", model="small", header=b"x-batch", value=b"1", text="Summarise"),
    ],
)
def test_a_rule_matches_requests_that_meet_all_its_conditions(rule: BackgroundRule) -> None:
    completion = asked("Summarise this", user="bob", model="small")
    assert BackgroundRules((rule,)).matches(ANN, completion, {b"x-batch": b" 1 "})


@pytest.mark.parametrize(
    "rule",
    [
        BackgroundRule(owner="ben"),
        BackgroundRule(user="ann"),
        BackgroundRule(model="large"),
        BackgroundRule(header=b"x-other"),
        BackgroundRule(header=b"x-empty"),
        BackgroundRule(header=b"x-batch", value=b"2"),
        BackgroundRule(text="summarise"),
        BackgroundRule(owner="ann", user="bob", model="large"),
    ],
)
def test_a_rule_does_not_match_other_requests(rule: BackgroundRule) -> None:
    completion = asked("Summarise this", user="bob", model="small")
    assert not BackgroundRules((rule,)).matches(ANN, completion, {b"x-batch": b"1", b"x-empty": b" "})


def test_one_rule_is_enough() -> None:
    assert BackgroundRules((BackgroundRule(owner="ben"), BackgroundRule(owner="ann"))).matches(ANN, asked(), {})


def test_a_rule_matches_the_user_that_a_front_end_names() -> None:
    assert BackgroundRule(user="bob").matches(WEBUI, asked(user="ann"), {})
    assert BackgroundRule(owner="webui").matches(WEBUI, asked(), {})


def test_a_rule_may_name_an_address() -> None:
    assert BackgroundRule(owner="10.0.0.7").matches(Caller("address:10.0.0.7", None, Rights()), asked(), {})


def test_rules_are_read_from_tables() -> None:
    rules = [{"header": "X-Batch: Nightly : 1"}, {"header": " X-Batch "}, {"owner": "ann", "text": "Summarise"}]
    background = from_settings.background_rules(load(None, {}, {"background": rules, "background_webui": False})[0])
    assert background == BackgroundRules(
        (
            BackgroundRule(header=b"x-batch", value=b"Nightly : 1"),
            BackgroundRule(header=b"x-batch"),
            BackgroundRule(owner="ann", text="Summarise"),
        ),
        open_webui=False,
    )


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({}, "says nothing"),
        ({"owner": ""}, "says nothing"),
        ({"text": "x" * (OPENING_CHARS + 1)}, "longer than the"),
        ({"ownr": "ann"}, "unknown key background.0.ownr"),
    ],
)
def test_an_invalid_rule_is_refused(rule: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(None, {}, {"background": [rule]})


# Through a gateway with one seat.


def order_of(engine: ScriptedEngine, running: ReceivedRequest, count: int) -> list[str]:
    order = []
    for _ in range(count):
        running.answer()
        running = engine.asked()
        order.append(running.json["messages"][0]["content"])
    running.answer()
    return order


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "fifo"])
def test_background_requests_are_served_last(engine: ScriptedEngine, start_gateway: StartGateway, policy: str) -> None:
    """After others' questions, and after its own user's. Only `fifo`, which knows no head starts, keeps it in place."""
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1}, policy=policy)
    gateway.ask(chat("runs", user="cem"))
    running = engine.asked()
    for n, (text, user) in enumerate([(TITLE, "ann"), ("one", "ben"), ("two", "ann"), ("three", "ben")], start=1):
        gateway.ask(chat(text, user=user))
        gateway.wait_queued(n)
    order = order_of(engine, running, 4)
    assert order[-1] == TITLE
    assert sorted(order[:-1]) == ["one", "three", "two"]


def test_background_requests_wait_a_bounded_time(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    """Others have a head start on it, and when one of them has had so much it goes, though they ask on."""
    costly = TINY.model_copy(update={"c_s": 1.0})
    gateway = start_gateway(engine.url, costly, engine={"max_num_seqs": 1}, background_delay=3.0)
    gateway.ask(chat("runs", user="ann"))
    running = engine.asked()
    gateway.ask(chat(TITLE, user="ann"))
    gateway.wait_queued(1)
    for n in range(2, 10):
        gateway.ask(chat(f"{n}", user="ben"))
        gateway.wait_queued(n)
    order = order_of(engine, running, 9)
    assert 2 <= order.index(TITLE) <= 6
    assert order.index(TITLE) < len(order) - 1


def test_background_gives_no_advantage(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    """Not with a key that may ask for a head start, either; and who asks to go later still does."""
    keys = [{"key": "k", "owner": "chief", "priority": 600.0}]
    gateway = start_gateway(engine.url, keys=keys, background_delay=30.0)
    for n, (wish, head_start) in enumerate([("600", -30.0), ("0", -30.0), ("-90", -90.0)], start=1):
        gateway.ask(chat(TITLE), headers={"authorization": "Bearer k", "x-fairlane-priority": wish})
        call = engine.asked()
        (job,) = gateway.jobs()
        assert job.head_start == head_start
        call.answer()
        gateway.wait_ended("completed", n)


def test_the_log_marks_background_requests(
    engine: ScriptedEngine, start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = start_gateway(engine.url)
    for text in ("hello", TITLE):
        asked = gateway.ask(chat(text))
        engine.asked().answer()
        asked.read()
    gateway.wait_ended("completed", 2)
    lines = [record.getMessage() for record in caplog.records if record.name == "fairlane.requests"]
    assert [" class=background " in line for line in lines] == [False, True]
    assert not any("title" in line for line in lines)


def test_changed_rules_apply_at_once(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url)
    settings = Settings(upstream=engine.url, background=[{"user": "ann"}])
    gateway.call(lambda: gateway.gateway.reconfigure(settings))
    gateway.ask(chat(user="ann"))
    engine.asked()
    (job,) = gateway.jobs()
    assert job.head_start == -settings.background_delay
    gateway.leave_all()
