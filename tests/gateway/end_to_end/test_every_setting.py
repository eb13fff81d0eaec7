"""Every setting, changed at run time: the change is in force, or a warning says that it takes a restart."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gateway.api.chat import parse
from gateway.app import Gateway
from gateway.config.fields import fields
from gateway.config.settings import Settings
from gateway.engine.client import EngineClient
from gateway.identity.keys import key_digest
from gateway.proxy.dispatcher import Dispatcher
from gateway.proxy.keepalive import Keepalives
from gateway.proxy.reception import Reception
from gateway.scheduling.limits import Limits
from gateway.slicing.planner import Slicing
from gateway.storage.profile_file import load as load_profile
from policies.fifo import Fifo
from tests.support.running_gateway import RunningGateway, StartGateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import wait_until
from tests.support.wire import chat

C = TypeVar("C")

FAR = "192.0.2.7"  # a client that is not on this host
KEY = "fl-" + "k" * 43
Probe = Callable[[Gateway], object]


def component(gateway: Gateway, kind: type[C]) -> C:
    (found,) = (each for each in gateway.components if isinstance(each, kind))
    return found


def limits(gateway: Gateway) -> Limits:
    return gateway.core.admission.limits


def slicing(gateway: Gateway) -> Slicing:
    assert gateway.core.slicer is not None
    return gateway.core.slicer.slicing


def is_background(gateway: Gateway, text: str) -> bool:
    request = parse(json.dumps(chat(text)).encode())
    return gateway.access.is_background(gateway.access.identify("127.0.0.1", {}), request, {})


def owner_of(gateway: Gateway, key: str) -> str:
    return gateway.access.identify("127.0.0.1", {b"authorization": b"Bearer " + key.encode()}).name


def put(settings: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """`settings` with the value of a dotted key."""
    table, _, name = key.rpartition(".")
    if not table:
        return settings | {key: value}
    before = settings.get(table)
    inner = before if isinstance(before, dict) else before.model_dump() if before else {}
    return settings | {table: inner | {name: value}}


# Of each setting that may be changed at run time: its new value, where the change shows, and what shows there.
IN_FORCE: dict[str, tuple[object, Probe, object]] = {
    "engine.step_tokens": (4096, lambda gateway: limits(gateway).short_lane_tokens, 4096),
    "engine.long_prefill_threshold": (1024, lambda gateway: gateway.core.speed.shares_steps, True),
    "engine.max_num_seqs": (7, lambda gateway: limits(gateway).max_num_seqs, 7),
    "engine.scheduling_policy": ("priority", lambda gateway: component(gateway, Dispatcher).order(5), 5),
    "engine.kv_tokens": (5000, lambda gateway: limits(gateway).kv_tokens, 5000),
    "profile": (
        "gemma-4-26b-nvfp4",
        lambda gateway: gateway.core.cost_model.profile,
        load_profile("gemma-4-26b-nvfp4"),
    ),
    "policy": ("fifo", lambda gateway: type(gateway.core.admission.queue.policy), Fifo),
    "long_prompt_tokens": (999, lambda gateway: limits(gateway).long_prompt_tokens, 999),
    "short_lane_tokens": (998, lambda gateway: limits(gateway).short_lane_tokens, 998),
    "long_lane_jobs": (2, lambda gateway: limits(gateway).long_lane_jobs, 2),
    "slicing": (False, lambda gateway: gateway.core.slicer, None),
    "max_stall": (0.25, lambda gateway: slicing(gateway).max_stall, 0.25),
    "long_share": (0.7, lambda gateway: slicing(gateway).long_share, 0.7),
    "tpot_target": (0.2, lambda gateway: slicing(gateway).tpot_target, 0.2),
    "flow_in_flight": (3, lambda gateway: limits(gateway).flow_in_flight, 3),
    "flow_queued": (4, lambda gateway: limits(gateway).flow_queued, 4),
    "max_queued": (5, lambda gateway: limits(gateway).max_queued, 5),
    "max_queued_s": (6.0, lambda gateway: limits(gateway).max_queued_s, 6.0),
    "weights": ({"ann": 2.0}, lambda gateway: component(gateway, Reception).weights, {"ann": 2.0}),
    "queue_timeout": (11.0, lambda gateway: gateway.waiting.queue_timeout, 11.0),
    "silent_grace": (1.5, lambda gateway: component(gateway, Keepalives).silent_grace, 1.5),
    "comment_interval": (2.5, lambda gateway: component(gateway, Keepalives).comment_interval, 2.5),
    "engine_grace": (33.0, lambda gateway: component(gateway, EngineClient).grace, 33.0),
    "client_stall": (44.0, lambda gateway: component(gateway, Reception).client_stall, 44.0),
    "drain_timeout": (9.0, lambda gateway: gateway.settings.drain_timeout, 9.0),
    "body_timeout": (8.0, lambda gateway: component(gateway, Reception).body_timeout, 8.0),
    "max_body": (1 << 20, lambda gateway: component(gateway, Reception).max_body, 1 << 20),
    "keys": ([{"key": "secret", "owner": "ann"}], lambda gateway: owner_of(gateway, "secret"), "key:ann"),
    "keys_file": ("keys.jsonl", lambda gateway: owner_of(gateway, KEY), "key:ben"),
    "front_ends": (["192.0.2.0/24"], lambda gateway: gateway.access.identify(FAR, {}).rights.front_end, True),
    "user_headers": (["x-me"], lambda gateway: gateway.access.identify(FAR, {b"x-me": b"ada"}).named_user, "ada"),
    "background": ([{"text": "Summarise"}], lambda gateway: is_background(gateway, "Summarise this"), True),
    "background_webui": (
        False,
        lambda gateway: is_background(gateway, "### Task:\nGenerate a concise title"),
        False,
    ),
    "background_delay": (70.0, lambda gateway: component(gateway, Reception).background_delay, 70.0),
    "log_level": ("error", lambda gateway: logging.getLogger().level, logging.ERROR),
}

# Of each that is read at start alone, another value.
AT_START: dict[str, object] = {
    "host": "127.0.0.2",
    "port": 8101,
    "upstream": "http://127.0.0.1:9",
    "upstream_key": "secret",
    "upstream_timeout": 7.0,
    "tokenizer": "engine",
    "state_file": "state.json",
    "max_headers": 4096,
    "max_connections": 99,
    "cors_origins": ["http://intranet"],
    "tls_certificate": "certificate.pem",
    "tls_key": "key.pem",
    "insecure": True,
    "trace_file": "spans.jsonl",
    "decision_log": "decisions.jsonl",
}

# What else must be so for a value to be valid.
ALONG = {"long_lane_jobs": {"engine.long_prefill_threshold": 1024}}


@pytest.fixture
def root_level() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level
    yield
    root.setLevel(before)


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the paths above lead."""
    monkeypatch.chdir(tmp_path)
    Path("keys.jsonl").write_text(json.dumps({"sha256": key_digest(KEY), "owner": "ben"}) + "\n")


def reconfigure(gateway: RunningGateway, key: str, value: object) -> None:
    """As SIGHUP does, on the gateway's own loop."""
    before = gateway.gateway.settings
    settings = {name: getattr(before, name) for name in Settings.model_fields}
    for each, other in (ALONG.get(key, {}) | {key: value}).items():
        settings = put(settings, each, other)
    gateway.call(lambda: gateway.gateway.reconfigure(Settings(**settings)))


def test_every_setting_is_tried() -> None:
    assert {*IN_FORCE, *AT_START} == {field.key for field in fields()}
    assert {*AT_START} == {field.key for field in fields() if field.restart}


@pytest.mark.usefixtures("in_folder", "root_level")
@pytest.mark.parametrize("key", IN_FORCE)
def test_a_change_is_in_force(
    start_gateway: StartGateway, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    value, probe, expected = IN_FORCE[key]
    gateway = start_gateway(engine.url)
    assert gateway.call(lambda: probe_or_error(probe, gateway.gateway)) != expected
    reconfigure(gateway, key, value)
    assert gateway.call(lambda: probe(gateway.gateway)) == expected
    assert "takes a restart" not in caplog.text


def probe_or_error(probe: Probe, gateway: Gateway) -> object:
    """What is seen before a key is known is an error."""
    try:
        return probe(gateway)
    except Exception as error:
        return error


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize("key", AT_START)
def test_a_change_that_takes_a_restart_is_warned_of(
    start_gateway: StartGateway, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    gateway = start_gateway(engine.url)
    reconfigure(gateway, key, AT_START[key])
    (warning,) = (record for record in caplog.records if "takes a restart" in record.getMessage())
    assert warning.getMessage().startswith(f"{key}: ")


def test_sighup_reads_the_settings_anew(tmp_path: Path) -> None:
    """A real process: all that may be changed is changed at once, and one setting that takes a restart."""
    config = tmp_path / "fairlane.toml"
    config.write_text('tokenizer = "off"\nstate_file = "off"\nport = 0\n')
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen(command, stderr=file, env=os.environ | {"NO_COLOR": "1"}) as process:
        try:
            wait_until(lambda: "base URL on this host" in log.read_text(), what="it serves")
            config.write_text(
                'tokenizer = "engine"\nstate_file = "off"\nport = 0\npolicy = "fifo"\nlong_prompt_tokens = 999\n'
            )
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: "settings are in force: policy fifo" in log.read_text(), what="they are in force")
        finally:
            process.terminate()
    text = log.read_text()
    assert "tokenizer: a change takes a restart" in text
    assert "long_prompt_tokens=999" in text
    assert process.returncode == 0
