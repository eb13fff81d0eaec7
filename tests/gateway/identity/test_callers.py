"""Which flow a request belongs to; no client gets a second share by inventing a name."""

from ipaddress import ip_network
from re import fullmatch

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UnknownKey
from gateway.identity.callers import Callers, hashed
from gateway.identity.keys import Key, Rights, key_digest


def key(secret: str, owner: str, front_end: bool = False) -> Key:
    return Key(digest=key_digest(secret), owner=owner, front_end=front_end)


KEYS = [
    key("k-alice", "alice"),
    key("k-webui", "webui", front_end=True),
]
FRONT_ENDS = [ip_network("127.0.0.0/8"), ip_network("::1/128"), ip_network("10.9.0.0/16")]
HEADERS = ["X-OpenWebUI-User-Id", "x-user-id"]


def callers(*keys: Key) -> Callers:
    return Callers(keys, FRONT_ENDS, HEADERS)


def bearer(key: str, **named: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode()} | as_headers(named)


def as_headers(named: dict[str, str]) -> dict[bytes, bytes]:
    return {name.replace("_", "-").encode(): value.encode() for name, value in named.items()}


# Without keys: an address is a flow, and a front end names its users.


def test_ipv4_mapped_addresses_are_normalised() -> None:
    assert callers().identify("::ffff:10.0.0.1", {}).flow() == callers().identify("10.0.0.1", {}).flow()


def test_a_long_user_name_is_shortened_and_stays_unique() -> None:
    caller = callers().identify("127.0.0.1", {})
    long, longer = caller.flow("x" * 1000), caller.flow("x" * 1001)
    assert len(long) < 300
    assert long != longer


def test_without_keys_each_address_is_a_flow() -> None:
    here, there = (callers().identify(address, {}) for address in ("192.168.1.5", "192.168.1.6"))
    assert here.flow() != there.flow()
    assert here.flow() == callers().identify("192.168.1.5", {}).flow()


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "10.9.1.2", "::ffff:10.9.1.2"]
)
def test_a_front_end_names_its_users(address: str) -> None:
    caller = callers().identify(address, {b"x-openwebui-user-id": b"ann"})
    assert caller.flow() == callers().identify("127.0.0.1", {b"x-user-id": b"ann"}).flow()
    assert caller.flow() != callers().identify(address, {b"x-user-id": b"bob"}).flow()


def test_the_users_header_takes_precedence_over_the_body() -> None:
    named = callers().identify("127.0.0.1", {b"x-user-id": b"ann"})
    unnamed = callers().identify("127.0.0.1", {})
    assert named.flow("bob") == named.flow() == unnamed.flow("ann")
    assert unnamed.flow("bob") != unnamed.flow("ann")


@pytest.mark.parametrize("nobody", [None, ""])
def test_a_front_end_without_a_user_is_one_flow(nobody: str | None) -> None:
    front_end = callers().identify("127.0.0.1", {b"x-user-id": b"  "})
    assert front_end.flow(nobody) == callers().identify("127.0.0.1", {}).flow()


def test_the_first_configured_header_wins() -> None:
    both = callers().identify("127.0.0.1", {b"x-user-id": b"second", b"x-openwebui-user-id": b"first"})
    assert both.flow() == "user:first"


@pytest.mark.parametrize("address", ["192.168.1.5", "127.0.0.1"])
def test_a_user_name_subdivides_the_clients_own_share(address: str) -> None:
    """A front end has none, for its users have shares of their own."""
    caller = callers(*KEYS).identify(address, bearer("k-alice"))
    parts = {
        caller.subdivision("ann"),
        caller.subdivision("bob"),
        caller.subdivision("x" * 1000),
        caller.subdivision("x" * 1001),
    }
    assert len(parts) == 4
    assert all(0 < len(subdivision) < 300 for subdivision in parts)
    assert callers(*KEYS).identify(address, bearer("k-alice", x_user_id="ann")).subdivision(
        "bob"
    ) == caller.subdivision("ann")
    assert caller.subdivision() == caller.subdivision("") == ""
    assert callers(*KEYS).identify(address, bearer("k-webui")).subdivision("ann") == ""


@given(header=st.binary(), user=st.none() | st.text())
def test_only_front_ends_may_name_other_flows(header: bytes, user: str | None) -> None:
    headers = {b"x-user-id": header, b"x-openwebui-user-id": header}
    plain = callers().identify("192.168.1.5", {})
    assert callers().identify("192.168.1.5", headers).flow(user) == plain.flow()
    with_key = callers(*KEYS).identify("192.168.1.5", bearer("k-alice") | headers)
    assert with_key.flow(user) == callers(*KEYS).identify("192.168.1.5", bearer("k-alice")).flow()


@pytest.mark.parametrize("address", [None, "", "unix:", "testclient"])
def test_invalid_addresses_share_one_flow_and_are_no_front_end(address: str | None) -> None:
    caller = callers().identify(address, {b"x-user-id": b"ann"})
    assert caller.flow("bob") == callers().identify(address, {}).flow()


# With keys.


def test_a_key_owner_is_one_flow_from_any_address() -> None:
    desk, home = (callers(*KEYS).identify(address, bearer("k-alice")) for address in ("192.168.1.5", "127.0.0.1"))
    assert desk.flow() == home.flow()


def test_keys_of_one_owner_share_one_flow() -> None:
    known = callers(key("one", "alice"), key("two", "alice"))
    assert known.identify("10.0.0.1", bearer("one")).flow() == known.identify("10.0.0.2", bearer("two")).flow()


def test_a_key_may_belong_to_a_front_end() -> None:
    webui = callers(*KEYS).identify("192.168.1.5", bearer("k-webui", x_user_id="ann"))
    assert webui.flow() != callers(*KEYS).identify("192.168.1.5", bearer("k-webui")).flow()


@pytest.mark.parametrize("address", ["127.0.0.1", "10.9.1.2"])
def test_a_key_takes_precedence_over_the_address(address: str) -> None:
    """alice's key is no front end, even on a machine that is one."""
    caller = callers(*KEYS).identify(address, bearer("k-alice", x_user_id="ann"))
    assert caller.flow("bob") == callers(*KEYS).identify("192.168.1.5", bearer("k-alice")).flow()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("k-nobody"),
        bearer(""),
        bearer("K-ALICE"),
        {b"authorization": b"Basic k-alice"},
        {b"authorization": b"k-alice"},
        {b"authorization": b"\xff\xfe"},
    ],
)
@pytest.mark.parametrize("address", ["192.168.1.5", "10.9.1.2", "2001:db8::5", "::ffff:192.168.1.5", None, "unix:"])
def test_remote_clients_need_a_known_key(address: str | None, headers: dict[bytes, bytes]) -> None:
    with pytest.raises(UnknownKey):
        callers(*KEYS).identify(address, headers)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("headers", [{}, bearer("k-nobody")])
def test_loopback_clients_need_no_key(address: str, headers: dict[bytes, bytes]) -> None:
    assert callers(*KEYS).identify(address, headers).flow().startswith("address:")


@pytest.mark.parametrize("address", ["192.168.1.5", "2001:db8::5", None])
def test_an_empty_keys_file_admits_nobody(address: str | None) -> None:
    empty = Callers([], FRONT_ENDS, HEADERS, closed=True)
    with pytest.raises(UnknownKey):
        empty.identify(address, bearer("k-alice"))
    assert empty.identify("127.0.0.1", bearer("k-alice")).flow() == "address:127.0.0.1"


@pytest.mark.parametrize("name", [b"x-api-key", b"api-key"])
def test_a_key_is_read_from_the_headers_of_other_sdks(name: bytes) -> None:
    """Anthropic's, and OpenAI's for Azure."""
    assert callers(*KEYS).identify("192.168.1.5", {name: b" k-alice "}).name == "key:alice"
    with pytest.raises(UnknownKey):
        callers(*KEYS).identify("192.168.1.5", {name: b"Bearer k-alice"})


def test_the_first_known_key_of_several_counts() -> None:
    """A client that must send some key or other in one header may send its own in another."""
    known = {b"x-api-key": b"k-webui", b"api-key": b"k-alice"}
    assert callers(*KEYS).identify("192.168.1.5", bearer("sk-none") | known).name == "key:webui"
    assert callers(*KEYS).identify("192.168.1.5", bearer("k-alice") | known).name == "key:alice"


def test_a_key_must_match_the_whole_digest() -> None:
    """A key is found by its id; another whose id is the same must not pass for it."""
    other = key("k-other", "alice")
    same_id = msgspec.structs.replace(key("k-alice", "alice"), digest=other.id + "0" * 56)
    with pytest.raises(UnknownKey):
        callers(same_id).identify("192.168.1.5", bearer("k-other"))


def test_a_caller_has_the_rights_of_its_key() -> None:
    rights = {"admin": True, "priority": 5.0, "weight": 2.0, "flow_in_flight": 3, "flow_queued": 4}
    chief = msgspec.structs.replace(key("k", "chief"), **rights)
    found = callers(chief).identify("192.168.1.5", bearer("k")).rights
    assert {name: getattr(found, name) for name in rights} == rights


@pytest.mark.parametrize(("address", "front_end", "admin"), [("127.0.0.1", True, True), ("10.9.1.2", True, False)])
def test_an_address_has_the_rights_of_its_network(address: str, front_end: bool, admin: bool) -> None:
    assert callers().identify(address, {}).rights == Rights(front_end=front_end, admin=admin)
    assert callers().identify("192.168.1.5", {}).rights == Rights()


def test_without_configured_keys_any_key_is_ignored() -> None:
    """OpenAI's SDKs always send one."""
    assert callers().identify("192.168.1.5", bearer("sk-x")) == callers().identify("192.168.1.5", {})


@pytest.mark.parametrize("written", ["Bearer k-alice", "bearer k-alice", "BEARER   k-alice  "])
def test_a_bearer_token_is_read_case_insensitively(written: str) -> None:
    assert callers(*KEYS).identify("192.168.1.5", {b"authorization": written.encode()}).name == "key:alice"


def test_keys_addresses_and_users_of_one_name_are_three_flows() -> None:
    name = "192.168.1.5"
    known = callers(key("k", name))
    flows = {
        known.identify(name, bearer("k")).flow(),
        callers().identify(name, {}).flow(),
        callers().identify("127.0.0.1", {b"x-user-id": name.encode()}).flow(),
    }
    assert len(flows) == 3


# Names in logs.


@given(st.text())
def test_a_hash_does_not_contain_the_name(name: str) -> None:
    """Always twelve hexadecimal digits, so nothing of the name can be in it."""
    digest = hashed(f"user:{name}")
    assert digest == hashed(f"user:{name}")
    assert fullmatch("[0-9a-f]{12}", digest)


def test_hashes_of_different_users_differ() -> None:
    assert len({hashed(f"user:{i}") for i in range(1000)}) == 1000
