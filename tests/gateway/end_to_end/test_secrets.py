"""A client's key reaches no engine, log, span or decision log, however it is sent."""

import json
import logging
import secrets
from pathlib import Path

import pytest

from gateway.identity.keys import Key, key_digest, with_key
from gateway.proxy.relay import forwarded
from tests.support.running_gateway import StartGateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import wait_until
from tests.support.wire import CHAT, chat

KEY = "fl-" + secrets.token_urlsafe(32)

SENT = {
    "bearer": {"authorization": f"Bearer {KEY}"},
    "bare": {"authorization": KEY},
    "basic": {"authorization": f"Basic {KEY}"},
    "anthropic": {"x-api-key": KEY},
    "azure": {"api-key": KEY},
    "another proxy's": {"x-litellm-api-key": f"Bearer {KEY}"},
    "a cookie": {"cookie": f"token={KEY}"},
    "by mistake": {"x-note": f"my key is {KEY}!", "x-request-id": KEY, "x-session-id": KEY, "user-agent": KEY},
    "as a user": {"x-openwebui-user-id": KEY, "x-user-id": KEY, "x-openwebui-chat-id": KEY},
    "as a trace": {"traceparent": KEY, "tracestate": KEY, "baggage": KEY},
    "as a wish": {"x-fairlane-priority": KEY},
}


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("headers", SENT.values(), ids=SENT)
def test_a_client_key_is_not_forwarded_or_recorded(
    engine: ScriptedEngine,
    start_gateway: StartGateway,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    headers: dict[str, str],
    known: bool,
) -> None:
    """In the query string, too; with every log at its most talkative, and whether or not it is a key of ours."""
    caplog.set_level(logging.DEBUG)
    keys, spans, decisions = (tmp_path / name for name in ("keys.jsonl", "spans.jsonl", "decisions.jsonl"))
    keys.write_text(with_key("", Key(digest=key_digest(KEY), owner="ann", front_end=True)) if known else "")
    gateway = start_gateway(
        engine.url, keys_file=keys, upstream_key="the-engines", trace_file=spans, decision_log=decisions
    )
    asked = gateway.ask(chat(stream=True), f"{CHAT}?api_key={KEY}", headers=headers)
    if "x-fairlane-priority" not in headers:
        call = engine.asked()
        queue = gateway.read("/queue", headers)
        call.answer()
        assert KEY not in str(call)
        assert call.headers["authorization"] == "Bearer the-engines"
    else:
        queue = ""
        assert asked.status == 400
    answer = asked.read().decode() + str(asked.response.getheaders())
    wait_until(lambda: gateway.metric("fairlane_requests_total") == 1)
    metrics = gateway.get("/metrics").text
    gateway.stop()
    ours = [record for record in caplog.get_records("call") if not record.name.startswith("tests")]
    logged = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in ours)
    assert "fairlane.requests" in logged
    for told in (answer, queue, metrics, logged, spans.read_text(), decisions.read_text()):
        assert KEY not in told


@pytest.mark.parametrize("path", ["/v1/models", "/queue", f"/v1/{KEY}", f"/{KEY}/chat/completions"])
def test_a_client_key_is_not_logged_on_other_routes(
    engine: ScriptedEngine, start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    caplog.set_level(logging.DEBUG)
    gateway = start_gateway(engine.url, keys=[{"key": KEY, "owner": "ann"}])
    gateway.ask(b"", f"{path}?key={KEY}", {"authorization": f"Bearer {KEY}"}, method="GET").read()
    gateway.stop()
    logged = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "fairlane" in logged
    assert KEY not in logged


def test_a_plaintext_key_is_not_forwarded(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    """One of [[keys]] looks like nothing special, so it is the header's name that tells."""
    gateway = start_gateway(engine.url, keys=[{"key": "hunter2", "owner": "ann"}])
    names = ["authorization", "x-api-key", "api-key", "x-auth-token", "ocp-apim-subscription-key", "x-client-secret"]
    asked = gateway.ask(chat(), headers=dict.fromkeys(names, "hunter2"))
    call = engine.asked()
    call.answer()
    asked.read()
    assert "hunter2" not in str(call)


def test_other_headers_are_forwarded() -> None:
    kept = {b"x-other": b"fl-uffy", b"accept": b"*/*", b"x-stainless-lang": b"python", b"anthropic-version": b"1"}
    assert dict(forwarded(kept | {b"x-api-key": b"k"})) == kept


def test_the_upstream_key_is_not_logged(
    engine: ScriptedEngine, start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    gateway = start_gateway(engine.url, upstream_key="the-engines")
    asked = gateway.ask(chat())
    call = engine.asked()
    call.answer(401, {"error": {"message": "no"}})
    assert asked.status == 401
    gateway.stop()
    assert call.headers["authorization"] == "Bearer the-engines"
    assert "the-engines" not in "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)


def test_an_invalid_keys_file_is_not_quoted_in_the_log(
    engine: ScriptedEngine, start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Somebody may have pasted keys into it."""
    file = tmp_path / "keys.jsonl"
    for wrong in (KEY, json.dumps(KEY), json.dumps({"sha256": KEY, "owner": "ann"})):
        file.write_text(wrong)
        with pytest.raises(ValueError, match="line 1") as error:
            start_gateway(engine.url, keys_file=file)
        assert KEY not in str(error.value)
