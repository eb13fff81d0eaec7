"""The `fairlane keys` commands beside a running gateway."""

import json
import os
import subprocess
import sys
from pathlib import Path
from re import fullmatch

import pytest
from typer.testing import CliRunner, Result

from gateway.config.settings import Settings
from gateway.errors import UnknownKey
from gateway.identity.keys import key_digest, read_keys
from loadtest.cli.main import app
from tests.support.running_gateway import RunningGateway, StartGateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import wait_until
from tests.support.wire import chat


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.jsonl"


def run(*arguments: str, environ: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments], env=environ)


def add(path: Path, owner: str, *options: str) -> str:
    result = run("add", owner, "--file", str(path), *options)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def key_id(key: str) -> str:
    return key_digest(key)[:8]


# Give, list, take back.


def test_a_key_is_shown_once_and_kept_as_a_hash(path: Path) -> None:
    result = run("add", "ann", "--file", str(path))
    key = result.stdout.strip()
    assert fullmatch(r"fl-[A-Za-z0-9_-]{43}", key)
    assert key_id(key) in result.stderr
    assert "within a second" in result.stderr
    assert key not in result.stderr
    assert key.removeprefix("fl-") not in path.read_text()
    assert key_digest(key) in path.read_text()


def test_generated_keys_are_unique(path: Path) -> None:
    assert len({add(path, "ann") for _ in range(5)}) == 5


def test_creating_a_key_prints_its_rights(path: Path) -> None:
    options = ["--front-end", "--admin", "--weight", "2.5", "--priority", "30"]
    add(path, "open-webui", *options, "--flow-in-flight", "3", "--flow-queued", "9")
    (key,) = read_keys(path.read_text())
    assert (key.owner, key.front_end, key.admin, key.weight, key.priority) == ("open-webui", True, True, 2.5, 30.0)
    assert (key.flow_in_flight, key.flow_queued) == (3, 9)
    assert fullmatch(r"\d{4}-\d\d-\d\d", key.created)


def test_the_list_shows_everything_but_keys(path: Path) -> None:
    first, second = add(path, "ann", "--weight", "2.5"), add(path, "open-[red]webui", "--front-end")
    shown = run("list", "--file", str(path)).stdout
    head, *rows = shown.splitlines()
    assert head.split()[:2] == ["id", "owner"]
    assert [row.split()[:2] for row in rows] == [[key_id(first), "ann"], [key_id(second), "open-[red]webui"]]
    assert "2.5" in rows[0]
    assert "yes" in rows[1]
    for key in (first, second):
        assert key not in shown
        assert key_digest(key)[:16] not in shown


def test_a_revoked_key_is_removed(path: Path) -> None:
    path.write_text("# our keys\n")
    first, second = add(path, "ann"), add(path, "ben")
    assert run("revoke", key_id(first), "--file", str(path)).exit_code == 0
    assert [key.id for key in read_keys(path.read_text())] == [key_id(second)]
    assert path.read_text().startswith("# our keys\n")


def test_the_keys_file_is_named_by_the_configuration(path: Path, tmp_path: Path) -> None:
    config = tmp_path / "fairlane.toml"
    config.write_text(f'host = "0.0.0.0"\nkeys_file = "{path}"\n')
    assert run("add", "ann", "--config", str(config)).exit_code == 0
    assert "ann" in run("list", environ={"FAIRLANE_CONFIG": str(config)}).stdout
    assert "ann" in run("list", environ={"FAIRLANE_KEYS_FILE": str(path)}).stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["list"], "which file? Say --file FILE, or set keys_file"),
        (["revoke", "00000000", "--file", "{path}"], "there is no key 00000000; `fairlane keys list`"),
        (["add", " ", "--file", "{path}"], "an owner has a name"),
        (["add", "ann", "--weight", "0", "--file", "{path}"], "a weight above 0"),
        (["add", "ann", "--weight", "nan", "--file", "{path}"], "a weight above 0"),
        (["add", "ann", "--weight", "inf", "--file", "{path}"], "finite"),
        (["add", "ann", "--file", "{path}/keys"], "Not a directory"),
        (["list", "--config", "{path}.toml"], "cannot read"),
    ],
)
def test_errors_are_reported_in_plain_words(path: Path, arguments: list[str], says: str) -> None:
    path.write_text("# none yet\n")
    result = run(*(argument.format(path=path) for argument in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert path.read_text() == "# none yet\n"


def test_an_invalid_keys_file_is_not_overwritten(path: Path) -> None:
    path.write_text("nonsense\n")
    result = run("add", "ann", "--file", str(path))
    assert result.exit_code == 2
    assert f"{path}: line 1: not valid JSON" in result.stderr
    assert path.read_text() == "nonsense\n"


def test_concurrent_commands_lose_no_key(path: Path) -> None:
    command = [sys.executable, "-m", "loadtest", "keys", "add", "--file", str(path)]
    running = [subprocess.Popen([*command, f"{n}"], stdout=subprocess.PIPE, text=True) for n in range(2)]
    keys = {process.communicate()[0].strip() for process in running}
    assert {key.digest for key in read_keys(path.read_text())} == {key_digest(key) for key in keys}


# Beside a gateway. It listens on loopback, where nobody needs a key, so whose turn a request took is what shows it.


def flow_of(gateway: RunningGateway, engine: ScriptedEngine, key: str) -> str:
    """Whose turn a request with this key takes."""
    asked = gateway.ask(chat(), headers={"authorization": f"Bearer {key}"})
    call = engine.asked()
    flow = gateway.jobs()[-1].flow  # one that came before it may be about to end
    call.answer()
    asked.read()
    return flow


def wait_for_key(gateway: RunningGateway, key: str, *, known: bool = True) -> None:
    """Wait until the key is in force, or no longer."""
    access, headers = gateway.gateway.access, {b"x-api-key": key.encode()}

    def is_known() -> bool:
        return access.identify("127.0.0.1", headers).name.startswith("key:")

    wait_until(lambda: is_known() == known, what=f"the key is {'' if known else 'no longer '}in force")


def test_a_running_gateway_reloads_the_keys_file(
    engine: ScriptedEngine, start_gateway: StartGateway, path: Path
) -> None:
    """No signal, no restart; and a file that cannot be used changes nothing."""
    gateway = start_gateway(engine.url, keys_file=path)
    key = add(path, "ann")
    wait_for_key(gateway, key)
    assert flow_of(gateway, engine, key) == "key:ann"
    before = path.read_text()
    path.write_text(before + "nonsense\n")
    other = add(path.with_name("elsewhere.jsonl"), "ben")
    assert flow_of(gateway, engine, key) == "key:ann"
    path.write_text(before)
    run("revoke", key_id(key), "--file", str(path))
    wait_for_key(gateway, key, known=False)
    assert flow_of(gateway, engine, key) == flow_of(gateway, engine, other) == "address:127.0.0.1"


def test_a_broken_keys_file_is_reported_and_the_old_keys_stay(
    engine: ScriptedEngine, path: Path, tmp_path: Path
) -> None:
    """As a process of its own, for an error in the log is what is looked for."""
    key = add(path, "ann")
    command = [sys.executable, "-m", "loadtest", "serve", "--upstream", engine.url, "--port", "0"]
    with (tmp_path / "said").open("w+") as said:
        process = subprocess.Popen([*command, "--set", f"keys_file={path}"], stderr=said)
        try:
            wait_until(lambda: "keys                     0, and those of" in (tmp_path / "said").read_text(), 20)
            with path.open("a") as file:
                file.write("nonsense\n")
            wait_until(lambda: f"the keys stay as they were: {path}: line 2: " in (tmp_path / "said").read_text(), 20)
            run("list", "--file", str(path))
            path.write_text(path.read_text().removesuffix("nonsense\n"))
            wait_until(lambda: "1 keys are in force" in (tmp_path / "said").read_text(), 20)
        finally:
            process.terminate()
            process.wait(20)
        assert key not in (tmp_path / "said").read_text()


def test_reloaded_settings_may_name_another_keys_file(
    engine: ScriptedEngine, start_gateway: StartGateway, path: Path, tmp_path: Path
) -> None:
    gateway = start_gateway(engine.url, keys_file=path)
    other = tmp_path / "other.jsonl"
    key = add(other, "ann")
    settings = Settings(upstream=engine.url, keys_file=other)
    gateway.call(lambda: gateway.gateway.reconfigure(settings))
    assert flow_of(gateway, engine, key) == "key:ann"
    ben = add(other, "ben")
    wait_for_key(gateway, ben)
    assert flow_of(gateway, engine, ben) == "key:ben"
    other.write_text("nonsense")
    with pytest.raises(ValueError, match="line 1"):
        gateway.call(lambda: gateway.gateway.reconfigure(settings))
    assert flow_of(gateway, engine, key) == "key:ann"


def test_an_empty_keys_file_admits_nobody(
    start_gateway: StartGateway, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Or the last key's revocation would open the gateway to all."""
    gateway = start_gateway("http://127.0.0.1:9", keys_file=path)

    def identify() -> None:
        gateway.gateway.access.identify("192.168.1.5", {})

    with pytest.raises(UnknownKey):
        identify()
    run("revoke", key_id(add(path, "ann")), "--file", str(path))
    wait_until(lambda: "0 keys are in force" in caplog.text)
    with pytest.raises(UnknownKey):
        identify()


def test_a_keys_weight_and_limits_apply_to_its_flow(
    engine: ScriptedEngine, start_gateway: StartGateway, path: Path
) -> None:
    """One in the engine, one that waits, and no more; others are not bound by that. A table's weight goes before."""
    key = add(path, "ann", "--flow-in-flight", "1", "--flow-queued", "1", "--weight", "3")
    free = add(path, "ben", "--weight", "3")
    gateway = start_gateway(engine.url, keys_file=path, weights={"ben": 5.0})

    def ask(key: str) -> None:
        gateway.ask(chat(), headers={"x-api-key": key})

    ask(key)
    first = engine.asked()
    ask(key)
    gateway.wait_queued(1)
    refused = gateway.post(chat(), headers={"authorization": f"Bearer {key}"})
    assert refused.status_code == 429
    assert "1 of your requests wait already" in refused.json()["error"]["message"]
    for _ in range(3):
        ask(free)
        engine.asked()
    weights = {job.flow: job.weight for job in gateway.jobs()}
    assert weights == {"key:ann": 3.0, "key:ben": 5.0}
    first.answer()
    engine.asked()
    gateway.leave_all()


def test_the_gateway_starts_with_the_keys_in_the_file(
    engine: ScriptedEngine, start_gateway: StartGateway, path: Path
) -> None:
    key = add(path, "ann")
    gateway = start_gateway(engine.url, keys_file=path, keys=[{"key": "in the clear", "owner": "ben"}])
    assert flow_of(gateway, engine, key) == "key:ann"
    assert flow_of(gateway, engine, "in the clear") == "key:ben"


def test_the_gateway_does_not_start_with_an_invalid_keys_file(path: Path) -> None:
    path.write_text(json.dumps({"owner": "ann"}))
    result = CliRunner().invoke(app, ["serve", "--set", f"keys_file={path}"])
    assert result.exit_code == 2
    assert f"{path}: line 1: " in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_the_gateway_does_not_start_with_an_unreadable_keys_file(path: Path) -> None:
    add(path, "ann")
    path.chmod(0)
    assert CliRunner().invoke(app, ["serve", "--set", f"keys_file={path}"]).exit_code == 2
