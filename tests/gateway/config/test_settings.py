"""Settings: which source wins, and how unknown or invalid values are reported."""

import json
import re
from ipaddress import ip_network
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway import from_settings
from gateway.cli.main import create_app
from gateway.config.fields import SettingField, fields, restart_needed
from gateway.config.layers import ConfigError, Sources
from gateway.config.settings import Settings
from gateway.identity.keys import key_digest
from gateway.scheduling.limits import Limits
from gateway.storage.config_file import load
from gateway.storage.profile_file import load as load_profile
from policies import POLICIES

PROFILE = load_profile("gemma-4-26b-bf16")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "fairlane.toml"


def from_file(file: Path, text: str) -> tuple[Settings, Sources]:
    file.write_text(text)
    return load(file)


# Sources.


def test_defaults_apply_without_any_source() -> None:
    settings, sources = load()
    assert (settings.host, settings.port, settings.policy) == ("127.0.0.1", 8100, "fair")
    assert sources == {}


def test_the_command_line_overrides_the_environment_which_overrides_the_file(file: Path) -> None:
    file.write_text('port = 1\npolicy = "fifo"\nlong_prompt_tokens = 100\n')
    environ = {"FAIRLANE_PORT": "2", "FAIRLANE_LONG_PROMPT_TOKENS": "200"}
    settings, sources = load(file, environ, {"port": 3})
    assert (settings.port, settings.long_prompt_tokens, settings.policy) == (3, 200, "fifo")
    assert sources == {"port": "command line", "long_prompt_tokens": "environment", "policy": str(file)}


def test_a_table_is_merged_key_by_key(file: Path) -> None:
    file.write_text("[engine]\nstep_tokens = 100\nmax_num_seqs = 1\nlong_prefill_threshold = 7\n")
    environ = {"FAIRLANE_ENGINE__MAX_NUM_SEQS": "2", "FAIRLANE_ENGINE__STEP_TOKENS": "200"}
    settings, sources = load(file, environ, {"engine.max_num_seqs": 3})
    engine = settings.engine
    assert (engine.step_tokens, engine.max_num_seqs, engine.long_prefill_threshold) == (200, 3, 7)
    assert sources == {
        "engine.step_tokens": "environment",
        "engine.max_num_seqs": "command line",
        "engine.long_prefill_threshold": str(file),
    }


def test_only_fairlane_variables_are_read_from_the_environment() -> None:
    settings, sources = load(None, {"PORT": "1", "PATH": "/bin", "FAIRLANE_CONFIG": "read by the command line"})
    assert (settings, sources) == (Settings(), {})


def test_settings_ignore_the_process_environment_unless_it_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRLANE_PORT", "1")
    assert load()[0].port == 8100


def test_lists_in_the_environment_are_json() -> None:
    environ = {"FAIRLANE_KEYS": '[{"key": "k", "owner": "o"}]', "FAIRLANE_FRONT_ENDS": '["10.0.0.0/8"]'}
    settings, _ = load(None, environ)
    assert [(key.digest, key.owner, key.front_end) for key in from_settings.api_keys(settings)] == [
        (key_digest("k"), "o", False)
    ]
    assert settings.front_end_networks == [ip_network("10.0.0.0/8")]


def test_keys_are_tables_in_the_file(file: Path) -> None:
    settings, _ = from_file(
        file, '[[keys]]\nkey = "a"\nowner = "x"\n[[keys]]\nkey = "b"\nowner = "y"\nfront_end = true\n'
    )
    assert [(key.owner, key.front_end) for key in from_settings.api_keys(settings)] == [("x", False), ("y", True)]


@pytest.mark.parametrize(
    "keys",
    [[{"key": " ", "owner": "ann"}], [{"key": "same", "owner": "ann"}, {"key": "same", "owner": "ben"}]],
    ids=["empty", "two owners"],
)
def test_a_key_must_have_an_owner(keys: list[dict[str, str]]) -> None:
    with pytest.raises(ConfigError, match=r"is empty|have the same key"):
        load(flags={"keys": keys})


def test_a_table_and_its_keys_cannot_both_be_set() -> None:
    with pytest.raises(ConfigError, match="engine is a table"):
        load(flags={"engine": 5, "engine.step_tokens": 3})


def test_keys_are_not_shown() -> None:
    settings, _ = load(None, {}, {"keys": [{"key": "s3cret", "owner": "o"}], "upstream_key": "s3cret"})
    assert "s3cret" not in repr(settings)


# Unknown keys.


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prot = 1\n", "unknown key prot ({file}): did you mean port?"),
        ("[engine]\nstep_token = 1\n", "unknown key engine.step_token ({file}): did you mean engine.step_tokens?"),
        ("zzzzzz = 1\n", "unknown key zzzzzz ({file}): see `fairlane config show`"),
    ],
)
def test_an_unknown_key_in_the_file_is_answered_with_a_suggestion(file: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says.format(file=file))):
        from_file(file, text)


def test_an_unknown_table_is_reported_as_an_unknown_key(file: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key enigne"):
        from_file(file, "[enigne]\nstep_tokens = 1\n")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("FAIRLANE_PROT", "FAIRLANE_PORT"), ("FAIRLANE_ENGINE__STEP_TOKEN", "FAIRLANE_ENGINE__STEP_TOKENS")],
)
def test_an_unknown_variable_is_answered_with_a_suggestion(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown variable {name}: did you mean {meant}?"):
        load(None, {name: "1"})


@pytest.mark.parametrize(("key", "meant"), [("prot", "port"), ("engine.max_seqs", "engine.max_num_seqs")])
def test_an_unknown_flag_is_answered_with_a_suggestion(key: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown key {key} \(command line\): did you mean {meant}\?"):
        load(None, {}, {key: 1})


# Bad values.


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("port", "x", "valid integer"),
        ("port", 65536, "less than or equal to 65535"),
        ("port", -1, "greater than or equal to 0"),
        ("queue_timeout", 0, "greater than 0"),
        ("client_stall", -1, "greater than 0"),
        ("max_body", 0, "greater than 0"),
        ("long_lane_jobs", 0, "greater than 0"),
        ("engine.max_num_seqs", 0, "greater than 0"),
        ("engine.step_tokens", "many", "valid integer"),
        ("engine.long_prefill_threshold", -1, "greater than or equal to 0"),
        ("policy", "lifo", "no policy 'lifo': choose fair, fifo"),
        ("upstream", "localhost:8000", "URL"),
        ("front_ends", ["office"], "'office' does not appear to be an IPv4 or IPv6 network"),
        ("log_level", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("keys", [{"key": "k"}], "Field required"),
        ("insecure", "perhaps", "valid boolean"),
    ],
)
def test_an_invalid_value_is_reported_with_its_name_and_the_reason(key: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}") as wrong:
        load(None, {}, {key: value})
    assert says in str(wrong.value)


def test_an_error_names_its_source(file: Path) -> None:
    file.write_text("port = 1\nqueue_timeout = -1\n")
    with pytest.raises(ConfigError) as wrong:
        load(file, {"FAIRLANE_PORT": "x"}, {"max_body": 0})
    lines = str(wrong.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "port (environment)",
        f"queue_timeout ({file})",
        "max_body (command line)",
    ]


@pytest.mark.parametrize("name", ["FAIRLANE_KEYS", "FAIRLANE_FRONT_ENDS", "FAIRLANE_USER_HEADERS"])
def test_a_list_in_the_environment_must_be_json(name: str) -> None:
    with pytest.raises(ConfigError, match=r"environment.*lists are written as JSON"):
        load(None, {name: "a,b"})


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.toml: No such file"):
        load(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("content", [b"port = = 1", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_reported(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load(file)


# Rules between settings.


@pytest.mark.parametrize(
    ("jobs", "step", "threshold", "fits"),
    [
        (1, 8192, 0, True),
        (2, 8192, 0, False),
        (2, 8192, 2048, True),
        (2, 8192, 2049, False),
        (3, 8192, 1365, True),
        (3, 8192, 1366, False),
        (1, 8192, 8192, True),
    ],
)
def test_concurrent_long_jobs_may_fill_at_most_half_a_step(jobs: int, step: int, threshold: int, fits: bool) -> None:
    flags = {"long_lane_jobs": jobs, "engine.step_tokens": step, "engine.long_prefill_threshold": threshold}
    if fits:
        assert from_settings.limits(load(None, {}, flags)[0], PROFILE).long_lane_jobs == jobs
    else:
        with pytest.raises(ConfigError, match="less than half of a step"):
            load(None, {}, flags)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "spark.office"])
def test_listening_beyond_loopback_requires_keys_or_explicit_consent(host: str) -> None:
    with pytest.raises(ConfigError, match=r"add \[\[keys\]\], or say --insecure"):
        load(None, {}, {"host": host})
    assert load(None, {}, {"host": host, "insecure": True})[0].host == host
    assert load(None, {}, {"host": host, "keys": [{"key": "k", "owner": "o"}]})[0].host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_listening_on_loopback_requires_no_keys(host: str) -> None:
    assert load(None, {}, {"host": host})[0].host == host


@pytest.mark.parametrize(
    "url", ["http://spark:8000", "http://spark:8000/", "http://spark:8000/v1", "http://spark:8000/v1/"]
)
def test_the_upstream_may_end_in_v1(url: str) -> None:
    assert load(None, {}, {"upstream": url})[0].base_url == "http://spark:8000"


def test_the_short_lane_defaults_to_one_engine_step() -> None:
    assert from_settings.limits(load(None, {}, {"engine.step_tokens": 512})[0], PROFILE).short_lane_tokens == 512
    assert (
        from_settings.limits(
            load(None, {}, {"engine.step_tokens": 512, "short_lane_tokens": 99})[0], PROFILE
        ).short_lane_tokens
        == 99
    )


def test_limits_follow_the_settings() -> None:
    flags = {
        "long_prompt_tokens": 5,
        "short_lane_tokens": 6,
        "engine.max_num_seqs": 7,
        "engine.kv_tokens": 8,
        "flow_in_flight": 9,
        "flow_queued": 10,
        "max_queued": 11,
        "max_queued_s": 12,
    }
    assert from_settings.limits(load(None, {}, flags)[0], PROFILE) == Limits(5, 6, 1, 7, 8, 9, 10, 11, 12)


@pytest.mark.parametrize(
    ("target", "seats"), [(0.001, 1), (0.099, 10), (0.16, 31), (0.2, 63), (9.0, 200)], ids=lambda value: str(value)
)
def test_an_inter_token_target_lowers_the_seats(target: float, seats: int) -> None:
    """Between the points of the profile's table of decode steps: 25 sequences take 0.150 s, 50 take 0.188 s."""
    assert from_settings.limits(load(None, {}, {"tpot_target": target})[0], PROFILE).max_num_seqs == seats


def test_an_inter_token_target_needs_a_profile_with_decode_times() -> None:
    with pytest.raises(ValueError, match="decode_step_s"):
        from_settings.limits(load(None, {}, {"tpot_target": 0.1})[0], PROFILE.model_copy(update={"decode_step_s": {}}))


def test_weights_are_read_from_a_table(file: Path) -> None:
    file.write_text("[weights]\nann = 2\n")
    assert load(file)[0].weights == {"ann": 2.0}
    with pytest.raises(ConfigError, match=r"weights\.ann"):
        load(None, {}, {"weights": {"ann": 0}})


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_can_be_chosen(policy: str) -> None:
    assert load(None, {}, {"policy": policy})[0].policy == policy


# What `config show` prints.

ALL = list(fields())

# Numbers whose name is their unit, and those that are not set.
PURE_NUMBERS = {"port"}
UNSET_NUMBERS = {field.key for field in ALL if field.unit and attrgetter(field.key)(Settings()) is None}


def value(key: str) -> Any:
    found: Any = Settings()
    for name in key.split("."):
        found = getattr(found, name)
    return found


def test_every_setting_is_listed_once() -> None:
    keys = [field.key for field in ALL]
    assert len(keys) == len(set(keys))
    assert {key.partition(".")[0] for key in keys} == set(Settings.model_fields)


@pytest.mark.parametrize("field", ALL, ids=attrgetter("key"))
def test_every_setting_has_a_description_and_a_unit(field: SettingField) -> None:
    assert field.description
    numeric = isinstance(value(field.key), int | float) and not isinstance(value(field.key), bool)
    if numeric:
        assert field.unit or field.key in PURE_NUMBERS
    elif field.key not in UNSET_NUMBERS:
        assert not field.unit


@pytest.mark.parametrize("key", [field.key for field in ALL])
def test_every_setting_can_be_set_in_the_environment(key: str) -> None:
    wanted = value(key)
    if isinstance(wanted, tuple):
        written = json.dumps(wanted)
    elif wanted is None:
        written = "5" if key in UNSET_NUMBERS else "text"
    elif isinstance(wanted, dict):
        written = json.dumps(wanted)
    else:
        written = str(wanted)
    sources = load(None, {"FAIRLANE_" + key.upper().replace(".", "__"): written})[1]
    assert sources == ({} if wanted == {} else {key: "environment"})


def test_config_show_marks_settings_that_take_a_restart() -> None:
    output = CliRunner().invoke(create_app(), ["config", "show"]).output
    rows = [row.split() for row in re.split(r"\n(?=\S)", output)]  # what does not fit into a line is indented
    assert {row[0] for row in rows if row[-3:] == ["(takes", "a", "restart)"]} == AT_START


# Changes at run time.

AT_START = {
    *("host", "port", "upstream", "upstream_key", "upstream_timeout", "max_headers", "max_connections"),
    *("cors_origins", "tls_certificate", "tls_key", "insecure"),
    *("trace_file", "decision_log", "state_file", "tokenizer"),
}

# For each setting a value that is not its default.
CHANGED: dict[str, Any] = {
    "upstream": "http://elsewhere:1",
    "policy": "fifo",
    "engine.scheduling_policy": "priority",
    "log_level": "debug",
    "keys": [{"key": "k", "owner": "o"}],
    "background": [{"owner": "o"}],
    "weights": {"ann": 2.0},
}


def changed(key: str) -> Any:
    match value(key):
        case bool(was):
            return not was
        case int(was) | float(was):
            return was / 2 if isinstance(was, float) else was + 1
        case tuple():
            return ["10.0.0.0/8"]
        case None:
            return 5 if key in UNSET_NUMBERS else "5"
        case _:
            return "changed"


@pytest.mark.parametrize("key", [field.key for field in ALL])
def test_a_changed_setting_needs_a_restart_if_it_is_read_at_start(key: str) -> None:
    # With a small threshold, two long jobs are allowed; without keys, any host is allowed if it is said to be insecure.
    flags = {"engine.long_prefill_threshold": 1024, "insecure": key != "insecure"}
    before, after = load(flags=flags)[0], load(flags=flags | {key: CHANGED.get(key, changed(key))})[0]
    assert before != after
    assert restart_needed(before, after) == ([key] if key in AT_START else [])


def test_several_changed_settings_are_named_in_their_order() -> None:
    after = Settings(port=9, upstream_timeout=5.0, queue_timeout=5.0, trace_file=Path("spans.jsonl"))
    assert restart_needed(Settings(), after) == ["port", "upstream_timeout", "trace_file"]
    assert restart_needed(after, after) == []
