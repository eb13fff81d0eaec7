"""What `/queue` shows: callers see their own place and time, an admin sees everyone. Requests with an unreachable
deadline are refused at once with a time to retry.
"""

import json
from typing import Any

import pytest

from gateway.pricing.profile import Profile
from tests.support.running_gateway import RunningGateway, StartGateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import wait_until
from tests.support.wire import DONE, chat, token

SECRET = "a prompt that nobody else may read"

# A prompt of one token costs two seconds.
SLOW = Profile(c_s=2.0, a_s_per_token=0.0, b_s_per_token2=0.0, decode_s_per_token=0.001)


def look(gateway: RunningGateway, **headers: str) -> Any:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return json.loads(gateway.read("/queue", sent))


@pytest.fixture
def house(engine: ScriptedEngine, start_gateway: StartGateway) -> RunningGateway:
    """One seat: ann's request runs, two of hers and one of ben's wait."""
    gateway = start_gateway(engine.url, SLOW, engine={"max_num_seqs": 1})
    gateway.ask(chat(SECRET, user="ann", stream=True))
    engine.asked()
    for n, user in enumerate(["ann", "ann", "ben"], start=1):
        gateway.ask(chat(SECRET, user=user))
        gateway.wait_queued(n)
    return gateway


def test_an_admin_sees_every_entry(house: RunningGateway) -> None:
    seen = look(house)
    assert (seen["waiting"], seen["running"]) == (3, 1)
    rows = seen["requests"]
    assert [row["flow"] for row in rows if row["phase"] != "waiting"] == ["user:ann"]
    waiting = [row for row in rows if row["phase"] == "waiting"]
    assert [row["position"] for row in waiting] == [1, 2, 3]
    # Ann has been served already; so ben is not last.
    assert [row["flow"] for row in waiting].index("user:ben") < 2
    for row in waiting:
        median, p90 = row["first_token_s"]
        assert 0 < median <= p90
        assert sum(row["behind"].values()) == pytest.approx(row["start_s"][0], abs=0.1)
    starts = [row["start_s"][0] for row in waiting]
    assert starts == sorted(starts)
    house.leave_all()


def test_other_callers_see_their_own_entries_and_the_total(house: RunningGateway) -> None:
    seen = look(house, x_openwebui_user_id="ben")
    assert (seen["waiting"], seen["running"]) == (3, 1)
    assert [row["flow"] for row in seen["requests"]] == ["you"]
    assert "ann" not in json.dumps(seen)
    house.leave_all()


@pytest.mark.parametrize("headers", [{}, {"x_openwebui_user_id": "ben"}, {"accept": "text/html"}])
def test_no_prompt_text_is_shown(house: RunningGateway, headers: dict[str, str]) -> None:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    assert SECRET not in house.read("/queue", sent)
    house.leave_all()


def test_a_browser_gets_an_html_page(house: RunningGateway) -> None:
    text = house.read("/queue", {"accept": "text/html,application/xhtml+xml"})
    assert text.startswith("<!doctype html>")
    assert "3 waiting, 1 running" in text
    assert "#3" in text
    house.leave_all()


def test_names_on_the_page_are_escaped(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url)
    gateway.ask(chat(user="<script>alert(1)</script>"))
    call = engine.asked()
    assert "<script>alert" not in gateway.read("/queue", {"accept": "text/html"})
    call.answer()


def test_an_empty_queue_is_reported_as_empty(gateway: RunningGateway) -> None:
    wait_until(lambda: look(gateway) == {"waiting": 0, "running": 0, "requests": []})
    assert "None of your requests" in gateway.read("/queue", {"accept": "text/html"})


def test_an_unreachable_deadline_is_refused_with_retry_after(house: RunningGateway) -> None:
    refused = house.post(chat(user="cem"), headers={"x-fairlane-deadline": "1"})
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "deadline_unreachable"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert house.queued() == 3
    house.leave_all()


def test_a_reachable_deadline_is_queued(house: RunningGateway) -> None:
    house.ask(chat(user="cem"), headers={"x-fairlane-deadline": "3000"})
    house.wait_queued(4)
    house.leave_all()


def test_an_idle_engine_refuses_no_deadline(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, SLOW)
    asked = gateway.ask(chat(), headers={"x-fairlane-deadline": "0.001"})
    engine.asked().answer()
    assert asked.status == 200


def test_the_forecasts_error_is_a_metric(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    """Of who waited and had been told when their first token would come; not of who went at once."""
    gateway = start_gateway(engine.url, SLOW, engine={"max_num_seqs": 1})
    gateway.ask(chat(stream=True))
    first = engine.asked()
    gateway.ask(chat(stream=True))
    gateway.wait_queued(1)
    first.stream(token(), DONE)
    second = engine.asked()
    assert gateway.metric("fairlane_forecast_ratio_count") == 0
    second.stream(token(), DONE)
    wait_until(lambda: gateway.metric("fairlane_forecast_ratio_count") == 1)
