"""Every setting: its name, its kind, its unit, its default, and what it is for."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AnyHttpUrl,
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gateway.types import OPENING_CHARS
from policies import POLICIES, find

ENV_PREFIX = "FAIRLANE_"


class Unit(str):
    """The unit of a setting's value, as `config show` prints it."""


class Restart:
    """Marks a setting that is read once, at start, so that a change takes a restart."""


T = TypeVar("T")

ReadAtStart = Annotated[T, Restart()]
Seconds = Annotated[PositiveFloat, Unit("s")]
Tokens = Annotated[PositiveInt, Unit("tokens")]


class EngineSettings(BaseModel, extra="forbid", frozen=True):
    """How the engine was started: vLLM tells none of these over its API."""

    step_tokens: Tokens = Field(8192, description="vLLM's --max-num-batched-tokens")
    long_prefill_threshold: Annotated[NonNegativeInt, Unit("tokens")] = Field(
        0, description="vLLM's --long-prefill-token-threshold; 0 is off"
    )
    max_num_seqs: Annotated[PositiveInt, Unit("sequences")] = Field(
        256, description="sequences in the engine at once; at most vLLM's --max-num-seqs"
    )
    scheduling_policy: Literal["fcfs", "priority"] = Field(
        "fcfs", description="vLLM's --scheduling-policy; with priority the gateway tells it our order"
    )
    kv_tokens: Annotated[PositiveInt | None, Unit("tokens")] = Field(
        None, description="cache that prompts and answers may fill; vLLM logs its size at start; unset: no limit"
    )

    def order(self, number: int) -> int | None:
        """What vLLM is told of the dispatch with this number as its `priority`; None where it goes by arrival."""
        return number if self.scheduling_policy == "priority" else None


class KeySettings(BaseModel, extra="forbid", frozen=True):
    key: SecretStr = Field(description="what its holder sends as a Bearer token")
    owner: str = Field(description="whose turn a request with this key takes")
    front_end: bool = Field(False, description="may name its own users")
    admin: bool = Field(False, description="sees everybody's place in the queue, not only its own")
    priority: float = Field(0.0, description="most seconds of head start that its x-fairlane-priority may ask for")
    weight: PositiveFloat = Field(1.0, description="of its owner, or of each of its users; [weights] goes before it")
    flow_in_flight: PositiveInt | None = Field(None, description="instead of the limit of that name")
    flow_queued: PositiveInt | None = Field(None, description="instead of the limit of that name")

    @field_validator("key")
    @classmethod
    def _not_empty(cls, key: SecretStr) -> SecretStr:
        if not key.get_secret_value().strip():
            raise ValueError("is empty: anybody would have it")
        return key


class BackgroundSettings(BaseModel, extra="forbid", frozen=True):
    """All that is given must be so."""

    owner: str | None = Field(None, description="the key's owner, else the address")
    user: str | None = Field(None, description="the user that the request names")
    model: str | None = Field(None, description="the model that it asks for")
    header: str | None = Field(None, description="NAME, which it must have, or NAME: VALUE")
    text: str | None = Field(None, description="how its last message, or its prompt, begins")

    @model_validator(mode="after")
    def _some_condition(self) -> "BackgroundSettings":
        if not any(self.model_dump().values()):
            raise ValueError("says nothing: give owner, user, model, header or text, or everything would be background")
        if self.text and len(self.text) > OPENING_CHARS:
            raise ValueError(f"text is longer than the {OPENING_CHARS} characters that are looked at")
        return self


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    host: ReadAtStart[str] = Field("127.0.0.1", description="address to listen on")
    port: ReadAtStart[Annotated[int, Field(ge=0, le=65535)]] = Field(
        8100, description="port to listen on; 0 takes a free one"
    )
    upstream: ReadAtStart[AnyHttpUrl] = Field(
        AnyHttpUrl("http://127.0.0.1:8000"), description="where vLLM answers, without /v1"
    )
    upstream_key: ReadAtStart[SecretStr | None] = Field(
        None, description="key for vLLM, if it was started with --api-key"
    )
    upstream_timeout: ReadAtStart[Seconds] = Field(
        1800.0, description="silence of the engine after which a request fails"
    )
    engine: EngineSettings = EngineSettings()
    profile: str = Field("gemma-4-26b-bf16", description="what work costs: a shipped profile or a .toml file")
    tokenizer: ReadAtStart[Literal["engine", "off"] | Path] = Field(
        "engine",
        description="who counts the tokens of long prompts: vLLM's /tokenize, a tokenizer.json, or nobody (off)",
    )
    state_file: ReadAtStart[Literal["auto", "off"] | Path] = Field(
        "auto", description="keeps what is learned of the engine from one start to the next; auto: in the state folder"
    )
    policy: str = Field("fair", description="who is next: " + ", ".join(POLICIES))
    long_prompt_tokens: Tokens = Field(2048, description="a longer prompt takes the long lane")
    short_lane_tokens: Annotated[PositiveInt | None, Unit("tokens")] = Field(
        None, description="tokens of short prompts in prefill at once; unset: one engine step"
    )
    long_lane_jobs: Annotated[PositiveInt, Unit("requests")] = Field(1, description="long prompts in prefill at once")
    slicing: bool = Field(True, description="long prompts are prefilled in slices, and others go between them")
    max_stall: Seconds = Field(0.5, description="how long a slice of a long prompt may hold others up, about")
    long_share: Annotated[float, Field(gt=0, le=1), Unit("of 1")] = Field(
        1.0, description="of the engine's time that a long prompt in slices has while ten others decode; 1: all it can"
    )
    tpot_target: Annotated[PositiveFloat | None, Unit("s")] = Field(
        None,
        description="seconds a token: lower the sequences so that decoding alone takes at most this, which costs TTFT, "
        "and pause between slices for it, instead of for long_share",
    )
    flow_in_flight: Annotated[PositiveInt | None, Unit("requests")] = Field(
        None, description="one user's requests in the engine; unset: no limit"
    )
    flow_queued: Annotated[PositiveInt | None, Unit("requests")] = Field(
        None, description="one user's requests that wait; more get 429 user_limit; unset: no limit"
    )
    max_queued: Annotated[PositiveInt | None, Unit("requests")] = Field(
        None, description="requests that wait; more get 429 queue_full; unset: no limit"
    )
    max_queued_s: Annotated[PositiveFloat | None, Unit("s")] = Field(
        None, description="prefill that waits, in engine seconds; more gets 429 queue_full; unset: no limit"
    )
    weights: dict[str, PositiveFloat] = Field(
        {}, description="a user's part of the engine against others' 1; by key owner, user name or address"
    )
    queue_timeout: Seconds = Field(300.0, description="a request that waited longer gets 429")
    silent_grace: Seconds = Field(
        3.0, description="a streamed request that waited longer is told so in SSE comments, with status 200"
    )
    comment_interval: Seconds = Field(5.0, description="from one such comment to the next")
    engine_grace: Annotated[NonNegativeFloat, Unit("s")] = Field(
        120.0, description="requests wait for an engine that is away for up to so long; then they get 503"
    )
    client_stall: Seconds = Field(60.0, description="a client that reads nothing for so long is cut off")
    drain_timeout: Seconds = Field(60.0, description="after SIGTERM, running requests may go on for so long")
    body_timeout: Seconds = Field(60.0, description="a request body must have come whole by then, else 408")
    max_body: Annotated[PositiveInt, Unit("bytes")] = Field(64 << 20, description="largest request body")
    max_headers: ReadAtStart[Annotated[PositiveInt, Unit("bytes")]] = Field(
        64 << 10, description="largest head of a request"
    )
    max_connections: ReadAtStart[Annotated[PositiveInt, Unit("connections")]] = Field(
        2048, description="clients' connections at once; who comes then and asks for an answer gets 503"
    )
    cors_origins: ReadAtStart[tuple[str, ...]] = Field(
        (), description='web pages that may use the gateway from a browser, such as "http://intranet"; "*" is any'
    )
    tls_certificate: ReadAtStart[Path | None] = Field(None, description="serve https with this certificate chain (PEM)")
    tls_key: ReadAtStart[Path | None] = Field(None, description="its private key, unless the certificate's file has it")
    keys: tuple[KeySettings, ...] = Field((), description="API keys, each [[keys]] with key, owner, front_end")
    keys_file: Path | None = Field(
        None, description="more API keys, as hashes; `fairlane keys` changes it, and the gateway follows in a second"
    )
    front_ends: tuple[str, ...] = Field(
        ("127.0.0.0/8", "::1/128"), description="networks whose clients may name their users"
    )
    user_headers: tuple[str, ...] = Field(
        ("x-openwebui-user-id", "x-user-id"), description="headers in which a front end names its user"
    )
    background: tuple[BackgroundSettings, ...] = Field(
        (), description="requests that are served last, each [[background]] with owner, user, model, header or text"
    )
    background_webui: bool = Field(True, description="Open WebUI's titles, tags and follow-ups are served last, too")
    background_delay: Seconds = Field(60.0, description="head start that all others have on what is served last")
    insecure: ReadAtStart[bool] = Field(False, description="listen beyond loopback although there are no keys")
    trace_file: ReadAtStart[Path | None] = Field(None, description="write finished spans there, a line of JSON each")
    decision_log: ReadAtStart[Path | None] = Field(None, description="write admission's events and decisions there")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level logged")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Nothing is read behind the caller's back; each source is read by itself, to tell them apart."""
        return (init_settings,)

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, policy: str) -> str:
        find(policy)
        return policy

    @field_validator("front_ends")
    @classmethod
    def _networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ip_network(network)
        return networks

    @model_validator(mode="after")
    def _long_lane_leaves_half_a_step(self) -> "Settings":
        engine = self.engine
        share = self.long_lane_jobs * (engine.long_prefill_threshold or engine.step_tokens)
        if self.long_lane_jobs > 1 and share > engine.step_tokens / 2:
            raise ValueError(
                f"long_lane_jobs = {self.long_lane_jobs} would leave short prompts less than half of a step of "
                f"{engine.step_tokens} tokens: start vLLM with a smaller --long-prefill-token-threshold and say so "
                "in engine.long_prefill_threshold, or use one"
            )
        return self

    @model_validator(mode="after")
    def _open_only_with_keys(self) -> "Settings":
        if not (self.insecure or self.keys or self.keys_file or self.on_loopback):
            raise ValueError(
                f"host = {self.host} lets others in, and there are no keys: set keys_file, add [[keys]], or say "
                "--insecure if everybody who can reach this port may use the engine"
            )
        return self

    @field_validator("keys")
    @classmethod
    def _each_key_once(cls, keys: tuple[KeySettings, ...]) -> tuple[KeySettings, ...]:
        owners: dict[str, str] = {}
        for key in keys:
            if (owner := owners.setdefault(key.key.get_secret_value(), key.owner)) != key.owner:
                raise ValueError(f"{owner} and {key.owner} have the same key")
        return keys

    @property
    def on_loopback(self) -> bool:
        """Whether only this host can connect."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def base_url(self) -> str:
        return str(self.upstream).rstrip("/").removesuffix("/v1")

    @property
    def front_end_networks(self) -> list[IPv4Network | IPv6Network]:
        return [ip_network(network) for network in self.front_ends]
