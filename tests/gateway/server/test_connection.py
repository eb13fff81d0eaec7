"""HTTP connections, tested through raw sockets."""

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from gateway.server import connection
from gateway.tcp import PROBES
from tests.support.running_gateway import RunningGateway, StartGateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import DEADLINE, wait_until
from tests.support.wire import CHAT, DONE, chat, token

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = json.dumps(chat()).encode()


class Raw:
    """A client that writes what it likes."""

    def __init__(self, url: str) -> None:
        address = httpx.URL(url)
        self.socket = socket.create_connection((address.host, address.port or 0), timeout=DEADLINE)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_for_ever(self, data: bytes) -> None:
        while True:
            self.send(data)

    def read(self) -> bytes:
        """What there is, up to a closing."""
        pieces = []
        with contextlib.suppress(ConnectionResetError):
            while piece := self.socket.recv(65536):
                pieces.append(piece)
        return b"".join(pieces)

    def read_until(self, end: bytes) -> bytes:
        data = b""
        while end not in data:
            piece = self.socket.recv(65536)
            assert piece, data
            data += piece
        return data

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """One answer with a content-length."""
        head, _, body = self.read_until(b"\r\n\r\n").partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        while len(body) < int(headers["content-length"]):
            piece = self.socket.recv(65536)
            assert piece, body
            body += piece
        return int(status.split()[1]), headers, body

    @property
    def closed(self) -> bool:
        return self.read() == b""


Connect = Callable[[RunningGateway], Raw]


@pytest.fixture
def raw() -> Iterator[Connect]:
    with ExitStack() as stack:

        def connect(gateway: RunningGateway) -> Raw:
            client = Raw(gateway.url)
            stack.enter_context(client.socket)
            return client

        yield connect


def code(body: bytes) -> str:
    (error,) = json.loads(body).values()
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["code"])


# Heads


@pytest.mark.parametrize(
    "endless", [b"x-endless: " + b"y" * 1000, b"x-another: y\r\n" * 100], ids=["one header", "many headers"]
)
def test_an_endless_request_head_is_refused(gateway: RunningGateway, raw: Connect, endless: bytes) -> None:
    client = raw(gateway)
    client.send(HEAD)
    with contextlib.suppress(OSError):
        for _ in range(1000):
            client.send(endless)
    answer = client.read()
    assert answer.startswith(b"HTTP/1.1 431 ") or answer == b""  # it was still writing when the answer came
    gateway.wait_ended("headers_too_large")


def test_a_request_head_may_be_as_long_as_the_limit(
    engine: ScriptedEngine, start_gateway: StartGateway, raw: Connect
) -> None:
    gateway = start_gateway(engine.url, max_headers=4000)
    for size, status in ((3500, 200), (4100, 431)):
        client = raw(gateway)
        client.send(b"GET /health HTTP/1.1\r\nx: " + b"y" * size + b"\r\n\r\n")
        got, _, body = client.answer()
        assert got == status
    assert code(body) == "headers_too_large"
    assert client.closed
    gateway.wait_ended("headers_too_large")


def test_invalid_http_gets_an_error_in_json(gateway: RunningGateway, raw: Connect) -> None:
    client = raw(gateway)
    client.send(b"HELLO you\r\n\r\n")
    status, headers, body = client.answer()
    assert (status, headers["content-type"], code(body)) == (400, "application/json", "bad_request")
    assert client.closed
    gateway.wait_ended("bad_request")


def test_garbage_after_a_request_does_not_reach_its_answer(
    engine: ScriptedEngine, gateway: RunningGateway, raw: Connect
) -> None:
    client = raw(gateway)
    client.send(HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
    call = engine.asked()
    client.send(b"\x00\x01\x02\r\n\r\n")
    assert b"bad_request" not in client.read()
    assert call.left.wait(2.0)


@pytest.mark.parametrize("begun", [b"", b"POST /v1/chat"])
def test_a_slow_request_head_times_out(
    gateway: RunningGateway, raw: Connect, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT", 0.1)
    client = raw(gateway)
    client.send(begun)
    answer = client.read()
    assert (b" 408 " in answer) is bool(begun)  # a connection in reserve is closed without a word
    if begun:
        gateway.wait_ended("request_timeout")


# Bodies


@pytest.mark.parametrize("chunked", [True, False])
def test_a_slow_body_times_out(
    engine: ScriptedEngine, start_gateway: StartGateway, raw: Connect, chunked: bool
) -> None:
    gateway = start_gateway(engine.url, body_timeout=0.2)
    client = raw(gateway)
    client.send(HEAD + (b"transfer-encoding: chunked\r\n\r\n5\r\n" if chunked else b"content-length: 100\r\n\r\n"))
    start = time.perf_counter()
    with contextlib.suppress(OSError):
        while time.perf_counter() - start < 0.15:  # a byte now and then does not make it quicker
            client.send(b" " if not chunked else b"")
            time.sleep(0.02)
    status, _, body = client.answer()
    assert (status, code(body)) == (408, "request_timeout")
    assert "body_timeout" in body.decode()
    gateway.wait_ended("request_timeout")


def test_a_client_that_keeps_sending_a_refused_body_is_disconnected(
    engine: ScriptedEngine, start_gateway: StartGateway, raw: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINGER", 0.2)
    gateway = start_gateway(engine.url, max_body=1000)
    client = raw(gateway)
    client.send(HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"400\r\n%s\r\n" % (b"x" * 1024))
    status, _, body = client.answer()
    assert (status, code(body)) == (413, "body_too_large")
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        client.send_for_ever(b"400\r\n%s\r\n" % (b"x" * 1024))


def test_a_connection_stays_usable_after_a_refused_body_was_read(
    engine: ScriptedEngine, start_gateway: StartGateway, raw: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINGER", 1.0)
    gateway = start_gateway(engine.url, max_body=1000)
    client = raw(gateway)
    client.send(HEAD + b"content-length: 2000\r\n\r\n")
    assert client.answer()[0] == 413
    client.send(b"x" * 2000)
    start = time.perf_counter()
    wait_until(lambda: time.perf_counter() - start > 1.2)
    client.send(HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
    engine.asked().answer()
    assert client.answer()[0] == 200


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_a_chunked_upload_is_read(engine: ScriptedEngine, gateway: RunningGateway, raw: Connect, cut: int) -> None:
    client = raw(gateway)
    client.send(HEAD + b"transfer-encoding: chunked\r\n\r\n")
    for at in range(0, len(BODY), cut):
        client.send(b"%x\r\n%s\r\n" % (len(BODY[at : at + cut]), BODY[at : at + cut]))
    client.send(b"0\r\n\r\n")
    call = engine.asked()
    assert call.body == BODY
    call.answer()
    assert client.answer()[0] == 200


def test_expect_100_continue_is_answered(engine: ScriptedEngine, gateway: RunningGateway, raw: Connect) -> None:
    client = raw(gateway)
    client.send(HEAD + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(BODY))
    assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(BODY)
    call = engine.asked()
    assert (call.body, "expect" in call.headers) == (BODY, False)
    call.answer()
    assert client.answer()[0] == 200


def test_expect_100_continue_is_refused_for_a_body_that_is_too_large(
    engine: ScriptedEngine, start_gateway: StartGateway, raw: Connect
) -> None:
    gateway = start_gateway(engine.url, max_body=1000)
    client = raw(gateway)
    client.send(HEAD + b"expect: 100-continue\r\ncontent-length: 2000\r\n\r\n")
    status, headers, _ = client.answer()
    assert (status, headers["connection"]) == (413, "close")
    assert client.closed


def test_pipelined_requests_are_answered_in_order(
    engine: ScriptedEngine, gateway: RunningGateway, raw: Connect
) -> None:
    client = raw(gateway)
    request = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    client.send(request + request)
    for number in (b'{"n": 1}', b'{"n": 2}'):
        engine.asked().answer(200, number)
        assert client.answer()[2] == number


def test_an_http_2_upgrade_is_ignored_and_the_request_answered(
    engine: ScriptedEngine, gateway: RunningGateway, raw: Connect
) -> None:
    """As Java's HttpClient makes it, with every request on a connection that is not encrypted."""
    client = raw(gateway)
    upgrade = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n"
    client.send(HEAD + upgrade + b"content-length: %d\r\n\r\n" % len(BODY))
    client.send(BODY)
    call = engine.asked()
    assert call.body == BODY
    assert "upgrade" not in call.headers
    call.answer()
    assert client.answer()[0] == 200


# Methods


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/health/ready", "/queue", "/metrics"])
def test_head_answers_like_get_without_the_body(gateway: RunningGateway, path: str) -> None:
    response = httpx.head(gateway.url + path)
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) > 0


def test_a_wrong_method_answers_405_with_the_allowed_methods(gateway: RunningGateway) -> None:
    for method, path, allowed in (("GET", CHAT, {"POST"}), ("OPTIONS", "/v1/models", {"GET", "HEAD"})):
        response = httpx.request(method, gateway.url + path)
        assert response.status_code == 405
        assert set(response.headers["allow"].split(", ")) == allowed


# Connections


def test_the_number_of_connections_is_limited(
    engine: ScriptedEngine, start_gateway: StartGateway, raw: Connect
) -> None:
    gateway = start_gateway(engine.url, max_connections=3)
    gateway.get("/health")  # the one that the test looks with
    kept = [raw(gateway) for _ in range(2)]
    connections = gateway.connections
    wait_until(lambda: len(connections) == 3)
    client = raw(gateway)
    client.send(HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
    status, headers, body = client.answer()
    assert (status, code(body), headers["retry-after"]) == (503, "too_many_connections", "5")
    assert client.closed
    looks = raw(gateway)
    looks.send(b"GET /health HTTP/1.1\r\n\r\n")
    assert looks.answer()[0] == 200
    assert engine.pending == 0
    more = [raw(gateway) for _ in range(4)]
    wait_until(lambda: len(connections) == 6)
    assert more[-1].closed  # not even heard
    for each in (*kept, looks, *more):
        each.socket.close()
    wait_until(lambda: len(connections) == 1)
    asked = gateway.ask(chat())
    engine.asked().answer()
    assert asked.status == 200
    gateway.wait_ended("too_many_connections")


def test_every_connection_has_tcp_keepalive(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    """A laptop that is shut says nothing: probes find it, or nobody who acknowledges what is sent."""
    gateway = start_gateway(engine.url, client_stall=7.0)
    gateway.get("/health")
    (accepted,) = gateway.connections
    sock = accepted.transport.get_extra_info("socket")
    for level, option, value in PROBES:
        assert sock.getsockopt(level, option) == value
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000


# Other origins


@pytest.mark.parametrize("origins", [("http://intranet",), ("*",)])
def test_an_allowed_origin_gets_cors_headers(
    engine: ScriptedEngine, start_gateway: StartGateway, origins: tuple[str, ...]
) -> None:
    gateway = start_gateway(engine.url, cors_origins=origins, keys=({"key": "right", "owner": "ada"},))
    preflight = httpx.options(
        gateway.url + CHAT,
        headers={
            "origin": "http://intranet",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-os",
        },
    )
    assert preflight.status_code == 200  # and has no key
    assert preflight.headers["access-control-allow-origin"] in ("http://intranet", "*")
    assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
    asked = gateway.ask(chat(stream=True), headers={"origin": "http://intranet"})
    call = engine.asked()
    call.start()
    assert asked.header("access-control-allow-origin") in ("http://intranet", "*")
    assert "x-fairlane-queue-ms" in (asked.header("access-control-expose-headers") or "")
    for word in ("one", "two"):  # as they come
        call.send(token(word))
        assert asked.event() == token(word)
    asked.leave()
    assert call.left.wait(2.0)
    gateway.wait_ended("client_left")


def test_another_origin_gets_no_cors_headers(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    for origins in ((), ("http://intranet",)):
        gateway = start_gateway(engine.url, cors_origins=origins)
        headers = {"origin": "http://elsewhere", "access-control-request-method": "POST"}
        preflight = httpx.options(gateway.url + CHAT, headers=headers)
        assert preflight.status_code in (400, 405)
        assert "access-control-allow-origin" not in preflight.headers
        # Nor may the engine let it in, which vLLM would with --allowed-origins.
        asked = gateway.ask(chat(), headers={"origin": "http://elsewhere"})
        call = engine.asked()
        assert "origin" not in call.headers
        call.answer()
        assert asked.header("access-control-allow-origin") is None


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this host, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=fairlane"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-addext", "keyUsage=digitalSignature,keyCertSign"),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def test_requests_over_https_are_answered(
    engine: ScriptedEngine, start_gateway: StartGateway, certificate: tuple[Path, Path]
) -> None:
    chain, key = certificate
    gateway = start_gateway(engine.url, tls_certificate=chain, tls_key=key)
    assert gateway.url.startswith("https://")
    context = ssl.create_default_context(cafile=str(chain))
    with httpx.Client(verify=context, trust_env=False) as client, ThreadPoolExecutor() as pool:
        assert client.get(f"{gateway.url}/health").json()["status"] == "ok"
        call = pool.submit(engine.asked)
        pool.submit(lambda: call.result().stream(token("one"), DONE))
        assert client.post(gateway.url + CHAT, json=chat(stream=True)).content == token("one") + DONE
    gateway.wait_ended("completed")
