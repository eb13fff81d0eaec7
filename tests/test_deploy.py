"""The files in deploy/ agree with each other and with the gateway: numbers, names, paths and addresses.

No test starts a container. Checks that need a missing tool (systemd-analyze, docker compose, openssl) are skipped;
everything else is checked by reading the files.
"""

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

from gateway.config.layers import ConfigError
from gateway.config.settings import Settings
from gateway.storage.config_file import load
from gateway.storage.profile_file import load as load_profile
from tests.support.repository import ROOT

DEPLOY = ROOT / "deploy"
CONFIG = DEPLOY / "fairlane.toml"
PROFILES = sorted((DEPLOY / "vllm").glob("*.yaml"))
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
KEYS = '[{"key": "a-key", "owner": "anna"}]'


def shipped(**environ: str) -> Settings:
    return load(CONFIG, {"FAIRLANE_KEYS": KEYS} | environ)[0]


def unit(name: str) -> dict[str, list[str]]:
    """The settings of a unit file; a line that ends in a backslash goes on."""
    text = (DEPLOY / "systemd" / name).read_text().replace("\\\n", " ")
    settings: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            settings.setdefault(key, []).append(value)
    return settings


def interpolated(value: str, environ: dict[str, str]) -> str:
    """As compose fills in ${NAME:-default} and ${NAME:?error}."""

    def fill(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        if operator == ":?" and not environ.get(name):
            raise KeyError(name)
        return environ.get(name) or rest

    return re.sub(r"\$\{(\w+)(:-|:\?)([^}]*)\}", fill, value)


def dockerfile() -> Iterator[tuple[str, str]]:
    for line in (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            instruction, _, rest = line.partition(" ")
            yield instruction, rest.strip()


# --- vLLM's profiles and fairlane.toml


def test_both_of_the_articles_profiles_are_shipped() -> None:
    assert [profile.stem for profile in PROFILES] == ["gemma-4-26b-bf16", "gemma-4-26b-nvfp4"]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_the_gateways_engine_settings_match_the_engines_flags(profile: Path) -> None:
    flags = yaml.safe_load(profile.read_text())
    settings = shipped(FAIRLANE_PROFILE=profile.stem)
    assert flags["max-num-batched-tokens"] == settings.engine.step_tokens
    assert flags["long-prefill-token-threshold"] == settings.engine.long_prefill_threshold
    assert flags["max-num-seqs"] == settings.engine.max_num_seqs
    assert settings.long_prompt_tokens <= flags["long-prefill-token-threshold"]
    assert flags["enable-prefix-caching"] is True
    assert flags["enable-per-request-metrics"] is True
    assert flags["enable-prompt-tokens-details"] is True
    assert load_profile(settings.profile).c_s > 0  # raises, were there no cost profile of that name


def test_each_flag_is_explained_and_profiles_differ_only_in_the_model() -> None:
    parsed = [yaml.safe_load(profile.read_text()) for profile in PROFILES]
    common = parsed[0].keys() & parsed[1].keys()
    assert {flag for flag in common if parsed[0][flag] != parsed[1][flag]} == {"model"}
    for profile in PROFILES:
        reasoned = False
        for line in profile.read_text().splitlines():
            reasoned = line.startswith("#") or (reasoned and bool(line))
            assert reasoned or not line or line.startswith("model:"), f"{profile.name}: {line}"


def test_the_shipped_configuration_requires_a_key() -> None:
    with pytest.raises(ConfigError, match="no keys"):
        load(CONFIG)
    examples = re.findall(r"^# (key = .*)$", CONFIG.read_text(), re.MULTILINE)
    assert len(examples) == 2
    for example in examples:  # uncommented as it stands, it must not become a key
        with pytest.raises(tomllib.TOMLDecodeError):
            tomllib.loads(example)


@pytest.mark.skipif(not shutil.which("openssl"), reason="the README makes keys with openssl")
def test_the_keys_in_the_readme_are_valid(tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (DEPLOY / "README.md").read_text(), re.DOTALL)
    (tmp_path / "deploy").mkdir()
    subprocess.run(["bash", "-euc", blocks[0]], cwd=tmp_path, check=True)
    env = tmp_path / "deploy" / ".env"
    assert env.stat().st_mode & 0o777 == 0o600

    made = {name: value or "" for name, value in dotenv_values(env, interpolate=False).items()}
    page, person = shipped(FAIRLANE_KEYS=made["FAIRLANE_KEYS"]).keys
    assert (page.owner, page.front_end) == ("open-webui", True)
    assert (person.owner, person.front_end) == ("anna", False)
    assert page.key.get_secret_value() == made["OPEN_WEBUI_KEY"]
    secrets = {page.key.get_secret_value(), person.key.get_secret_value(), made["WEBUI_SECRET_KEY"]}
    assert len(secrets) == 3
    assert all(len(secret) == 48 for secret in secrets)
    # systemd reads the same file, and splits and unquotes as a shell does
    assert shlex.split(env.read_text())[0] == f"FAIRLANE_KEYS={made['FAIRLANE_KEYS']}"


# --- compose


def test_only_the_gateway_reaches_the_engine() -> None:
    assert "ports" not in SERVICES["vllm"]
    engine = set(SERVICES["vllm"]["networks"])
    assert {name for name, service in SERVICES.items() if engine & set(service["networks"])} == {"vllm", "fairlane"}
    assert all("network_mode" not in service for service in SERVICES.values())


def test_compose_starts_the_gateway_as_it_is_configured() -> None:
    service = SERVICES["fairlane"]
    given = {name: value for name, value in service["environment"].items() if value is not None}
    with pytest.raises(KeyError, match="FAIRLANE_KEYS"):
        interpolated(given["FAIRLANE_KEYS"], {})
    environ = {name: interpolated(value, {"FAIRLANE_KEYS": KEYS}) for name, value in given.items()}
    passed_on = {name: "x" for name, value in service["environment"].items() if value is None and "FAIRLANE" in name}
    settings, sources = load(CONFIG, environ | passed_on)  # a name that is no setting raises

    assert settings.base_url == "http://vllm:8000"
    assert sources["profile"] == "environment"
    assert interpolated(service["ports"][0], {}) == f"0.0.0.0:{settings.port}:{settings.port}"
    assert int(service["stop_grace_period"].removesuffix("s")) > settings.drain_timeout


def test_compose_runs_the_profile_of_the_gateways_configuration() -> None:
    for environ in ({}, {"FAIRLANE_PROFILE": "gemma-4-26b-nvfp4"}):
        flag, file = (interpolated(word, environ) for word in SERVICES["vllm"]["command"])
        reckoned = interpolated(SERVICES["fairlane"]["environment"]["FAIRLANE_PROFILE"], environ)
        assert flag == "--config"
        assert Path(file) in [Path("/profiles") / profile.name for profile in PROFILES]
        assert Path(file).stem == reckoned
    assert interpolated("${FAIRLANE_PROFILE:-gemma-4-26b-bf16}", {}) == shipped().profile


def test_open_webui_is_optional_and_forwards_the_user() -> None:
    page = SERVICES["open-webui"]
    assert page["profiles"] == ["webui"]
    assert all("profiles" not in SERVICES[name] for name in ("vllm", "fairlane"))
    environ = page["environment"]
    assert environ["OPENAI_API_BASE_URL"] == f"http://fairlane:{shipped().port}/v1"
    assert environ["ENABLE_FORWARD_USER_INFO_HEADERS"] == "True"
    assert "x-openwebui-user-id" in shipped().user_headers
    for secret in ("OPENAI_API_KEY", "WEBUI_SECRET_KEY"):
        assert interpolated(environ[secret], {}) == ""  # no usable default


def test_compose_refers_to_existing_files_and_volumes() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (DEPLOY / source).exists(), f"{name}: {volume}"
        assert set(service["networks"]) <= COMPOSE["networks"].keys()
    build = SERVICES["fairlane"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    assert (DEPLOY / SERVICES["vllm"]["env_file"]).is_file()


def test_images_are_pinned_and_the_engines_runs_on_a_spark() -> None:
    for image in (SERVICES["vllm"]["image"], SERVICES["open-webui"]["image"]):
        assert re.search(r":v\d+\.\d+\.\d+", image)
    assert "-aarch64-" in SERVICES["vllm"]["image"]
    assert SERVICES["vllm"]["image"] in shlex.split(unit("vllm.service")["ExecStart"][0])


def test_docker_compose_accepts_the_file(tmp_path: Path) -> None:
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("no docker compose")
    env = tmp_path / "env"
    env.write_text(f"FAIRLANE_KEYS='{KEYS}'\n")
    command = [docker, "compose", "--file", str(DEPLOY / "compose.yaml"), "--profile", "webui", "--env-file", str(env)]
    done = subprocess.run([*command, "config"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    environ = yaml.safe_load(done.stdout)["services"]["fairlane"]["environment"]
    assert environ["FAIRLANE_KEYS"] == KEYS
    assert environ.get("FAIRLANE_TRACE_FILE") is None


# --- the image


def test_the_image_copies_existing_and_unignored_files() -> None:
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignore if line.startswith("!")}
    assert "*" in ignore  # so that .env, .git and .venv stay out
    assert all((ROOT / name).exists() for name in let_in)

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert needed | set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= let_in
    for instruction, rest in dockerfile():
        if instruction == "COPY" and not rest.startswith("--from"):
            assert all(source == "." or source in let_in for source in rest.split()[:-1]), rest


def test_the_image_runs_unprivileged_with_a_health_check() -> None:
    final = dict(list(dockerfile())[[name for name, _ in dockerfile()].index("FROM", 1) :])
    assert final["USER"] not in ("root", "0")
    assert f"http://127.0.0.1:{shipped().port}/health" in final["HEALTHCHECK"]
    assert final["EXPOSE"] == str(shipped().port)
    mounted = [volume.split(":")[1] for volume in SERVICES["fairlane"]["volumes"]]
    assert yaml.safe_load(final["CMD"])[-1] in mounted  # its --config


# --- systemd


def test_the_gateways_unit_allows_a_drain_and_does_not_require_the_engine() -> None:
    gateway = unit("fairlane.service")
    assert int(gateway["TimeoutStopSec"][0]) > shipped().drain_timeout
    assert gateway["Restart"] == ["on-failure"]
    assert gateway["DynamicUser"] == ["yes"]
    assert "vllm.service" in gateway["After"][0]
    assert not {"Requires", "BindsTo", "PartOf", "Requisite"} & gateway.keys()
    assert shlex.split(gateway["ExecStart"][0])[1:] == ["serve", "--config", "/etc/fairlane/fairlane.toml"]


def test_the_engines_unit_listens_on_this_host_only() -> None:
    engine = unit("vllm.service")
    words = shlex.split(engine["ExecStart"][0])
    published = [words[i + 1] for i, word in enumerate(words) if word in ("--publish", "-p")]
    assert published == ["127.0.0.1:8000:8000"]
    assert shipped().base_url == "http://127.0.0.1:8000"
    assert words[-2:] == ["--config", "/profiles/${FAIRLANE_PROFILE}.yaml"]
    assert engine["Environment"] == [f"FAIRLANE_PROFILE={shipped().profile}"]
    assert engine["EnvironmentFile"] == unit("fairlane.service")["EnvironmentFile"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
def test_systemd_analyze_accepts_the_units(tmp_path: Path) -> None:
    (tmp_path / "docker.service").write_text("[Service]\nExecStart=/bin/true\n")
    names = ["vllm.service", "fairlane.service"]
    for name in names:
        # It also looks for the programs, which are not on this machine.
        text = (DEPLOY / "systemd" / name).read_text()
        (tmp_path / name).write_text(re.sub(r"/usr/bin/docker|/opt/fairlane/bin/fairlane", "/bin/true", text))
    command = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in names)]
    done = subprocess.run(command, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if any(name in line for name in names)]
    assert (done.returncode, said) == (0, [])  # an unknown key is only a warning, and returns 0
