"""A front end that never names its users is reported once."""

import pytest

from gateway.identity.missing_users import MAX_FRONT_ENDS, REQUESTS_BEFORE_HINT, MissingUserDetector
from tests.support.running_gateway import RunningGateway, StartGateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.wire import chat


def test_a_front_end_is_reported_once_after_enough_requests_without_a_user() -> None:
    unnamed = MissingUserDetector()
    assert [unnamed.observe("webui", named=False) for _ in range(3 * REQUESTS_BEFORE_HINT)] == [
        number == REQUESTS_BEFORE_HINT for number in range(1, 3 * REQUESTS_BEFORE_HINT + 1)
    ]


def test_a_front_end_that_sometimes_names_users_is_not_reported() -> None:
    unnamed = MissingUserDetector()
    for _ in range(5):
        assert not any(unnamed.observe("webui", named=False) for _ in range(REQUESTS_BEFORE_HINT - 1))
        assert not unnamed.observe("webui", named=True)


def test_a_front_end_is_not_reported_again_after_naming_users() -> None:
    unnamed = MissingUserDetector()
    assert any(unnamed.observe("webui", named=False) for _ in range(REQUESTS_BEFORE_HINT))
    unnamed.observe("webui", named=True)
    assert not any(unnamed.observe("webui", named=False) for _ in range(2 * REQUESTS_BEFORE_HINT))


def test_front_ends_are_counted_separately() -> None:
    unnamed = MissingUserDetector()
    told = [unnamed.observe(name, named=False) for _ in range(REQUESTS_BEFORE_HINT) for name in ("one", "two")]
    assert told == [False] * (2 * REQUESTS_BEFORE_HINT - 2) + [True, True]


def test_the_number_of_remembered_front_ends_is_bounded() -> None:
    unnamed = MissingUserDetector()
    for number in range(2 * MAX_FRONT_ENDS):
        unnamed.observe(str(number), named=False)
    assert len(unnamed) == MAX_FRONT_ENDS


def ask(gateway: RunningGateway, engine: ScriptedEngine, times: int, **headers: str) -> None:
    for _ in range(times):
        asked = gateway.ask(chat(), headers={name.replace("_", "-"): value for name, value in headers.items()})
        engine.asked().answer()
        asked.read()


def hints(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    return [message for message in messages if "ENABLE_FORWARD_USER_INFO_HEADERS=True" in message]


def test_the_log_names_the_setting_that_is_missing(
    engine: ScriptedEngine, start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    """And which of the log's users it is, by the hash that their lines have."""
    keys = [{"key": "k-webui", "owner": "secretly-webui", "front_end": True}]
    gateway = start_gateway(engine.url, keys=keys)
    ask(gateway, engine, REQUESTS_BEFORE_HINT - 1, authorization="Bearer k-webui")
    assert hints(caplog) == []
    ask(gateway, engine, REQUESTS_BEFORE_HINT, authorization="Bearer k-webui")
    (hint,) = hints(caplog)
    assert "secretly-webui" not in caplog.text
    user = hint.partition("user=")[2].split()[0]
    lines = [record.getMessage() for record in caplog.records if record.name == "fairlane.requests"]
    assert lines
    assert all(f"user={user} " in line for line in lines)


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer k-webui", "x_openwebui_user_id": "ann"},
        {"authorization": "Bearer k-ann"},
        {"authorization": "Bearer k-ann", "x_openwebui_user_id": "ann"},
    ],
    ids=["names its users", "no front end", "no front end, names"],
)
def test_other_clients_are_not_reported(
    engine: ScriptedEngine, start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, headers: dict[str, str]
) -> None:
    keys = [{"key": "k-webui", "owner": "webui", "front_end": True}, {"key": "k-ann", "owner": "ann"}]
    ask(start_gateway(engine.url, keys=keys), engine, REQUESTS_BEFORE_HINT + 1, **headers)
    assert hints(caplog) == []
