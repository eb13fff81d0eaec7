"""No text of a client is kept. Canaries in prompts, answers, keys, headers and malformed bodies go through everything
that can happen to a request at debug level; then logs, spans, metrics and files are searched for them.
"""

import re
import socket
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.support.client import PendingRequest
from tests.support.process import Process
from tests.support.repository import ROOT
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import wait_until
from tests.support.wire import CHAT, DONE, TEXT, chat, sse, token

# Each is found whatever became of it: cut, in capitals, in a repr.
CANARY = re.compile(rb"canary-?(\w*)", re.IGNORECASE)


def canary(kind: str) -> str:
    return f"CANARY-{kind}"


HEADERS = {
    "authorization": f"Bearer {canary('key')}",
    "cookie": f"session={canary('cookie')}",
    "x-openwebui-user-id": canary("user"),
    "x-openwebui-user-email": canary("email"),
    "x-session-id": canary("session"),
    "x-other": canary("header"),
    "user-agent": canary("agent"),
    "baggage": f"secret={canary('baggage')}",
}

MALFORMED = [
    b'{"messages": "' + canary("malformed").encode(),
    b'{"messages": [{"role": "user", "content": {"CANARY-shape": 1}}]}',
    b'{"messages": [{"role": "user", "content": "x"}], "n": "CANARY-number"}',
    b'{"messages": [{"role": "user", "content": "CANARY-\xff"}]}',
    b'{"CANARY-field": 1}',
    canary("text").encode(),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the gateway may leave something."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_no_canary_reaches_logs_spans_metrics_or_files(engine: ScriptedEngine, folder: Path) -> None:
    config = folder / "fairlane.toml"
    config.write_text(f'[[keys]]\nkey = "{canary("key")}"\nowner = "ada"\nfront_end = true\n')
    process = Process(
        *("serve", "--upstream", engine.url, "--port", "0", "--config", str(config)),
        *("--trace-file", "spans.jsonl", "--decision-log", "decisions.jsonl"),
        *("--set", "log_level=debug", "--set", "state_file=state", "--set", "max_body=100000"),
        *("--set", f"upstream_key={canary('engine-key')}", "--set", "engine.max_num_seqs=1"),
        *("--set", "silent_grace=0.05", "--set", "comment_interval=0.05", "--set", "upstream_timeout=1"),
        *("--set", "max_queued=3", "--set", "long_prompt_tokens=100"),
    )
    everything: list[PendingRequest] = []

    def ask(body: object, path: str = CHAT, **headers: str) -> PendingRequest:
        everything.append(PendingRequest(url, body, path, HEADERS | headers))
        return everything[-1]

    try:
        url = process.url
        told = conversation(engine, url, ask)
        answers = [told, *(httpx.get(f"{url}{path}", headers=HEADERS).content for path in ("/metrics", "/health"))]
        engine.metrics = canary("metrics").encode()
        wait_until(lambda: httpx.get(f"{url}/metrics").text.count("fairlane_engine_metrics_up 0.0"))
        answers.append(httpx.get(f"{url}/queue", headers=HEADERS | {"authorization": "Bearer other"}).content)
    finally:
        for asked in everything:
            asked.leave()
        process.signal(15)
        process.exit_code()
    # The answers had them, so there was something to find.
    assert CANARY.findall(told)
    config.unlink()
    files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {"spans.jsonl", "decisions.jsonl"} <= set(files)
    places = {**files, "log": process.said.encode(), "metrics": b"".join(answers[1:])}
    found = {name: sorted(set(CANARY.findall(content))) for name, content in places.items()}
    assert found == {name: [] for name in places}
    assert len(process.said) > 5000  # it did log


def conversation(engine: ScriptedEngine, url: str, ask: object) -> bytes:
    """What may happen to a request; what clients were told of it."""
    assert callable(ask)
    told = []
    said = token(canary("answer"))
    for path, prompt in ((CHAT, chat(canary("prompt"))), (TEXT, {"prompt": canary("prompt")})):
        for stream in (True, False):
            asked = ask(prompt | {"stream": stream, "user": canary("body-user")}, path)
            call = engine.asked()
            if stream:
                call.stream(said, DONE)
            else:
                call.answer(200, {"choices": [{"text": canary("answer")}]})
            told.append(asked.read())
    # A long one, whose tokens are counted; and the engine's own errors, which quote prompts.
    asked = ask(chat(canary("prompt ") * 200, stream=True))
    call = engine.asked()
    if call.path == "/tokenize":
        call.answer(500, {"error": canary("tokenize")})
        call = engine.asked()
    call.answer(400, {"error": {"message": canary("quoted"), "type": "BadRequestError", "param": None, "code": 400}})
    told.append(asked.read())
    asked = ask(chat(canary("prompt"), stream=True))
    call = engine.asked()
    call.stream(said, sse({"error": {"message": canary("quoted"), "code": 500}}), DONE)
    told.append(asked.read())
    # Broken off, garbage, silence.
    for garbage in (b"", canary("garbage").encode() + b"\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: CANARY-head\r\nbad\r\n\r\n"):
        asked = ask(chat(canary("prompt"), stream=True))
        for _ in range(2):
            call = engine.asked()
            call.say(garbage)
            call.hang_up()
        told.append(asked.read())
    asked = ask(chat(canary("prompt"), stream=True))
    call = engine.asked()
    call.start(x_answer=canary("answer-header"), set_cookie=canary("answer-cookie"))
    call.send(said + b'data: {"choices": "CANARY-odd", "usage": "CANARY-usage"}\n\n')
    told.append(asked.read())
    # Waits, leaves, is refused; asks for a deadline in words.
    runs = ask(chat(canary("prompt"), stream=True))
    call = engine.asked()
    call.start()
    call.send(said)
    runs.event()
    waits = [ask(chat(canary("prompt"), stream=True)) for _ in range(3)]
    assert waits[0].response.readline().startswith(b": queued")
    wait_until(lambda: 'fairlane_queue_jobs{lane="short"} 3.0' in httpx.get(f"{url}/metrics").text)
    told.append(ask(chat(canary("prompt"))).read())
    told.append(httpx.get(f"{url}/queue", headers=HEADERS).content)
    for each in waits:
        each.leave()
    told.append(ask(chat(canary("prompt")), **{"x-fairlane-deadline": canary("deadline")}).read())
    call.end(DONE)
    told.append(runs.read())
    # What cannot be read, or is no request at all.
    told += [ask(body).read() for body in MALFORMED]
    told.append(ask(chat("x" * 100_000)).read())
    told.append(ask(b"{}", f"/v1/{canary('path')}").read())
    told.append(httpx.get(f"{url}/v1/models?{canary('query')}", headers=HEADERS).content)
    address = httpx.URL(url)
    for raw in (canary("raw").encode() + b"\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"x: CANARY-long" * 10_000 + b"\r\n\r\n"):
        with socket.create_connection((address.host, address.port or 0), timeout=10) as client, suppress(OSError):
            client.sendall(raw)
            told.append(client.recv(65536))
    return b"".join(told)
