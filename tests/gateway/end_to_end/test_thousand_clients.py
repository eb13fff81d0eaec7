"""A thousand clients connect, queue and leave at random moments. Afterwards no budget and no queue holds anything, the
gateway's memory has not grown, and the engine is idle.
"""

import asyncio
import json
import random
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadtest.spark_server.options import ServerOptions
from loadtest.spark_server.server import create_app
from loadtest.storage.engine_profiles import load_profile
from tests.support.process import Process
from tests.support.running_gateway import BUDGETS
from tests.support.servers import serve
from tests.support.waiting import wait_until
from tests.support.wire import CHAT, TEXT

MODEL = "gemma-4-26b-bf16"
STAY_S = 3.0  # nobody who leaves early stays longer


@pytest.fixture
def spark() -> Iterator[str]:
    """Slow enough for a queue."""
    with serve(create_app(load_profile(MODEL), ServerOptions(speed=10.0, noise=0.0))) as url:
        yield url


@pytest.fixture
def gateway(spark: str) -> Iterator[Process]:
    """A process, for its memory."""
    process = Process(
        *("serve", "--upstream", spark, "--port", "0"),
        *("--set", "engine.max_num_seqs=8", "--set", "state_file=off"),
        *("--set", "silent_grace=0.5", "--set", "comment_interval=0.2"),
    )
    yield process
    process.kill()


def total(url: str, *names: str) -> dict[str, float]:
    text = httpx.get(f"{url}/metrics", timeout=30).text
    found = dict.fromkeys(names, 0.0)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in found:
                found[sample.name] += sample.value
    return found


def resident(process: Process) -> int:
    """KiB."""
    status = Path(f"/proc/{process.number}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


async def come_and_go(host: str, port: int, random: random.Random) -> str:
    """One client; how it went."""
    await asyncio.sleep(random.uniform(0, 2.0))
    stream = random.random() < 0.7
    text = "word " * random.choice((5, 50, 500, 5000))
    body = {
        "model": MODEL,
        "stream": stream,
        "max_tokens": random.randint(1, 60),
        "user": f"user-{random.randint(1, 30)}",
    }
    body |= {"messages": [{"role": "user", "content": text}]} if random.random() < 0.7 else {"prompt": text}
    content = json.dumps(body).encode()
    path = CHAT if "messages" in body else TEXT
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(content)}\r\n\r\n".encode()
    reader, writer = await asyncio.open_connection(host, port)
    stays = STAY_S if random.random() < 0.1 else random.uniform(0, STAY_S)
    try:
        if random.random() < 0.05:
            writer.write((head + content)[: random.randrange(len(head + content))])  # never whole
        else:
            writer.write(head + content)
        await writer.drain()
        async with asyncio.timeout(stays):
            await reader.read()  # the first bytes, be they of an answer or a comment
            if random.random() < 0.3:
                await asyncio.sleep(STAY_S)  # reads no further
            while await reader.read(65536):
                pass
            return "answered"
    except (TimeoutError, ConnectionError):
        return "left"
    finally:
        if random.random() < 0.3:  # without a goodbye
            writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort() if random.random() < 0.5 else writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def crowd(url: str, count: int, seed: int) -> Counter[str]:
    address = httpx.URL(url)

    async def come() -> list[str]:
        each = (come_and_go(address.host, address.port or 0, random.Random(f"{seed} {n}")) for n in range(count))
        return await asyncio.gather(*each)

    return Counter(asyncio.run(come()))


@pytest.mark.timeout(150)  # of a busy machine; alone it takes 30 s
def test_a_thousand_clients_that_leave_at_random_leak_nothing(spark: str, gateway: Process) -> None:
    url = gateway.url
    nothing = dict.fromkeys((*BUDGETS, "fairlane_kv_tokens"), 0.0)
    idle = dict.fromkeys(("vllm:num_requests_running", "vllm:num_requests_waiting"), 0.0)
    memory: list[int] = []
    # Again and again, until the allocator has what it keeps of a crowd. What we kept of one would come with each.
    for seed in range(6):
        went = crowd(url, 1000, seed)
        assert went["left"] > 250, went
        wait_until(lambda: total(url, *nothing) == nothing, 30, what="nothing is held")
        wait_until(lambda: total(spark, *idle) == idle, 30, what="the engine runs nothing")
        memory.append(resident(gateway))
        if len(memory) > 2 and max(memory[-3:]) <= 1.1 * memory[-3]:
            break
    assert max(memory[-3:]) <= 1.1 * memory[-3], memory
    ended = total(url, "fairlane_requests_total")["fairlane_requests_total"]
    assert (
        500 * len(memory) < ended <= 1000 * len(memory)
    )  # on a busy machine many have left before they had sent anything
    assert "Traceback" not in gateway.said
    assert "internal_error" not in gateway.said
