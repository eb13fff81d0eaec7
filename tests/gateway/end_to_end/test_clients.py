"""Real clients that wait in the queue, and the parsing rules of those that cannot run here. Each sees only the answer
or the error, whatever comments came before.
"""

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.running_gateway import RunningGateway, StartGateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.servers import serve
from tests.support.wire import CHAT, DONE, chat, sse, token

WAITS: dict[str, Any] = {
    "engine": {"max_num_seqs": 1},
    "silent_grace": 0.05,
    "comment_interval": 0.02,
    "cors_origins": ("*",),
}
BROKEN = sse({"error": {"message": "no", "type": "InternalServerError", "param": None, "code": "broken"}})

Waiting = Callable[..., Future[None]]


@pytest.fixture
def gateway(engine: ScriptedEngine, start_gateway: StartGateway) -> RunningGateway:
    return start_gateway(engine.url, **WAITS)


@pytest.fixture
def waiting(engine: ScriptedEngine, gateway: RunningGateway) -> Iterator[Waiting]:
    """Somebody has the one seat until a client has waited and been told so; then the client is answered."""
    first = gateway.ask(chat(stream=True))
    occupies = engine.asked()
    occupies.start()
    occupies.send(token("first"))
    first.event()

    def let_wait(*answer: bytes) -> None:
        gateway.wait_queued(1)
        watches = gateway.ask(chat(stream=True))  # behind it: when this one is told for the third time, so is that one
        for _ in range(3):
            assert watches.response.readline().startswith(b": queued")
        occupies.end(DONE)
        engine.asked().stream(*answer)
        engine.asked().stream(DONE)
        watches.read()

    with ThreadPoolExecutor() as pool:
        yield lambda *answer: pool.submit(let_wait, *answer)
    occupies.end(DONE)


ANSWER = (token("one"), token("two"), DONE)
ERROR = (token("one"), BROKEN, DONE)


# Python


def test_openai_python_reads_the_answer_after_comments(gateway: RunningGateway, waiting: Waiting) -> None:
    waiting(*ANSWER)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="-", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        assert [chunk.choices[0].delta.content for chunk in stream] == ["one", "two"]


def test_openai_python_raises_an_error_after_comments(gateway: RunningGateway, waiting: Waiting) -> None:
    waiting(*ERROR)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="-", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        assert next(stream).choices[0].delta.content == "one"
        with pytest.raises(openai.APIError) as caught:
            next(stream)
        assert caught.value.code == "broken"


def test_comments_keep_a_client_from_its_read_timeout(gateway: RunningGateway, waiting: Waiting) -> None:
    """What the comments are for: something comes now and then."""
    waiting(*ANSWER)
    with httpx.stream(
        "POST", gateway.url + CHAT, json=chat(stream=True), timeout=httpx.Timeout(10, read=3)
    ) as response:
        told = b"".join(response.iter_raw())
    assert told.count(b": queued") >= 2
    assert told.endswith(b"".join(ANSWER))


@pytest.fixture
def anthropic() -> Any:
    return pytest.importorskip("anthropic", reason="the anthropic SDK is not installed")


def test_anthropic_python_reads_the_answer_after_comments(
    anthropic: Any, engine: ScriptedEngine, gateway: RunningGateway, waiting: Waiting
) -> None:
    """Its events, behind comments as the gateway writes them."""
    waiting(*ANSWER)
    with httpx.stream("POST", gateway.url + CHAT, json=chat(stream=True)) as response:
        told = b"".join(response.iter_raw())
    comments = told[: told.index(b"data:")]
    assert comments.count(b": queued") >= 2
    message: dict[str, Any] = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": []}
    message |= {"stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_stop"},
    ]
    client = anthropic.Anthropic(base_url=engine.url, api_key="-", max_retries=0)
    with client, ThreadPoolExecutor() as pool:

        def answer() -> None:
            call = engine.asked()
            call.start()
            call.send(comments)
            for event in events:
                call.send(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            call.end()

        while engine.pending:
            engine.asked()
        pool.submit(answer)
        with client.messages.stream(model="m", max_tokens=5, messages=[{"role": "user", "content": "hello"}]) as stream:
            assert list(stream.text_stream) == ["hi"]


# JavaScript


@pytest.fixture
def node() -> str:
    """node, where it finds openai-node."""
    found = shutil.which("node")
    if found is None or subprocess.run([found, "-e", "require('openai')"], capture_output=True).returncode:
        pytest.skip("openai-node is not installed: `npm install openai` somewhere, and its node_modules in NODE_PATH")
    return found


@pytest.mark.parametrize(("answer", "told"), [(ANSWER, ("onetwo", None)), (ERROR, ("one", "broken"))])
def test_openai_node_reads_the_answer_after_comments(
    node: str,
    gateway: RunningGateway,
    waiting: Waiting,
    answer: tuple[bytes, ...],
    told: tuple[str, str | None],
) -> None:
    waiting(*answer)
    script = Path(__file__).with_name("openai_node.mjs")
    done = subprocess.run(
        [node, str(script), f"{gateway.url}/v1"], capture_output=True, text=True, timeout=30, check=True
    )
    found = json.loads(done.stdout)
    assert (found["text"], found["error"]) == told


PAGE = """<!doctype html><script>
const told = {source: [], fetched: '', error: null};
const tell = () => fetch('/told', {method: 'POST', body: JSON.stringify(told)});
async function run() {
  const asked = await fetch(GATEWAY + '/v1/chat/completions', {
    method: 'POST',
    headers: {'content-type': 'application/json', 'authorization': 'Bearer any'},
    body: JSON.stringify({model: 'm', stream: true, messages: [{role: 'user', content: 'hello'}]}),
  });
  told.id = asked.headers.get('x-request-id');
  const reader = asked.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let piece; !(piece = await reader.read()).done;) told.fetched += piece.value;
  await fetch('/heard', {method: 'POST', body: told.fetched});
  const source = new EventSource('/stream');
  source.onmessage = event => {
    told.source.push(event.data);
    if (event.data === '[DONE]') { source.close(); tell(); }
  };
  source.onerror = () => { told.error = 'EventSource'; source.close(); tell(); };
}
run().catch(error => { told.error = String(error); tell(); });
</script>"""


def test_a_browsers_fetch_and_event_source_read_the_answer_after_comments(
    gateway: RunningGateway, waiting: Waiting, tmp_path: Path
) -> None:
    """`fetch` from a page of another origin; and EventSource, which can only GET, gets the bytes that came."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no chromium is installed")
    heard: list[bytes] = []
    told: list[Any] = []
    over = threading.Event()

    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE.replace("GATEWAY", json.dumps(gateway.url)))

    async def hear(request: Request) -> Response:
        heard.append(await request.body())
        return Response()

    async def stream(request: Request) -> Response:
        return StreamingResponse(iter(heard), media_type="text/event-stream")

    async def tell(request: Request) -> Response:
        told.append(json.loads(await request.body()))
        over.set()
        return Response()

    routes = [Route("/", page), Route("/stream", stream)]
    routes += [Route("/heard", hear, methods=["POST"]), Route("/told", tell, methods=["POST"])]
    waiting(*ANSWER)
    with serve(Starlette(routes=routes)) as url:
        browser = subprocess.Popen(
            [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", url],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert over.wait(30), "the page has not told what it saw"
        finally:
            browser.kill()
            browser.wait()
    (found,) = told
    assert found["error"] is None
    assert len(found["id"]) == 32  # a header that it may read
    assert found["fetched"].count(": queued") >= 2
    assert found["fetched"].endswith(b"".join(ANSWER).decode())
    assert found["source"] == [event.removeprefix(b"data: ").strip().decode() for event in ANSWER]


# Go, by the rules of its decoders


def openai_go(stream: bytes) -> tuple[list[str], str | None]:
    """openai-go, packages/ssestream/ssestream.go, `eventStreamDecoder.Next` and `Stream.Next`, as of v1.x: an empty
    line dispatches an event, be there data or none, and no data is no JSON. (v3 passes over an event without data.)
    """
    found: list[str] = []
    data = b""
    for line in stream.split(b"\n"):
        if line == b"":
            if data.startswith(b"[DONE]"):
                return found, None
            try:
                event: dict[str, Any] = json.loads(data)
            except ValueError:
                return found, "unexpected end of JSON input"
            if "error" in event:
                return found, str(event["error"]["code"])
            found.append(event["choices"][0]["delta"]["content"])
            data = b""
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            data += value.removeprefix(b" ") + b"\n"
    return found, None


def go_openai(stream: bytes, limit: int = 300) -> tuple[list[str], str | None]:
    """go-openai, stream_reader.go, `processLines`; `emptyMessagesLimit` is 300 by default (config.go). A line that is
    no data counts as an empty message of the message to come, and is kept as if it were part of an error.
    """
    found: list[str] = []
    kept, empty, error = b"", 0, False
    lines = iter(stream.splitlines(keepends=True))
    while True:
        line = next(lines, None)
        if line is None or error:
            try:
                return found, str(json.loads(kept)["error"]["code"])
            except ValueError:
                if line is None:
                    return found, "EOF"
                found.append("")  # its known fault: neither an error nor a message
                kept, empty, error = b"", 0, False
                continue
        stripped = line.strip()
        error = stripped.startswith(b'data: {"error":')
        if not stripped.startswith(b"data: ") or error:
            kept += stripped.removeprefix(b"data: ") if error else stripped
            empty += 1
            if empty > limit:
                return found, "stream has sent too many empty messages"
            continue
        data = stripped.removeprefix(b"data: ")
        if data == b"[DONE]":
            return found, None
        found.append(json.loads(data)["choices"][0]["delta"]["content"])
        empty = 0


def heard(gateway: RunningGateway, waiting: Waiting, answer: tuple[bytes, ...]) -> bytes:
    waiting(*answer)
    told = gateway.post(chat(stream=True)).content
    assert told.count(b": queued") >= 2
    return told


@pytest.mark.parametrize("decode", [openai_go, go_openai])
def test_go_clients_read_the_answer_after_comments(
    gateway: RunningGateway, waiting: Waiting, decode: Callable[[bytes], tuple[list[str], str | None]]
) -> None:
    assert decode(heard(gateway, waiting, ANSWER)) == (["one", "two"], None)


@pytest.mark.parametrize("decode", [openai_go, go_openai])
def test_go_clients_see_an_error_after_a_token(
    gateway: RunningGateway, waiting: Waiting, decode: Callable[[bytes], tuple[list[str], str | None]]
) -> None:
    found, error = decode(heard(gateway, waiting, ERROR))
    assert found[0] == "one"
    assert error == ("broken" if decode is openai_go else None)


def test_blank_lines_after_comments_break_go_clients() -> None:
    """With blank lines the models stumble as the clients do; and a wait of 25 minutes is what go-openai bears."""
    assert openai_go(b": queued\n\n" + token("one") + DONE) == ([], "unexpected end of JSON input")
    assert openai_go(b": queued\n" * 300 + token("one") + DONE) == (["one"], None)
    assert go_openai(b": queued\n" * 300 + token("one") + DONE) == (["one"], None)
    assert go_openai(b": queued\n\n" * 151 + token("one") + DONE)[1] == "stream has sent too many empty messages"
    assert go_openai(b": queued\n" * 301 + token("one") + DONE)[1] == "stream has sent too many empty messages"
